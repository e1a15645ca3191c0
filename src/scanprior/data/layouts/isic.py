"""The ISIC 2018 challenge: diagnoses (Task 3) and outlines of lesions (Task 1) on dermoscopic images.

Codella N. et al., "Skin lesion analysis toward melanoma detection 2018: a challenge hosted by the
International Skin Imaging Collaboration (ISIC)", arXiv:1902.03368. The two tasks have images of
their own. Not verified on the files themselves: the names of folders and tables.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from scanprior.data.layouts import layout
from scanprior.data.layouts.published import (
    filled,
    finished,
    first_file,
    first_lines,
    images_by_stem,
    only_present,
    published_table,
)
from scanprior.data.manifest import Manifest, counted
from scanprior.errors import DataError

DIAGNOSES = ("MEL", "NV", "BCC", "AKIEC", "BKL", "DF", "VASC")
"""Columns of the ground truth; in lower case they are the words of HAM10000."""

_PARTS = {"train": "Training", "val": "Validation", "test": "Test"}
_GROUPINGS = "ISIC2018_Task3_Training_LesionGroupings.csv"
_IMAGE = re.compile(r"ISIC_\d+(_downsampled)?")  # not ISIC_…_superpixels


def _truth(root: Path, split: str) -> Path | None:
    name = f"ISIC2018_Task3_{_PARTS[split]}_GroundTruth"
    path = first_file(root, (f"{name}.csv", f"{name}/{name}.csv"))
    return path if path and any("MEL" in line for line in first_lines(path, 1)) else None


@layout("isic2018", detect=lambda root: any(_truth(root, split) for split in _PARTS))
def isic2018(root: Path) -> Manifest:
    """Training, validation and test images of skin lesions, seven diagnoses.

    Read: ``ISIC2018_Task3_Training_GroundTruth.csv`` and those of Validation and Test, beside the
    image folders or in folders of their own names (image, then 1 for one of seven diagnoses and 0
    for the others); ``ISIC2018_Task3_Training_LesionGroupings.csv`` (image, lesion_id,
    diagnosis_confirm_type); images as ``ISIC2018_Task3_Training_Input/ISIC_0024306.jpg``. The
    training images are those of HAM10000. Who the patients are is not published: ``patient`` is the
    lesion, so that pictures of one lesion stay together, and missing where no table names it. See
    the module for the source.
    """
    tables = {split: path for split in _PARTS if (path := _truth(root, split)) is not None}
    if not tables:
        raise DataError(
            f"{root}: not ISIC 2018 Task 3; it has ISIC2018_Task3_Training_GroundTruth.csv with the columns image, "
            f"{', '.join(DIAGNOSES)}"
        )
    parts, notes, unlisted = [], [], 0
    for split, path in tables.items():
        part = one_hot(path, DIAGNOSES)
        images = images_of(root, f"ISIC2018_Task3_{_PARTS[split]}_Input")
        unlisted += len(images.keys() - set(part["id"]))
        part.insert(0, "image", part["id"].map(images).astype("str"))
        part, said = only_present(part.assign(split=split), root, path)
        parts.append(part)
        notes += said
    frame = pd.concat(parts, ignore_index=True)
    frame, of_lesions = _with_lesions(frame, root)
    if len(tables) == 1 and "train" in tables:
        frame = frame.drop(columns="split")
    notes += [f"{counted(unlisted, 'image')} on disk without a row left out"] if unlisted else []
    return finished(frame, root, ["label"], "isic2018", "ISIC 2018 Task 3", [*of_lesions, *notes])


def images_of(root: Path, folder: str) -> dict[str, str]:
    """Return the images of a folder, which an archive may hold in one of the same name, by their names."""
    found = images_by_stem(root / folder, root) or images_by_stem(root / folder / folder, root)
    return {stem: image for stem, image in found.items() if _IMAGE.fullmatch(stem)}


def one_hot(path: Path, diagnoses: Sequence[str]) -> pd.DataFrame:
    """Return id and label (in lower case) of a ground truth, each row of which has one 1 and else 0.

    Raises:
        DataError: another row; the sentence names its line.
    """
    table = published_table(path, ["image", *diagnoses])
    filled(table["image"], path)
    values = table[list(diagnoses)].apply(pd.to_numeric, errors="coerce")
    odd = table.index[~(values.isin([0, 1]).all(axis=1) & (values.sum(axis=1) == 1))]
    if len(odd):
        cells = table.loc[odd[0], list(diagnoses)].fillna("nothing")
        shown = ", ".join(f"{name} {cells[name]}" for name in diagnoses)
        raise DataError(
            f"{path}: line {int(odd[0]) + 2} gives {table['image'][odd[0]]} {shown}; one diagnosis is 1 and the others "
            "are 0, so unpack the published file again or give a table of your own"
        )
    return pd.DataFrame({"id": table["image"], "label": values.idxmax(axis=1).str.lower()})


def _with_lesions(frame: pd.DataFrame, root: Path) -> tuple[pd.DataFrame, list[str]]:
    """Put the lesion of each image in place of its ``id``; return (the frame, what to say of it)."""
    path = first_file(root, (_GROUPINGS, f"ISIC2018_Task3_Training_GroundTruth/{_GROUPINGS}"))
    if path is None:
        lacking = f"no {_GROUPINGS}: pictures of one lesion may come into different splits"
        return frame.drop(columns="id"), [lacking] if (frame["split"] == "train").any() else []
    table = published_table(path, ["image", "lesion_id"], ["diagnosis_confirm_type"]).drop_duplicates()
    twice = table.index[table["image"].duplicated()]
    if len(twice):
        raise DataError(
            f"{path}: line {int(twice[0]) + 2} gives '{table['image'][twice[0]]}' a second lesion; download it again"
        )
    known = table.set_index("image")
    frame.insert(1, "patient", frame["id"].map(known["lesion_id"]).astype("str"))
    if "diagnosis_confirm_type" in known.columns:
        frame["confirmed_by"] = frame["id"].map(known["diagnosis_confirm_type"]).astype("str")
    notes = ["a patient here is a lesion: one person may have several, and nothing published tells"]
    unknown = int((frame["patient"].isna() & (frame["split"] == "train")).sum())
    notes += [f"{counted(unknown, 'training image')} without a lesion in {path.name}"] if unknown else []
    return frame.drop(columns="id"), notes


def _outlined(root: Path) -> list[str]:
    """Return the splits whose images of Task 1 are there."""
    return [split for split, part in _PARTS.items() if (root / f"ISIC2018_Task1-2_{part}_Input").is_dir()]


@layout("isic2018-task1", detect=lambda root: bool(_outlined(root)))
def isic2018_task1(root: Path) -> Manifest:
    """Training, validation and test images of skin lesions with their outlines as masks.

    Read: ``ISIC2018_Task1-2_Training_Input/ISIC_0000000.jpg`` and
    ``ISIC2018_Task1_Training_GroundTruth/ISIC_0000000_segmentation.png``, and the same of Validation
    and Test. Lesions and patients are not published. See the module for the source.
    """
    splits = _outlined(root)
    if not splits:
        raise DataError(
            f"{root}: not ISIC 2018 Task 1; it has ISIC2018_Task1-2_Training_Input and "
            "ISIC2018_Task1_Training_GroundTruth"
        )
    frame = pd.concat([_outlines(root, split) for split in splits], ignore_index=True)
    masked = int(frame["mask"].notna().sum())
    notes = [f"{counted(masked, 'image')} with an outline of the lesion"]
    if splits == ["train"]:
        frame = frame.drop(columns="split")
    notes.append("no patient identifiers are published")
    return finished(frame, root, [], "isic2018-task1", "ISIC 2018 Task 1", notes)


def _outlines(root: Path, split: str) -> pd.DataFrame:
    images = images_of(root, f"ISIC2018_Task1-2_{_PARTS[split]}_Input")
    masks = masks_of(root, f"ISIC2018_Task1_{_PARTS[split]}_GroundTruth")
    stems = pd.Series(list(images), dtype="str")
    return pd.DataFrame(
        {"image": stems.map(images), "split": split, "mask": stems.map(masks).astype("str")}
    )  # fmt: skip


def masks_of(root: Path, folder: str) -> dict[str, str]:
    """Return the masks of a folder, ``ISIC_0000000_segmentation.png``, by the names of their images."""
    masks = images_by_stem(root / folder, root) or images_by_stem(root / folder / folder, root)
    return {stem.removesuffix("_segmentation"): mask for stem, mask in masks.items()}
