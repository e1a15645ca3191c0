"""Rows of a task's results beside its means: drift to other data, synthetic drifts, subgroups."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pandas as pd

from scanprior.evaluation import (
    UNBOUNDED,
    Replicates,
    defined_in_all,
    groups_of,
    largest_gap,
    mean_change,
    mean_difference,
    mean_interval,
    subgroups,
)
from scanprior.evaluation.compare import Difference
from scanprior.evaluation.scoring import Key
from scanprior.studies.parts import Labels
from scanprior.studies.task_results import Row, TaskResults, interval_of, or_none

CURVE_RESAMPLES = 500
"""Most resamples for each of the forty points of a drift curve."""


def drift_rows(task: TaskResults) -> Iterator[Row]:
    """Yield what every cell loses from its own test images to every other data set."""
    for (labels, init), cell in task.cells.items():
        for where in task.spec.elsewhere:
            for key, there in cell.found[where].items():
                here = cell.found[task.own].get(key)
                if here is None:
                    continue
                if key[0] in UNBOUNDED:
                    found = Difference(reason="distances leave out images without a prediction; compare Dice")
                else:
                    found = mean_change(here, there, task.units[where], task.recipe.level)
                yield {
                    **task.place(labels, init, where, key),
                    "value_here": or_none(here.mean),
                    "value_there": or_none(there.mean),
                    "difference": or_none(here.mean - there.mean),
                    **interval_of(found),
                }


def synthetic_rows(task: TaskResults) -> Iterator[Row]:
    """Yield the curves of the synthetic drifts, of the cells that have them."""
    resamples = min(task.recipe.resamples, CURVE_RESAMPLES)
    for (labels, init), cell in task.cells.items():
        files = [task.folder / step.name / "drifts.parquet" for step in cell.order() if step.drifts]
        if not files:
            continue
        cuts = cell.cuts[task.own]
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
            if not severity:
                first = parts
            found = task.replicates(parts, cuts, groups, resamples, task.own)
            plain = found if plain is None else plain
            if task.segments and severity:
                both = defined_in_all(
                    [*parts, *first], task.classes, ["drifted"] * len(parts) + ["plain"] * len(parts)
                )
                pair = [
                    task.replicates(p, cuts, groups, resamples, task.own)
                    for p in (both[: len(parts)], both[len(parts) :])
                ]
            else:
                pair = [found, plain]
            for key, each in found.items():
                interval = mean_interval(key[0], each, unit, task.recipe.level)
                row = {
                    **task.place(labels, init, task.own, key),
                    "kind": kind,
                    "severity": int(severity),
                    "value": or_none(each.mean),
                    "low": interval.low,
                    "high": interval.high,
                    "reason": interval.reason,
                }
                if severity:
                    ours, theirs = (side[key] for side in pair)
                    difference = mean_difference(ours, theirs, unit, task.recipe.level)
                    row |= {"difference": or_none(ours.mean - theirs.mean), **interval_of(difference)}
                yield row


def subgroup_rows(task: TaskResults) -> Iterator[Row]:
    """Yield the metrics of every subgroup, of every init at its largest budget."""
    kept = ("group", "value", "low", "high", "n", "patients", "reason")
    for place, row in _of_groups(task, subgroups):
        yield {**place, **{name: _plain(row.get(name)) for name in kept}}


def gap_rows(task: TaskResults) -> Iterator[Row]:
    """Yield the largest difference between two subgroups."""
    for place, row in _of_groups(task, largest_gap):
        yield {**place, **{name: _plain(value) for name, value in row.items() if name not in place}}


def _of_groups(task: TaskResults, measure: Callable[..., pd.DataFrame]) -> Iterator[tuple[Row, Row]]:
    """Yield what a measure of subgroups says of every init at its largest budget, and whose row it is."""
    for evaluation, column, bands, (labels, init), tables in _grouped(task):
        rows = measure(
            tables, column, classes=task.classes, task="segmentation" if task.segments else task.task,
            bands=bands, thresholds=task.cells[labels, init].cuts[evaluation], positive_class=task.positive,
            ordered=task.ordered, resamples=task.recipe.resamples, level=task.recipe.level,
        )  # fmt: skip
        for row in _chosen(task, rows):
            place = task.place(labels, init, evaluation, (row["metric"], row["class"]))
            yield {**place, "column": column}, row


def _chosen(task: TaskResults, rows: pd.DataFrame) -> Iterator[Row]:
    known = [(str(m), str(c)) for m, c in zip(rows["metric"], rows["class"], strict=True)]
    wanted, seen = task.chosen_keys(list(dict.fromkeys(known))), set()
    for row, key in zip(rows.to_dict("records"), known, strict=True):
        place = (key, row.get("group"))
        if key in wanted and place not in seen:  # of two rows for AUROC the bootstrap's, which is first
            seen.add(place)
            yield {str(name): value for name, value in row.items()}


def _grouped(
    task: TaskResults,
) -> Iterator[tuple[str, str, list[float] | None, tuple[Labels, str], list[pd.DataFrame]]]:
    if not task.cells:
        return
    most = max((labels for labels, _ in task.cells), key=lambda n: math.inf if n == "all" else n)
    for evaluation in task.units:
        for column, bands in task.spec.subgroups.items():
            for (labels, init), cell in task.cells.items():
                tables = cell.tables[evaluation]
                if labels == most and column in tables[0] and tables[0][column].nunique() > 1:
                    yield evaluation, column, bands, (labels, init), tables


def _plain(value: Any) -> Any:
    """Return a cell as a JSON value."""
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and math.isnan(value) else value
