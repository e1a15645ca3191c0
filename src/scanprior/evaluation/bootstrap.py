"""Bootstrap over patients: resamples as weights, so that every metric is computed for all at once."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from scanprior import keyed

Floats = NDArray[np.float64]

_BLOCK = 100_000
"""Weights held at a time: 0.8 MB, so that what is computed from them stays in the processor's cache."""


def resample_weights(groups: NDArray[np.int64], resamples: int, seed: int) -> Iterator[Floats]:
    """Yield blocks of weights (r, n): how often each image is drawn in each resample.

    Groups (patients) are drawn with replacement, all images of a group together. Resample number i
    depends on (seed, i) and the number of groups alone.

    Args:
        groups: (n,) group numbers 0..g-1.
        resamples: how many, in all blocks together.
        seed: key of the draws.
    """
    count = int(groups.max()) + 1
    rows = max(1, _BLOCK // max(count, len(groups)))
    place = keyed.key(seed, "bootstrap")
    for start in range(0, resamples, rows):
        numbers = np.arange(start, min(start + rows, resamples), dtype=np.int64)
        drawn = (keyed.uniform(place, numbers, count) * count).astype(np.int64)
        drawn += np.arange(len(numbers))[:, None] * count
        times = np.bincount(drawn.ravel(), minlength=len(numbers) * count).reshape(len(numbers), count)
        yield times.astype(np.float64).take(groups, axis=1)


def percentile_interval(values: Floats, groups: float, level: float) -> tuple[float, float]:
    """Return the expanded percentile interval of bootstrap values; NaN values take no part.

    The percentiles are widened for the bootstrap's narrowness in small samples: alpha' =
    2 Phi(-sqrt(g / (g - 1)) t), t the quantile of Student's t with g - 1 degrees of freedom
    (Hesterberg 2015, The American Statistician 69:371, section 5.2).

    Args:
        values: (R,) the metric in every resample.
        groups: g, the number of groups that the metric rests on.
        level: such as 0.95.

    Returns:
        low and high; NaN where fewer than half of the resamples have a value, or there is one group.
    """
    known = values[~np.isnan(values)]
    if groups < 2 or 2 * len(known) < len(values) or not len(known):
        return float("nan"), float("nan")
    tail = float(stats.norm.sf(stats.t.ppf((1 + level) / 2, groups - 1) * _narrowness(groups)))
    low, high = np.quantile(known, [tail, 1 - tail])
    return float(low), float(high)


def two_sided_p(differences: Floats, groups: float) -> float:
    """Return a bootstrap p-value of no difference, NaN as for ``percentile_interval``.

    Twice the smaller tail at 0, one added to each count, and then widened as the interval is: p is
    below 1 - level where the expanded percentile interval leaves 0 out.

    Args:
        differences: (R,) in every resample; NaN values take no part.
        groups: number of groups that the difference rests on.
    """
    known = differences[~np.isnan(differences)]
    if groups < 2 or 2 * len(known) < len(differences) or not len(known):
        return float("nan")
    tail = min(np.count_nonzero(known <= 0), np.count_nonzero(known >= 0))
    plain = min(0.5, (tail + 1) / (len(known) + 1))
    return float(2 * stats.t.sf(stats.norm.isf(plain) / _narrowness(groups), groups - 1))


def _narrowness(groups: float) -> float:
    """By how much the bootstrap's standard deviation falls short: it divides by g, not by g - 1."""
    return float(np.sqrt(groups / (groups - 1)))
