"""The conformal sets of a run: of its classes, or of each of its findings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from scanprior.evaluation.conformal import (
    Conformal,
    SetMethod,
    calibrate,
    calibrate_findings,
    finding_sets,
    prediction_sets,
)
from scanprior.evaluation.ensembles import truth_matrix
from scanprior.evaluation.labels import Task, groups_of
from scanprior.evaluation.set_coverage import coverage, finding_coverage
from scanprior.evaluation.shares import by_site

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class ConformalSets:
    """Thresholds of classes together, or of every finding by itself.

    Attributes:
        kind: one class an image, or every finding by itself.
        found: one entry of classes, one a finding else.
    """

    kind: Task
    found: tuple[Conformal, ...]

    @classmethod
    def fit(
        cls,
        probabilities: Floats,
        truth: Floats,
        kind: Task,
        level: float,
        method: SetMethod,
        patients: NDArray[Any] | None,
    ) -> ConformalSets:
        """Find the thresholds on validation images.

        Args:
            probabilities: (N, C).
            truth: (N, C) in {0, 1}, one-hot of classes; NaN where a finding is unknown.
            kind: of the run.
            level: wanted share of images whose set holds the truth.
            method: ``lac`` or ``aps``.
            patients: (N,); None = one image each.
        """
        if kind == "multiclass":
            labels = truth.argmax(axis=1).astype(np.int64)
            return cls(kind, (calibrate(probabilities, labels, level, method, groups=patients),))
        return cls(
            kind,
            calibrate_findings(probabilities, truth, level, method, groups=patients, class_conditional=True),
        )

    def members(self, probabilities: Floats) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Return of (N, C) probabilities what is in the sets, and what of it cannot be decided.

        Returns:
            (N, C): classes that cannot be ruled out, or findings that are not absent; and (N, C): findings that may
            be present or absent, none of classes.
        """
        if self.kind == "multiclass":
            held = prediction_sets(probabilities, self.found[0], allow_empty=False)
            return held, np.zeros_like(held)
        each = finding_sets(probabilities, self.found, allow_empty=False)
        return each[..., 1], each[..., 0] & each[..., 1]

    def measured(
        self, table: pd.DataFrame, classes: Sequence[str], *, level: float, resamples: int, seed: int
    ) -> list[dict[str, Any]]:
        """Measure the sets on evaluated images: how often they hold the truth, and how large they are.

        Args:
            table: of predictions, with labels; ``site`` where it is known, and what ``groups_of`` looks for.
            classes: names, as in the ``prob:`` columns.
            level, resamples, seed: of the intervals, see ``coverage``.

        Returns:
            What ``coverage`` gives, with ``of`` (``all``, or a class or finding) and ``site`` (None = all): of classes
            all images, those of each class and of each site; of findings each one, and each one at each site.
        """
        if "error" in table:
            table = table[table["error"].isna()]
        truth = truth_matrix(table, classes, self.kind)
        known = np.flatnonzero(~np.isnan(truth).all(axis=1))
        table, truth = table.iloc[known], truth[known]
        found = table[[f"prob:{name}" for name in classes]].to_numpy(np.float64)
        groups, unit = groups_of(table)
        how = {"unit": unit, "level": level, "resamples": resamples, "seed": seed}
        rows = []
        for site, here in by_site(table):
            made = self._measured(found[here], truth[here], groups[here], classes, how)
            left = site is not None and self.kind == "multiclass"  # classes at a site are too few to say much
            rows += [{**row, "site": site} for row in made if row["of"] == "all" or not left]
        return rows

    def _measured(
        self,
        probabilities: Floats,
        truth: Floats,
        groups: NDArray[np.int64],
        classes: Sequence[str],
        how: dict[str, Any],
    ) -> list[dict[str, Any]]:
        if self.kind == "multilabel":
            each = finding_sets(probabilities, self.found, allow_empty=False)
            made = finding_coverage(each, truth, groups, **how)
            return [_row(one, classes[one["finding"]]) for one in made]
        sets = prediction_sets(probabilities, self.found[0], allow_empty=False)
        whole = coverage(sets, truth.argmax(axis=1).astype(np.int64), groups, **how)
        return [_row(whole, "all"), *(_row(one, classes[one["class"]]) for one in whole["classes"])]

    def named(self, probabilities: Floats, classes: Sequence[str]) -> list[str]:
        """Return the set of each of (N, C) probabilities in words.

        Of classes those that cannot be ruled out, joined by ``|``. Of findings those that are present, and with a
        question mark those that cannot be decided; empty = all are absent.
        """
        marked = [[name, f"{name}?"] for name in classes]
        return [
            "|".join(marked[n][int(open_[n])] for n in np.flatnonzero(held))
            for held, open_ in zip(*self.members(probabilities), strict=True)
        ]

    def reasons(self, classes: Sequence[str]) -> list[str]:
        """Return why some sets hold everything, for want of validation images."""
        names = (
            ["conformal sets"] if self.kind == "multiclass" else [f"conformal sets of {c}" for c in classes]
        )
        return [
            f"{name}: {found.reason}"
            for name, found in zip(names, self.found, strict=True)
            if found.reason is not None
        ]

    def card(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {"kind": self.kind, "thresholds": [found.card() for found in self.found]}

    @classmethod
    def of_card(cls, card: dict[str, Any]) -> ConformalSets:
        """Read what ``card`` returned."""
        return cls(card["kind"], tuple(Conformal.of_card(found) for found in card["thresholds"]))


def _row(found: dict[str, Any], of: str) -> dict[str, Any]:
    """Return a line of what ``coverage`` gives."""
    left = ("classes", "class", "finding", "level")
    return {"of": of, **{name: value for name, value in found.items() if name not in left}}
