"""The largest difference between two groups of images, and what it is worth after looking for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from scanprior.evaluation.bands import groups_by
from scanprior.evaluation.compare import Difference
from scanprior.evaluation.intervals import macro_patients
from scanprior.evaluation.labels import groups_of
from scanprior.evaluation.scoring import Key, patients_of, resampled
from scanprior.evaluation.subgroups import Group, GroupTask, Thresholds, split_by, tables_of

Floats = NDArray[np.float64]

_STILL = 1e-12
"""Values in the resamples closer together than this do not vary."""


def largest_gap(
    predictions: pd.DataFrame | Sequence[pd.DataFrame],
    column: str,
    *,
    classes: Sequence[str],
    task: GroupTask,
    bands: Sequence[float] | None = None,
    thresholds: Thresholds | Sequence[Thresholds | None] | None = None,
    positive_class: str | None = None,
    ordered: bool | None = None,
    resamples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> pd.DataFrame:
    """Return, for every metric, the two groups that are furthest apart.

    The largest of several differences is larger than the difference of these two groups would be in new
    images, the more so the smaller the groups and the more of them. The interval is that of the difference of
    the pair that is largest in the whole data, as if it had been chosen beforehand: it does not correct for
    the search. ``p_adjusted`` does: how often, were no two groups different, the largest difference of all
    pairs would be at least this one. That is a max-statistic: the largest difference in each resample, every
    group centred at its own mean over them (in the manner of Westfall and Young 1993, Resampling-based
    multiple testing, section 2.3, but not studentised, as it is the largest plain difference that is
    reported). It takes into account that the pairs share groups and patients; Holm's method does not, and
    with bootstrap p-values, whose smallest is about 2 / resamples, it runs out of resolution.

    Patients are drawn from all groups together, so a patient's images may stand in several groups. A group
    without a value, or whose value rests on a single patient, takes no part.

    Args:
        predictions, column, bands: as for ``subgroups``.
        classes, task, thresholds, positive_class, ordered, resamples, seed, level: as for ``evaluate``.

    Returns:
        One row a metric and class with first, second (the groups, the higher one first), first_value,
        second_value, difference, low, high, p (two-sided, of this pair alone), p_adjusted, pairs (how many
        were looked at), left_out (group to why it takes no part), method, reason (why there is no gap or no
        interval). What there is none of is missing (None or NaN, as pandas holds it).

    Raises:
        DataError: as for ``subgroups``.
    """
    tables = tables_of(predictions, column)
    numbers, unit = groups_of(tables[0])
    found = groups_by(tables[0], column, bands)
    groups = split_by(tables, found, classes, task, thresholds, positive_class, ordered)
    scorers = [group.scorer for group in groups]
    spreads = resampled(scorers, numbers, resamples, seed, [group.rows for group in groups])
    values = [
        scorer.score(np.ones((1, len(group.rows)))) for scorer, group in zip(scorers, groups, strict=True)
    ]
    patients = [
        patients_of(group.scorer, numbers[group.rows], spread)
        for group, spread in zip(groups, spreads, strict=True)
    ]
    method = f"bootstrap over {unit}s, {resamples} resamples, all groups together"
    rows = []
    for key in values[0]:
        sides = [
            _Side(group.name, float(value[key][0]), spread[key], count[key])
            for group, value, spread, count in zip(groups, values, spreads, patients, strict=True)
        ]
        left_out = _left_out(groups, sides, key, unit)
        taking_part = [side for side in sides if side.name not in left_out]
        rows.append(
            {
                "metric": key[0],
                "class": key[1],
                **_gap(taking_part, unit, level),
                "left_out": left_out,
                "method": method,
            }
        )
    together = pd.DataFrame(rows)
    return together[[*(name for name in together.columns if name != "reason"), "reason"]]


@dataclass(frozen=True)
class _Side:
    """A metric of one group: its value, its values (R,) in the resamples, and the patients it rests on."""

    name: Any
    value: float
    spread: Floats
    patients: float

    @property
    def varies(self) -> bool:
        known = self.spread[~np.isnan(self.spread)]
        return bool(len(known)) and float(np.ptp(known)) > _STILL


def _left_out(groups: list[Group], sides: list[_Side], key: Key, unit: str) -> dict[Any, str]:
    """Which groups take no part, and why."""
    made = {}
    for group, side in zip(groups, sides, strict=True):
        if np.isnan(side.value):
            made[side.name] = group.scorer.why_undefined(*key)
        elif side.patients < 2:
            made[side.name] = f"it rests on a single {unit}"
    return made


def _gap(sides: list[_Side], unit: str, level: float) -> dict[str, Any]:
    pairs = list(combinations(sides, 2))
    if not pairs:
        empty = dict.fromkeys(
            ("first", "second", "first_value", "second_value", "difference", "low", "high", "p", "p_adjusted")
        )
        return {**empty, "pairs": 0, "reason": "n/a because fewer than two groups have a value"}
    one, other = max(pairs, key=lambda pair: abs(pair[0].value - pair[1].value))
    first, second = (one, other) if one.value >= other.value else (other, one)
    found = _difference(first, second, unit, level)
    return {
        "first": first.name,
        "second": second.name,
        "first_value": first.value,
        "second_value": second.value,
        "difference": first.value - second.value,
        "low": _or_none(found.low),
        "high": _or_none(found.high),
        "p": _or_none(found.p),
        "p_adjusted": _or_none(_adjusted(found.p, sides, (first, second)) if len(pairs) > 1 else found.p),
        "pairs": len(pairs),
        "reason": found.reason,
    }


def _difference(first: _Side, second: _Side, unit: str, level: float) -> Difference:
    for side in (first, second):
        if not side.varies:
            # A group that is all right in three patients would else seem to be known for certain.
            return Difference(
                reason=f"no interval because every resample gives the same value for {side.name}"
            )
    return Difference.of_bootstrap(first.spread - second.spread, _rests_on((first, second)), unit, level)


def _rests_on(pair: tuple[_Side, _Side]) -> float:
    """How many patients a difference rests on: Welch's degrees of freedom + 1."""
    return macro_patients([side.spread for side in pair], [side.patients for side in pair])


def _adjusted(p: float, sides: list[_Side], pair: tuple[_Side, _Side]) -> float:
    """The p-value of the largest pair, adjusted for the search; NaN where p is.

    The bootstrap's spread is too narrow for few patients. So the difference, in standard errors, is first
    taken from Student's t to the normal deviate of the same tail; it is then compared with the largest
    centred difference of all pairs in each resample.
    """
    if np.isnan(p):
        return p
    width = float(np.nanstd(pair[0].spread - pair[1].spread))
    patients = _rests_on(pair)
    error = width * np.sqrt(patients / (patients - 1))
    tail = stats.t.sf(abs(pair[0].value - pair[1].value) / error, patients - 1)
    reach = stats.norm.isf(tail) * width
    spread = np.stack([side.spread for side in sides if side.varies])
    # The differences of centred values: the largest of all pairs is their range.
    centred = spread - np.nanmean(spread, axis=1, keepdims=True)
    largest = np.fmax.reduce(centred, axis=0) - np.fmin.reduce(centred, axis=0)
    reached = np.count_nonzero(largest >= reach)
    return float(max(p, (reached + 1) / (len(largest) + 1)))


def _or_none(value: float) -> float | None:
    return None if np.isnan(value) else value
