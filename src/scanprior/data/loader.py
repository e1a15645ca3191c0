"""Batches for training and for evaluation, from a prepared store."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scanprior import keyed
from scanprior.data.masks import Masks
from scanprior.data.store import ImageStore
from scanprior.data.transforms import Augmentation, Preprocessing, augment, augment_with_masks, to_input
from scanprior.engine import Batch, Order


class TrainingSource:
    """Training batches as a pure function of stream positions.

    A batch holds ``views`` (V, B, C, S, S) float32 normalised, ``position`` (B,) int64, and where
    asked ``donors`` (V, B, C, S, S) and ``target`` (B, ...). The donor of a position is the view of
    a random position of the same global batch (itself not excluded, as in GMML), so it is the
    same image for any number of processes and micro-batches.

    Args:
        store: the images.
        rows: (n,) the rows of the store to train on.
        augmentation: how the views are drawn.
        preprocessing: what the model expects.
        seed: seed of the run.
        views: V, views per image.
        donors: whether to add donors.
        targets: (n, ...) one target a row, or None.
        weights: (n,) sampling weights, or None for every image once a pass.
        masks: the images' masks, or None; a batch then holds ``mask`` (B, K, S, S) uint8 in the place of
            its single view.
    """

    def __init__(
        self,
        store: ImageStore,
        rows: NDArray[np.int64],
        *,
        augmentation: Augmentation,
        preprocessing: Preprocessing,
        seed: int,
        views: int = 1,
        donors: bool = False,
        targets: Tensor | None = None,
        weights: NDArray[np.float64] | None = None,
        masks: Masks | None = None,
    ) -> None:
        self.store, self.rows = store, rows
        self.augmentation, self.preprocessing = augmentation, preprocessing
        self.seed, self.views, self.donors, self.targets = seed, views, donors, targets
        self.masks = masks
        self.order = Order(len(rows), seed, weights)

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, positions: NDArray[np.int64], window: NDArray[np.int64]) -> Batch:
        """Return the batch at ``positions``, a part of the global batch at ``window``."""
        images = self.order(positions)
        batch: Batch = {"position": torch.from_numpy(positions)}
        if self.masks is None:
            views = self._views(positions, images)
        else:
            views, batch["mask"] = self._view_with_masks(positions, images, self.masks)
        batch["views"] = views
        if self.donors:
            batch["donors"] = self._donors(positions, window, views)
        if self.targets is not None:
            batch["target"] = self.targets[torch.from_numpy(images)]
        return batch

    def _views(self, positions: NDArray[np.int64], images: NDArray[np.int64]) -> Tensor:
        pixels = torch.from_numpy(self.store.read(self.rows[images]))
        made = [
            augment(
                pixels,
                self.augmentation,
                self.preprocessing,
                seed=self.seed,
                purpose="augment",
                positions=positions,
                view=view,
            )
            for view in range(self.views)
        ]
        return torch.stack(made)

    def _view_with_masks(
        self, positions: NDArray[np.int64], images: NDArray[np.int64], masks: Masks
    ) -> tuple[Tensor, Tensor]:
        rows = self.rows[images]
        view, mask = augment_with_masks(
            torch.from_numpy(self.store.read(rows)),
            torch.from_numpy(masks.read(rows)),
            self.augmentation,
            self.preprocessing,
            seed=self.seed,
            purpose="augment",
            positions=positions,
        )
        return view[None], mask

    def _donors(self, positions: NDArray[np.int64], window: NDArray[np.int64], views: Tensor) -> Tensor:
        draws = keyed.uniform(keyed.key(self.seed, "donor"), positions, 1)[:, 0]
        chosen = window[np.minimum((draws * len(window)).astype(np.int64), len(window) - 1)]
        places = np.searchsorted(positions, chosen).clip(max=len(positions) - 1)
        here = positions[places] == chosen
        donors = views[:, torch.from_numpy(places)]
        if not here.all():
            away = chosen[~here]
            donors[:, torch.from_numpy(~here)] = self._views(away, self.order(away))
        return donors


def evaluation_batches(
    store: ImageStore, rows: NDArray[np.int64], preprocessing: Preprocessing, batch_size: int
) -> Iterator[Tensor]:
    """Yield the images at ``rows`` in order, unaugmented: (B, C, S, S) float32 normalised."""
    for start in range(0, len(rows), batch_size):
        pixels = torch.from_numpy(store.read(rows[start : start + batch_size]))
        yield to_input(pixels, preprocessing)
