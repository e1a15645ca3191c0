"""Stored images as the tensors that a network takes."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from scanprior.data.preprocessing import Preprocessing

_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601
_LEAST_STD = 1e-3
"""A flat image or data set is centred, not blown up: a quarter of one of 256 grey levels."""


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
