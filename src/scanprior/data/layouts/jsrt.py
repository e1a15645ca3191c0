"""The database of the Japanese Society of Radiological Technology, with the SCR outlines."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd

from scanprior.data.layouts import layout
from scanprior.data.layouts.published import age_years, file_names, finished, prefix_of, sexes
from scanprior.data.manifest import Manifest, counted
from scanprior.data.paths import join_references
from scanprior.data.readers import RAW_SUFFIXES, is_image_path
from scanprior.errors import DataError

_NAME = re.compile(r"JPC(?P<kind>[LN])N\d{3}")
_IMAGE_FOLDERS = (
    "",
    "All247images",
    "Nodule154images",
    "NonNodule93images",
    "images",
    "images/images",
    "JSRT",
)
_TABLE_FOLDERS = ("", "Clinical_Information", "ClinicalInformation", "clinical")
_MASK_BASES = ("scratch", "scr/scratch", "SCR/scratch", "scr", "SCR", "")
_STRUCTURES = {
    "mask": ("left lung", "right lung"),
    "mask_heart": ("heart",),
    "mask_clavicles": ("left clavicle", "right clavicle"),
}
_NODULE = re.compile(
    r"(?P<subtlety>[0-5])[\s,]+(?P<size_mm>\d+|\?)[\s,]+(?P<age>\d+|\?)[\s,]+(?P<sex>male|female|\?)[\s,]+"
    r"(?P<nodule_x>\d+)[\s,]+(?P<nodule_y>\d+)[\s,]+(?P<malignancy>malignant|benign)\s*(?P<rest>.*)",
    re.IGNORECASE | re.DOTALL,
)
_NO_NODULE = re.compile(r"(?P<age>\d+|\?)[\s,]+(?P<sex>male|female|\?)", re.IGNORECASE)
_NUMBERS = ("subtlety", "size_mm", "nodule_x", "nodule_y")
_LOOKED_AT = 300  # the database has 247 images


def _image_folders(root: Path) -> list[Path]:
    """Return the folders of the database's images, in which there are no others."""
    found = []
    for folder in (root / name for name in _IMAGE_FOLDERS):
        names = [Path(name).stem for name in file_names(folder, _LOOKED_AT) if is_image_path(name)]
        if names and all(map(_NAME.fullmatch, names)):
            found.append(folder)
    return found


@layout("jsrt", detect=lambda root: bool(_image_folders(root)))
def jsrt(root: Path) -> Manifest:
    """247 radiographs: 154 with a lung nodule (100 malignant), 93 without.

    Shiraishi J. et al., "Development of a digital image database for chest radiographs with and
    without a lung nodule", AJR 2000;174:71-74. Outlines: van Ginneken B., Stegmann M., Loog M.,
    "Segmentation of anatomical structures in chest radiographs using supervised methods", Medical
    Image Analysis 2006;10:19-40 (SCR). Read: ``JPCLN001.IMG`` (nodule) and ``JPCNN001.IMG``
    (none), or the same names as PNG, where the raw files win; ``CLNDAT_EN.txt`` and
    ``CNNDAT_EN.TXT`` (without header; name, subtlety 1-5, size in mm, age, sex, x, y, malignancy,
    location, diagnosis, or name, age, sex, kind); and
    ``scratch/fold1/masks/left lung/JPCLN001.gif``, fold 1 being the odd and fold 2 the even
    numbers. ``mask`` is the union of both lungs; ``mask_heart``, ``mask_clavicles`` and ``fold``
    are side columns.

    The tables' form is taken from public code that reads them (records may follow each other
    without a line break, "?" is unknown) and was not verified on the files: a record of another
    form leaves its image without these columns, and is counted. That one image is one patient was
    not verified either. Whether a PNG copy was inverted cannot be told from its name: it is read as
    it is, where raw files are inverted as they must be.
    """
    folders = _image_folders(root)
    if not folders:
        raise DataError(f"{root}: not the JSRT database; it has images such as JPCLN001.IMG and JPCNN001.IMG")
    images, copies = _images(folders, root)
    stems = pd.Series(list(images), dtype="str")
    records, unread = _records(root)
    side = pd.DataFrame([records.get(stem, {}) for stem in stems])
    frame = pd.DataFrame(
        {
            "image": stems.map(images),
            "patient": stems,
            "label": stems.str[3].map({"L": "nodule", "N": "no_nodule"}),
        }
    )
    masks, lone = _masks(root, set(stems))
    for column, of in masks.items():
        frame[column] = stems.map(of).astype("str")
    if "age" in side.columns:
        side["age"], side["sex"] = age_years(side["age"]), sexes(side["sex"])
    for name in side.columns.intersection(list(_NUMBERS)):
        side[name] = pd.to_numeric(side[name], errors="coerce")
    frame = pd.concat([frame, side], axis=1)
    raw = frame["image"].str.lower().str.endswith(tuple(RAW_SUFFIXES))
    notes = [f"{counted(int(frame['mask'].notna().sum()), 'image')} with a lung mask"]
    notes += [f"{counted(lone, 'image')} with one lung's mask only, left without"] if lone else []
    notes += [f"{counted(copies, 'converted copy')} beside the raw files left out"] if copies else []
    if not raw.all():
        notes.append(
            f"{counted(int((~raw).sum()), 'converted image')} read as they are: check that bone is bright"
        )
    without = int((~stems.isin(records.keys())).sum())
    notes += [f"{counted(without, 'image')} without a clinical record"] if without else []
    notes += [f"{counted(unread, 'clinical record')} of another form"] if unread else []
    return finished(frame, root, ["label"], "jsrt", "the JSRT database", notes)


def _images(folders: list[Path], root: Path) -> tuple[dict[str, str], int]:
    """Return (image by name without suffix, how many converted copies lie beside raw files)."""
    raw: dict[str, str] = {}
    converted: dict[str, str] = {}
    for folder in folders:
        for name in sorted(file_names(folder)):
            path = Path(name)
            if is_image_path(name) and _NAME.fullmatch(path.stem):
                kind = raw if path.suffix.lower() in RAW_SUFFIXES else converted
                kind.setdefault(path.stem, prefix_of(folder, root) + name)
    return dict(sorted((converted | raw).items())), len(raw.keys() & converted.keys())


def _records(root: Path) -> tuple[dict[str, dict[str, str | None]], int]:
    """Return (what the clinical tables say of each image, how many records have another form)."""
    found: dict[str, dict[str, str | None]] = {}
    unread = 0
    for below in _TABLE_FOLDERS:
        for name in sorted(file_names(root / below)):
            if name.lower() not in ("clndat_en.txt", "cnndat_en.txt"):
                continue
            path = root / below / name
            records = _read(path)
            understood = {stem: facts for stem, facts in records.items() if facts is not None}
            if not understood:
                raise DataError(
                    f"{path}: not one record of the form 'JPCLN001.IMG 5 15 53 male 1634 692 malignant …' or "
                    "'JPCNN001.IMG 62 male …'; unpack the published file again, or remove it"
                )
            unread += len(records) - len(understood)
            found = understood | found
    return found, unread


def _read(path: Path) -> dict[str, dict[str, str | None] | None]:
    """Return the facts by image; None for a record of another form."""
    text = path.read_text(encoding="utf-8-sig", errors="replace")
    parts = re.split(r"(JPC[LN]N\d{3})\.IMG", text, flags=re.IGNORECASE)
    records: dict[str, dict[str, str | None] | None] = {}
    for stem, body in zip(parts[1::2], parts[2::2], strict=True):
        form = _NODULE if stem[3].upper() == "L" else _NO_NODULE
        match = form.match(body.strip(" \t\r\n,"))
        if match is None:
            records[stem.upper()] = None
            continue
        facts = {name: None if value == "?" else value for name, value in match.groupdict().items()}
        rest = facts.pop("rest", None)
        if rest is not None:
            places = [" ".join(part.split()) for part in rest.split("\t") if part.strip(" \r\n,")]
            facts["location"] = places[0] if len(places) > 1 else None
            facts["diagnosis"] = " ".join(places[1:] or places) or None
            facts["malignancy"] = str(facts["malignancy"]).lower()
        records[stem.upper()] = facts
    return records


def _masks(root: Path, stems: set[str]) -> tuple[dict[str, dict[str, str]], int]:
    """Return (for each mask column and ``fold``, the value by image; how many have one lung only)."""
    found: dict[str, dict[str, str]] = {column: {} for column in (*_STRUCTURES, "fold")}
    lone = 0
    for base in (root / name for name in _MASK_BASES):
        for fold in ("1", "2"):
            folder = base / f"fold{fold}" / "masks"
            for column, structures in _STRUCTURES.items():
                files = [_files(folder / structure, root) for structure in structures]
                for stem in sorted(stems.intersection(*files) - found[column].keys()):
                    found[column][stem] = join_references([of[stem] for of in files])
                    found["fold"][stem] = fold
                if column == "mask":
                    lone += len((stems & (files[0].keys() ^ files[1].keys())) - found["mask"].keys())
    return found, lone


def _files(folder: Path, root: Path) -> dict[str, str]:
    """Return the masks of a folder by name; they are GIF as published."""
    return {Path(name).stem: prefix_of(folder, root) + name for name in sorted(file_names(folder))}
