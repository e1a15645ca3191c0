"""Kvasir, images of the gastrointestinal tract by endoscopy, and Kvasir-SEG, polyps with their outlines.

Neither says which images are frames of one examination. Near duplicates are to be expected, so a
split image by image is too kind to a model.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from scanprior.data.layouts import layout
from scanprior.data.layouts.published import (
    finished,
    first_file,
    folders_by_name,
    homes,
    images_by_stem,
    plain_name,
)
from scanprior.data.manifest import Manifest, counted
from scanprior.errors import DataError

CLASSES = (
    "dyed-lifted-polyps", "dyed-resection-margins", "esophagitis", "normal-cecum", "normal-pylorus", "normal-z-line",
    "polyps", "ulcerative-colitis",
)  # fmt: skip

_BOXES = ("kavsir_bboxes.json", "kvasir_bboxes.json")  # the first is how it is published
_FRAMES = (
    "no patient identifiers are published, and images may be frames of one examination: keep near duplicates "
    "together with data.split.group=near_duplicates"
)


def _homes(root: Path) -> list[Path]:
    """Return the folders that hold all eight classes."""
    places = homes(root, ("kvasir", "kvasir-dataset", "kvasir-dataset-v2"))
    return [place for place in places if set(CLASSES) <= folders_by_name(place).keys()]


@layout("kvasir", detect=lambda root: bool(_homes(root)))
def kvasir(root: Path) -> Manifest:
    """Images of eight landmarks and findings.

    Pogorelov K. et al., "KVASIR: a multi-class image dataset for computer aided gastrointestinal
    disease detection", ACM MMSys 2017, doi:10.1145/3083187.3083212. Read: a folder for each class,
    in ``kvasir-dataset`` or ``kvasir-dataset-v2``; upper case, blanks and underscores in their names
    are accepted. Not verified on the files themselves: the names of the folders. See the module for
    the frames.
    """
    places = _homes(root)
    if not places:
        raise DataError(f"{root}: not Kvasir; it has the folders {', '.join(CLASSES)}")
    if len(places) > 1:
        names = " and ".join(place.relative_to(root).as_posix() for place in places[:2])
        raise DataError(
            f"{root}: holds Kvasir twice, in {names}, perhaps with the same images; give one of them"
        )
    folders = folders_by_name(places[0])
    rows = [
        (image, label) for label in CLASSES for image in images_by_stem(folders[label], root).values()
    ]  # fmt: skip
    frame = pd.DataFrame(rows, columns=["image", "label"], dtype="str")
    return finished(frame, root, ["label"], "kvasir", "Kvasir", [_FRAMES])


def _outlined(root: Path) -> Path | None:
    """Return the folder of Kvasir-SEG, known by its name or its table of boxes."""
    for place in homes(root, ("kvasir-seg",)):
        known = plain_name(place.name) == "kvasir-seg" or first_file(place, _BOXES)
        if known and {"images", "masks"} <= folders_by_name(place).keys():
            return place
    return None


@layout("kvasir-seg", detect=lambda root: _outlined(root) is not None)
def kvasir_seg(root: Path) -> Manifest:
    """Images of polyps with their outlines as masks.

    Jha D. et al., "Kvasir-SEG: a segmented polyp dataset", MultiMedia Modeling 2020
    (arXiv:1911.07069). Read: ``images/`` and ``masks/`` with the same names; the boxes of
    ``kavsir_bboxes.json`` are not. JPEG masks have blurred values: a segmentation needs a threshold.
    Not verified on the files themselves: the names and that the masks are JPEG. See the module for
    the frames.
    """
    home = _outlined(root)
    if home is None:
        raise DataError(f"{root}: not Kvasir-SEG; it has images/, masks/ and {_BOXES[0]}")
    folders = folders_by_name(home)
    images, masks = (images_by_stem(folders[name], root) for name in ("images", "masks"))
    stems = pd.Series(list(images), dtype="str")
    frame = pd.DataFrame({"image": stems.map(images), "mask": stems.map(masks).astype("str")})
    notes = [f"{counted(int(frame['mask'].notna().sum()), 'image')} with an outline of the polyp"]
    if frame["mask"].str.lower().str.endswith((".jpg", ".jpeg")).fillna(False).any():
        notes.append("its masks are JPEG, so set task.mask_threshold=128 to learn from them")
    alone = len(masks.keys() - images.keys())
    notes += [f"{counted(alone, 'mask')} without its image left out"] if alone else []
    return finished(frame, root, [], "kvasir-seg", "Kvasir-SEG", [*notes, _FRAMES])
