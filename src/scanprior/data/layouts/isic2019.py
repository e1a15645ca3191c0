"""The ISIC 2019 challenge: dermoscopic images of eight diagnoses, from three collections."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from scanprior.data.layouts import layout
from scanprior.data.layouts.isic import images_of, one_hot
from scanprior.data.layouts.published import (
    age_years,
    finished,
    first_file,
    first_lines,
    only_present,
    published_table,
    sexes,
)
from scanprior.data.manifest import Manifest, counted
from scanprior.errors import DataError

DIAGNOSES = ("MEL", "NV", "BCC", "AK", "BKL", "DF", "VASC", "SCC")
"""Columns of the ground truth; UNK, none of the eight, is one more."""

HAM10000 = (24306, 34320)
"""First and last number of the images of HAM10000, which are all numbers between."""

_UNKNOWN = "UNK"
_PARTS = {"train": "Training", "test": "Test"}
_SIDE = ("age_approx", "anatom_site_general", "lesion_id", "sex")
_SMALLER = "_downsampled"


def _table(root: Path, split: str, kind: str) -> Path | None:
    name = f"ISIC_2019_{_PARTS[split]}_{kind}"
    return first_file(root, (f"{name}.csv", f"{name}/{name}.csv"))


def _truth(root: Path, split: str) -> Path | None:
    path = _table(root, split, "GroundTruth")
    return path if path and any("SCC" in line for line in first_lines(path, 1)) else None


@layout("isic2019", detect=lambda root: _truth(root, "train") is not None)
def isic2019(root: Path) -> Manifest:
    """25,331 training images of skin lesions, eight diagnoses.

    HAM10000 (Tschandl P. et al., Scientific Data 2018;5:180161), BCN_20000 (Combalia M. et al.,
    arXiv:1908.02288) and MSK (Codella N. et al., arXiv:1710.05006). Read:
    ``ISIC_2019_Training_GroundTruth.csv`` (image, then 1 for one diagnosis and 0 for the others; UNK,
    none of them, is empty in training), ``ISIC_2019_Training_Metadata.csv`` (image, age_approx,
    anatom_site_general, lesion_id, sex) and ``ISIC_2019_Training_Input/ISIC_0000000.jpg``, or the same
    folder within one of its name. Some names end in ``_downsampled``, in the tables as on disk; where
    only one of the two has it, they are still one image. Where ``ISIC_2019_Test_GroundTruth.csv`` lies
    beside, its images are the test split, and those of UNK among them stay without a label, since it
    is no class of the training images.

    ``patient`` is the lesion, so that pictures of one stay together; an image without one is alone. Who
    the patients are is not published. ``site`` is the collection that the lesion's name begins with
    (HAM, BCN, MSK), and HAM for the numbers of HAM10000. Not verified on the files themselves: the
    names of lesions, and the tables of the test images.
    """
    tables = {split: path for split in _PARTS if (path := _truth(root, split)) is not None}
    if "train" not in tables:
        raise DataError(
            f"{root}: not ISIC 2019; it has ISIC_2019_Training_GroundTruth.csv with the columns image, "
            f"{', '.join(DIAGNOSES)} and {_UNKNOWN}"
        )
    parts, notes = [], []
    for split, path in tables.items():
        part, said = _rows(root, split, path)
        parts.append(part)
        notes += said
    frame = pd.concat(parts, ignore_index=True)
    shared = int(frame["site"].eq("HAM").sum())
    first = ["a patient here is a lesion: one person may have several, and nothing published tells"]
    first += [f"{counted(shared, 'image')} of HAM10000 among them"] if shared else []
    if list(tables) == ["train"]:
        frame = frame.drop(columns="split")
    return finished(frame, root, ["label"], "isic2019", "ISIC 2019", [*first, *notes])


def _rows(root: Path, split: str, path: Path) -> tuple[pd.DataFrame, list[str]]:
    """Return the rows of a split's images that are there, and what to say of them and of the others."""
    named = one_hot(path, [*DIAGNOSES, _UNKNOWN])
    images = images_of(root, f"ISIC_2019_{_PARTS[split]}_Input")
    places = _matched(named["id"], images)
    side, notes = _metadata(root, split, named["id"])
    frame = pd.DataFrame(
        {
            "image": places.map(images).astype("str"),
            "patient": side["lesion_id"],
            "split": split,
            "label": named["label"].where(named["label"] != _UNKNOWN.lower()),
            "age": age_years(side["age_approx"]),
            "sex": sexes(side["sex"]),
            "localization": side["anatom_site_general"],
            "site": _collection(named["id"], side["lesion_id"]),
        }
    )
    unlisted = len(images.keys() - set(places.dropna()))
    frame, said = only_present(frame, root, path)
    unknown = int(frame["label"].isna().sum())
    notes += (
        [f"{counted(unknown, _PARTS[split].lower() + ' image')} of {_UNKNOWN} without a label"]
        if unknown
        else []
    )
    said += [f"{counted(unlisted, 'image')} on disk without a row left out"] if unlisted else []
    return frame, [*notes, *said]


def _matched(names: pd.Series, images: dict[str, str]) -> pd.Series:
    """Return for each name of a table the name on disk, which may have or lack ``_downsampled``; missing without."""
    plain = {name.removesuffix(_SMALLER): name for name in sorted(images, reverse=True)}
    return names.map(lambda name: name if name in images else plain.get(name.removesuffix(_SMALLER))).astype(
        "str"
    )


def _metadata(root: Path, split: str, names: pd.Series) -> tuple[pd.DataFrame, list[str]]:
    """Return the columns of the metadata for the images of a ground truth, and what to say of them.

    Raises:
        DataError: an image that is named twice with different values.
    """
    path = _table(root, split, "Metadata")
    if path is None:
        lacking = f"no ISIC_2019_{_PARTS[split]}_Metadata.csv"
        lacking += ": pictures of one lesion may come into different splits" if split == "train" else ""
        return pd.DataFrame(index=names.index, columns=list(_SIDE), dtype="str"), [lacking]
    needed = ["image", "lesion_id"] if split == "train" else ["image"]
    table = published_table(path, needed, [name for name in _SIDE if name not in needed]).drop_duplicates()
    twice = table["image"][table["image"].duplicated()]
    if len(twice):
        raise DataError(
            f"{path}: gives '{twice.iloc[0]}' twice with different values; unpack the published file again"
        )
    known = table.set_index("image").reindex(columns=list(_SIDE)).astype("str")
    side = known.reindex(names).set_axis(names.index)
    alone = int(side["lesion_id"].isna().sum())
    notes = [f"{counted(alone, 'training image')} without a lesion"] if alone and split == "train" else []
    return side, notes


def _collection(names: pd.Series, lesions: pd.Series) -> pd.Series:
    """Return HAM, BCN or MSK, missing where neither lesion nor number tells."""
    numbers = names.str.extract(r"ISIC_(\d+)")[0].astype("float64")
    of_lesion = lesions.str.extract(r"^([A-Z]+)")[0].astype("str")
    return of_lesion.mask(of_lesion.isna() & numbers.between(*HAM10000), "HAM")
