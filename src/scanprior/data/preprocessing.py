"""What a model expects of an image; it travels with the model in ``model.json``."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from scanprior.data.fitting import Fit, Pixels, fit_pixels
from scanprior.data.readers import ImageData

_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601
_LEAST_STD = 1e-3
"""A flat image or data set is centred, not blown up: a quarter of one of 256 grey levels."""


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


def to_input(images: Tensor | NDArray[Any], pre: Preprocessing) -> Tensor:
    """Return images as the network takes them, without augmentation.

    Args:
        images: (B, C, H, W) uint8 or uint16 over the full range; where C is not ``pre.channels``,
            grey is repeated and colour turned into its luminance.

    Returns:
        (B, C, S, S) float32, normalised, S = ``pre.size``.
    """
    return normalise(resize(to_unit(images, pre.channels), pre.size), pre)


def to_unit(images: Tensor | NDArray[Any], channels: int) -> Tensor:
    """Return (B, channels, H, W) float32 in [0, 1] of (B, C, H, W) uint8 or uint16.

    Raises:
        TypeError: pixels of another type, whose range nobody knows.
    """
    images = torch.as_tensor(images)
    if images.dtype not in (torch.uint8, torch.uint16):
        raise TypeError(f"images must be uint8 or uint16, found {images.dtype}")
    unit = images.to(torch.float32).div_(255.0 if images.dtype == torch.uint8 else 65535.0)
    if unit.shape[1] == channels:
        return unit
    return grey(unit) if channels == 1 else unit.expand(-1, channels, -1, -1).contiguous()


def grey(images: Tensor) -> Tensor:
    """Return the luminance (B, 1, H, W) of (B, 3, H, W)."""
    red, green, blue = images.unbind(1)
    return (_LUMA[0] * red + _LUMA[1] * green + _LUMA[2] * blue).unsqueeze(1)


def resize(images: Tensor, size: int) -> Tensor:
    """Return (B, C, size, size) of (B, C, H, W) float32, antialiased; unchanged where it has that size."""
    if images.shape[2] == images.shape[3] == size:
        return images
    return F.interpolate(images, size=(size, size), mode="bilinear", antialias=True)


def normalise(images: Tensor, pre: Preprocessing) -> Tensor:
    """Standardise (B, C, H, W) float32 images in [0, 1], in place; return them."""
    if pre.standardize == "image":
        images.sub_(images.mean(dim=(1, 2, 3), keepdim=True))
        deviation = images.square().mean(dim=(1, 2, 3), keepdim=True).sqrt_()
        return images.div_(deviation.clamp_(min=_LEAST_STD))
    mean, std = images.new_tensor(pre.mean), images.new_tensor(pre.std).clamp_(min=_LEAST_STD)
    return images.sub_(mean[:, None, None]).div_(std[:, None, None])
