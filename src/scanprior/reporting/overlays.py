"""Images with masks, or with where a classifier looks, drawn over them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

COLOURS = ((255, 153, 0), (0, 190, 255), (120, 220, 90), (255, 90, 160), (190, 140, 255), (255, 225, 60))
"""Of the classes in order (and again from the first); all are told apart on grey and in print."""

TRUE_COLOUR = (255, 255, 255)
LONGEST = 384
"""Longest side of a saved overlay of masks in pixels."""

LONGEST_SALIENCY = 1024
"""Longest side of a saved overlay of a map in pixels."""

_SHADES = (0.25, 0.95)
"""Part of the colours from lowest to highest: without the black that would hide what it lies on."""


def overlay(
    pixels: NDArray[np.generic],
    predicted: Mapping[str, NDArray[np.bool_]],
    true: Mapping[str, NDArray[np.bool_]] | None = None,
    longest: int = LONGEST,
) -> Image.Image:
    """Draw masks over an image.

    Args:
        pixels: (H, W, 1 or 3) uint8 or uint16 over the full range.
        predicted: class to mask (h, w): tinted and outlined in the class's colour.
        true: class to mask (h, w): outlined in white, dashed; None = not known.
        longest: side of the result in pixels, at most.
    """
    canvas = _canvas(pixels, longest)
    size = canvas.shape[1], canvas.shape[0]
    for number, mask in enumerate(predicted.values()):
        colour = np.array(COLOURS[number % len(COLOURS)], np.float32)
        fitted = _resized(mask, size)
        canvas[fitted] = 0.75 * canvas[fitted] + 0.25 * colour
        canvas[_outline(fitted)] = colour
    dashes = (np.add.outer(np.arange(size[1]), np.arange(size[0])) // 4) % 2 == 0
    for mask in (true or {}).values():
        canvas[_outline(_resized(mask, size)) & dashes] = TRUE_COLOUR
    return _picture(canvas)


def saliency_overlay(
    pixels: NDArray[np.generic],
    saliency: NDArray[np.float32],
    opacity: float = 0.5,
    longest: int = LONGEST_SALIENCY,
) -> Image.Image:
    """Lay a map over an image: the colour and how opaque it is both follow the map, so that the rest stays readable.

    Args:
        pixels: (H, W, 1 or 3) uint8 or uint16 over the full range.
        saliency: (H, W) in [0, 1].
        opacity: of the highest value, in [0, 1].
        longest: side of the result in pixels, at most.
    """
    import matplotlib

    canvas = _canvas(pixels, longest)
    size = canvas.shape[1], canvas.shape[0]
    plane = Image.fromarray(np.ascontiguousarray(saliency, np.float32))
    values = np.asarray(plane.resize(size, Image.Resampling.BILINEAR)).clip(0, 1)
    low, high = _SHADES
    colours = matplotlib.colormaps["inferno"](low + (high - low) * values)[..., :3].astype(np.float32)
    weight = (opacity * values)[..., None]
    return _picture((1 - weight) * canvas + weight * 255 * colours)


def save_overlay(
    path: Path,
    pixels: NDArray[np.generic],
    predicted: Mapping[str, NDArray[np.bool_]],
    true: Mapping[str, NDArray[np.bool_]] | None = None,
) -> None:
    """Draw masks over an image, as ``overlay``, and write it as PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    overlay(pixels, predicted, true).save(path, optimize=True)


def _canvas(pixels: NDArray[np.generic], longest: int) -> NDArray[np.float32]:
    """Return an image as (h, w, 3) float32 in [0, 255], no side longer than wanted."""
    height, width = pixels.shape[:2]
    scale = min(1.0, longest / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    top = np.iinfo(pixels.dtype).max  # type: ignore[type-var]
    eight = (pixels.astype(np.float32) * (255 / top)).astype(np.uint8)
    base = Image.fromarray(eight[..., 0] if eight.shape[2] == 1 else eight).convert("RGB").resize(size)
    return np.asarray(base).astype(np.float32)


def _picture(canvas: NDArray[np.floating[Any]]) -> Image.Image:
    return Image.fromarray(canvas.round().clip(0, 255).astype(np.uint8))


def _resized(mask: NDArray[np.bool_], size: tuple[int, int]) -> NDArray[np.bool_]:
    return np.asarray(Image.fromarray(mask).resize(size, Image.Resampling.NEAREST))


def _outline(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    edge: NDArray[np.bool_] = mask & ~ndimage.binary_erosion(mask)
    return edge
