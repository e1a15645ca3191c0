"""Features of a frozen encoder, computed once and kept: for probes, trained heads, and one label budget after another.

An image's features depend on the encoder's weights, the preprocessing and the pixels alone, and so does their place
in the cache. They are computed in blocks of neighbouring stored images, the same whoever asks for which of them, so
that what is read does not depend on the order of the asking.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from numpy.typing import NDArray
from torch import Tensor

from scanprior.allocation import keep_freed_memory
from scanprior.api.embeddings import Embeddings
from scanprior.api.sources import cache_folder
from scanprior.data.folder_lock import locked
from scanprior.data.loader import evaluation_batches
from scanprior.data.store import ImageStore
from scanprior.data.transforms import Preprocessing
from scanprior.encoders import Encoder, Features, descriptor
from scanprior.engine import Batch, Order, Reporter
from scanprior.files import replacing

BLOCK = 32
"""Images that are encoded together."""

FORMAT = 1

Rows = NDArray[np.int64]

_KINDS: dict[str, Callable[[Features], Tensor]] = {
    "pooled": lambda made: made.pooled.float(),
    "tokens": lambda made: made.tokens.half(),
    "descriptors": descriptor,
}
"""What is kept of an image's features, each in a file of its own."""


class StoredFeatures:
    """The features of a store's images, encoded where they are not kept yet.

    Pooled vectors and descriptors are kept in float32; tokens, which heads that pool by themselves need, in float16.

    Args:
        encoder: frozen, in evaluation mode; its weights are part of the place.
        preprocessing: what it expects.
        store: the images.
        tokens: whether tokens are wanted beside the pooled vectors.
        descriptors: whether what tells outliers (``encoders.descriptor``) is wanted, too.
        reporter: told of the work and where it is kept.
        folder: where to keep them; None = in the user's cache.
    """

    def __init__(
        self,
        encoder: Encoder,
        preprocessing: Preprocessing,
        store: ImageStore,
        *,
        tokens: bool,
        descriptors: bool = False,
        reporter: Reporter,
        folder: Path | None = None,
    ) -> None:
        self.encoder, self.preprocessing, self.store = encoder, preprocessing, store
        self.tokens, self.descriptors, self.reporter = tokens, descriptors, reporter
        self.key = features_key(encoder, preprocessing, store)
        wanted = {"pooled": True, "tokens": tokens, "descriptors": descriptors}
        self._kinds = tuple(kind for kind, needed in wanted.items() if needed)
        self.folder = (cache_folder() if folder is None else folder) / f"features-{self.key}"
        self._maps: dict[str, np.memmap[Any, np.dtype[Any]]] = {}
        self._said = False

    def __getstate__(self) -> dict[str, Any]:
        # loader workers read what is there, and open the files by themselves
        return {**self.__dict__, "_maps": {}, "encoder": None, "reporter": None}

    def ensure(self, rows: Rows) -> None:
        """Encode the images of ``rows`` that are not kept yet, a block at a time.

        Raises:
            OSError: the disk is full; blocks that are done stay.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        wanted = np.unique(np.asarray(rows, dtype=np.int64) // BLOCK)
        with locked(self.folder):
            done = self._done()
            todo = wanted[done[wanted] == 0]
            if not len(todo):
                self._say("using the features kept")
                return
            self.encoder.eval()
            device = next(self.encoder.parameters()).device
            if device.type == "cpu":
                keep_freed_memory()
            with ThreadPoolExecutor(1) as beside:  # the disk is waited for while the next block is encoded
                kept: Future[None] | None = None
                for number, block in enumerate(todo):
                    first, last = block * BLOCK, min((block + 1) * BLOCK, len(self.store))
                    part = np.arange(first, last, dtype=np.int64)
                    (images,) = evaluation_batches(self.store, part, self.preprocessing, BLOCK)
                    with torch.no_grad():
                        made = self.encoder(images.to(device))
                        values = {kind: _KINDS[kind](made).cpu().numpy() for kind in self._kinds}
                    if kept is not None:
                        kept.result()
                    kept = beside.submit(self._keep, block, values)
                    self.reporter.counted(number + 1, len(todo), "blocks of images encoded")
                if kept is not None:
                    kept.result()
        self._say("the encoder's features are kept")

    def _say(self, what: str) -> None:
        """Say once where the features are."""
        if not self._said:
            size = sum(file.stat().st_size for file in self.folder.iterdir()) / 1e6
            self.reporter.note(f"{what} in {self.folder} ({size:,.0f} MB)")
        self._said = True

    def read(self, rows: Rows) -> Features:
        """Return the kept features of ``rows`` (B,), without a pyramid; the tokens are empty where not wanted."""
        pooled = torch.from_numpy(self._map("pooled")[rows])
        tokens = (
            torch.from_numpy(self._map("tokens")[rows]).float()
            if self.tokens
            else pooled.new_zeros(len(pooled), 0, 0)
        )
        return Features(tokens, [], pooled)

    def embeddings(self, rows: Rows) -> Embeddings:
        """Return the kept pooled vectors and descriptors of ``rows``."""
        return Embeddings(self._map("pooled")[rows], self._map("descriptors")[rows])

    def batches(self, rows: Rows, batch_size: int) -> Iterator[Features]:
        """Yield the kept features of ``rows`` in order, ``batch_size`` images at a time: tokens of many are large."""
        for start in range(0, len(rows), batch_size):
            yield self.read(rows[start : start + batch_size])

    def _done(self) -> NDArray[np.uint8]:
        """Return (blocks,), 1 where everything wanted of a block is kept."""
        blocks = -(-len(self.store) // BLOCK)
        done = np.ones(blocks, np.uint8)
        for kind in self._kinds:
            kept = self._file(f"{kind}_done")
            done &= np.load(kept) if kept.is_file() and self._file(kind).is_file() else np.zeros_like(done)
        return done

    def _keep(self, block: int, values: Mapping[str, NDArray[Any]]) -> None:
        """Write what was made of a block, and say that it is there once it is on the disk."""
        for kind, made in values.items():
            self._write(kind, block * BLOCK, made)
        for kind in values:
            kept = self._file(f"{kind}_done")
            done = np.load(kept) if kept.is_file() else np.zeros(-(-len(self.store) // BLOCK), np.uint8)
            done[block] = 1
            with replacing(kept) as part, part.open("wb") as file:
                np.save(file, done)

    def _write(self, kind: str, first: int, values: NDArray[Any]) -> None:
        """Write values of the images from ``first`` on; not through a map, whose every new page costs more."""
        if not self._file(kind).is_file():
            shape = (len(self.store), *values.shape[1:])
            with replacing(self._file(kind)) as part:
                np.lib.format.open_memmap(part, mode="w+", dtype=values.dtype, shape=shape).flush()
        place = self._map(kind)
        with self._file(kind).open("r+b") as file:
            file.seek(place.offset + first * place.strides[0])
            file.write(np.ascontiguousarray(values).data)
            file.flush()
            os.fsync(file.fileno())

    def _map(self, kind: str) -> np.memmap[Any, np.dtype[Any]]:
        if kind not in self._maps:
            self._maps[kind] = np.lib.format.open_memmap(self._file(kind), mode="r")
        return self._maps[kind]

    def _file(self, kind: str) -> Path:
        return self.folder / f"{kind}.npy"


class FeatureSource:
    """Training batches of kept features as a pure function of stream positions, in the order of ``TrainingSource``.

    A batch holds ``pooled`` (B, D), ``tokens`` (B, N, D), ``position`` (B,) int64 and ``target`` (B, ...).

    Args:
        features: of the encoder; those of ``rows`` are kept.
        rows: (n,) the rows of the store to train on.
        seed: seed of the run.
        targets: (n, ...) one target a row.
        weights: (n,) sampling weights, or None for every image once a pass.
    """

    def __init__(
        self,
        features: StoredFeatures,
        rows: Rows,
        *,
        seed: int,
        targets: Tensor,
        weights: NDArray[np.float64] | None = None,
    ) -> None:
        self.features, self.rows, self.targets = features, rows, targets
        self.order = Order(len(rows), seed, weights)

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, positions: Rows, window: Rows) -> Batch:
        """Return the batch at ``positions``, a part of the global batch at ``window``."""
        images = self.order(positions)
        made = self.features.read(self.rows[images])
        return {
            "pooled": made.pooled,
            "tokens": made.tokens,
            "position": torch.from_numpy(positions),
            "target": self.targets[torch.from_numpy(images)],
        }


def features_key(encoder: Encoder, preprocessing: Preprocessing, store: ImageStore) -> str:
    """Return 16 hex digits that change with the encoder's weights, the preprocessing, the images and the libraries."""
    digest = hashlib.blake2b(digest_size=8)
    facts = {
        "format": FORMAT, "encoder": encoder.name, "size": encoder.size, "channels": encoder.channels,
        "dim": encoder.dim, "preprocessing": preprocessing.model_dump(mode="json"), "store": store.fingerprint,
        "torch": torch.__version__, "timm": timm.__version__,
    }  # fmt: skip
    digest.update(json.dumps(facts, sort_keys=True).encode())
    for name, value in sorted(encoder.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
