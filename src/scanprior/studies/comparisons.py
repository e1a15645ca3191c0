"""What many comparisons say together: p-values corrected for their number, average ranks, regime against regime."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from scanprior.evaluation import LOWER_IS_BETTER, Contest, average_ranks, holm
from scanprior.evaluation.scoring import Key
from scanprior.studies.parts import Arm, Labels
from scanprior.studies.recipe import Recipe
from scanprior.studies.task_results import Cell, Row, TaskResults


def regime_rows(task: TaskResults) -> Iterator[Row]:
    """Yield the difference of every regime from the baseline regime, of the same init and the same labels."""
    baseline = task.recipe.baseline_regime
    if baseline is None:
        return
    for evaluation in task.units:
        for (labels, name), cell in task.cells.items():
            if cell.arm.regime in (None, baseline):
                continue
            for key in cell.found[evaluation]:
                row = task.compared(labels, name, Arm(cell.arm.init, baseline).name, evaluation, key)
                if row is not None:
                    yield {**row, "against": baseline}


def correct(rows: Sequence[Row]) -> None:
    """Put ``p_holm`` beside ``p`` in the rows of one table: corrected by Holm's method for all of the same metric.

    A family is all comparisons of a metric in the table: of every init, regime, budget, task, class and set of test
    images.
    """
    for metric in {row["metric"] for row in rows}:
        family = [row for row in rows if row["metric"] == metric and "p" in row]
        for row, value in zip(family, holm([row["p"] for row in family]), strict=True):
            row["p_holm"] = value


def rank_rows(recipe: Recipe, tasks: Sequence[TaskResults]) -> dict[str, Any]:
    """Return the average ranks of all arms over the tasks and budgets that all of them have.

    Returns:
        ``rows``: init, regime, rank, low, high, reason; best first. ``over``: task, labels and metric of what was
        ranked. ``left_out``: tasks with a budget that some arm lacks. ``seeds``: that all of them have.
    """
    arms = list(dict.fromkeys(arm for name in recipe.tasks for arm in recipe.arms_of(name)))
    cells = {
        (task.name, labels): [task.cells.get((labels, arm.name)) for arm in arms]
        for task in tasks
        for labels in dict.fromkeys(labels for labels, _ in task.cells)
    }
    whole = {
        place: [cell for cell in row if cell is not None] for place, row in cells.items() if None not in row
    }
    seeds = [s for s in recipe.seeds if all(s in cell.steps for row in whole.values() for cell in row)]
    contests: dict[tuple[str, Labels], Contest] = {}
    for task in tasks:
        for (name, labels), row in whole.items():
            if name == task.name and seeds:
                contest = _contest(task, row, seeds)
                if not any(each.reason for each in contest.found):
                    contests[name, labels] = contest
    lacking = {name for name, _ in cells.keys() - contests.keys()}
    said = {
        "over": [
            {"task": name, "labels": labels, "metric": recipe.tasks[name].metrics[0]}
            for name, labels in contests
        ],
        "left_out": [name for name in recipe.tasks if name in lacking],
        "seeds": seeds,
    }
    if not contests or len(arms) < 2:
        return {"rows": [], **said}
    found = average_ranks(list(contests.values()), recipe.level)
    rows = [
        {
            "init": arm.init, "regime": arm.regime, "rank": one.rank, "low": one.low, "high": one.high,
            "reason": one.reason,
        }
        for arm, one in zip(arms, found, strict=True)
    ]  # fmt: skip
    return {"rows": sorted(rows, key=lambda row: row["rank"]), **said}


def _contest(task: TaskResults, cells: Sequence[Cell], seeds: Sequence[int]) -> Contest:
    """Return the first metric of a task, of some cells, of the seeds that all of them have."""
    metric = task.spec.metrics[0]
    key: Key = next(key for key in cells[0].found[task.own] if key[0] == metric)
    found = [cell.found[task.own][key].of([sorted(cell.steps).index(s) for s in seeds]) for cell in cells]
    return Contest(found, metric in LOWER_IS_BETTER, task.spec.data)
