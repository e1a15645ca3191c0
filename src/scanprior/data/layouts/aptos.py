"""APTOS 2019, fundus photographs graded for diabetic retinopathy."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from scanprior.data.layouts import layout
from scanprior.data.layouts.published import (
    filled,
    finished,
    first_file,
    first_lines,
    homes,
    images_by_stem,
    only_present,
    published_table,
)
from scanprior.data.manifest import LABEL_ORDER, Manifest, counted
from scanprior.errors import DataError

GRADES = ("no_dr", "mild", "moderate", "severe", "proliferative_dr")
"""Names of the grades 0 to 4, in their order."""

_NAMES = ("aptos2019", "aptos-2019", "aptos2019-blindness-detection", "aptos-2019-blindness-detection")
_TABLES = {"train": ("train.csv", "train_1.csv"), "val": ("valid.csv",), "test": ("test.csv",)}
_FOLDERS = {"train": ("train_images",), "val": ("val_images", "valid_images"), "test": ("test_images",)}


def _home(root: Path) -> Path | None:
    """Return the folder with a table of grades and the training images."""
    for home in homes(root, _NAMES):
        path = first_file(home, _TABLES["train"])
        header = first_lines(path, 1) if path else []
        if header and header[0].replace(" ", "") == "id_code,diagnosis" and (home / "train_images").is_dir():
            return home
    return None


@layout("aptos2019", detect=lambda root: _home(root) is not None)
def aptos2019(root: Path) -> Manifest:
    """Fundus photographs in five grades of diabetic retinopathy, in their order: 3,662 with a published grade.

    "APTOS 2019 Blindness Detection", Asia Pacific Tele-Ophthalmology Society, Kaggle 2019. Read: of
    the competition ``train.csv`` (id_code, diagnosis 0 to 4) and ``train_images/000c1434d8d7.png``; its
    test images are unlabelled and left out. Of the copy that divides the graded images in three:
    ``train_1.csv``, ``valid.csv`` and ``test.csv``, all with grades, and ``train_images``,
    ``val_images`` and ``test_images``, or the same folders within one of their name; its division is
    the copy's, not the organisers'. The classes are `GRADES`, and ``label_order`` is the grade. Who the
    patients are is not published, and some photographs are there twice, partly with different grades:
    a check finds them. Not verified on the files themselves: the names of the copy's folders.
    """
    home = _home(root)
    if home is None:
        raise DataError(
            f"{root}: not APTOS 2019; it has train.csv or train_1.csv with the columns id_code and diagnosis, and "
            "train_images"
        )
    parts, notes = [], []
    for split in _TABLES:
        part, said = _rows(root, home, split)
        parts += [] if part is None else [part]
        notes += said
    frame = pd.concat(parts, ignore_index=True)
    if len(parts) == 1:
        frame = frame.drop(columns="split")
    else:
        notes.insert(0, "the division is this copy's, not the organisers'")
    notes.append(
        "no patient identifiers are published, and some photographs are there twice: keep near duplicates together "
        "with data.split.group=near_duplicates"
    )
    return finished(frame, root, ["label"], "aptos2019", "APTOS 2019", notes)


def _rows(root: Path, home: Path, split: str) -> tuple[pd.DataFrame | None, list[str]]:
    """Return the rows of a split's images that are there, and what to say of the others; None without grades.

    Raises:
        DataError: a grade that is none.
    """
    path = first_file(home, _TABLES[split])
    if path is None:
        return None, []
    images: dict[str, str] = {}
    for name in _FOLDERS[split]:
        images |= images_by_stem(home / name / name, root) | images_by_stem(home / name, root)
    if split != "train" and not any("diagnosis" in line for line in first_lines(path, 1)):
        return None, [f"{counted(len(images), f'unlabelled {split} image')} left out"] if images else []
    table = published_table(path, ["id_code", "diagnosis"])
    names, grades = filled(table["id_code"], path), filled(table["diagnosis"], path)
    odd = grades.index[~grades.isin([str(grade) for grade in range(len(GRADES))])]
    if len(odd):
        raise DataError(
            f"{path}: line {int(odd[0]) + 2} has '{grades[odd[0]]}' in the column 'diagnosis', which is no grade from "
            f"0 to {len(GRADES) - 1}; give the table itself if the labels are your own"
        )
    order = grades.astype("int64")
    frame = pd.DataFrame(
        {
            "image": names.map(images).astype("str"),
            "split": split,
            "label": order.map(dict(enumerate(GRADES))).astype("str"),
            LABEL_ORDER: order,
        }
    )
    frame, said = only_present(frame, root, path)
    unlisted = len(images.keys() - set(names))
    said += [f"{counted(unlisted, 'image')} on disk without a row left out"] if unlisted else []
    return frame, said
