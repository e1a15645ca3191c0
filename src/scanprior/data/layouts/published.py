"""What the datasets share: reading a published table, listing a folder, leaving out what is not on disk."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import pandas as pd

from scanprior.data.manifest import Manifest, counted, describe
from scanprior.data.readers import is_image_path
from scanprior.data.tables import as_text, given_column
from scanprior.errors import DataError

_YEARS = {"": 1.0, "Y": 1.0, "M": 12.0, "W": 52.1775, "D": 365.2425}
OLDEST = 110
"""Greatest age in years that is believed."""


def file_names(folder: Path, limit: int | None = None) -> list[str]:
    """Return the names of the (first ``limit``) files of a folder in no order; none without the folder."""
    try:
        with os.scandir(folder) as entries:
            return [entry.name for entry in islice(entries, limit) if not entry.name.startswith(".")]
    except OSError:  # not there, not a folder, or not for us
        return []


def images_by_stem(folder: Path, root: Path) -> dict[str, str]:
    """Return the images of one folder by their names without suffix, as references from ``root``."""
    prefix = prefix_of(folder, root)
    return {Path(name).stem: prefix + name for name in sorted(file_names(folder)) if is_image_path(name)}


def prefix_of(folder: Path, root: Path) -> str:
    """Return what stands before the names of a folder's files in references from ``root``: "" or "a/b/"."""
    inside = folder.relative_to(root).as_posix()
    return "" if inside == "." else f"{inside}/"


def folders_by_name(root: Path) -> dict[str, Path]:
    """Return the folders among the first thousand entries of a folder, by `plain_name`; none without the folder."""
    folders = ((plain_name(name), root / name) for name in sorted(file_names(root, 1000), reverse=True))
    return {name: folder for name, folder in folders if folder.is_dir()}


def homes(root: Path, names: Collection[str]) -> Iterator[Path]:
    """Yield a folder itself, then its children and their children whose plain names are among ``names``."""
    yield root
    for name, folder in sorted(folders_by_name(root).items()):
        if name in names:
            yield folder
            yield from (below for name, below in sorted(folders_by_name(folder).items()) if name in names)


def plain_name(name: str) -> str:
    """Return a name in lower case with "-" for blanks and underscores: copies of a dataset differ in these."""
    return name.lower().replace(" ", "-").replace("_", "-")


def first_file(folder: Path, names: Iterable[str]) -> Path | None:
    """Return the first of ``names`` that is a file of ``folder``, or None."""
    return next((folder / name for name in names if (folder / name).is_file()), None)


def first_lines(path: Path, count: int) -> list[str]:
    """Return the first lines of a text file, or [] when it is none; for detection, which raises nothing."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            return [line.rstrip("\r\n") for line in islice(file, count)]
    except (OSError, UnicodeDecodeError):
        return []


def published_table(path: Path, needed: Sequence[str], optional: Sequence[str] = ()) -> pd.DataFrame:
    """Read columns of a dataset's own CSV (or ``.csv.gz``, or with tabs) as stripped text; empty is missing.

    Args:
        path: the table.
        needed: names of columns that it must have.
        optional: names of columns that are taken where they are there.

    Raises:
        DataError: not a readable table, without rows, or without a needed column.
    """
    delimiter = "\t" if "\t" in "".join(first_lines(path, 1)) else ","
    try:
        header = pd.read_csv(
            path, sep=delimiter, nrows=0, encoding="utf-8-sig", index_col=False, skipinitialspace=True
        )
        for name in needed:
            given_column(header, name, path, "published")
        wanted = [*needed, *(name for name in optional if name in header.columns)]
        table = pd.read_csv(
            path, sep=delimiter, usecols=wanted, dtype=str, encoding="utf-8-sig", index_col=False,
            keep_default_na=False, na_values=[""], skipinitialspace=True,
        )  # fmt: skip
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: the table is not UTF-8 text; unpack the published file again") from error
    except (OSError, EOFError, ValueError) as error:  # pandas' own errors are ValueErrors
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(
            f"{path}: not a readable table ({reason}); unpack the published file again"
        ) from error
    if not len(table):
        raise DataError(f"{path}: the table has no rows; unpack the published file again")
    return table[wanted].apply(as_text)


def filled(column: pd.Series, path: Path) -> pd.Series:
    """Return the column of a published table if it has no empty cell.

    Raises:
        DataError: it has one; the sentence names its line.
    """
    empty = column.index[column.isna()]
    if len(empty):
        raise DataError(
            f"{path}: line {int(empty[0]) + 2} has nothing in the column '{column.name}'; unpack the published "
            "file again"
        )
    return column


def age_years(column: pd.Series) -> pd.Series:
    """Return ages such as "58", "058Y", "16month" and "64days" as years (float64); above `OLDEST` is missing."""
    parts = column.astype("str").str.extract(r"(?i)^0*(\d+(?:\.\d+)?)\s*([ymwd]?)")
    years = pd.to_numeric(parts[0]) / parts[1].str.upper().map(_YEARS)
    return years.where(years <= OLDEST).round(3).astype("float64")


def sexes(column: pd.Series) -> pd.Series:
    """Return M, F or missing for "Male", "F", "Unknown" and the like."""
    first = column.astype("str").str[:1].str.upper()
    return first.where(first.isin(["M", "F"]))


def only_present(frame: pd.DataFrame, root: Path, table: Path) -> tuple[pd.DataFrame, list[str]]:
    """Leave out rows whose image is not on disk; return (the others, what to say of it).

    Args:
        frame: rows with ``image``, a reference from ``root`` or missing where no file was found.
        root: the manifest's root.
        table: where the rows come from.
    """
    there = frame["image"].map(lambda image: not pd.isna(image) and (root / image).is_file()).astype(bool)
    gone = int((~there).sum())
    said = [f"{counted(gone, 'image')} of {table.name} not there and left out"] if gone else []
    return frame[there].reset_index(drop=True), said


def finished(
    frame: pd.DataFrame, root: Path, labels: Sequence[str], name: str, title: str, notes: Iterable[str]
) -> Manifest:
    """Make the manifest: columns that hold nothing are dropped (findings are kept), and ``found`` is written.

    Args:
        frame: one row an image.
        root: folder that the references start from.
        labels: ["label"], or the findings.
        name: the layout's name.
        title: the dataset's name, which starts the sentence.
        notes: what else to say, in the order of importance.

    Raises:
        DataError: no row is left, or an image is named twice with different labels.
    """
    notes = list(notes)
    if not len(frame):
        said = f" ({'; '.join(notes)})" if notes else ""
        raise DataError(f"{root}: {title} without a single image{said}; unpack the image archives there")
    twice = frame.duplicated("image")
    if twice.any():
        image = frame.loc[twice, "image"].iloc[0]
        if len(frame.drop_duplicates(["image", *labels])) > (~twice).sum():
            raise DataError(f"{root}: '{image}' is named twice in {title} with different labels; remove one")
        notes.append(f"{counted(int(twice.sum()), 'repeated row')} counted once")
        frame = frame[~twice]
    empty = [column for column in frame.columns if column not in labels and frame[column].isna().all()]
    made = Manifest(frame.drop(columns=empty), root, list(labels), name, name)
    found = "; ".join([f"{title}: {describe(made)}", *notes])
    return Manifest(made.frame, root, list(labels), name, name, found)
