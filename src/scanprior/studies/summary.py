"""What the runs of a study say together: ``results.json``."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from scanprior.run import Run
from scanprior.studies.ensemble_gains import gains
from scanprior.studies.execution import Execution
from scanprior.studies.plan import Step, pretraining_data, steps_of
from scanprior.studies.recipe import Recipe
from scanprior.studies.task_results import TaskResults

Row = dict[str, Any]


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
        ``ensembles`` (what they gain), ``synthetic``, ``subgroups``, ``gaps``, ``shift``: rows of tables. Every row
        that has a value has its interval, or ``reason``.
    """
    execution = Execution(folder, frozenset(pretraining_data(recipe)))
    steps = [step for step in steps_of(recipe) if execution.done(step)]
    tasks = [TaskResults(recipe, folder, name, steps) for name in recipe.tasks]
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
        "warnings": _warnings(folder, steps),
        "pretraining": [_pretrained(folder, step) for step in steps if step.kind == "pretrain"],
        "tuned": list(_tuned(execution, steps)),
        "efficiency": [row for task in tasks for row in task.efficiency()],
        "drift": [row for task in tasks for row in task.drift()],
        "ensembles": [row for task in tasks for row in gains(task)],
        "synthetic": [row for task in tasks for row in task.synthetic()],
        "subgroups": [row for task in tasks for row in task.subgroups()],
        "gaps": [row for task in tasks for row in task.gaps()],
        "shift": [_shifted(folder, step) for step in steps if step.kind == "shift"],
    }


def _warnings(folder: Path, steps: Sequence[Step]) -> list[str]:
    """Return what every reader has to know: pretraining that saw held-out images, tests on training images."""
    said: dict[str, list[str]] = {}
    for step in steps:
        if step.kind in ("shift", "tune"):
            continue
        card = Run.open(folder / step.name).card
        if card["data"].get("transductive"):
            said.setdefault(
                "its pretraining saw validation or test images (without their labels)", []
            ).append(step.name)
        for file in sorted((folder / step.name / "evaluations").glob("*.json")):
            seen = json.loads(file.read_text()).get("training_images", 0)
            if seen:
                said.setdefault(f"{seen} images of {file.stem} are among its training images", []).append(
                    step.name
                )
    return [f"{_named(names)}: {text}" for text, names in said.items()]


def _named(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


def _task_facts(recipe: Recipe, name: str) -> Row:
    task = recipe.tasks[name]
    elsewhere = {where: spec.data for where, spec in task.elsewhere.items()}
    ensembles = {which: spec.model_dump(mode="json") for which, spec in task.ensembles.items()}
    return {
        "data": task.data,
        "metrics": task.metrics,
        "labels": task.labels,
        "elsewhere": elsewhere,
        "ensembles": ensembles,
    }


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
