"""A run that answers: what it says of images that were read, as JSON values."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from scanprior.api.explanation import Explainer
from scanprior.api.mask_predictor import MaskPredictor
from scanprior.api.mask_results import predicted_masks
from scanprior.api.models import load_predictor, load_segmenter
from scanprior.api.outlier_detection import OutlierDetector
from scanprior.api.prediction import named
from scanprior.api.prediction_tables import thresholds_from, validation_predictions
from scanprior.api.reading import Reading, stacked
from scanprior.api.settings import EvaluationConfig
from scanprior.api.trust import Trust
from scanprior.data.preprocessing import Form, Preprocessing
from scanprior.data.readers import ImageData
from scanprior.errors import RunError
from scanprior.run import Run

LONGEST = 1024
"""Longest side of a map or a picture that is sent, in pixels."""


@dataclass(frozen=True)
class Answer:
    """What a run says of one image.

    Attributes:
        said: JSON values.
        pooled: (1, D) float32 features, by which similar cases are found; None = there are none.
        drawn: makes further JSON values, of the image's own size, which nothing else should wait for; None = none.
    """

    said: dict[str, Any]
    pooled: NDArray[np.float32] | None = None
    drawn: Callable[[], dict[str, Any]] | None = None


class Served(Protocol):
    """A run that is loaded once and answers for as long as the server runs."""

    name: str
    run: Run
    fingerprint: str
    forms: Mapping[Form, Preprocessing]
    kind: str
    classes: Sequence[str]
    explainer: Explainer | None
    methods: Sequence[str]

    @property
    def about(self) -> dict[str, Any]:
        """What distinguishes this run from others."""
        ...

    def __call__(self, readings: Sequence[Reading]) -> list[Answer]:
        """Answer for images that were read without an error."""
        ...

    def similar(self, answer: Answer, count: int) -> list[dict[str, Any]]:
        """Return the training images most like that of an answer."""
        ...


def open_served(path: str | Path, name: str) -> Served:
    """Load a run.

    Raises:
        RunError: there is none, or it predicts nothing.
    """
    run = Run.open(path)
    kind = run.card["kind"]
    if kind == "segment":
        return ServedSegmenter(run, name)
    if kind != "classify":
        raise RunError(f"{run.path}: a pretrained encoder predicts nothing; serve a fine-tuned run")
    return ServedClassifier(run, name)


class ServedClassifier:
    """A classifier or an ensemble that answers."""

    def __init__(self, run: Run, name: str) -> None:
        self.run, self.name, self.fingerprint = run, name, run.card_fingerprint()
        self.predictor = load_predictor(run)
        self.explainer: Explainer | None = Explainer(self.predictor)
        self.methods: Sequence[str] = self.explainer.methods  # takes forward passes: now, not in a request
        self.trust = Trust.open(run)
        self.forms: Mapping[Form, Preprocessing] = self.predictor.forms
        self.kind: str = self.predictor.kind
        self.classes: Sequence[str] = self.predictor.classes
        self.points = self._operating_points()

    @property
    def about(self) -> dict[str, Any]:
        """What distinguishes this run from others."""
        trust = self.run.card.get("trust") or {}
        return {
            "operating_points": self.points,
            "coverage": _wanted_coverage(trust),
            "false_alarms": _false_alarms(self.run),
            "explain": list(self.methods),
            "similar": self.trust.detector is not None,
        }

    def __call__(self, readings: Sequence[Reading]) -> list[Answer]:
        """Answer for images that were read without an error."""
        found = self.predictor.answers(stacked(readings, self.forms))
        probabilities = self.predictor.combined(found.members)
        if not np.isfinite(probabilities).all():
            raise FloatingPointError("probabilities that are no numbers")
        columns = {
            **named(self.predictor, probabilities),
            **self.trust.columns(probabilities, found.descriptors),
        }
        sets = None if self.trust.sets is None else self.trust.sets.members(probabilities)
        return [
            Answer(self._said(row, columns, sets), found.pooled[row : row + 1])
            for row in range(len(readings))
        ]

    def similar(self, answer: Answer, count: int) -> list[dict[str, Any]]:
        """Return the training images most like that of an answer: their labels, likeness and thumbnails."""
        return _similar(self.trust.detector, answer, count)

    def _said(
        self,
        row: int,
        columns: Mapping[str, NDArray[Any]],
        sets: tuple[NDArray[np.bool_], NDArray[np.bool_]] | None,
    ) -> dict[str, Any]:
        """Return what a row of the columns says."""
        found = {name: float(columns[f"prob:{name}"][row]) for name in self.classes}
        said: dict[str, Any] = {
            "predicted": columns["predicted"][row] if "predicted" in columns else None,
            "probabilities": found,
            "above_operating_point": {n: found[n] >= point["value"] for n, point in self.points.items()},
        }
        if self.trust.temperature is not None:
            said["calibrated"] = {name: float(columns[f"calibrated:{name}"][row]) for name in self.classes}
        if sets is not None:
            held, open_ = (np.flatnonzero(part[row]) for part in sets)
            said["conformal_set"] = [self.classes[int(n)] for n in held]
            said["undecided"] = [self.classes[int(n)] for n in open_]
        return said | _outlier(columns, row)

    def _operating_points(self) -> dict[str, dict[str, Any]]:
        """Return the thresholds that the run chose on its validation images; none where it has no such images."""
        settings = self.run.config().get("evaluation") or {}
        config = EvaluationConfig.model_validate(settings)
        if not (self.run.path / "predictions.parquet").is_file():
            return {}
        return thresholds_from(validation_predictions(self.run, self.predictor), self.predictor, config) or {}


class ServedSegmenter:
    """A segmenter that answers."""

    explainer: Explainer | None = None
    methods: Sequence[str] = ()

    def __init__(self, run: Run, name: str) -> None:
        self.run, self.name, self.fingerprint = run, name, run.card_fingerprint()
        self.predictor = MaskPredictor(*load_segmenter(run))
        self.detector = OutlierDetector.open(run)
        self.forms: Mapping[Form, Preprocessing] = self.predictor.forms
        self.kind = "segmentation"
        self.classes: Sequence[str] = self.predictor.model.classes.names

    @property
    def about(self) -> dict[str, Any]:
        """What distinguishes this run from others."""
        return {
            "operating_points": {},
            "coverage": None,
            "false_alarms": _false_alarms(self.run),
            "explain": [],
            "similar": self.detector is not None,
        }

    def __call__(self, readings: Sequence[Reading]) -> list[Answer]:
        """Answer for images that were read without an error."""
        found = self.predictor.answers(stacked(readings, self.forms))
        columns = {} if self.detector is None else self.detector.columns(found.descriptors)
        return [
            Answer(_outlier(columns, row), found.pooled[row : row + 1], partial(self._masks, reading, maps))
            for row, (reading, maps) in enumerate(zip(readings, found.maps, strict=True))
        ]

    def _masks(self, reading: Reading, probability: NDArray[np.float32]) -> dict[str, Any]:
        model, preprocessing = self.predictor.model, self.predictor.preprocessing
        masks = predicted_masks(model, probability, reading.height, reading.width, preprocessing)
        return {
            "masks": {
                name: {"pixels": int(mask.sum()), "png": _png(Image.fromarray(mask))}
                for name, mask in masks.items()
            }
        }

    def similar(self, answer: Answer, count: int) -> list[dict[str, Any]]:
        """Return the training images most like that of an answer: their likeness and thumbnails."""
        return _similar(self.detector, answer, count)


def explained(served: Served, image: ImageData, class_name: str | None, method: str) -> dict[str, Any]:
    """Return where a run looks in an image, as a grey picture with 255 where it looks most."""
    assert served.explainer is not None
    found = served.explainer.explain([image], [class_name], method)[0][0]
    plane = Image.fromarray(np.rint(found.saliency * 255).astype(np.uint8))
    plane.thumbnail((LONGEST, LONGEST))
    return {
        "predicted": found.predicted,
        "class": found.class_name,
        "probability": found.probability,
        "methods": list(dict.fromkeys(served.explainer.chosen(method))),
        "saliency_png": _png(plane),
    }


def picture(image: ImageData) -> tuple[bytes, int, int, int]:
    """Return an image to look at: (bytes, height, width, channels), 16-bit little-endian, no side above ``LONGEST``.

    Of grey images all the bits are kept, so that the viewer can choose another window.
    """
    pixels = image.pixels
    sixteen = pixels.astype(np.uint16) * 257 if pixels.dtype == np.uint8 else pixels
    height, width = sixteen.shape[:2]
    scale = min(1.0, LONGEST / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    if scale < 1:
        planes = [
            np.asarray(Image.fromarray(plane.astype(np.float32)).resize(size, Image.Resampling.BOX))
            for plane in np.moveaxis(sixteen, 2, 0)
        ]
        sixteen = np.rint(np.stack(planes, 2)).clip(0, 65535).astype(np.uint16)
    return sixteen.astype("<u2").tobytes(), size[1], size[0], sixteen.shape[2]


def _outlier(columns: Mapping[str, NDArray[Any]], row: int) -> dict[str, Any]:
    """Return how unlike the training images a row of the columns is; nothing where the run cannot say how rare."""
    if "outlier" not in columns or np.isnan(columns["outlier_p"][row]):
        return {}
    return {
        "outlier": {
            "score": float(columns["outlier_score"][row]),
            "p": float(columns["outlier_p"][row]),
            "flagged": bool(columns["outlier"][row]),
        }
    }


def _similar(detector: OutlierDetector | None, answer: Answer, count: int) -> list[dict[str, Any]]:
    """Return the training images most like that of an answer, where the run keeps something of them."""
    if detector is None or answer.pooled is None or not count:
        return []
    reference = detector.reference
    rows, alike = reference.similar(answer.pooled, count)
    return [
        {
            "similarity": round(float(likeness), 4),
            "labels": _labels(case),
            "thumbnail": _data_uri(case.get("thumbnail"), "jpeg"),
        }
        for case, likeness in zip(reference.table.iloc[rows[0]].to_dict("records"), alike[0], strict=True)
    ]


def _labels(case: Mapping[str, Any]) -> list[str]:
    """Return the labels of a training image in words: its class, or its findings."""
    if "label" in case:
        return [] if case["label"] is None else [str(case["label"])]
    return [str(name) for name, value in case.items() if name != "thumbnail" and value == 1]


def _false_alarms(run: Run) -> float | None:
    """Return the wanted share of images like the training's that are flagged; None where the run flags none."""
    outliers = (run.card.get("trust") or {}).get("outliers") or {}
    return None if outliers.get("threshold") is None else float(outliers["false_alarms"])


def _wanted_coverage(trust: Mapping[str, Any]) -> float | None:
    thresholds = (trust.get("sets") or {}).get("thresholds") or []
    return thresholds[0].get("level") if thresholds else None


def _png(image: Image.Image) -> str:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return base64.b64encode(stream.getvalue()).decode("ascii")


def _data_uri(data: object, kind: str) -> str | None:
    if not isinstance(data, bytes):
        return None
    return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"
