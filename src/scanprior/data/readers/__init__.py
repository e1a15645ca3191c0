"""Reading images: one function for every format, one result, one error.

A reference in a manifest is a path, `scan.dcm#3` (frame 3 of a multi-frame file, from 0), or
`file.npz[key][i]` / `file.npy[i]` (element i of an array).
"""

from __future__ import annotations

import os
import re
import stat
import warnings
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from scanprior.data.readers.image import ImageData, at_most, describe_content, read_raster, signature
from scanprior.data.readers.raw import RAW_BYTES, read_raw
from scanprior.data.readers.source import Source, Upload, size_of
from scanprior.errors import ImageReadError

__all__ = [
    "IMAGE_SUFFIXES",
    "RAW_SUFFIXES",
    "ImageData",
    "Upload",
    "at_most",
    "is_image_path",
    "looks_like_dicom",
    "mask_parts",
    "read_image",
    "read_mask",
    "read_reference",
]

DICOM_SUFFIXES = frozenset({".dcm", ".dicom"})
RAW_SUFFIXES = frozenset({".img"})
IMAGE_SUFFIXES = (
    DICOM_SUFFIXES | RAW_SUFFIXES | {".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".tif", ".tiff", ".bmp"}
)

_ELEMENT = re.compile(
    r"(?P<file>.+?\.(?:npz(?=\[[^\[\]]+\]\[)|npy))(?:\[(?P<key>[^\[\]]+)\])?\[(?P<index>\d+)\]"
)
_FRAME = re.compile(r"(?P<file>.+)#(?P<frame>\d+)")


def is_image_path(path: str | Path) -> bool:
    """Say whether a path has the suffix of an image that `read_image` reads; the file is not opened."""
    return Path(path).suffix.lower() in IMAGE_SUFFIXES


def looks_like_dicom(path: str | Path) -> bool:
    """Say whether a file has the DICOM preamble ("DICM" at byte 128); False for one that cannot be opened."""
    try:
        if not Path(path).is_file():
            return False
        with Path(path).open("rb") as stream:
            return stream.read(132)[128:] == b"DICM"
    except OSError:
        return False


def read_image(
    path: str | Path | Upload, *, frame: int | None = None, min_size: int | None = None
) -> ImageData:
    """Read one image of any supported format; the content decides, not the suffix.

    Args:
        path: PNG, JPEG, TIFF, BMP, DICOM, or a raw `.IMG` of the JSRT database; an `Upload` never touches a disk.
        frame: frame or page of a multi-frame file, 0 the first; None is 0.
        min_size: smallest side (pixels) that the caller needs; lets a JPEG be decoded at a reduced size whose
            shorter side is at least twice this. None decodes in full.

    Returns:
        `ImageData`: pixels (H, W, C) uint8 or uint16 over the full range, high is bright, C 1 or 3. See
        `read_raster` and `read_dicom` for what becomes of alpha, palettes, depths and windows.

    Raises:
        ImageReadError: for every file that is missing, damaged, unsafe or not an image.
    """
    path = path if isinstance(path, Upload) else Path(path)
    if frame is not None and frame < 0:
        raise ImageReadError(str(path), f"frame {frame} asked for; frames count from 0")
    head = _head(path)
    # The libraries warn about what they mend (an odd tag, a padding byte); what matters is raised instead.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if head[128:132] == b"DICM":
            return _read_dicom(path, frame)
        if signature(head) is not None:
            return read_raster(path, frame=frame, min_size=min_size)
        # Only a file that does not claim to be something else may be DICOM without a preamble.
        raw = path.suffix.lower() in RAW_SUFFIXES
        if raw and size_of(path) == RAW_BYTES:
            return read_raw(path)
        if raw or path.suffix.lower() in DICOM_SUFFIXES or path.suffix.lower() not in IMAGE_SUFFIXES:
            from scanprior.data.readers.dicom import may_lack_preamble

            if may_lack_preamble(head):
                return _read_dicom(path, frame)
        if raw:
            return read_raw(path)  # which says why not
    raise ImageReadError(str(path), describe_content(head))


def read_reference(reference: str, root: str | Path = ".", *, min_size: int | None = None) -> ImageData:
    """Read the image that a manifest's `image` value refers to.

    Args:
        reference: a path, `path#frame`, `file.npz[key][i]` or `file.npy[i]`; relative paths start at `root`.
        root: the manifest's root.
        min_size: as for `read_image`.

    Raises:
        ImageReadError: as `read_image`, and for a relative path that leads out of `root`.
    """
    if element := _ELEMENT.fullmatch(reference):
        from scanprior.data.readers.array import read_element

        return read_element(_resolve(element["file"], root), element["key"], int(element["index"]))
    path, frame = _resolve(reference, root), None
    # A file whose very name ends in #3 is taken by its name.
    if (match := _FRAME.fullmatch(reference)) and not path.exists():
        path, frame = _resolve(match["file"], root), int(match["frame"])
    return read_image(path, frame=frame, min_size=min_size)


def mask_parts(reference: str) -> list[str]:
    """Return the references of a manifest's `mask` value; several are joined by "|"."""
    return reference.split("|")


def read_mask(reference: str, root: str | Path = ".") -> NDArray[np.uint8]:
    """Read the mask that a manifest's `mask` value refers to.

    The values stay as they are in the file (the grey value, or the number in a palette of colours), for they
    name what a pixel belongs to; 0 is background. Of several references joined by "|" (left and right
    lung) the larger value stands where they overlap: the union of binary masks.

    Args:
        reference: one reference or several, as for `read_reference`.
        root: the manifest's root.

    Returns:
        (H, W) uint8.

    Raises:
        ImageReadError: as `read_reference`; for a mask in colour, with values above 255, or parts of
            different sizes.
    """
    whole: NDArray[np.uint8] | None = None
    for part in mask_parts(reference):
        values = _mask_values(part, root)
        if whole is not None and whole.shape != values.shape:
            tall, wide = values.shape
            raise ImageReadError(
                part,
                f"a mask of {wide} x {tall} pixels cannot be joined to one of {whole.shape[1]} x {whole.shape[0]}",
            )
        whole = values if whole is None else np.maximum(whole, values)
    assert whole is not None
    return whole


def _mask_values(reference: str, root: str | Path) -> NDArray[np.uint8]:
    image = read_reference(reference, root)  # all that can be wrong with a file is found here
    if image.pixels.shape[2] != 1:  # a palette of greys has come out as greys, whatever their order in it
        if image.palette is not None:
            return image.palette
        raise ImageReadError(reference, "the mask is in colour; save it as grey values or with a palette")
    values = image.pixels[..., 0]
    if values.dtype != np.uint8 and values.max(initial=0) > 255:
        raise ImageReadError(
            reference, f"the mask holds the value {values.max()}; give every class a value of at most 255"
        )
    return values.astype(np.uint8)


def _resolve(path: str, root: str | Path) -> Path:
    """Return an absolute path as it is, and a relative one beneath `root`."""
    if Path(path).is_absolute():
        return Path(path)
    if Path(os.path.normpath(path)).parts[:1] == (os.pardir,):
        raise ImageReadError(
            path, "the path leads out of the root folder; use an absolute path or another root"
        )
    return Path(root) / path


def _head(path: Source) -> bytes:
    """Return a regular file's first 512 bytes."""
    head = path.data[:512] if isinstance(path, Upload) else _head_of_file(path)
    if not head:
        raise ImageReadError(str(path), "the file is empty (0 bytes)")
    return head


def _head_of_file(path: Path) -> bytes:
    try:
        # A pipe or device would block for ever.
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise ImageReadError(str(path), "it is a folder, not an image")
        if not stat.S_ISREG(mode):
            raise ImageReadError(str(path), "not a regular file")
        with path.open("rb") as stream:
            return stream.read(512)
    except FileNotFoundError as error:
        raise ImageReadError(str(path), "no such file") from error
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the path
        raise ImageReadError(str(path), f"cannot be opened ({error})") from error


def _read_dicom(path: Source, frame: int | None) -> ImageData:
    """Read DICOM; pydicom is imported only by those who need it."""
    from scanprior.data.readers.dicom import read_dicom

    return read_dicom(path, frame=frame)
