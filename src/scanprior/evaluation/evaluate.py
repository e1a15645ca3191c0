"""From a table of predictions to an evaluation: every metric with its interval, curves, confusion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from scanprior.evaluation.curves import curves
from scanprior.evaluation.delong import DeLong, delong
from scanprior.evaluation.intervals import Interval
from scanprior.evaluation.labels import Task, groups_of
from scanprior.evaluation.metrics import Scorer
from scanprior.evaluation.scoring import bootstrap_rows, metric_row, readable, size_of


def evaluate(
    predictions: pd.DataFrame,
    *,
    classes: Sequence[str],
    task: Task,
    name: str = "test",
    split_fingerprint: str | None = None,
    thresholds: Mapping[str, Mapping[str, Any]] | None = None,
    positive_class: str | None = None,
    ordered: bool | None = None,
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
        ordered: whether the classes are in an order, from least to most, which quadratic kappa needs; None = where
            they are rising numbers.
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
    table = readable(predictions, name)
    scorer = Scorer(table, classes, task, thresholds, positive_class, ordered)
    groups, unit = groups_of(table)
    made: dict[str, Any] = {
        "name": name,
        "task": task,
        "classes": list(classes),
        "positive_class": scorer.positive,
        **size_of(table, groups, unit),
        "errors": len(predictions) - len(table),
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
    rows = []
    for row in bootstrap_rows(scorer, groups, unit, resamples, seed, level):
        rows.append(row)
        if row["metric"] == "auroc" and row["class"] != "macro":
            rows.append(_delong_row(scorer, row["class"], groups, unit, level))
    return rows


def _delong_row(
    scorer: Scorer, name: str, groups: NDArray[np.int64], unit: str, level: float
) -> dict[str, Any]:
    found = delong_of([scorer], name, groups)
    if found is None:
        reason = scorer.why_undefined("auroc", name)
        return metric_row(scorer, ("auroc", name), float("nan"), Interval(reason=reason))
    low, high = found.interval(level)
    known = groups[~np.isnan(scorer.truth[name])]
    alone = len(np.unique(known)) == len(known)
    how = "DeLong" if alone else f"DeLong, by {unit}"
    interval = Interval(reason=found.why_none()) if np.isnan(low) else Interval(low, high, how)
    return metric_row(scorer, ("auroc", name), float(found.auroc[0]), interval)


def delong_of(scorers: Sequence[Scorer], name: str, groups: NDArray[np.int64]) -> DeLong | None:
    """Return DeLong's AUROCs of a class by several scorers of the same images; None where it has one kind."""
    truth = scorers[0].truth[name]
    known = ~np.isnan(truth)
    if not 0 < np.count_nonzero(truth == 1) < np.count_nonzero(known):
        return None
    scores = np.stack([scorer.probability[name][known] for scorer in scorers])
    return delong(truth[known] == 1, scores, groups[known])
