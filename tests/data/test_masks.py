"""Masks: read without new values, prepared beside their images, moved as their images are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from scanprior.data.fitting import fit_mask, fit_pixels, unfit_maps
from scanprior.data.manifest import Manifest
from scanprior.data.masks import Masks, prepare_masks
from scanprior.data.readers import read_mask
from scanprior.data.store import prepare
from scanprior.data.transforms import Augmentation, Preprocessing, augment_with_masks
from scanprior.errors import DataError, ImageReadError


def save(path: Path, values: np.ndarray, palette: list[int] | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(values.astype(np.uint8))
    if palette is not None:
        image.putpalette(palette)
    image.save(path)


def square(top: int, left: int, side: int = 8, size: int = 32, value: int = 255) -> np.ndarray:
    mask = np.zeros((size, size), np.uint8)
    mask[top : top + side, left : left + side] = value
    return mask


# reading


def test_values_stay_whatever_the_file(tmp_path: Path) -> None:
    labels = square(2, 3, value=1) + square(20, 20, value=3)
    save(tmp_path / "labels.png", labels)
    save(tmp_path / "colours.png", labels, palette=[0, 0, 0, 255, 0, 0, 0, 255, 0, 0, 0, 255])
    save(tmp_path / "mask.gif", square(2, 3))
    assert (read_mask("labels.png", tmp_path) == labels).all()
    assert (read_mask("colours.png", tmp_path) == labels).all()  # the number of the colour, not the colour
    assert ((read_mask("mask.gif", tmp_path) > 0) == (square(2, 3) > 0)).all()


def test_several_files_are_one_mask(tmp_path: Path) -> None:
    save(tmp_path / "left.png", square(0, 0))
    save(tmp_path / "right.png", square(4, 4))
    assert (read_mask("left.png|right.png", tmp_path) == np.maximum(square(0, 0), square(4, 4))).all()
    save(tmp_path / "small.png", square(0, 0, size=16))
    with pytest.raises(ImageReadError, match=r"16 x 16 pixels cannot be joined to one of 32 x 32"):
        read_mask("left.png|small.png", tmp_path)


def test_masks_that_are_none(tmp_path: Path) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(
        tmp_path / "c.png"
    )
    Image.fromarray(np.full((8, 8), 700, np.uint16)).save(tmp_path / "deep.png")
    for name, said in (("c.png", "in colour"), ("deep.png", "the value 700"), ("none.png", "no such file")):
        with pytest.raises(ImageReadError, match=said):
            read_mask(name, tmp_path)


# placing


@pytest.mark.parametrize("fit", ["squash", "pad", "crop"])
@pytest.mark.parametrize(("height", "width"), [(40, 64), (64, 40), (48, 48)])
def test_a_mask_lies_where_its_image_does(fit: str, height: int, width: int) -> None:
    mask = np.zeros((height, width), np.uint8)
    mask[12:30, 14:34] = 255
    image = fit_pixels(mask[..., None], size=32, channels=1, depth=8, fit=fit)  # type: ignore[arg-type]
    fitted = fit_mask(mask, size=32, fit=fit)  # type: ignore[arg-type]
    assert fitted.shape == (1, 32, 32) and set(np.unique(fitted)) == {0, 255}
    differs = (image > 127) != (fitted > 127)
    assert differs.mean() < 0.06  # the edge alone


@pytest.mark.parametrize("fit", ["squash", "pad"])
def test_predictions_come_back_to_the_original(fit: str) -> None:
    mask = np.zeros((70, 110), np.uint8)
    mask[20:50, 30:80] = 255
    fitted = fit_mask(mask, size=64, fit=fit)  # type: ignore[arg-type]
    back = unfit_maps((fitted > 0).astype(np.float32), height=70, width=110, fit=fit)[0] > 0.5  # type: ignore[arg-type]
    assert back.shape == mask.shape
    assert 2 * (back & (mask > 0)).sum() / (back.sum() + (mask > 0).sum()) > 0.95


def test_a_crop_sees_the_centre_alone() -> None:
    back = unfit_maps(np.ones((2, 8, 8), np.float32), height=10, width=20, fit="crop")
    assert back.shape == (2, 10, 20)
    assert (back[:, :, 5:15] == 1).all() and not back[:, :, :5].any() and not back[:, :, 15:].any()


def test_images_and_masks_move_together() -> None:
    masks = torch.from_numpy(np.stack([square(5 * i, 3 * i, side=12, size=48)[None] for i in range(6)]))
    config = Augmentation(crop_scale=(0.5, 1.0), rotate=20, translate=0.1, zoom=(0.8, 1.2), hflip=0.5)
    pre = Preprocessing(size=32, channels=1, mean=[0.0], std=[1.0])
    arguments = {"seed": 3, "purpose": "augment", "positions": np.arange(6)}
    shown, moved = augment_with_masks(masks, masks, config, pre, **arguments)  # type: ignore[arg-type]
    assert moved.shape == (6, 1, 32, 32) and moved.dtype == torch.uint8
    assert set(moved.unique().tolist()) == {0, 255}
    assert ((shown > 0.5) == (moved > 0)).float().mean() > 0.97
    assert not torch.equal(moved[0], moved[1])
    one, alone = augment_with_masks(
        masks[2:3],
        masks[2:3],
        config,
        pre,
        **{**arguments, "positions": np.arange(2, 3)},  # type: ignore[arg-type]
    )
    assert torch.equal(alone[0], moved[2]) and torch.equal(one[0], shown[2])


# preparing


def made(root: Path, masks: list[str | None], **columns: list[str | None]) -> Manifest:
    draw = np.random.default_rng(0)
    names = [f"{number}.png" for number in range(len(masks))]
    for name in names:
        save(root / name, draw.integers(0, 255, (32, 32)))
    frame = pd.DataFrame({"image": names, "mask": masks, **columns})
    return Manifest(frame if not columns else frame.drop(columns="mask"), root)


def prepared(root: Path, manifest: Manifest, name: str = "store") -> Masks:
    store = prepare(manifest, root / name, size=16, workers=0)
    masks = prepare_masks([store], lambda s, m: root / f"{name}-{m.name}", workers=0)
    assert masks is not None
    return masks


def test_masks_are_found_by_the_rows_of_their_images(tmp_path: Path) -> None:
    for number in (0, 2, 3):
        save(tmp_path / f"m{number}.png", square(8 * number, 0))
    masks = prepared(tmp_path, made(tmp_path, ["m0.png", None, "m2.png", "m3.png", "gone.png"]))
    assert masks.has.tolist() == [True, False, True, True, False]
    assert masks.left_out == [{"mask": "gone.png", "reason": "no such file"}]
    rows = np.array([3, 0, 2])
    found = masks.read(rows)
    for place, row in enumerate(rows):
        assert (found[place] == fit_mask(square(8 * row, 0), size=16, fit="squash")).all()
    (found,) = masks.values(rows)
    assert found.values == [255] and len(found.files) == len(found.present) == len(rows)
    with pytest.raises(DataError, match="row 1 has no mask"):
        masks.read(np.array([0, 1]))


def test_a_mask_of_another_shape_is_left_out(tmp_path: Path) -> None:
    save(tmp_path / "half.png", square(0, 0, size=16))
    save(tmp_path / "wide.png", np.zeros((16, 32)))
    masks = prepared(tmp_path, made(tmp_path, ["half.png", "wide.png"]))
    assert masks.has.tolist() == [True, False]
    assert "32 x 16 pixels and its image 32 x 32" in masks.left_out[0]["reason"]


def test_a_column_for_every_structure(tmp_path: Path) -> None:
    for name in ("h0", "h1", "l0"):
        save(tmp_path / f"{name}.png", square(0, 0))
    columns = {"mask:heart": ["h0.png", "h1.png"], "mask:lungs": ["l0.png", None]}
    masks = prepared(tmp_path, made(tmp_path, [None, None], **columns))
    assert masks.names == ["mask:heart", "mask:lungs"] and masks.has.tolist() == [True, False]
    assert masks.read(np.array([0])).shape == (1, 2, 16, 16)
    assert prepare_masks([], lambda s, m: tmp_path) is None
