"""DICOM files, read by the standard: `read_dicom` gives display pixels, `read_header` what an index needs.

Compressed pixel data is handed to one named, freely licensed decoder per transfer syntax, after its own
header was compared with the dataset's, so that damage is met before a decoder allocates or guesses.
"""

from __future__ import annotations

import re
import struct
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from numpy.typing import NDArray
from pydicom import dcmread, uid
from pydicom.dataset import Dataset, FileDataset
from pydicom.encaps import get_frame
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.filereader import read_dataset, read_preamble
from pydicom.pixels.decoders.base import get_decoder

from scanprior.data.readers import dicom_jpeg
from scanprior.data.readers.dicom_display import DisplayError, full_range, grey_to_display, palette_to_rgb
from scanprior.data.readers.image import MAX_SCANS, ImageData, check_size, squeeze_grey
from scanprior.data.readers.source import Source, size_of
from scanprior.errors import ImageReadError

MAX_INFLATED = 1 << 29
"""Most bytes that a deflated dataset may inflate to."""

# One decoder a transfer syntax, so that pixels do not depend on what else is installed, and those that report
# damage before those that guess. None is GPL.
_PLUGINS: dict[str, str] = {
    uid.JPEGBaseline8Bit: "pillow",
    **dict.fromkeys(dicom_jpeg.SYNTAXES, dicom_jpeg.NAME),
    uid.JPEGLSLossless: "pyjpegls",
    uid.JPEGLSNearLossless: "pyjpegls",
    uid.JPEG2000Lossless: "pylibjpeg",
    uid.JPEG2000: "pylibjpeg",
    uid.HTJ2KLossless: "pylibjpeg",
    uid.HTJ2KLosslessRPCL: "pylibjpeg",
    uid.HTJ2K: "pylibjpeg",
    uid.RLELossless: "pydicom",
}
dicom_jpeg.register()
_NATIVE_SYNTAXES = (
    uid.ImplicitVRLittleEndian,
    uid.ExplicitVRLittleEndian,
    uid.ExplicitVRBigEndian,
    uid.DeflatedExplicitVRLittleEndian,
)
_PIXEL_KEYWORDS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
_GREY = ("MONOCHROME1", "MONOCHROME2")
_COLOUR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")

# What pydicom and its decoders raise on damaged files. Not `Exception`: a fault of ours must surface.
_DICOM_ERRORS = (
    InvalidDicomError,
    BytesLengthException,
    DisplayError,
    OSError,
    EOFError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    NotImplementedError,
    RuntimeError,
    RecursionError,
    OverflowError,
    AssertionError,
    MemoryError,
    struct.error,
    zlib.error,
)


@dataclass(frozen=True)
class DicomHeader:
    """What an index takes from a DICOM header; empty values are None.

    `patient_id`, `study_uid` and `series_uid` identify a person: hash them before anything is written.
    They are kept out of `repr` for that reason.
    """

    patient_id: str | None = field(repr=False)
    study_uid: str | None = field(repr=False)
    series_uid: str | None = field(repr=False)
    modality: str | None
    view: str | None
    body_part: str | None
    laterality: str | None
    site: str | None
    sex: str | None
    age_years: float | None
    frames: int
    rows: int
    columns: int


def read_header(path: str | Path) -> DicomHeader:
    """Read the header of a DICOM file without its pixels.

    `sex` is "M", "F", "O" or None, `age_years` comes from PatientAge, `site` from InstitutionName, `rows` and
    `columns` are 0 in an object without an image.

    Raises:
        ImageReadError: when the file is missing, damaged or not DICOM.
    """
    path = Path(path)
    try:
        with path.open("rb") as stream:
            dataset = _read_dataset(path, stream, pixels=False)
            sex = _text(dataset, "PatientSex")
            return DicomHeader(
                patient_id=_text(dataset, "PatientID"),
                study_uid=_text(dataset, "StudyInstanceUID"),
                series_uid=_text(dataset, "SeriesInstanceUID"),
                modality=_text(dataset, "Modality"),
                view=_text(dataset, "ViewPosition"),
                body_part=_text(dataset, "BodyPartExamined"),
                laterality=_text(dataset, "ImageLaterality") or _text(dataset, "Laterality"),
                site=_text(dataset, "InstitutionName"),
                sex=sex if sex in ("M", "F", "O") else None,
                age_years=_age_years(_text(dataset, "PatientAge")),
                frames=_frames(dataset),
                rows=int(dataset.get("Rows") or 0),
                columns=int(dataset.get("Columns") or 0),
            )
    except _DICOM_ERRORS as error:
        raise _unreadable(path, error) from error


def read_dicom(path: str | Source, *, frame: int | None = None) -> ImageData:
    """Read one frame of a DICOM file as it is meant to be seen.

    Grey: modality table or rescale, first VOI table, else first window, else the range that `grey_to_display`
    documents; MONOCHROME1 is inverted because its header says so (a Presentation LUT Shape of INVERSE says
    the same once more and is not applied again). Colour becomes RGB. Overlays are not drawn.

    Args:
        path: the file, with or without the 128-byte preamble.
        frame: which frame, 0 the first; None is 0.

    Returns:
        uint8 when at most 8 bits are stored, else uint16; `meta` holds modality, view_position, body_part,
        laterality, row_spacing and column_spacing (mm), photometric, transfer_syntax, frames, display.

    Raises:
        ImageReadError: when the file is damaged, has no image, or needs a decoder that is not there.
    """
    path, place = Path(path) if isinstance(path, str) else path, frame or 0
    try:
        with path.open("rb") as stream:
            dataset = _read_dataset(path, stream, pixels=True)
        _check_image(path, dataset, place)
        stored, photometric = _decode(path, dataset, place)
        pixels, how = _display(path, dataset, stored, photometric, place)
        bits = int(dataset.get("BitsStored") or 8 * stored.dtype.itemsize)
        return ImageData(squeeze_grey(pixels), bits, _meta(dataset, place) | {"display": how})
    except _DICOM_ERRORS as error:
        raise _unreadable(path, error) from error


def has_preamble(head: bytes) -> bool:
    """Say whether a file's first 132 bytes are a DICOM preamble."""
    return head[128:132] == b"DICM"


def may_lack_preamble(head: bytes) -> bool:
    """Say whether a file may be a dataset without preamble: it starts with a low element of group 2 or 8."""
    if len(head) < 8:
        return False
    little, big = struct.unpack("<HH", head[:4]), struct.unpack(">HH", head[:4])
    return any(group in (2, 8) and element <= 0x18 for group, element in (little, big))


def _read_dataset(path: Source, stream: BinaryIO, *, pixels: bool) -> FileDataset:
    """Read a dataset, with a known transfer syntax or none at all."""
    head = stream.read(132)
    stream.seek(0)
    if not has_preamble(head) and not may_lack_preamble(head):
        raise ImageReadError(str(path), "not a DICOM file")
    if has_preamble(head):
        _check_deflated(path, stream)
    dataset = dcmread(stream, stop_before_pixels=not pixels, force=not has_preamble(head))
    if not has_preamble(head) and "SOPClassUID" not in dataset and "Modality" not in dataset:
        raise ImageReadError(str(path), "not a DICOM file (no preamble, and no SOP class or modality)")
    if "TransferSyntaxUID" not in dataset.file_meta:
        implicit, little = dataset.original_encoding
        # pydicom has found out how the elements are written: implicit and little are places 0 and 1.
        place = 0 if implicit else 1 if little else 2
        dataset.file_meta.TransferSyntaxUID = _NATIVE_SYNTAXES[place]
    return dataset


def _check_deflated(path: Source, stream: BinaryIO) -> None:
    """Refuse a deflated dataset that would inflate beyond `MAX_INFLATED`; pydicom sets no limit."""
    read_preamble(stream, force=False)
    meta = read_dataset(stream, False, True, stop_when=lambda tag, *_: tag.group != 2)
    stream.seek(0)
    if meta.get("TransferSyntaxUID") != uid.DeflatedExplicitVRLittleEndian:
        return
    if meta.get("FileMetaInformationGroupLength") is None:
        raise ImageReadError(str(path), "the length of its file meta information is missing")
    # 12 bytes hold the group length itself, which counts what follows it.
    packed = path.read_bytes()[132 + 12 + int(meta.FileMetaInformationGroupLength) :]
    inflater, size = zlib.decompressobj(-zlib.MAX_WBITS), 0
    for start in range(0, len(packed), 1 << 16):
        size += len(inflater.decompress(packed[start : start + (1 << 16)]))
        if size > MAX_INFLATED:
            raise ImageReadError(str(path), f"the deflated dataset is larger than {MAX_INFLATED} bytes")


def _check_image(path: Source, dataset: FileDataset, frame: int) -> None:
    """Refuse what can be refused from the header alone."""
    if not any(dataset.get(keyword) for keyword in _PIXEL_KEYWORDS):
        # Of a file that ends within compressed pixel data pydicom keeps nothing.
        kind = f" (modality {dataset.Modality})" if "Modality" in dataset else ""
        raise ImageReadError(str(path), f"no pixel data found{kind}: truncated, or not an image")
    rows, columns = int(dataset.get("Rows") or 0), int(dataset.get("Columns") or 0)
    check_size(path, rows, columns)
    frames = _frames(dataset)
    if not 0 <= frame < frames:
        raise ImageReadError(str(path), f"frame {frame} asked for, but it has {frames} (0 is the first)")
    photometric = dataset.get("PhotometricInterpretation")
    if photometric not in (*_GREY, *_COLOUR, "PALETTE COLOR"):
        raise ImageReadError(str(path), f"PhotometricInterpretation {photometric!r} is not supported")
    samples = 3 if photometric in _COLOUR else 1
    if dataset.get("SamplesPerPixel") != samples:
        found = dataset.get("SamplesPerPixel")
        raise ImageReadError(str(path), f"SamplesPerPixel is {found}, but {photometric} has {samples}")


def _decode(path: Source, dataset: FileDataset, frame: int) -> tuple[NDArray[Any], str]:
    """Return one frame's stored values (H, W[, 3]) and their photometric interpretation after decoding."""
    syntax = dataset.file_meta.TransferSyntaxUID
    if syntax not in _PLUGINS and syntax not in _NATIVE_SYNTAXES:
        raise ImageReadError(str(path), f"transfer syntax {syntax.name} is not supported")
    if syntax in _PLUGINS:
        element = dataset["PixelData"]
        if not element.is_undefined_length:
            raise ImageReadError(str(path), f"its pixel data is not encapsulated as {syntax.name} requires")
        # pydicom takes a file that lacks part of the 8 bytes that close the pixel data.
        if (element.file_tell or 0) + len(element.value) + 8 > size_of(path):
            raise ImageReadError(str(path), "the file is truncated at the end of its pixel data")
        decoder = get_decoder(syntax)
        if _PLUGINS[syntax] not in decoder.available_plugins:
            raise ImageReadError(str(path), f"{syntax.name} needs the decoder {_PLUGINS[syntax]}; install it")
        _check_codestream(path, dataset, syntax, frame)
        stored, properties = decoder.as_array(dataset, index=frame, decoding_plugin=_PLUGINS[syntax])
    elif "PixelData" in dataset and dataset["PixelData"].is_undefined_length:
        raise ImageReadError(str(path), f"its pixel data is compressed, but the header says {syntax.name}")
    else:
        stored, properties = get_decoder(syntax).as_array(dataset, index=frame)
    return stored, str(properties["photometric_interpretation"])


def _check_codestream(path: Source, dataset: FileDataset, syntax: uid.UID, frame: int) -> None:
    """Refuse a compressed frame whose own header disagrees with the dataset's, or that lacks its end.

    Decoders allocate by the codestream's size, and several return a picture for a truncated stream.
    """
    offsets = None
    if "ExtendedOffsetTable" in dataset and "ExtendedOffsetTableLengths" in dataset:
        offsets = (dataset.ExtendedOffsetTable, dataset.ExtendedOffsetTableLengths)
    data = get_frame(
        dataset.PixelData, frame, number_of_frames=_frames(dataset), extended_offsets=offsets
    ).rstrip(b"\0\xff")  # padding to an even length
    if syntax == uid.RLELossless:
        return
    shape = _codestream_shape(data)
    if shape is None:
        raise ImageReadError(str(path), f"its pixel data is not a {syntax.name} stream")
    if shape != (dataset.Rows, dataset.Columns):
        raise ImageReadError(
            str(path),
            f"the compressed frame is {shape} where the header says {(dataset.Rows, dataset.Columns)}",
        )
    if not data.endswith(b"\xff\xd9"):
        raise ImageReadError(str(path), "the compressed pixel data is truncated")
    if data.startswith(b"\xff\xd8") and data.count(b"\xff\xda") > MAX_SCANS:
        raise ImageReadError(str(path), f"the compressed frame has more than {MAX_SCANS} scans")


def _codestream_shape(data: bytes) -> tuple[int, int] | None:
    """Return (rows, columns) from the header of a JPEG, JPEG-LS or JPEG 2000 stream; None without one."""
    if data.startswith(b"\xff\xd8"):
        place = 2
        while place + 9 <= len(data) and data[place] == 0xFF:
            marker, length = data[place + 1], int.from_bytes(data[place + 2 : place + 4], "big")
            if marker == 0xFF:  # fill byte
                place += 1
            elif marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)):
                rows, columns = struct.unpack(">HH", data[place + 5 : place + 9])
                return rows, columns
            else:
                place += 2 + length
        return None
    start = data.find(b"\xff\x4f\xff\x51")  # SOC and SIZ, at the start or inside a JP2 box
    if start < 0 or len(data) < start + 24:
        return None
    right, bottom, left, top = struct.unpack(">4I", data[start + 8 : start + 24])
    return bottom - top, right - left


def _display(
    path: Source, dataset: FileDataset, stored: NDArray[Any], photometric: str, frame: int
) -> tuple[NDArray[Any], str]:
    """Return display pixels (H, W[, 3]) and how the grey range was found ("colour" for colour)."""
    if photometric in _GREY:
        return grey_to_display(stored, dataset, frame)
    if stored.dtype.kind != "u":
        raise ImageReadError(str(path), f"colour pixels of dtype {stored.dtype} are not supported")
    if photometric == "PALETTE COLOR":
        return palette_to_rgb(stored, dataset), "colour"
    if photometric != "RGB":
        raise ImageReadError(str(path), f"{photometric} was not converted to RGB by its decoder")
    bits = int(dataset.BitsStored)
    return full_range(stored, bits, 8 if bits <= 8 else 16), "colour"


def _meta(dataset: FileDataset, frame: int) -> dict[str, str | float | int]:
    """Return facts that identify nobody: coded strings, spacings and counts, never free text."""
    named = {
        "modality": _text(dataset, "Modality"),
        "view_position": _text(dataset, "ViewPosition"),
        "body_part": _text(dataset, "BodyPartExamined"),
        "laterality": _text(dataset, "ImageLaterality") or _text(dataset, "Laterality"),
        "photometric": _text(dataset, "PhotometricInterpretation"),
    }
    # A code string has at most 16 capitals, digits, blanks and underscores; anything else is somebody's text.
    meta: dict[str, str | float | int] = {
        key: value for key, value in named.items() if value and re.fullmatch(r"[A-Z0-9_ ]{1,16}", value)
    }
    meta |= {"format": "DICOM", "frames": _frames(dataset)}
    meta["transfer_syntax"] = dataset.file_meta.TransferSyntaxUID.name
    spacing = dataset.get("PixelSpacing") or dataset.get("ImagerPixelSpacing")
    if spacing is not None and len(spacing) == 2:
        meta |= {"row_spacing": float(spacing[0]), "column_spacing": float(spacing[1])}
    return meta


def _frames(dataset: Dataset) -> int:
    """Return the number of frames; a missing, empty or zero value means one."""
    return int(dataset.get("NumberOfFrames") or 1)


def _text(dataset: Dataset, keyword: str) -> str | None:
    """Return a value (the first of several) as text without padding, None when missing or empty."""
    value = dataset.get(keyword)
    if value is not None and not isinstance(value, (str, bytes)) and hasattr(value, "__iter__"):
        value = next(iter(value), None)
    return (str(value).strip(" \0") or None) if value is not None else None


def _age_years(age: str | None) -> float | None:
    """Return years from a DICOM age string such as 045Y, 006M, 012W or 003D."""
    match = re.fullmatch(r"(\d{1,3})([YMWD])", age or "")
    if match is None:
        return None
    return round(int(match[1]) / {"Y": 1, "M": 12, "W": 52.1775, "D": 365.2425}[match[2]], 3)


def _unreadable(path: Source, error: BaseException) -> ImageReadError:
    """Turn a library's error into ours."""
    if isinstance(error, FileNotFoundError):
        return ImageReadError(str(path), "no such file")
    if isinstance(error, IsADirectoryError):
        return ImageReadError(str(path), "it is a folder, not an image")
    if isinstance(error, DisplayError):
        return ImageReadError(str(path), str(error))
    message = str(error).strip() or type(error).__name__
    if isinstance(error, AttributeError) and (missing := re.search(r"no attribute '(\w+)'", message)):
        return ImageReadError(str(path), f"its header has no {missing[1]}")
    # pydicom lists its decoders in lines of their own, and appends advice after a dash.
    message = message.removeprefix("Unable to decode as exceptions were raised by all available plugins:")
    message = " ".join(message.split(" - ")[0].split())
    return ImageReadError(str(path), f"damaged or truncated DICOM ({message[:200]})")
