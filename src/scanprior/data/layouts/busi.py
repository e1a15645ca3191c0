"""BUSI, breast ultrasound images."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd

from scanprior.data.layouts import layout
from scanprior.data.layouts.published import file_names, finished, images_by_stem
from scanprior.data.manifest import Manifest, counted
from scanprior.data.paths import join_references
from scanprior.errors import DataError

_CLASSES = ("benign", "malignant", "normal")
_HOMES = ("", "Dataset_BUSI_with_GT", "Dataset_BUSI_with_GT/Dataset_BUSI_with_GT")
_NAME = re.compile(r"(?P<label>benign|malignant|normal) ?\(\d+\)(?:_mask(?:_\d+)?)?")
_MASK = re.compile(r"(?P<image>.+)_mask(?:_\d+)?")
_LOOKED_AT = 100


def _home(root: Path) -> Path | None:
    """Return the folder with the three classes: the given one or a child of the published name."""
    for home in (root / name for name in _HOMES):
        names = [file_names(home / label, _LOOKED_AT) for label in _CLASSES]
        if all(any(_NAME.fullmatch(Path(name).stem) for name in of_class) for of_class in names):
            return home
    return None


@layout("busi", detect=lambda root: _home(root) is not None)
def busi(root: Path) -> Manifest:
    """780 breast ultrasounds of 600 patients: 437 benign, 210 malignant, 133 normal; masks of the lesions.

    Al-Dhabyani W., Gomaa M., Khaled H., Fahmy A., "Dataset of breast ultrasound images", Data in
    Brief 2020;28:104863. Read: ``benign/benign (1).png`` and ``benign/benign (1)_mask.png``; further
    lesions of an image are ``…_mask_1.png`` and so on, and their union is its mask. The masks of
    normal images are empty. Which images show the same woman is not published, so there is no
    ``patient``: an image with all its masks is alone. Names with and without the blank are accepted.
    """
    home = _home(root)
    if home is None:
        raise DataError(
            f"{root}: not BUSI; it has benign/benign (1).png and benign/benign (1)_mask.png, and the same of "
            "malignant and normal"
        )
    rows, masked, several, misnamed, alone = [], 0, 0, 0, 0
    for label in _CLASSES:
        files = images_by_stem(home / label, root)
        masks: dict[str, list[str]] = {}
        for stem, file in files.items():
            if match := _MASK.fullmatch(stem):
                masks.setdefault(match["image"], []).append(file)
        for stem, file in files.items():
            if not _MASK.fullmatch(stem):
                own = masks.pop(stem, [])
                rows.append((file, label, join_references(own) if own else None))
                masked += len(own) > 0
                several += len(own) > 1
                named = _NAME.fullmatch(stem)
                misnamed += named is not None and named["label"] != label
        alone += sum(map(len, masks.values()))
    frame = pd.DataFrame(rows, columns=["image", "label", "mask"], dtype="str")
    notes = [f"{counted(masked, 'image')} with a mask, empty where there is no lesion"]
    notes += [f"{counted(several, 'mask')} the union of several"] if several else []
    notes += [f"{counted(misnamed, 'image')} named like another class than its folder"] if misnamed else []
    notes += [f"{counted(alone, 'mask')} without its image left out"] if alone else []
    notes.append(
        "no patient identifiers are published, and near duplicates are known: keep them together with "
        "data.split.group=near_duplicates"
    )
    return finished(frame, root, ["label"], "busi", "the BUSI breast ultrasounds", notes)
