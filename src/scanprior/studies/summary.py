"""What the runs of a study say together: ``results.json``."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from scanprior.errors import DataError
from scanprior.evaluation import (
    LOWER_IS_BETTER,
    MaskScorer,
    Replicates,
    Scorer,
    groups_of,
    labels_to_match,
    largest_gap,
    mean_change,
    mean_difference,
    mean_interval,
    replicates,
    subgroups,
)
from scanprior.evaluation.compare import Difference
from scanprior.evaluation.labels import Task
from scanprior.evaluation.scoring import Key
from scanprior.run import Run
from scanprior.studies.execution import Execution
from scanprior.studies.plan import Step, pretraining_data, steps_of
from scanprior.studies.recipe import Labels, Recipe

Row = dict[str, Any]
CURVE_RESAMPLES = 500
"""Most resamples for each of the forty points of a drift curve."""


def summarise(
    recipe: Recipe, folder: Path, sources: dict[str, dict[str, Any]], failed: dict[str, str]
) -> dict[str, Any]:
    """Gather the results of a study; equal runs give an equal summary.

    Args:
        recipe: of the study.
        folder: of the study.
        sources: of each data set, what the results say of it.
        failed: steps that failed, and why.

    Returns:
        JSON values: ``name``, ``title``, ``question``, ``baseline``, ``seeds``, ``level``, ``resamples``, ``data``,
        ``failed``, ``pretraining`` (what was trained), ``tuned`` (what was chosen), ``efficiency``, ``drift``,
        ``synthetic``, ``subgroups``, ``gaps``, ``shift``: rows of tables. Every row that has a value has its
        interval, or ``reason``.
    """
    execution = Execution(folder, frozenset(pretraining_data(recipe)))
    steps = [step for step in steps_of(recipe) if execution.done(step)]
    tasks = [_TaskResults(recipe, folder, name, steps) for name in recipe.tasks]
    return {
        "name": recipe.name,
        "title": recipe.title or recipe.name,
        "question": recipe.question,
        "recipe": hashlib.sha256(recipe.model_dump_json().encode()).hexdigest()[:16],
        "baseline": recipe.baseline,
        "seeds": recipe.seeds,
        "level": recipe.level,
        "resamples": recipe.resamples,
        "data": sources,
        "tasks": {name: _task_facts(recipe, name) for name in recipe.tasks},
        "failed": failed,
        "pretraining": [_pretrained(folder, step) for step in steps if step.kind == "pretrain"],
        "tuned": list(_tuned(execution, steps)),
        "efficiency": [row for task in tasks for row in task.efficiency()],
        "drift": [row for task in tasks for row in task.drift()],
        "synthetic": [row for task in tasks for row in task.synthetic()],
        "subgroups": [row for task in tasks for row in task.subgroups()],
        "gaps": [row for task in tasks for row in task.gaps()],
        "shift": [_shifted(folder, step) for step in steps if step.kind == "shift"],
    }


def _task_facts(recipe: Recipe, name: str) -> Row:
    task = recipe.tasks[name]
    elsewhere = {where: spec.data for where, spec in task.elsewhere.items()}
    return {"data": task.data, "metrics": task.metrics, "labels": task.labels, "elsewhere": elsewhere}


def _pretrained(folder: Path, step: Step) -> Row:
    card = Run.open(folder / step.name).card
    training = card["training"]
    return {
        "pretraining": step.facts["pretraining"],
        "objective": step.objective,
        "data": list(step.data),
        "images": int(card["data"].get("images_used", 0)) or None,
        "steps": training["steps"],
    }


def _shifted(folder: Path, step: Step) -> Row:
    """Return a shift under the names of the recipe."""
    found = json.loads((folder / f"{step.name}.json").read_text())
    del found["run"]
    return {
        "shift": step.facts["shift"],
        **found,
        "sources": dict(zip(("reference", "target"), step.data, strict=True)),
    }


def _tuned(execution: Execution, steps: Sequence[Step]) -> Iterator[Row]:
    """Yield what was chosen, once a task, init and budget that has it."""
    seen: set[tuple[object, ...]] = set()
    for step in steps:
        place = (step.facts.get("task"), step.facts.get("init"), step.facts.get("labels"))
        if not step.tuned_by or place in seen:
            continue
        seen.add(place)
        name, chosen, value = execution.best_of(step.tuned_by)
        yield {
            "task": place[0],
            "init": place[1],
            "labels": place[2],
            "tuned_at": name.split("/")[3],
            "chosen": chosen,
            "validation": value,
            "tried": len(step.tuned_by),
        }


@dataclass
class _Cell:
    """The runs of one init with one budget: their steps by seed, and what they predicted."""

    steps: dict[int, Step] = field(default_factory=dict)
    labels_used: int = 0
    found: dict[str, dict[Key, Replicates]] = field(default_factory=dict)
    tables: dict[str, list[pd.DataFrame]] = field(default_factory=dict)


class _TaskResults:
    """The results of one task.

    Only images that every run could read take part, so that all comparisons are of the same images.
    """

    def __init__(self, recipe: Recipe, folder: Path, name: str, steps: Sequence[Step]) -> None:
        self.recipe, self.folder, self.name, self.spec = recipe, folder, name, recipe.tasks[name]
        self.cells: dict[tuple[Labels, str], _Cell] = {}
        for step in steps:
            if step.kind == "finetune" and step.facts["task"] == name:
                place = (step.facts["labels"], step.facts["init"])
                self.cells.setdefault(place, _Cell()).steps[step.facts["seed"]] = step
        self.units: dict[str, str] = {}
        self.counts: dict[str, tuple[int, int | None]] = {}
        if not self.cells:
            return
        card = Run.open(folder / next(iter(self._steps())).name).card
        self.classes = list(card["task"]["classes"])
        self.task: Task = "multilabel" if card["task"]["kind"] == "multilabel" else "multiclass"
        self.segments = card["kind"] == "segment"
        self.own = "test" if (self._evaluation(next(iter(self._steps())), "test")).exists() else "validation"
        for cell in self.cells.values():
            card = Run.open(folder / next(iter(cell.steps.values())).name).card
            cell.labels_used = int(card["data"]["labels_used"])
        for evaluation in [self.own, *self.spec.elsewhere]:
            self._score(evaluation)

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
            parts = [tables[step.name].loc[common].reset_index() for _, step in sorted(cell.steps.items())]
            groups, unit = groups_of(parts[0])
            patients = int(groups.max()) + 1 if unit == "patient" else None
            self.units[evaluation], self.counts[evaluation] = unit, (len(common), patients)
            cell.tables[evaluation] = parts
            cell.found[evaluation] = self._replicates(parts, groups, self.recipe.resamples)

    def _replicates(
        self, tables: Sequence[pd.DataFrame], groups: NDArray[np.int64], resamples: int
    ) -> dict[Key, Replicates]:
        scorers = [
            MaskScorer(table, self.classes) if self.segments else Scorer(table, self.classes, self.task)
            for table in tables
        ]
        every = replicates(scorers, groups, resamples, 0)
        return {key: value for key, value in every.items() if key in self._keys(list(every))}

    def _keys(self, known: Sequence[Key]) -> list[Key]:
        """Return the recipe's metrics, of all classes together where there is such a value."""
        chosen = []
        for metric in self.spec.metrics:
            mine = [key for key in known if key[0] == metric]
            if not mine:
                names = ", ".join(dict.fromkeys(name for name, _ in known))
                raise DataError(f"tasks.{self.name}.metrics: there is no {metric!r}; there are {names}")
            whole = [key for key in mine if key[1] in ("macro", "all")]
            chosen.append((whole or mine)[0])
        return chosen

    def _place(self, labels: Labels, init: str, evaluation: str, key: Key) -> Row:
        return {
            "task": self.name,
            "evaluation": evaluation,
            "labels": labels,
            "labels_used": self.cells[labels, init].labels_used,
            "init": init,
            "metric": key[0],
            "class": key[1],
        }

    def efficiency(self) -> Iterator[Row]:
        """Yield value, interval, and paired difference from the baseline of every cell."""
        level = self.recipe.level
        for evaluation, unit in self.units.items():
            for (labels, init), cell in self.cells.items():
                for key, found in cell.found[evaluation].items():
                    interval = mean_interval(key[0], found, unit, level)
                    n, patients = self.counts[evaluation]
                    row = {
                        **self._place(labels, init, evaluation, key),
                        "value": _or_none(found.mean),
                        "low": interval.low,
                        "high": interval.high,
                        "interval": interval.how,
                        "reason": interval.reason,
                        "seeds": [_or_none(round(float(value), 6)) for value in found.values],
                        "deviation": _or_none(found.deviation),
                        "n": n,
                        "patients": patients,
                    }
                    yield row | self._against_baseline(labels, init, evaluation, key)

    def _against_baseline(self, labels: Labels, init: str, evaluation: str, key: Key) -> Row:
        base = self.cells.get((labels, self.recipe.baseline))
        mine = self.cells[labels, init]
        if init == self.recipe.baseline or base is None:
            return {}
        shared = sorted(set(mine.steps) & set(base.steps))
        if not shared:
            return {"difference": None, "difference_reason": "no seed in common with the baseline"}
        first, second = (self._of_seeds(cell, evaluation, key, shared) for cell in (mine, base))
        found = mean_difference(first, second, self.units[evaluation], self.recipe.level)
        return {
            "difference": _or_none(first.mean - second.mean),
            **_interval_of(found),
            "match": self._match(mine, evaluation, key),
        }

    def _of_seeds(self, cell: _Cell, evaluation: str, key: Key, seeds: Sequence[int]) -> Replicates:
        found = cell.found[evaluation][key]
        rows = [sorted(cell.steps).index(seed) for seed in seeds]
        return Replicates(found.values[rows], found.spread[rows], found.patients)

    def _match(self, cell: _Cell, evaluation: str, key: Key) -> Row | None:
        """Return how many labels the baseline needs to reach a cell."""
        curve = [
            (other.labels_used, other.found[evaluation][key])
            for (_, init), other in self.cells.items()
            if init == self.recipe.baseline
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

    def drift(self) -> Iterator[Row]:
        """Yield what every cell loses from its own test images to every other data set."""
        for (labels, init), cell in self.cells.items():
            for where in self.spec.elsewhere:
                for key, there in cell.found[where].items():
                    here = cell.found[self.own].get(key)
                    if here is None:
                        continue
                    found = mean_change(here, there, self.units[where], self.recipe.level)
                    yield {
                        **self._place(labels, init, where, key),
                        "value_here": _or_none(here.mean),
                        "value_there": _or_none(there.mean),
                        "difference": _or_none(here.mean - there.mean),
                        **_interval_of(found),
                    }

    def synthetic(self) -> Iterator[Row]:
        """Yield the curves of the synthetic drifts, of the cells that have them."""
        resamples = min(self.recipe.resamples, CURVE_RESAMPLES)
        for (labels, init), cell in self.cells.items():
            files = [
                self.folder / step.name / "drifts.parquet"
                for _, step in sorted(cell.steps.items())
                if step.drifts
            ]
            if not files:
                continue
            tables = [pd.read_parquet(file) for file in files]
            readable = [set(table.loc[table["error"].notna(), "image"]) for table in tables]
            unread = set().union(*readable)
            plain: dict[Key, Replicates] | None = None
            for kind, severity in dict.fromkeys(zip(tables[0]["kind"], tables[0]["severity"], strict=True)):
                parts = []
                for table in tables:
                    here = (table["kind"] == kind) & (table["severity"] == severity)
                    part = table[here & ~table["image"].isin(unread)]
                    parts.append(part.sort_values("image").reset_index(drop=True))
                groups, unit = groups_of(parts[0])
                found = self._replicates(parts, groups, resamples)
                plain = found if plain is None else plain
                for key, each in found.items():
                    interval = mean_interval(key[0], each, unit, self.recipe.level)
                    row = {
                        **self._place(labels, init, self.own, key),
                        "kind": kind,
                        "severity": int(severity),
                        "value": _or_none(each.mean),
                        "low": interval.low,
                        "high": interval.high,
                        "reason": interval.reason,
                    }
                    if severity:
                        difference = mean_difference(each, plain[key], unit, self.recipe.level)
                        row |= {
                            "difference": _or_none(each.mean - plain[key].mean),
                            **_interval_of(difference),
                        }
                    yield row

    def subgroups(self) -> Iterator[Row]:
        """Yield the metrics of every subgroup, of every init at its largest budget."""
        for evaluation, column, bands, (labels, init), tables in self._grouped():
            rows = subgroups(
                tables, column, classes=self.classes, task="segmentation" if self.segments else self.task,
                bands=bands, resamples=self.recipe.resamples, level=self.recipe.level,
            )  # fmt: skip
            for row in self._chosen(rows):
                place = self._place(labels, init, evaluation, (row["metric"], row["class"]))
                kept = ("group", "value", "low", "high", "n", "patients", "reason")
                yield {**place, "column": column, **{name: _plain(row.get(name)) for name in kept}}

    def gaps(self) -> Iterator[Row]:
        """Yield the largest difference between two subgroups."""
        for evaluation, column, bands, (labels, init), tables in self._grouped():
            rows = largest_gap(
                tables, column, classes=self.classes, task="segmentation" if self.segments else self.task,
                bands=bands, resamples=self.recipe.resamples, level=self.recipe.level,
            )  # fmt: skip
            for row in self._chosen(rows):
                place = self._place(labels, init, evaluation, (row["metric"], row["class"]))
                yield {
                    **place,
                    "column": column,
                    **{name: _plain(value) for name, value in row.items() if name not in place},
                }

    def _chosen(self, rows: pd.DataFrame) -> Iterator[Row]:
        known = [(str(m), str(c)) for m, c in zip(rows["metric"], rows["class"], strict=True)]
        wanted, seen = self._keys(list(dict.fromkeys(known))), set()
        for row, key in zip(rows.to_dict("records"), known, strict=True):
            place = (key, row.get("group"))
            if key in wanted and place not in seen:  # of two rows for AUROC the bootstrap's, which is first
                seen.add(place)
                yield {str(name): value for name, value in row.items()}

    def _grouped(
        self,
    ) -> Iterator[tuple[str, str, list[float] | None, tuple[Labels, str], list[pd.DataFrame]]]:
        if not self.cells:
            return
        most = max((labels for labels, _ in self.cells), key=lambda n: math.inf if n == "all" else n)
        for evaluation in self.units:
            for column, bands in self.spec.subgroups.items():
                for (labels, init), cell in self.cells.items():
                    tables = cell.tables[evaluation]
                    if labels == most and column in tables[0] and tables[0][column].nunique() > 1:
                        yield evaluation, column, bands, (labels, init), tables


def _interval_of(found: Difference) -> Row:
    return {
        "difference_low": _or_none(found.low),
        "difference_high": _or_none(found.high),
        "p": _or_none(found.p),
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


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def _plain(value: Any) -> Any:
    """Return a cell as a JSON value."""
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and math.isnan(value) else value
