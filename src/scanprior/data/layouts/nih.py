"""ChestX-ray14 of the NIH Clinical Center."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd

from scanprior.data.layouts import layout
from scanprior.data.layouts.published import (
    OLDEST,
    age_years,
    filled,
    finished,
    first_file,
    images_by_stem,
    only_present,
    published_table,
    sexes,
)
from scanprior.data.manifest import Manifest, counted
from scanprior.errors import DataError

FINDINGS = (
    "Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Effusion", "Emphysema", "Fibrosis", "Hernia",
    "Infiltration", "Mass", "Nodule", "Pleural_Thickening", "Pneumonia", "Pneumothorax",
)  # fmt: skip

_TABLES = ("Data_Entry_2017_v2020.csv", "Data_Entry_2017.csv")  # the later one has corrected ages
_IMAGE_FOLDER = re.compile(r"images(?:_\d{1,3})?")
_LISTS = {"train": "train_val_list.txt", "test": "test_list.txt"}


def _home(root: Path) -> Path | None:
    return next((home for home in (root, root / "CXR8") if first_file(home, _TABLES)), None)


@layout("nih-chestxray14", detect=lambda root: _home(root) is not None)
def nih_chestxray14(root: Path) -> Manifest:
    """112,120 frontal radiographs of 30,805 adults and children, 14 text-mined findings.

    Wang X. et al., "ChestX-ray8: Hospital-scale chest X-ray database and benchmarks…", CVPR 2017
    (arXiv:1705.02315). Read: ``Data_Entry_2017_v2020.csv``, else ``Data_Entry_2017.csv`` (columns
    as published, "Patient Gender" or "Patient Sex"), ``train_val_list.txt`` and ``test_list.txt``
    (86,524 and 25,596 names, which together are the table, so one list is enough), and pictures in
    ``images_001/images/`` … ``images_012/images/`` or one ``images/``; a copy converted to JPEG is
    accepted. "No Finding" is 0 in every finding. Patients are eight digits in both tables. Ages
    above 110 years (411 among them) are errors of the source and missing here. Not verified on the
    files themselves: that ages of the older table end in Y, M or D.
    """
    home = _home(root)
    table_path = first_file(home, _TABLES) if home else None
    if home is None or table_path is None:
        raise DataError(f"{root}: not ChestX-ray14; it has {_TABLES[0]} or {_TABLES[1]}")
    table = published_table(
        table_path,
        ["Image Index", "Finding Labels", "Follow-up #", "Patient ID", "Patient Age", "View Position"],
        ["Patient Gender", "Patient Sex"],
    )
    images = _images(home, root)
    stems = filled(table["Image Index"], table_path).map(lambda name: Path(name).stem)
    frame = pd.DataFrame(
        {
            "image": stems.map(images).astype("str"),
            "patient": filled(table["Patient ID"], table_path).str.zfill(8),
            "split": _official_split(home, stems),
            "age": age_years(table["Patient Age"]),
            "sex": sexes(table.get("Patient Gender", table.get("Patient Sex", pd.Series(dtype="str")))),
            "view": table["View Position"],
            "follow_up": pd.to_numeric(table["Follow-up #"], errors="coerce"),
        }
    )
    frame = pd.concat([frame, _findings(table["Finding Labels"], table_path)], axis=1)
    wrong = int((frame["age"].isna() & table["Patient Age"].notna()).sum())
    unlisted = len(images.keys() - set(stems))
    frame, notes = only_present(frame, root, table_path)
    notes.insert(0, _said_of_split(home, frame))
    if unlisted:
        notes.append(f"{counted(unlisted, 'image')} on disk without a row left out")
    if wrong:
        notes.append(f"{counted(wrong, 'age')} above {OLDEST} years or unreadable taken as missing")
    return finished(frame, root, FINDINGS, "nih-chestxray14", "ChestX-ray14", notes)


def _images(home: Path, root: Path) -> dict[str, str]:
    """Return the pictures of all unpacked archives by name."""
    found: dict[str, str] = {}
    for folder in sorted(home.iterdir()):
        if _IMAGE_FOLDER.fullmatch(folder.name) and folder.is_dir():
            for below in (folder / "images", folder):
                found = images_by_stem(below, root) | found
    return found


def _findings(column: pd.Series, path: Path) -> pd.DataFrame:
    """Return one column a finding: 1, 0, or missing where the table says nothing."""
    given = column.str.get_dummies(sep="|").rename(columns=str.strip)
    unknown = [name for name in given.columns if name not in (*FINDINGS, "No Finding")]
    if unknown:
        line = int(str(given.index[given[unknown[0]] == 1][0])) + 2
        raise DataError(
            f"{path}: line {line} has '{unknown[0]}' in the column 'Finding Labels', which is none of the 14 "
            "published findings; give the table itself if the labels are your own"
        )
    given = given.reindex(columns=list(FINDINGS), fill_value=0).astype("float64")
    return given.where(column.notna())


def _official_split(home: Path, stems: pd.Series) -> pd.Series:
    """Return train or test for each image, by one list or both; missing in neither of two lists."""
    lists = {split: _listed(home / name) for split, name in _LISTS.items()}
    both = (lists["train"] or set()) & (lists["test"] or set())
    if both:
        raise DataError(
            f"{home}: '{min(both)}' is in train_val_list.txt and in test_list.txt; download the two again"
        )
    split = pd.Series(None, index=stems.index, dtype="str")
    for name, other in (("train", "test"), ("test", "train")):
        known, rest = lists[name], lists[other]
        if known is not None:
            split[stems.isin(known)] = name
        elif rest is not None:
            split[~stems.isin(rest)] = name
    return split


def _listed(path: Path) -> set[str] | None:
    """Return the names of a list without suffix, or None where there is no list."""
    if not path.is_file():
        return None
    try:
        return {Path(line.strip()).stem for line in path.read_text(encoding="utf-8-sig").split()}
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: the list is not text; download it again") from error


def _said_of_split(home: Path, frame: pd.DataFrame) -> str:
    lacking = [name for name in _LISTS.values() if not (home / name).is_file()]
    if len(lacking) == 2:
        return "no official split (train_val_list.txt and test_list.txt are not there)"
    unknown = int(frame["split"].isna().sum())
    return "official test split" + (f", {counted(unknown, 'image')} in neither list" if unknown else "")
