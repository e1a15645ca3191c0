"""CheXpert of the Stanford Hospital, in its full and its small version."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pandas as pd

from scanprior.data.layouts import layout
from scanprior.data.layouts.published import (
    age_years,
    filled,
    finished,
    first_file,
    first_lines,
    only_present,
    prefix_of,
    published_table,
    sexes,
)
from scanprior.data.manifest import Manifest, counted
from scanprior.data.tables import finding_values
from scanprior.errors import DataError

OBSERVATIONS = (
    "No Finding", "Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity", "Lung Lesion", "Edema",
    "Consolidation", "Pneumonia", "Atelectasis", "Pneumothorax", "Pleural Effusion", "Pleural Other", "Fracture",
    "Support Devices",
)  # fmt: skip

_SIDE = ("Sex", "Age", "Frontal/Lateral", "AP/PA")
_FOLDERS = ("", "CheXpert-v1.0-small", "CheXpert-v1.0", "CheXpert", "CheXpert-v1.0 batch 1 (validate & csv)")
_RELEASE = "chexpertchestxrays-u20210408"
_BATCHES = "CheXpert-v1.0 batch * (train *)"
_TABLES = {"train": ("train.csv",), "val": ("valid.csv",), "test": ("test_labels.csv", "test.csv")}
_PATH = re.compile(r"(?:.*/)?(?P<folder>train|valid|test)/(?P<patient>patient\d+)/(?P<study>study\d+)/[^/]+")


def _places(root: Path) -> list[Path]:
    """Return the folders that may hold the tables: the given one, and those of published names below it."""
    return [base / name for base in (root, root / _RELEASE) for name in _FOLDERS]


def _home(root: Path) -> Path | None:
    """Return the folder with the tables."""
    for home in _places(root):
        for table in ("train.csv", "valid.csv"):
            lines = first_lines(home / table, 2)
            if len(lines) == 2 and lines[0].startswith("Path,") and _PATH.fullmatch(lines[1].split(",")[0]):
                return home
    return None


@layout("chexpert", detect=lambda root: _home(root) is not None)
def chexpert(root: Path) -> Manifest:
    """224,316 radiographs of 65,240 adults, 14 observations labelled present, absent, uncertain or not mentioned.

    Irvin J. et al., "CheXpert: a large chest radiograph dataset with uncertainty labels and expert
    comparison", AAAI 2019 (arXiv:1901.07031). Read: ``train.csv``, ``valid.csv`` (234 images,
    labelled by radiologists) and, where they are, ``test_labels.csv`` or ``test.csv``; patient and
    study come from the column ``Path``, whose first folder ("CheXpert-v1.0-small" or
    "CheXpert-v1.0") need not exist. The full version's four batch folders, as Stanford AIMI hands
    them out, are read where they lie, also within ``chexpertchestxrays-u20210408``.

    Labels are as given: 1, 0, -1 for uncertain (which needs a policy, ``task.uncertain``), and an
    observation that was not mentioned stays missing; ``data.blank_findings=absent`` makes it 0. Of
    "No Finding" the training table has no 0 at all, so that it can be learned with that alone.
    ``view`` is AP, PA or what else is given of a frontal image, FRONTAL where nothing is, and LATERAL.
    An age of 0 counts as missing, since the patients are adults (not verified). The order of columns
    in the test tables was not verified; they are found by name.
    """
    home = _home(root) or next((place for place in _places(root) if (place / "train.csv").is_file()), None)
    if home is None:
        raise DataError(
            f"{root}: not CheXpert; it has train.csv and valid.csv whose column Path holds "
            "…/train/patient00001/study1/view1_frontal.jpg"
        )
    parts, notes = [], []
    for split in _TABLES:
        part, said = _split_rows(root, home, split)
        parts += [] if part is None else [part]
        notes += said
    frame = pd.concat(parts, ignore_index=True)
    uncertain = int((frame[list(OBSERVATIONS)] == -1).to_numpy().sum())
    lateral = int((frame["view"] == "LATERAL").sum())
    traps = [f"{counted(uncertain, 'uncertain label')} kept as -1 (see task.uncertain)"] if uncertain else []
    labelled = frame.loc[frame[list(OBSERVATIONS)].notna().any(axis=1), list(OBSERVATIONS)]
    blank = int(labelled.isna().to_numpy().sum())
    traps += [f"{blank:,} not mentioned and missing (see data.blank_findings)"] if blank else []
    traps += [f"{counted(lateral, 'lateral image')} among them (column view)"] if lateral else []
    return finished(frame, root, OBSERVATIONS, "chexpert", "CheXpert", [*traps, *notes])


def _split_rows(root: Path, home: Path, split: str) -> tuple[pd.DataFrame | None, list[str]]:
    """Return the rows of a split's images that are there, and what to say of the others."""
    path = first_file(home, _TABLES[split])
    if path is None:
        return None, [] if split == "test" else [f"no {_TABLES[split][0]}"]
    labelled = split != "test" or path.name == "test_labels.csv"
    table = published_table(
        path, ["Path", *(OBSERVATIONS if labelled else ())], [*_SIDE, *(() if labelled else OBSERVATIONS)]
    )
    parts = filled(table["Path"], path).str.extract(_PATH)
    odd = parts.index[parts["patient"].isna()]
    if len(odd):
        raise DataError(
            f"{path}: line {int(odd[0]) + 2} has '{table['Path'][odd[0]]}' in the column 'Path', which is not "
            "…/train/patient00001/study1/view1_frontal.jpg"
        )
    inside = parts["patient"] + "/" + parts["study"] + "/" + table["Path"].str.rsplit("/", n=1).str[-1]
    side = table.reindex(columns=list(_SIDE)).astype("str")
    ages = age_years(side["Age"])
    frame = pd.DataFrame(
        {
            "image": _prefixes(root, home, parts["folder"].iloc[0], parts["patient"]) + inside,
            "patient": parts["patient"],
            "split": split,
            "study": parts["patient"] + "/" + parts["study"],
            "sex": sexes(side["Sex"]),
            "age": ages.where(ages > 0),
            "view": _views(side["Frontal/Lateral"], side["AP/PA"]),
        }
    )
    for name in OBSERVATIONS:
        frame[name] = finding_values(table[name], path) if name in table.columns else float("nan")
    frame, said = only_present(frame, root, path)
    bare = len(frame) and frame[list(OBSERVATIONS)].isna().to_numpy().all()
    return frame, [*said, f"the images of {path.name} are unlabelled"] if bare else said


def _prefixes(root: Path, home: Path, folder: str, patients: pd.Series) -> pd.Series:
    """Return for each patient what stands before "patient…/study…" in a reference."""
    bases = (root, root / _RELEASE)
    batches = [batch for base in bases for batch in sorted(base.glob(_BATCHES))] if folder == "train" else []
    beside = (home / folder, *(base / folder for base in bases), *batches)
    places = dict.fromkeys(place for place in beside if place.is_dir())
    if len(places) <= 1:
        only = next(iter(places), home / folder)
        return pd.Series(prefix_of(only, root), index=patients.index, dtype="str")
    owners: dict[str, str] = {}
    for place in places:
        owners = {entry.name: prefix_of(place, root) for entry in os.scandir(place)} | owners
    return patients.map(owners).astype("str")


def _views(direction: pd.Series, projection: pd.Series) -> pd.Series:
    """Return LATERAL, or of a frontal image its projection (AP, PA) where that is given."""
    upper = direction.str.upper()
    return projection.where((upper == "FRONTAL") & projection.notna(), upper).astype("str")
