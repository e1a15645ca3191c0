"""What the ensembles of a study gain: over their best and their mean member, and over other ensembles."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from scanprior.evaluation import Replicates, averaged, groups_of, member_column
from scanprior.evaluation.scoring import Key
from scanprior.run import Run
from scanprior.studies.task_results import Cell, Row, TaskResults, or_none

BEST, MEAN = "best member", "mean member"
NOT_CHOSEN: Row = {
    **dict.fromkeys(("value_against", "difference", "difference_low", "difference_high", "p")),
    "difference_reason": "no validation images to choose it by",
}


def gains(task: TaskResults) -> Iterator[Row]:
    """Yield the difference of every ensemble to its members and to the ensembles before it in the recipe.

    Paired by patient and by seed, as the differences from the baseline are. The best member is that of the
    highest AUROC on validation, for every seed by itself. What a member says is read from the predictions of
    the ensemble, so members that are no init are there too.
    """
    ensembles = list(task.spec.ensembles)
    for (labels, name), cell in task.cells.items():
        if name not in ensembles:
            continue
        for evaluation in task.units:
            members = [
                _Members(part, part.cells[labels, name], list(cell.steps), evaluation) for part in task.parts
            ]
            apart = evaluation == task.own
            for key, found in cell.found[evaluation].items():
                place = task.place(labels, name, evaluation, key)
                best = [each for one in members if (each := one.best(key)) is not None]
                if len(best) == len(members):
                    yield task.paired(place, BEST, found, averaged(best, apart=apart))
                else:
                    yield {**place, "against": BEST, "value": or_none(found.mean), **NOT_CHOSEN}
                mean = averaged([one.mean(key) for one in members], apart=apart)
                yield task.paired(place, MEAN, found, mean)
                for other in ensembles[: ensembles.index(name)]:
                    if (row := task.compared(labels, name, other, evaluation, key)) is not None:
                        yield row


class _Members:
    """The metrics of the members of one ensemble at one budget, seed by seed, of one fold where there are some."""

    def __init__(self, task: TaskResults, cell: Cell, seeds: Sequence[int], evaluation: str) -> None:
        steps = [cell.steps[seed] for seed in sorted(seeds)]
        mine = [cell.tables[evaluation][sorted(cell.steps).index(seed)] for seed in sorted(seeds)]
        self._best = [Run.open(task.folder / step.name).card["ensemble"]["best"] for step in steps]
        groups = groups_of(mine[0])[0]
        self._each: list[dict[Key, Replicates]] = []
        for number in range(len(steps[0].needs)):
            tables = [
                table.assign(**{f"prob:{name}": table[member_column(number, name)] for name in task.classes})
                for table in mine
            ]
            cuts = [_thresholds(task, step.needs[number]) for step in steps]
            self._each.append(task.replicates(tables, cuts, groups, task.recipe.resamples, evaluation))

    def mean(self, key: Key) -> Replicates:
        """Return the mean of the members' metrics."""
        return averaged([each[key] for each in self._each], apart=False)

    def best(self, key: Key) -> Replicates | None:
        """Return the metric of the member that validation found best; None where it did not say."""
        chosen: Sequence[int | None] = self._best
        known = [number for number in chosen if number is not None]
        if len(known) < len(chosen):
            return None
        found = [each[key] for each in self._each]
        return Replicates(
            np.array([found[number].values[seed] for seed, number in enumerate(known)]),
            np.stack([found[number].spread[seed] for seed, number in enumerate(known)]),
            min(one.patients for one in found),
        )


def _thresholds(task: TaskResults, member: str) -> Any:
    """Return the thresholds that a member chose on its validation images."""
    file = task.folder / member / "evaluations" / f"{task.own}.json"
    return json.loads(file.read_text()).get("thresholds")
