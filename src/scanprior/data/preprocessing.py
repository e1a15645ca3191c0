"""What a model expects of an image; it travels with the model in ``model.json``.

Processes that read images import this and no PyTorch, which takes longer to load than many images to read.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from scanprior.data.fitting import Fit, Pixels, fit_pixels
from scanprior.data.readers import ImageData


class Form(NamedTuple):
    """How an image is stored: side in pixels, channels, bits, and how it was made square."""

    size: int
    channels: Literal[1, 3]
    depth: Literal[8, 16]
    fit: Fit


class Preprocessing(BaseModel):
    """From raw pixels to the network's input."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    size: int = Field(ge=1, description="side of the network's input in pixels")
    channels: Literal[1, 3] = Field(description="channels of the network's input")
    depth: Literal[8, 16] = Field(8, description="bits per stored pixel")
    fit: Fit = Field("squash", description="how an image is made square")
    stored_size: int | None = Field(
        None, ge=1, description="side of the stored images that the model was trained on; empty = size"
    )
    mean: list[float] = Field(description="per channel, in [0, 1]; subtracted")
    std: list[float] = Field(description="per channel, in [0, 1]; divided by")
    standardize: Literal["dataset", "image"] = Field(
        "dataset", description="with the data set's mean and std, or with those of each image (all channels)"
    )

    @model_validator(mode="after")
    def _one_a_channel(self) -> Preprocessing:
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != self.channels or not np.isfinite(values).all():
                raise ValueError(
                    f"{name} needs {self.channels} finite numbers, one a channel, found {values}"
                )
        return self

    @property
    def form(self) -> Form:
        """How the store of the model's training data holds an image."""
        return Form(self.stored_size or self.size, self.channels, self.depth, self.fit)


def prepare_image(image: ImageData, pre: Preprocessing) -> Pixels:
    """Return a decoded image as the store of the model's training data would hold it.

    Returns:
        (C, S, S) uint8 or uint16, with S = ``pre.stored_size`` or ``pre.size``. Bit-equal to a row
        of a store that was prepared with the same settings.
    """
    size, channels, depth, fit = pre.form
    return fit_pixels(image.pixels, size=size, channels=channels, depth=depth, fit=fit)
