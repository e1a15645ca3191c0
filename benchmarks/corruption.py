"""GMML's group corruption of a batch of 64 at 224 px, against a loop over images and blocks.

Ours: ``scanprior.masking.corrupt`` with the published settings (noise, alien fill, pixel-aligned blocks).
Reference: ``tests/reference_group_mask.py``, which makes the same keyed draws image by image and block by
block. Both results are checked to be equal, bit for bit, before anything is timed.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from benchmarks.measure import REPOSITORY, Row, Settings, Side, in_turns, speed_row
from scanprior.masking import Corruption, corrupt

Corrupt = Callable[..., tuple[Tensor, Tensor]]


def run(settings: Settings) -> list[Row]:
    """Measure for one channel, and for three as it is."""
    return [_row(settings, channels, target) for channels, target in ((1, 10.0), (3, None))]


def _row(settings: Settings, channels: int, target: float | None) -> Row:
    batch, size, config = settings.of(64, 4), 224, Corruption()
    images = torch.randn(batch, channels, size, size, generator=torch.Generator().manual_seed(0))
    donors = images.roll(1, 0)
    positions = np.arange(batch, dtype=np.int64)
    loop = _reference()

    def ours() -> tuple[Tensor, Tensor]:
        return corrupt(images, donors, config, seed=0, positions=positions)

    def reference() -> tuple[Tensor, Tensor]:
        return loop(images, donors, config, 0, positions)

    if not all(torch.equal(a, b) for a, b in zip(ours(), reference(), strict=True)):
        raise AssertionError(
            "the corruption and its reference loop differ, so their times cannot be compared"
        )
    fast, slow = in_turns(ours, reference, settings.repeats)
    return speed_row(
        f"GMML corruption, {batch} x {channels} x {size} x {size}",
        Side("corrupt()", "s", fast),
        Side("loop over images and blocks", "s", slow),
        target=target,
    )


def _reference() -> Corrupt:
    path = REPOSITORY / "tests" / "reference_group_mask.py"
    spec = importlib.util.spec_from_file_location("reference_group_mask", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    made: Corrupt = module.reference_corrupt
    return made
