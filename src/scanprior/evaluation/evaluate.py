"""From a table of predictions to an evaluation: every metric with its interval, curves, confusion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from scanprior.errors import DataError
from scanprior.evaluation.bootstrap import resample_weights
from scanprior.evaluation.curves import curves
from scanprior.evaluation.delong import DeLong, delong
from scanprior.evaluation.intervals import Interval, bootstrap_interval, macro_patients
from scanprior.evaluation.labels import Task, groups_of
from scanprior.evaluation.metrics import Key, Scorer, why_undefined

Floats = NDArray[np.float64]


def evaluate(
    predictions: pd.DataFrame,
    *,
    classes: Sequence[str],
    task: Task,
    name: str = "test",
    split_fingerprint: str | None = None,
    thresholds: Mapping[str, Mapping[str, Any]] | None = None,
    positive_class: str | None = None,
    resamples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, Any]:
    """Evaluate predictions.

    Args:
        predictions: columns ``image``, ``label`` or ``label:NAME``, ``prob:NAME``, and where known
            ``patient``, ``split``, ``error``; rows with an error take no part and are counted.
        classes: in the order of the ``prob:`` columns.
        task: ``multiclass`` or ``multilabel``.
        name: of the evaluation.
        split_fingerprint: of the split that the images come from.
        thresholds: of ``choose_thresholds``; 0.5 where there is none.
        positive_class: of two classes.
        resamples: bootstrap resamples, of patients where known, else of images.
        seed: key of the resamples.
        level: of the intervals.

    Returns:
        A dict that is valid JSON: ``metrics`` is a list of rows with metric, class, value, low, high,
        interval (how it was made), n, positives, reason (why there is no value or no interval).

    Raises:
        DataError: no row without an error, a column is missing, or it holds what is no label or no
            probability.
    """
    table = _readable(predictions, name)
    scorer = Scorer(table, classes, task, thresholds, positive_class)
    groups, unit = groups_of(table)
    count = int(groups.max()) + 1
    made: dict[str, Any] = {
        "name": name,
        "task": task,
        "classes": list(classes),
        "positive_class": scorer.positive,
        "n": len(table),
        "patients": count if unit == "patient" else None,
        "unit": unit,
        "errors": len(predictions) - len(table),
        "split": _only(table, "split"),
        "split_fingerprint": split_fingerprint,
        "seed": seed,
        "level": level,
        "thresholds": {key: dict(value) for key, value in (thresholds or {}).items()},
        "metrics": metric_rows(scorer, groups, unit, resamples, seed, level),
        "curves": curves(scorer, groups, seed, level),
    }
    if task == "multiclass":
        made["confusion"] = {"classes": list(classes), "counts": scorer.confusion().tolist()}
    return made


def _readable(predictions: pd.DataFrame, name: str) -> pd.DataFrame:
    """Leave out the rows with an error; refuse a table of nothing else."""
    good = predictions[predictions["error"].isna()] if "error" in predictions else predictions
    if not len(good):
        raise DataError(f"{name}: there is no image to evaluate ({len(predictions)} could not be read)")
    return good.reset_index(drop=True)


def metric_rows(
    scorer: Scorer, groups: NDArray[np.int64], unit: str, resamples: int, seed: int, level: float
) -> list[dict[str, Any]]:
    """Return one row a metric and class, and a second AUROC row a class with DeLong's interval."""
    values = scorer.score(np.ones((1, len(groups))))
    spread = resampled([scorer], groups, resamples, seed)[0]
    patients = patients_of(scorer, groups, spread)
    rows = []
    for key, found in values.items():
        value = float(found[0])
        if np.isnan(value):
            interval = Interval(reason=why_undefined(scorer, *key))
        else:
            interval = bootstrap_interval(key[0], value, spread[key], patients[key], unit, level)
        rows.append(_row(scorer, key, value, interval))
        if key[0] == "auroc" and key[1] != "macro":
            rows.append(_delong_row(scorer, key[1], groups, level))
    return rows


def resampled(
    scorers: Sequence[Scorer], groups: NDArray[np.int64], resamples: int, seed: int
) -> list[dict[Key, Floats]]:
    """Return every metric in every resample, (R,) each, of several scorers of the same images."""
    blocks = [
        [scorer.score(weights) for scorer in scorers] for weights in resample_weights(groups, resamples, seed)
    ]
    return [
        {key: np.concatenate([block[number][key] for block in blocks]) for key in blocks[0][number]}
        for number in range(len(scorers))
    ]


def patients_of(scorer: Scorer, groups: NDArray[np.int64], spread: Mapping[Key, Floats]) -> dict[Key, float]:
    """Return how many patients each metric rests on, macro means included.

    Args:
        scorer: of the images.
        groups: (n,) patient numbers.
        spread: every metric in every resample: the variances say how much each class bears on a mean.
    """
    plain = scorer.patients(groups)
    made: dict[Key, float] = dict(plain)
    for metric, name in spread:
        if name == "macro":
            # A class that has no value in the whole set is not part of the mean.
            parts = [key for key in plain if key[0] == metric and plain[key] > 0]
            made[metric, name] = macro_patients([spread[key] for key in parts], [plain[key] for key in parts])
    return made


def _row(scorer: Scorer, key: Key, value: float, interval: Interval) -> dict[str, Any]:
    n, positives = scorer.counts(key[1])
    return {
        "metric": key[0],
        "class": key[1],
        "value": None if np.isnan(value) else value,
        "low": interval.low,
        "high": interval.high,
        "interval": interval.how,
        "n": n,
        "positives": positives,
        "reason": interval.reason,
    }


def _delong_row(scorer: Scorer, name: str, groups: NDArray[np.int64], level: float) -> dict[str, Any]:
    found = delong_of([scorer], name, groups)
    if found is None:
        return _row(
            scorer, ("auroc", name), float("nan"), Interval(reason=why_undefined(scorer, "auroc", name))
        )
    low, high = found.interval(level)
    known = groups[~np.isnan(scorer.truth[name])]
    alone = len(np.unique(known)) == len(known)
    how = "DeLong" if alone else "DeLong, by patient"
    interval = Interval(reason=found.why_none()) if np.isnan(low) else Interval(low, high, how)
    return _row(scorer, ("auroc", name), float(found.auroc[0]), interval)


def delong_of(scorers: Sequence[Scorer], name: str, groups: NDArray[np.int64]) -> DeLong | None:
    """Return DeLong's AUROCs of a class by several scorers of the same images; None where it has one kind."""
    truth = scorers[0].truth[name]
    known = ~np.isnan(truth)
    if not 0 < np.count_nonzero(truth == 1) < np.count_nonzero(known):
        return None
    scores = np.stack([scorer.probability[name][known] for scorer in scorers])
    return delong(truth[known] == 1, scores, groups[known])


def _only(table: pd.DataFrame, column: str) -> str | None:
    found = table[column].dropna().astype(str).unique().tolist() if column in table else []
    return str(found[0]) if len(found) == 1 else None


def subgroups(
    predictions: pd.DataFrame,
    column: str,
    *,
    classes: Sequence[str],
    task: Task,
    thresholds: Mapping[str, Mapping[str, Any]] | None = None,
    positive_class: str | None = None,
    resamples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> pd.DataFrame:
    """Return the metrics of every value of a side column: its rows of ``evaluate``, with ``group`` first.

    Raises:
        DataError: the table has no such column, or no row without an error.
    """
    if column not in predictions:
        raise DataError(
            f"the predictions have no column {column!r}; they have {', '.join(predictions.columns)}"
        )
    parts = []
    for value, part in _readable(predictions, column).groupby(column, dropna=False, sort=True):
        table = part.reset_index(drop=True)
        scorer = Scorer(table, classes, task, thresholds, positive_class)
        rows = metric_rows(scorer, *groups_of(table), resamples, seed, level)
        parts.append(pd.DataFrame(rows).assign(group=value))
    together = pd.concat(parts, ignore_index=True)
    return together[["group", *(name for name in together.columns if name != "group")]]
