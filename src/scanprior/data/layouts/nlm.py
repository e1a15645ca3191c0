"""The two tuberculosis sets of the U.S. National Library of Medicine: Shenzhen and Montgomery County.

Jaeger S., Candemir S., Antani S., Wáng Y.-X. J., Lu P.-X., Thoma G., "Two public chest X-ray
datasets for computer-aided screening of pulmonary diseases", Quantitative Imaging in Medicine and
Surgery 2014;4(6):475-477. Masks of Montgomery: the same authors (Candemir S. et al., IEEE TMI 2014);
of Shenzhen: Stirenko S. et al. 2018 (Kaggle yoctoman/shcxr-lung-mask), absent for 96 images.

The last digit of a name is the label: 0 normal, 1 tuberculosis. One image is taken to be one
patient, as the sets were collected for screening (not verified). Clinical readings were seen as
described in public code: "male 45yrs", "femal 32yrs", "male 16month", "female 64days", then the
finding; "Patient's Sex: F", "Patient's Age: 027Y", then the finding.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from scanprior.data.layouts import layout
from scanprior.data.layouts.published import age_years, file_names, finished, images_by_stem, sexes
from scanprior.data.manifest import Manifest, counted
from scanprior.data.paths import join_references
from scanprior.data.readers import is_image_path
from scanprior.errors import DataError

_NAME = re.compile(r"(?P<set>CHN|MCU)CXR_\d{4}_(?P<label>[01])")
_LABELS = {"0": "normal", "1": "tuberculosis"}
_HOMES = {
    "CHN": ("", "ChinaSet_AllFiles", "ChinaSet_AllFiles/ChinaSet_AllFiles", "Shenzhen-Hospital-CXR-Set"),
    "MCU": ("", "MontgomerySet", "NLM-MontgomeryCXRSet/MontgomerySet", "Montgomery/MontgomerySet"),
}
_SHENZHEN_READING = re.compile(r"(?P<sex>fe)?\s*male?\W*(?P<age>\d+[ \t]*(?:[ymwd][a-z]*)?)?", re.IGNORECASE)
_MONTGOMERY_READING = re.compile(
    r"\W*Patient\W?s\s+Sex\s*:[ \t]*(?P<sex>\w*)\s*Patient\W?s\s+Age\s*:[ \t]*(?P<age>\w*)", re.IGNORECASE
)
_LOOKED_AT = 1000  # the two sets together have 800 images


def _images(root: Path, code: str) -> Path | None:
    """Return the folder with the images of a set, among them no others than the two sets'."""
    homes = [root / home for home in _HOMES[code]]
    for folder in (home / below for home in homes for below in ("CXR_png", "images", "")):
        names = [Path(name).stem for name in file_names(folder, _LOOKED_AT) if is_image_path(name)]
        matches = [_NAME.fullmatch(name) for name in names]
        if names and all(matches) and any(match and match["set"] == code for match in matches):
            return folder
    return None


@layout("shenzhen", detect=lambda root: _images(root, "CHN") is not None)
def shenzhen(root: Path) -> Manifest:
    """662 adult and some paediatric radiographs of Shenzhen, 336 with tuberculosis; lung masks of 566.

    Read: ``CXR_png/CHNCXR_0001_0.png``, ``ClinicalReadings/CHNCXR_0001_0.txt``, and masks as
    ``mask/CHNCXR_0001_0_mask.png``. See the module for the sources.
    """
    folder = _images(root, "CHN")
    if folder is None:
        raise DataError(f"{root}: not the Shenzhen set; it has images such as CXR_png/CHNCXR_0001_0.png")
    return _manifest(root, folder, "CHN", "shenzhen", "the Shenzhen chest X-ray set", _one_mask)


@layout("montgomery", detect=lambda root: _images(root, "MCU") is not None)
def montgomery(root: Path) -> Manifest:
    """138 radiographs of Montgomery County, 58 with tuberculosis, each with a mask of the left and right lung.

    Read: ``CXR_png/MCUCXR_0001_0.png``, ``ClinicalReadings/MCUCXR_0001_0.txt``, and masks as
    ``ManualMask/leftMask/MCUCXR_0001_0.png`` and ``ManualMask/rightMask/…``, whose union is the
    mask. See the module for the sources.
    """
    folder = _images(root, "MCU")
    if folder is None:
        raise DataError(f"{root}: not the Montgomery set; it has images such as CXR_png/MCUCXR_0001_0.png")
    return _manifest(root, folder, "MCU", "montgomery", "the Montgomery County chest X-ray set", _two_masks)


def _manifest(
    root: Path,
    folder: Path,
    code: str,
    name: str,
    title: str,
    masks_of: Callable[[Path, Path], dict[str, str]],
) -> Manifest:
    home = folder.parent if folder.name in ("CXR_png", "images") and folder != root else folder
    images = {stem: image for stem, image in images_by_stem(folder, root).items() if _NAME.fullmatch(stem)}
    others = len(images)
    images = {stem: image for stem, image in images.items() if stem.startswith(code)}
    others -= len(images)
    masks = masks_of(home, root)
    if home != root and not masks:
        masks = masks_of(root, root)
    stems = pd.Series(list(images), dtype="str")
    readings = [_reading(home / "ClinicalReadings" / f"{stem}.txt", code) for stem in stems]
    sex, age, finding = (pd.Series(values, dtype="str") for values in zip(*readings, strict=True))
    frame = pd.DataFrame(
        {
            "image": stems.map(images),
            "patient": stems,
            "label": stems.str[-1].map(_LABELS),
            "mask": stems.map(masks).astype("str"),
            "sex": sexes(sex),
            "age": age_years(age),
            "finding": finding,
            "site": name,
        }
    )
    masked, read = int(frame["mask"].notna().sum()), int((sex.notna() | age.notna()).sum())
    notes = [f"{counted(masked, 'image')} with a lung mask"]
    notes += (
        [] if read == len(frame) else [f"{counted(len(frame) - read, 'image')} without a clinical reading"]
    )
    notes += [f"{counted(others, 'image')} of the other set left out"] if others else []
    return finished(frame, root, ["label"], name, title, notes)


def _one_mask(home: Path, root: Path) -> dict[str, str]:
    """Return the mask of each image that has one: in mask/ or masks/, named like it or with "_mask" added."""
    found: dict[str, str] = {}
    for below in ("mask", "masks", "mask/mask"):
        for stem, file in images_by_stem(home / below, root).items():
            found.setdefault(stem.removesuffix("_mask"), file)
    return found


def _two_masks(home: Path, root: Path) -> dict[str, str]:
    """Return the union of left and right lung for each image that has both, else what `_one_mask` finds."""
    left, right = (images_by_stem(home / "ManualMask" / f"{side}Mask", root) for side in ("left", "right"))
    both = {stem: join_references([left[stem], right[stem]]) for stem in left if stem in right}
    return _one_mask(home, root) | both


def _reading(path: Path, code: str) -> tuple[str | None, str | None, str | None]:
    """Return (sex, age, finding) of a clinical reading as written; None for what it does not say."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None, None, None
    match = (_SHENZHEN_READING if code == "CHN" else _MONTGOMERY_READING).match(text)
    if match is None:
        return None, None, text or None
    sex = match["sex"] if code == "MCU" else ("F" if match["sex"] else "M")
    finding = "; ".join(
        line.strip(" \t,;") for line in text[match.end() :].splitlines() if line.strip(" \t,;")
    )
    return sex or None, match["age"] or None, finding or None
