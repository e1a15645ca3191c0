"""From a decoded image of any shape to the square a store holds: the one place where this is done.

The store and the prediction of a raw file both come through here, so they see equal pixels. Only
NumPy and Pillow are imported, which keeps the worker processes of `prepare` light.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Fit = Literal["squash", "pad", "crop"]
Pixels = NDArray[Any]  # uint8 or uint16

# The triangle filter widened by the reduction, as torchvision's antialiased "bilinear": no ringing
# at collimator edges and markers, which Lanczos has. Reductions beyond 3 are box-averaged first.
_RESAMPLE = Image.Resampling.BILINEAR
_REDUCING_GAP = 3.0


def fit_pixels(pixels: Pixels, *, size: int, channels: int, depth: int, fit: Fit) -> Pixels:
    """Return one image as a store keeps it.

    Args:
        pixels: (H, W, 1 or 3) uint8 or uint16 over the full range.
        size: S, side of the result.
        channels: 1 turns colour into its luminance (ITU-R BT.601); 3 repeats grey.
        depth: 8 gives uint8, 16 gives uint16; the full range is mapped to the full range.
        fit: ``squash`` ignores the aspect ratio, ``pad`` centres the whole image on black, ``crop``
            takes the central square (its edge is interpolated with the pixels beyond it).

    Returns:
        (C, S, S) uint8 or uint16. An image of that size, depth and number of channels is unchanged.
    """
    if pixels.shape[2] == 3 and channels == 1:
        pixels = luminance(pixels)
    if pixels.dtype == np.uint8 and depth == 8:
        mode_image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
        fitted = np.atleast_3d(np.asarray(_fitted(mode_image, size, fit))).transpose(2, 0, 1)
    else:
        fitted = _fitted_deep(pixels, size, depth, fit)
    result: Pixels = np.ascontiguousarray(np.broadcast_to(fitted, (channels, size, size)))
    return result


def fit_mask(values: Pixels, *, size: int, fit: Fit) -> Pixels:
    """Return one mask as a store keeps it, placed as ``fit_pixels`` places its image.

    Args:
        values: (H, W) uint8.
        size: S, side of the result.
        fit: as for ``fit_pixels``; what ``pad`` adds is 0, the background.

    Returns:
        (1, S, S) uint8; every value is one of the mask's own (the nearest pixel's).
    """
    fitted = _fitted(Image.fromarray(values), size, fit, smooth=False)
    result: Pixels = np.ascontiguousarray(np.asarray(fitted)[None])
    return result


def unfit_maps(maps: NDArray[np.float32], *, height: int, width: int, fit: Fit) -> NDArray[np.float32]:
    """Return maps of the network's square at the size of the original image: ``fit_pixels`` undone.

    Args:
        maps: (K, S, S) float32, such as probabilities.
        height, width: of the original in pixels.
        fit: how the image was made square.

    Returns:
        (K, height, width) float32, bilinear; 0 where a ``crop`` has not looked.
    """
    size = maps.shape[-1]
    left, top, wide, tall = 0, 0, size, size
    if fit == "pad":
        wide, tall, left, top = padding(height, width, size)
    side = min(height, width)
    seen = (side, side) if fit == "crop" else (width, height)
    whole = np.zeros((len(maps), height, width), np.float32)
    y, x = (height - seen[1]) // 2, (width - seen[0]) // 2
    for number, plane in enumerate(maps):
        part = Image.fromarray(np.ascontiguousarray(plane[top : top + tall, left : left + wide]))
        whole[number, y : y + seen[1], x : x + seen[0]] = np.asarray(part.resize(seen, _RESAMPLE))
    return whole


def luminance(pixels: Pixels) -> Pixels:
    """Return (H, W, 1) luminance of (H, W, 3) RGB: 0.299 R + 0.587 G + 0.114 B, rounded as Pillow does."""
    weights = np.array([19595, 38470, 7471], dtype=np.uint32)  # of 65536; 16-bit sums stay below 2**32
    grey: Pixels = ((pixels.astype(np.uint32) @ weights + 0x8000) >> 16).astype(pixels.dtype)[..., None]
    return grey


def _fitted_deep(pixels: Pixels, size: int, depth: int, fit: Fit) -> Pixels:
    """Resample in float32, for Pillow has no resampling of 16-bit images; return (C, S, S)."""
    top, source_top = 2**depth - 1, np.iinfo(pixels.dtype).max
    planes = np.moveaxis(pixels, 2, 0).astype(np.float32)
    fitted = np.stack([np.asarray(_fitted(Image.fromarray(plane), size, fit)) for plane in planes])
    scaled = np.rint(fitted.astype(np.float64) * (top / source_top)).clip(0, top)
    made: Pixels = scaled.astype(np.uint8 if depth == 8 else np.uint16)
    return made


def _fitted(image: Image.Image, size: int, fit: Fit, *, smooth: bool = True) -> Image.Image:
    if fit == "pad":
        return _padded(image, size, smooth)
    box = None
    if fit == "crop":
        side = min(image.size)
        left, top = (image.width - side) / 2, (image.height - side) / 2
        box = (left, top, left + side, top + side)
    return _resized(image, (size, size), box, smooth)


def _padded(image: Image.Image, size: int, smooth: bool) -> Image.Image:
    width, height, left, top = padding(image.height, image.width, size)
    canvas = Image.new(image.mode, (size, size), 0)
    canvas.paste(_resized(image, (width, height), None, smooth), (left, top))
    return canvas


def padding(height: int, width: int, size: int) -> tuple[int, int, int, int]:
    """Return width, height, left and top of an image (height, width) that ``pad`` puts into a square."""
    longest = max(height, width)
    wide, tall = (max(1, round(side * size / longest)) for side in (width, height))
    return wide, tall, (size - wide) // 2, (size - tall) // 2


def _resized(
    image: Image.Image, size: tuple[int, int], box: tuple[float, float, float, float] | None, smooth: bool
) -> Image.Image:
    if smooth:
        return image.resize(size, _RESAMPLE, box=box, reducing_gap=_REDUCING_GAP)
    return image.resize(size, Image.Resampling.NEAREST, box=box)
