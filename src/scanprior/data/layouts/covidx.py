"""COVIDx CXR-3, a benchmark put together from several public collections."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from scanprior.data.layouts import layout
from scanprior.data.layouts.published import finished, first_lines, only_present, prefix_of
from scanprior.data.manifest import Manifest
from scanprior.data.readers import is_image_path
from scanprior.errors import DataError

_SPLITS = ("train", "val", "test")
_CLASSES = ("positive", "negative", "COVID-19", "normal", "pneumonia")


def _parsed(line: str) -> list[str] | None:
    """Return [patient, file, class, source], or None for another line; old patient numbers hold blanks."""
    parts = line.rsplit(maxsplit=3)
    fits = len(parts) == 4 and is_image_path(parts[1]) and parts[2] in _CLASSES
    return parts if fits else None


def _is_home(root: Path) -> bool:
    lists = [first_lines(root / f"{split}.txt", 1) for split in ("train", "test")]
    return all(lines and _parsed(lines[0]) is not None for lines in lists)


@layout("covidx-cxr3", detect=_is_home)
def covidx_cxr3(root: Path) -> Manifest:
    """30,386 radiographs of 17,026 patients, COVID-19 positive or negative.

    Pavlova M. et al., "COVIDx CXR-3: a large-scale, open-source benchmark dataset of chest X-ray
    images for computer-aided COVID-19 diagnostics", arXiv:2206.03671. Read: ``train.txt``,
    ``test.txt`` and, where it is, ``val.txt`` with the lines "patient file class source", and the
    pictures in ``train/``, ``test/`` and ``val/``. The form was seen in the lists of the authors'
    repository lindawangg/COVID-Net (``labels/*COVIDx_CXR-3A.txt``), which hold three classes; the
    two of the published set (``3B``) are taken alike. Lines are read from the right, since
    patients of older lists ("COVID 12") hold blanks. A number names different people in different
    sources, so a patient is "source:number"; the source is also the ``site``. Some patients of one
    collection may be in another under another number: nothing in the lists tells.
    """
    parts = []
    for split in _SPLITS:
        path = root / f"{split}.txt"
        if path.is_file():
            parts.append(only_present(_rows(root, split, path), root, path))
        elif split != "val":
            raise DataError(
                f"{root}: not COVIDx CXR-3; there is no {path.name} with the lines patient file class source"
            )
    frame = pd.concat([part for part, _ in parts], ignore_index=True)
    notes = ["official split", *(note for _, said in parts for note in said)]
    shared = frame.groupby("patient")["split"].nunique().gt(1).sum()
    if shared:
        notes.insert(1, f"{shared:,} of the patients in more than one split of it")
    single = frame.groupby("site")["label"].nunique().eq(1)
    if single.any() and frame["label"].nunique() > 1:
        names = ", ".join(map(str, single.index[single]))
        notes.append(
            f"all images from {names} have one class, so the source gives the label away (column site)"
        )
    return finished(frame, root, ["label"], "covidx-cxr3", "COVIDx CXR-3", notes)


def _rows(root: Path, split: str, path: Path) -> pd.DataFrame:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: the list is not UTF-8 text; download it again") from error
    rows = []
    for number, line in enumerate(lines, start=1):
        parts = _parsed(line)
        if parts is not None:
            patient, file, label, source = parts
            rows.append(
                (prefix_of(root / split, root) + file, f"{source}:{patient}", split, label.lower(), source)
            )
        elif line.strip():
            raise DataError(
                f"{path}: line {number} is '{line.strip()[:80]}', not 'patient file class source' with a class of "
                f"{', '.join(_CLASSES)}"
            )
    return pd.DataFrame(rows, columns=["image", "patient", "split", "label", "site"], dtype="str")
