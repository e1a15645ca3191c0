"""The RSNA Pneumonia Detection Challenge."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd

from scanprior.data.layouts import layout
from scanprior.data.layouts.published import filled, finished, images_by_stem, only_present, published_table
from scanprior.data.manifest import Manifest, counted
from scanprior.errors import DataError

_LABELS = "stage_2_train_labels.csv"
_CLASSES = "stage_2_detailed_class_info.csv"
_TITLE = "the RSNA Pneumonia Detection Challenge"


@layout("rsna-pneumonia", detect=lambda root: (root / _LABELS).is_file())
def rsna_pneumonia(root: Path) -> Manifest:
    """26,684 labelled frontal radiographs, pneumonia (a lung opacity suspicious of it) or not, boxes counted.

    Shih G. et al., "Augmenting the National Institutes of Health chest radiograph dataset with
    expert annotations of possible pneumonia", Radiology: Artificial Intelligence 2019,
    doi:10.1148/ryai.2019180041. Read: ``stage_2_train_labels.csv`` (one row a box: patientId, x, y,
    width, height, Target), ``stage_2_detailed_class_info.csv`` (kept as ``detailed_class``: "No
    Lung Opacity / Not Normal" images are ill, and count as no_pneumonia as in the challenge), and
    ``stage_2_train_images/ID.dcm`` (a copy converted to PNG or JPEG is accepted). The challenge's
    test images have no labels: they are left out and counted, and can be indexed by themselves;
    only where the table labels them are they taken, as the split test.

    A ``patientId`` names an image, not a person: the pictures come from ChestX-ray14, where
    patients have several. With RSNA's ``pneumonia-challenge-dataset-mappings_2018.json``
    (``subset_img_id``, ``img_id``) beside the tables, the patient is that of ChestX-ray14; without,
    it is said that the identifiers do not rule out leakage. The name of that file and its keys were
    seen in public code, not on the file itself.
    """
    path = root / _LABELS
    if not path.is_file():
        raise DataError(f"{root}: not {_TITLE}; it has {_LABELS}")
    frame = _one_row_an_image(path)
    notes = []
    if (root / _CLASSES).is_file():
        frame["detailed_class"] = frame["id"].map(_detailed(root / _CLASSES)).astype("str")
    else:
        notes.append(f"no {_CLASSES}")
    train, test = (images_by_stem(root / f"stage_2_{split}_images", root) for split in ("train", "test"))
    frame.insert(0, "image", frame["id"].map({**test, **train}).astype("str"))
    if frame["image"].isin(test.values()).any():
        frame.insert(2, "split", frame["image"].isin(test.values()).map({True: "test", False: "train"}))
    people = _people(root)
    known = frame["id"].map(people)
    frame.insert(1, "patient", known.fillna(frame["id"]).astype("str"))
    if people:
        notes.insert(0, f"{counted(int(known.notna().sum()), 'image')} traced to ChestX-ray14 patients")
    else:
        notes.insert(0, "identifiers name images: one person may have several, and nothing here tells")
    unlabelled = len(test.keys() - set(frame["id"]))
    if unlabelled:
        notes.append(f"{counted(unlabelled, 'unlabelled test image')} left out")
    frame, said = only_present(frame.drop(columns="id"), root, path)
    return finished(frame, root, ["label"], "rsna-pneumonia", _TITLE, [*notes, *said])


def _one_row_an_image(path: Path) -> pd.DataFrame:
    """Return id, label and boxes from one row a box; an image with any Target 1 is positive."""
    table = published_table(path, ["patientId", "x", "y", "width", "height", "Target"])
    for name in ("patientId", "Target"):
        filled(table[name], path)
    odd = table.index[~table["Target"].isin(["0", "1"])]
    if len(odd):
        raise DataError(
            f"{path}: line {int(odd[0]) + 2} has '{table['Target'][odd[0]]}' in the column 'Target', which is 0 or 1"
        )
    boxed = table[["x", "y", "width", "height"]].notna().all(axis=1)
    by_image = pd.DataFrame({"target": table["Target"].astype(int), "boxes": boxed.astype(int)})
    grouped = by_image.groupby(table["patientId"], sort=True).agg({"target": "max", "boxes": "sum"})
    label = grouped["target"].map({1: "pneumonia", 0: "no_pneumonia"}).astype("str")
    return pd.DataFrame(
        {"id": grouped.index, "label": label.to_numpy(), "boxes": grouped["boxes"].to_numpy()}
    )


def _detailed(path: Path) -> dict[str, str]:
    """Return the class of each image; the table repeats a row for each box."""
    table = published_table(path, ["patientId", "class"]).drop_duplicates()
    twice = table.index[table["patientId"].duplicated()]
    if len(twice):
        raise DataError(
            f"{path}: line {int(twice[0]) + 2} gives '{table['patientId'][twice[0]]}' a second class; download it again"
        )
    return dict(zip(table["patientId"], table["class"], strict=True))


def _people(root: Path) -> dict[str, str]:
    """Return the ChestX-ray14 patient of each image, or {} without the published mapping."""
    path = next(iter(sorted(root.glob("*dataset-mappings*.json"))), None)
    if path is None:
        return {}
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        return {entry["subset_img_id"]: entry["img_id"].split("_")[0] for entry in entries}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path}: not a list of objects with subset_img_id and img_id; download it again, or remove it"
        ) from error
