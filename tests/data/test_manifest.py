"""Tables become manifests, or a sentence that says why not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from scanprior.data.folders import from_folder
from scanprior.data.index import index
from scanprior.data.manifest import Manifest
from scanprior.data.store import prepare
from scanprior.errors import DataError


def picture(path: Path, value: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 8), value, dtype=np.uint8)).save(path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in "abcdef":
        picture(tmp_path / "images" / f"{name}.png")
    return tmp_path


def write(folder: Path, text: str, name: str = "table.csv") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_names_are_recognised_and_text_is_kept(folder: Path) -> None:
    table = write(
        folder,
        "Image Path;Patient ID;Set;Diagnosis;Hospital;Age;Code\n"
        "images/a.png;0012;Training;tb;East;36;007\n"
        "images/b.png;0013;dev;None;West;;010\n"
        "./images/c.png;;TEST;;West;40.5;011\n",
    )
    made = Manifest.load(table)
    assert made.frame["image"].tolist() == ["images/a.png", "images/b.png", "images/c.png"]
    assert made.frame["patient"].tolist()[:2] == ["0012", "0013"] and made.frame["patient"].isna()[2]
    assert made.frame["split"].tolist() == ["train", "val", "test"]
    assert made.label_columns == ["label"] and made.task == "multiclass" and made.classes == ["None", "tb"]
    assert made.frame["site"].tolist() == ["East", "West", "West"]
    assert made.frame["Age"].dtype == np.float64 and made.frame["Code"].tolist() == ["007", "010", "011"]
    assert made.root == folder and "3 images of 2 patients" in made.found


@pytest.mark.parametrize(
    ("header", "cells", "said"),
    [
        ("label", "tb", "1 class (tb)"),
        ("tb", "1", "1 finding (tb)"),
        ("tb,mass", "1,0", "2 findings (tb, mass)"),
    ],
)
def test_one_label_is_said_in_the_singular(folder: Path, header: str, cells: str, said: str) -> None:
    made = Manifest.load(write(folder, f"image,{header}\nimages/a.png,{cells}\n"))
    assert made.found.endswith(f"1 image; {said}")


def test_findings_are_floats_with_missing_and_uncertain(folder: Path) -> None:
    table = write(
        folder, "path,age,Edema,Mass\nimages/a.png,1,1.0,\nimages/b.png,0,-1,0\nimages/c.png,1,no,yes\n"
    )
    made = Manifest.load(table)
    assert made.label_columns == ["Edema", "Mass"] and made.task == "multilabel"
    np.testing.assert_array_equal(made.frame["Edema"], [1, -1, 0])
    np.testing.assert_array_equal(made.frame["Mass"], [np.nan, 0, 1])
    one = Manifest.load(table, label_columns=["Edema"])
    assert one.task == "multilabel" and one.label_columns == ["Edema"]
    assert Manifest.load(table, label_columns=[]).task is None


def test_joined_findings_are_expanded(folder: Path) -> None:
    table = write(
        folder,
        "Image Index,Finding Labels\na.png,Effusion|Mass\nb.png,No Finding\nc.png,\nd.png,Mass\n",
    )
    made = Manifest.load(table)
    assert made.label_columns == ["Effusion", "Mass"]
    np.testing.assert_array_equal(made.frame["Effusion"], [1, 0, np.nan, 0])
    np.testing.assert_array_equal(made.frame["Mass"], [1, 0, np.nan, 1])
    assert made.frame["image"][0] == "images/a.png", "a bare file name is looked for"


def test_numbers_as_classes_keep_their_order(folder: Path) -> None:
    rows = "".join(f"images/{name}.png,{value}\n" for name, value in zip("abc", (10, 2, 1), strict=True))
    assert Manifest.load(write(folder, "image,label\n" + rows)).classes == ["1", "2", "10"]


GRADES = "image,dx,label_order,sex\nimages/a.png,severe,3,F\nimages/b.png,mild,1,M\nimages/c.png,none,0,F\n"


def test_classes_with_an_order_of_their_own_keep_it(folder: Path, tmp_path: Path) -> None:
    made = Manifest.load(write(folder, GRADES))
    assert made.classes == ["none", "mild", "severe"] and made.label_columns == ["label"]
    for kept in (made.save(folder / "kept.parquet"), made.save(folder / "kept.csv")):
        assert index(kept).classes == ["none", "mild", "severe"], kept
    stored = prepare(made, tmp_path / "store", size=8, workers=0)
    assert stored.manifest().classes == index(tmp_path / "store").classes == ["none", "mild", "severe"]
    assert made.subset([0, 2]).classes == ["none", "severe"]
    frame = made.frame.assign(label=["severe", "healthy", "healthy"])  # as after two were renamed to one
    assert replace(made, frame=frame).classes == ["healthy", "severe"]
    frame = made.frame.assign(label_order=[1, np.nan, 0])  # as of a second source that has no order
    assert replace(made, frame=frame).classes == ["none", "severe", "mild"]
    for source in (folder / "kept.parquet", tmp_path / "store"):
        other = index(source, label_columns=["sex"])
        assert other.classes == ["F", "M"] and "label_order" not in other.frame.columns, source


def test_an_order_that_is_no_number_costs_a_sentence(folder: Path) -> None:
    table = write(folder, GRADES.replace(",1,", ",first,"))
    with pytest.raises(DataError, match="the column 'label_order' holds 'first'; it numbers the classes"):
        Manifest.load(table)


def test_identifiers_without_suffix_are_looked_for(folder: Path) -> None:
    picture(folder / "masks" / "a.png")
    made = Manifest.load(write(folder, "image_id,dx\na,nv\nb,mel\n"))
    assert made.frame["image"].tolist() == ["images/a.png", "images/b.png"]
    picture(folder / "more" / "a.png")
    with pytest.raises(DataError, match=r"row 2 names 'a', which fits images/a\.png and more/a\.png"):
        Manifest.load(folder / "table.csv")


def test_a_table_that_repeats_its_folder_is_read_from_above(folder: Path) -> None:
    table = write(folder, f"Path,label\n{folder.name}/images/a.png,x\n")
    made = Manifest.load(table)
    assert made.root == folder.parent and (made.root / made.frame["image"][0]).is_file()


def test_paths_stay_inside_the_root(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = picture(tmp_path_factory.mktemp("elsewhere") / "x.png")
    inside = write(folder, f"image,label\n{folder / 'images' / 'a.png'},x\n")
    assert Manifest.load(inside).frame["image"].tolist() == ["images/a.png"]
    outside = write(folder, f"image,label\n{elsewhere},x\n")
    with pytest.raises(DataError, match=r"row 2: the path '.*x\.png' lies outside the image folder"):
        Manifest.load(outside)
    assert Manifest.load(outside, allow_outside=True).frame["image"].tolist() == [str(elsewhere)]
    upward = write(folder, "image,label\nimages/a.png,x\nimages/../../x.png,x\n")
    for allow_outside in (False, True):
        with pytest.raises(DataError, match=r"row 3: the path .* holds '\.\.'"):
            Manifest.load(upward, allow_outside=allow_outside)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "imagge,y\nimages/a.gif,1\n",
            r"no image column among the columns imagge, y; .*did you mean 'imagge'",
        ),
        (
            "image,label\nimages/a.png,x\nimages/b.png,x\n./images/a.png,y\n",
            r"row 2 and row 4 both name 'images/a.png'",
        ),
        (
            "image,split\nimages/a.png,trian\n",
            r"row 2 has 'trian' in the column 'split'.*did you mean 'train'",
        ),
        ("image,label\nimages/a.png,x\n,y\n", r"row 3 names no image"),
        ("image,label\n", r"the table is empty"),
        ("", r"the table is empty"),
        ("image,label,label\nimages/a.png,x,y\n", r"the column 'label' occurs twice"),
        ("image,label\nnowhere/a.png,x\n", r"none of the 1 images .*--set data\.root"),
    ],
)
def test_bad_tables_get_one_sentence(folder: Path, text: str, message: str) -> None:
    table = write(folder, text)
    with pytest.raises(DataError, match=message) as caught:
        Manifest.load(table)
    assert str(table) in str(caught.value) and "\n" not in str(caught.value)


def test_columns_that_are_not_there(folder: Path) -> None:
    table = write(folder, "image,Edema,note\nimages/a.png,1,x\nimages/b.png,maybe,y\n")
    with pytest.raises(DataError, match=r"no image column 'imag' .*did you mean 'image'"):
        Manifest.load(table, image_column="imag")
    with pytest.raises(DataError, match=r"no label column 'edma' .*did you mean 'Edema'"):
        Manifest.load(table, label_columns=["edma"])
    with pytest.raises(DataError, match=r"no patient column 'patient'"):
        Manifest.load(table, patient_column="patient")
    with pytest.raises(DataError, match=r"row 3 has 'maybe' in the column 'Edema'"):
        Manifest.load(
            write(folder, "image,Edema,Mass\nimages/a.png,1,0\nimages/b.png,maybe,1\n"),
            label_columns=["Edema", "Mass"],
        )


def test_broken_tables(folder: Path) -> None:
    (folder / "t.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(DataError, match="not a readable Parquet file"):
        Manifest.load(folder / "t.parquet")
    (folder / "t.csv").write_bytes("image,label\nimages/a.png,gr\xfcn\n".encode("latin-1"))
    with pytest.raises(DataError, match="not UTF-8"):
        Manifest.load(folder / "t.csv")
    with pytest.raises(DataError, match="no such table"):
        Manifest.load(folder / "missing.csv")


cell = st.text("abc ,;\"'é\n", max_size=4).map(str.strip) | st.none()


@settings(max_examples=25, deadline=None)
@given(
    notes=st.lists(cell, min_size=6, max_size=6),
    ages=st.lists(st.none() | st.floats(0, 120), min_size=6, max_size=6),
    findings=st.lists(st.sampled_from([1.0, 0.0, -1.0, np.nan]), min_size=12, max_size=12),
)
def test_a_saved_manifest_comes_back(
    tmp_path_factory: pytest.TempPathFactory,
    notes: list[str | None],
    ages: list[float | None],
    findings: list[float],
) -> None:
    folder = tmp_path_factory.mktemp("saved")
    for name in "abcdef":
        (folder / f"{name}.png").touch()
    frame = pd.DataFrame(
        {
            "image": [f"{name}.png" for name in "abcdef"],
            "patient": pd.Series(["1", "1", "02", None, "x", "y"], dtype="str"),
            "split": ["train"] * 4 + ["val", "test"],
            "Edema": findings[:6],
            "Mass": findings[6:],
            "note": pd.Series([note or None for note in notes], dtype="str"),
            "age": pd.Series(ages, dtype="float64"),
        }
    ).dropna(axis=1, how="all")
    labels = [name for name in ("Edema", "Mass") if name in frame.columns]
    made = Manifest(frame, folder, labels, "made", "flat", "six images")
    back = Manifest.load(made.save(folder / "out" / "manifest.parquet"))
    pd.testing.assert_frame_equal(back.frame, frame, check_dtype=False)
    assert (back.root, back.label_columns, back.name, back.layout, back.found) == (
        folder.resolve(), labels, "made", "flat", "six images",
    )  # fmt: skip
    assert back.fingerprint() == made.fingerprint()
    assert not list((folder / "out").glob("*.partial"))


def test_a_saved_manifest_moves_with_its_images(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    made = Manifest.load(write(folder, "image,label\nimages/a.png,x\nimages/b.png,y\n"))
    made.save(folder / "manifest.parquet")
    moved = folder.rename(tmp_path_factory.mktemp("moved") / "data")
    back = Manifest.load(moved / "manifest.parquet")
    assert back.root.resolve() == moved.resolve() and back.fingerprint() == made.fingerprint()


def test_fingerprint_follows_the_content(folder: Path) -> None:
    table = write(folder, "image,label,age\nimages/a.png,x,30\nimages/b.png,y,40\n")
    made = Manifest.load(table)
    assert (
        len(made.fingerprint()) == 16
        and made.fingerprint() == Manifest.load(made.save(folder / "b.csv")).fingerprint()
    )
    for change in ("x,31", "z,30"):
        other = Manifest.load(write(folder, f"image,label,age\nimages/a.png,{change}\nimages/b.png,y,40\n"))
        assert other.fingerprint() != made.fingerprint()
    assert made.subset([1, 0]).fingerprint() != made.fingerprint()


def test_subset_takes_masks_and_positions(folder: Path) -> None:
    made = Manifest.load(write(folder, "image,label\nimages/a.png,x\nimages/b.png,y\nimages/c.png,y\n"))
    assert made.subset(made.frame["label"] == "y").frame["image"].tolist() == ["images/b.png", "images/c.png"]
    assert made.subset([2, 0]).frame["image"].tolist() == ["images/c.png", "images/a.png"]


def test_several_masks_of_one_image_are_joined(folder: Path) -> None:
    for name in ("left.png", "right.png"):
        picture(folder / "masks" / name)
    table = folder / "t.csv"
    table.write_text("image,mask\na.png,masks/left.png | masks/right.png\nb.png,masks/left.png\n")
    made = Manifest.load(table)
    assert made.frame["mask"].tolist() == ["masks/left.png|masks/right.png", "masks/left.png"]
    assert (
        Manifest.load(made.save(folder / "m.parquet")).frame["mask"].tolist() == made.frame["mask"].tolist()
    )
    for cell, message in (
        ("masks/left.png|", r"row 2: 'masks/left\.png\|' has nothing before or after a '\|'"),
        ("masks/left.png|../x.png", r"row 2: the path '\.\./x\.png' holds '\.\.'"),
        ("masks/left.png|/etc/passwd", r"row 2: the path '/etc/passwd' lies outside"),
    ):
        table.write_text(f"image,mask\na.png,{cell}\n")
        with pytest.raises(DataError, match=message):
            Manifest.load(table)


def test_a_mask_whose_name_holds_the_separator_is_refused(folder: Path) -> None:
    picture(folder / "masks" / "a|b.png")
    picture(folder / "a|b.png")
    table = folder / "t.csv"
    table.write_text("image,mask\na.png,masks/a|b.png\n")
    with pytest.raises(DataError, match=r"masks/a\|b\.png: the name holds '\|'.*; rename the file"):
        Manifest.load(table)
    table.unlink()
    with pytest.raises(DataError, match=r"masks/a\|b\.png: the name holds '\|'.*; rename the file"):
        from_folder(folder)
