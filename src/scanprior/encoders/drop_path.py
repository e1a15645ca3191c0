"""Stochastic depth whose draws are keyed by sample, so that they survive resuming and splitting."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import numpy as np
import torch
from numpy.typing import NDArray
from timm.layers.drop import DropPath
from torch import Tensor, nn

from scanprior import keyed
from scanprior.keyed import Positions


class _Samples:
    """The samples of a batch, and their draws for every layer, made when the first layer asks."""

    def __init__(self, positions: NDArray[np.int64]) -> None:
        self.positions = positions
        self._draws: dict[tuple[int, int], NDArray[np.float64]] = {}

    def draws(self, seed: int, layers: int) -> NDArray[np.float64]:
        """Return uniform numbers (layers, B)."""
        if (seed, layers) not in self._draws:
            made = keyed.uniform(keyed.key(seed, "drop_path"), self.positions, layers)
            self._draws[seed, layers] = made.T
        return self._draws[seed, layers]


_samples: ContextVar[_Samples | None] = ContextVar("sample_positions", default=None)


@contextmanager
def sample_positions(positions: Positions) -> Iterator[None]:
    """Name the samples that the network sees inside: stream positions, int64 (B,), one a row of the batch.

    For V views of each sample give ``positions * V + view``, so that no two rows are equal.
    """
    places = positions.cpu() if isinstance(positions, Tensor) else positions
    token = _samples.set(_Samples(np.asarray(places, dtype=np.int64)))
    try:
        yield
    finally:
        _samples.reset(token)


class KeyedDropPath(nn.Module):
    """Drop a residual branch per sample, as timm's ``DropPath``, by a draw that is keyed.

    Sample at position p keeps the branch of layer l where draw l of uniform(key(seed, "drop_path"), p)
    is ≥ rate; kept branches are scaled by 1/(1 - rate). Huang et al. 2016, arXiv 1603.09382.

    Args:
        rate: probability of dropping, in [0, 1).
        layer: number of this layer in the network, which separates its draws from the others'.
        layers: how many the network has; all are drawn at once.
        seed: seed of the run.
    """

    def __init__(self, rate: float, layer: int, layers: int, seed: int = 0) -> None:
        super().__init__()
        self.drop_prob = rate
        self.layer, self.layers = layer, layers
        self.seed = seed

    def forward(self, branch: Tensor) -> Tensor:
        """Return the branch (B, ...) with whole samples set to zero; itself outside training.

        Raises:
            RuntimeError: training without ``sample_positions`` or with those of another batch.
        """
        if not self.training or self.drop_prob == 0:
            return branch
        samples = _samples.get()
        if samples is None or len(samples.positions) != len(branch):
            found = "none are set" if samples is None else f"{len(samples.positions)} are set"
            raise RuntimeError(
                f"drop path needs the positions of {len(branch)} samples and {found};"
                " call the encoder inside `with sample_positions(positions):`"
            )
        kept = samples.draws(self.seed, self.layers)[self.layer] >= self.drop_prob
        scale = torch.from_numpy(kept / (1 - self.drop_prob)).to(branch.device, branch.dtype)
        return branch * scale.view(-1, *[1] * (branch.ndim - 1))

    def extra_repr(self) -> str:
        """Show the rate and the layer."""
        return f"drop_prob={self.drop_prob:.3f}, layer={self.layer}"


def key_drop_path(network: nn.Module, seed: int) -> None:
    """Replace timm's drop path layers by keyed ones, numbered in the order of the modules."""
    found = [
        (parent, name, child)
        for parent in network.modules()
        for name, child in parent.named_children()
        if isinstance(child, DropPath)
    ]
    for layer, (parent, name, child) in enumerate(found):
        setattr(parent, name, KeyedDropPath(child.drop_prob, layer, len(found), seed))


def seed_drop_path(network: nn.Module, seed: int) -> None:
    """Set the seed of all keyed drop path layers of a network."""
    for module in network.modules():
        if isinstance(module, KeyedDropPath):
            module.seed = seed
