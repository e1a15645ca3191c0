"""Make a manifest from a folder tree: classes and splits by folder, DICOM by header, masks by name."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import pandas as pd

from scanprior.data import paths
from scanprior.data.dicom_tree import header_rows, is_dicom
from scanprior.data.manifest import Manifest, counted
from scanprior.data.readers import is_image_path
from scanprior.data.tables import SPLIT_WORDS, SPLITS, TABLE_SUFFIXES
from scanprior.errors import DataError

FOLDER_LAYOUTS = ("class-folders", "patient-folders", "flat", "dicom")

_MASK_NAME = re.compile(r"(?P<stem>.+?)[_-](?:mask|seg|segmentation)(?:_\d+)?", re.IGNORECASE)
# So many folders with so few images each are patients rather than classes.
_PATIENT_FOLDERS = 20
_PATIENT_IMAGES = 5


@dataclass(frozen=True)
class Tree:
    """The files of a folder: images (DICOM among them), the mask of an image, and how many others."""

    root: Path
    images: list[str]
    dicom: frozenset[str]
    masks: dict[str, str]
    others: int


def scan(root: Path) -> Tree:
    """List the images below ``root`` in the order of their names; masks are told from images."""
    images, dicom, others = [], set(), 0
    for file in paths.walk(root):
        path = root / file
        if path.name.upper() == "DICOMDIR":
            others += 1
        elif is_image_path(file) and path.suffix.lower() not in (".npz", ".npy"):
            images.append(file)
            if is_dicom(path):
                dicom.add(file)
        elif not path.suffix.lower().endswith((".npz", ".npy", *TABLE_SUFFIXES)) and is_dicom(path):
            images.append(file)
            dicom.add(file)
        else:
            others += 1
    images, masks = _without_masks(images)
    return Tree(root, images, frozenset(dicom), masks, others)


def _without_masks(files: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Return (images, first mask by image). "a_mask.png" beside "a.png", or "masks/a.png", is the mask of a."""
    at = {str(PurePosixPath(file).with_suffix("")): file for file in files if not _in_mask_folder(file)}
    by_stem: dict[str, list[str]] = {}
    for bare, file in at.items():
        by_stem.setdefault(PurePosixPath(bare).name, []).append(file)
    masks: dict[str, str] = {}
    images: list[str] = []
    for file in files:
        path = PurePosixPath(file)
        named = _MASK_NAME.fullmatch(path.stem)
        stem = named["stem"] if named else path.stem
        if _in_mask_folder(file):
            found = by_stem.get(stem, []) or by_stem.get(path.stem, [])
            if len(found) == 1:
                masks.setdefault(found[0], file)
        elif named and str(path.parent / stem) in at:
            masks.setdefault(at[str(path.parent / stem)], file)
        else:
            images.append(file)
    return images, masks


def _in_mask_folder(file: str) -> bool:
    return any(paths.is_mask_folder(part) for part in PurePosixPath(file).parts[:-1])


def from_folder(root: Path, layout: str = "auto", salt: str = "") -> Manifest:
    """Make the manifest of a folder tree.

    Args:
        root: the folder.
        layout: one of ``FOLDER_LAYOUTS``, or "auto" to recognise it.
        salt: secret that goes into the hashes of DICOM identifiers.

    Raises:
        DataError: no image in it, or the tree does not have the layout asked for.
    """
    tree = scan(root)
    if not tree.images:
        raise DataError(
            f"{root}: no images in this folder ({counted(tree.others, 'other file')} in it); give a folder with images"
        )
    frame, skipped = _frame(tree, salt)
    groups = _groups(frame["image"])
    layout = _recognise(frame, groups, tree) if layout == "auto" else layout
    if layout in ("class-folders", "patient-folders"):
        if groups["folder"].isna().any() or (layout == "class-folders" and groups["folder"].nunique() < 2):
            raise DataError(
                f"{root}: not every image is in one of two or more sub-folders, as {layout} needs"
            )
        column = "label" if layout == "class-folders" else "patient"
        if column not in frame.columns:
            frame.insert(1, column, groups["folder"])
    if groups["split"].notna().all():
        frame.insert(1, "split", groups["split"])
    if tree.masks:
        masks = {image: paths.join_references([mask]) for image, mask in tree.masks.items()}
        frame["mask"] = frame["image"].map(masks)
    labels = ["label"] if "label" in frame.columns else []
    found = _sentence(frame, layout, tree, skipped)
    return Manifest(frame, root, labels, root.resolve().name, layout, found)


def _frame(tree: Tree, salt: str) -> tuple[pd.DataFrame, int]:
    plain = pd.DataFrame({"image": [file for file in tree.images if file not in tree.dicom]}, dtype="str")
    if not tree.dicom:
        return plain, 0
    table, skipped = header_rows(tree.root, [file for file in tree.images if file in tree.dicom], salt)
    if not len(table) and not len(plain):
        raise DataError(f"{tree.root}: its {skipped} DICOM files hold no images; give a folder with images")
    frame = pd.concat([plain, table], ignore_index=True) if len(plain) else table
    return frame, skipped


def _groups(images: pd.Series) -> pd.DataFrame:
    """Return for each image its ``split`` by a folder train/val/test, and the ``folder`` below that (or missing)."""
    parts = [PurePosixPath(image).parts[:-1] for image in images]
    parts = _below_common(parts)
    words = [SPLIT_WORDS.get(part[0].lower()) if part else None for part in parts]
    split = all(words)
    if split:
        parts = [part[1:] for part in parts]
    return pd.DataFrame(
        {
            "split": words if split else [None] * len(parts),
            "folder": [part[0] if part else None for part in parts],
        },
        index=images.index,
        dtype="str",
    )


def _below_common(parts: list[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Drop leading folders that all images share, unless they are a split."""
    while (
        parts
        and all(parts)
        and len({part[0] for part in parts}) == 1
        and parts[0][0].lower() not in SPLIT_WORDS
    ):
        parts = [part[1:] for part in parts]
    return parts


def _recognise(frame: pd.DataFrame, groups: pd.DataFrame, tree: Tree) -> str:
    folders = groups["folder"]
    several = folders.notna().all() and folders.nunique() > 1
    if tree.dicom:
        # A folder a patient is not a folder a class: some folder must hold several patients.
        if not several or "patient" not in frame.columns:
            return "dicom"
        shallow = folders.nunique() < _PATIENT_FOLDERS
        return (
            "class-folders" if shallow and frame["patient"].groupby(folders).nunique().min() > 1 else "dicom"
        )
    if not several:
        return "flat"
    sizes = folders.value_counts()
    return (
        "patient-folders"
        if len(sizes) >= _PATIENT_FOLDERS and sizes.median() < _PATIENT_IMAGES
        else "class-folders"
    )


def _sentence(frame: pd.DataFrame, layout: str, tree: Tree, skipped: int) -> str:
    count = counted(len(frame), "DICOM image" if len(tree.dicom) == len(tree.images) else "image")
    if "patient" in frame.columns:
        count += f" of {counted(frame['patient'].nunique(), 'patient')}"
    if layout == "class-folders":
        sizes = frame["label"].value_counts().sort_index()
        text = f"{count} in a folder for each class: " + ", ".join(
            f"{name} {n:,}" for name, n in sizes.items()
        )
    else:
        text = f"{count}, {'in a folder for each patient, ' if layout == 'patient-folders' else ''}without labels"
    if "split" in frame.columns:
        sizes = frame["split"].value_counts()
        text += "; splits by folder: " + ", ".join(
            f"{name} {sizes[name]:,}" for name in SPLITS if name in sizes
        )
    if tree.masks:
        text += f"; {len(tree.masks):,} with a mask"
    if skipped:
        text += f"; {counted(skipped, 'DICOM file')} without an image left aside"
    return text + (f"; {counted(tree.others, 'other file')} left aside" if tree.others else "")
