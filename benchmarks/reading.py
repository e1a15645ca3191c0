"""Reading a prepared store, against decoding and resizing the same files.

Ours: a ``DataLoader`` whose items are batches of ``Store.read`` at shuffled rows, as in training.
Reference: a ``DataLoader`` over torchvision's ``ImageFolder`` of the same files; PIL opens each as grey and
resizes it to the same size. Both give shuffled uint8 batches (64, 1, 64, 64), with the same number of
workers, which live through all repeats. Images/s; files and store are in the page cache.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.datasets import ImageFolder
from torchvision.transforms import Compose, PILToTensor, Resize

from benchmarks.made_images import photographs
from benchmarks.measure import Row, Settings, Side, in_turns, speed_row
from scanprior.data.index import index
from scanprior.data.store import Store, prepare

SIZE, BATCH = 64, 64


class _StoreBatches(Dataset[Tensor]):
    def __init__(self, store: Store, batches: list[NDArray[np.int64]]) -> None:
        self.store, self.batches = store, batches

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, number: int) -> Tensor:
        return torch.from_numpy(self.store.read(self.batches[number]))


def run(settings: Settings) -> list[Row]:
    """Measure with no worker and with two."""
    folder, what = photographs(settings.folder / "reading", settings.of(640, 64))
    store = prepare(
        index(folder, label_columns=[]), settings.folder / "reading" / "store", size=SIZE, workers=0
    )
    return [_row(settings, folder, store, what, workers) for workers in (0, 2)]


def _row(settings: Settings, folder: Path, store: Store, what: str, workers: int) -> Row:
    passes = settings.of(20, 1)  # a pass over the store alone is too short to time
    ours, reference = _store_loader(store, passes, workers), _file_loader(folder, workers)
    fast, slow = in_turns(lambda: _read(ours), lambda: _read(reference), settings.repeats)
    images = len(store)
    return speed_row(
        f"reading a store, workers={workers}",
        Side("prepared store", "images/s", [passes * images / s for s in fast]),
        Side("ImageFolder: PIL decode and resize", "images/s", [images / s for s in slow]),
        target=10.0,
        note=what,
    )


def _store_loader(store: Store, passes: int, workers: int) -> DataLoader[Tensor]:
    shuffle = np.random.default_rng(0)
    rows = np.concatenate([shuffle.permutation(len(store)) for _ in range(passes)]).astype(np.int64)
    batches = [rows[i : i + BATCH] for i in range(0, len(rows), BATCH)]
    return DataLoader(
        _StoreBatches(store, batches), batch_size=None, num_workers=workers, persistent_workers=workers > 0
    )


def _file_loader(folder: Path, workers: int) -> DataLoader[tuple[Tensor, Tensor]]:
    files = ImageFolder(str(folder), Compose([Resize((SIZE, SIZE)), PILToTensor()]), loader=_grey)
    return DataLoader(
        files, batch_size=BATCH, shuffle=True, num_workers=workers, persistent_workers=workers > 0
    )


def _grey(path: str) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("L")


def _read(loader: DataLoader[Tensor] | DataLoader[tuple[Tensor, Tensor]]) -> int:
    return sum(1 for _ in loader)
