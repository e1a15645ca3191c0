"""CBIS-DDSM by its tables, wherever its files went, and DDSM by lists of names."""

from __future__ import annotations

import shutil
from pathlib import Path

import pandas as pd
import pytest

from data import made_mammograms as made
from data.made_files import pictures, text
from scanprior.data.check import check
from scanprior.data.index import index
from scanprior.data.split import assign_splits
from scanprior.errors import DataError
from scanprior.evaluation.labels import positive_of


def test_cbis_ddsm(tmp_path: Path) -> None:
    root = made.cbis_ddsm(tmp_path)
    found = index(root)
    table = found.frame.set_index(found.frame["image"].str.split("/").str[2])
    assert table[["split", "label", "pathology", "abnormality", "abnormalities"]].to_dict("index") == {
        "Mass-Training_P_00001_LEFT_CC": {
            "split": "train", "label": "malignant", "pathology": "malignant", "abnormality": "mass", "abnormalities": 2,
        },
        "Mass-Training_P_00001_LEFT_MLO": {
            "split": "train", "label": "benign", "pathology": "benign_without_callback", "abnormality": "mass",
            "abnormalities": 1,
        },
        "Mass-Training_P_00002_RIGHT_CC": {
            "split": "train", "label": "malignant", "pathology": "malignant",
            "abnormality": "mass and calcification", "abnormalities": 2,
        },
        "Mass-Test_P_00004_LEFT_CC": {
            "split": "test", "label": "benign", "pathology": "benign", "abnormality": "mass", "abnormalities": 1,
        },
        "Calc-Test_P_00001_RIGHT_MLO": {
            "split": "test", "label": "benign", "pathology": "benign", "abnormality": "calcification",
            "abnormalities": 1,
        },
    }  # fmt: skip
    day = "07-20-2016-DDSM-NA-30288/1.000000-full mammogram images-24515"
    first = table.loc["Mass-Training_P_00001_LEFT_CC"]
    assert first["image"] == f"{made.CBIS_HOME}/Mass-Training_P_00001_LEFT_CC/{day}/1-1.dcm"
    assert first[["patient", "laterality", "view"]].tolist() == ["P_00001", "L", "CC"]
    assert first[["assessment", "subtlety"]].tolist() == [5, 4], "the highest"
    assert table["density"].tolist() == [3] * 5, "breast_density of masses, breast density of calcifications"
    gone = made.cbis_path("Mass-Training_P_00003_RIGHT_CC")
    for part in (
        "1 of the patients in train and in test, as published", "2 images of several abnormalities, malignant if one",
        "1 mammogram with a mass and calcifications, counted once in a split",
        f"1 mammogram of mass_case_description_train_set.csv not there and left out, such as '{gone}'",
        "masks and cropped images are not read",
    ):  # fmt: skip
        assert part in found.found, part
    assert found.classes == ["benign", "malignant"] and positive_of(found.classes) == "malignant"


def test_cbis_ddsm_patients_in_two_splits_are_leakage(tmp_path: Path) -> None:
    audit = check(index(made.cbis_ddsm(tmp_path)), workers=0, near=False)
    assert audit.leakage and audit.patients_in_splits == [
        {"patient": "P_00001", "splits": {"train": 2, "test": 1}}
    ]


def test_cbis_ddsm_divided_by_patient_from_a_table(tmp_path: Path) -> None:
    """The way that the documentation names out of the published split."""
    root = made.cbis_ddsm(tmp_path / "data")
    table = index(root).save(tmp_path / "cbis.csv")
    pd.read_csv(table).drop(columns="split").to_csv(table, index=False)
    found = index(table, root=root)
    assert found.classes == ["benign", "malignant"] and (found.root / found.frame["image"][0]).is_file()
    divided = assign_splits(found, fractions=(0.7, 0, 0.3), stratify=False).frame
    assert (
        set(divided["split"]) == {"train", "test"}
        and divided.groupby("patient")["split"].nunique().eq(1).all()
    )


def test_cbis_ddsm_as_its_tables_name_it_and_in_other_places(tmp_path: Path) -> None:
    root = made.cbis_ddsm(tmp_path)
    case, home = "Mass-Training_P_00001_LEFT_CC", root / made.CBIS_HOME
    place = home / case / "07-20-2016-DDSM-NA-30288" / "1.000000-full mammogram images-24515"
    pictures(place.parent / "1.000000-cropped images-1", "1-1.dcm")
    assert index(root).frame["image"][0].endswith("full mammogram images-24515/1-1.dcm")
    pictures(home, made.cbis_path(case))
    assert index(root).frame["image"][0] == f"{made.CBIS_HOME}/{made.cbis_path(case)}", "where the table says"
    named = home / made.cbis_path(case)
    named.rename(named.with_name("1-1.dcm"))
    assert index(root).frame["image"][0].endswith(f"{made.UID}.9{sum(case.encode())}/1-1.dcm"), (
        "in its series"
    )
    pictures(named.parent, "1-2.dcm")
    with pytest.raises(DataError, match=r"000000\.dcm' may be .*1-1\.dcm or .*1-2\.dcm; leave the one"):
        index(root)
    shutil.rmtree(home / case)
    home.rename(root / "CBIS-DDSM")
    (root / "csv").mkdir()
    for path in root.glob("*.csv"):
        path.rename(root / "csv" / path.name)
    moved = index(root)
    assert (
        moved.layout == "cbis-ddsm"
        and moved.frame["image"].str.startswith("CBIS-DDSM/").all()
        and len(moved) == 4
    )
    shutil.rmtree(root / "CBIS-DDSM")
    for case in ("Mass-Training_P_00001_LEFT_CC", "Mass-Test_P_00004_LEFT_CC"):
        pictures(root / "jpeg" / made.cbis_path(case).split("/")[2], "1-263.jpg")
    copies = index(root)
    assert copies.frame["image"].str.fullmatch(r"jpeg/1\.3\.6[0-9.]+/1-263\.jpg").all()
    assert copies.frame["label"].tolist() == ["malignant", "benign"] and copies.frame["split"].tolist() == [
        "train",
        "test",
    ]


def test_cbis_ddsm_without_any_image_costs_one_sentence(tmp_path: Path) -> None:
    root = made.cbis_ddsm(tmp_path)
    shutil.rmtree(root / made.CBIS_HOME)
    pictures(root, "P_00001/left_cc.dcm")
    path = made.cbis_path("Mass-Training_P_00001_LEFT_CC")
    with pytest.raises(DataError) as caught:
        index(root)
    said = str(caught.value)
    assert said.startswith(
        f"{root / 'mass_case_description_train_set.csv'}: not one image of its rows is there"
    )
    assert f"such as '{path}'; put the folders of the cases (Mass-Training_P_00001_LEFT_CC and so on" in said
    assert "\n" not in said


def test_cbis_ddsm_a_malignant_finding_of_another_table_counts(tmp_path: Path) -> None:
    """The calcification is malignant though only the images of the masses were loaded down."""
    root = made.cbis_ddsm(tmp_path)
    shutil.rmtree(root / made.CBIS_HOME / "Calc-Training_P_00002_RIGHT_CC")
    frame = index(root).frame
    assert frame.loc[frame["patient"] == "P_00002", "label"].tolist() == ["malignant"]
    for name in ("mass_case_description_test_set.csv", "calc_case_description_test_set.csv"):
        (root / name).unlink()
    alone = index(root)
    assert "split" not in alone.frame.columns and "only images of the train tables" in alone.found


def test_ddsm_lists(tmp_path: Path) -> None:
    root = made.ddsm_lists(tmp_path)
    found = index(root)
    table = found.frame.set_index(found.frame["image"].map(lambda image: Path(image).name))
    assert table["label"].to_dict() == {
        "normal_A_1141_1.LEFT_CC.png": "normal", "benign_B_3504_1.RIGHT_MLO.png": "lesion",
        "cancer_C_0001_1.LEFT_CC.png": "lesion", "normal_A_1142_1.LEFT_CC.png": "normal",
        "cancer_C_0001_1.LEFT_MLO.png": "lesion", "normal_A_1143_1.RIGHT_CC.png": "normal",
    }  # fmt: skip
    assert positive_of(found.classes) == "lesion"
    assert table["split"].tolist() == ["train"] * 3 + ["val"] + ["test"] * 2
    assert table["patient"].tolist() == ["A_1141", "B_3504", "C_0001", "A_1142", "C_0001", "A_1143"]
    assert table["laterality"].tolist()[:2] == ["L", "R"] and table["view"].tolist()[:2] == ["CC", "MLO"]
    for part in (
        "a lesion is benign or cancer (column finding)", "1 of the patients in more than one split",
        "1 image of test.txt not there and left out",
    ):  # fmt: skip
        assert part in found.found, part
    assert index(root, label_columns=["finding"]).classes == ["benign", "cancer", "normal"]
    assert index(root / "DDSM").frame["image"][0] == "ddsm_raw/normal_A_1141_1.LEFT_CC.png"


def test_ddsm_lists_with_names_of_no_patient(tmp_path: Path) -> None:
    pictures(tmp_path / "ddsm_raw", "normal1.png", "benign1.png", "cancer1.png", "normal2.png")
    lists = tmp_path / "ddsm_raw_image_lists"
    text(lists / "train.txt", "ddsm_raw/normal1.png", "ddsm_raw\\cancer1.png")
    text(lists / "test.txt", "benign1.png", "normal2.png")
    found = index(tmp_path)
    assert found.layout == "ddsm-normal-lesion" and "patient" not in found.frame.columns
    assert found.frame["label"].tolist() == ["normal", "lesion", "lesion", "normal"]
    assert "no patient identifiers are published" in found.found and "no val.txt" in found.found
    text(lists / "val.txt", "cancer1.png")
    with pytest.raises(
        DataError, match=r"'ddsm_raw/cancer1\.png' is in train\.txt and in val\.txt; take it out"
    ):
        index(tmp_path)
    text(lists / "val.txt", "normal2.png", "mass3.png")
    with pytest.raises(
        DataError, match=r"val\.txt: line 2 is 'mass3\.png', not a name that begins with normal"
    ):
        index(tmp_path)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("_WITHOUT_CALLBACK", "?", r"row 3 below the header has 'BENIGN\?' in the column 'pathology'"),
        (
            "Mass-Training_P_00003",
            "P_00003",
            "row 5 below .* 'P_00003_RIGHT_CC/.* not of the form Mass-Training",
        ),
        ("P_00003_RIGHT_CC/", "P_00003_RIGHT_CC/../", "row 5 below .*not of the form"),
        ("LEFT,MLO", "LEFT,ML", "row 3 below .* 'ML' in the column 'image view'"),
        ("abnormality id", "abnormality", "no published column 'abnormality id'"),
        ("P_00003,", ",", "has nothing in the column 'patient_id'"),
    ],
)
def test_a_wrong_table_of_cbis_ddsm_costs_one_sentence(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    path = made.cbis_ddsm(tmp_path) / "mass_case_description_train_set.csv"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(DataError, match=message) as caught:
        index(tmp_path, layout="cbis-ddsm")
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
