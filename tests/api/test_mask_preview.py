"""mask-preview draws what would be hidden, and says what is wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from api.conftest import Command
from scanprior import api


def test_a_picture_of_every_strength(tmp_path: Path, scanprior: Command) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 64, 64)).astype(np.uint8)
    pixels[:, :, :32] = 90  # the left half holds nothing
    images = tmp_path / "images"
    images.mkdir()
    for number, image in enumerate(pixels):
        Image.fromarray(image).save(images / f"{number}.png")
    (images / "broken.png").write_text("no picture")
    line = ["mask-preview", images, "--out", tmp_path / "out" / "masks.png", "--size", 64, "--unit", 16]
    said = scanprior(*line, "--betas", "-8,0,8", "--ratio", 0.5, "--images", 4)
    assert said.code == 0 and "masks.png" in said.out and "left out" in said.out + said.err
    sheet = np.asarray(Image.open(tmp_path / "out" / "masks.png"))
    assert sheet.shape == (18 + 3 * 131, 5 * 128 + 4 * 3 + 6)  # header, gaps; 64 px are drawn twice as large
    for column, (left, right) in enumerate(((True, False), (None, None), (False, True))):
        start = 3 + (2 + column) * 131
        cell = sheet[18:146, start : start + 128]
        hidden = np.stack([(cell[:, half] == 128).mean() for half in (slice(0, 64), slice(64, 128))])
        if left is not None:
            assert (hidden > 0.95).tolist() == [left, right]
    first = (tmp_path / "out" / "masks.png").read_bytes()
    assert scanprior(*line, "--betas", "-8,0,8", "--ratio", 0.5, "--images", 4).code == 0
    assert (tmp_path / "out" / "masks.png").read_bytes() == first, "the same seed draws the same masks"


@pytest.mark.parametrize(
    ("more", "what"),
    [
        (["--measure", "foo"], "measure: 'foo'"),
        (["--size", 100], "100x100 px image is not divisible by mask units of 32"),
        (["--betas", "1,a"], "--betas 1,a: give numbers"),
        (["--ratio", 1.5], "ratio=1.5"),
        (["--images", 0], "images=0"),
    ],
)
def test_what_is_wrong_is_said(
    phantoms: Path, tmp_path: Path, more: list[object], what: str, scanprior: Command
) -> None:
    said = scanprior("mask-preview", phantoms, "--out", tmp_path / "m.png", *more)
    assert said.code == 2 and what in said.err and not (tmp_path / "m.png").exists()


def test_no_image_at_all(tmp_path: Path, scanprior: Command) -> None:
    (tmp_path / "empty").mkdir()
    said = scanprior("mask-preview", tmp_path / "empty", "--out", tmp_path / "m.png")
    assert said.code == 2 and "no image" in said.err


def test_it_is_a_python_function_too(phantoms: Path, tmp_path: Path) -> None:
    made = api.mask_preview(
        phantoms, out=tmp_path / "m.png", size=64, unit=16, images=2, guidance={"bins": 16}
    )
    assert made == tmp_path / "m.png" and Image.open(made).width > 400
