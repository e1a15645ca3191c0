"""CBIS-DDSM of The Cancer Imaging Archive: mammograms with masses and calcifications, benign or malignant."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from scanprior.data.layouts import layout
from scanprior.data.layouts.published import filled, finished, first_lines, prefix_of, published_table
from scanprior.data.manifest import Manifest, counted
from scanprior.data.paths import walk
from scanprior.data.readers import is_image_path
from scanprior.errors import DataError

PATHOLOGIES = ("BENIGN_WITHOUT_CALLBACK", "BENIGN", "MALIGNANT")
"""Up to the gravest: an image is what the gravest of its abnormalities is."""

_KINDS = {"mass": "mass", "calc": "calcification"}
_SPLITS = ("train", "test")
_TABLE_FOLDERS = ("", "csv", "CBIS-DDSM", "CBIS-DDSM/csv")
_PATH = "image file path"
_NEEDED = ("patient_id", "left or right breast", "image view", "abnormality id", "pathology", _PATH)
_SIDE = ("assessment", "subtlety", "breast_density", "breast density")
_EXAMPLE = "Mass-Training_P_00001_LEFT_CC/…/…/000000.dcm"
_PUBLISHED = re.compile(
    r"^(?:[^/]+/)*(?P<case>(?:Mass|Calc)-(?:Training|Test)_P_\d+_(?:LEFT|RIGHT)_(?:CC|MLO))"
    r"/(?:[^/]+/)*?(?:(?P<series>[^/]+)/)?[^/]+$"
)
_MAMMOGRAM = ["patient", "laterality", "view"]
_FULL = "full mammogram"


class _Table(NamedTuple):
    """One of the four tables: ``kind`` mass or calc, ``split`` train or test."""

    kind: str
    split: str
    path: Path


def _tables(root: Path) -> list[_Table]:
    found = []
    for kind in _KINDS:
        for split in _SPLITS:
            name = f"{kind}_case_description_{split}_set.csv"
            paths = (root / folder / name for folder in _TABLE_FOLDERS)
            path = next((path for path in paths if _PATH in "".join(first_lines(path, 1))), None)
            found += [_Table(kind, split, path)] if path else []
    return found


@layout("cbis-ddsm", detect=lambda root: bool(_tables(root)))
def cbis_ddsm(root: Path) -> Manifest:
    """Full mammograms of 1,566 patients with a mass or calcifications: benign or malignant.

    Lee R. S. et al., "A curated mammography data set for use in computer-aided detection and diagnosis
    research", Scientific Data 2017;4:170177. Read: ``mass_case_description_train_set.csv``, the same
    of ``test`` and of ``calc``, beside the images, in ``csv`` or in ``CBIS-DDSM``, with a row for each
    abnormality; images by the column "image file path" (`_EXAMPLE`). What loads the images down
    renames the folders below a case and its files, so that an image is looked for in this order: where
    the table says; as the one image of the case's folder in the named series, or in one called "…full
    mammogram images…", or at all; as the one image in a folder of the series' name (copies as JPEG,
    ``jpeg/1.3.6…/1-263.jpg``). Cases are in the folder itself, in ``CBIS-DDSM`` or in
    ``manifest-…/CBIS-DDSM``.

    ``label`` is malignant if an abnormality of the mammogram is, in whichever table, else benign;
    "benign without callback" is benign, and ``pathology`` tells them apart. ``assessment`` (BI-RADS) and
    ``subtlety`` (5 is obvious) are the highest of the abnormalities. A mammogram that both tables of a
    split describe is counted once. Masks and cropped images are not read: in some rows the one stands
    in the column of the other.

    The split is the published one, of masses and of calcifications each by itself: some patients who have
    both are in train and in test, which ``check`` calls leakage. Not verified on the files themselves:
    the renamed folders and the JPEG copies.
    """
    tables = _tables(root)
    if not tables:
        raise DataError(
            f"{root}: not CBIS-DDSM; it has mass_case_description_train_set.csv (and test, calc) with the columns "
            f"patient_id, pathology and {_PATH}"
        )
    rows = _with_verdict(pd.concat([_rows(table) for table in tables], ignore_index=True))
    rows, notes = _with_images(rows, root, tables)
    frame, said = _mammograms(rows)
    notes = [*said, *notes]
    if frame["split"].nunique() == 1:
        notes.append(f"only images of the {frame['split'].iloc[0]} tables")
        frame = frame.drop(columns="split") if frame["split"].iloc[0] == "train" else frame
    notes.append("masks and cropped images are not read")
    return finished(frame, root, ["label"], "cbis-ddsm", "CBIS-DDSM", notes)


def _rows(table: _Table) -> pd.DataFrame:
    """Return a table's abnormalities, one a row, with ``file``, ``case`` and ``series`` of the published path.

    Raises:
        DataError: a side, a view, a pathology or a path of another form.
    """
    found = published_table(table.path, _NEEDED, _SIDE)
    for name in _NEEDED:
        filled(found[name], table.path)
    found["pathology"] = found["pathology"].str.upper().str.replace(" ", "_")
    file = found[_PATH].str.replace("\\", "/").str.strip("\"' \r\n\t/")
    parts = file.str.extract(_PUBLISHED)
    allowed = {
        "left or right breast": found["left or right breast"].str.upper().isin(["LEFT", "RIGHT"]),
        "image view": found["image view"].str.upper().isin(["CC", "MLO"]),
        "pathology": found["pathology"].isin(PATHOLOGIES),
        _PATH: parts["case"].notna() & ~file.str.contains(r"(?:^|/)\.\.?(?:/|$)"),
    }
    forms = ("LEFT or RIGHT", "CC or MLO", ", ".join(PATHOLOGIES), _EXAMPLE)
    for (name, fine), form in zip(allowed.items(), forms, strict=True):
        if not fine.all():
            number = int(fine.index[~fine][0])  # rows, not lines: cells of these tables hold line breaks
            raise DataError(
                f"{table.path}: row {number + 1} below the header has '{found[name][number]}' in the column '{name}', "
                f"which is not of the form {form}; unpack the published file again"
            )
    side = found.reindex(columns=list(_SIDE)).apply(pd.to_numeric, errors="coerce")
    return pd.DataFrame(
        {
            "patient": found["patient_id"],
            "laterality": found["left or right breast"].str.upper().str[0],
            "view": found["image view"].str.upper(),
            "split": table.split,
            "kind": table.kind,
            "gravity": found["pathology"].map(PATHOLOGIES.index),
            "assessment": side["assessment"],
            "subtlety": side["subtlety"],
            "density": side["breast_density"].fillna(side["breast density"]),
            "file": file,
            "case": parts["case"],
            "series": parts["series"],
        }
    )


def _with_images(rows: pd.DataFrame, root: Path, tables: Sequence[_Table]) -> tuple[pd.DataFrame, list[str]]:
    """Return the rows whose image is there, with ``image``, and what to say of the others.

    Raises:
        DataError: not one image is there, or several fit a row.
    """
    homes = _homes(root)
    places = rows.drop_duplicates("file").set_index("file")
    images = {
        str(file): _image(homes, root, str(file), str(place["case"]), place["series"])
        for file, place in places.iterrows()
    }
    rows = rows.assign(image=rows["file"].map(images).astype("str"))
    gone = rows[rows["image"].isna()].drop_duplicates("file")
    if len(gone) == len(places):
        first = gone.iloc[0]
        raise DataError(
            f"{tables[0].path}: not one image of its rows is there, such as '{first['file']}'; put the folders of the "
            f"cases ({first['case']} and so on, whatever is below them) beside the table, into CBIS-DDSM there, or "
            f"leave them in the manifest-… folder that holds them, within {root}"
        )
    notes = []
    for table in tables:
        lost = gone.loc[(gone["kind"] == table.kind) & (gone["split"] == table.split), "file"]
        if len(lost):
            what = counted(len(lost), "mammogram")
            notes.append(f"{what} of {table.path.name} not there and left out, such as '{lost.iloc[0]}'")
    return rows[rows["image"].notna()], notes


def _homes(root: Path) -> list[Path]:
    """Return the folders that may hold the folders of the cases, or of the series."""
    nested = [root, *sorted(root.glob("CBIS-DDSM")), *sorted(root.glob("*/CBIS-DDSM"))]
    return [place for home in nested for place in (home, home / "jpeg") if place.is_dir()]


def _image(homes: Sequence[Path], root: Path, file: str, case: str, series: object) -> str | None:
    """Return the reference of a row's image, or None where none is found.

    Raises:
        DataError: several images fit.
    """
    for home in homes:
        if (home / file).is_file():
            return prefix_of(home, root) + file
        for name in (case, series):
            if not isinstance(name, str) or not (home / name).is_dir():
                continue
            images = [image for image in walk(home / name) if is_image_path(image)]
            named = [image for image in images if isinstance(series, str) and series in image.split("/")[:-1]]
            full = [image for image in images if _FULL in image.lower()]
            fitting = named or full or images
            if len(fitting) > 1:
                raise DataError(
                    f"{home / name}: '{file}' may be {fitting[0]} or {fitting[1]}; leave the one that is the full "
                    "mammogram there"
                )
            if fitting:
                return prefix_of(home / name, root) + fitting[0]
    return None


def _with_verdict(rows: pd.DataFrame) -> pd.DataFrame:
    """Add what all tables together say of the mammogram of each row, whether its other images are there or not."""
    of_one = rows.groupby(_MAMMOGRAM)
    pathology = of_one["gravity"].transform("max").map(dict(enumerate(PATHOLOGIES))).str.lower()
    kinds = of_one["kind"].agg(lambda kind: " and ".join(_KINDS[name] for name in dict.fromkeys(kind)))
    return rows.assign(
        label=pathology.where(pathology == "malignant", "benign"),
        pathology=pathology,
        abnormality=kinds.reindex(pd.MultiIndex.from_frame(rows[_MAMMOGRAM])).to_numpy(),
        abnormalities=of_one["file"].transform("size"),
        assessment=of_one["assessment"].transform("max"),
        subtlety=of_one["subtlety"].transform("max"),
        density=of_one["density"].transform("first"),
    )


def _mammograms(rows: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """Return one row a mammogram and split, and what to say of them."""
    frame = rows.drop_duplicates([*_MAMMOGRAM, "split"]).drop(
        columns=["kind", "gravity", "file", "case", "series"]
    )
    first = ["image", "patient", "split", "label"]
    frame = frame[[*first, *frame.columns.difference(first, sort=False)]].reset_index(drop=True)
    several = int((frame["abnormalities"] > 1).sum())
    both = int(frame.drop_duplicates(_MAMMOGRAM)["abnormality"].str.contains(" and ").sum())
    across = int(frame.groupby("patient")["split"].nunique().gt(1).sum())
    notes = []
    if across:
        notes.append(f"{across:,} of the patients in train and in test, as published")
    if several:
        notes.append(f"{counted(several, 'image')} of several abnormalities, malignant if one is")
    if both:
        notes.append(f"{counted(both, 'mammogram')} with a mass and calcifications, counted once in a split")
    return frame, notes
