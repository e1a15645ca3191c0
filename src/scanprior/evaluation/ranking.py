"""Metrics of a ranking: AUROC and average precision, for many weightings of the same images at once.

A bootstrap resample is a row of image weights (how often each image was drawn), so R resamples are an
(R, n) matrix. The scores are sorted once; every resample then costs a cumulative sum.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


class Ranking:
    """The scores of one class against all other images, sorted once.

    Args:
        truth: (n,) 1 or True = has the class, 0 or False = has not, NaN = unknown: such images are left out.
        score: (n,) the higher, the more likely; equal scores are ties.
    """

    def __init__(self, truth: ArrayLike, score: ArrayLike) -> None:
        labels, scores = np.asarray(truth, dtype=np.float64), np.asarray(score, dtype=np.float64)
        self.positive = _descending(np.flatnonzero(labels == 1), scores)
        self.negative = _descending(np.flatnonzero(labels == 0), scores)
        self._positive_scores = -scores[self.positive]
        self._negative_scores = -scores[self.negative]
        # For each positive: how many negatives score strictly higher, and how many at least as high.
        self._above = np.searchsorted(self._negative_scores, self._positive_scores, side="left")
        self._not_below = np.searchsorted(self._negative_scores, self._positive_scores, side="right")
        self._ties = bool(np.any(self._above != self._not_below))
        # And how many positives score at least as high, itself among them.
        self._reached = np.searchsorted(self._positive_scores, self._positive_scores, side="right")
        self._repeats = len(np.unique(self._positive_scores)) < len(self.positive)

    def auroc(self, weights: Floats) -> Floats:
        """Return the area under the ROC curve of each weighting; ties count one half (Mann-Whitney).

        Args:
            weights: (R, n) at least 0.

        Returns:
            (R,) in [0, 1]; NaN where a class has no weight. Equal to ``sklearn.metrics.roc_auc_score``.
        """
        return self._auroc(weights.take(self.positive, axis=1), self._false(weights))

    def average_precision(self, weights: Floats) -> Floats:
        """Return the average precision of each weighting, the step-wise sum over distinct scores.

        Args:
            weights: (R, n) at least 0.

        Returns:
            (R,) in [0, 1], equal to ``sklearn.metrics.average_precision_score``; NaN where a class has no
            weight (with no negative it would be 1 whatever the scores).
        """
        return self._average_precision(weights.take(self.positive, axis=1), self._false(weights))

    def areas(self, weights: Floats) -> tuple[Floats, Floats]:
        """Return AUROC and average precision of each weighting; cheaper than one after the other."""
        positive, false = weights.take(self.positive, axis=1), self._false(weights)
        return self._auroc(positive, false), self._average_precision(positive, false)

    def _false(self, weights: Floats) -> Floats:
        """Weight of the first j negatives in falling order of score, (R, negatives + 1)."""
        return _running_total(weights.take(self.negative, axis=1))

    def _auroc(self, positive: Floats, false: Floats) -> Floats:
        beaten = false.take(self._above, axis=1)
        if self._ties:
            beaten += false.take(self._not_below, axis=1)
            beaten *= 0.5
        pairs = positive.sum(axis=1) * false[:, -1]
        return 1.0 - _ratio(np.einsum("rp,rp->r", positive, beaten), pairs)

    def _average_precision(self, positive: Floats, false: Floats) -> Floats:
        true = _running_total(positive)
        hits = true.take(self._reached, axis=1) if self._repeats else true[:, 1:]
        flagged = hits + false.take(self._not_below, axis=1)
        # A resample without any of the images down to here gives 0/0, with weight 0.
        precision = np.divide(hits, flagged, out=np.zeros_like(hits), where=flagged > 0)
        total = np.einsum("rp,rp->r", positive, precision)
        total[false[:, -1] == 0] = np.nan
        return _ratio(total, true[:, -1])

    def counts(self, weights: Floats) -> tuple[Floats, Floats]:
        """Return the true and false positives at every distinct score, from none flagged to all flagged.

        Args:
            weights: (R, n) at least 0.

        Returns:
            Two (R, k + 1) arrays, k the number of distinct scores; column 0 is 0.
        """
        scores = np.unique(np.concatenate([self._positive_scores, self._negative_scores]))
        true = _running_total(weights.take(self.positive, axis=1))
        false = _running_total(weights.take(self.negative, axis=1))
        at_true = np.searchsorted(self._positive_scores, scores, side="right")
        at_false = np.searchsorted(self._negative_scores, scores, side="right")
        return true.take(np.append(0, at_true), axis=1), false.take(np.append(0, at_false), axis=1)


def auroc(truth: ArrayLike, score: ArrayLike, weights: ArrayLike | None = None) -> float:
    """Return the area under the ROC curve, NaN when a class is absent; arguments as for `Ranking`."""
    return float(Ranking(truth, score).auroc(_one_row(truth, weights))[0])


def average_precision(truth: ArrayLike, score: ArrayLike, weights: ArrayLike | None = None) -> float:
    """Return the average precision, NaN when a class is absent; arguments as for `Ranking`."""
    return float(Ranking(truth, score).average_precision(_one_row(truth, weights))[0])


def _one_row(truth: ArrayLike, weights: ArrayLike | None) -> Floats:
    n = len(np.asarray(truth))
    return np.ones((1, n)) if weights is None else np.asarray(weights, dtype=np.float64).reshape(1, n)


def _descending(rows: NDArray[np.intp], scores: Floats) -> NDArray[np.intp]:
    return rows[np.argsort(-scores[rows], kind="stable")]


def _running_total(weights: Floats) -> Floats:
    """(R, k) -> (R, k + 1): column j is the sum of the first j columns."""
    totals = np.zeros((weights.shape[0], weights.shape[1] + 1))
    np.cumsum(weights, axis=1, out=totals[:, 1:])
    return totals


def _ratio(numerator: Floats, denominator: Floats) -> Floats:
    made = np.full(len(numerator), np.nan)
    np.divide(numerator, denominator, out=made, where=denominator > 0)
    return made
