"""Images with the outlines of predicted and true masks drawn over them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

COLOURS = ((255, 153, 0), (0, 190, 255), (120, 220, 90), (255, 90, 160), (190, 140, 255), (255, 225, 60))
"""Of the classes in order (and again from the first); all are told apart on grey and in print."""

TRUE_COLOUR = (255, 255, 255)
LONGEST = 384
"""Longest side of a saved overlay in pixels."""


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
    height, width = pixels.shape[:2]
    scale = min(1.0, longest / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    top = np.iinfo(pixels.dtype).max  # type: ignore[type-var]
    eight = (pixels.astype(np.float32) * (255 / top)).astype(np.uint8)
    base = Image.fromarray(eight[..., 0] if eight.shape[2] == 1 else eight).convert("RGB").resize(size)
    canvas = np.asarray(base).astype(np.float32)
    for number, mask in enumerate(predicted.values()):
        colour = np.array(COLOURS[number % len(COLOURS)], np.float32)
        fitted = _resized(mask, size)
        canvas[fitted] = 0.75 * canvas[fitted] + 0.25 * colour
        canvas[_outline(fitted)] = colour
    dashes = (np.add.outer(np.arange(size[1]), np.arange(size[0])) // 4) % 2 == 0
    for mask in (true or {}).values():
        canvas[_outline(_resized(mask, size)) & dashes] = TRUE_COLOUR
    return Image.fromarray(canvas.round().clip(0, 255).astype(np.uint8))


def save_overlay(
    path: Path,
    pixels: NDArray[np.generic],
    predicted: Mapping[str, NDArray[np.bool_]],
    true: Mapping[str, NDArray[np.bool_]] | None = None,
) -> None:
    """Draw masks over an image, as ``overlay``, and write it as PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    overlay(pixels, predicted, true).save(path, optimize=True)


def _resized(mask: NDArray[np.bool_], size: tuple[int, int]) -> NDArray[np.bool_]:
    return np.asarray(Image.fromarray(mask).resize(size, Image.Resampling.NEAREST))


def _outline(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    edge: NDArray[np.bool_] = mask & ~ndimage.binary_erosion(mask)
    return edge
