"""What the runs of a study say together: ``results.json``."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scanprior.run import Run
from scanprior.studies.comparisons import correct, rank_rows, regime_rows
from scanprior.studies.contrasts import contrast_rows
from scanprior.studies.ensemble_gains import gains
from scanprior.studies.execution import Execution
from scanprior.studies.plan import Step, pretraining_data, steps_of
from scanprior.studies.recipe import Recipe
from scanprior.studies.task_results import TaskResults
from scanprior.studies.task_rows import drift_rows, gap_rows, subgroup_rows, synthetic_rows

Row = dict[str, Any]


@dataclass(frozen=True)
class Part:
    """One fold of a study, or all of a study without folds.

    Attributes:
        recipe: of the part.
        folder: of its data and runs.
        sources: of each data set, what the results say of it.
        failed: steps that failed, and why.
        fold: its number from 1; 0 without folds.
    """

    recipe: Recipe
    folder: Path
    sources: dict[str, dict[str, Any]]
    failed: dict[str, str]
    fold: int = 0

    def steps(self) -> list[Step]:
        """Return the steps that are done."""
        execution = Execution(self.folder, frozenset(pretraining_data(self.recipe)))
        return [step for step in steps_of(self.recipe) if execution.done(step)]

    def named(self, step: str) -> str:
        """Return where a step lies in the folder of the study."""
        return f"fold{self.fold}/{step}" if self.fold else step


def summarise(recipe: Recipe, parts: Sequence[Part], absent: Sequence[Row] = ()) -> dict[str, Any]:
    """Gather the results of a study; equal runs give an equal summary.

    Args:
        recipe: of the study.
        parts: its folds, or the study itself.
        absent: inits that are left out because their weights are not there.

    Returns:
        JSON values: ``name``, ``title``, ``question``, ``baseline``, ``seeds``, ``level``, ``resamples``, ``data``,
        ``failed``, ``pretraining`` (what was trained), ``tuned`` (what was chosen), ``efficiency``, ``contrasts``,
        ``drift``, ``ensembles`` (what they gain), ``synthetic``, ``subgroups``, ``gaps``, ``shift``: rows of tables.
        Every row that has a value has its interval, or ``reason``. With regimes also ``regimes`` (what each is),
        ``regime_gains`` (rows: minus the baseline regime), ``ranks``; where there are some, ``absent`` and
        ``random`` inits.
    """
    done = [(part, part.steps()) for part in parts]
    first = parts[0]
    tasks = []
    for name in recipe.tasks:
        found = [
            TaskResults(part.recipe, part.folder, name, steps, resampling=part.fold) for part, steps in done
        ]
        tasks.append(TaskResults.over(found) if recipe.folds else found[0])
    results: dict[str, Any] = {
        "name": recipe.name,
        "title": recipe.title or recipe.name,
        "question": recipe.question,
        "recipe": hashlib.sha256(recipe.model_dump_json().encode()).hexdigest()[:16],
        "baseline": recipe.baseline,
        "seeds": recipe.seeds,
        "level": recipe.level,
        "resamples": recipe.resamples,
        "folds": recipe.folds,
        "data": first.sources,
        "tasks": {name: _task_facts(recipe, name) for name in recipe.tasks},
        "failed": {part.named(name): why for part in parts for name, why in part.failed.items()},
        "warnings": [text for part, steps in done for text in _warnings(part, steps)],
        "pretraining": [
            _pretrained(part, step) for part, steps in done for step in steps if step.kind == "pretrain"
        ],
        "tuned": [row for part, steps in done for row in _tuned(part, steps)],
        "efficiency": [row for task in tasks for row in task.efficiency()],
        "drift": [row for task in tasks for row in drift_rows(task)],
        "ensembles": [row for task in tasks for row in gains(task)],
        "synthetic": [row for task in tasks for row in synthetic_rows(task)],
        "subgroups": [row for task in tasks for row in subgroup_rows(task)],
        "gaps": [row for task in tasks for row in gap_rows(task)],
        "shift": [
            _shifted(part.folder, step) for part, steps in done for step in steps if step.kind == "shift"
        ],
    }
    if any(spec.contrasts for spec in recipe.tasks.values()):
        results["contrasts"] = [row for task in tasks for row in contrast_rows(task)]
    if recipe.regimes:
        results |= {
            "regimes": {name: spec.model_dump(mode="json") for name, spec in recipe.regimes.items()},
            "baseline_regime": recipe.baseline_regime,
            "regime_gains": [row for task in tasks for row in regime_rows(task)],
            "ranks": rank_rows(recipe, tasks),
        }
    if recipe.corrects:
        for table in ("efficiency", "regime_gains"):
            correct(results.get(table, []))
    if random := [name for name, init in recipe.inits.items() if init.random]:
        results["random"] = random
    if absent:
        results["absent"] = list(absent)
    return results


def _warnings(part: Part, steps: Sequence[Step]) -> list[str]:
    """Return what every reader has to know: pretraining that saw held-out images, tests on training images."""
    said: dict[str, list[str]] = {}
    for step in steps:
        if step.kind in ("shift", "tune"):
            continue
        card = Run.open(part.folder / step.name).card
        if card["data"].get("transductive"):
            said.setdefault(
                "its pretraining saw validation or test images (without their labels)", []
            ).append(part.named(step.name))
        for file in sorted((part.folder / step.name / "evaluations").glob("*.json")):
            seen = json.loads(file.read_text()).get("training_images", 0)
            if seen:
                said.setdefault(f"{seen} images of {file.stem} are among its training images", []).append(
                    part.named(step.name)
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


def _pretrained(part: Part, step: Step) -> Row:
    card = Run.open(part.folder / step.name).card
    training = card["training"]
    return {
        "fold": part.fold or None,
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


def _tuned(part: Part, steps: Sequence[Step]) -> Iterator[Row]:
    """Yield what was chosen, once a task, init and budget that has it."""
    execution = Execution(part.folder, frozenset(pretraining_data(part.recipe)))
    seen: set[tuple[object, ...]] = set()
    for step in steps:
        place = tuple(step.facts.get(name) for name in ("task", "init", "regime", "labels"))
        if not step.tuned_by or place in seen:
            continue
        seen.add(place)
        name, chosen, value = execution.best_of(step.tuned_by)
        yield {
            "fold": part.fold or None,
            **{name: step.facts[name] for name in ("task", "init", "regime", "labels") if name in step.facts},
            "tuned_at": name.split("/")[3],
            "chosen": chosen,
            "validation": value,
            "tried": len(step.tuned_by),
        }
