"""Real radiographs in DICOM and a real `.npz`, against pydicom and NumPy alone."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
from pydicom import dcmread
from pydicom.pixels import apply_modality_lut, apply_voi_lut

from scanprior.data.readers import read_image, read_reference
from scanprior.data.readers.array import npz_members
from scanprior.data.readers.dicom import read_header


def test_every_real_file_equals_pydicom(real_data: Callable[[str], Path]) -> None:
    paths = sorted((real_data("dicom") / "images").glob("*.dcm"))
    assert len(paths) == 7
    for path in paths:
        dataset = dcmread(path)
        shown = apply_voi_lut(apply_modality_lut(dataset.pixel_array, dataset), dataset).astype(np.float64)
        # All of these have a window or 8 bits, no rescale, and unsigned pixels.
        assert "RescaleSlope" not in dataset and dataset.PixelRepresentation == 0
        assert "WindowWidth" in dataset or dataset.BitsStored == 8
        unit = shown / (2**dataset.BitsStored - 1)
        if dataset.PhotometricInterpretation == "MONOCHROME1":
            unit = 1 - unit
        image = read_image(path)
        top = 255 if dataset.BitsStored == 8 else 65535
        assert image.pixels.dtype == (np.uint8 if top == 255 else np.uint16)
        assert image.source_bits == dataset.BitsStored
        # Half a level is rounding. The decoder of lossy JPEG 2000 is the same library in both.
        assert np.abs(image.pixels[..., 0] - unit * top).max() <= 0.5 + 1e-6, path.name


def test_a_header_that_says_monochrome1_is_believed(real_data: Callable[[str], Path]) -> None:
    images = real_data("dicom") / "images"
    plain = read_image(next(images.glob("1.2.276*.dcm"))).pixels
    inverted = read_image(images / "Fake_MONOHR1.dcm").pixels
    assert np.array_equal(inverted, 255 - plain)


def test_real_headers(real_data: Callable[[str], Path]) -> None:
    folder = real_data("dicom")
    with (folder / "labels.csv").open() as stream:
        for row in csv.DictReader(stream):
            header, image = read_header(folder / row["image"]), read_image(folder / row["image"])
            assert (header.modality, header.body_part or "") == (row["modality"], row["body_part"])
            assert (header.rows, header.columns) == (int(row["rows"]), int(row["cols"]))
            assert image.pixels.shape == (header.rows, header.columns, 1)
            assert image.meta["photometric"] == row["photometric"]
            assert image.meta["transfer_syntax"] in (row["transfer_syntax"], "Implicit VR Little Endian")
            assert row["patient"] not in str(image.meta)


def test_a_real_npz(real_data: Callable[[str], Path]) -> None:
    path = real_data("pneumoniamnist") / "pneumoniamnist.npz"
    members = npz_members(path)
    with np.load(path, allow_pickle=False) as arrays:
        assert members == {key: (arrays[key].shape, arrays[key].dtype.name) for key in arrays.files}
        images = arrays["test_images"]
    for index in (0, 311, len(images) - 1):
        pixels = read_reference(f"{path.name}[test_images][{index}]", path.parent).pixels
        assert np.array_equal(pixels[..., 0], images[index])
