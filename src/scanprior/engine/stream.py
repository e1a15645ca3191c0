"""The order of the training images, and the batches of one process.

The training stream is endless: position p is place ``p mod n`` of pass ``p div n`` over the n
images, every pass in an order of its own. Step s takes positions ``s*B .. (s+1)*B-1``, so a batch
may span two passes and no image is dropped. A process takes its equal share of every batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from scanprior import keyed
from scanprior.engine.settings import EngineConfig
from scanprior.errors import ConfigError
from scanprior.workers import worker_context

Batch = dict[str, Any]


class BatchSource(Protocol):
    """Makes batches out of stream positions; must be a pure function of its arguments."""

    def __len__(self) -> int:
        """Return the number of training images."""
        ...

    def batch(self, positions: NDArray[np.int64], window: NDArray[np.int64]) -> Batch:
        """Return the batch at ``positions`` (B,); ``window`` holds the positions of the global batch."""
        ...


class Order:
    """Which image stands at a position of the training stream.

    Args:
        images: n, the number of training images.
        seed: seed of the run.
        weights: (n,) sampling weights; then every position draws an image with replacement.
    """

    def __init__(self, images: int, seed: int, weights: NDArray[np.float64] | None = None) -> None:
        self.images, self.seed = images, seed
        self._cumulative = None if weights is None else np.cumsum(weights) / np.sum(weights)
        self._passes: dict[int, NDArray[np.int64]] = {}

    def __call__(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the image numbers, (B,) in 0..n-1, at stream positions (B,)."""
        if self._cumulative is not None:
            draws = keyed.uniform(keyed.key(self.seed, "draw"), positions, 1)[:, 0]
            return np.minimum(np.searchsorted(self._cumulative, draws, side="right"), self.images - 1)
        passes, places = np.divmod(positions, self.images)
        return np.array([self._pass(int(p))[q] for p, q in zip(passes, places, strict=True)], dtype=np.int64)

    def _pass(self, number: int) -> NDArray[np.int64]:
        if number not in self._passes:
            self._passes = {k: v for k, v in self._passes.items() if k == number - 1}
            self._passes[number] = keyed.permutation(keyed.key(self.seed, "order", number), self.images)
        return self._passes[number]


class _Steps(Dataset[Batch]):
    """Item k is the micro-batch k of this process, counted from the first step."""

    def __init__(self, source: BatchSource, shares: Shares, rank: int) -> None:
        self.source, self.shares, self.rank = source, shares, rank

    def __getitem__(self, item: int) -> Batch:
        step, micro = divmod(item, self.shares.accumulation)
        window = np.arange(step * self.shares.batch, (step + 1) * self.shares.batch, dtype=np.int64)
        share = window.reshape(self.shares.world, self.shares.accumulation, -1)[self.rank, micro]
        return self.source.batch(share, window)


class Shares:
    """How the global batch is split into processes and micro-batches.

    Raises:
        ConfigError: the batch does not divide evenly.
    """

    def __init__(self, config: EngineConfig, world: int) -> None:
        self.batch, self.world = config.batch_size, world
        if self.batch % world:
            raise ConfigError(f"engine.batch_size={self.batch} does not divide into {world} processes evenly")
        local = self.batch // world
        micro = min(config.micro_batch or local, local)
        if local % micro:
            raise ConfigError(
                f"engine.micro_batch={micro} does not divide the {local} images a process has in each step"
            )
        self.accumulation = local // micro


def batches(
    source: BatchSource, shares: Shares, config: EngineConfig, rank: int, start: int, stop: int
) -> Iterator[Batch]:
    """Yield the micro-batches of steps ``start`` to ``stop`` for one process, in order."""
    loader = DataLoader(
        _Steps(source, shares, rank),
        batch_size=None,
        sampler=range(start * shares.accumulation, stop * shares.accumulation),
        num_workers=config.workers,
        pin_memory=torch.cuda.is_available(),
        # Not from a fork server: one that this process has started is none to a process forked from it.
        multiprocessing_context=worker_context("spawn") if config.workers else None,
    )
    return iter(loader)
