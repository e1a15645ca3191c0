"""The rows of a long prediction: kept part by part, so that a stopped one goes on, and written as one table."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from scanprior.engine import Reporter
from scanprior.errors import RunError
from scanprior.files import replacing, write_text

PART = 1024
"""Rows that are kept together, at least."""

TABLES = (".csv", ".parquet", ".jsonl")
"""Endings of the tables that can be written."""

FEATURES = (".npy", ".parquet")
"""Endings of the files of features that can be written."""


class PredictionRows:
    """Rows in the order of the images, on their way to a table.

    Args:
        place: folder for the parts; None = they are held in memory, and cannot be gone on with.
        request: what the rows depend on; a prediction goes on only where it is the same.
        resume: whether to go on with what is there.
        reporter: is told of what is there.

    Attributes:
        done: how many rows there are.

    Raises:
        RunError: parts of another prediction are to be gone on with.
    """

    def __init__(
        self, place: Path | None, request: Mapping[str, Any], *, resume: bool, reporter: Reporter
    ) -> None:
        self.place, self.done = place, 0
        self._tables: list[pd.DataFrame] = []
        self._features: list[NDArray[np.float32]] = []
        self._waiting = 0
        if place is None:
            return
        self._request = hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()
        begun = place / "request.json"
        if resume and begun.is_file():
            self._go_on(begun, reporter)
            return
        if place.is_dir():
            reporter.note(
                f"{place}: the parts of an earlier prediction are replaced (--resume goes on with them)"
            )
            shutil.rmtree(place)
        place.mkdir(parents=True)
        write_text(begun, json.dumps({"request": self._request}))

    def _go_on(self, begun: Path, reporter: Reporter) -> None:
        assert self.place is not None
        if json.loads(begun.read_text()).get("request") != self._request:
            raise RunError(
                f"{self.place}: these are the parts of a prediction of other images, by another run or with other "
                "options; give the same again, or leave out --resume to begin anew"
            )
        for file in sorted(self.place.glob("*.parquet")):
            self._tables.append(pd.read_parquet(file))
            kept = file.with_suffix(".npy")
            if kept.is_file():
                self._features.append(np.load(kept))
        self.done = sum(map(len, self._tables))
        reporter.note(f"{self.done:,} images were predicted before")

    def add(self, tables: Sequence[pd.DataFrame], features: Sequence[NDArray[np.float32]] = ()) -> None:
        """Take the next rows, and (rows, D) features where they are wanted; they are kept together, or none of them."""
        self._tables += tables
        self._features += features
        count = sum(map(len, tables))
        self.done += count
        self._waiting += count
        if self.place is not None and self._waiting >= PART:
            self._keep()

    def _keep(self) -> None:
        """Write what has come since the last part."""
        assert self.place is not None
        count, rows = 0, 0
        while rows < self._waiting:
            count += 1
            rows += len(self._tables[-count])
        part = self.place / f"{self.done:012d}.parquet"
        if self._features:
            with replacing(part.with_suffix(".npy")) as file, file.open("wb") as stream:
                np.save(stream, np.concatenate(self._features[-count:]))
            self._features[-count:] = [np.concatenate(self._features[-count:])]
        joined = pd.concat(self._tables[-count:], ignore_index=True)
        with replacing(part) as file:
            joined.to_parquet(file, index=False)
        self._tables[-count:] = [joined]
        self._waiting = 0

    def table(self) -> pd.DataFrame:
        """Return all rows, and keep them until ``close``: the table may not fit on the disk."""
        if self.place is not None and self._waiting:
            self._keep()
        return pd.concat(self._tables, ignore_index=True)

    def features(self) -> NDArray[np.float32]:
        """Return (rows, D) features of all rows; NaN where an image could not be read."""
        return np.concatenate(self._features)

    def close(self) -> None:
        """Remove the parts: their table is written."""
        if self.place is not None:
            shutil.rmtree(self.place)


def parts_of(out: Path) -> Path:
    """Return the folder where the parts of a table, or of a folder of masks, are kept while they are made."""
    return out.with_name(out.name + ".parts")


def spread(values: NDArray[Any], rows: NDArray[np.int64], count: int) -> NDArray[Any]:
    """Put the values of some rows where they belong among ``count``; the others are missing."""
    numbers = np.issubdtype(values.dtype, np.number)
    kind = values.dtype if numbers else np.dtype(object)  # words and truth values have a None
    whole = np.full((count, *values.shape[1:]), np.nan if numbers else None, dtype=kind)
    whole[rows] = values
    return whole


def save_table(table: pd.DataFrame, out: Path) -> None:
    """Write a table in the form that the ending of ``out`` names."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with replacing(out) as part:
        if out.suffix == ".csv":
            table.to_csv(part, index=False)
        elif out.suffix == ".jsonl":
            part.write_text("".join(_lines(table)))
        else:
            table.to_parquet(part, index=False)


def _lines(table: pd.DataFrame) -> Iterator[str]:
    """Yield a row as a line of JSON, every number in full: pandas writes fifteen digits."""
    for row in table.astype(object).where(table.notna(), None).to_dict("records"):
        yield json.dumps(row, ensure_ascii=False) + "\n"


def save_features(images: Sequence[str], features: NDArray[np.float32], out: Path) -> None:
    """Write features (N, D): ``.npy`` in the order of the rows, or ``.parquet`` with the images' names."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with replacing(out) as part:
        if out.suffix == ".npy":
            with part.open("wb") as stream:
                np.save(stream, features)
        else:
            pd.DataFrame({"image": list(images), "features": list(features)}).to_parquet(part, index=False)
