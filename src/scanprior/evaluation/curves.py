"""ROC, precision-recall and reliability curves with bootstrap bands, on fixed grids."""

from __future__ import annotations

from collections.abc import Callable
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


def curves(scorer: Scorer, groups: NDArray[np.int64], seed: int, level: float) -> dict[str, Any]:
    """Return ``roc``, ``pr`` and ``reliability``, each by class, with pointwise bands."""
    weights = np.concatenate(list(resample_weights(groups, RESAMPLES, seed)))
    whole = np.ones((1, len(groups)))
    made: dict[str, Any] = {"roc": {}, "pr": {}, "reliability": {}}
    for name in scorer.scored:
        truth, score = scorer.truth[name], scorer.probability[name]
        known = ~np.isnan(truth)
        if not known.any():
            continue
        low, high = _reliability_band(truth, score, weights, level)
        made["reliability"][name] = {**_reliability(truth, score), "low": low, "high": high}
        if not 0 < np.nansum(truth) < known.sum():
            continue
        ranking = Ranking(truth, score)
        for kind, curve, across, up in (
            ("roc", _roc, "fpr", "tpr"),
            ("pr", _precision, "recall", "precision"),
        ):
            value = curve(ranking, whole)[0]
            low, high = _band(curve(ranking, weights), level)
            made[kind][name] = {across: _list(GRID), up: _list(value), "low": low, "high": high}
        made["pr"][name]["prevalence"] = float(np.nanmean(truth))
    return made


def _roc(ranking: Ranking, weights: Floats) -> Floats:
    """Sensitivity at the grid of false-positive rates, (R, 101)."""
    true, false = ranking.counts(weights)
    return _at_grid(_share(false), _share(true))


def _precision(ranking: Ranking, weights: Floats) -> Floats:
    """Precision at the grid of recalls, (R, 101): of the first threshold that reaches the recall."""
    true, false = ranking.counts(weights)
    precision = np.divide(true, true + false, out=np.ones_like(true), where=true + false > 0)
    recall = _share(true)
    made = np.empty((len(weights), len(GRID)))
    for row, (reached, value) in enumerate(zip(recall, precision, strict=True)):
        at = np.searchsorted(reached, GRID - 1e-12, side="left").clip(1, len(value) - 1)
        made[row] = value[at]
    return made


def _share(counts: Floats) -> Floats:
    last = counts[:, -1:]
    return np.divide(counts, last, out=np.full_like(counts, np.nan), where=last > 0)


def _at_grid(xs: Floats, ys: Floats) -> Floats:
    """Interpolate each row at the grid; at a vertical step the upper end counts."""
    made = np.empty((len(xs), len(GRID)))
    for row, (x, y) in enumerate(zip(xs, ys, strict=True)):
        last = np.append(x[1:] != x[:-1], True)
        made[row] = np.interp(GRID, x[last], y[last])
    return made


def _bins(score: Floats) -> NDArray[np.int64]:
    return np.minimum((score * BINS).astype(np.int64), BINS - 1)


def _reliability(truth: Floats, score: Floats) -> dict[str, list[float | None]]:
    known = ~np.isnan(truth)
    bins, score, truth = _bins(score[known]), score[known], truth[known]
    count = np.bincount(bins, minlength=BINS)
    mean: Callable[[Floats], list[float | None]] = lambda values: [  # noqa: E731
        float(total / n) if n else None
        for total, n in zip(np.bincount(bins, values, BINS), count, strict=True)
    ]
    return {"confidence": mean(score), "frequency": mean(truth), "count": count.tolist()}


def _reliability_band(
    truth: Floats, score: Floats, weights: Floats, level: float
) -> tuple[list[float | None], list[float | None]]:
    known = ~np.isnan(truth)
    member = np.eye(BINS)[_bins(score)] * known[:, None]
    total = weights @ member
    positive = weights @ (member * np.nan_to_num(truth)[:, None])
    return _band(np.divide(positive, total, out=np.full_like(total, np.nan), where=total > 0), level)


def _band(values: Floats, level: float) -> tuple[list[float | None], list[float | None]]:
    empty = np.isnan(values).all(axis=0)
    filled = np.where(empty, 0.0, values)
    low, high = np.nanquantile(filled, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return _list(np.where(empty, np.nan, low)), _list(np.where(empty, np.nan, high))


def _list(values: Floats) -> list[float | None]:
    return [None if np.isnan(value) else round(float(value), 5) for value in values]
