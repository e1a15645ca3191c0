"""Small DICOM files of every kind, made for tests; nothing in them is real."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydicom import config, uid
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate

NATIVE = (
    uid.ImplicitVRLittleEndian,
    uid.ExplicitVRLittleEndian,
    uid.ExplicitVRBigEndian,
    uid.DeflatedExplicitVRLittleEndian,
)
LOSSLESS = (
    uid.RLELossless,
    uid.JPEG2000Lossless,
    uid.JPEGLSLossless,
    uid.JPEGLossless,
    uid.JPEGLosslessSV1,
    uid.HTJ2KLossless,
)
LOSSY = (uid.JPEGBaseline8Bit, uid.JPEGExtended12Bit, uid.JPEG2000, uid.JPEGLSNearLossless)


def grey_values(bits: int, *, signed: bool = False, shape: tuple[int, ...] = (48, 64), seed: int = 0):
    """Smooth values with some noise over the whole range of `bits` bits."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[0 : shape[-2], 0 : shape[-1]]
    wave = 0.5 + 0.5 * np.sin(x / 9) * np.cos(y / 7)
    wave = np.broadcast_to(wave, shape) * 0.9 + random.random(shape) * 0.1
    values = np.rint(wave * (2**bits - 1)).astype(np.int64) - (2 ** (bits - 1) if signed else 0)
    return values.astype(f"{'i' if signed else 'u'}{1 if bits <= 8 else 2 if bits <= 16 else 4}")


def dataset(
    pixels: NDArray[Any],
    *,
    bits: int | None = None,
    syntax: uid.UID = uid.ExplicitVRLittleEndian,
    photometric: str = "MONOCHROME2",
    frames: int | None = None,
    **elements: Any,
) -> Dataset:
    """A dataset with pixels (H, W), (H, W, 3) or (frames, H, W), not yet compressed."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = uid.SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = "1.2.3.4"
    meta.TransferSyntaxUID = syntax
    made = Dataset()
    made.file_meta, made.preamble = meta, b"\0" * 128
    made.SOPClassUID, made.SOPInstanceUID = meta.MediaStorageSOPClassUID, "1.2.3.4"
    made.PatientName, made.PatientID, made.Modality = "Planted^Name", "ID-PLANTED", "CR"
    made.StudyInstanceUID, made.SeriesInstanceUID = "1.2.3", "1.2.3.1"
    colour = pixels.ndim == 3 and frames is None
    made.Rows, made.Columns = pixels.shape[:2] if colour else pixels.shape[-2:]
    made.SamplesPerPixel = 3 if colour else 1
    if colour:
        made.PlanarConfiguration = 0
    if frames is not None:
        made.NumberOfFrames = frames
    made.PhotometricInterpretation = photometric
    made.BitsAllocated = 8 * pixels.dtype.itemsize
    made.BitsStored = bits or made.BitsAllocated
    made.HighBit = made.BitsStored - 1
    made.PixelRepresentation = int(pixels.dtype.kind == "i")
    little = syntax != uid.ExplicitVRBigEndian
    made.PixelData = pixels.astype(pixels.dtype.newbyteorder("<" if little else ">")).tobytes()
    if len(made.PixelData) % 2:
        made.PixelData += b"\0"
    made["PixelData"].VR = "OB" if made.BitsAllocated <= 8 and syntax != uid.ImplicitVRLittleEndian else "OW"
    for keyword, value in elements.items():
        setattr(made, keyword, value)
    return made


def compress(made: Dataset, syntax: uid.UID, pixels: NDArray[Any]) -> Dataset:
    """Replace the pixel data by its compressed form."""
    if syntax in (uid.RLELossless, uid.JPEG2000Lossless, uid.JPEGLSLossless):
        made.compress(syntax, pixels, generate_instance_uid=False)
        return made
    if syntax == uid.JPEG2000:
        made.compress(syntax, pixels, generate_instance_uid=False, j2k_cr=[4])
        return made
    if syntax == uid.JPEGLSNearLossless:
        made.compress(syntax, pixels, generate_instance_uid=False, jls_error=2)
        return made
    bits = int(made.BitsStored)
    if syntax == uid.JPEGBaseline8Bit:
        buffer = BytesIO()
        Image.fromarray(pixels).save(buffer, "JPEG", quality=90)
        stream = buffer.getvalue()
    elif syntax == uid.JPEGExtended12Bit:
        stream = imagecodecs.jpeg8_encode(pixels, level=95, bitspersample=bits)
    elif syntax == uid.HTJ2KLossless:
        stream = imagecodecs.htj2k_encode(pixels, reversible=True)
    else:
        predictor = 1 if syntax == uid.JPEGLosslessSV1 else 4
        stream = imagecodecs.jpeg8_encode(pixels, bitspersample=bits, lossless=True, predictor=predictor)
    made.PixelData = encapsulate([stream])
    made["PixelData"].VR, made["PixelData"].is_undefined_length = "OB", True
    made.file_meta.TransferSyntaxUID = syntax
    return made


def lut_item(table: NDArray[Any], first: int, bits: int) -> Dataset:
    """An item of a Modality or VOI LUT Sequence."""
    item = Dataset()
    item.add_new("LUTDescriptor", "US" if first >= 0 else "SS", [len(table), first, bits])
    item.add_new("LUTData", "US", [int(value) for value in table])
    return item


def save(made: Dataset, path: Path) -> Path:
    """Write a dataset whatever its values."""
    before = config.settings.writing_validation_mode
    config.settings.writing_validation_mode = config.IGNORE
    try:
        made.save_as(path, enforce_file_format=True)
    finally:
        config.settings.writing_validation_mode = before
    return path
