"""From a recipe to its steps: one training each, with what must be finished before it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import product
from math import inf, log
from pathlib import Path
from typing import Any, Literal

from scanprior.api.settings import layered
from scanprior.config import Tree, nest
from scanprior.run import RELEASED
from scanprior.studies.parts import AGAIN, Arm, Labels, TaskSpec, TuneSpec, member_of
from scanprior.studies.recipe import Recipe

Kind = Literal["pretrain", "tune", "finetune", "member", "ensemble", "shift"]
"""``member``: a fine-tuning that only ensembles need."""


@dataclass(frozen=True)
class Step:
    """One unit of work.

    Attributes:
        name: also its place in the folder of the study, such as ``runs/lungs/gmml/25/seed0``.
        kind: what is done.
        needs: names of the steps before it; of an ensemble, its members in their order.
        data: names of data sets: trained on; of a shift, reference and target.
        options: the configuration of the training; of an ensemble, that of its first member.
        objective: of a pretraining.
        method: of an ensemble.
        probe: of a fine-tuning that trains nothing: how the frozen features are classified.
        start: the run whose encoder is the starting point: a step's name, or a folder.
        tuned_by: tuning steps and what each tries; this step takes what the best on validation tried.
        elsewhere: evaluation name to data set and map of labels.
        drifts: kinds.
        facts: task, init, regime, labels and seed, where it has them.
    """

    name: str
    kind: Kind
    data: tuple[str, ...]
    needs: tuple[str, ...] = ()
    options: Tree = field(default_factory=dict)
    objective: str | None = None
    method: str | None = None
    probe: str | None = None
    start: str | None = None
    tuned_by: tuple[tuple[str, Tree], ...] = ()
    elsewhere: dict[str, tuple[str, dict[str, str]]] = field(default_factory=dict)
    drifts: tuple[str, ...] = ()
    facts: dict[str, Any] = field(default_factory=dict)


def steps_of(recipe: Recipe) -> list[Step]:
    """Return all steps, those that others need before them."""
    made = [*_pretrainings(recipe), *_shifts(recipe)]
    for task in recipe.tasks:
        made += _tuning(recipe, task)
    for seed in recipe.seeds:  # seed by seed: a study that is stopped early has whole comparisons
        for task in recipe.tasks:
            made += _finetunings(recipe, task, seed)
            made += _ensembles(recipe, task, seed)
    return made


def pretraining_data(recipe: Recipe) -> set[str]:
    """Return the names of all data sets that some pretraining sees."""
    return {name for spec in recipe.pretraining.values() for name in spec.data}


def training_data(recipe: Recipe) -> set[str]:
    """Return the names of all data sets that anything is trained on."""
    return pretraining_data(recipe) | {task.data for task in recipe.tasks.values()}


_OF_TASKS = ("task", "labels", "selection", "evaluation")
"""Sections of the recipe's settings that a pretraining has no use for."""


def _pretrainings(recipe: Recipe) -> Iterator[Step]:
    shared = {name: tree for name, tree in recipe.settings.items() if name not in _OF_TASKS}
    done: set[str] = set()
    while len(done) < len(recipe.pretraining):
        for name, spec in recipe.pretraining.items():
            if name in done or (spec.start is not None and spec.start not in done):
                continue
            done.add(name)
            before = None if spec.start is None else f"pretrained/{spec.start}"
            yield Step(
                f"pretrained/{name}",
                "pretrain",
                tuple(spec.data),
                needs=() if before is None else (before,),
                options=layered(shared, spec.settings),
                objective=spec.objective,
                start=before,
                facts={"pretraining": name},
            )


def _shifts(recipe: Recipe) -> Iterator[Step]:
    for name, spec in recipe.shift.items():
        start, needs = _start(recipe, spec.encoder)
        yield Step(
            f"shift/{name}", "shift", (spec.reference, spec.target), needs, start=start, facts={"shift": name}
        )


def _start(recipe: Recipe, init: str) -> tuple[str | None, tuple[str, ...]]:
    """Return the starting point of an init, and the step that makes it."""
    start = recipe.inits[init].start
    if start in recipe.pretraining:
        return f"pretrained/{start}", (f"pretrained/{start}",)
    if start is None or start.startswith(RELEASED):
        return start, ()
    return str(Path(start).expanduser().resolve()), ()


_FOR_MANY: Tree = {"trust": {"reference_images": 0}}
"""A study compares its runs and puts none to use: what that needs is left out, unless the recipe asks for it."""


def _options(recipe: Recipe, task: str, arm: Arm, labels: Labels, seed: int, again: int = 0) -> Tree:
    budget: Tree = {"seed": seed} if labels == "all" else {"seed": seed, "count": labels}
    given = {"labels": budget, "engine": {"seed": seed + again * AGAIN}}
    return layered(_FOR_MANY, recipe.settings_of(task, arm), given)


def _facts(task: str, arm: Arm, labels: Labels, seed: int) -> dict[str, Any]:
    regime = {} if arm.regime is None else {"regime": arm.regime}
    return {"task": task, "init": arm.init, **regime, "labels": labels, "seed": seed}


def _probe(recipe: Recipe, arm: Arm) -> str | None:
    return None if arm.regime is None else recipe.regimes[arm.regime].probe


def _tuning(recipe: Recipe, task: str) -> Iterator[Step]:
    tune = recipe.tasks[task].tune
    if tune is None:
        return
    for labels, arm in product(tune.labels, recipe.arms_of(task)):
        if _probe(recipe, arm) is not None:  # it chooses by itself, and nothing of the grid is of use to it
            continue
        start, needs = _start(recipe, arm.init)
        for name, tried in _points(tune, f"tuning/{task}/{arm.name}/{labels}"):
            yield Step(
                name,
                "tune",
                (recipe.tasks[task].data,),
                needs,
                layered(_options(recipe, task, arm, labels, tune.seed), tried),
                start=start,
                facts=_facts(task, arm, labels, tune.seed),
            )


def _points(tune: TuneSpec, place: str) -> Iterator[tuple[str, Tree]]:
    """Yield the name of the step of every point of a grid, and its options."""
    for number, values in enumerate(product(*tune.grid.values())):
        yield f"{place}/{number}", nest(dict(zip(tune.grid, values, strict=True)))


def _finetunings(recipe: Recipe, task: str, seed: int) -> Iterator[Step]:
    for labels, arm in product(recipe.tasks[task].labels, recipe.arms_of(task)):
        yield _measured(recipe.tasks[task], _finetuning(recipe, task, arm, labels, seed))


def _finetuning(recipe: Recipe, task: str, arm: Arm, labels: Labels, seed: int, again: int = 0) -> Step:
    """Return a fine-tuning; ``again`` > 0: a further one on the same labels, for ensembles."""
    spec, probe = recipe.tasks[task], _probe(recipe, arm)
    start, needs = _start(recipe, arm.init)
    tuned_by: tuple[tuple[str, Tree], ...] = ()
    if spec.tune is not None and probe is None:
        nearest = _nearest(labels, spec.tune.labels)
        tuned_by = tuple(_points(spec.tune, f"tuning/{task}/{arm.name}/{nearest}"))
    return Step(
        _run(task, f"{arm.name}+{again}" if again else arm.name, labels, seed),
        "member" if again else "finetune",
        (spec.data,),
        (*needs, *(name for name, _ in tuned_by)),
        _options(recipe, task, arm, labels, seed, again),
        probe=probe,
        start=start,
        tuned_by=tuned_by,
        facts=_facts(task, arm, labels, seed),
    )


def _ensembles(recipe: Recipe, task: str, seed: int) -> Iterator[Step]:
    """Yield the ensembles of a task, and before them the further trainings that they need."""
    spec = recipe.tasks[task]
    arms = {arm.name: arm for arm in recipe.arms_of(task)}
    members = dict.fromkeys(member for each in spec.ensembles.values() for member in each.members)
    for labels in spec.labels:
        for name, again in map(member_of, members):
            if again:
                yield _finetuning(recipe, task, arms[name], labels, seed, again)
    for labels, (name, ensemble) in product(spec.labels, spec.ensembles.items()):
        step = Step(
            _run(task, name, labels, seed),
            "ensemble",
            (spec.data,),
            tuple(_run(task, member, labels, seed) for member in ensemble.members),
            _options(recipe, task, arms[member_of(ensemble.members[0])[0]], labels, seed),
            method=ensemble.method,
            facts=_facts(task, Arm(name), labels, seed),
        )
        yield _measured(spec, step)


def _run(task: str, arm: str, labels: Labels, seed: int) -> str:
    return f"runs/{task}/{arm}/{labels}/seed{seed}"


def _measured(spec: TaskSpec, step: Step) -> Step:
    """Return a step with what is measured of its run beside the task's own test images."""
    return replace(
        step,
        elsewhere={name: (where.data, where.map) for name, where in spec.elsewhere.items()},
        drifts=tuple(spec.drifts) if step.facts["labels"] == largest(spec) else (),
    )


def _size(labels: Labels) -> float:
    return inf if labels == "all" else log(labels)


def _nearest(labels: Labels, tuned: list[Labels]) -> Labels:
    """Return the tuned budget that is nearest by ratio; of two the smaller one."""
    same = [budget for budget in tuned if budget == labels]
    if same or labels == "all":
        return (same or sorted(tuned, key=_size))[-1]
    return min(tuned, key=lambda budget: (abs(_size(budget) - _size(labels)), _size(budget)))


def largest(task: TaskSpec) -> Labels:
    """Return the largest budget of a task."""
    return max(task.labels, key=_size)
