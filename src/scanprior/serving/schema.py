"""What the answers look like: the description of the interface, and what its tests hold the answers to."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class _Answer(BaseModel):
    model_config = ConfigDict(extra="forbid", populate_by_name=True)


class Outlier(_Answer):
    """How unlike the training images an image is."""

    score: float = Field(description="distance of its features from those of the training images")
    p: float = Field(description="share of validation images at least as far away, in (0, 1]")
    flagged: bool = Field(description="above the threshold that the run chose: do not rely on the answer")


class Similar(_Answer):
    """A training image that is like the one that was sent."""

    similarity: float = Field(description="cosine of the features, in [-1, 1]")
    labels: list[str]
    thumbnail: str | None = Field(description="data URI of a small JPEG, if the run keeps thumbnails")


class Mask(_Answer):
    """The predicted mask of a class, as large as the image."""

    pixels: int
    png: str = Field(description="base64 of a PNG of one bit a pixel")


class Result(_Answer):
    """What a run says of one file; ``error`` alone where it could not be read."""

    file: int = Field(description="place among the files sent, from 0")
    error: str | None = None
    height: int | None = Field(None, description="pixels")
    width: int | None = Field(None, description="pixels")
    frames: int | None = Field(None, description="of the file; the one asked for was answered")
    predicted: str | None = Field(None, description="the most probable class; None of findings")
    probabilities: dict[str, float] | None = None
    calibrated: dict[str, float] | None = Field(None, description="with the run's temperature")
    above_operating_point: dict[str, bool] | None = Field(
        None, description="whether a class reaches the threshold chosen on validation images"
    )
    conformal_set: list[str] | None = Field(
        None, description="classes that cannot be ruled out, or findings that are not absent"
    )
    undecided: list[str] | None = Field(None, description="findings of the set that may be absent, too")
    outlier: Outlier | None = None
    similar: list[Similar] | None = None
    masks: dict[str, Mask] | None = None


class Predictions(_Answer):
    """Results in the order of the files."""

    model: str
    fingerprint: str = Field(description="of the run's card")
    notice: str
    results: list[Result]
    detail: str | None = Field(None, description="where not one file could be read")


class Explanation(_Answer):
    """Where a run looks in an image."""

    file: int
    error: str | None = None
    predicted: str | None = None
    class_name: str | None = Field(None, alias="class")
    probability: float | None = None
    methods: list[str] | None = None
    saliency_png: str | None = Field(None, description="base64 of a grey PNG, 255 where it looks most")


class Explanations(_Answer):
    """Explanations in the order of the files."""

    model: str
    fingerprint: str
    notice: str
    results: list[Explanation]
    detail: str | None = None


class Model(_Answer):
    """A run that is served."""

    name: str
    kind: str = Field(description="multiclass, multilabel or segmentation")
    classes: list[str]
    encoder: str
    size: int = Field(description="side of the network's input in pixels")
    created: str | None
    fingerprint: str
    operating_points: dict[str, dict[str, Any]]
    coverage: float | None = Field(description="wanted of the conformal sets")
    false_alarms: float | None = Field(
        description="wanted share of images like the training's that are flagged"
    )
    explain: list[str] = Field(description="methods of /explain")
    similar: bool = Field(description="whether similar training images can be shown")


class Problem(BaseModel):
    """Why a request was refused."""

    detail: str
