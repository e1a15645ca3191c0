"""All metrics of a table of predictions, for many weightings of its images at once.

A weighting is a row of image weights, (R, n): all ones for the value itself, how often each image
was drawn for a bootstrap resample. A metric that is undefined for a weighting is NaN.

All metrics but those of a ranking are made of weighted counts; the indicator columns of all of them
stand side by side, (n, K), so that one matrix product makes every count.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from scanprior.evaluation.labels import (
    Task,
    are_rising,
    check_labels,
    positive_of,
    probability_of,
    truth_of,
)
from scanprior.evaluation.ranking import Ranking
from scanprior.evaluation.scoring import Key

Floats = NDArray[np.float64]
BINS = 15
"""Bins of equal width of the expected calibration error (Guo et al. 2017, section 2)."""

METRICS = (
    "auroc", "average_precision", "accuracy", "balanced_accuracy", "sensitivity", "specificity", "ppv", "npv", "f1",
    "macro_precision", "macro_f1", "kappa", "quadratic_kappa", "brier", "ece",
)  # fmt: skip
"""Names of all metrics of classification; some are of multi-class tables alone."""

_UNDEFINED = {
    "sensitivity": "no image is positive",
    "specificity": "no image is negative",
    "ppv": "no image is called positive",
    "npv": "no image is called negative",
    "f1": "no image is positive",
    "macro_precision": "no image is called one of the classes",
    "macro_f1": "a class has no image",
    "kappa": "all images are of one class and called so",
    "quadratic_kappa": "all images are of one class and called so",
    "balanced_accuracy": "a class has no image",
}


_OF_ONE_CLASS = frozenset(
    {"accuracy", "balanced_accuracy", "macro_precision", "macro_f1", "kappa", "quadratic_kappa"}
)
_WITH_TWO = {"macro_precision": "ppv", "macro_f1": "f1", "quadratic_kappa": "kappa"}
"""Metrics of three or more classes, and what stands for them where there are two."""


def why_not(metric: str, task: Task, classes: Sequence[str], ordered: bool) -> str | None:
    """Return why no evaluation of such classes has a metric of ``METRICS``; None = it has.

    Args:
        metric: its name.
        task, classes: as for ``Scorer``.
        ordered: whether the classes are in an order, from least to most.
    """
    if metric in _OF_ONE_CLASS and task != "multiclass":
        return "it is of images with one class each, and these have findings"
    if metric in _WITH_TWO and len(classes) < 3:
        return f"it is of three classes or more, and these are two; take {_WITH_TWO[metric]}"
    if metric == "quadratic_kappa" and not ordered:
        return (
            f"it is of classes in an order, and {', '.join(classes)} are in none that is known; give them from least "
            "to most in task.classes"
        )
    return None


class Scorer:
    """Computes every metric of one table of predictions.

    Two classes: ranking and threshold metrics of the positive class. More classes, or findings:
    of each one against the rest, and their macro mean over those where it is defined; that of AUROC is
    scikit-learn's ``multi_class="ovr"`` and that of average precision is known as mAP. Accuracy,
    balanced accuracy, kappa and quadratic kappa of multi-class tables take the most probable class, and so do
    macro precision and macro F1 (means over three classes or more; NaN where a class is never called, or
    has no image); sensitivity, specificity, predictive values and F1 of a class take its threshold (0.5 if none).
    Quadratic kappa weighs a disagreement by the square of its distance in the order of the classes (Cohen
    1968, Psychological Bulletin 70:213); it is there where the classes, three or more, are in an order.
    The Brier score of more than two classes is the sum over the classes (Brier 1950), in [0, 2];
    of two classes or a finding it is the squared error of the one probability, in [0, 1].

    Args:
        predictions: rows with labels and ``prob:`` columns, no errors.
        classes: in the order of the ``prob:`` columns.
        task: multi-class or multi-label.
        thresholds: class to ``{"value": ...}``.
        positive_class: of two classes.
        ordered: whether the classes are in an order, from least to most; None = where they are rising numbers.

    Raises:
        DataError: a column is missing, or holds what is no label or no probability.
    """

    def __init__(
        self,
        predictions: pd.DataFrame,
        classes: Sequence[str],
        task: Task,
        thresholds: Mapping[str, Mapping[str, Any]] | None = None,
        positive_class: str | None = None,
        ordered: bool | None = None,
    ) -> None:
        if task == "multiclass":
            check_labels(predictions, classes)
        self.task, self.classes = task, list(classes)
        binary = task == "multiclass" and len(classes) == 2
        self.positive = positive_of(classes, positive_class) if binary else None
        self.ordered = task == "multiclass" and (are_rising(classes) if ordered is None else ordered)
        self.scored = [self.positive] if self.positive is not None else self.classes
        self.truth = {name: truth_of(predictions, name, task) for name in self.classes}
        self.probability = {name: probability_of(predictions, name) for name in self.classes}
        cuts = thresholds or {}
        self.cuts = {name: float(cuts[name]["value"]) if name in cuts else 0.5 for name in self.scored}
        self._rankings = {name: Ranking(self.truth[name], self.probability[name]) for name in self.scored}
        columns = {("class", name): self._columns_of_class(name) for name in self.scored}
        if task == "multiclass":
            columns["all", ""] = self._columns_of_all()
            known, true, called = self._most_probable()
            self._distances = np.where(known, (true - called) ** 2.0, 0.0)
        self._columns = np.concatenate(list(columns.values()), axis=1)
        ends = np.cumsum([part.shape[1] for part in columns.values()])
        self._place = {
            key: slice(end - columns[key].shape[1], end) for key, end in zip(columns, ends, strict=True)
        }

    def score(self, weights: Floats) -> dict[Key, Floats]:
        """Return every metric for weightings (R, n): name and class to (R,)."""
        counts = weights @ self._columns
        made: dict[Key, Floats] = {}
        for name in self.scored:
            areas = self._rankings[name].areas(weights)
            made["auroc", name], made["average_precision", name] = areas
            made.update(self._of_class(name, counts[:, self._place["class", name]]))
        for metric in self._averaged():
            made[metric, "macro"] = _mean([made[metric, name] for name in self.scored])
        if self.task == "multiclass":
            of_all = counts[:, self._place["all", ""]]
            made.update(self._of_all(of_all))
            if len(self.classes) > 2:
                made.update(self._of_several(of_all))
            if self.ordered and len(self.classes) > 2:
                made["quadratic_kappa", "all"] = self._quadratic_kappa(weights, of_all)
        return made

    def confusion(self) -> NDArray[np.int64]:
        """Return counts (classes, classes), rows true, columns most probable."""
        count = len(self.classes)
        known, truth, called = self._most_probable()
        pairs = np.bincount(truth[known] * count + called[known], minlength=count**2)
        return pairs.reshape(count, count).astype(np.int64)

    def counts(self, name: str) -> tuple[int, int | None]:
        """Return how many images take part in the metrics of a class, and how many of them are positive."""
        truth = self.truth.get(name)
        return int(self.known("", name).sum()), None if truth is None else int((truth == 1).sum())

    def known(self, metric: str, name: str) -> NDArray[np.bool_]:
        """Return (n,) which images take part in a metric."""
        truth = self.truth.get(name)
        each = np.stack(list(self.truth.values()) if truth is None else [truth])
        return np.asarray((~np.isnan(each)).any(axis=0))

    def counted(self, metric: str, name: str) -> dict[str, Any]:
        """Return ``n`` images and ``positives`` of the row of a metric."""
        n, positives = self.counts(name)
        return {"n": n, "positives": positives}

    def why_undefined(self, metric: str, name: str) -> str:
        """Return the reason why a metric has no value."""
        n, positives = self.counts(name)
        if n == 0:
            return "n/a because no image has this label"
        if metric in _UNDEFINED and name != "macro":
            return f"n/a because {_UNDEFINED[metric]}"
        if positives == 0:
            return "n/a because no image is positive"
        if positives == n:
            return "n/a because no image is negative"
        return "n/a because no class has a value"

    def patients(self, groups: NDArray[np.int64]) -> dict[Key, int]:
        """Return how many patients the metrics rest on, all but the macro means.

        Those in the denominator; of a metric of positives against negatives, those of the rarer kind.

        Args:
            groups: (n,) patient numbers.
        """

        def of(rows: NDArray[np.bool_]) -> int:
            return len(np.unique(groups[rows]))

        made: dict[Key, int] = {}
        for name in self.scored:
            yes, no, called = self._sides(name)
            rarer = min(of(yes), of(no))
            made |= {
                ("auroc", name): rarer,
                ("average_precision", name): rarer,
                ("sensitivity", name): of(yes),
                ("specificity", name): of(no),
                ("ppv", name): of((yes | no) & called),
                ("npv", name): of((yes | no) & ~called),
                ("f1", name): of(yes | (no & called)),
            }
            if self.task == "multilabel":
                made |= {("brier", name): of(yes | no), ("ece", name): of(yes | no)}
        if self.task == "multiclass":
            known, truth, found = self._most_probable()
            numbers = range(len(self.classes))
            each = [of(known & (truth == number)) for number in numbers]
            common = known & (truth == int(np.argmax(each)))
            made |= {(metric, "all"): of(known) for metric in ("accuracy", "brier", "ece")}
            made["balanced_accuracy", "all"] = min(each)
            calls = [known & (found == number) for number in numbers]
            made["macro_precision", "all"] = min(map(of, calls))
            made["macro_f1", "all"] = min(of(calls[n] | (known & (truth == n))) for n in numbers)
            made["kappa", "all"] = made["quadratic_kappa", "all"] = min(of(common), of(known & ~common))
        return made

    def _averaged(self) -> tuple[str, ...]:
        findings = ("brier", "ece") if self.task == "multilabel" else ()
        several = ("auroc", "average_precision", "sensitivity", "specificity", "ppv", "f1")
        return (*several, *findings) if len(self.scored) > 1 else findings

    def _sides(self, name: str) -> tuple[NDArray[np.bool_], NDArray[np.bool_], NDArray[np.bool_]]:
        """Which images are positive, are negative, are called positive."""
        truth = self.truth[name]
        return truth == 1, truth == 0, self.probability[name] >= self.cuts[name]

    def _columns_of_class(self, name: str) -> Floats:
        yes, no, called = self._sides(name)
        columns: list[NDArray[Any]] = [yes & called, yes & ~called, no & called, no & ~called]
        if self.task == "multilabel":
            truth, score = self.truth[name], self.probability[name]
            columns += [np.nan_to_num(truth - score) ** 2, *_gaps(score, truth).T]
        return np.stack(columns, axis=1).astype(np.float64)

    def _columns_of_all(self) -> Floats:
        known, truth, called = self._most_probable()
        count, row = len(self.classes), known[:, None]
        found = np.stack([self.probability[name] for name in self.classes], axis=1)
        if self.positive is not None:
            squares = (self.truth[self.positive] - self.probability[self.positive]) ** 2
        else:
            squares = ((found - np.eye(count)[truth]) ** 2).sum(axis=1)
        right = np.where(known, truth == called, np.nan)
        return np.concatenate(
            [
                np.eye(count)[truth] * row,
                np.eye(count)[called] * row,
                np.eye(count)[truth] * row * (truth == called)[:, None],
                np.where(known, squares, 0.0)[:, None],
                _gaps(found.max(axis=1), right),
            ],
            axis=1,
        )

    def _most_probable(self) -> tuple[NDArray[np.bool_], NDArray[np.intp], NDArray[np.intp]]:
        """Whether the class of each image is known, its number (0 if not), and the number of the class called."""
        truth = np.stack([self.truth[name] for name in self.classes], axis=1)
        found = np.stack([self.probability[name] for name in self.classes], axis=1)
        return ~np.isnan(truth[:, 0]), np.nan_to_num(truth).argmax(axis=1), found.argmax(axis=1)

    def _of_class(self, name: str, counts: Floats) -> dict[Key, Floats]:
        tp, fn, fp, tn = counts[:, :4].T
        made = {
            "sensitivity": _ratio(tp, tp + fn),
            "specificity": _ratio(tn, tn + fp),
            "ppv": _ratio(tp, tp + fp),
            "npv": _ratio(tn, tn + fn),
            "f1": np.where(tp + fn > 0, _ratio(2 * tp, 2 * tp + fp + fn), np.nan),
        }
        if self.task == "multilabel":
            total = tp + fn + fp + tn
            made["brier"] = _ratio(counts[:, 4], total)
            made["ece"] = _ratio(np.abs(counts[:, 5:]).sum(axis=1), total)
        return {(metric, name): values for metric, values in made.items()}

    def _of_all(self, counts: Floats) -> dict[Key, Floats]:
        count = len(self.classes)
        true, called, hits = (counts[:, start : start + count] for start in (0, count, 2 * count))
        total = true.sum(axis=1)
        agreed, chance = hits.sum(axis=1), _ratio((true * called).sum(axis=1), total)
        made = {
            "accuracy": _ratio(agreed, total),
            "balanced_accuracy": _ratio(hits, true).mean(axis=1),
            "kappa": _ratio(agreed - chance, total - chance),
            "brier": _ratio(counts[:, 3 * count], total),
            "ece": _ratio(np.abs(counts[:, 3 * count + 1 :]).sum(axis=1), total),
        }
        return {(metric, "all"): values for metric, values in made.items()}

    def _of_several(self, counts: Floats) -> dict[Key, Floats]:
        """Macro means of the most probable class, of counts as ``_of_all`` takes them."""
        count = len(self.classes)
        true, called, hits = (counts[:, start : start + count] for start in (0, count, 2 * count))
        f1 = np.where(true > 0, _ratio(2 * hits, true + called), np.nan)
        return {
            ("macro_precision", "all"): _ratio(hits, called).mean(axis=1),
            ("macro_f1", "all"): f1.mean(axis=1),
        }

    def _quadratic_kappa(self, weights: Floats, counts: Floats) -> Floats:
        count = len(self.classes)
        true, called = counts[:, :count], counts[:, count : 2 * count]
        place = np.arange(count, dtype=np.float64)
        expected = ((true @ (place[:, None] - place) ** 2) * called).sum(axis=1)
        return 1 - _ratio((weights @ self._distances) * true.sum(axis=1), expected)


def _gaps(confidence: Floats, right: Floats) -> Floats:
    """Columns (n, bins) whose weighted sums make the expected calibration error.

    The error is the mean over bins of |frequency - mean confidence|, weighted by the bins' share of
    images; 15 bins of equal width (Guo et al. 2017, arXiv 1706.04599, equation 3). Multi-class: confidence
    of the most probable class against whether it is right; findings: probability against truth.

    Args:
        confidence: (n,) in [0, 1].
        right: (n,) 1, 0 or NaN (left out).
    """
    bins = np.minimum((confidence * BINS).astype(np.int64), BINS - 1)
    return np.eye(BINS)[bins] * np.nan_to_num(right - confidence)[:, None]


def cohen_kappa(counts: NDArray[Any], *, quadratic: bool = False) -> float:
    """Return Cohen's kappa of a confusion matrix (k, k), NaN where chance agreement is certain.

    Args:
        counts: rows true, columns predicted.
        quadratic: weigh disagreements by their squared distance (classes in order).
    """
    cells = np.asarray(counts, dtype=np.float64)
    place = np.arange(len(cells))
    distance = (place[:, None] - place[None, :]) ** 2.0
    cost = distance if quadratic else np.sign(distance)
    expected = float((np.outer(cells.sum(axis=1), cells.sum(axis=0)) * cost).sum())
    return 1 - float((cells * cost).sum() * cells.sum()) / expected if expected > 0 else float("nan")


def _ratio(numerator: Floats, denominator: Floats) -> Floats:
    """The quotient, NaN where the denominator is not above 0."""
    made = np.full(numerator.shape, np.nan)
    np.divide(numerator, denominator, out=made, where=denominator > 0)
    return made


def _mean(values: list[Floats]) -> Floats:
    """The mean over the classes that are defined; NaN where none is."""
    stacked = np.stack(values)
    defined = ~np.isnan(stacked)
    return _ratio(np.where(defined, stacked, 0.0).sum(axis=0), defined.sum(axis=0).astype(np.float64))
