"""What the synthetic drifts do to pixels; ``drifts`` says how much.

Every function takes images (B, C, H, W) uint8 or uint16, contiguous and on the CPU, the value of its
parameter, the key of its draws and the images' positions (B,); it returns new images of that dtype.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from scanprior import keyed
from scanprior.data import intensity
from scanprior.data.inputs import to_unit

Places = NDArray[np.int64]

_SIZE = 224
"""Lengths are given for images whose shorter side has this many pixels, and grow with it."""

_BLOCK = 2**18
"""Pixels worked on at a time: 1 MB of float32, which stays in a core's cache."""


def gamma(images: Tensor, exponent: float, key: int, positions: Places) -> Tensor:
    """Raise pixels in [0, 1] to a power; above 1 is darker."""
    top = _top(images)
    table = np.rint(top * (np.arange(top + 1) / top) ** exponent)
    pixels = images.numpy()
    if pixels.dtype == np.uint16:
        return torch.from_numpy(table.astype(np.uint16)[pixels])
    # Four times as fast as indexing, which turns every pixel into a 64-bit index first.
    mapped = bytearray(pixels.tobytes().translate(table.astype(np.uint8).tobytes()))
    return torch.from_numpy(np.frombuffer(mapped, np.uint8).reshape(pixels.shape))


def contrast(images: Tensor, factor: float, key: int, positions: Places) -> Tensor:
    """Multiply the distance to the image's mean grey, which is that of its luminance in colour."""
    return _in_unit(
        images, lambda unit, rows: intensity.adjust_contrast(unit, torch.full((len(unit), 1, 1, 1), factor))
    )


def noise(images: Tensor, deviation: float, key: int, positions: Places) -> Tensor:
    """Add Gaussian noise, independent by pixel and channel, in [0, 1]."""
    return _in_unit(
        images,
        lambda unit, rows: unit.add_(keyed.normal(key, positions[rows], unit.shape[1:]), alpha=deviation),
    )


def blur(images: Tensor, sigma: float, key: int, positions: Places) -> Tensor:
    """Blur with a Gaussian cut at three standard deviations; edges reflect.

    In a small image the mild ones are a fraction of a pixel and change nothing, as in the large image
    reduced to that size.
    """
    sigma *= _scale(images)
    radius = min(math.ceil(3 * sigma), min(images.shape[-2:]) - 1)
    return _in_unit(images, lambda unit, rows: intensity.blur(unit, np.full(len(unit), sigma), radius))


def resolution(images: Tensor, share: float, key: int, positions: Places) -> Tensor:
    """Reduce to a share of the sides (antialiased) and enlarge again, both linearly."""
    height, width = images.shape[-2:]
    small = max(1, round(share * height)), max(1, round(share * width))

    def there_and_back(unit: Tensor, rows: slice) -> Tensor:
        reduced = F.interpolate(unit, size=small, mode="bilinear", antialias=True)
        return F.interpolate(reduced, size=(height, width), mode="bilinear")

    return _in_unit(images, there_and_back)


def jpeg(images: Tensor, quality: float, key: int, positions: Places) -> Tensor:
    """Compress every image as a baseline JPEG file and read it back.

    One channel is a grey file and three are a colour file (4:2:0, torchvision's); of any other number,
    each channel is a grey file. 16-bit pixels are rounded to 8 bits, which is what the files hold.
    """
    import torchvision.io as files  # heavy, and needed here only

    count, channels = images.shape[:2]
    deep = images.dtype == torch.uint16
    shallow = images.to(torch.int32).add_(128).div_(257, rounding_mode="floor") if deep else images
    planes = shallow.to(torch.uint8).reshape(-1, channels if channels == 3 else 1, *images.shape[2:])

    def there_and_back(image: Tensor) -> Tensor:
        decoded: Tensor = files.decode_jpeg(files.encode_jpeg(image, round(quality)))
        return decoded

    # Both let go of the interpreter's lock.
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        made = torch.stack(list(pool.map(there_and_back, planes))).reshape(count, *images.shape[1:])
    return made.to(torch.int32).mul_(257).to(torch.uint16) if deep else made


def border(images: Tensor, width: float, key: int, positions: Places) -> Tensor:
    """Cover a strip along one of the four edges with black; at least one pixel wide."""
    edge, spread = keyed.uniform(key, positions, 2).T
    widths = np.maximum(1, np.rint(width * _scale(images) * (0.75 + 0.5 * spread))).astype(int)
    pixels = images.numpy().copy()
    for image, side, wide in zip(pixels, (4 * edge).astype(int), widths, strict=True):
        across = image if side < 2 else image.swapaxes(-2, -1)
        across[:, slice(None, wide) if side % 2 else slice(-wide, None)] = 0
    return torch.from_numpy(pixels)


def inversion(images: Tensor, share: float, key: int, positions: Places) -> Tensor:
    """Invert a share of the images, drawn by image."""
    rows = np.flatnonzero(keyed.uniform(key, positions, 1)[:, 0] < share)
    pixels = images.numpy().copy()
    pixels[rows] = _top(images) - pixels[rows]
    return torch.from_numpy(pixels)


def _in_unit(images: Tensor, change: Callable[[Tensor, slice], Tensor]) -> Tensor:
    """Change a few images at a time as float32 in [0, 1], which ``change`` may leave, and round to their depth."""
    made, top = torch.empty_like(images), _top(images)
    step = max(1, _BLOCK // images[0].numel())
    for start in range(0, len(images), step):
        rows = slice(start, start + step)
        unit = change(to_unit(images[rows], images.shape[1]), rows)
        made[rows] = unit.mul_(top).round_().clamp_(0, top).to(images.dtype)
    return made


def _top(images: Tensor) -> int:
    """Return the highest pixel value."""
    return 255 if images.dtype == torch.uint8 else 65535


def _scale(images: Tensor) -> float:
    """Return by how much lengths grow from an image of 224 px to these."""
    return min(images.shape[-2:]) / _SIZE
