"""Make a manifest from whatever the user has: a folder, a table, arrays, DICOM, a known dataset, a store."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd

from scanprior.data.arrays import from_medmnist, from_npz
from scanprior.data.dicom_tree import header_rows, is_dicom
from scanprior.data.folders import FOLDER_LAYOUTS, from_folder
from scanprior.data.layouts import LAYOUTS, Layout
from scanprior.data.manifest import LABEL_ORDER, Manifest, describe
from scanprior.data.paths import split_reference
from scanprior.data.readers import is_image_path
from scanprior.data.tables import (
    TABLE_SUFFIXES,
    as_text,
    given_column,
    labels,
    read_table,
    suggestion,
)  # fmt: skip
from scanprior.data.tables import (
    image_column as find_image_column,
)
from scanprior.errors import DataError

_OTHER_LAYOUTS = ("auto", "table", "npz", "medmnist", "store")


def layouts() -> list[str]:
    """Return the names that ``index(layout=…)`` accepts."""
    return [*_OTHER_LAYOUTS, *FOLDER_LAYOUTS, *LAYOUTS]


def index(
    source: str | Path,
    *,
    layout: str = "auto",
    label_columns: Sequence[str] | None = None,
    image_column: str | None = None,
    patient_column: str | None = None,
    root: str | Path | None = None,
    salt: str = "",
    allow_outside: bool = False,
) -> Manifest:
    """Recognise ``source`` and return its manifest; ``manifest.found`` says in a sentence what was recognised.

    Args:
        source: a folder (with a sub-folder a class, split folders, a labels table, DICOM files, or
            just images), a table (CSV, TSV, Parquet), a saved manifest, a prepared store, an
            ``.npz`` in MedMNIST form, ``medmnist:NAME``, or one image.
        layout: what the source is, where it is not to be recognised; one of ``layouts()``.
        label_columns: columns that are the labels; an empty list leaves the images unlabelled.
        image_column, patient_column: columns of a table.
        root: folder that the table's image paths start from.
        salt: secret that goes into the hashes of DICOM identifiers.
        allow_outside: accept absolute image paths outside the root.

    Raises:
        DataError: nothing usable there; the sentence says what was looked for.
    """
    if layout not in layouts():
        raise DataError(
            f"layout '{layout}' is not one of {', '.join(layouts())}{suggestion(layout, layouts())}"
        )
    if str(source).startswith("medmnist:") or layout == "medmnist":
        return _relabelled(from_medmnist(str(source)), label_columns, patient_column)
    path = Path(source).expanduser()
    if not path.exists():
        near = suggestion(path.name, _names_beside(path))
        raise DataError(f"{path}: there is no such file or folder{near}")
    if path.is_dir() and (path / "store.json").is_file() and layout in ("auto", "store"):
        return _relabelled(_from_store(path), label_columns, patient_column)
    table = _table_of(path, layout)
    if table is not None:
        made = Manifest.load(
            table, root=root, image_column=image_column, label_columns=label_columns,
            patient_column=patient_column, allow_outside=allow_outside,
        )  # fmt: skip
        return _with_headers(made, salt) if made.layout == "table" else made
    return _relabelled(_without_table(path, layout, salt), label_columns, patient_column)


def _names_beside(path: Path) -> list[str]:
    parent = path.parent
    return sorted(entry.name for entry in parent.iterdir()) if parent.is_dir() else []


def _table_of(path: Path, layout: str) -> Path | None:
    """Return the table to read for this source, if it is or has one that says what the images are."""
    if layout not in ("auto", "table"):
        return None
    if path.is_file():
        return path if layout == "table" or path.suffix.lower() in TABLE_SUFFIXES else None
    for name in ("manifest.parquet", "labels.csv", "labels.tsv", "labels.parquet"):
        if (path / name).is_file():
            return path / name
    if layout == "auto" and _known_dataset(path) is not None:
        return None
    others = sorted(
        entry for entry in path.iterdir() if entry.suffix.lower() in TABLE_SUFFIXES and entry.is_file()
    )
    if layout == "table":
        if len(others) != 1:
            raise DataError(
                f"{path}: holds {len(others)} tables and none named labels.csv; give the table itself"
            )
        return others[0]
    return others[0] if len(others) == 1 and _has_images(others[0]) else None


def _known_dataset(path: Path) -> Layout | None:
    """Return the public dataset that a folder is, if it is one and not two at once."""
    fitting = [known for known in LAYOUTS.values() if known.detect(path)]
    if len(fitting) > 1:
        names = " and ".join(known.name for known in fitting)
        raise DataError(f"{path}: fits the layouts {names}; name the one you mean with --layout")
    return fitting[0] if fitting else None


def _has_images(table: Path) -> bool:
    """Return whether a table that merely lies beside images names some of them."""
    try:
        find_image_column(read_table(table).apply(as_text), table, None)
    except DataError:
        return False
    return True


def _without_table(path: Path, layout: str, salt: str) -> Manifest:
    if path.is_file():
        if path.suffix.lower() == ".npz":
            return from_npz(path)
        return _one_image(path, salt)
    if layout in LAYOUTS:
        return LAYOUTS[layout].build(path)
    if layout == "auto":
        known = _known_dataset(path)
        if known is not None:
            return known.build(path)
        archives = sorted(path.glob("*.npz"))
        if len(archives) == 1 and not any(entry.is_dir() for entry in path.iterdir()):
            return from_npz(archives[0])
    if layout in ("npz", "store"):
        raise DataError(
            f"{path}: not a source of the layout '{layout}'; leave the layout out to have it recognised"
        )
    return from_folder(path, layout, salt)


def _one_image(path: Path, salt: str) -> Manifest:
    if not (is_image_path(path) or is_dicom(path)):
        raise DataError(
            f"{path}: not an image, table ({', '.join(TABLE_SUFFIXES)}) or .npz; give one of these or a folder"
        )
    frame = (
        header_rows(path.parent, [path.name], salt)[0]
        if is_dicom(path)
        else pd.DataFrame({"image": [path.name]})
    )
    if not len(frame):
        raise DataError(f"{path}: the DICOM file holds no image")
    return Manifest(frame, path.parent, [], path.stem, "flat", f"one image file, {path.name}")


def _from_store(path: Path) -> Manifest:
    """Return the manifest that a prepared store keeps; its images are named, and need not be there any more."""
    try:
        facts = json.loads((path / "store.json").read_text(encoding="utf-8"))
        frame = pd.read_parquet(path / "index.parquet")
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: the store cannot be read ({error}); prepare it again") from error
    columns = list(facts.get("label_columns", []))
    made = Manifest(frame, Path(facts.get("root", path)), columns, str(facts.get("name", path.name)), "store")
    return replace(made, found=f"a prepared store: {describe(made)}")


def _with_headers(manifest: Manifest, salt: str) -> Manifest:
    """Add patient, site and the like from DICOM headers where a table does not say who the patients are."""
    if "patient" in manifest.frame.columns:
        return manifest
    files = manifest.frame["image"].map(lambda reference: split_reference(reference)[0])
    dicom = [file for file in dict.fromkeys(files) if is_dicom(manifest.root / file)]
    if not dicom:
        return manifest
    table, _ = header_rows(manifest.root, dicom, salt)
    table["image"] = table["image"].map(lambda reference: split_reference(reference)[0])
    table = table.drop_duplicates("image").set_index("image")
    new = [name for name in table.columns if name not in manifest.frame.columns]
    added = table[new].reindex(files).set_axis(manifest.frame.index)
    frame = pd.concat([manifest.frame, added], axis=1)
    return replace(
        manifest, frame=frame, found=f"{manifest.found}; {', '.join(new) or 'nothing'} from DICOM headers"
    )


def _relabelled(
    manifest: Manifest, label_columns: Sequence[str] | None, patient_column: str | None
) -> Manifest:
    """Apply the columns that the user named to a manifest that was not made from a table."""
    frame, where = manifest.frame, Path(manifest.name)
    if patient_column is not None:
        given_column(frame, patient_column, where, "patient")
        frame = frame.drop(columns=[] if patient_column == "patient" else ["patient"], errors="ignore")
        frame = frame.rename(columns={patient_column: "patient"})
    if label_columns is None or list(label_columns) == manifest.label_columns:
        return replace(manifest, frame=frame)
    other = [*manifest.label_columns, LABEL_ORDER]
    side = frame.drop(columns=[name for name in other if name not in label_columns], errors="ignore")
    text = side.assign(**{name: as_text(side[name]) for name in label_columns if name in side.columns})
    made, names = labels(text, where, label_columns, {"image"})
    return replace(manifest, frame=made, label_columns=names)
