"""The differences that a recipe asks for beside those from the baseline."""

from __future__ import annotations

from collections.abc import Iterator

from scanprior.studies.task_results import Row, TaskResults


def contrast_rows(task: TaskResults) -> Iterator[Row]:
    """Yield what one init or ensemble has over another, paired by patient and seed, of every evaluation and metric."""
    for name, other in task.spec.contrasts:
        for labels in dict.fromkeys(labels for labels, arm in task.cells if arm == name):
            for evaluation in task.units:
                for key in task.cells[labels, name].found[evaluation]:
                    if (row := task.compared(labels, name, other, evaluation, key)) is not None:
                        yield row
