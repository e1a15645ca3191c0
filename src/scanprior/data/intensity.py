"""Brightness, contrast, colour, blur and noise, with a strength of its own for every image.

All take (B, C, H, W) float32 images in [0, 1] and give the same; the `factor` of an image that is to
stay as it is is 1. Definitions are torchvision's functional ones.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from scanprior import keyed
from scanprior.data.augmentation import Augmentation
from scanprior.data.draws import Draws
from scanprior.data.inputs import grey

_PUBLISHED_SIZE = 224


def vary(images: Tensor, config: Augmentation, draws: Draws) -> Tensor:
    """Apply everything of ``config`` that is not geometry, in place where possible."""
    _jitter(images, config, draws)
    colour = images.shape[1] == 3
    if colour and (rows := _rows(draws.happens("grey", config.grey_p))) is not None:
        images[rows] = grey(images[rows]).expand(-1, 3, -1, -1)
    if (rows := _rows(draws.happens("blur", config.blur_p))) is not None:
        scale = images.shape[-1] / _PUBLISHED_SIZE
        sigma = draws.between("blur_sigma", *config.blur_sigma)[rows.numpy()] * scale
        radius = max(1, min(int(np.ceil(3 * config.blur_sigma[1] * scale)), images.shape[-1] - 1))
        images[rows] = blur(images[rows], sigma, radius)
    if (rows := _rows(draws.happens("solarize", config.solarize_p))) is not None:
        images[rows] = solarize(images[rows])
    if config.noise:
        deviation = _column(draws.between("noise", 0.0, config.noise))
        grain = keyed.normal(draws.key, draws.positions, images.shape[1:])
        images.addcmul_(grain, deviation).clamp_(0.0, 1.0)
    return images


def _jitter(images: Tensor, config: Augmentation, draws: Draws) -> None:
    on = draws.happens("jitter", config.jitter_p)
    if not on.any():
        return

    def factor(name: str, strength: float) -> Tensor:
        return _column(np.where(on, draws.between(name, 1 - strength, 1 + strength), 1.0))

    if config.brightness:
        adjust_brightness(images, factor("brightness", config.brightness))
    if config.contrast:
        adjust_contrast(images, factor("contrast", config.contrast))
    if images.shape[1] == 3 and config.saturation:
        adjust_saturation(images, factor("saturation", config.saturation))
    if images.shape[1] == 3 and config.hue and (rows := _rows(on)) is not None:
        turn = draws.between("hue", -config.hue, config.hue)[on]
        images[rows] = adjust_hue(images[rows], _column(turn))
    if config.gamma:
        power = draws.log_between("gamma", 1 / (1 + config.gamma), 1 + config.gamma)
        images.pow_(_column(np.where(on, power, 1.0)))


def _column(values: NDArray[np.float64]) -> Tensor:
    return torch.from_numpy(values.astype(np.float32))[:, None, None, None]


def _rows(chosen: NDArray[np.bool_]) -> Tensor | None:
    """Return the chosen rows, or None where there are none."""
    return torch.from_numpy(np.flatnonzero(chosen)) if chosen.any() else None


def adjust_brightness(images: Tensor, factor: Tensor) -> Tensor:
    """Multiply by ``factor`` (B, 1, 1, 1), in place."""
    return images.mul_(factor).clamp_(0.0, 1.0)


def adjust_contrast(images: Tensor, factor: Tensor) -> Tensor:
    """Multiply the distance to the image's mean grey by ``factor`` (B, 1, 1, 1), in place."""
    luminance = grey(images) if images.shape[1] == 3 else images
    mean = luminance.mean(dim=(1, 2, 3), keepdim=True)
    return images.mul_(factor).add_((1 - factor) * mean).clamp_(0.0, 1.0)


def adjust_saturation(images: Tensor, factor: Tensor) -> Tensor:
    """Multiply the distance of RGB to each pixel's grey by ``factor`` (B, 1, 1, 1), in place."""
    luminance = grey(images)
    return images.mul_(factor).add_((1 - factor) * luminance).clamp_(0.0, 1.0)


def adjust_hue(images: Tensor, turn: Tensor) -> Tensor:
    """Return RGB images with their hue turned by ``turn`` (B, 1, 1, 1), in turns (HSV)."""
    value, largest = images.max(dim=1, keepdim=True)
    chroma = value - images.amin(dim=1, keepdim=True)
    red, green, blue = (images[:, channel, None] for channel in range(3))
    safe = chroma.clamp(min=1e-12)
    sector = torch.where(
        largest == 0,
        (green - blue) / safe,
        torch.where(largest == 1, (blue - red) / safe + 2, (red - green) / safe + 4),
    )
    # Sextants from red; channel n of the result falls from the value by the chroma, by how far it lies.
    sector = sector + 6 * turn
    offsets = images.new_tensor([5.0, 3.0, 1.0])[:, None, None]
    place = torch.remainder(offsets + sector, 6.0)
    return value - chroma * torch.minimum(place, 4 - place).clamp_(0.0, 1.0)


def blur(images: Tensor, sigma: NDArray[np.float64], radius: int) -> Tensor:
    """Return images blurred with Gaussians of ``sigma`` (B,) pixels cut at ``radius``; edges reflect."""
    taps = np.arange(radius + 1)
    weights = np.exp(-0.5 * (taps / sigma[:, None]) ** 2)
    weights /= weights[:, :1] + 2 * weights[:, 1:].sum(axis=1, keepdims=True)
    columns = torch.from_numpy(weights.astype(np.float32))[:, :, None, None, None].unbind(1)
    for dimension in (-2, -1):
        side = images.shape[dimension]
        pad = (0, 0, radius, radius) if dimension == -2 else (radius, radius, 0, 0)
        framed = F.pad(images, pad, mode="reflect")
        images = framed.narrow(dimension, radius, side) * columns[0]
        for tap in range(1, radius + 1):
            images.addcmul_(framed.narrow(dimension, radius - tap, side), columns[tap])
            images.addcmul_(framed.narrow(dimension, radius + tap, side), columns[tap])
    return images


def solarize(images: Tensor) -> Tensor:
    """Return images with the pixels of 0.5 and above inverted."""
    return torch.where(images >= 0.5, 1 - images, images)
