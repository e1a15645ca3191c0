"""Raw radiographs without a header: the `.IMG` files of the JSRT database.

Nothing in such a file says what it is, so that only the one published shape is read: 2048 x 2048 pixels of
12 bits in 16-bit big-endian words, at 0.175 mm, low values bright (Shiraishi J. et al., "Development of a digital
image database for chest radiographs with and without a lung nodule", AJR 2000;174:71-74).
"""

from __future__ import annotations

import numpy as np

from scanprior.data.readers.image import ImageData, squeeze_grey
from scanprior.data.readers.source import Source, size_of
from scanprior.errors import ImageReadError

SIDE = 2048
RAW_BYTES = SIDE * SIDE * 2
"""Length of every JSRT image."""

_GREATEST = 4095
_SPACING = 0.175


def read_raw(path: Source) -> ImageData:
    """Read an image of the JSRT database as it is meant to be seen.

    Low stored values are bright, as in DICOM's MONOCHROME1: they are inverted, 4095 - v, and brought to the
    full range.

    Returns:
        `ImageData`: pixels (2048, 2048, 1) uint16, high is bright; `source_bits` 12.

    Raises:
        ImageReadError: for another length, values above 12 bits, or a file that cannot be opened.
    """
    try:
        size = size_of(path)
        data = path.read_bytes() if size == RAW_BYTES else None
    except OSError as error:
        raise ImageReadError(str(path), f"cannot be opened ({error})") from error
    if data is None or len(data) != RAW_BYTES:
        raise ImageReadError(
            str(path),
            f"a raw .img file of {size} bytes, where only JSRT images of {RAW_BYTES} bytes are read; convert it to PNG",
        )
    stored = np.frombuffer(data, ">u2").reshape(SIDE, SIDE)
    greatest = int(stored.max())
    if greatest > _GREATEST:
        raise ImageReadError(
            str(path),
            f"it has the size of a JSRT image, but a value of {greatest}, above the 12 bits of these",
        )
    display = np.rint((_GREATEST - stored.astype(np.float64)) * (65535 / _GREATEST)).astype(np.uint16)
    meta: dict[str, str | float | int] = {
        "format": "JSRT",
        "row_spacing": _SPACING,
        "column_spacing": _SPACING,
    }
    return ImageData(squeeze_grey(display), 12, meta)
