"""The COVID-19 Radiography Database of Qatar University and the University of Dhaka."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd

from scanprior.data.layouts import layout
from scanprior.data.layouts.published import file_names, finished, folders_by_name, homes, images_by_stem
from scanprior.data.manifest import Manifest, counted
from scanprior.data.readers import is_image_path
from scanprior.errors import DataError

_CLASSES = {
    "covid": "covid", "covid-19": "covid", "lung-opacity": "lung_opacity", "normal": "normal",
    "viral-pneumonia": "viral_pneumonia",
}  # fmt: skip
_HOMES = ("covid-19-radiography-dataset", "covid-19-radiography-database")
_NAME = re.compile(r"(COVID(-19)?|Lung[_ ]Opacity|Normal|Viral Pneumonia)[ -]*\(?\d+\)?", re.IGNORECASE)
_LOOKED_AT = 20


def _home(root: Path) -> dict[str, Path] | None:
    """Return the folders of the classes, in the given folder or in one of a published name below it."""
    for place in homes(root, _HOMES):
        found = folders_by_name(place)
        classes = {name: folder for name, folder in found.items() if name in _CLASSES}
        known = {"normal", "viral-pneumonia"} <= classes.keys() and len(classes) > 2
        if known and all(_has_its_images(folder) for folder in classes.values()):
            return classes
    return None


def _images(folder: Path) -> Path:
    """Return where the images of a class are: in ``images``, or in the folder itself as in older versions."""
    return folders_by_name(folder).get("images", folder)


def _has_its_images(folder: Path) -> bool:
    names = [name for name in file_names(_images(folder), _LOOKED_AT) if is_image_path(name)]
    return any(_NAME.fullmatch(Path(name).stem) for name in names)


@layout("covid-radiography", detect=lambda root: _home(root) is not None)
def covid_radiography(root: Path) -> Manifest:
    """Radiographs with COVID-19, lung opacity, viral pneumonia or nothing, and masks of the lungs.

    Chowdhury M. et al., "Can AI help in screening viral and COVID-19 pneumonia?", IEEE Access
    2020;8:132665; masks: Rahman T. et al., Computers in Biology and Medicine 2021;132:104319. Read:
    ``COVID/images/COVID-1.png`` and ``COVID/masks/COVID-1.png``, and the same of Lung_Opacity, Normal
    and Viral Pneumonia; older versions have the images in the folders of the classes, three classes
    and no masks. ``*.metadata.xlsx`` is not read. A mask may have another size than its image.

    The classes come from different collections, among them Kermany's children and RSNA's adults, so
    that age and device give the class away and an image may also be in one of those. Patients are
    not published. Not verified on the files themselves: names and folders.
    """
    folders = _home(root)
    if folders is None:
        raise DataError(
            f"{root}: not the COVID-19 Radiography Database; it has COVID/images/COVID-1.png and the same of "
            "Lung_Opacity, Normal and Viral Pneumonia"
        )
    rows, alone = [], 0
    for name, folder in sorted(folders.items()):
        images = images_by_stem(_images(folder), root)
        below = folders_by_name(folder).get("masks")
        masks = images_by_stem(below, root) if below else {}
        rows += [(image, _CLASSES[name], masks.get(stem)) for stem, image in images.items()]
        alone += len(masks.keys() - images.keys())
    frame = pd.DataFrame(rows, columns=["image", "label", "mask"], dtype="str")
    masked = int(frame["mask"].notna().sum())
    notes = [f"{counted(masked, 'image')} with a lung mask"] if masked else ["no lung masks"]
    notes += [f"{counted(alone, 'mask')} without its image left out"] if alone else []
    notes.append(
        "its classes come from different collections, so the source gives the label away; no patient identifiers "
        "are published"
    )
    title = "the COVID-19 Radiography Database"
    return finished(frame, root, ["label"], "covid-radiography", title, notes)
