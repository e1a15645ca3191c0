"""Two runs on the same images: paired differences with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from scanprior.errors import DataError
from scanprior.evaluation.bootstrap import percentile_interval, two_sided_p
from scanprior.evaluation.evaluate import delong_of
from scanprior.evaluation.labels import Task, count_patients, groups_of
from scanprior.evaluation.metrics import Scorer
from scanprior.evaluation.scoring import ImageScorer, Key, patients_of, resampled

Floats = NDArray[np.float64]

Thresholds = Mapping[str, Mapping[str, Any]] | None


def compare(
    first: pd.DataFrame,
    second: pd.DataFrame,
    *,
    classes: Sequence[str],
    task: Task,
    names: tuple[str, str] = ("first", "second"),
    thresholds: tuple[Thresholds, Thresholds] = (None, None),
    positive_class: str | None = None,
    ordered: bool | None = None,
    resamples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, Any]:
    """Compare two tables of predictions of the same images, every metric on the same resamples.

    Args:
        first, second: as for ``evaluate``; both must hold the same images with the same labels. An image
            that either could not read is left out of both and counted.
        names: of the two, in this order.
        thresholds: of the two, in this order.
        classes, task, positive_class, ordered, resamples, seed, level: as for ``evaluate``.

    Returns:
        ``left_out``: how many images one or both could not read. ``differences``: rows with metric,
        class, first, second, difference (first - second), low, high, p (two-sided), method, reason.

    Raises:
        DataError: the images or their labels differ.
    """
    tables, left_out = paired_tables(first, second, names)
    groups, unit = groups_of(tables[0])
    scorers = [
        Scorer(table, classes, task, cuts, positive_class, ordered)
        for table, cuts in zip(tables, thresholds, strict=True)
    ]
    rows = []
    for row in difference_rows(scorers, groups, unit, resamples, seed, level):
        rows.append(row)
        if row["metric"] == "auroc" and row["class"] != "macro":
            rows.append(_delong_row(scorers, row["class"], groups, level))
    return {
        "names": list(names),
        "n": len(groups),
        "left_out": left_out,
        "patients": count_patients(tables[0]),
        "unit": unit,
        "seed": seed,
        "level": level,
        "differences": rows,
    }


def difference_rows(
    scorers: Sequence[ImageScorer],
    groups: NDArray[np.int64],
    unit: str,
    resamples: int,
    seed: int,
    level: float,
) -> list[dict[str, Any]]:
    """Return the differences of two scorers of the same images, one row a metric and class."""
    whole = np.ones((1, len(groups)))
    values = [scorer.score(whole) for scorer in scorers]
    ours, theirs = resampled(scorers, groups, resamples, seed)
    spread = {key: ours[key] - theirs[key] for key in ours}
    patients = [patients_of(scorer, groups, spread) for scorer in scorers]
    method = f"paired bootstrap over {unit}s, {resamples} resamples"
    rows = []
    for key in values[0]:
        pair = (float(values[0][key][0]), float(values[1][key][0]))
        rests_on = int(min(counts[key] for counts in patients))
        found = Difference.of_bootstrap(spread[key], rests_on, unit, level)
        rows.append(_row(scorers, key, pair, found, method))
    return rows


def paired_tables(
    first: pd.DataFrame, second: pd.DataFrame, names: tuple[str, str]
) -> tuple[list[pd.DataFrame], int]:
    """Return both tables in one order of images, and how many images one or both could not read.

    Raises:
        DataError: the images or their labels differ.
    """
    failed = _failed(first) | _failed(second)
    return _paired(first, second, names, failed), len(failed)


def _failed(table: pd.DataFrame) -> set[str]:
    """Return the images with an error."""
    return set(table.loc[table["error"].notna(), "image"]) if "error" in table else set()


def _paired(
    first: pd.DataFrame, second: pd.DataFrame, names: tuple[str, str], failed: set[str]
) -> list[pd.DataFrame]:
    tables = []
    for table, name in zip((first, second), names, strict=True):
        good = table[~table["image"].isin(failed)]
        if good["image"].duplicated().any():
            twice = good.loc[good["image"].duplicated(), "image"].iloc[0]
            raise DataError(f"{name}: holds {twice} twice; images must be named once to be paired")
        tables.append(good.set_index("image").sort_index())
    shared = tables[0].index.intersection(tables[1].index)
    if not max(len(table) for table in tables):
        raise DataError(f"{names[0]} and {names[1]}: every image could not be read by one of them")
    if len(shared) < max(len(table) for table in tables):
        raise DataError(
            f"{names[0]} has {len(tables[0])} images and {names[1]} has {len(tables[1])}, of which {len(shared)} are "
            "the same; evaluate both on the same images first"
        )
    labelled = [c for table in tables for c in table.columns if c == "label" or c.startswith("label:")]
    for column in dict.fromkeys(labelled):
        for table, name in zip(tables, names, strict=True):
            if column not in table:
                raise DataError(f"{name}: has no column {column!r}, which the other has; evaluate both again")
        ours, theirs = tables[0][column], tables[1][column]
        differ = (ours != theirs) & ~(ours.isna() & theirs.isna())
        if differ.any():
            raise DataError(f"{names[0]} and {names[1]} label {differ.idxmax()} differently ({column})")
    return [table.reset_index() for table in tables]


@dataclass(frozen=True)
class Difference:
    """Interval and p-value of a difference; NaN, and why, where there are none.

    Attributes:
        low, high: bounds.
        p: two-sided.
        reason: why there is no interval; None where there is one.
    """

    low: float = float("nan")
    high: float = float("nan")
    p: float = float("nan")
    reason: str | None = None

    @classmethod
    def of_bootstrap(cls, spread: Floats, patients: float, unit: str, level: float) -> Difference:
        """Make it of the differences (R,) in the resamples, resting on so many patients."""
        low, high = percentile_interval(spread, patients, level)
        p = two_sided_p(spread, patients)
        if patients < 2:
            return cls(reason=f"no interval because it rests on a single {unit}")
        if np.isnan(low):
            return cls(reason="no interval because fewer than half of the resamples have a value")
        if np.nanmax(spread) - np.nanmin(spread) <= 1e-12:
            return cls(p=p, reason="no interval because every resample gives the same difference")
        return cls(low, high, p)


def _row(
    scorers: Sequence[ImageScorer], key: Key, pair: tuple[float, float], found: Difference, method: str
) -> dict[str, Any]:
    without = [scorer for scorer, value in zip(scorers, pair, strict=True) if np.isnan(value)]
    if without:
        found = Difference(reason=without[0].why_undefined(*key))
    return {
        "metric": key[0],
        "class": key[1],
        "first": _or_none(pair[0]),
        "second": _or_none(pair[1]),
        "difference": _or_none(pair[0] - pair[1]),
        "low": _or_none(found.low),
        "high": _or_none(found.high),
        "p": _or_none(found.p),
        "method": method,
        "reason": found.reason,
    }


def _delong_row(scorers: list[Scorer], name: str, groups: NDArray[np.int64], level: float) -> dict[str, Any]:
    found = delong_of(scorers, name, groups)
    pair, difference = (float("nan"), float("nan")), Difference()
    if found is not None:
        pair = (float(found.auroc[0]), float(found.auroc[1]))
        _, low, high, p = found.difference(level)
        difference = Difference(low, high, p, found.why_none() if np.isnan(low) else None)
    return _row(scorers, ("auroc", name), pair, difference, "DeLong")


def _or_none(value: float) -> float | None:
    return None if np.isnan(value) else value
