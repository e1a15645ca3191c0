"""Masks beside the images of a store: prepared like them, found by the images' rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from scanprior.data.manifest import Manifest
from scanprior.data.store import ImageStore, Rows, Store, prepare
from scanprior.errors import DataError

MASK = "mask"


def mask_columns(frame: pd.DataFrame) -> list[str]:
    """Return the columns that name masks: ``mask``, or one ``mask:NAME`` for every structure."""
    named = [str(column) for column in frame.columns if str(column).startswith(f"{MASK}:")]
    return named or ([MASK] if MASK in frame.columns else [])


def mask_manifest(store: Store, column: str) -> Manifest | None:
    """Return a manifest whose images are the masks of a store, with ``of``, the image's row; None without any."""
    frame = store.frame
    here = frame[column].notna() if column in frame.columns else pd.Series(False, index=frame.index)
    if not here.any():
        return None
    rows = np.flatnonzero(here.to_numpy())
    table = pd.DataFrame({"image": frame[column].iloc[rows].astype(str).to_numpy(), "of": rows})
    for side in ("height", "width"):
        if side in frame.columns:
            table[f"image_{side}"] = frame[side].iloc[rows].to_numpy()
    return Manifest(table, store.root, [], f"{store.name}-{column.replace(':', '-')}", "masks")


def _misshapen(frame: pd.DataFrame) -> NDArray[np.bool_]:
    """Return which masks have another aspect ratio than their image, by more than a pixel's rounding.

    Masks at half the size of their images are common, and fit.
    """
    if not {"height", "width", "image_height", "image_width"} <= set(frame.columns):
        return np.zeros(len(frame), dtype=bool)
    tall, wide, image_tall, image_wide = (
        frame[name].to_numpy(np.float64) for name in ("height", "width", "image_height", "image_width")
    )
    difference = np.abs(tall * image_wide - wide * image_tall)
    misshapen: NDArray[np.bool_] = difference > np.maximum(image_wide, image_tall)
    return misshapen


@dataclass(frozen=True)
class MaskValues:
    """Which values the masks of one column hold.

    Attributes:
        column: ``mask``, or ``mask:NAME``.
        files: (n,) the masks as the table names them.
        present: (n, 256) bool, whether a mask holds a value.
    """

    column: str
    files: Sequence[str]
    present: NDArray[np.bool_]

    @property
    def values(self) -> list[int]:
        """The values besides 0, of all masks together."""
        return [int(value) for value in np.flatnonzero(self.present.any(axis=0)) if value]

    @property
    def counts(self) -> NDArray[np.int64]:
        """(n,) how many values besides 0 each mask holds."""
        return np.asarray(self.present[:, 1:].sum(axis=1, dtype=np.int64))

    def file_with(self, value: int) -> str:
        """Return the first mask that holds a value."""
        return self.files[int(self.present[:, value].argmax())]

    def fullest(self) -> str:
        """Return the first mask with the most values, and the values in brackets."""
        row = int(self.counts.argmax())
        return f"{self.files[row]} ({shown_values(np.flatnonzero(self.present[row, 1:]) + 1)})"


def shown_values(values: Sequence[int] | NDArray[np.int64]) -> str:
    """Return the first values of many in words."""
    return ", ".join(str(int(value)) for value in values[:6]) + (" ..." if len(values) > 6 else "")


class Masks:
    """The masks of an image store, one column of them for each structure or a single one for all.

    Args:
        columns: for each mask column, for each source store: its prepared masks, or None without any.
        lengths: images of each source store, in order.
        names: of the mask columns.

    Attributes:
        has: (N,) bool, whether a row has every mask.
        left_out: mask and reason of every mask that cannot be read.
    """

    def __init__(
        self, columns: Sequence[Sequence[Store | None]], lengths: Sequence[int], names: Sequence[str]
    ) -> None:
        self.names = list(names)
        self._columns = [list(stores) for stores in columns]
        self._starts = np.cumsum([0, *lengths])
        self._files = np.full((len(columns), self._starts[-1]), "", dtype=object)
        self._places = np.full((len(columns), self._starts[-1]), -1, dtype=np.int64)
        self.left_out: list[dict[str, str]] = []
        for number, stores in enumerate(columns):
            for start, store in zip(self._starts, stores, strict=False):
                if store is not None:
                    self._add(number, int(start), store)
        self.has: NDArray[np.bool_] = np.all(self._places >= 0, axis=0)

    def _add(self, number: int, start: int, store: Store) -> None:
        """Note where the masks of one source lie; one of another shape than its image is left out."""
        frame = store.frame
        off = _misshapen(frame)
        kept = frame[~off]
        self._places[number, start + kept["of"].to_numpy()] = kept["row"].to_numpy()
        self._files[number, start + kept["of"].to_numpy()] = kept["image"].astype(str).to_numpy()
        self.left_out += [
            {"mask": str(entry["image"]), "reason": str(entry["reason"])} for entry in store.audit["left_out"]
        ]
        for row in frame[off].itertuples():
            reason = (
                f"the mask has {row.width} x {row.height} pixels and its image {row.image_width} x {row.image_height}: "
                "they do not show the same field"
            )
            self.left_out.append({"mask": str(row.image), "reason": reason})

    @property
    def size(self) -> int:
        """Side of the stored masks in pixels."""
        return next(store.size for stores in self._columns for store in stores if store is not None)

    def read(self, rows: Rows) -> NDArray[np.uint8]:
        """Return the masks at the images' rows (B,): (B, columns, S, S) uint8, values as in the files.

        Raises:
            DataError: a row has no mask.
        """
        rows = np.asarray(rows, dtype=np.int64)
        without = ~self.has[rows]
        if without.any():
            raise DataError(f"row {rows[without][0]} has no mask; leave it out")
        out = np.empty((len(rows), len(self._columns), self.size, self.size), np.uint8)
        which = np.searchsorted(self._starts, rows, side="right") - 1
        for number, stores in enumerate(self._columns):
            for source in np.unique(which):
                here, store = which == source, stores[source]
                assert store is not None
                out[here, number] = store.read(self._places[number, rows[here]])[:, 0]
        return out

    def values(self, rows: Rows, block: int = 256) -> list[MaskValues]:
        """Return, for every mask column, which values the masks of some rows hold."""
        rows = np.asarray(rows, dtype=np.int64)
        present = np.zeros((len(self._columns), len(rows), 256), dtype=bool)
        for start in range(0, len(rows), block):
            part = self.read(rows[start : start + block])
            each = np.arange(len(part))[:, None]
            for number in range(len(self._columns)):
                present[number, start + each, part[:, number].reshape(len(part), -1)] = True
        return [
            MaskValues(name, self._files[number, rows].tolist(), present[number])
            for number, name in enumerate(self.names)
        ]


def prepare_masks(
    stores: Sequence[Store],
    place: Callable[[Store, Manifest], Path],
    *,
    workers: int = 2,
    progress: Callable[[int, int], None] | None = None,
) -> Masks | None:
    """Prepare the masks of several stores; None where no image has one.

    Args:
        stores: the images; their tables name the masks.
        place: the folder for the prepared masks of a store.
        workers, progress: as for ``prepare``.

    Raises:
        DataError: as ``prepare``; sources with different mask columns.
    """
    found = {store.path: mask_columns(store.frame) for store in stores}
    names = list(dict.fromkeys(name for columns in found.values() for name in columns))
    if MASK in names and len(names) > 1:
        raise DataError(
            f"the sources name their masks differently ({', '.join(names)}); use the same columns in all of them"
        )
    columns: list[list[Store | None]] = []
    for name in names:
        made: list[Store | None] = []
        for store in stores:
            manifest = mask_manifest(store, name)
            if manifest is None:
                made.append(None)
                continue
            folder = place(store, manifest)
            made.append(
                prepare(
                    manifest, folder, size=store.size, channels=1, fit=store.fit, masks=True, workers=workers,
                    progress=progress,
                )
            )  # fmt: skip
        columns.append(made)
    if not any(store for made in columns for store in made):
        return None
    return Masks(columns, [len(store) for store in stores], names)


def matching_rows(images: ImageStore, masks: Masks, rows: Rows) -> Rows:
    """Return those of the rows that have every mask, in order."""
    return np.asarray(rows, dtype=np.int64)[masks.has[rows]]
