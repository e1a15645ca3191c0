"""What the check measures on one decoded image: its identity, its grey levels, its look."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.fft import dctn

from scanprior.data.readers import read_reference
from scanprior.errors import ImageReadError

HASH_BITS = 256
"""Bits of the perceptual hash."""
THUMBNAIL = 16
"""Side of the thumbnail that confirms a near duplicate, in pixels."""

_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # ITU-R BT.601
_BLANK_RANGE = 1 / 128  # two of 256 grey levels


@dataclass(frozen=True)
class Measurement:
    """One image as measured; with an ``error`` everything else is empty.

    Attributes:
        error: why the image cannot be read, or None.
        sha256: digest of the decoded pixels (32 bytes); equal for equal pixels in any file format.
        rows, columns, channels: size of the decoded image.
        dtype: "uint8" or "uint16".
        source_bits: bits a sample in the file.
        used_bits: bits needed for the largest decoded value.
        levels: number of different values.
        blank: constant, or 98 % of its values lie within two of 256 grey levels.
        hash: perceptual hash, ``HASH_BITS`` bits; empty for a blank image.
        thumbnail: (16, 16) int8, standardised (32 = one standard deviation); empty for a blank image.
    """

    error: str | None = None
    sha256: bytes = b""
    rows: int = 0
    columns: int = 0
    channels: int = 0
    dtype: str = ""
    source_bits: int = 0
    used_bits: int = 0
    levels: int = 0
    blank: bool = False
    hash: bytes = b""
    thumbnail: bytes = b""


def measure(reference: str, root: Path) -> Measurement:
    """Read the image ``reference`` (relative to ``root``) and measure it; a broken one gives its error."""
    try:
        image = read_reference(reference, root)
    except ImageReadError as error:
        return Measurement(error=error.reason)
    pixels = image.pixels
    levels, used_bits, blank = _grey_levels(pixels)
    look = None if blank else perceptual(pixels)
    return Measurement(
        sha256=pixel_digest(pixels),
        rows=pixels.shape[0],
        columns=pixels.shape[1],
        channels=pixels.shape[2],
        dtype=str(pixels.dtype),
        source_bits=image.source_bits,
        used_bits=used_bits,
        levels=levels,
        blank=blank or look is None,
        hash=look[0].tobytes() if look else b"",
        thumbnail=look[1].tobytes() if look else b"",
    )


def pixel_digest(pixels: NDArray[np.generic]) -> bytes:
    """Return the sha256 digest of shape and values of (H, W, C) ``pixels``.

    An 8-bit image stored as 16 bit (every value a multiple of 257) has the digest of its 8-bit form.
    """
    if pixels.dtype == np.uint16 and not np.any(pixels % 257):
        pixels = (pixels // 257).astype(np.uint8)
    digest = hashlib.sha256(f"{pixels.shape} {pixels.dtype}".encode())
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.digest()


def _grey_levels(pixels: NDArray[np.generic]) -> tuple[int, int, bool]:
    """Return (number of values, bits of the largest value, whether the image is blank)."""
    counts = np.bincount(pixels.ravel())
    levels = int(np.count_nonzero(counts))
    used_bits = (len(counts) - 1).bit_length()
    full = 255 if pixels.dtype == np.uint8 else max(2**used_bits - 1, 1)
    low, high = np.searchsorted(np.cumsum(counts), np.array([0.01, 0.99]) * pixels.size)
    return levels, used_bits, levels < 2 or bool((high - low) / full < _BLANK_RANGE and levels > 2)


def perceptual(pixels: NDArray[np.generic]) -> tuple[NDArray[np.uint8], NDArray[np.int8]] | None:
    """Return (hash, thumbnail) of (H, W, C) ``pixels``, or None if no structure is left at 32 x 32.

    The hash (32 bytes) holds the signs, about their median, of the 16 x 16 lowest frequencies of
    the discrete cosine transform of the 32 x 32 area-averaged luminance; the constant term is 0.
    It is the usual DCT hash with 256 bits in place of 64: with 64 bits the chest radiographs of
    different patients are as alike as copies of one. The thumbnail ((16, 16) int8) is
    standardised, so that neither ignores structure nor sees brightness and contrast.
    """
    grey = pixels[..., 0] if pixels.shape[2] == 1 else pixels.astype(np.float32) @ _LUMA
    source = Image.fromarray(grey if grey.dtype == np.uint8 else grey.astype(np.float32))
    small = np.asarray(source.resize((32, 32), Image.Resampling.BOX), dtype=np.float64)
    if small.std() < 1e-6 * max(1.0, float(small.max())):
        return None
    spectrum = dctn((small - small.mean()) / small.std(), norm="ortho")[:16, :16].ravel()
    signs = spectrum > np.median(spectrum[1:])
    signs[0] = False
    tiny = small.reshape(THUMBNAIL, 2, THUMBNAIL, 2).mean(axis=(1, 3))
    tiny = (tiny - tiny.mean()) / max(float(tiny.std()), 1e-12)
    return np.packbits(signs), np.clip(np.round(tiny * 32), -127, 127).astype(np.int8)
