"""ISIC 2019 and APTOS 2019: lesions that stay together, and grades that keep their order."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from data import made_datasets as made
from data.made_datasets import rows
from data.made_files import pictures, text
from scanprior.data.check import check, label_table
from scanprior.data.index import index
from scanprior.data.layouts.aptos import GRADES
from scanprior.data.split import assign_splits
from scanprior.data.store import prepare


def test_isic2019(tmp_path: Path) -> None:
    root = made.isic2019(tmp_path)
    found = index(root)
    table = rows(found)
    assert table["label"].to_dict() == {
        "ISIC_0000030_downsampled": "nv", "ISIC_0024306": "nv", "ISIC_0053453": "scc", "ISIC_0053454": "scc",
        "ISIC_0000013_downsampled": "mel",
    }  # fmt: skip
    assert table["patient"].tolist()[1:] == ["HAM_0000550", "BCN_0003690", "BCN_0003690", "MSK4_0011169"]
    assert pd.isna(table["patient"].iloc[0]), "an image without a lesion is alone"
    divided = assign_splits(found.subset([0, 1, 2, 3, 3, 3]), fractions=(0.5, 0, 0.5), stratify=False)
    assert divided.frame.groupby("patient")["split"].nunique().eq(1).all()
    assert table["site"].tolist()[1:] == ["HAM", "BCN", "BCN", "MSK"] and pd.isna(table["site"].iloc[0])
    assert table["age"].tolist()[:3] == [55, 45, 80] and table["sex"].tolist()[:3] == ["F", "M", "M"]
    assert table["localization"]["ISIC_0053453"] == "head/neck" and "split" not in table.columns
    for part in (
        "a patient here is a lesion", "1 image of HAM10000 among them", "1 training image without a lesion",
        "1 image of ISIC_2019_Training_GroundTruth.csv not there", "1 image on disk without a row left out",
    ):  # fmt: skip
        assert part in found.found, part
    outer = root / "ISIC_2019_Training_Input"
    for image in (outer / outer.name).glob("*.jpg"):
        image.rename(outer / image.name)
    (root / "ISIC_2019_Training_Metadata.csv").unlink()
    bare = index(root)
    assert (
        len(bare) == 5 and "patient" not in bare.frame.columns and "pictures of one lesion may" in bare.found
    )
    assert rows(bare)["site"]["ISIC_0024306"] == "HAM", "by its number"


def test_isic2019_shares_images_with_ham10000(tmp_path: Path) -> None:
    first = index(made.ham10000(tmp_path / "ham")).frame
    root = made.isic2019(tmp_path / "isic")
    path = root / "ISIC_2019_Training_GroundTruth.csv"
    pictures(
        root / "ISIC_2019_Training_Input" / "ISIC_2019_Training_Input", "ISIC_0027419.jpg", "ISIC_0034321.jpg"
    )
    with path.open("a") as file:
        file.write("ISIC_0027419,0,0,0,0,1,0,0,0,0\nISIC_0034321,0,0,0,0,1,0,0,0,0\n")
    found = index(root)
    shared = set(rows(found).index) & {Path(image).stem for image in first["image"]}
    assert shared == {"ISIC_0027419"} and "2 images of HAM10000 among them" in found.found
    assert pd.isna(rows(found)["site"]["ISIC_0034321"]), "one number beyond the last of HAM10000"


def test_isic2019_with_its_test_images(tmp_path: Path) -> None:
    root = made.isic2019(tmp_path)
    pictures(root / "ISIC_2019_Test_Input", "ISIC_0034321.jpg", "ISIC_0034322.jpg")
    text(
        root / "ISIC_2019_Test_GroundTruth.csv",
        f"{made.ISIC2019_HEADER},score_weight,validation_weight",
        "ISIC_0034321,0,0,1,0,0,0,0,0,0,1,0",
        "ISIC_0034322,0,0,0,0,0,0,0,0,1,1,0",
    )
    text(
        root / "ISIC_2019_Test_Metadata.csv",
        "image,age_approx,anatom_site_general,sex",
        "ISIC_0034321,75,oral,male",
    )
    found = index(root)
    table = rows(found)
    assert table["split"].tolist() == ["train"] * 5 + ["test"] * 2
    assert table["label"]["ISIC_0034321"] == "bcc" and pd.isna(table["label"]["ISIC_0034322"])
    assert table["age"]["ISIC_0034321"] == 75 and "unk" not in found.classes
    assert "1 test image of UNK without a label" in found.found


def test_aptos(tmp_path: Path) -> None:
    found = index(made.aptos(tmp_path))
    assert found.classes == list(GRADES) == ["no_dr", "mild", "moderate", "severe", "proliferative_dr"]
    table = rows(found)
    assert all(label == GRADES[int(name[0])] for name, label in table["label"].items())
    assert all(order == int(name[0]) for name, order in table["label_order"].items())
    assert "split" not in table.columns and len(table) == 10
    for part in ("1 image of train.csv not there", "2 unlabelled test images left out", "there twice"):
        assert part in found.found, part
    assert index(found.save(tmp_path / "m" / "manifest.csv"), root=tmp_path).classes == list(GRADES)


def test_aptos_grades_keep_their_order_in_a_store(tmp_path: Path) -> None:
    store = prepare(index(made.aptos(tmp_path / "data")), tmp_path / "store", size=8, workers=0)
    assert store.manifest().classes == list(GRADES)
    assert [entry["label"] for entry in label_table(store.manifest())] == list(GRADES)


def test_aptos_copy_that_divides_the_graded_images(tmp_path: Path) -> None:
    found = index(made.aptos_divided(tmp_path / "aptos2019"))
    table = rows(found)
    assert found.layout == "aptos2019" and found.classes == list(GRADES)
    assert table["split"].to_dict() == {
        "0a": "train", "1a": "train", "4a": "train", "2b": "val", "3c": "test", "0c": "test",
    }  # fmt: skip
    assert table["image"]["2b"] == "val_images/val_images/2b.png"
    assert "the division is this copy's, not the organisers'" in found.found
    assert index(tmp_path).frame["image"][0] == "aptos2019/train_images/train_images/0a.png"
    for name in ("valid.csv", "test.csv"):
        (tmp_path / "aptos2019" / name).unlink()
    assert "split" not in index(tmp_path).frame.columns


def test_aptos_photographs_that_are_there_twice_are_found(tmp_path: Path) -> None:
    root = made.aptos(tmp_path)
    noise = np.random.default_rng(0).integers(0, 255, (12, 40, 40, 3), dtype=np.uint8)
    for number, image in enumerate(sorted((root / "train_images").iterdir())):
        Image.fromarray(noise[number]).save(image)
    shutil.copy(root / "train_images" / "0ac1434d8d7.png", root / "train_images" / "3bc1434d8d7.png")
    (group,) = check(index(root), workers=0).exact
    assert sorted(group["labels"]) == ["no_dr", "severe"] and group["conflicting_labels"]
