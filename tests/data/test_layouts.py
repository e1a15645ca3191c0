"""Every known dataset is recognised as itself, and says what is in it and what is missing."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from data import made_datasets as made
from data.made_datasets import MADE, rows
from data.made_files import pictures, text
from scanprior.data.index import index, layouts
from scanprior.data.layouts import LAYOUTS
from scanprior.data.layouts.chexpert import OBSERVATIONS
from scanprior.data.layouts.kvasir import CLASSES as KVASIR
from scanprior.data.layouts.nih import FINDINGS
from scanprior.data.manifest import Manifest
from scanprior.errors import DataError

WITHOUT_PATIENTS = {"busi", "isic2018-task1", "kvasir", "kvasir-seg", "covid-radiography", "aptos2019"}
SOME_PATIENTS = {"isic2018", "isic2019"}
"""Whose lesions are published of some of the images."""
ONLY_MASKS = {"isic2018-task1", "kvasir-seg"}


def test_every_layout_has_its_made_folder() -> None:
    assert set(MADE) == set(LAYOUTS) and set(LAYOUTS) < set(layouts())


@pytest.mark.parametrize("name", MADE)
def test_a_folder_is_recognised_as_itself_and_nothing_else(tmp_path: Path, name: str) -> None:
    root = MADE[name](tmp_path)
    assert [known.name for known in LAYOUTS.values() if known.detect(root)] == [name]
    found = index(root)
    assert found.layout == found.name == name and found.root == root and f"{len(found)} image" in found.found
    assert all((root / image).is_file() for image in found.frame["image"]) and found.frame["image"].is_unique
    masks = found.frame.get("mask", pd.Series(dtype="str")).dropna()
    assert all((root / part).is_file() for mask in masks for part in mask.split("|"))
    assert (found.task is None) == (name in ONLY_MASKS), name
    if name in WITHOUT_PATIENTS:
        assert "patient" not in found.frame.columns and "no patient identifiers are published" in found.found
    elif name not in SOME_PATIENTS:
        assert not found.frame["patient"].isna().any()
    pd.testing.assert_frame_equal(index(root, layout=name).frame, found.frame)
    assert Manifest.load(found.save(tmp_path / "m" / "manifest.parquet")).fingerprint() == found.fingerprint()
    assert index(root, label_columns=[]).task is None


@pytest.mark.parametrize("name", MADE)
def test_another_folder_is_refused_by_name(tmp_path: Path, name: str) -> None:
    pictures(tmp_path, "a/1.png", "b/2.png")
    text(tmp_path / "train.txt", "a/1.png 0")
    assert not LAYOUTS[name].detect(tmp_path) and not LAYOUTS[name].detect(tmp_path / "none")
    with pytest.raises(DataError, match=r"not .*; (it has|there is no)|not 'patient file"):
        index(tmp_path, layout=name)
    assert index(tmp_path).layout == "class-folders"


@pytest.mark.parametrize("name", MADE)
def test_the_users_own_table_comes_first(tmp_path: Path, name: str) -> None:
    root = MADE[name](tmp_path)
    image = index(root).frame["image"][0]
    text(root / "labels.csv", "image,label", f"{image},mine")
    assert index(root).layout == "table" and index(root).classes == ["mine"]


def test_detection_looks_at_few_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, make in MADE.items():
        root = make(tmp_path / name)

        def refused(*_: object, **__: object) -> None:
            raise AssertionError("detection walked the tree")

        with monkeypatch.context() as patch:
            patch.setattr("os.walk", refused)
            patch.setattr(Path, "rglob", refused)
            assert LAYOUTS[name].detect(root)


def test_two_datasets_in_one_folder_are_not_chosen_between(tmp_path: Path) -> None:
    pictures(
        tmp_path, "CXR_png/CHNCXR_0001_0.png", "CXR_png/MCUCXR_0001_0.png", "masks/CHNCXR_0001_0_mask.png"
    )
    with pytest.raises(DataError, match="fits the layouts shenzhen and montgomery; name"):
        index(tmp_path)
    chosen = index(tmp_path, layout="shenzhen")
    assert chosen.frame["mask"].tolist() == ["masks/CHNCXR_0001_0_mask.png"]
    assert "1 image of the other set left out" in chosen.found


def test_nih(tmp_path: Path) -> None:
    found = index(made.nih(tmp_path))
    table = rows(found)
    assert found.label_columns == list(FINDINGS) and len(found) == 4
    assert table.loc["00000001_000", ["Cardiomegaly", "Emphysema", "Mass"]].tolist() == [1, 1, 0]
    assert (table.loc["00000001_001", list(FINDINGS)] == 0).all(), "No Finding is 0 everywhere"
    assert table["patient"].tolist() == ["00000001", "00000001", "00000002", "00000003"]
    assert table["split"].tolist() == ["train", "train", "test", "test"]
    assert table["age"].tolist()[:2] == [58, 59] and table["age"].isna().tolist() == [
        False,
        False,
        True,
        False,
    ]
    assert table["age"]["00000003_000"] == 0.5 and table["view"].tolist() == ["PA", "PA", "AP", "AP"]
    assert table["follow_up"].tolist() == [0, 1, 0, 0] and table["sex"].tolist() == ["M", "M", "F", "F"]
    assert found.found == (
        "ChestX-ray14: 4 images of 3 patients; 14 findings (Atelectasis, Cardiomegaly, Consolidation, Edema, Effusion, "
        "Emphysema, Fibrosis, Hernia and 6 more); splits train 2, test 2; official test split; 1 image of "
        "Data_Entry_2017.csv not there and left out; 1 image on disk without a row left out; 1 age above 110 years "
        "or unreadable taken as missing"
    )


def test_nih_with_the_later_table_one_list_and_one_folder(tmp_path: Path) -> None:
    root = made.nih(tmp_path)
    for archive in ("images_001", "images_002"):
        shutil.copytree(root / archive / "images", root / "images", dirs_exist_ok=True)
        shutil.rmtree(root / archive)
    later = (root / "Data_Entry_2017.csv").read_text().replace("411Y", "41").replace("Gender", "Sex")
    (root / "Data_Entry_2017_v2020.csv").write_text(later)
    (root / "train_val_list.txt").unlink()
    table = rows(index(root))
    assert table["age"]["00000002_000"] == 41 and table["sex"]["00000002_000"] == "F"
    assert table["image"]["00000002_000"] == "images/00000002_000.png"
    assert table["split"].tolist() == ["train", "train", "test", "test"], "the lists complete each other"
    (root / "test_list.txt").unlink()
    bare = index(root)
    assert "split" not in bare.frame.columns and "no official split" in bare.found
    text(root / "train_val_list.txt", "00000001_000.png")
    text(root / "test_list.txt", "00000001_000.png")
    with pytest.raises(DataError, match=r"'00000001_000' is in train_val_list\.txt and in test_list\.txt"):
        index(root)


@pytest.mark.parametrize("name", ["CheXpert-v1.0-small", "CheXpert-v1.0"])
def test_chexpert(tmp_path: Path, name: str) -> None:
    root = made.chexpert(tmp_path, name)
    found = index(root)
    assert found.label_columns == list(OBSERVATIONS) and found.frame["split"].tolist() == [
        "train",
        "train",
        "val",
        "test",
    ]
    first, lateral, valid, test = (found.frame.iloc[row] for row in range(4))
    assert first["image"] == f"{name}/train/patient00001/study1/view1_frontal.jpg"
    assert (first["patient"], first["study"]) == ("patient00001", "patient00001/study1")
    assert first["No Finding"] == 1 and first["Pneumothorax"] == 0 and np.isnan(first["Edema"])
    assert lateral["Edema"] == -1 and lateral["Lung Opacity"] == 1 and np.isnan(lateral["No Finding"])
    assert [first["view"], lateral["view"]] == ["AP", "LATERAL"] and [first["sex"], lateral["sex"]] == [
        "F",
        "M",
    ]
    assert valid["Support Devices"] == 1 and valid["Edema"] == 0
    assert test["Edema"] == 1 and test["Support Devices"] == 0, "columns are found by name"
    assert "5 uncertain labels kept as -1 (see task.uncertain)" in found.found
    assert "18 not mentioned and missing (see data.blank_findings)" in found.found
    assert "1 lateral image among them" in found.found
    assert "1 image of train.csv not there and left out" in found.found
    inside = index(root / name)
    assert (
        inside.layout == "chexpert"
        and inside.frame["image"][0] == "train/patient00001/study1/view1_frontal.jpg"
    )


@pytest.mark.parametrize("folder", ["", "chexpertchestxrays-u20210408"])
def test_chexpert_as_it_is_handed_out_now(tmp_path: Path, folder: str) -> None:
    (home := tmp_path / "chexpertchestxrays-u20210408").mkdir()
    made.chexpert(home)
    found = index(tmp_path if folder else home)
    place = f"{folder}/CheXpert-v1.0-small" if folder else "CheXpert-v1.0-small"
    assert found.layout == "chexpert" and len(found) == 4
    assert found.frame["image"][0] == f"{place}/train/patient00001/study1/view1_frontal.jpg"
    (home / "CheXpert-v1.0-small" / "train").rename(home / "CheXpert-v1.0 batch 2 (train 1)")
    assert index(home).frame["image"].str.startswith("CheXpert-v1.0 batch 2 (train 1)/patient0000").sum() == 2


def test_chexpert_by_patient_and_by_view(tmp_path: Path) -> None:
    """A table of the frontal images alone, as the documentation makes it."""
    found = index(made.chexpert(tmp_path))
    frontal = found.subset((found.frame["view"] != "LATERAL").to_numpy())
    kept = index(frontal.save(tmp_path / "frontal.parquet"))
    assert kept.frame["view"].tolist()[:2] == ["AP", "AP"] and pd.isna(kept.frame["view"][2])
    assert kept.label_columns == list(OBSERVATIONS) and kept.frame["split"].tolist() == [
        "train",
        "val",
        "test",
    ]
    assert all((kept.root / image).is_file() for image in kept.frame["image"])


def test_chexpert_in_batches_and_with_unlabelled_test(tmp_path: Path) -> None:
    root = made.chexpert(tmp_path, "CheXpert-v1.0")
    home, tables = root / "CheXpert-v1.0", root / "CheXpert-v1.0 batch 1 (validate & csv)"
    for number, patient in ((2, "patient00001"), (3, "patient00002")):
        batch = root / f"CheXpert-v1.0 batch {number} (train {number - 1})"
        shutil.copytree(home / "train" / patient, batch / patient)
    (home / "test_labels.csv").write_text("Path\ntest/patient64741/study1/view1_frontal.jpg\n")
    (home / "test_labels.csv").rename(home / "test.csv")
    shutil.rmtree(home / "train")
    home.rename(tables)
    found = index(root)
    assert found.layout == "chexpert" and found.frame["image"].tolist()[:2] == [
        "CheXpert-v1.0 batch 2 (train 1)/patient00001/study1/view1_frontal.jpg",
        "CheXpert-v1.0 batch 3 (train 2)/patient00002/study2/view2_lateral.jpg",
    ]
    assert (
        found.frame.loc[3, list(OBSERVATIONS)].isna().all()
        and "images of test.csv are unlabelled" in found.found
    )
    assert "18 not mentioned and missing" in found.found, "of the labelled images"
    alone = index(tables)
    assert (
        alone.frame["split"].tolist() == ["val", "test"] and "3 images of train.csv not there" in alone.found
    )


def test_mimic(tmp_path: Path) -> None:
    root = made.mimic(tmp_path)
    found = index(root)
    assert found.frame["patient"].tolist() == ["p10000032", "p10000032", "p19999987"]
    assert found.frame["split"].tolist() == ["train", "train", "val"]
    assert found.frame["view"].tolist()[:2] == ["PA", "LATERAL"] and pd.isna(found.frame["view"][2])
    assert found.frame["study"].tolist() == ["s50414267", "s53189527", "s55368167"]
    assert found.frame["No Finding"][0] == 1 and found.frame["Cardiomegaly"][2] == -1
    assert found.frame.loc[1, found.label_columns].isna().all(), "a study without a label row"
    for part in (
        "1 image of studies without a label row",
        "split.csv not there and left out",
        "official split",
    ):
        assert part in found.found
    (root / "mimic-cxr-2.0.0-chexpert.csv.gz").unlink()
    assert index(root).task is None and "no labels" in index(root).found
    (root / "mimic-cxr-2.0.0-split.csv").unlink()
    bare = index(root)
    assert "split" not in bare.frame.columns and "no official split" in bare.found and len(bare) == 3
    moved = tmp_path / "physionet.org/files/mimic-cxr-jpg/2.0.0"
    moved.mkdir(parents=True)
    for entry in ("files", "mimic-cxr-2.0.0-metadata.csv.gz"):
        (root / entry).rename(moved / entry)
    assert len(index(root)) == 3


def test_covidx(tmp_path: Path) -> None:
    found = index(made.covidx(tmp_path))
    table = rows(found)
    assert table["patient"].to_dict() == {
        "a": "cohen:3", "b": "sirm:3", "c": "sirm:COVID 12", "d": "cohen:5", "e": "rsna:47c78742-4998",
    }  # fmt: skip
    assert found.classes == ["negative", "positive"] and table["split"].tolist() == ["train"] * 4 + ["test"]
    assert "1 image of train.txt not there and left out" in found.found
    assert "all images from rsna have one class" in found.found and table["site"]["b"] == "sirm"
    text(tmp_path / "val.txt", "3 v.png positive cohen", "")
    pictures(tmp_path, "val/v.png")
    more = index(tmp_path)
    assert rows(more)["split"]["v"] == "val" and "1 of the patients in more than one split" in more.found
    text(tmp_path / "val.txt", "3 v.png positive")
    with pytest.raises(
        DataError, match=r"val\.txt: line 1 is '3 v\.png positive', not 'patient file class source'"
    ):
        index(tmp_path)


def test_rsna(tmp_path: Path) -> None:
    root = made.rsna(tmp_path)
    found = index(root)
    table = rows(found)
    assert table["label"].to_dict() == {"aaaa": "pneumonia", "bbbb": "no_pneumonia", "cccc": "no_pneumonia"}
    assert table["boxes"].tolist() == [2, 0, 0] and "split" not in table.columns
    assert table["detailed_class"]["bbbb"] == "No Lung Opacity / Not Normal"
    for part in (
        "2 unlabelled test images left out",
        "one person may have several",
        "stage_2_train_labels.csv not there",
    ):
        assert part in found.found
    made.rsna_mapping(root)
    mapped = rows(index(root))
    assert mapped["patient"].to_dict() == {"aaaa": "00000007", "bbbb": "00000007", "cccc": "cccc"}
    with (root / "stage_2_train_labels.csv").open("a") as file:
        file.write("eeee,,,,,0\n")
    assert rows(index(root))["split"].to_dict() == {
        "aaaa": "train",
        "bbbb": "train",
        "cccc": "train",
        "eeee": "test",
    }


def test_shenzhen(tmp_path: Path) -> None:
    found = index(made.shenzhen(tmp_path))
    table = rows(found)
    assert table["label"].tolist() == ["normal"] * 3 + ["tuberculosis"] * 2
    assert table["mask"]["CHNCXR_0001_0"] == "mask/CHNCXR_0001_0_mask.png" and table["mask"].isna().sum() == 2
    assert table["sex"].tolist()[:4] == ["M", "F", "M", "F"] and table["sex"].isna().tolist()[4]
    assert table["age"].tolist()[:4] == [45, 32, 1.333, 0.175]
    assert table["finding"].tolist()[:4] == ["normal", "normal", "normal", "STB; PTB in l. lung"]
    assert "3 images with a lung mask" in found.found and "1 image without a clinical reading" in found.found


def test_montgomery(tmp_path: Path) -> None:
    found = index(made.montgomery(tmp_path))
    table, masks = rows(found), "MontgomerySet/ManualMask"
    assert (
        table["mask"]["MCUCXR_0001_0"]
        == f"{masks}/leftMask/MCUCXR_0001_0.png|{masks}/rightMask/MCUCXR_0001_0.png"
    )
    assert pd.isna(table["mask"]["MCUCXR_0108_1"]), "half a mask is none"
    assert table["sex"].tolist()[:2] == ["F", "M"] and table["age"].tolist()[:2] == [27, 40]
    assert table["finding"]["MCUCXR_0104_1"] == "cavitary nodular infiltrate in RUL; active TB"
    assert "2 images with a lung mask" in found.found
    assert index(tmp_path / "MontgomerySet").frame["image"][0] == "CXR_png/MCUCXR_0001_0.png"


def test_jsrt(tmp_path: Path) -> None:
    found = index(made.jsrt(tmp_path))
    table, scr = rows(found), "scratch/fold1/masks"
    assert table["label"].to_dict() == {
        "JPCLN001": "nodule", "JPCLN002": "nodule", "JPCNN001": "no_nodule", "JPCNN002": "no_nodule",
    }  # fmt: skip
    assert table["image"]["JPCLN001"] == "All247images/JPCLN001.IMG", "the raw file, not its copy"
    first = table.loc["JPCLN001"]
    assert first["mask"] == f"{scr}/left lung/JPCLN001.gif|{scr}/right lung/JPCLN001.gif"
    assert first["mask_heart"] == f"{scr}/heart/JPCLN001.gif"
    assert first[["subtlety", "size_mm", "age", "nodule_x", "nodule_y"]].tolist() == [5, 15, 53, 1634, 692]
    assert [first["location"], first["diagnosis"]] == ["l.upper lobe", "lung cancer"]
    assert (
        table["diagnosis"]["JPCLN002"] == "pulmonary hematoma" and table["malignancy"]["JPCLN002"] == "benign"
    )
    assert pd.isna(table["age"]["JPCLN002"]) and table["sex"].tolist()[:3] == ["M", "F", "M"]
    assert pd.isna(table["mask"]["JPCLN002"]) and table["age"]["JPCNN001"] == 62
    assert table["fold"].tolist()[:3] == ["1", "2", "1"]
    for part in (
        "2 images with a lung mask", "1 image with one lung's mask only", "1 converted copy beside",
        "1 converted image read", "1 image without a clinical record", "1 clinical record of another form",
    ):  # fmt: skip
        assert part in found.found, part


def test_busi(tmp_path: Path) -> None:
    found = index(made.busi(tmp_path))
    table, benign = rows(found), "Dataset_BUSI_with_GT/benign/benign"
    assert table["label"].to_dict() == {
        "benign (1)": "benign", "benign (100)": "benign", "malignant (1)": "malignant", "benign (9)": "malignant",
        "normal (1)": "normal",
    }  # fmt: skip
    assert table["mask"]["benign (100)"] == f"{benign} (100)_mask.png|{benign} (100)_mask_1.png"
    assert pd.isna(table["mask"]["benign (9)"])
    for part in (
        "4 images with a mask, empty where there is no lesion; 1 mask the union of several",
        "1 image named like another class than its folder",
        "1 mask without its image left out",
        "data.split.group=near_duplicates",
    ):
        assert part in found.found, part
    inside = index(tmp_path / "Dataset_BUSI_with_GT")
    assert inside.layout == "busi" and inside.frame["image"][0] == "benign/benign (1).png"


def test_isic2018(tmp_path: Path) -> None:
    root = made.isic2018(tmp_path)
    found = index(root)
    table = rows(found)
    assert table["label"].tolist() == ["nv", "nv", "mel", "bcc", "akiec"]
    assert table["split"].tolist() == ["train"] * 3 + ["val", "test"]
    assert table["patient"].tolist()[:3] == ["HAM_0000550", "HAM_0000550", "HAM_0003577"]
    assert table["patient"].isna().tolist() == [False] * 3 + [True] * 2, "a lesion nobody named is nobody's"
    assert table["confirmed_by"]["ISIC_0024308"] == "histopathology"
    for part in (
        "a patient here is a lesion",
        "1 image of ISIC2018_Task3_Training_GroundTruth.csv not there and left out",
        "1 image on disk without a row left out",
    ):
        assert part in found.found, part
    for part in ("Validation", "Test"):
        shutil.rmtree(root / f"ISIC2018_Task3_{part}_GroundTruth")
    folder = root / "ISIC2018_Task3_Training_GroundTruth"
    (folder / f"{folder.name}.csv").rename(root / f"{folder.name}.csv")
    groupings = root / "ISIC2018_Task3_Training_LesionGroupings.csv"
    with groupings.open("a") as file:
        file.write("ISIC_0024308,HAM_0000001,histopathology\n")
    with pytest.raises(DataError, match=r"line 6 gives 'ISIC_0024308' a second lesion"):
        index(root)
    groupings.unlink()
    bare = index(root)
    assert not {"split", "patient"} & set(bare.frame.columns) and "pictures of one lesion may" in bare.found


@pytest.mark.parametrize(
    "row", ["1,1,0,0,0,0,0", "0,0,0,0,0,0,0", "0.5,0.5,0,0,0,0,0", ",1,0,0,0,0,0", "x,1,0,0,0,0,0"]
)
def test_a_diagnosis_that_is_not_one_costs_a_sentence(tmp_path: Path, row: str) -> None:
    root = made.isic2018(tmp_path)
    path = root / "ISIC2018_Task3_Test_GroundTruth" / "ISIC2018_Task3_Test_GroundTruth.csv"
    text(path, made.ISIC_HEADER, "ISIC_0034523,0,1,0,0,0,0,0", f"ISIC_0034524,{row}")
    with pytest.raises(
        DataError, match=r"line 3 gives ISIC_0034524 MEL .*; one diagnosis is 1 and the others"
    ):
        index(root)


def test_isic2018_task1(tmp_path: Path) -> None:
    root = made.isic2018_task1(tmp_path)
    found = index(root)
    assert rows(found)["mask"].isna().to_dict() == {"ISIC_0000000": False, "ISIC_0000001": True}
    assert "1 image with an outline of the lesion" in found.found and "split" not in found.frame.columns
    pictures(root, "ISIC2018_Task1-2_Test_Input/ISIC_0012169.jpg")
    assert index(root).frame["split"].tolist() == ["train", "train", "test"]
    made.isic2018(root)
    with pytest.raises(DataError, match="fits the layouts isic2018 and isic2018-task1; name"):
        index(root)


@pytest.mark.parametrize("file", ["HAM10000_metadata.csv", "HAM10000_metadata.tab", "HAM10000_metadata"])
def test_ham10000(tmp_path: Path, file: str) -> None:
    root = made.ham10000(tmp_path)
    content = (root / "HAM10000_metadata.csv").read_text()
    (root / "HAM10000_metadata.csv").rename(root / file)
    (root / file).write_text(content.replace(",", "\t") if file.endswith(".tab") else content)
    found = index(root)
    table = rows(found)
    assert table["label"].to_dict() == {"ISIC_0027419": "bkl", "ISIC_0027418": "bkl", "ISIC_0031633": "nv"}
    assert table["patient"].tolist() == ["HAM_0000118", "HAM_0000118", "HAM_0002761"]
    assert table["age"].tolist()[:2] == [80, 80] and np.isnan(table["age"]["ISIC_0031633"])
    assert table["sex"].tolist()[:2] == ["M", "M"] and pd.isna(table["sex"]["ISIC_0031633"])
    assert table["image"]["ISIC_0027418"] == "HAM10000_images_part_1/ISIC_0027418.jpg", "one of two copies"
    assert table["mask"].notna().tolist() == [True, False, False] and "site" not in table.columns
    for part in (
        "1 image with an outline", f"1 image of {file} not there", "1 image on disk without a row", "is a lesion",
    ):  # fmt: skip
        assert part in found.found, part


def test_ham10000_with_the_test_images_of_the_challenge(tmp_path: Path) -> None:
    root = made.ham10000(tmp_path)
    pictures(root, "ISIC2018_Task3_Test_Images/ISIC_0035068.jpg")
    text(
        root / "ISIC2018_Task3_Test_GroundTruth.csv",
        "lesion_id,image_id,dx,dx_type,age,sex,localization,dataset",
        "HAM_0000118,ISIC_0035068,NV,histo,35.0,male,back,vidir_modern",
    )
    found = index(root)
    assert found.layout == "ham10000" and found.frame["split"].tolist() == ["train"] * 3 + ["test"]
    assert found.frame["site"].tolist()[3] == "vidir_modern" and found.classes == ["bkl", "nv"]
    assert "1 lesion in train and test" in found.found


def test_kvasir(tmp_path: Path) -> None:
    root = made.kvasir(tmp_path)
    found = index(root)
    assert found.classes == sorted(KVASIR) and len(found) == 16
    assert found.frame["label"].value_counts().eq(2).all()
    assert rows(found)["label"]["7b"] == "ulcerative-colitis"
    assert "frames of one examination" in found.found and "near_duplicates" in found.found
    assert index(root / "kvasir-dataset-v2").layout == "kvasir"
    shutil.copytree(root / "kvasir-dataset-v2", root / "kvasir-dataset")
    with pytest.raises(DataError, match="holds Kvasir twice, in kvasir-dataset and kvasir-dataset-v2"):
        index(root)
    shutil.rmtree(root / "kvasir-dataset-v2" / "Polyps")
    assert index(root / "kvasir-dataset-v2").layout == "class-folders", (
        "seven classes are someone's own choice"
    )


def test_kvasir_seg(tmp_path: Path) -> None:
    root = made.kvasir_seg(tmp_path)
    found = index(root)
    assert rows(found)["mask"].isna().to_dict() == {"cju0a": False, "cju0b": True}
    for part in ("1 image with an outline", "task.mask_threshold=128", "1 mask without its image left out"):
        assert part in found.found, part
    assert index(root / "Kvasir-SEG").layout == "kvasir-seg"
    (root / "Kvasir-SEG").rename(root / "polyps")
    assert index(root / "polyps").layout == "kvasir-seg", "known by its boxes"
    (root / "polyps" / "kavsir_bboxes.json").unlink()
    assert index(root / "polyps").layout == "flat"


def test_covid_radiography(tmp_path: Path) -> None:
    root = made.covid_radiography(tmp_path)
    found = index(root)
    table = rows(found)
    assert table["label"].to_dict() == {
        "COVID-1": "covid", "COVID-2": "covid", "Lung_Opacity-1": "lung_opacity", "Normal-1": "normal",
        "Viral Pneumonia-1": "viral_pneumonia",
    }  # fmt: skip
    home = "COVID-19_Radiography_Dataset"
    assert table["mask"]["Viral Pneumonia-1"] == f"{home}/Viral Pneumonia/masks/Viral Pneumonia-1.png"
    assert table["mask"].isna().sum() == 1
    for part in ("4 images with a lung mask", "1 mask without its image", "the source gives the label away"):
        assert part in found.found, part
    assert index(root / home).layout == "covid-radiography"


def test_covid_radiography_of_older_form(tmp_path: Path) -> None:
    home = tmp_path / "COVID-19 Radiography Database"
    names = ("COVID-19/COVID-19 (1).png", "NORMAL/NORMAL (1).png", "Viral Pneumonia/Viral Pneumonia (1).png")
    pictures(home, *names)
    found = index(tmp_path)
    assert found.layout == "covid-radiography" and found.classes == ["covid", "normal", "viral_pneumonia"]
    assert "no lung masks" in found.found and "mask" not in found.frame.columns
    own = tmp_path / "own"
    pictures(own, "Covid/a.png", "Normal/b.png", "Viral Pneumonia/c.png")
    assert index(own).layout == "class-folders", "folders of these names alone may be anybody's"


@pytest.mark.parametrize(
    ("name", "file", "old", "new", "message"),
    [
        (
            "nih-chestxray14",
            "Data_Entry_2017.csv",
            "Patient ID",
            "Patient",
            "no published column 'Patient ID'",
        ),
        ("nih-chestxray14", "Data_Entry_2017.csv", "|Emphysema", "|Emfysema", "line 2 has 'Emfysema'"),
        (
            "nih-chestxray14",
            "Data_Entry_2017.csv",
            ",00000004,",
            ",,",
            "line 6 has nothing in the column 'Patient ID'",
        ),
        ("chexpert", "CheXpert-v1.0-small/train.csv", "Edema", "Oedema", "no published column 'Edema'"),
        ("chexpert", "CheXpert-v1.0-small/train.csv", "patient00003", "p3", "line 4 has '.*p3/study1"),
        ("chexpert", "CheXpert-v1.0-small/train.csv", "-1.0", "2.0", r"row 3 has '2\.0' in the column"),
        ("mimic-cxr-jpg", "mimic-cxr-2.0.0-split.csv", "study_id", "study", "no published column 'study_id'"),
        ("mimic-cxr-jpg", "mimic-cxr-2.0.0-split.csv", "validate", "vallidate", "row 4 has 'vallidate'"),
        ("covidx-cxr3", "train.txt", "negative sirm", "maybe sirm", "line 2 is '3 b.jpg maybe sirm'"),
        ("covidx-cxr3", "train.txt", "5 d.png negative", "5 a.png negative", "'train/a.png' is named twice"),
        ("rsna-pneumonia", "stage_2_train_labels.csv", "Target", "target", "no published column 'Target'"),
        (
            "rsna-pneumonia",
            "stage_2_train_labels.csv",
            "bbbb,,,,,0",
            "bbbb,,,,,",
            "line 4 has nothing in the column 'Target'",
        ),
        (
            "rsna-pneumonia",
            "stage_2_detailed_class_info.csv",
            "class",
            "klass",
            "no published column 'class'",
        ),
        ("ham10000", "HAM10000_metadata.csv", ",nv,", ",naevus,", "line 4 has 'naevus' in the column 'dx'"),
        ("ham10000", "HAM10000_metadata.csv", "lesion_id", "lesion", "no published column 'lesion_id'"),
        ("isic2019", "ISIC_2019_Training_GroundTruth.csv", "UNK", "UNKNOWN", "no published column 'UNK'"),
        (
            "isic2019",
            "ISIC_2019_Training_GroundTruth.csv",
            ",0.0,1.0,0.0\n",
            ",1.0,1.0,0.0\n",
            "VASC 1.0, SCC 1.0",
        ),
        (
            "isic2019",
            "ISIC_2019_Training_Metadata.csv",
            "lesion_id",
            "lesion",
            "no published column 'lesion_id'",
        ),
        (
            "aptos2019",
            "train.csv",
            "ffffffffffff,2",
            "ffffffffffff,5",
            "line 12 has '5' in the column 'diagnosis'",
        ),
        (
            "aptos2019",
            "train.csv",
            "ffffffffffff,2",
            "ffffffffffff,",
            "line 12 has nothing in the column 'diagnosis'",
        ),
        ("jsrt", "Clinical_Information/CNNDAT_EN.TXT", "male", "unclear", "not one record of the form"),
    ],
)
def test_a_wrong_table_costs_one_sentence(
    tmp_path: Path, name: str, file: str, old: str, new: str, message: str
) -> None:
    path = MADE[name](tmp_path) / file
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(DataError, match=message) as caught:
        index(tmp_path, layout=name)
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"\x1f\x8bbroken", b"Image Index\n", b"a,b\n\xff\xfe,1\n"])
def test_a_damaged_table_costs_one_sentence(tmp_path: Path, content: bytes) -> None:
    root = made.mimic(tmp_path)
    (root / "mimic-cxr-2.0.0-metadata.csv.gz").write_bytes(content)
    with pytest.raises(DataError, match=r"metadata\.csv\.gz: .*; unpack the published file again"):
        index(root)
    root = made.nih(tmp_path / "nih")
    (root / "Data_Entry_2017.csv").write_bytes(content)
    with pytest.raises(DataError, match=r"Data_Entry_2017\.csv: "):
        index(root)


def test_tables_without_their_images(tmp_path: Path) -> None:
    root = made.nih(tmp_path)
    shutil.rmtree(root / "images_001")
    shutil.rmtree(root / "images_002")
    with pytest.raises(
        DataError, match=r"without a single image \(.*5 images of Data_Entry.*; unpack the image arch"
    ):
        index(root)
