"""HAM10000, dermoscopic images of pigmented skin lesions."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from scanprior.data.layouts import layout
from scanprior.data.layouts.isic import DIAGNOSES, masks_of
from scanprior.data.layouts.published import (
    age_years,
    file_names,
    filled,
    finished,
    first_file,
    first_lines,
    images_by_stem,
    only_present,
    published_table,
    sexes,
)
from scanprior.data.manifest import Manifest, counted
from scanprior.errors import DataError

_TABLES = ("HAM10000_metadata.csv", "HAM10000_metadata.tab", "HAM10000_metadata")
_TEST_TABLES = ("ISIC2018_Task3_Test_GroundTruth.csv", "ISIC2018_Task3_Test_GroundTruth.tab")
_IMAGE_FOLDER = re.compile(r"(ham10000_)?images(_part_?\d)?", re.IGNORECASE)
_TEST_FOLDERS = ("ISIC2018_Task3_Test_Images", "ISIC2018_Task3_Test_Input")
_MASK_FOLDER = "HAM10000_segmentations_lesion_tschandl"


@layout("ham10000", detect=lambda root: first_file(root, _TABLES) is not None)
def ham10000(root: Path) -> Manifest:
    """Dermoscopic images of pigmented lesions, seven diagnoses.

    Tschandl P., Rosendahl C., Kittler H., "The HAM10000 dataset, a large collection of multi-source
    dermatoscopic images of common pigmented skin lesions", Scientific Data 2018;5:180161. Read:
    ``HAM10000_metadata.csv``, ``.tab`` or without a suffix (lesion_id, image_id, dx, dx_type, age,
    sex, localization and, in the authors' own, dataset, which is the ``site``), images in
    ``HAM10000_images_part_1``, ``…part_2``, ``HAM10000_images``, ``images`` or beside the table; the
    outlines of ``HAM10000_segmentations_lesion_tschandl``; and the test images of the ISIC 2018
    challenge where the authors' ``ISIC2018_Task3_Test_GroundTruth`` (with the same columns) and
    ``ISIC2018_Task3_Test_Images`` lie beside. Copies that hold an archive twice in other case are
    counted once. ``patient`` is the lesion: who the patients are is not published. Not verified on
    the files themselves: the folders and the table of the challenge's test images.
    """
    path = first_file(root, _TABLES)
    if path is None:
        raise DataError(f"{root}: not HAM10000; it has {_TABLES[0]} (or .tab)")
    frame, notes = _rows(path, _first_of_each(_image_folders(root), root), root)
    test = first_file(root, _TEST_TABLES)
    if test is not None and any("dx" in line for line in first_lines(test, 1)):
        folders = (place for name in _TEST_FOLDERS for place in (root / name, root / name / name))
        of_test, said = _rows(test, _first_of_each(folders, root), root)
        frame = pd.concat([frame.assign(split="train"), of_test.assign(split="test")], ignore_index=True)
        notes += said
        shared = int(frame.groupby("patient")["split"].nunique().gt(1).sum())
        notes += [f"{counted(shared, 'lesion')} in train and test"] if shared else []
    masks = masks_of(root, _MASK_FOLDER)
    frame["mask"] = frame["image"].map(lambda image: masks.get(Path(image).stem)).astype("str")
    masked = int(frame["mask"].notna().sum())
    notes = [f"{counted(masked, 'image')} with an outline of the lesion", *notes] if masked else notes
    notes.insert(0, "a patient here is a lesion: one person may have several, and nothing published tells")
    return finished(frame, root, ["label"], "ham10000", "HAM10000", notes)


def _image_folders(root: Path) -> Iterable[Path]:
    for name in sorted(file_names(root)):
        if _IMAGE_FOLDER.fullmatch(name) and (root / name).is_dir():
            yield from (root / name, root / name / name)
    yield root


def _first_of_each(folders: Iterable[Path], root: Path) -> dict[str, str]:
    """Return the images of several folders by their names, each as it is found first."""
    found: dict[str, str] = {}
    for folder in folders:
        found = images_by_stem(folder, root) | found
    return found


def _rows(path: Path, images: dict[str, str], root: Path) -> tuple[pd.DataFrame, list[str]]:
    """Return the rows of a table whose images are there, and what to say of the others."""
    table = published_table(
        path, ["lesion_id", "image_id", "dx"], ["dx_type", "age", "sex", "localization", "dataset"]
    )
    for name in ("lesion_id", "image_id", "dx"):
        filled(table[name], path)
    label = table["dx"].str.lower()
    odd = table.index[~label.isin([name.lower() for name in DIAGNOSES])]
    if len(odd):
        raise DataError(
            f"{path}: line {int(odd[0]) + 2} has '{table['dx'][odd[0]]}' in the column 'dx', which is none of "
            f"{', '.join(DIAGNOSES).lower()}; give the table itself if the labels are your own"
        )
    side = table.reindex(columns=["dx_type", "age", "sex", "localization", "dataset"]).astype("str")
    frame = pd.DataFrame(
        {
            "image": table["image_id"].map(images).astype("str"),
            "patient": table["lesion_id"],
            "label": label,
            "age": age_years(side["age"]),
            "sex": sexes(side["sex"]),
            "localization": side["localization"],
            "dx_type": side["dx_type"],
            "site": side["dataset"],
        }
    )
    frame, said = only_present(frame, root, path)
    unlisted = len(images.keys() - set(table["image_id"]))
    said += [f"{counted(unlisted, 'image')} on disk without a row left out"] if unlisted else []
    return frame, said
