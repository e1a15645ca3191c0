"""The differences that a recipe asks for beside those from the baseline."""

from __future__ import annotations

from collections.abc import Iterator

from scanprior.evaluation import mean_difference
from scanprior.studies.task_results import Row, TaskResults, interval_of, or_none


def contrast_rows(task: TaskResults) -> Iterator[Row]:
    """Yield what one init or ensemble has over another, paired by patient and seed, of every evaluation and metric."""
    for name, other in task.spec.contrasts:
        for (labels, init), cell in task.cells.items():
            theirs = task.cells.get((labels, other)) if init == name else None
            shared = [] if theirs is None else sorted(set(cell.steps) & set(theirs.steps))
            if theirs is None or not shared:
                continue
            for evaluation, unit in task.units.items():
                for key in cell.found[evaluation]:
                    first, second = task.pair(cell, theirs, evaluation, key, shared)
                    found = mean_difference(first, second, unit, task.recipe.level)
                    yield {
                        **task.place(labels, init, evaluation, key),
                        "against": other,
                        "value": or_none(first.mean),
                        "value_against": or_none(second.mean),
                        "difference": or_none(first.mean - second.mean),
                        **interval_of(found),
                    }
