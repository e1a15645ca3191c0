"""The store: a manifest's images, decoded once, square and of one size, ready to be read by row.

On disk it is a folder: ``images-*.npy`` shards (any NumPy can map them), ``index.parquet`` (one
row an image), ``statistics.npy`` (exact sums an image) and ``store.json``, written last.
"""

from __future__ import annotations

import hashlib
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from scanprior.data.fitting import Fit, Pixels
from scanprior.data.manifest import Manifest
from scanprior.data.store_chunks import Shards
from scanprior.errors import DataError

FORMAT = "scanprior-store"
VERSION = 1
OWN_COLUMNS = ("row", "pixels", "height", "width")
"""Columns of the index that the store adds to the manifest's; such a column of the table is renamed."""

Rows = NDArray[np.int64]
Sums = NDArray[np.int64]


class ImageStore(ABC):
    """Images to be read by row: one store, or several that act as one.

    Attributes:
        name: short name of the data.
        label_columns: as in the manifest.
        size, channels, depth, fit: side in pixels, 1 or 3, bits (8, 16), how images were made square.
        mean, std: per channel, in [0, 1], over the training images (all images without a split).
        fingerprint: 16 hex digits that change with any pixel, cell or setting.
        audit: counts, and every image that was left out, with the reason.
        frame: one row an image in the order of ``read``: the manifest's columns, ``row`` (0..n-1),
            ``pixels`` (digest of the decoded image; equal for identical images), ``height`` and ``width``
            of the original in pixels.
    """

    name: str
    label_columns: list[str]
    size: int
    channels: int
    depth: int
    fit: Fit
    mean: list[float]
    std: list[float]
    fingerprint: str
    audit: dict[str, Any]

    @property
    @abstractmethod
    def frame(self) -> pd.DataFrame:
        """The table of the images."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def read(self, rows: Rows) -> Pixels:
        """Return the images at ``rows`` (B,), in that order: (B, C, S, S) uint8 or uint16.

        Raises:
            DataError: a row outside 0..n-1.
        """

    @abstractmethod
    def sums(self, rows: Rows) -> Sums:
        """Return (B, C, 2) int64: for each image the exact sums of its values and of their squares."""

    def statistics(self, rows: Rows) -> tuple[list[float], list[float]]:
        """Return mean and standard deviation per channel, in [0, 1], over ``rows``; exact, no pixel is read."""
        if not len(rows):
            raise DataError(f"{self.name}: statistics need at least one image")
        return moments(totalled(self.sums(rows)), len(rows) * self.size**2, self.depth)

    def _check(self, rows: Rows) -> None:
        if len(rows) and (rows.min() < 0 or rows.max() >= len(self)):
            wrong = rows[(rows < 0) | (rows >= len(self))][0]
            raise DataError(
                f"{self.name}: there is no row {wrong}; the store holds rows 0 to {len(self) - 1}"
            )


class Store(ImageStore):
    """A prepared store on disk.

    Pickling one (for loader workers) takes its path along, not its table. Reading is by position
    in the file, so nothing of it stays in the memory of the process, and forked or threaded
    readers do not disturb each other.

    Attributes:
        path: the folder.
        root: folder that the manifest's image paths start from.
        layout: as in the manifest.
        reused: whether ``prepare`` found it finished.
        totals: per channel, the sum of the values that ``mean`` is of, and of their squares.
    """

    def __init__(self, path: Path, facts: dict[str, Any]) -> None:
        self.path, self._facts = path, facts
        self.reused = False
        self.name, self.layout, self.root = facts["name"], facts["layout"], Path(facts["root"])
        self.label_columns = list(facts["label_columns"])
        self.size, self.channels, self.depth = facts["size"], facts["channels"], facts["depth"]
        self.fit, self.fingerprint, self.audit = facts["fit"], facts["fingerprint"], facts["audit"]
        self.mean, self.std, self.totals = list(facts["mean"]), list(facts["std"]), facts["totals"]
        images, in_shard = facts["audit"]["images"], facts["shard_images"]
        self._shards = Shards(path, images, self.channels, self.size, self.depth, in_shard)
        gone = [entry["slot"] for entry in self.audit["left_out"]]
        self._slots = np.delete(np.arange(self._shards.images, dtype=np.int64), gone)
        self._files: dict[int, tuple[int, int]] = {}

    @classmethod
    def open(cls, path: str | Path) -> Store:
        """Open a finished store.

        Raises:
            DataError: there is none, it is unfinished, damaged, or of a newer version.
        """
        path = Path(path)
        facts = read_facts(path)
        if facts is None:
            raise DataError(f"{path}: there is no finished store here; make one with `scanprior prepare`")
        store = cls(path, facts)
        shards = store._shards
        for shard in range(shards.count):
            file, wanted = shards.path(shard), shards.file_bytes(shard)
            found = file.stat().st_size if file.is_file() else None
            if found != wanted:
                what = "is missing" if found is None else f"has {found:,} bytes instead of {wanted:,}"
                raise DataError(f"{file} {what}: the store is damaged; copy it again or prepare it again")
        return store

    def __reduce__(self) -> tuple[Callable[[Path, dict[str, Any]], Store], tuple[Path, dict[str, Any]]]:
        return Store, (self.path, self._facts)

    def __del__(self) -> None:
        for file, _ in getattr(self, "_files", {}).values():
            os.close(file)

    def __len__(self) -> int:
        return len(self._slots)

    @cached_property
    def frame(self) -> pd.DataFrame:
        """The table of the images, read on first use."""
        return pd.read_parquet(self.path / "index.parquet")

    def manifest(self) -> Manifest:
        """Return the table as a manifest of the original images."""
        found = f"{self.path}: prepared store, {len(self):,} images of {self.size} px"
        return Manifest(self.frame, self.root, self.label_columns, self.name, self.layout, found)

    def read(self, rows: Rows) -> Pixels:
        """Return the images at ``rows`` (B,), in that order: (B, C, S, S) uint8 or uint16."""
        rows = np.asarray(rows, dtype=np.int64)
        self._check(rows)
        shards = self._shards
        out: Pixels = np.empty((len(rows), shards.channels, shards.size, shards.size), shards.dtype)
        slots = self._slots[rows]
        order = np.argsort(slots, kind="stable")
        # One system call for every run of neighbours: a whole pass in order is a few large reads.
        runs = (
            np.flatnonzero((np.diff(slots[order]) != 1) | (slots[order][1:] % shards.shard_images == 0)) + 1
        )
        for places in np.split(order, runs):
            if len(places):
                self._read_run(int(slots[places[0]]), places, out)
        return out

    def _read_run(self, slot: int, places: NDArray[np.int64], out: Pixels) -> None:
        shards = self._shards
        shard, place = divmod(slot, shards.shard_images)
        file, start = self._file(shard)
        offset = start + place * shards.image_bytes
        straight = len(places) == 1 or bool((np.diff(places) == 1).all())
        target = out[places[0] : places[0] + len(places)] if straight else np.empty_like(out[: len(places)])
        view = memoryview(target.data).cast("B")
        while view:
            count = os.preadv(file, [view], offset)
            if count == 0:
                raise DataError(
                    f"{shards.path(shard)}: ends too early; the store is damaged, prepare it again"
                )
            view, offset = view[count:], offset + count
        if not straight:
            out[places] = target

    def _file(self, shard: int) -> tuple[int, int]:
        """Return a shard's file and the offset of its first image."""
        if shard not in self._files:
            descriptor = os.open(self._shards.path(shard), os.O_RDONLY)
            self._files[shard] = descriptor, len(self._shards.header(shard))
        return self._files[shard]

    def sums(self, rows: Rows) -> Sums:
        """Return (B, C, 2) int64: for each image the exact sums of its values and of their squares."""
        rows = np.asarray(rows, dtype=np.int64)
        self._check(rows)
        found: Sums = np.load(self.path / "statistics.npy", mmap_mode="r")[self._slots[rows]]
        return found


class StoreSet(ImageStore):
    """Several stores that act as one; rows count on from store to store.

    ``frame`` has one more column, ``source`` (the name of the store; made unique); ``starts`` holds the
    first row of every store. Patient names are
    taken as they are: equal ones in two sources are treated as one patient, which can only keep
    images together that would otherwise be divided.

    Raises:
        DataError: no store, or stores that differ in size, channels, depth or fit.
    """

    def __init__(self, stores: Sequence[Store]) -> None:
        if not stores:
            raise DataError("no store given; name at least one")
        self.stores, first = list(stores), stores[0]
        for store in stores[1:]:
            for name in ("size", "channels", "depth", "fit"):
                mine, other = getattr(first, name), getattr(store, name)
                if mine != other:
                    raise DataError(
                        f"{first.path} has {name} {mine} and {store.path} has {name} {other}; "
                        f"prepare both with the same data.{name}"
                    )
        self.size, self.channels, self.depth, self.fit = first.size, first.channels, first.depth, first.fit
        self.sources = _unique([store.name for store in stores])
        self.name = "+".join(self.sources)
        same = all(store.label_columns == first.label_columns for store in stores)
        self.label_columns = list(first.label_columns) if same else []
        self.fingerprint = hashlib.sha256(" ".join(s.fingerprint for s in stores).encode()).hexdigest()[:16]
        self.starts = np.cumsum([0, *(len(store) for store in stores)])
        images = sum(store.audit["counted"]["images"] for store in stores)
        totals = np.sum([np.array(store.totals, dtype=object) for store in stores], axis=0).tolist()
        self.mean, self.std = moments(totals, images * self.size**2, self.depth)
        self.audit = {
            "images": sum(store.audit["images"] for store in stores),
            "stored": len(self),
            "left_out": [
                entry | {"source": source}
                for source, store in zip(self.sources, stores, strict=True)
                for entry in store.audit["left_out"]
            ],
            "counted": {"images": images, "rows": "as each source says"},
        }

    def __len__(self) -> int:
        return int(self.starts[-1])

    @cached_property
    def frame(self) -> pd.DataFrame:
        """The tables one below the other, with ``source``."""
        parts = [s.frame.assign(source=source) for source, s in zip(self.sources, self.stores, strict=True)]
        return pd.concat(parts, ignore_index=True).assign(row=np.arange(len(self)))

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "frame"}

    def read(self, rows: Rows) -> Pixels:
        """Return the images at ``rows`` (B,), in that order: (B, C, S, S) uint8 or uint16."""
        return self._gathered(rows, lambda store, part: store.read(part))

    def sums(self, rows: Rows) -> Sums:
        """Return (B, C, 2) int64: for each image the exact sums of its values and of their squares."""
        return self._gathered(rows, lambda store, part: store.sums(part))

    def _gathered(self, rows: Rows, take: Callable[[Store, Rows], NDArray[Any]]) -> NDArray[Any]:
        rows = np.asarray(rows, dtype=np.int64)
        self._check(rows)
        which = np.searchsorted(self.starts, rows, side="right") - 1
        out = None
        for number in np.unique(which) if len(rows) else [0]:
            here = which == number
            part = take(self.stores[number], rows[here] - self.starts[number])
            out = np.empty((len(rows), *part.shape[1:]), part.dtype) if out is None else out
            out[here] = part
        assert out is not None
        return out


def concatenate(stores: Sequence[Store]) -> ImageStore:
    """Return several stores as one; a single one as it is."""
    return stores[0] if len(stores) == 1 else StoreSet(stores)


def prepare(
    manifest: Manifest,
    out: str | Path,
    *,
    size: int,
    channels: Literal[1, 3] | None = None,
    depth: Literal[8, 16] = 8,
    fit: Fit = "squash",
    masks: bool = False,
    workers: int = 2,
    progress: Callable[[int, int], None] | None = None,
) -> Store:
    """Decode a manifest's images once, in parallel, into a store.

    Memory does not grow with the number of images. A run that was killed goes on where it stopped
    when it is called again, and the result is byte for byte the same; so it is for any ``workers``.

    Args:
        manifest: the images.
        out: the folder to write: new, empty, or an unfinished or finished store of the same images
            and settings (a finished one is returned as it is, with ``reused`` set).
        size: side of the stored images in pixels.
        channels: 1 (colour becomes luminance), 3 (grey is repeated), None for 1 if every image is
            grey and else 3.
        depth: bits per pixel; 16 keeps the grey levels of 16-bit images.
        fit: ``squash``, ``pad`` (on black) or ``crop`` to a square.
        masks: the manifest's images are masks: read by ``read_mask``, and resized without new values.
        workers: processes that decode; 0 decodes in this one.
        progress: called with (images done, images in all).

    Raises:
        DataError: another thing is in ``out``, the disk is full, or no image can be read.
    """
    from scanprior.data.store_writer import Preparation

    return Preparation(manifest, Path(out), size, channels, depth, fit, masks).run(workers, progress)


def read_facts(path: Path) -> dict[str, Any] | None:
    """Return the content of ``store.json``, or None where there is none.

    Raises:
        DataError: it is not one, or of a newer version.
    """
    file = path / "store.json"
    try:
        facts = json.loads(file.read_text())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError as error:
        raise DataError(f"{file}: damaged ({error}); prepare the store again") from error
    if not isinstance(facts, dict) or facts.get("format") != FORMAT:
        raise DataError(f"{file}: not the description of a scanprior store")
    if facts["version"] > VERSION:
        raise DataError(
            f"{file}: the store has version {facts['version']}, this program reads up to {VERSION}; "
            "use a newer scanprior or prepare it again"
        )
    return facts


def totalled(sums: Sums) -> list[list[int]]:
    """Return the [sum, sum of squares] of every channel of (n, C, 2) sums; whole numbers of any size."""
    return [[sum(column.tolist()) for column in channel.T] for channel in sums.transpose(1, 0, 2)]


def moments(totals: list[list[int]], count: int, depth: int) -> tuple[list[float], list[float]]:
    """Return mean and standard deviation per channel, in [0, 1], of ``count`` values with these totals.

    In whole numbers up to the last division, so the result does not depend on any order.
    """
    top = 2**depth - 1
    mean = [float(Fraction(total, count * top)) for total, _ in totals]
    variance = [Fraction(count * squares - total**2, (count * top) ** 2) for total, squares in totals]
    return mean, [float(value) ** 0.5 for value in variance]


def _unique(names: Sequence[str]) -> list[str]:
    seen: dict[str, int] = {}
    made = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        made.append(name if seen[name] == 1 else f"{name}-{seen[name]}")
    return made
