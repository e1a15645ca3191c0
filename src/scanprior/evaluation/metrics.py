"""All metrics of a table of predictions, for many weightings of its images at once.

A weighting is a row of image weights, (R, n): all ones for the value itself, how often each image
was drawn for a bootstrap resample. A metric that is undefined for a weighting is NaN.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from scanprior.evaluation.labels import Task, positive_of, truth_of
from scanprior.evaluation.ranking import Ranking

Floats = NDArray[np.float64]
Key = tuple[str, str]
"""Name of the metric; class name, ``macro`` or ``all``."""

BINS = 15
"""Bins of equal width of the expected calibration error (Guo et al. 2017, section 2)."""


class Scorer:
    """Computes every metric of one table of predictions.

    Two classes: ranking and threshold metrics of the positive class. More classes, or findings:
    of each one against the rest, and their macro mean over those where it is defined. Accuracy,
    balanced accuracy, Cohen's kappa of multi-class tables take the most probable class;
    sensitivity, specificity, predictive values and F1 of a class take its threshold (0.5 if none).

    Args:
        predictions: rows with labels and ``prob:`` columns, no errors.
        classes: in the order of the ``prob:`` columns.
        task: multi-class or multi-label.
        thresholds: class to ``{"value": ...}``.
        positive_class: of two classes.
    """

    def __init__(
        self,
        predictions: pd.DataFrame,
        classes: Sequence[str],
        task: Task,
        thresholds: Mapping[str, Mapping[str, Any]] | None = None,
        positive_class: str | None = None,
    ) -> None:
        self.task, self.classes = task, list(classes)
        binary = task == "multiclass" and len(classes) == 2
        self.positive = positive_of(classes, positive_class) if binary else None
        self.scored = [self.positive] if self.positive is not None else self.classes
        self.truth = {name: truth_of(predictions, name, task) for name in self.classes}
        self.probability = {name: predictions[f"prob:{name}"].to_numpy(np.float64) for name in self.classes}
        cuts = thresholds or {}
        self.cuts = {name: float(cuts[name]["value"]) if name in cuts else 0.5 for name in self.scored}
        self._rankings = {name: Ranking(self.truth[name], self.probability[name]) for name in self.scored}
        self._prepare()

    def _prepare(self) -> None:
        if self.task != "multiclass":
            return
        count = len(self.classes)
        truth = np.stack([self.truth[name] for name in self.classes], axis=1)
        found = np.stack([self.probability[name] for name in self.classes], axis=1)
        self._known = ~np.isnan(truth).any(axis=1)
        pairs = np.nan_to_num(truth).argmax(axis=1) * count + found.argmax(axis=1)
        self._cells = np.eye(count * count)[pairs] * self._known[:, None]
        self._squares = np.nan_to_num(((found - truth) ** 2).sum(axis=1))
        right = (found.argmax(axis=1) == np.nan_to_num(truth).argmax(axis=1)).astype(np.float64)
        self._top = found.max(axis=1), np.where(self._known, right, np.nan)

    def score(self, weights: Floats) -> dict[Key, Floats]:
        """Return every metric for weightings (R, n): name and class to (R,)."""
        made: dict[Key, Floats] = {}
        for name in self.scored:
            for metric, values in self._of_class(name, weights).items():
                made[metric, name] = values
        if len(self.scored) > 1:
            for metric in ("auroc", "average_precision", "sensitivity", "specificity", "f1"):
                made[metric, "macro"] = _mean([made[metric, name] for name in self.scored])
        if self.task == "multiclass":
            made.update(self._of_all(weights))
        else:
            for metric in ("brier", "ece"):
                made[metric, "macro"] = _mean([made[metric, name] for name in self.scored])
        return made

    def confusion(self) -> NDArray[np.int64]:
        """Return counts (classes, classes), rows true, columns most probable."""
        count = len(self.classes)
        return self._cells.sum(axis=0).reshape(count, count).astype(np.int64)

    def counts(self, name: str) -> tuple[int, int | None]:
        """Return how many images take part in the metrics of a class, and how many of them are positive."""
        truth = self.truth.get(name)
        if truth is None:
            known = np.stack([~np.isnan(t) for t in self.truth.values()]).any(axis=0)
            return int(known.sum()), None
        return int((~np.isnan(truth)).sum()), int((truth == 1).sum())

    def _of_class(self, name: str, weights: Floats) -> dict[str, Floats]:
        truth, score = self.truth[name], self.probability[name]
        ranking = self._rankings[name]
        yes, no, called = truth == 1, truth == 0, score >= self.cuts[name]
        tp, fn = weights @ (yes & called).astype(float), weights @ (yes & ~called).astype(float)
        fp, tn = weights @ (no & called).astype(float), weights @ (no & ~called).astype(float)
        made = {
            "auroc": ranking.auroc(weights),
            "average_precision": ranking.average_precision(weights),
            "sensitivity": _ratio(tp, tp + fn),
            "specificity": _ratio(tn, tn + fp),
            "ppv": _ratio(tp, tp + fp),
            "npv": _ratio(tn, tn + fn),
            "f1": np.where(tp + fn > 0, _ratio(2 * tp, 2 * tp + fp + fn), np.nan),
        }
        if self.task == "multilabel":
            known = (yes | no).astype(float)
            made["brier"] = _ratio(weights @ (np.nan_to_num(truth - score) ** 2 * known), weights @ known)
            made["ece"] = calibration_error(score, truth, weights)
        return made

    def _of_all(self, weights: Floats) -> dict[Key, Floats]:
        count = len(self.classes)
        cells = (weights @ self._cells).reshape(-1, count, count)
        total = cells.sum(axis=(1, 2))
        rows, columns = cells.sum(axis=2), cells.sum(axis=1)
        hits = np.einsum("rii->ri", cells)
        made = {
            "accuracy": _ratio(hits.sum(axis=1), total),
            "balanced_accuracy": _ratio_each(hits, rows).mean(axis=1),
            "kappa": _kappa(cells, rows, columns, total, 1 - np.eye(count)),
            "brier": _ratio(weights @ (self._squares * self._known), total),
            "ece": calibration_error(*self._top, weights),
        }
        return {(metric, "all"): values for metric, values in made.items()}


def calibration_error(confidence: Floats, right: Floats, weights: Floats) -> Floats:
    """Return the expected calibration error of weightings (R, n): (R,).

    The mean over bins of |frequency - mean confidence|, weighted by the bins' share of images; 15
    bins of equal width (Guo et al. 2017, arXiv 1706.04599, equation 3). Multi-class: confidence of the
    most probable class against whether it is right; findings: probability against truth.

    Args:
        confidence: (n,) in [0, 1].
        right: (n,) 1, 0 or NaN (left out).
        weights: (R, n).
    """
    known = ~np.isnan(right)
    bins = np.minimum((confidence * BINS).astype(np.int64), BINS - 1)
    member = np.eye(BINS)[bins] * known[:, None]
    gap = weights @ (member * np.nan_to_num(right - confidence)[:, None])
    return _ratio(np.abs(gap).sum(axis=1), weights @ known.astype(float))


def cohen_kappa(counts: NDArray[Any], *, quadratic: bool = False) -> float:
    """Return Cohen's kappa of a confusion matrix (k, k), NaN where chance agreement is certain.

    Args:
        counts: rows true, columns predicted.
        quadratic: weigh disagreements by their squared distance (classes in order).
    """
    place = np.arange(len(counts))
    cost = (place[:, None] - place[None, :]) ** 2.0 if quadratic else 1 - np.eye(len(counts))
    cells = np.asarray(counts, dtype=np.float64)[None]
    return float(_kappa(cells, cells.sum(2), cells.sum(1), cells.sum((1, 2)), cost)[0])


def _kappa(cells: Floats, rows: Floats, columns: Floats, total: Floats, cost: Floats) -> Floats:
    expected = np.einsum("ri,rj,ij->r", rows, columns, cost)
    observed = np.einsum("rij,ij->r", cells, cost) * total
    return 1 - _ratio(observed, expected)


def _ratio(numerator: Floats, denominator: Floats) -> Floats:
    return np.divide(numerator, denominator, out=np.full(len(numerator), np.nan), where=denominator > 0)


def _ratio_each(numerator: Floats, denominator: Floats) -> Floats:
    return np.divide(numerator, denominator, out=np.full(numerator.shape, np.nan), where=denominator > 0)


def _mean(values: list[Floats]) -> Floats:
    """The mean over the classes that are defined; NaN where none is."""
    stacked = np.stack(values)
    defined = ~np.isnan(stacked)
    return _ratio(np.where(defined, stacked, 0.0).sum(axis=0), defined.sum(axis=0).astype(np.float64))


def why_undefined(scorer: Scorer, metric: str, name: str) -> str:
    """Return the reason why a metric has no value."""
    n, positives = scorer.counts(name)
    if n == 0:
        return "n/a because no image has this label"
    if positives == 0:
        return "n/a because no image is positive"
    if positives == n:
        return "n/a because no image is negative"
    reasons: dict[str, Callable[[], str]] = {
        "ppv": lambda: "n/a because no image is called positive",
        "npv": lambda: "n/a because no image is called negative",
        "kappa": lambda: "n/a because all images are of one class and called so",
        "balanced_accuracy": lambda: "n/a because a class has no image",
    }
    return reasons.get(metric, lambda: "n/a because no class has a value")()
