"""Images that are elements of NumPy arrays: `file.npz[key][i]` and `file.npy[i]`.

A member is unpacked once per process into an unnamed temporary file and memory-mapped, so that reading image
`i` touches only its own pages, and memory stays flat however large the archive is. Pickles are never loaded.
"""

from __future__ import annotations

import math
import shutil
import struct
import tempfile
import tokenize
import zipfile
import zlib
from functools import lru_cache
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from scanprior.data.readers.image import ImageData, check_size, squeeze_grey
from scanprior.errors import ImageReadError

# What zipfile and NumPy's header parser are seen to raise on damaged files.
_DAMAGE = (
    OSError,
    ValueError,
    TypeError,
    EOFError,
    LookupError,
    SyntaxError,
    OverflowError,
    NotImplementedError,
    RuntimeError,
    MemoryError,
    RecursionError,
    struct.error,
    zlib.error,
    zipfile.BadZipFile,
    tokenize.TokenError,
)


class ArrayHeader(NamedTuple):
    """What an array's header says: its shape and the name of its dtype."""

    shape: tuple[int, ...]
    dtype: str


def npz_members(path: str | Path) -> dict[str, ArrayHeader]:
    """Return the arrays of an `.npz` by key, from their headers alone; no array is loaded.

    Members that cannot be used (pickled objects) are listed with dtype "object".

    Raises:
        ImageReadError: when the file is missing, damaged or not an `.npz`.
    """
    path = Path(path)
    try:
        with zipfile.ZipFile(path) as archive:
            members = {}
            for info in archive.infolist():
                if info.filename.endswith(".npy"):
                    with archive.open(info) as stream:
                        shape, _, dtype = _header(stream)
                    members[info.filename.removesuffix(".npy")] = ArrayHeader(shape, dtype.name)
            return members
    except _DAMAGE as error:
        raise _unusable(path, error) from error


def open_array(path: str | Path, key: str | None = None) -> NDArray[Any]:
    """Return an array of an `.npz` (by key) or an `.npy` (key None), read-only and memory-mapped.

    The mapping is kept for the life of the process and made anew when the file's size or time changes.

    Raises:
        ImageReadError: when the file or member is missing, damaged, or holds pickled objects.
    """
    path = Path(path)
    try:
        state = path.stat()
        if not path.is_file():
            raise ImageReadError(str(path), "not a regular file")
        return _mapped(path.resolve(), key, state.st_mtime_ns, state.st_size)
    except _DAMAGE as error:
        raise _unusable(path, error) from error


def read_element(path: str | Path, key: str | None, index: int) -> ImageData:
    """Read image `index` of an array (N, H, W) or (N, H, W, C), C 1 or 3.

    Accepted are uint8 and uint16 (taken as they are), bool (0 and full white) and floating point within 0..1
    (times 65535). Anything else has no agreed display range and is refused.

    Args:
        path: an `.npz` or `.npy` file.
        key: the member of an `.npz`; None for an `.npy`.
        index: place along the first axis, from 0.

    Raises:
        ImageReadError: for damage, a missing key or index, a wrong dtype or shape, NaN or infinity.
    """
    path, name = Path(path), str(path) + ("" if key is None else f"[{key}]")
    array = open_array(path, key)
    if array.ndim not in (3, 4) or (array.ndim == 4 and array.shape[3] not in (1, 3)):
        raise ImageReadError(name, f"shape {array.shape} is not (images, height, width[, 1 or 3 channels])")
    if not 0 <= index < len(array):
        raise ImageReadError(name, f"image {index} asked for, but it has {len(array)} (0 is the first)")
    check_size(path, *array.shape[1:3])
    pixels, bits = _display(name, np.asarray(array[index]))
    return ImageData(squeeze_grey(pixels), bits, {"format": "NPY" if key is None else "NPZ"})


def _display(name: str, values: NDArray[Any]) -> tuple[NDArray[Any], int]:
    """Return uint8 or uint16 over the full range, never a view of the mapped file, and the source's bits."""
    if values.dtype == np.bool_:
        return values.astype(np.uint8) * np.uint8(255), 1
    if values.dtype.kind == "u" and values.dtype.itemsize <= 2:
        return values.astype(values.dtype.newbyteorder("=")), 8 * values.dtype.itemsize
    if values.dtype.kind == "f":
        if not np.isfinite(values).all():
            raise ImageReadError(name, "the pixels hold NaN or infinite values")
        low, high = float(values.min()), float(values.max())
        if low < 0 or high > 1:
            raise ImageReadError(name, f"floating-point pixels must lie in 0..1, found {low:g}..{high:g}")
        return np.rint(values.astype(np.float64) * 65535).astype(np.uint16), 8 * values.dtype.itemsize
    raise ImageReadError(name, f"dtype {values.dtype} is not an image; store uint8, uint16 or floats in 0..1")


@lru_cache(maxsize=16)
def _mapped(path: Path, key: str | None, mtime_ns: int, size: int) -> NDArray[Any]:
    """Map an array; the time and size are there to make the cache forget a changed file."""
    if key is None:
        with path.open("rb") as stream:
            return _map(path, stream, size)
    with zipfile.ZipFile(path) as archive:
        if f"{key}.npy" not in archive.namelist():
            keys = ", ".join(name.removesuffix(".npy") for name in archive.namelist()[:20])
            raise ImageReadError(str(path), f"it holds no array {key!r}, only: {keys or 'nothing'}")
        info = archive.getinfo(f"{key}.npy")
        with archive.open(info) as member:
            # The header first: a bomb or a pickle must not cost the unpacking.
            _check_length(path, key, member, info.file_size)
        free = shutil.disk_usage(tempfile.gettempdir()).free
        if info.file_size > free:
            raise ImageReadError(
                str(path), f"unpacking {key!r} takes {info.file_size} bytes, the temporary folder has {free}"
            )
        with archive.open(info) as member, tempfile.TemporaryFile() as unpacked:
            shutil.copyfileobj(member, unpacked, 1 << 20)
            unpacked.seek(0)
            return _map(path, unpacked, info.file_size, key)


def _map(path: Path, stream: IO[bytes], size: int, key: str | None = None) -> NDArray[Any]:
    """Map the array that an open file holds, after its header."""
    shape, fortran, dtype = _check_length(path, key, stream, size)
    if math.prod(shape) == 0:
        return np.empty(shape, dtype)
    order = "F" if fortran else "C"
    return np.memmap(stream, dtype, "r", stream.tell(), shape, order)  # type: ignore[call-overload, no-any-return]


def _check_length(
    path: Path, key: str | None, stream: IO[bytes], size: int
) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Read an array's header and refuse objects and a length that its shape does not explain."""
    name = str(path) + ("" if key is None else f"[{key}]")
    shape, fortran, dtype = _header(stream)
    if dtype.hasobject:
        raise ImageReadError(
            name, "the array holds pickled objects, which could run code; store plain numbers"
        )
    expected = stream.tell() + math.prod(shape) * dtype.itemsize
    if size != expected or min(shape, default=0) < 0:
        raise ImageReadError(name, f"the array is {size} bytes long where its header promises {expected}")
    return shape, fortran, dtype


def _header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Return shape, Fortran order and dtype from an `.npy` header (format 1.0 or 2.0)."""
    version = npy.read_magic(stream)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"array format {version} is not supported")
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, fortran, dtype = read(stream)
    return shape, fortran, dtype


def _unusable(path: Path, error: BaseException) -> ImageReadError:
    """Turn a library's error into ours, naming the commonest cases plainly."""
    if isinstance(error, FileNotFoundError):
        return ImageReadError(str(path), "no such file")
    if isinstance(error, IsADirectoryError):
        return ImageReadError(str(path), "it is a folder, not an array file")
    if isinstance(error, zipfile.BadZipFile) and "not a zip file" in str(error):
        return ImageReadError(str(path), "not an .npz archive, or a truncated one")
    return ImageReadError(
        str(path), f"damaged array file ({str(error).splitlines()[0] if str(error) else error!r})"
    )
