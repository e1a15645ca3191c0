"""The manifest: a table with one row an image, and what is known of it."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from scanprior.data import paths, tables
from scanprior.data.tables import SPLITS
from scanprior.errors import DataError

_METADATA = b"scanprior.manifest"
_VERSION = 1
LABEL_ORDER = "label_order"
"""The column that numbers the classes where they have an order of their own, as grades have."""

_ROLES = {
    "patient": tables.PATIENT_NAMES,
    "split": tables.SPLIT_NAMES,
    "mask": tables.MASK_NAMES,
    "site": tables.SITE_NAMES,
}


@dataclass(frozen=True)
class Manifest:
    """A table with one row an image, and the folder its paths are relative to.

    Attributes:
        frame: columns ``image`` (str), and where known ``patient``, ``split`` (train, val, test),
            ``label`` (str) or one float64 column a finding (1, 0, -1 uncertain, NaN missing),
            ``mask`` (one reference, or several joined by "|" whose union is the mask, as for the
            left and the right lung), ``site``, ``label_order`` (a number for every class, where they
            have an order), and any side columns.
        root: folder that relative image references start from.
        label_columns: ["label"] for classes, the findings for multi-label, [] without labels.
        name: short name of the data.
        layout: what kind of source it was made from.
        found: one sentence that says what was recognised.
    """

    frame: pd.DataFrame
    root: Path
    label_columns: list[str] = field(default_factory=list)
    name: str = "images"
    layout: str = "table"
    found: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "frame", self.frame.reset_index(drop=True))
        for column in ["image", *self.label_columns]:
            if column not in self.frame.columns:
                raise DataError(f"{self.name}: a manifest needs the column '{column}', which is not there")

    def __len__(self) -> int:
        return len(self.frame)

    @property
    def task(self) -> Literal["multiclass", "multilabel"] | None:
        """What the labels are, or None without labels."""
        if not self.label_columns:
            return None
        return "multiclass" if self.label_columns == ["label"] else "multilabel"

    @property
    def classes(self) -> list[str]:
        """Class names or findings, in the order that everything after keeps.

        Findings stand as in the table. Classes are sorted, whole numbers by value; with a column
        ``label_order`` by the least number that their images have there (several after labels were
        renamed to one), and classes without a number come last.

        Raises:
            DataError: ``label_order`` holds something else than numbers.
        """
        if self.task != "multiclass":
            return list(self.label_columns)
        names = [str(name) for name in self.frame["label"].dropna().unique()]
        if LABEL_ORDER in self.frame.columns:
            numbers = self._label_numbers()
            return sorted(names, key=lambda name: (numbers.get(name, math.inf), name))
        return sorted(names, key=int) if all(map(str.isdecimal, names)) else sorted(names)

    def _label_numbers(self) -> dict[str, float]:
        """Return the least number that ``label_order`` gives to the images of a class, for those that have one."""
        given = self.frame[LABEL_ORDER]
        numbers = pd.to_numeric(given, errors="coerce")
        wrong = given[given.notna() & numbers.isna()]
        if len(wrong):
            raise DataError(
                f"{self.name}: the column '{LABEL_ORDER}' holds '{wrong.iloc[0]}'; it numbers the classes in their "
                "order, so write a number for every class or rename the column"
            )
        least = numbers.groupby(self.frame["label"]).min().dropna()
        return {str(name): float(number) for name, number in least.items()}

    def subset(self, rows: Sequence[int] | NDArray[np.generic] | pd.Series) -> Manifest:
        """Return the manifest of some rows: a boolean mask of length n, or row positions in the wanted order."""
        chosen = np.asarray(rows)
        positions = np.flatnonzero(chosen) if chosen.dtype == bool else chosen.astype(np.int64)
        return replace(self, frame=self.frame.iloc[positions])

    def fingerprint(self) -> str:
        """Return 16 hex digits that change with any cell, column, label column or the order of rows.

        The root and the way numbers are stored (36 or 36.0) do not count, so a copy elsewhere and
        a round trip through CSV keep it.
        """
        digest = hashlib.sha256(json.dumps(self.label_columns).encode())
        for name in sorted(self.frame.columns):
            column = self.frame[name]
            digest.update(f"\n{name}\n".encode())
            if pd.api.types.is_numeric_dtype(column):
                digest.update((column.to_numpy(dtype=np.float64, na_value=np.nan) + 0.0).tobytes())
            else:
                text = column.astype(object).where(column.notna(), None)
                digest.update(json.dumps(text.map(str, na_action="ignore").tolist(), default=str).encode())
        return digest.hexdigest()[:16]

    def save(self, path: str | Path) -> Path:
        """Write the manifest to ``path`` and return it; an existing file is replaced at once or not at all.

        ``.parquet`` keeps everything: its root is stored relative where the images lie beside or
        below the file, so both can move together. ``.csv`` holds the table alone.
        """
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
        if path.suffix.lower() == ".csv":
            self.frame.to_csv(partial, index=False)
        elif path.suffix.lower() == ".parquet":
            pq.write_table(self._arrow(path), partial)
        else:
            raise DataError(f"{path}: a manifest is saved as .parquet or .csv, not '{path.suffix}'")
        partial.replace(path)
        return path

    def _arrow(self, path: Path) -> pa.Table:
        root, here = self.root.resolve(), path.parent.resolve()
        facts = {
            "version": _VERSION,
            "root": root.relative_to(here).as_posix() if root.is_relative_to(here) else root.as_posix(),
            "label_columns": self.label_columns,
            "name": self.name,
            "layout": self.layout,
            "found": self.found,
        }
        table = pa.Table.from_pandas(self.frame, preserve_index=False)
        return table.replace_schema_metadata(
            {**(table.schema.metadata or {}), _METADATA: json.dumps(facts).encode()}
        )

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        root: str | Path | None = None,
        image_column: str | None = None,
        label_columns: Sequence[str] | None = None,
        patient_column: str | None = None,
        allow_outside: bool = False,
    ) -> Manifest:
        """Read a saved manifest, or any CSV, TSV or Parquet table that has a column of images.

        Args:
            path: the table.
            root: folder the images are in; otherwise the table's own folder, or what a saved manifest says.
            image_column, label_columns, patient_column: names, where they are not to be recognised;
                ``label_columns=[]`` leaves the labels out.
            allow_outside: accept absolute paths outside the root.

        Raises:
            DataError: the table cannot be read or used; the sentence names the row or column.
        """
        path = Path(path)
        if not path.is_file():
            raise DataError(f"{path}: there is no such table")
        facts = _stored_facts(path)
        table = tables.read_table(path)
        if facts is not None:
            root = (path.parent / facts["root"]) if root is None else root
            if label_columns is not None and list(label_columns) != facts["label_columns"]:
                table = table.drop(columns=LABEL_ORDER, errors="ignore")  # it is of the other labels
            label_columns = facts["label_columns"] if label_columns is None else label_columns
        frame, found_labels, base = _normalise(
            table,
            path,
            None if root is None else Path(root),
            image_column,
            label_columns,
            patient_column,
            allow_outside,
        )
        if facts is not None:
            return cls(frame, base, found_labels, facts["name"], facts["layout"], facts["found"])
        name = path.parent.resolve().name if path.stem in ("labels", "manifest") else path.stem
        made = cls(frame, base, found_labels, name)
        return replace(made, found=f"{path.name}: {describe(made)}")


def counted(number: int, noun: str) -> str:
    """Return "1 image", "2,000 images"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def describe(manifest: Manifest) -> str:
    """Return what a manifest holds in some words: images, patients, labels, splits."""
    frame = manifest.frame
    parts = [counted(len(frame), "image")]
    if "patient" in frame.columns and frame["patient"].notna().any():
        parts[0] += f" of {counted(frame['patient'].nunique(), 'patient')}"
        if unknown := int(frame["patient"].isna().sum()):
            parts[0] += f", {unknown:,} without a patient (each counts as one of its own)"
    if manifest.task is None:
        parts.append("no labels")
    else:
        names = manifest.classes
        one, several = ("class", "classes") if manifest.task == "multiclass" else ("finding", "findings")
        shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
        parts.append(f"{len(names)} {one if len(names) == 1 else several} ({shown})")
    if "split" in frame.columns:
        parts.append(
            "splits "
            + ", ".join(f"{s} {(frame['split'] == s).sum():,}" for s in SPLITS if s in set(frame["split"]))
        )
    return "; ".join(parts)


def _stored_facts(path: Path) -> dict[str, Any] | None:
    """Return what ``Manifest.save`` wrote beside the table, or None for a table of the user's own."""
    if path.suffix.lower() != ".parquet":
        return None
    try:
        metadata = pq.read_schema(path).metadata or {}
    except (pa.ArrowException, OSError):
        return None  # read_table says what is wrong
    if _METADATA not in metadata:
        return None
    facts: dict[str, Any] = json.loads(metadata[_METADATA])
    if facts.get("version") != _VERSION:
        raise DataError(
            f"{path}: the manifest has version {facts.get('version')}, this program reads version {_VERSION}; "
            "index the source again"
        )
    return facts


def _normalise(
    table: pd.DataFrame,
    path: Path,
    root: Path | None,
    image: str | None,
    label_columns: Sequence[str] | None,
    patient: str | None,
    allow_outside: bool,
) -> tuple[pd.DataFrame, list[str], Path]:
    """Bring a table to the manifest's columns; return (frame, label columns, root)."""
    text = table.apply(tables.as_text)
    image = tables.image_column(text, path, image)
    if patient is not None:
        tables.given_column(text, patient, path, "patient")
    roles = {role: tables.find_column(text, names) for role, names in _ROLES.items()} | {"image": image}
    roles["patient"] = patient or roles["patient"]
    named = {
        role: name for role, name in roles.items() if name is not None and name not in (label_columns or ())
    }
    text, found_labels = tables.labels(text, path, label_columns, set(named.values()))

    columns: dict[str, pd.Series] = {}
    columns["image"], base = _images(text[image], path, root, allow_outside)
    for role in ("patient", "split", *found_labels, "mask", "site"):
        name = role if role in found_labels else named.get(role, "")
        if not name or not text[name].notna().any():
            continue
        if role == "split":
            words = tables.split_values(text[name], path, strict=name == "split")
            if words is None:
                del named["split"]  # a column of another meaning, such as fold numbers
                continue
            columns[role] = words
        else:
            columns[role] = _masks(text[name], path, base, allow_outside) if role == "mask" else text[name]
    for name in text.columns.difference([*named.values(), *found_labels], sort=False):
        if text[name].notna().any():
            typed = path.suffix.lower() == ".parquet" and name in table.columns  # not one renamed just now
            side = table[name] if typed else tables.as_number(text[name])
            columns[f"{name} (table)" if name in columns else name] = side
    return pd.DataFrame(columns), found_labels, base


def _images(column: pd.Series, path: Path, root: Path | None, allow_outside: bool) -> tuple[pd.Series, Path]:
    missing = np.flatnonzero(column.isna())
    if len(missing):
        raise DataError(
            f"{path}: row {missing[0] + 2} names no image in the column '{column.name}'; fill or remove it"
        )
    references, base = paths.resolve(
        column.tolist(), path, str(column.name), root, allow_outside=allow_outside
    )
    images = pd.Series(references, index=column.index, dtype="str")
    again = np.flatnonzero(images.duplicated())
    if len(again):
        earlier = np.flatnonzero(images == images.iloc[again[0]])[0]
        raise DataError(
            f"{path}: row {earlier + 2} and row {again[0] + 2} both name '{images.iloc[again[0]]}' "
            f"({len(again)} such rows); keep one row for each image"
        )
    return images, base


def _masks(column: pd.Series, path: Path, root: Path, allow_outside: bool) -> pd.Series:
    """Check the references of a mask column, of which a cell may join several."""
    checked: list[str | None] = []
    for line, value in enumerate(column, start=2):
        if pd.isna(value):
            checked.append(None)
            continue
        where = f"{path}: row {line}"
        try:
            parts = paths.separate_references(value, root)
        except DataError as error:
            raise DataError(f"{where}: {error}") from error
        parts = [paths.checked_reference(part, where, root, allow_outside=allow_outside) for part in parts]
        checked.append(paths.join_references(parts))
    return pd.Series(checked, index=column.index, dtype="str")
