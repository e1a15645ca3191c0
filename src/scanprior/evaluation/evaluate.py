"""From a table of predictions to an evaluation: every metric with its interval, curves, confusion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from scanprior.errors import DataError
from scanprior.evaluation.bootstrap import percentile_interval, resample_weights
from scanprior.evaluation.curves import curves
from scanprior.evaluation.delong import delong
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
        interval (how it was made), n, positives, reason (why there is no value).

    Raises:
        DataError: no row without an error.
    """
    errors = (
        predictions["error"].notna() if "error" in predictions else pd.Series(False, index=predictions.index)
    )
    table = predictions[~errors].reset_index(drop=True)
    if not len(table):
        raise DataError(f"{name}: there is no image to evaluate ({int(errors.sum())} could not be read)")
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
        "errors": int(errors.sum()),
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


def metric_rows(
    scorer: Scorer, groups: NDArray[np.int64], unit: str, resamples: int, seed: int, level: float
) -> list[dict[str, Any]]:
    """Return one row a metric and class, and a second AUROC row a class with DeLong's interval."""
    values = scorer.score(np.ones((1, len(groups))))
    blocks = [scorer.score(weights) for weights in resample_weights(groups, resamples, seed)]
    spread = {key: np.concatenate([block[key] for block in blocks]) for key in values}
    count = int(groups.max()) + 1
    rows = []
    for key, value in values.items():
        low, high = percentile_interval(spread[key], count, level)
        rows.append(_row(scorer, key, float(value[0]), low, high, _said(spread[key], unit, resamples)))
        if key[0] == "auroc" and key[1] != "macro":
            rows.append(_delong_row(scorer, key[1], groups, unit, level))
    return rows


def _said(values: Floats, unit: str, resamples: int) -> str:
    lost = int(np.isnan(values).sum())
    gone = f", {lost} without a value left out" if 0 < lost < len(values) else ""
    return f"bootstrap over {unit}s, {resamples} resamples{gone}"


def _row(scorer: Scorer, key: Key, value: float, low: float, high: float, interval: str) -> dict[str, Any]:
    metric, name = key
    n, positives = scorer.counts(name)
    known, bounded = not np.isnan(value), not np.isnan(low)
    return {
        "metric": metric,
        "class": name,
        "value": value if known else None,
        "low": low if known and bounded else None,
        "high": high if known and bounded else None,
        "interval": interval if known and bounded else None,
        "n": n,
        "positives": positives,
        "reason": None if known else why_undefined(scorer, metric, name),
    }


def _delong_row(
    scorer: Scorer, name: str, groups: NDArray[np.int64], unit: str, level: float
) -> dict[str, Any]:
    truth = scorer.truth[name]
    known = ~np.isnan(truth)
    how = "DeLong"
    value = low = high = float("nan")
    if 0 < truth[known].sum() < known.sum():
        codes = np.unique(groups[known], return_inverse=True)[1]
        if len(np.unique(codes)) < len(codes):
            how = "DeLong, several images of a patient (Obuchowski)"
        found = delong(truth[known] == 1, scorer.probability[name][known], codes)
        value = float(found.auroc[0])
        low, high = found.interval(level)
    return _row(scorer, ("auroc", name), value, low, high, how)


def _only(table: pd.DataFrame, column: str) -> str | None:
    found = table[column].dropna().unique() if column in table else []
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
        DataError: the table has no such column.
    """
    if column not in predictions:
        raise DataError(
            f"the predictions have no column {column!r}; they have {', '.join(predictions.columns)}"
        )
    parts = []
    for value, part in predictions.groupby(column, dropna=False, sort=True):
        result = evaluate(
            part, classes=classes, task=task, name=str(value), thresholds=thresholds,
            positive_class=positive_class, resamples=resamples, seed=seed, level=level,
        )  # fmt: skip
        parts.append(pd.DataFrame(result["metrics"]).assign(group=value))
    table = pd.concat(parts, ignore_index=True)
    return table[["group", *(name for name in table.columns if name != "group")]]
