"""ROC, precision-recall and reliability curves with bootstrap bands, on fixed grids."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from scanprior.evaluation.bootstrap import resample_weights
from scanprior.evaluation.metrics import Scorer
from scanprior.evaluation.ranking import Ranking

Floats = NDArray[np.float64]

GRID = np.linspace(0, 1, 101)
BINS = 10
RESAMPLES = 300
"""Enough for a band that is looked at; the intervals of the metrics use more."""

_ROUNDING = 1e-12
"""Rates are quotients: a grid point counts as reached in spite of their last bit."""


def curves(scorer: Scorer, groups: NDArray[np.int64], seed: int, level: float) -> dict[str, Any]:
    """Return ``roc``, ``pr`` and ``reliability``, each by class, with pointwise percentile bands.

    A band holds its curve: where the percentiles do not, it is widened to it. A curve is left out where a
    class has no positive or no negative image.

    Args:
        scorer: of the images.
        groups: (n,) patient numbers.
        seed: key of the resamples.
        level: of the bands.
    """
    lines = {name: _Lines(scorer.truth[name], scorer.probability[name]) for name in scorer.scored}
    lines = {name: line for name, line in lines.items() if line.known.any()}
    drawn: dict[str, list[dict[str, Floats]]] = {name: [] for name in lines}
    for weights in resample_weights(groups, RESAMPLES, seed):
        for name, line in lines.items():
            drawn[name].append(line.of(weights))
    whole = np.ones((1, len(groups)))
    made: dict[str, Any] = {"roc": {}, "pr": {}, "reliability": {}}
    for name, line in lines.items():
        for kind, (value,) in line.of(whole).items():
            low, high = _band(np.concatenate([block[kind] for block in drawn[name]]), value, level)
            made[kind][name] = {**line.named(kind, value), "low": _list(low), "high": _list(high)}
    return made


class _Lines:
    """The three curves of one class, for many weightings of its images."""

    def __init__(self, truth: Floats, score: Floats) -> None:
        self.known = ~np.isnan(truth)
        self._positives = int((truth == 1).sum())
        self._ranking = Ranking(truth, score)
        bins = np.minimum((score * BINS).astype(np.int64), BINS - 1)
        member = np.eye(BINS)[bins] * self.known[:, None]
        self._member = np.concatenate([member, member * (truth == 1)[:, None]], axis=1)
        self._count = member.sum(axis=0)
        self._confidence = _share(score @ member, self._count)

    def of(self, weights: Floats) -> dict[str, Floats]:
        """Return the curves for weightings (R, n): (R, 101), (R, 101), (R, 10)."""
        total, positive = np.split(weights @ self._member, 2, axis=1)
        made = {"reliability": _share(positive, total)}
        if 0 < self._positives < self.known.sum():
            true, false = self._ranking.counts(weights)
            made["roc"] = _sensitivity(true, false)
            made["pr"] = _precision(true, false)
        return made

    def named(self, kind: str, value: Floats) -> dict[str, Any]:
        """Return a curve as it is written."""
        if kind == "roc":
            return {"fpr": _list(GRID), "tpr": _list(value)}
        if kind == "pr":
            prevalence = self._positives / int(self.known.sum())
            return {"recall": _list(GRID), "precision": _list(value), "prevalence": prevalence}
        count = self._count.astype(np.int64).tolist()
        return {"confidence": _list(self._confidence), "frequency": _list(value), "count": count}


def _sensitivity(true: Floats, false: Floats) -> Floats:
    """Sensitivity at the grid of false-positive rates, (R, 101), linear between thresholds.

    At a vertical step the upper end counts.
    """
    made = np.empty((len(true), len(GRID)))
    for row, (x, y) in enumerate(zip(_share(false, false[:, -1:]), _share(true, true[:, -1:]), strict=True)):
        right = np.searchsorted(x, GRID + _ROUNDING, side="right").clip(1, len(x) - 1)
        left = right - 1
        run = x[right] - x[left]
        part = np.divide(GRID - x[left], run, out=np.zeros_like(GRID), where=run > 0).clip(0, 1)
        made[row] = np.where(x[-1] <= GRID + _ROUNDING, y[-1], y[left] + part * (y[right] - y[left]))
    return made


def _precision(true: Floats, false: Floats) -> Floats:
    """Precision at the grid of recalls, (R, 101): of the first threshold that reaches the recall.

    At recall 0: of the first threshold that finds a positive image.
    """
    precision = _share(true, true + false)
    # More than nothing must be found, so that precision is no quotient of zeros.
    wanted = np.maximum(GRID - _ROUNDING, _ROUNDING)
    made = np.full((len(true), len(GRID)), np.nan)
    for row, (recall, value) in enumerate(zip(_share(true, true[:, -1:]), precision, strict=True)):
        if not np.isnan(recall[-1]):
            made[row] = value[np.searchsorted(recall, wanted, side="left")]
    return made


def _share(part: Floats, whole: Floats) -> Floats:
    made = np.full(part.shape, np.nan)
    np.divide(part, whole, out=made, where=np.broadcast_to(whole > 0, part.shape))
    return made


def _band(values: Floats, value: Floats, level: float) -> tuple[Floats, Floats]:
    """Percentiles of (R, k) and the curve (k,) within them; NaN where there is no value at all."""
    empty = np.isnan(values).all(axis=0) | np.isnan(value)
    filled = np.where(empty, 0.0, values)
    low, high = np.nanquantile(filled, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return np.where(empty, np.nan, np.minimum(low, value)), np.where(empty, np.nan, np.maximum(high, value))


def _list(values: Floats) -> list[float | None]:
    return [None if np.isnan(value) else round(float(value), 5) for value in values]
