"""Several trainings of one kind on the same images, such as five seeds: their mean, and how sure it is.

Two things make such a mean uncertain: which patients are in the test set, and which seeds were taken. The
bootstrap over patients gives the variance of the mean over these seeds; the deviation of the seeds, divided
by their number, that over seeds. Both are added, and Welch and Satterthwaite's formula gives the degrees of
freedom of Student's t [our definition]. An interval over patients alone would say that five other seeds
would give the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from scanprior import keyed
from scanprior.evaluation.compare import Difference
from scanprior.evaluation.intervals import (
    UNBOUNDED,
    Interval,
    exact_interval,
    log_interval,
    logit_interval,
    range_of,
)
from scanprior.evaluation.scoring import ImageScorer, Key, patients_of, resampled

Floats = NDArray[np.float64]
_NO_VALUE = "n/a because a training has no value"


@dataclass(frozen=True)
class Replicates:
    """One metric of S trainings on the same images.

    Attributes:
        values: (S,) of the whole set.
        spread: (S, R) in the resamples of patients, the same for all trainings.
        patients: how many patients the metric rests on.
        reason: why there is no value, where a training has none.
    """

    values: Floats
    spread: Floats
    patients: float
    reason: str | None = None

    @property
    def mean(self) -> float:
        """Mean over the trainings; NaN where one has no value."""
        return float(self.values.mean())

    @property
    def deviation(self) -> float:
        """Standard deviation between the trainings; NaN of a single one."""
        return float(self.values.std(ddof=1)) if len(self.values) > 1 else float("nan")

    def minus(self, other: Replicates) -> Replicates:
        """Return the differences training by training, of the same seeds on the same images."""
        return Replicates(
            self.values - other.values, self.spread - other.spread, min(self.patients, other.patients),
            self.reason or other.reason,
        )  # fmt: skip

    def of(self, trainings: Sequence[int]) -> Replicates:
        """Return some of the trainings."""
        chosen = list(trainings)
        return replace(self, values=self.values[chosen], spread=self.spread[chosen])

    def parts(self) -> list[tuple[float, float]]:
        """Return the variance of the mean and its degrees of freedom: over patients, and over trainings."""
        known = self.spread.mean(axis=0)
        known = known[~np.isnan(known)]
        made = []
        if self.patients > 1 and 2 * len(known) >= self.spread.shape[1] and len(known):
            # The bootstrap divides by the number of patients, not by that less one.
            made.append((float(known.var()) * self.patients / (self.patients - 1), self.patients - 1))
        if len(self.values) > 1:
            made.append((float(self.values.var(ddof=1)) / len(self.values), len(self.values) - 1.0))
        return made

    def resampled_means(self, seed: int) -> Floats:
        """Return (R,) means in resamples of patients and, at the same time, of trainings.

        The deviation that the draw of trainings makes is widened by sqrt(S / (S - 1)), as a bootstrap of so
        few falls short by that much.
        """
        trainings, resamples = self.spread.shape
        means = self.spread.mean(axis=0)
        if trainings == 1:
            return np.asarray(means)
        drawn = keyed.uniform(keyed.key(seed, "trainings"), np.arange(resamples, dtype=np.int64), trainings)
        chosen = (drawn * trainings).astype(np.int64)
        redrawn = np.take_along_axis(self.spread.T, chosen, axis=1).mean(axis=1)
        return np.asarray(means + (redrawn - means) * np.sqrt(trainings / (trainings - 1)))


def averaged(parts: Sequence[Replicates], *, apart: bool) -> Replicates:
    """Return the mean of one metric over folds, or over members of an ensemble, training by training.

    Args:
        parts: of each fold or member the same trainings (by seed) and as many resamples.
        apart: whether they have other patients, resampled independently of each other, as folds have; else the same
            ones, resampled alike.
    """
    values = np.mean([part.values for part in parts], axis=0)
    reason = next((part.reason for part in parts if part.reason is not None), None)
    if not apart:
        spread = np.mean([part.spread for part in parts], axis=0)
        return Replicates(values, spread, min(part.patients for part in parts), reason)
    patients = sum(part.patients for part in parts)
    # A part's bootstrap falls short by its own number of patients, which the whole number would not make good.
    widths = [
        np.sqrt(part.patients / max(part.patients - 1, 1) * (patients - 1) / patients)
        if part.patients
        else 1.0
        for part in parts
    ]
    spread = np.mean(
        [
            part.values[:, None] + width * (part.spread - part.values[:, None])
            for part, width in zip(parts, widths, strict=True)
        ],
        axis=0,
    )
    return Replicates(values, spread, patients, reason)


def replicates(
    scorers: Sequence[ImageScorer], groups: NDArray[np.int64], resamples: int, seed: int
) -> dict[Key, Replicates]:
    """Return every metric of several trainings.

    Args:
        scorers: of each training, all of the same images in the same order.
        groups: (n,) patient numbers.
        resamples, seed: of the bootstrap; equal ones give the same resamples.
    """
    whole = np.ones((1, len(groups)))
    values = [scorer.score(whole) for scorer in scorers]
    spreads = resampled(scorers, groups, resamples, seed)
    patients = [patients_of(scorer, groups, spread) for scorer, spread in zip(scorers, spreads, strict=True)]
    return {
        key: Replicates(
            np.array([float(each[key][0]) for each in values]),
            np.stack([spread[key] for spread in spreads]),
            min(count[key] for count in patients),
            _why([bool(np.isnan(each[key][0])) for each in values], scorers, key),
        )
        for key in values[0]
    }


def _why(missing: Sequence[bool], scorers: Sequence[ImageScorer], key: Key) -> str | None:
    """Return why a mean has no value: that of the first training that has none, and whether others have one."""
    if not any(missing):
        return None
    reason = scorers[list(missing).index(True)].why_undefined(*key)
    return reason if all(missing) else f"{reason} in {sum(missing)} of {len(missing)} trainings"


def mean_interval(metric: str, found: Replicates, unit: str, level: float) -> Interval:
    """Return the interval of the mean over trainings; on the logit or log scale as ``bootstrap_interval``.

    Args:
        metric: its name, which says its range.
        found: the metric.
        unit: ``patient`` or ``image``.
        level: such as 0.95.
    """
    value = found.mean
    if np.isnan(value):
        return Interval(reason=found.reason or _NO_VALUE)
    over = f"{unit}s and {len(found.values)} trainings" if len(found.values) > 1 else f"{unit}s, one training"
    bottom, top = range_of(metric)
    if metric not in UNBOUNDED and value in (bottom, top):
        if (bottom, top) != (0.0, 1.0):
            return Interval(reason="no interval because the value lies at an end of its range")
        low, high = exact_interval(value, int(found.patients), level)
        return Interval(low, high, f"exact (Clopper-Pearson), {int(found.patients)} {unit}s counted once")
    error, freedom, reason = _error(found, unit)
    if reason is not None:
        return Interval(reason=reason)
    if metric in UNBOUNDED:
        low, high = log_interval(value, error, freedom, level)
    else:
        low, high = logit_interval(value, error, freedom, level, bottom, top)
    return Interval(low, high, f"over {over}, {found.spread.shape[1]} resamples")


def mean_difference(first: Replicates, second: Replicates, unit: str, level: float) -> Difference:
    """Return interval and p-value of first - second, paired by training and by patient."""
    found = first.minus(second)
    error, freedom, reason = _error(found, unit)
    if np.isnan(found.mean):
        return Difference(reason=found.reason or _NO_VALUE)
    return _by_t(found.mean, error, freedom, reason, level)


def mean_change(first: Replicates, second: Replicates, unit: str, level: float) -> Difference:
    """Return interval and p-value of first - second on other patients, paired by training.

    The variances over patients are added; that over trainings is of their differences.
    """
    means = first.mean - second.mean
    if np.isnan(means):
        return Difference(reason=first.reason or second.reason or _NO_VALUE)
    apart = [
        part
        for side in (first, second)
        for part in Replicates(side.values[:1], side.spread, side.patients).parts()
    ]
    if len(apart) < 2:
        lonely = min(first.patients, second.patients) < 2
        few = f"one side rests on a single {unit}" if lonely else "too few resamples of one side have a value"
        return Difference(reason=f"no interval because {few}")
    differences = first.values - second.values
    if len(differences) > 1:
        apart.append((float(differences.var(ddof=1)) / len(differences), len(differences) - 1.0))
    error, freedom, reason = _added(apart)
    return _by_t(means, error, freedom, reason, level)


def _error(found: Replicates, unit: str) -> tuple[float, float, str | None]:
    """Return standard error and degrees of freedom of a mean, or why there are none."""
    if found.patients < 2:
        return 0.0, 0.0, f"no interval because it rests on a single {unit}"
    parts = found.parts()
    if not parts or (len(parts) == 1 and len(found.values) > 1):
        return 0.0, 0.0, "no interval because fewer than half of the resamples have a value"
    return _added(parts)


def _added(parts: Sequence[tuple[float, float]]) -> tuple[float, float, str | None]:
    variance = sum(part for part, _ in parts)
    if variance <= 1e-24:
        return 0.0, 0.0, "no interval because every resample gives the same value"
    freedom = variance**2 / sum(part**2 / own for part, own in parts if part > 0)
    return float(np.sqrt(variance)), float(freedom), None


def _by_t(value: float, error: float, freedom: float, reason: str | None, level: float) -> Difference:
    if reason is not None:
        return Difference(reason=reason)
    reach = float(stats.t.ppf((1 + level) / 2, freedom)) * error
    return Difference(value - reach, value + reach, float(2 * stats.t.sf(abs(value) / error, freedom)))


@dataclass(frozen=True)
class Match:
    """How many labels the baseline needs to be as good.

    Attributes:
        labels, low, high: numbers of labels; inf = more than were tried, 0 = no more than the fewest tried.
    """

    labels: float
    low: float
    high: float


def labels_to_match(
    target: Replicates,
    budgets: Sequence[float],
    baseline: Sequence[Replicates],
    *,
    falling: bool = False,
    seed: int = 0,
    level: float = 0.95,
) -> Match:
    """Return with how many labels the baseline reaches what the target reaches [our definition].

    The baseline's means over trainings, made never to fall with more labels, are interpolated linearly in the
    logarithm of the number of labels. Interval: percentiles of the same in resamples of patients (the same for
    target and baseline) and trainings, those without an answer within the budgets at either end.

    Args:
        target: the metric of the other init, at any budget.
        budgets: (B,) of the baseline, rising.
        baseline: its metric at each.
        falling: whether the metric is better where it is smaller, such as a distance.
        seed: key of the resampled trainings.
        level: such as 0.95.
    """
    sign = -1.0 if falling else 1.0
    whole = _matched(
        sign * np.array([target.mean]), np.log(budgets), sign * np.array([[each.mean] for each in baseline])
    )
    wanted = sign * target.resampled_means(seed)
    # The trainings of every budget are drawn anew: they are different trainings.
    curve = sign * np.stack([each.resampled_means(seed + 1 + n) for n, each in enumerate(baseline)])
    known = ~(np.isnan(wanted) | np.isnan(curve).any(axis=0))
    if np.isnan(whole[0]) or 2 * known.sum() < len(known):
        return Match(float("nan"), float("nan"), float("nan"))
    spread = np.sort(_matched(wanted[known], np.log(budgets), curve[:, known]))
    tail = (1 - level) / 2
    low, high = spread[int(tail * len(spread))], spread[min(int((1 - tail) * len(spread)), len(spread) - 1)]
    return Match(float(whole[0]), float(low), float(high))


def _matched(wanted: Floats, places: Floats, curve: Floats) -> Floats:
    """Return (R,) numbers of labels; curve (B, R) at the log numbers ``places`` (B,)."""
    rising = np.maximum.accumulate(curve, axis=0)
    made = np.full(len(wanted), np.inf)
    made[wanted <= rising[0]] = 0.0
    for lower, upper, here, there in zip(rising[:-1], rising[1:], places[:-1], places[1:], strict=True):
        inside = (wanted > lower) & (wanted <= upper)
        step = upper[inside] - lower[inside]
        made[inside] = np.exp(here + (wanted[inside] - lower[inside]) / step * (there - here))
    return made
