"""Both surface distances of a pair of masks, 256x256, against a plain uncropped SciPy computation.

Ours: ``surface_metrics``. Reference: SciPy's erosion and one full distance transform a side, shared by both
metrics. Both run on one core, and the metrics are compared as well. Three kinds of pairs: a disc and one
slightly off in the middle (an organ), smooth fields cut at 0 (many parts, much surface), and independent
noise (about as much surface as a mask can have: nobody's masks, but the worst case, without a target).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from benchmarks.measure import Row, Settings, Side, in_turns, speed_row
from scanprior.evaluation.surface import surface_metrics

Mask = NDArray[np.bool_]

LIMIT = 5.0
"""Milliseconds for both metrics of a pair, on a core with nothing else to do."""


def run(settings: Settings) -> list[Row]:
    """Measure milliseconds a pair, the ratio, and how far the two are apart."""
    size, rounds, rows = settings.of(256, 48), settings.of(100, 2), []
    for name, (predicted, true) in pairs(size).items():

        def ours(predicted: Mask = predicted, true: Mask = true) -> None:
            for _ in range(rounds):
                surface_metrics(predicted, true)

        def reference(predicted: Mask = predicted, true: Mask = true) -> None:
            for _ in range(rounds):
                plain(predicted, true)

        apart = np.abs(np.subtract(surface_metrics(predicted, true), plain(predicted, true))).max()
        fast, slow = ([1000 * each / rounds for each in side]
                      for side in in_turns(ours, reference, settings.repeats))  # fmt: skip
        sides = Side("scanprior", "ms", fast), Side("plain SciPy", "ms", slow)
        what = f"{size}x{size}, {name}"
        note = f"{what}; metrics apart by at most {apart:.0e}"
        rows.append(speed_row(f"surface distances, {name}", *sides, note=note))
        took = sides[0].median
        limit = None if name == "noise" else LIMIT
        rows.append(Row(f"surface distances, {name}: time", took, "ms", limit, "<=", note=what))
    return rows


def pairs(size: int) -> dict[str, tuple[Mask, Mask]]:
    """Return the pairs of masks, (size, size) each."""
    draw = np.random.default_rng(0)
    rows, columns = np.mgrid[:size, :size] / size
    organ = tuple((rows - y) ** 2 + (columns - x) ** 2 < 0.3**2 for y, x in ((0.5, 0.5), (0.47, 0.53)))
    fields = tuple(ndimage.gaussian_filter(draw.normal(size=(size, size)), 6.0) > 0 for _ in range(2))
    noise = tuple(draw.random((size, size)) < 0.5 for _ in range(2))
    return {"organ": organ, "many parts": fields, "noise": noise}  # type: ignore[dict-item]


def plain(predicted: Mask, true: Mask) -> tuple[float, float]:
    """The 95 % Hausdorff distance and the average symmetric surface distance, nothing cropped."""
    ours, theirs = (mask ^ ndimage.binary_erosion(mask) for mask in (predicted, true))
    there = ndimage.distance_transform_edt(~theirs)[ours]
    back = ndimage.distance_transform_edt(~ours)[theirs]
    far = max(np.percentile(there, 95), np.percentile(back, 95))
    return float(far), float(np.concatenate([there, back]).mean())
