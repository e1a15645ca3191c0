"""DeLong's variance of the AUROC, for independent images and for several images of one patient."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from scanprior.evaluation.intervals import logit_interval

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class DeLong:
    """AUROCs of k scores on the same images, with their covariance.

    Attributes:
        auroc: (k,).
        covariance: (k, k); NaN where a single patient is all there is of a kind.
        patients: with a positive image, or with a negative one, whichever are fewer.
    """

    auroc: Floats
    covariance: Floats
    patients: int

    def interval(self, level: float = 0.95, which: int = 0) -> tuple[float, float]:
        """Return an interval made on the logit scale, so that it stays within 0 and 1.

        Student's t with ``patients`` - 1 degrees of freedom takes the place of the normal quantile
        [our definition; with few patients of a kind the normal one covers too rarely]. NaN where the
        variance is 0 or unknown; ``why_none`` says why.
        """
        error = np.sqrt(max(0.0, float(np.nan_to_num(self.covariance[which, which]))))
        return logit_interval(float(self.auroc[which]), float(error), self.patients - 1, level)

    def difference(self, level: float = 0.95) -> tuple[float, float, float, float]:
        """Return the first AUROC minus the second, its interval (low, high), and the two-sided p-value.

        Interval and p-value, with Student's t, are NaN where the variance is 0 or unknown.
        """
        value = float(self.auroc[0] - self.auroc[1])
        deviation = self._deviation_of_difference()
        if not deviation > 0 or self.patients < 2:
            return value, float("nan"), float("nan"), float("nan")
        freedom = self.patients - 1
        reach = float(stats.t.ppf((1 + level) / 2, freedom)) * deviation
        return value, value - reach, value + reach, float(2 * stats.t.sf(abs(value) / deviation, freedom))

    def why_none(self) -> str:
        """Return the reason why an interval is missing."""
        if self.patients < 2:
            return "no interval because a single patient is all there is of positives or of negatives"
        if len(self.auroc) > 1:
            return "no interval because the two rank every positive against every negative alike"
        if self.auroc[0] in (0, 1):
            return "no interval because the classes are separated without an overlap: DeLong's variance is 0"
        return "no interval because DeLong's variance is 0"

    def _deviation_of_difference(self) -> float:
        (first, both), (_, second) = np.nan_to_num(self.covariance[:2, :2])
        variance = float(first + second - 2 * both)
        # What rounding leaves of equal numbers is no variance.
        return float(np.sqrt(variance)) if variance > 1e-12 * float(first + second) else 0.0


def delong(truth: NDArray[np.bool_], scores: Floats, groups: NDArray[np.int64] | None = None) -> DeLong:
    """Return AUROCs and their covariance.

    Midranks give the structural components in O(n log n) (Sun and Xu 2014, IEEE Signal Processing
    Letters 21:1389); with ``groups`` the components are summed by patient first (Obuchowski 1997,
    Biometrics 53:567), which is DeLong, DeLong and Clarke-Pearson 1988 where every patient has one image.

    Args:
        truth: (n,) True for positives; both kinds must occur.
        scores: (k, n), or (n,) for one.
        groups: (n,) patient numbers, or None.

    Raises:
        ValueError: no positive or no negative image.
    """
    scores = np.atleast_2d(np.asarray(scores, dtype=np.float64))
    truth = np.asarray(truth, dtype=bool)
    positive, negative = np.flatnonzero(truth), np.flatnonzero(~truth)
    m, n = len(positive), len(negative)
    if not m or not n:
        raise ValueError("an AUROC needs positive and negative images")
    by_positive, by_negative = np.empty((len(scores), m)), np.empty((len(scores), n))
    for row, score in enumerate(scores):
        together = stats.rankdata(np.concatenate([score[positive], score[negative]]))
        by_positive[row] = (together[:m] - stats.rankdata(score[positive])) / n
        by_negative[row] = 1 - (together[m:] - stats.rankdata(score[negative])) / m
    auroc = by_positive.mean(axis=1)
    codes = np.arange(len(truth)) if groups is None else np.asarray(groups)
    clusters = int(codes.max()) + 1
    of_positive = _sum_by(by_positive - auroc[:, None], codes[positive], clusters)
    of_negative = _sum_by(by_negative - auroc[:, None], codes[negative], clusters)
    k_positive, k_negative = len(np.unique(codes[positive])), len(np.unique(codes[negative]))
    both = len(np.unique(codes))
    cross = of_positive @ of_negative.T
    covariance = (
        _unbiased(k_positive) * (of_positive @ of_positive.T) / m**2
        + _unbiased(k_negative) * (of_negative @ of_negative.T) / n**2
        + _unbiased(both) * (cross + cross.T) / (m * n)
    )
    return DeLong(auroc, covariance, min(k_positive, k_negative))


def _sum_by(values: Floats, codes: NDArray[np.int64], clusters: int) -> Floats:
    return np.stack([np.bincount(codes, row, clusters) for row in values])


def _unbiased(count: int) -> float:
    return count / (count - 1) if count > 1 else float("nan")
