"""Kermany's paediatric chest radiographs."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd

from scanprior.data.layouts import layout
from scanprior.data.manifest import Manifest, describe
from scanprior.data.paths import walk
from scanprior.data.readers import is_image_path
from scanprior.errors import DataError

_PNEUMONIA = re.compile(r"(?P<patient>person\d+)_(?P<subtype>bacteria|virus)_[\d_]+")
_NORMAL = re.compile(r"(?P<patient>(?:NORMAL2-)?IM-\d+)-[\d-]+")


def _home(root: Path) -> Path | None:
    """Return the folder that holds train/NORMAL and train/PNEUMONIA: the given one or a child of the usual name."""
    homes = [root, *(root / name for name in ("images", "chest_xray", "chest_xray/chest_xray"))]
    for home in homes:
        if all((home / "train" / name).is_dir() for name in ("NORMAL", "PNEUMONIA")):
            first = next(iter(sorted((home / "train" / "PNEUMONIA").glob("person*"))), None)
            if first is not None and _PNEUMONIA.fullmatch(first.stem):
                return home
    return None


@layout("kermany", detect=lambda root: _home(root) is not None)
def kermany(root: Path) -> Manifest:
    """Paediatric chest radiographs, normal and pneumonia (Kermany et al. 2018, doi:10.17632/rscbjbr9sj).

    File names carry the patient ("person123_bacteria_456", "IM-0115-0001", "NORMAL2-IM-0381-0001").
    Numbers start anew in the test folder, so patients are prefixed with the split. The published
    val folder (16 images that share the numbering of train) is too small to choose a model on and
    is counted as train; a validation split by patient is cut from that.
    """
    home = _home(root)
    if home is None:
        raise DataError(
            f"{root}: not the Kermany layout; it has train/NORMAL and train/PNEUMONIA/person…_bacteria_….jpeg"
        )
    rows = []
    for split, folder in (("train", "train"), ("train", "val"), ("test", "test")):
        for name, pattern in (("NORMAL", _NORMAL), ("PNEUMONIA", _PNEUMONIA)):
            below = home / folder / name
            for file in filter(is_image_path, walk(below)):
                match = pattern.fullmatch(Path(file).stem)
                rows.append(
                    {
                        "image": (below / file).relative_to(root).as_posix(),
                        # A name of another form says nothing about the patient.
                        "patient": f"{split}:{match['patient']}" if match else None,
                        "split": split,
                        "label": name.lower(),
                        "subtype": match["subtype"] if match and "subtype" in match.groupdict() else None,
                    }
                )
    made = Manifest(pd.DataFrame(rows, dtype="str"), root, ["label"], "kermany", "kermany")
    folded = (home / "val").is_dir()
    found = f"the Kermany chest radiographs: {describe(made)}"
    return Manifest(
        made.frame,
        root,
        ["label"],
        "kermany",
        "kermany",
        found + ("; its small val folder counts as train" if folded else ""),
    )
