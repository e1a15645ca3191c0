"""MIMIC-CXR-JPG of the Beth Israel Deaconess Medical Center."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from scanprior.data.layouts import layout
from scanprior.data.layouts.published import (
    filled,
    finished,
    first_file,
    only_present,
    prefix_of,
    published_table,
)
from scanprior.data.manifest import Manifest, counted
from scanprior.data.tables import finding_values, split_values
from scanprior.errors import DataError

OBSERVATIONS = (
    "Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Enlarged Cardiomediastinum", "Fracture",
    "Lung Lesion", "Lung Opacity", "No Finding", "Pleural Effusion", "Pleural Other", "Pneumonia", "Pneumothorax",
    "Support Devices",
)  # fmt: skip

_KEYS = ("dicom_id", "subject_id", "study_id")


def _file(home: Path, kind: str) -> Path | None:
    """Return the table of a kind (chexpert, split, metadata), packed or not; release 2.1.0 kept the names of 2.0.0."""
    stems = [f"mimic-cxr-{version}-{kind}.csv" for version in ("2.0.0", "2.1.0")]
    return first_file(home, [name for stem in stems for name in (stem, f"{stem}.gz")])


def _home(root: Path) -> Path | None:
    """Return the folder with files/ and the tables: the given one, or where wget puts it."""
    mirrored = root / "physionet.org" / "files" / "mimic-cxr-jpg"
    homes = [root, root / "mimic-cxr-jpg", *sorted(mirrored.glob("*"), reverse=True)]
    for home in homes:
        if (home / "files").is_dir() and (_file(home, "split") or _file(home, "metadata")):
            return home
    return None


@layout("mimic-cxr-jpg", detect=lambda root: _home(root) is not None)
def mimic_cxr_jpg(root: Path) -> Manifest:
    """377,110 radiographs of 227,827 studies, 14 observations that CheXpert's labeller read from the reports.

    Johnson A. et al., "MIMIC-CXR-JPG, a large publicly available database of labeled chest
    radiographs", arXiv:1901.07042; PhysioNet, doi:10.13026/8360-t248. Read, each as ``.csv`` or
    ``.csv.gz``: ``mimic-cxr-2.0.0-metadata`` (``ViewPosition``), ``-split`` (train, validate,
    test by ``dicom_id``) and ``-chexpert`` (by ``subject_id`` and ``study_id``). A picture is
    ``files/p10/p10000032/s50414267/DICOM_ID.jpg``. A study without a row in ``-chexpert`` has
    missing labels; 1, 0, -1 and empty are kept as they are. Not read: the NegBio labels and the
    radiologist-labelled test set that release 2.1.0 added. Ages and sexes are in MIMIC-IV, not here.
    """
    home = _home(root)
    if home is None:
        raise DataError(
            f"{root}: not MIMIC-CXR-JPG; it has a folder files and mimic-cxr-2.0.0-split.csv or …-metadata.csv "
            "(also as .gz)"
        )
    table, path, notes = _rows(home)
    subject, study, image = (filled(table[name], path) for name in ("subject_id", "study_id", "dicom_id"))
    frame = pd.DataFrame(
        {
            "image": prefix_of(home, root)
            + "files/p" + subject.str[:2] + "/p" + subject + "/s" + study + "/" + image + ".jpg",
            "patient": "p" + subject,
            "split": table["split"] if "split" in table.columns else None,
            "study": "s" + study,
            "view": table["ViewPosition"] if "ViewPosition" in table.columns else None,
        }
    )  # fmt: skip
    frame, said = only_present(frame, root, path)
    labelled = _file(home, "chexpert")
    if labelled is None:
        return finished(
            frame, root, [], "mimic-cxr-jpg", "MIMIC-CXR-JPG",
            [*said, *notes, "no labels (mimic-cxr-2.0.0-chexpert.csv is not there)"],
        )  # fmt: skip
    frame, without = _labelled(frame, labelled)
    if without:
        said.append(f"{counted(without, 'image')} of studies without a label row")
    return finished(frame, root, OBSERVATIONS, "mimic-cxr-jpg", "MIMIC-CXR-JPG", [*said, *notes])


def _rows(home: Path) -> tuple[pd.DataFrame, Path, list[str]]:
    """Return (one row an image with split and view where known, the table they are from, what to say)."""
    metadata, split = _file(home, "metadata"), _file(home, "split")
    if split is None:
        assert metadata is not None  # _home has found one of the two
        table = published_table(metadata, [*_KEYS, "ViewPosition"])
        return table, metadata, ["no official split (mimic-cxr-2.0.0-split.csv is not there)"]
    table = published_table(split, [*_KEYS, "split"])
    table["split"] = split_values(table["split"], split, strict=True)
    if metadata is None:
        return table, split, ["official split", "no views (mimic-cxr-2.0.0-metadata.csv is not there)"]
    views = published_table(metadata, ["dicom_id", "ViewPosition"]).drop_duplicates("dicom_id")
    return table.merge(views, on="dicom_id", how="left"), split, ["official split"]


def _labelled(frame: pd.DataFrame, path: Path) -> tuple[pd.DataFrame, int]:
    """Return the rows with their study's labels, and how many have none."""
    labels = published_table(path, ["subject_id", "study_id", *OBSERVATIONS])
    keys = "p" + filled(labels["subject_id"], path) + "/s" + filled(labels["study_id"], path)
    twice = keys.duplicated()
    if twice.any():
        raise DataError(
            f"{path}: line {int(twice.to_numpy().argmax()) + 2} labels the study {keys[twice].iloc[0]} again; "
            "unpack the published file again"
        )
    values = pd.DataFrame({name: finding_values(labels[name], path) for name in OBSERVATIONS})
    wanted = frame["patient"] + "/" + frame["study"]
    aligned = values.set_axis(pd.Index(keys)).reindex(wanted).set_axis(frame.index)
    return pd.concat([frame, aligned], axis=1), int((~wanted.isin(keys)).sum())
