"""Raster files (PNG, JPEG, TIFF, BMP), decoded by Pillow and checked before and after.

Everything that can be known from the header is checked before a pixel is decoded, so that a bomb costs
nothing; everything that Pillow would forgive (a PNG with a wrong checksum, a missing tail) is refused.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

from scanprior.data.readers.source import Source, size_of
from scanprior.errors import ImageReadError

MAX_PIXELS = 178_956_970
"""Most pixels an image may have; the size at which Pillow, too, refuses."""

MAX_FILE_BYTES = 8 * MAX_PIXELS
"""Largest raster file that is read: four 16-bit channels of `MAX_PIXELS`."""

MAX_SCANS = 200
"""Most scans of a progressive JPEG; real ones have about ten, and thousands of them are an attack."""

FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "GIF")

_SIGNATURES = (
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"\xff\xd8", "JPEG"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "TIFF"),
    (b"MM\0+", "TIFF"),
    (b"BM", "BMP"),
    (b"GIF8", "GIF"),
)
_OTHER_CONTENT = (
    (b"RIFF", "a WebP picture or another RIFF file"),
    (b"%PDF", "a PDF document"),
    (b"PK\x03\x04", "a ZIP archive"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"\0\0\0\x0cjP  ", "a bare JPEG 2000 picture"),
)

# What Pillow's decoders are seen to raise on damaged files. Not `Exception`: a fault of ours must surface.
_PILLOW_ERRORS = (
    UnidentifiedImageError,
    Image.DecompressionBombError,
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    EOFError,
    OverflowError,
    AttributeError,
    AssertionError,
    ZeroDivisionError,
    RuntimeError,
    MemoryError,
    struct.error,
    zlib.error,
)


@dataclass(frozen=True, eq=False)
class ImageData:
    """One decoded image.

    Args:
        pixels: (H, W, C), uint8 (0..255) or uint16 (0..65535), C 1 (grey) or 3 (RGB); high is bright.
        source_bits: bits per sample that the file declares.
        meta: facts about the image that identify nobody (format, modality, view, pixel spacing).
        palette: (H, W) uint8 numbers of the colours, where the file has a palette; a mask's classes.
    """

    pixels: NDArray[np.uint8] | NDArray[np.uint16]
    source_bits: int
    meta: dict[str, str | float | int]
    palette: NDArray[np.uint8] | None = None


def signature(head: bytes) -> str | None:
    """Return the format (of `FORMATS`) that a file's first bytes announce, or None."""
    return next((name for magic, name in _SIGNATURES if head.startswith(magic)), None)


def describe_content(head: bytes) -> str:
    """Say in a few words what a file's first bytes look like, for the error of an unreadable file."""
    for magic, name in _OTHER_CONTENT:
        if head.startswith(magic):
            return f"the content is {name}"
    if not head.strip(b"\0"):
        return "the content is zeros"
    # A multi-byte character may be cut at the end of the head, hence the three bytes of grace.
    for end in range(len(head), max(len(head) - 4, 0), -1):
        try:
            text = head[:end].decode("utf-8")
        except UnicodeDecodeError:
            continue
        if all(character.isprintable() or character in "\r\n\t\f" for character in text):
            return "the content is text"
        break
    return "the content is of no known image format"


_most_pixels = ContextVar("most pixels", default=MAX_PIXELS)


@contextmanager
def at_most(pixels: int) -> Iterator[None]:
    """Refuse, within, images of more pixels than these; never more than `MAX_PIXELS`."""
    token = _most_pixels.set(min(pixels, MAX_PIXELS))
    try:
        yield
    finally:
        _most_pixels.reset(token)


def check_size(path: Source, height: int, width: int) -> None:
    """Refuse an image without pixels or with more than are read (`at_most`) before it is decoded.

    Raises:
        ImageReadError: for either.
    """
    most = _most_pixels.get()
    if height <= 0 or width <= 0:
        raise ImageReadError(str(path), f"the image has no pixels ({width} x {height})")
    if height * width > most:
        raise ImageReadError(
            str(path), f"its header claims {width} x {height} pixels, more than the limit of {most}"
        )


def squeeze_grey(pixels: NDArray[Any]) -> NDArray[Any]:
    """Return (H, W, C) with three equal channels reduced to one; (H, W) gains its channel axis."""
    if pixels.ndim == 2:
        return np.ascontiguousarray(pixels[..., None])
    first = pixels[..., 0]
    if pixels.shape[2] == 3 and all(np.array_equal(first, pixels[..., place]) for place in (1, 2)):
        pixels = first[..., None]
    return np.ascontiguousarray(pixels)


def stretch(values: NDArray[Any]) -> NDArray[np.uint16]:
    """Map finite numbers without a declared display range to uint16, their own min..max to 0..65535."""
    low, high = float(values.min()), float(values.max())
    if high <= low:
        return np.zeros(values.shape, np.uint16)
    # Halves first: the span of two large float64 of opposite sign would overflow.
    unit = (values.astype(np.float64) / 2 - low / 2) / (high / 2 - low / 2)
    return np.rint(unit * 65535).astype(np.uint16)


def read_raster(path: Source, *, frame: int | None = None, min_size: int | None = None) -> ImageData:
    """Read a PNG, JPEG, TIFF, BMP or GIF file.

    Grey stays one channel, and three equal channels become one. Alpha is dropped, not composited: the
    colours beneath it are kept. Palettes and CMYK become RGB; EXIF orientation is applied. Grey of 16 bits
    (also big-endian, also 12 bits in TIFF) is uint16; colour of 16 bits is reduced to 8 by Pillow.
    Floating-point, signed and 32-bit grey has no declared display range: its own min..max becomes 0..65535.

    Args:
        path: the file.
        frame: page of a multi-page file, 0 the first; None is 0.
        min_size: when given, a JPEG may be decoded at 1/2, 1/4 or 1/8 of its size as long as the shorter side
            stays at least twice this many pixels. Several times faster for large photographs.

    Raises:
        ImageReadError: when the file is damaged, truncated, too large, empty or not such a file.
    """
    if size_of(path) > MAX_FILE_BYTES:
        raise ImageReadError(str(path), f"the file is larger than {MAX_FILE_BYTES} bytes")
    data = path.read_bytes()
    try:
        _check_structure(path, data)
        with Image.open(BytesIO(data), formats=FORMATS) as image:
            return _decode(path, image, data, frame, min_size)
    except UnidentifiedImageError as error:
        kind = signature(data[:16])
        reason = (
            f"the {kind} header is damaged or of an unsupported kind"
            if kind
            else describe_content(data[:512])
        )
        raise ImageReadError(str(path), reason) from error
    except _PILLOW_ERRORS as error:
        raise ImageReadError(str(path), f"damaged or truncated image ({_first_line(error)})") from error


def _check_structure(path: Source, data: bytes) -> None:
    """Refuse truncation and damage that Pillow would forgive, from the structure of the file alone."""
    kind = signature(data[:16])
    if kind == "PNG":
        # Pillow skips the checksums of pixel chunks when it decodes.
        with Image.open(BytesIO(data), formats=("PNG",)) as image:
            check_size(path, image.height, image.width)
            image.verify()
    ends = {"PNG": (b"IDAT", b"IEND\xaeB`\x82"), "JPEG": (b"\xff\xda", b"\xff\xd9")}
    if kind in ends:
        pixels, end = ends[kind]
        if data.find(end, data.rfind(pixels) + 1) < 0:
            raise ImageReadError(str(path), f"the {kind} is truncated: its end is missing")
    if kind == "JPEG" and data.count(b"\xff\xda") > MAX_SCANS:
        raise ImageReadError(str(path), f"the JPEG has more than {MAX_SCANS} scans")
    if kind == "TIFF" and not _has_directory(data):
        raise ImageReadError(str(path), "the TIFF is truncated: its directory is missing or cut")


def _has_directory(data: bytes) -> bool:
    """Say whether the first directory of a TIFF or BigTIFF lies wholly inside the file."""
    order, big = "<" if data[:2] == b"II" else ">", 43 in data[2:4]
    try:
        place = struct.unpack_from(f"{order}{'Q' if big else 'I'}", data, 8 if big else 4)[0]
        entries = struct.unpack_from(f"{order}{'Q' if big else 'H'}", data, place)[0]
    except struct.error:
        return False
    return bool(place + (8 + 20 * entries + 8 if big else 2 + 12 * entries + 4) <= len(data))


def _check_parts(path: Source, tags: Any) -> None:
    """Refuse a TIFF with fewer strips or tiles than its size needs; Pillow leaves the rest black."""
    width, height = tags.get(256, 0), tags.get(257, 0)
    if 324 in tags:  # tiles, else strips
        offsets, needed = 324, -(-width // tags[322]) * -(-height // tags[323])
    else:
        offsets, needed = 273, -(-height // min(tags.get(278, height), height))
    if tags.get(284) == 2:  # every channel apart
        needed *= tags.get(277, 1)
    if len(tags.get(offsets, ())) < needed:
        raise ImageReadError(str(path), f"it has fewer than the {needed} strips or tiles its size needs")


def _check_rows(path: Source, image: Image.Image, data: bytes) -> None:
    """Refuse a PNG with fewer rows than its header says; Pillow leaves the rest black."""
    interlaced = data[28] != 0
    if not interlaced and np.asarray(image)[-1].any():
        return  # the last row has arrived, and they come in order
    inflater, place, size = zlib.decompressobj(), 8, 0
    while place + 12 <= len(data):
        length = int.from_bytes(data[place : place + 4], "big")
        if data[place + 4 : place + 8] == b"IDAT":
            size += len(inflater.decompress(data[place + 8 : place + 8 + length]))
        place += 12 + length
    if size < _png_bytes(image.width, image.height, data[24], data[25], interlaced=interlaced):
        raise ImageReadError(str(path), "the PNG holds fewer rows than its header says")


def _png_bytes(width: int, height: int, depth: int, colour: int, *, interlaced: bool) -> int:
    """Return the length of a PNG's inflated pixel data (PNG specification, sections 7 and 8)."""
    bits = depth * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    # First column, first row, column step, row step of Adam7's passes.
    passes = (
        (0, 0, 8, 8),
        (4, 0, 8, 8),
        (0, 4, 4, 8),
        (2, 0, 4, 4),
        (0, 2, 2, 4),
        (1, 0, 2, 2),
        (0, 1, 1, 2),
    )
    total = 0
    for left, top, across, down in passes if interlaced else ((0, 0, 1, 1),):
        columns, rows = -(-(width - left) // across), -(-(height - top) // down)
        if columns > 0 and rows > 0:
            total += rows * (1 + -(-columns * bits // 8))
    return total


def _first_line(error: BaseException) -> str:
    """Return the first line of a library's message, or the error's name when it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _decode(
    path: Source, image: Image.Image, data: bytes, frame: int | None, min_size: int | None
) -> ImageData:
    """Check, decode and orient an opened image."""
    _seek(path, image, frame)
    check_size(path, image.height, image.width)
    meta: dict[str, str | float | int] = {"format": image.format or "", "mode": image.mode}
    if image.format in ("JPEG", "MPO") and min_size is not None and min_size > 0:
        # Pillow keeps both sides at or above the size asked for.
        image.draft(None, (2 * min_size, 2 * min_size))
    tags = getattr(image, "tag_v2", {})
    bits = int(max(tags.get(258, (8,)))) if tags else 8
    white_is_zero, unsigned = tags.get(262) == 0, tags.get(339, (1,))[0] == 1
    if tags:
        _check_parts(path, tags)
    image.load()
    if image.format == "PNG" and not frame:
        _check_rows(path, image, data)
    pixels, bits = _pixels(path, image, bits, white_is_zero=white_is_zero, unsigned=unsigned)
    # Pillow has turned a TIFF already, and then says so by dropping the tag.
    orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    palette = _orient(np.asarray(image), orientation) if image.mode == "P" else None
    return ImageData(squeeze_grey(_orient(pixels, orientation)), bits, meta, palette)


def _seek(path: Source, image: Image.Image, frame: int | None) -> None:
    """Go to a page of a multi-page file."""
    if not frame:
        return
    try:
        image.seek(frame)
    except EOFError as error:
        pages = getattr(image, "n_frames", 1)
        raise ImageReadError(
            str(path), f"frame {frame} asked for, but it has {pages} (0 is the first)"
        ) from error


def _pixels(
    path: Source, image: Image.Image, bits: int, *, white_is_zero: bool, unsigned: bool
) -> tuple[NDArray[Any], int]:
    """Return (H, W) or (H, W, 3) of uint8 or uint16 over the full range, and the bits of the source."""
    mode = image.mode
    if mode == "1":
        return np.asarray(image).astype(np.uint8) * np.uint8(255), 1
    if mode in ("L", "RGB"):
        return np.asarray(image), bits
    if mode in ("LA", "La"):
        return np.asarray(image if mode == "LA" else image.convert("LA"))[..., 0], bits
    if mode in ("RGBA", "RGBX", "RGBa"):
        return np.asarray(image.convert("RGBA") if mode == "RGBa" else image)[..., :3], bits
    if mode in ("P", "PA", "CMYK", "YCbCr"):
        return np.asarray(image.convert("RGBA" if mode in ("P", "PA") else "RGB"))[..., :3], bits
    if mode.startswith("I;16"):
        grey: NDArray[Any] = np.asarray(image).astype(np.uint16)
        bits = bits if 8 < bits < 16 else 16
        if bits < 16:
            grey = np.rint(np.minimum(grey / (2**bits - 1), 1) * 65535).astype(np.uint16)
    elif mode in ("I", "F"):
        values = np.asarray(image)
        if not np.isfinite(values).all():
            raise ImageReadError(str(path), "the pixels hold NaN or infinite values")
        if mode == "I" and bits == 32 and unsigned:
            values = values.view(np.uint32)
        grey = stretch(values)
    else:
        raise ImageReadError(str(path), f"pixels of Pillow mode {mode} have no agreed conversion to RGB")
    # Pillow inverts WhiteIsZero of 8 bits and fewer, but not deeper grey.
    return (np.uint16(65535) - grey if white_is_zero else grey), bits


def _orient(pixels: NDArray[Any], orientation: object) -> NDArray[Any]:
    """Turn and mirror pixels (H, W[, C]) as EXIF orientation 1..8 asks; other values are ignored."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels
