"""What the runs of one task of a study say together."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from scanprior.errors import DataError
from scanprior.evaluation import (
    LOWER_IS_BETTER,
    UNBOUNDED,
    MaskScorer,
    Replicates,
    Scorer,
    averaged,
    count_patients,
    defined_in_all,
    groups_of,
    labels_to_match,
    mean_difference,
    mean_interval,
    replicates,
)
from scanprior.evaluation.compare import Difference
from scanprior.evaluation.labels import Task
from scanprior.evaluation.scoring import Key
from scanprior.run import Run
from scanprior.studies.parts import Arm, Labels
from scanprior.studies.plan import Step
from scanprior.studies.recipe import Recipe

Row = dict[str, Any]
NO_SEED = "no seed in common with the baseline"


@dataclass
class Cell:
    """The runs of one arm with one budget: their steps by seed, and what they predicted."""

    arm: Arm
    steps: dict[int, Step] = field(default_factory=dict)
    labels_used: int = 0
    found: dict[str, dict[Key, Replicates]] = field(default_factory=dict)
    tables: dict[str, list[pd.DataFrame]] = field(default_factory=dict)
    cuts: dict[str, list[Any]] = field(default_factory=dict)

    def order(self) -> list[Step]:
        """Return the steps by seed, which is the order of tables and replicates."""
        return [step for _, step in sorted(self.steps.items())]


class TaskResults:
    """The results of one task.

    Only images that every run could read take part, so that all comparisons are of the same images.

    Attributes:
        cells: by budget and name of the arm.
        parts: the results of each fold, of which these are the means; without folds, these alone.
    """

    def __init__(
        self, recipe: Recipe, folder: Path, name: str, steps: Sequence[Step], resampling: int = 0
    ) -> None:
        self.recipe, self.folder, self.name, self.spec = recipe, folder, name, recipe.tasks[name]
        self.resampling, self.parts = resampling, [self]
        self.cells: dict[tuple[Labels, str], Cell] = {}
        for step in steps:
            if step.kind in ("finetune", "ensemble") and step.facts["task"] == name:
                arm = Arm(step.facts["init"], step.facts.get("regime"))
                cell = self.cells.setdefault((step.facts["labels"], arm.name), Cell(arm))
                cell.steps[step.facts["seed"]] = step
        self.units: dict[str, str] = {}
        self.counts: dict[str, tuple[int, int | None]] = {}
        if not self.cells:
            return
        card = Run.open(folder / next(iter(self._steps())).name).card
        self.classes = list(card["task"]["classes"])
        self.task: Task = "multilabel" if card["task"]["kind"] == "multilabel" else "multiclass"
        self.ordered: bool | None = card["task"].get("ordered")
        self.segments = card["kind"] == "segment"
        known = [
            name
            for name in ("test", "validation")
            if self._evaluation(next(iter(self._steps())), name).exists()
        ]
        if not known:
            raise DataError(
                f"tasks.{name}: its data have no test and no validation images, so nothing is measured"
            )
        self.own = known[0]
        for cell in self.cells.values():
            card = Run.open(folder / next(iter(cell.steps.values())).name).card
            cell.labels_used = int(card["data"]["labels_used"])
        for evaluation in [self.own, *self.spec.elsewhere]:
            self._score(evaluation)

    @classmethod
    def over(cls, folds: Sequence[TaskResults]) -> TaskResults:
        """Return the means over the folds of a cross-validation, of the seeds that all of them have."""
        made = copy(folds[0])
        made.parts, made.cells, made.counts = list(folds), {}, {}
        for evaluation in made.units:
            counts = [fold.counts[evaluation] for fold in folds]
            patients = [people for _, people in counts if people is not None]
            whole = sum(n for n, _ in counts), sum(patients) if len(patients) == len(counts) else None
            made.counts[evaluation] = whole if evaluation == made.own else counts[0]
        for place, first in folds[0].cells.items():
            cells = [fold.cells[place] for fold in folds if place in fold.cells]
            seeds = sorted(set.intersection(*(set(cell.steps) for cell in cells)))
            if len(cells) < len(folds) or not seeds:
                continue
            used = round(sum(cell.labels_used for cell in cells) / len(cells))
            cell = made.cells[place] = Cell(first.arm, {seed: first.steps[seed] for seed in seeds}, used)
            for evaluation in made.units:
                cell.found[evaluation] = {
                    key: averaged(
                        [
                            each.found[evaluation][key].of([sorted(each.steps).index(seed) for seed in seeds])
                            for each in cells
                        ],
                        apart=evaluation == made.own,
                    )
                    for key in first.found[evaluation]
                }
        return made

    def _steps(self) -> Iterator[Step]:
        for cell in self.cells.values():
            yield from cell.steps.values()

    def _evaluation(self, step: Step, name: str) -> Path:
        return self.folder / step.name / "evaluations" / f"{name}.parquet"

    def _score(self, evaluation: str) -> None:
        """Read the predictions of all runs and score them on the same resamples."""
        tables = {
            step.name: pd.read_parquet(self._evaluation(step, evaluation)).set_index("image").sort_index()
            for step in self._steps()
        }
        common = None
        for table in tables.values():
            good = table.index[table["error"].isna()]
            common = good if common is None else common.intersection(good)
        assert common is not None
        common = common.sort_values()
        if not len(common):
            raise DataError(f"tasks.{self.name}: {evaluation} has no image that every run could read")
        for cell in self.cells.values():
            parts = [tables[step.name].loc[common].reset_index() for step in cell.order()]
            results = [
                json.loads(self._evaluation(step, evaluation).with_suffix(".json").read_text())
                for step in cell.order()
            ]
            cell.cuts[evaluation] = [result.get("thresholds") for result in results]
            self.positive = results[0].get("positive_class")
            groups, unit = groups_of(parts[0])
            self.units[evaluation] = unit
            self.counts[evaluation] = (len(common), count_patients(parts[0]))
            cell.tables[evaluation] = parts
            cell.found[evaluation] = self.replicates(
                parts, cell.cuts[evaluation], groups, self.recipe.resamples, evaluation
            )

    def replicates(
        self,
        tables: Sequence[pd.DataFrame],
        cuts: Sequence[Any],
        groups: NDArray[np.int64],
        resamples: int,
        evaluation: str,
    ) -> dict[Key, Replicates]:
        """Score trainings, each at the thresholds that it chose on its validation images."""
        scorers = [
            MaskScorer(table, self.classes)
            if self.segments
            else Scorer(table, self.classes, self.task, cut, self.positive, self.ordered)
            for table, cut in zip(tables, cuts, strict=True)
        ]
        seed = self.resampling if evaluation == self.own else 0  # folds have other patients there
        every = replicates(scorers, groups, resamples, seed)
        return {key: value for key, value in every.items() if key in self.chosen_keys(list(every))}

    def chosen_keys(self, known: Sequence[Key]) -> list[Key]:
        """Return the recipe's metrics: of all classes together where there is such a value, else of each."""
        chosen = []
        for metric in self.spec.metrics:
            mine = [key for key in known if key[0] == metric]
            if not mine:
                names = ", ".join(dict.fromkeys(name for name, _ in known))
                raise DataError(f"tasks.{self.name}.metrics: there is no {metric!r}; there are {names}")
            whole = [key for key in mine if key[1] in ("macro", "all")]
            chosen += whole[:1] or mine
        return chosen

    def place(self, labels: Labels, name: str, evaluation: str, key: Key) -> Row:
        """Return what a row is about; with regimes, of which one too (None of an ensemble)."""
        cell = self.cells[labels, name]
        return {
            "task": self.name,
            "evaluation": evaluation,
            "labels": labels,
            "labels_used": cell.labels_used,
            "init": cell.arm.init,
            **({"regime": cell.arm.regime} if self.recipe.regimes else {}),
            "metric": key[0],
            "class": key[1],
            "unit": self.units[evaluation],
        }

    def efficiency(self) -> Iterator[Row]:
        """Yield value, interval, and paired difference from the baseline of every cell."""
        level = self.recipe.level
        for evaluation, unit in self.units.items():
            for (labels, name), cell in self.cells.items():
                for key, found in cell.found[evaluation].items():
                    interval = mean_interval(key[0], found, unit, level)
                    n, patients = self.counts[evaluation]
                    row = {
                        **self.place(labels, name, evaluation, key),
                        "value": or_none(found.mean),
                        "low": interval.low,
                        "high": interval.high,
                        "interval": interval.how,
                        "reason": interval.reason,
                        "seeds": [or_none(round(float(value), 6)) for value in found.values],
                        "deviation": or_none(found.deviation),
                        "n": n,
                        "patients": patients,
                        "undefined": self._undefined(cell, evaluation, key),
                    }
                    yield row | self._against_baseline(labels, cell, evaluation, key)

    def _undefined(self, cell: Cell, evaluation: str, key: Key) -> int:
        """Return how many images have no value, in the training where they are most."""
        if not self.segments or key[1] == "macro":
            return 0
        column = f"{key[0]}:{key[1]}"
        return max(int(table[column].isna().sum()) for table in cell.tables[evaluation])

    def _against_baseline(self, labels: Labels, mine: Cell, evaluation: str, key: Key) -> Row:
        baseline = Arm(self.recipe.baseline, mine.arm.regime)
        base = self.cells.get((labels, baseline.name))
        if mine.arm == baseline or base is None:
            return {}
        found = self.difference(mine, base, evaluation, key)
        if found["difference_reason"] == NO_SEED:
            return {**found, "match": None}
        return {**found, "match": self._match(mine, baseline, evaluation, key)}

    def difference(self, mine: Cell, other: Cell, evaluation: str, key: Key) -> Row:
        """Return the paired difference of two cells, of the seeds that both have."""
        shared = sorted(set(mine.steps) & set(other.steps))
        if not shared:
            none = dict.fromkeys(("difference", "difference_low", "difference_high", "p"))
            return {**none, "difference_reason": NO_SEED}
        first, second = self.pair(mine, other, evaluation, key, shared)
        found = mean_difference(first, second, self.units[evaluation], self.recipe.level)
        return {"difference": or_none(first.mean - second.mean), **interval_of(found)}

    def compared(self, labels: Labels, name: str, other: str, evaluation: str, key: Key) -> Row | None:
        """Return the row of a comparison of two cells of one budget; None where one is not there, or no seed is shared.

        Values and difference are of the seeds, and for masks of the images, that both have.
        """
        mine, theirs = self.cells[labels, name], self.cells.get((labels, other))
        shared = [] if theirs is None else sorted(set(mine.steps) & set(theirs.steps))
        if theirs is None or not shared:
            return None
        first, second = self.pair(mine, theirs, evaluation, key, shared)
        return self.paired(self.place(labels, name, evaluation, key), other, first, second)

    def paired(self, place: Row, against: str, first: Replicates, second: Replicates) -> Row:
        """Return a row of a comparison: both values, and their paired difference with its interval."""
        found = mean_difference(first, second, self.units[place["evaluation"]], self.recipe.level)
        return {
            **place,
            "against": against,
            "value": or_none(first.mean),
            "value_against": or_none(second.mean),
            "difference": or_none(first.mean - second.mean),
            **interval_of(found),
        }

    def pair(
        self, mine: Cell, base: Cell, evaluation: str, key: Key, seeds: Sequence[int]
    ) -> tuple[Replicates, Replicates]:
        """Return one metric of two cells, of the seeds that both have.

        Masks are compared on the images where all of these runs have a value: a model that predicts nothing
        has no distance there, and would else be compared by its easier images.
        """
        rows = [[sorted(cell.steps).index(seed) for seed in seeds] for cell in (mine, base)]
        if not self.segments:
            one, two = (cell.found[evaluation][key] for cell in (mine, base))
            return one.of(rows[0]), two.of(rows[1])
        tables = [mine.tables[evaluation][row] for row in rows[0]]
        tables += [base.tables[evaluation][row] for row in rows[1]]
        names = [cell.steps[seed].name for cell in (mine, base) for seed in seeds]
        both = defined_in_all(tables, self.classes, names)
        groups = groups_of(both[0])[0]
        cuts = [None] * len(seeds)
        sides = [
            self.replicates(part, cuts, groups, self.recipe.resamples, evaluation)[key]
            for part in (both[: len(seeds)], both[len(seeds) :])
        ]
        return sides[0], sides[1]

    def _match(self, cell: Cell, baseline: Arm, evaluation: str, key: Key) -> Row | None:
        """Return how many labels the baseline needs to reach a cell; None of distances, which leave images out."""
        if key[0] in UNBOUNDED:
            return None
        curve = [
            (other.labels_used, other.found[evaluation][key])
            for (_, name), other in self.cells.items()
            if name == baseline.name
        ]
        curve.sort(key=lambda point: point[0])
        if len(curve) < 2:
            return None
        budgets = [used for used, _ in curve]
        found = labels_to_match(
            cell.found[evaluation][key], budgets, [each for _, each in curve], falling=key[0] in LOWER_IS_BETTER,
            level=self.recipe.level,
        )  # fmt: skip
        return {
            name: _bounded(value, budgets)
            for name, value in (("labels", found.labels), ("low", found.low), ("high", found.high))
        }


def interval_of(found: Difference) -> Row:
    """Return the part of a row that says how sure a difference is."""
    return {
        "difference_low": or_none(found.low),
        "difference_high": or_none(found.high),
        "p": or_none(found.p),
        "difference_reason": found.reason,
    }


def _bounded(value: float, budgets: Sequence[int]) -> Row | None:
    """Return a number of labels, or beyond which of the tried ones it lies."""
    if math.isnan(value):
        return None
    if math.isinf(value):
        return {"labels": budgets[-1], "relation": ">"}
    if value == 0:
        return {"labels": budgets[0], "relation": "<="}
    return {"labels": round(value), "relation": "="}


def or_none(value: float) -> float | None:
    """Return a number as a JSON value."""
    return None if math.isnan(value) else float(value)
