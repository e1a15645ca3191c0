"""The last step of ``prepare``: from the journal to the index, the statistics and ``store.json``."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from scanprior.data.fitting import Fit
from scanprior.data.manifest import Manifest
from scanprior.data.store import FORMAT, OWN_COLUMNS, VERSION, moments, totalled
from scanprior.data.store_chunks import Shards
from scanprior.data.store_journal import Journal
from scanprior.errors import DataError
from scanprior.files import write_bytes, write_text


@dataclass(frozen=True)
class Made:
    """What the journal knows of all images, in the order of the manifest.

    Args:
        sums: (n, C, 2) int64 sums of values and squares, 0 for the unreadable.
        images: (n,) digests of the decoded images.
        sides: (n, 2) int64 height and width of the decoded images.
        left_out: slot and reason of the unreadable.
        digest: of all stored pixels.
    """

    sums: NDArray[np.int64]
    images: NDArray[np.bytes_]
    sides: NDArray[np.int64]
    left_out: list[tuple[int, str]]
    digest: str

    @classmethod
    def gather(cls, journal: Journal, shards: Shards) -> Made:
        """Read a journal that is complete.

        Raises:
            DataError: it is not, as another process changed it.
        """
        sums = np.zeros((shards.images, shards.channels, 2), dtype=np.int64)
        images = np.zeros(shards.images, dtype="S32")
        sides = np.zeros((shards.images, 2), dtype=np.int64)
        chunks, left_out, found = dict[int, str](), dict[int, str](), 0
        for record in journal.records():
            here = slice(record.first, record.first + len(record.images))
            sums[here], images[here], sides[here] = record.sums, record.images, record.sides
            chunks[record.chunk] = record.digest
            left_out.update(record.left_out)
            found += len(record.images)
        if found != shards.images:
            raise DataError(
                f"{journal.path}: knows {found:,} of the {shards.images:,} images; its file was changed while the "
                "store was made. Prepare it again, one process at a time"
            )
        whole = "".join(digest for _, digest in sorted(chunks.items()))
        return cls(sums, images, sides, sorted(left_out.items()), hashlib.sha256(whole.encode()).hexdigest())

    def write(self, manifest: Manifest, shards: Shards, *, fit: Fit, request: str) -> None:
        """Write the files that make a store of the shards, ``store.json`` last.

        Args:
            manifest: of its images; at least one of them could be read.
            shards: all written.
            fit: how the images were fitted.
            request: key of what was asked for.
        """
        frame = manifest.frame.reset_index(drop=True)
        kept = np.delete(np.arange(shards.images), [slot for slot, _ in self.left_out])
        counted, which = _counted(frame, kept)
        totals = totalled(self.sums[counted])
        mean, std = moments(totals, len(counted) * shards.size**2, shards.depth)
        settings = {"size": shards.size, "channels": shards.channels, "depth": shards.depth, "fit": fit}
        content = json.dumps([manifest.fingerprint(), settings, self.digest])
        write_bytes(shards.folder / "index.parquet", self._index(frame, kept).to_parquet(index=False))
        write_bytes(shards.folder / "statistics.npy", _npy(self.sums))
        facts = {
            "format": FORMAT,
            "version": VERSION,
            "name": manifest.name,
            "layout": manifest.layout,
            "root": str(manifest.root.resolve()),
            "label_columns": manifest.label_columns,
            **settings,
            "shard_images": shards.shard_images,
            "mean": mean,
            "std": std,
            "totals": totals,
            "fingerprint": hashlib.sha256(content.encode()).hexdigest()[:16],
            "request": request,
            "audit": {
                "images": shards.images,
                "stored": len(kept),
                "counted": {"images": len(counted), "rows": which},
                "left_out": _left_out(frame, self.left_out),
            },
        }
        write_text(shards.folder / "store.json", json.dumps(facts, indent=1, ensure_ascii=False))

    def _index(self, frame: pd.DataFrame, kept: NDArray[np.int64]) -> pd.DataFrame:
        taken = {name: f"{name} (table)" for name in OWN_COLUMNS if name in frame.columns}
        index = frame.rename(columns=taken).iloc[kept].reset_index(drop=True)
        index["row"] = np.arange(len(kept), dtype=np.int64)
        index["pixels"] = self.images[kept].astype(str)
        index["height"], index["width"] = self.sides[kept].T
        return index


def _counted(frame: pd.DataFrame, kept: NDArray[np.int64]) -> tuple[NDArray[np.int64], str]:
    """Return the slots that the mean and deviation are of, and their name: train, or all."""
    if "split" in frame.columns:
        train = kept[(frame["split"].iloc[kept] == "train").fillna(False).to_numpy(dtype=bool)]
        if len(train):
            return train, "train"
    return kept, "all"


def _left_out(frame: pd.DataFrame, left_out: list[tuple[int, str]]) -> list[dict[str, Any]]:
    entries = []
    for slot, reason in left_out:
        entry = {"slot": slot, "image": str(frame["image"].iloc[slot]), "reason": reason}
        if "split" in frame.columns and pd.notna(frame["split"].iloc[slot]):
            entry["split"] = str(frame["split"].iloc[slot])
        entries.append(entry)
    return entries


def _npy(array: NDArray[np.int64]) -> bytes:
    stream = BytesIO()
    np.save(stream, array)
    return stream.getvalue()
