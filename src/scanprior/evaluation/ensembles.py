"""What an ensemble gains over its members, how alike they are, and how calibrated, on the same images.

Every interval comes from the same resamples of patients for all members, so that differences are paired.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from scanprior.evaluation.bootstrap import percentile_interval, resample_weights
from scanprior.evaluation.combination import Combination, log_loss
from scanprior.evaluation.compare import difference_rows
from scanprior.evaluation.labels import Task, groups_of, truth_of
from scanprior.evaluation.metrics import Scorer
from scanprior.evaluation.scoring import MeanScorer, bootstrap_rows, readable

Floats = NDArray[np.float64]
Thresholds = Mapping[str, Mapping[str, Any]] | None

CALIBRATION = ("ece", "brier")


def member_column(number: int, name: str) -> str:
    """Return the column of a table of predictions that holds what a member (from 0) says of a class."""
    return f"member:{number + 1}:{name}"


def member_probabilities(table: pd.DataFrame, members: int, classes: Sequence[str]) -> Floats:
    """Return the probabilities (K, N, C) of the members, out of a table of an ensemble's predictions."""
    each = [table[[member_column(number, name) for name in classes]] for number in range(members)]
    return np.stack([part.to_numpy(np.float64) for part in each])


def truth_matrix(table: pd.DataFrame, classes: Sequence[str], task: Task) -> Floats:
    """Return the truth (N, C) of a table of predictions: 1, 0 or NaN."""
    return np.stack([truth_of(table, name, task) for name in classes], axis=1)


@dataclass(frozen=True)
class Setting:
    """What is the same for an ensemble and its members.

    Attributes:
        members: their names, each once.
        classes, task, positive_class, ordered, resamples, seed, level: as for ``evaluate``.
    """

    members: Sequence[str]
    classes: Sequence[str]
    task: Task
    positive_class: str | None = None
    ordered: bool | None = None
    resamples: int = 2000
    seed: int = 0
    level: float = 0.95

    def scorer(self, table: pd.DataFrame, found: Floats | None = None, cuts: Thresholds = None) -> Scorer:
        """Return the scorer of a table; ``found`` (N, C) = other probabilities than its own."""
        if found is not None:
            table = table.assign(**{f"prob:{name}": found[:, n] for n, name in enumerate(self.classes)})
        return Scorer(table, self.classes, self.task, cuts, self.positive_class, self.ordered)

    def probabilities(self, table: pd.DataFrame) -> Floats:
        """Return the probabilities (K, N, C) of the members."""
        return member_probabilities(table, len(self.members), self.classes)


def validate_members(validation: pd.DataFrame, setting: Setting) -> list[dict[str, float | None]]:
    """Return AUROC (macro, or of the positive class) and log-loss of every member on validation images.

    Args:
        validation: table of the ensemble's predictions with labels; may be empty.
        setting: names and classes.
    """
    if not len(validation):
        return [{"auroc": None, "log_loss": None} for _ in setting.members]
    truth = truth_matrix(validation, setting.classes, setting.task)
    made: list[dict[str, float | None]] = []
    for found in setting.probabilities(validation):
        score = setting.scorer(validation, found).score(np.ones((1, len(validation))))
        names = [name for metric, name in score if metric == "auroc"]
        value = float(score["auroc", "macro" if "macro" in names else names[0]][0])
        loss = log_loss(found, truth, setting.task)
        made.append({"auroc": None if np.isnan(value) else value, "log_loss": loss})
    return made


def best_member(validated: Sequence[Mapping[str, float | None]]) -> int | None:
    """Return the member of the highest AUROC on validation, of equal ones that of the lowest log-loss.

    None where there were no validation images.
    """
    ranked = []
    for number, row in enumerate(validated):
        loss, auroc = row["log_loss"], row["auroc"]
        if loss is None:
            return None
        ranked.append((-1.0 if auroc is None else auroc, -loss, -number))
    return -max(ranked)[2]


def evaluate_members(
    predictions: pd.DataFrame,
    setting: Setting,
    combination: Combination,
    *,
    best: int | None,
    thresholds: Thresholds = None,
    member_thresholds: Sequence[Thresholds] | None = None,
) -> dict[str, Any]:
    """Evaluate an ensemble against its members.

    Args:
        predictions: table as for ``evaluate``, with ``prob:`` columns of the ensemble and those of
            ``member_column``; rows with an error take no part.
        setting: names of the members, classes, resamples.
        combination: how the ensemble combines.
        best: the member that validation found best; None = unknown.
        thresholds, member_thresholds: of the ensemble, and of each member.

    Returns:
        Valid JSON: ``members`` (metrics of each, with intervals), ``differences`` (ensemble minus the best member,
        and minus the mean of the members' metrics, as rows of ``compare``), ``agreement`` (pairs of members, and
        their mean with intervals), ``calibration`` (expected calibration error and Brier score, before and after).
    """
    table = readable(predictions, "the ensemble")
    groups, unit = groups_of(table)
    found = setting.probabilities(table)
    cuts = member_thresholds or [None] * len(found)
    scorers = [setting.scorer(table, each, cut) for each, cut in zip(found, cuts, strict=True)]
    whole = setting.scorer(table, cuts=thresholds)
    how = (setting.resamples, setting.seed, setting.level)
    rows = [bootstrap_rows(scorer, groups, unit, *how) for scorer in scorers]
    differences: list[dict[str, Any]] = []
    if best is None:
        differences.append({"against": "best member", "member": None, "rows": [], "reason": _NO_BEST})
    else:
        against = difference_rows([whole, scorers[best]], groups, unit, *how)
        name = setting.members[best]
        differences.append({"against": "best member", "member": name, "rows": against, "reason": None})
    against = difference_rows([whole, MeanScorer(scorers)], groups, unit, *how)
    differences.append({"against": "mean member", "member": None, "rows": against, "reason": None})

    def calibration(scored: Floats) -> dict[str, Any]:
        return _calibration(bootstrap_rows(setting.scorer(table, scored), groups, unit, *how))

    after = combination.tempered(found, setting.task)
    own = [
        {
            "name": name,
            "temperature": None if combination.temperatures is None else combination.temperatures[number],
            "before": _calibration(rows[number]),
            "after": None if combination.temperatures is None else calibration(after[number]),
        }
        for number, name in enumerate(setting.members)
    ]
    plain = None if combination.method == "mean" else calibration(found.mean(axis=0))
    together = combination(found, setting.task)
    return {
        **combination.card(),
        "members": [{"name": name, "metrics": row} for name, row in zip(setting.members, rows, strict=True)],
        "best_member": None if best is None else setting.members[best],
        "differences": differences,
        "agreement": agreement(table, found, setting, scorers),
        "calibration": [
            *own,
            {"name": "ensemble", "temperature": None, "before": plain, "after": calibration(together)},
        ],
    }


_NO_BEST = "no validation image is common to the members, so none is known to be the best"


def agreement(
    table: pd.DataFrame, found: Floats, setting: Setting, scorers: Sequence[Scorer]
) -> dict[str, Any]:
    """Return how often members say the same, and how their errors are correlated [our definitions].

    Agreement is the share of images of which two members find the same class the most probable; of findings, of
    images and findings on the same side of the members' own thresholds. The error of a member on an image is 1
    minus the probability of the true class, of a finding the distance of the probability from the label;
    correlated is Pearson's coefficient over images, of findings the mean over them.

    Args:
        table: rows without errors.
        found: (K, N, C) probabilities of the members.
        setting: names, classes, resamples.
        scorers: of the members, which know their thresholds.
    """
    groups, _ = groups_of(table)
    pairs = list(combinations(range(len(found)), 2))
    same = _same_calls(found, setting, scorers, pairs)
    errors = _errors(table, found, setting)

    def both(weights: Floats) -> tuple[Floats, Floats]:
        return weights @ same / weights.sum(axis=1, keepdims=True), _correlations(weights, errors, pairs)

    agreed, correlated = both(np.ones((1, len(table))))
    blocks = [both(weights) for weights in resample_weights(groups, setting.resamples, setting.seed)]
    patients = int(groups.max()) + 1

    def summary(values: Floats, place: int) -> dict[str, Any]:
        spread = np.concatenate([block[place].mean(axis=1) for block in blocks])
        low, high = percentile_interval(spread, patients, setting.level)
        return {"value": _or_none(values.mean()), "low": _or_none(low), "high": _or_none(high)}

    return {
        "pairs": [
            {
                "first": setting.members[one],
                "second": setting.members[other],
                "agreement": _or_none(agreed[0, number]),
                "error_correlation": _or_none(correlated[0, number]),
            }
            for number, (one, other) in enumerate(pairs)
        ],
        "mean": {"agreement": summary(agreed, 0), "error_correlation": summary(correlated, 1)},
    }


def _same_calls(
    found: Floats, setting: Setting, scorers: Sequence[Scorer], pairs: Sequence[tuple[int, int]]
) -> Floats:
    """Return (N, pairs): the share of an image's calls that two members have in common."""
    if setting.task == "multiclass":
        calls = found.argmax(axis=2)[..., None]
    else:
        cuts = np.array([[scorer.cuts[name] for name in setting.classes] for scorer in scorers])
        calls = (found >= cuts[:, None, :]).astype(np.int64)
    return np.stack([(calls[one] == calls[other]).mean(axis=1) for one, other in pairs], axis=1)


def _errors(table: pd.DataFrame, found: Floats, setting: Setting) -> Floats:
    """Return (K, N, findings) errors of the members, NaN where the truth is unknown; one finding of classes."""
    truth = truth_matrix(table, setting.classes, setting.task)
    if setting.task == "multiclass":
        return np.asarray(1 - (found * truth).sum(axis=2, keepdims=True))
    return np.asarray(np.abs(truth - found))


def _correlations(weights: Floats, errors: Floats, pairs: Sequence[tuple[int, int]]) -> Floats:
    """Return (R, pairs): weighted correlations, the mean over findings where there is one; NaN where none is."""
    made = []
    for finding in range(errors.shape[2]):
        known = ~np.isnan(errors[0, :, finding])
        of, part = weights[:, known], errors[:, known, finding]
        total = of.sum(axis=1, keepdims=True)
        with np.errstate(invalid="ignore", divide="ignore"):
            part = part - part.mean(axis=1, keepdims=True)  # so that squares of what hardly varies stay exact
            mean, square = of @ part.T / total, of @ (part**2).T / total
            variance = (square - mean**2).clip(0)
            variance[variance < 1e-18] = np.nan
            columns = [
                (of @ (part[one] * part[other]) / total[:, 0] - mean[:, one] * mean[:, other])
                / np.sqrt(variance[:, one] * variance[:, other])
                for one, other in pairs
            ]
        made.append(np.stack(columns, axis=1))
    stacked = np.stack(made)
    defined = ~np.isnan(stacked)
    count = defined.sum(axis=0)
    summed = np.where(defined, stacked, 0.0).sum(axis=0)
    return np.where(count > 0, summed / np.maximum(count, 1), np.nan)


def _calibration(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the calibration of the whole set out of its rows: metric to value, low, high."""
    return {
        row["metric"]: {"value": row["value"], "low": row["low"], "high": row["high"]}
        for row in rows
        if row["metric"] in CALIBRATION and row["class"] in ("all", "macro")
    }


def _or_none(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
