"""Crop, rotation, zoom, shift and mirror of a whole batch as one resampling.

A placement is a (2, 3) matrix that takes a point of the output to the point of the input it shows,
both in coordinates that run from -1 to 1 between the outer edges of the outer pixels.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from scanprior.data.augmentation import Augmentation
from scanprior.data.draws import Draws
from scanprior.data.inputs import resize

_RIM = {"bilinear": 1, "bicubic": 2}
"""Edge pixels repeated around the image, so that a crop at the edge does not fade into the black."""


def placements(config: Augmentation, draws: Draws) -> NDArray[np.float64]:
    """Draw (B, 2, 3) placements."""
    width, height, x, y = _crops(config, draws)
    angle = np.deg2rad(draws.between("rotate", -config.rotate, config.rotate))
    zoom = draws.log_between("zoom", *config.zoom)
    turn = np.stack([np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)], -1).reshape(-1, 2, 2)
    turn /= zoom[:, None, None]
    extent = np.stack(
        [
            np.where(draws.happens("hflip", config.hflip), -width, width),
            np.where(draws.happens("vflip", config.vflip), -height, height),
        ],
        -1,
    )
    # A shift by a share of the side is twice that in coordinates of -1 to 1.
    shift = 2 * np.stack(
        [
            draws.between("translate_x", -config.translate, config.translate),
            draws.between("translate_y", -config.translate, config.translate),
        ],
        -1,
    )
    centre = 2 * np.stack([x + width / 2, y + height / 2], -1) - 1
    offset = turn @ (centre - shift)[..., None]
    return np.concatenate([turn * extent[:, None, :], offset], -1)


def _crops(config: Augmentation, draws: Draws) -> tuple[NDArray[np.float64], ...]:
    """Return width, height, left and top of random resized crops, as shares of the side; (B,) each.

    As torchvision's RandomResizedCrop: the first of ten tries that fits, else the largest central
    crop of an allowed ratio. Edges need not fall between pixels.
    """
    area_try, ratio_try = draws.crop_tries()
    low, high = config.crop_scale
    area = low + (high - low) * area_try
    ratio_low, ratio_high = np.log(config.crop_ratio)
    ratio = np.exp(ratio_low + (ratio_high - ratio_low) * ratio_try)
    widths, heights = np.sqrt(area * ratio), np.sqrt(area / ratio)
    fits = (widths <= 1) & (heights <= 1)
    first = np.arange(len(fits)), fits.argmax(axis=1)
    any_fits = fits[first]
    nearest = min(max(1.0, config.crop_ratio[0]), config.crop_ratio[1])
    width = np.where(any_fits, widths[first], min(1.0, nearest))
    height = np.where(any_fits, heights[first], min(1.0, 1 / nearest))
    x = np.where(any_fits, draws.unit("crop_x"), 0.5) * (1 - width)
    y = np.where(any_fits, draws.unit("crop_y"), 0.5) * (1 - height)
    return width, height, x, y


def warp(images: Tensor, placement: NDArray[np.float64], size: int, interpolation: str) -> Tensor:
    """Resample square images by their placements.

    Pixels stand for areas, so a placement that only mirrors gives the input's own values. Where an
    output pixel covers two or more input pixels a side, the image is first area-averaged by the
    power of two below; up to there interpolation may alias, as any without a wider filter.

    Args:
        images: (B, C, S, S) float32 in [0, 1].
        placement: (B, 2, 3).
        size: side of the result.
        interpolation: "bilinear" or "bicubic".

    Returns:
        (B, C, size, size) float32 in [0, 1]; black outside the image, after one edge pixel (two
        for bicubic) that is repeated.
    """
    upright = (placement[:, 0, 1] == 0) & (placement[:, 1, 0] == 0) & (placement[:, :, 2] == 0).all(1)
    plain = upright & (np.abs(placement[:, (0, 1), (0, 1)]) == 1).all(1)
    if plain.all():
        return _mirrored(resize(images, size), placement)
    # At least 1 input pixel an output pixel: what is magnified is never averaged.
    shrink = images.shape[-1] / size * np.sqrt(np.abs(np.linalg.det(placement[:, :, :2])))
    levels = np.floor(np.log2(np.maximum(shrink, 1.0))).astype(int)
    out = images.new_empty(*images.shape[:2], size, size)
    for level in np.unique(levels[~plain]):
        rows = np.flatnonzero((levels == level) & ~plain)
        whole = len(rows) == len(images)
        part = images if whole else images[torch.from_numpy(rows)]
        if level:
            part = F.interpolate(part, size=(images.shape[-1] >> level,) * 2, mode="area")
        made = _sampled(part, placement[rows], size, interpolation)
        if whole:
            return made
        out[torch.from_numpy(rows)] = made
    if plain.any():
        rows = np.flatnonzero(plain)
        out[torch.from_numpy(rows)] = _mirrored(resize(images[torch.from_numpy(rows)], size), placement[rows])
    return out


def warp_masks(masks: Tensor, placement: NDArray[np.float64], size: int) -> Tensor:
    """Resample masks by the placements of their images, without new values.

    Args:
        masks: (B, K, S, S) uint8.
        placement: (B, 2, 3).
        size: side of the result.

    Returns:
        (B, K, size, size) uint8: the value of the nearest pixel; 0, the background, outside the image.
    """
    centres = torch.from_numpy(((2 * np.arange(size) + 1) / size - 1).astype(np.float32))
    grid = _grid(torch.from_numpy(placement.astype(np.float32)), centres)
    made = F.grid_sample(masks.float(), grid, mode="nearest", padding_mode="zeros", align_corners=False)
    return made.to(torch.uint8)


def _grid(matrix: Tensor, centres: Tensor) -> Tensor:
    """Return where each output pixel looks: (B, size, size, 2), for matrices (B, 2, 3) and centres (size,)."""
    size = len(centres)
    grid = centres.new_empty(len(matrix), size, size, 2)
    for axis in (0, 1):
        along = matrix[:, axis, 0, None] * centres + matrix[:, axis, 2, None]
        across = matrix[:, axis, 1, None] * centres
        torch.add(along[:, None, :], across[:, :, None], out=grid[..., axis])
    return grid


def _mirrored(images: Tensor, placement: NDArray[np.float64]) -> Tensor:
    """Return images, mirrored where the placement says so."""
    for axis, dimension in ((0, -1), (1, -2)):
        rows = np.flatnonzero(placement[:, axis, axis] < 0)
        if len(rows):
            chosen = torch.from_numpy(rows)
            images = images.index_copy(0, chosen, images[chosen].flip(dimension))
    return images


def _sampled(images: Tensor, placement: NDArray[np.float64], size: int, interpolation: str) -> Tensor:
    rim, side = _RIM[interpolation], images.shape[-1]
    framed = F.pad(images, (rim, rim, rim, rim), mode="replicate")
    matrix = torch.from_numpy((placement * (side / (side + 2 * rim))).astype(np.float32))
    centres = torch.from_numpy(((2 * np.arange(size) + 1) / size - 1).astype(np.float32))
    made = F.grid_sample(
        framed, _grid(matrix, centres), mode=interpolation, padding_mode="zeros", align_corners=False
    )
    return made.clamp_(0.0, 1.0) if interpolation == "bicubic" else made
