"""Raw images of the JSRT database: read as they are meant to be seen, or refused in a sentence."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data import made_dicom
from scanprior.data.index import index
from scanprior.data.readers import is_image_path, read_image
from scanprior.data.readers.raw import RAW_BYTES, SIDE
from scanprior.errors import ImageReadError


def ramp() -> np.ndarray:
    """Return every 12-bit value, in rows whose ends differ, so that order and orientation show."""
    return (np.arange(SIDE * SIDE, dtype=np.uint32) % 4096).astype(np.uint16).reshape(SIDE, SIDE)


def test_values_are_big_endian_and_inverted(tmp_path: Path) -> None:
    stored = ramp()
    path = tmp_path / "JPCLN001.IMG"
    stored.astype(">u2").tofile(path)
    assert path.stat().st_size == RAW_BYTES and is_image_path(path)
    read = read_image(path)
    assert read.pixels.shape == (SIDE, SIDE, 1) and read.pixels.dtype == np.uint16 and read.source_bits == 12
    assert read.meta == {"format": "JSRT", "row_spacing": 0.175, "column_spacing": 0.175}
    expected = [round((4095 - int(value)) * 65535 / 4095) for value in stored[:2, :5].ravel()]
    np.testing.assert_array_equal(read.pixels[:2, :5, 0].ravel(), expected)
    assert read.pixels.max() == 65535 and read.pixels.min() == 0, "low is bright"
    assert index(path).frame["image"].tolist() == ["JPCLN001.IMG"]


def test_start_like_dicom_without_preamble_is_still_raw(tmp_path: Path) -> None:
    stored = ramp()
    stored[0, :2] = 8, 8  # group 8, element 8
    stored.astype(">u2").tofile(tmp_path / "JPCNN001.IMG")
    assert read_image(tmp_path / "JPCNN001.IMG").meta["format"] == "JSRT"


@pytest.mark.parametrize("length", [1, 348, RAW_BYTES - 1, RAW_BYTES + 1])
def test_another_length_is_refused(tmp_path: Path, length: int) -> None:
    path = tmp_path / "brain.img"
    path.write_bytes(b"\1" * length)
    with pytest.raises(
        ImageReadError, match=rf"raw \.img file of {length} bytes, where only JSRT images of 8388608"
    ):
        read_image(path)


def test_more_than_12_bits_is_refused(tmp_path: Path) -> None:
    stored = ramp()
    stored.astype("<u2").tofile(tmp_path / "swapped.img")
    with pytest.raises(ImageReadError, match="a value of 65295, above the 12 bits"):
        read_image(tmp_path / "swapped.img")


def test_content_decides_before_the_suffix(tmp_path: Path) -> None:
    Image.fromarray(np.eye(8, dtype=np.uint8)).save(tmp_path / "a.png")
    (tmp_path / "a.png").rename(tmp_path / "a.img")
    assert read_image(tmp_path / "a.img").meta["format"] == "PNG"
    made_dicom.save(made_dicom.dataset(np.eye(8, dtype=np.uint8)), tmp_path / "b.dcm")
    shutil.move(tmp_path / "b.dcm", tmp_path / "b.img")
    assert read_image(tmp_path / "b.img").meta["format"] == "DICOM"
    table = index(tmp_path).frame.set_index("image")
    assert table["modality"].notna().to_dict() == {"a.img": False, "b.img": True}, "its header is read"
