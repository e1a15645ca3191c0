"""Operating thresholds, chosen on validation images and applied to others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from scanprior.errors import DataError
from scanprior.evaluation.labels import Task, check_labels, positive_of, probability_of, truth_of

Rule = Literal["youden"] | float


def choose_thresholds(
    predictions: pd.DataFrame,
    *,
    rule: Rule = "youden",
    classes: Sequence[str],
    task: Task,
    positive_class: str | None = None,
    chosen_on: str = "validation",
) -> dict[str, dict[str, Any]]:
    """Choose a threshold for every class, one against the rest; an image at or above it is positive.

    Args:
        predictions: table with labels and ``prob:`` columns, without error rows.
        rule: ``youden`` (largest sensitivity + specificity - 1; of equal ones the highest
            threshold), or a wanted sensitivity in (0, 1]: the highest threshold that reaches it.
        classes: names, as in the ``prob:`` columns.
        task: multi-class or multi-label.
        positive_class: of two classes; the only one that gets a threshold.
        chosen_on: what the images are called in the result.

    Returns:
        class name to ``value``, ``rule``, ``chosen_on``; value 0.5 where a class has no positive or no
        negative image, and the rule says so.

    Raises:
        DataError: another rule, or a wanted sensitivity outside (0, 1]; a column is missing, or holds what
            is no label or no probability.
    """
    if rule != "youden" and (isinstance(rule, str) or not 0 < rule <= 1):
        raise DataError(
            f"evaluation.threshold={rule}: give youden, or a wanted sensitivity above 0 and at most 1"
        )
    if task == "multiclass":
        check_labels(predictions, classes)
    names = (
        [positive_of(classes, positive_class)]
        if task == "multiclass" and len(classes) == 2
        else list(classes)
    )
    chosen = {}
    for name in names:
        truth, score = truth_of(predictions, name, task), probability_of(predictions, name)
        known = ~np.isnan(truth)
        value, said = _choose(truth[known] == 1, score[known], rule)
        chosen[name] = {"value": value, "rule": said, "chosen_on": chosen_on}
    return chosen


def _choose(positive: NDArray[np.bool_], score: NDArray[np.float64], rule: Rule) -> tuple[float, str]:
    if positive.all() or not positive.any():
        return 0.5, "0.5, because validation lacks a positive or a negative image"
    cuts = np.unique(score)[::-1]
    # Images of each kind that score at least as high, whole numbers: equal indices are then equal.
    found, alarms = (
        len(part) - np.searchsorted(np.sort(part), cuts, side="left")
        for part in (score[positive], score[~positive])
    )
    positives, negatives = int(found[-1]), int(alarms[-1])
    if rule == "youden":
        return float(cuts[np.argmax(found * negatives - alarms * positives)]), "Youden's index"
    wanted = float(rule)
    return float(cuts[np.argmax(found >= wanted * positives - 1e-9)]), f"sensitivity of at least {wanted:g}"
