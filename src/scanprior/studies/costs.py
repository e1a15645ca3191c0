"""What the trainings of a study cost: ``costs.json``, each measured once, alone, in a process of its own."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scanprior.engine import Reporter
from scanprior.files import write_text
from scanprior.run import Run
from scanprior.studies.execution import Execution
from scanprior.studies.parts import Arm
from scanprior.studies.plan import Step, largest, pretraining_data, steps_of
from scanprior.studies.pool import Pool
from scanprior.studies.summary import Part

Row = dict[str, Any]


@dataclass(frozen=True)
class Measurement:
    """Measures one step in a worker, and writes what it finds.

    Args:
        execution: knows the step's data, start and tuned options.
        file: where to write it.
    """

    execution: Execution
    file: Path

    def __call__(self, step: Step) -> None:
        """Measure a fine-tuning.

        Raises:
            ScanpriorError: as ``api.finetune``.
        """
        from scanprior.api.costing import training_cost

        found = training_cost(
            self.execution.data(step.data[0]), parent=self.execution.start(step),
            config=self.execution.options(step), probe=step.probe,
        )  # fmt: skip
        write_text(self.file, json.dumps(found))


def measure_costs(folder: Path, part: Part, reporter: Reporter) -> list[Row]:
    """Return what every arm of every task costs at its largest budget; measure what is not in ``costs.json`` yet.

    One at a time, so that no training takes another's processor or memory. What was measured of the same training
    stays, so that a study that is done again says the same.

    Args:
        folder: of the study.
        part: the study, or its first fold; its trainings are done.
        reporter: shows progress.

    Returns:
        A row an arm and task: task, init, regime, labels; what ``api.costing.training_cost`` returns; ``seconds`` of
        the training, mean over seeds, None of a probe; ``reason`` where it could not be measured.
    """
    file = folder / "costs.json"
    known: dict[str, Row] = json.loads(file.read_text()) if file.exists() else {}
    execution = Execution(part.folder, frozenset(pretraining_data(part.recipe)))
    rows = []
    for name, steps in _trainings(part).items():
        done = [step for step in steps if execution.done(step)]
        row = {key: steps[0].facts.get(key) for key in ("task", "init", "regime", "labels")}
        if not done:
            rows.append({**row, "reason": "no training of it succeeded"})
            continue
        of = _fingerprint(execution, done[0])
        if known.get(name, {}).get("of") != of:
            reporter.note(f"measuring the cost: {name}")
            found = _measured(execution, done[0], folder / "costs.part.json")
            if "reason" in found:
                reporter.note(f"the cost of {name} could not be measured: {found['reason']}")
                rows.append({**row, **found})
                continue
            known[name] = {"of": of, **found, "seconds": _seconds(part.folder, done)}
            write_text(file, json.dumps(known, indent=1))
        rows.append({**row, **{key: value for key, value in known[name].items() if key != "of"}})
    return rows


def _trainings(part: Part) -> dict[str, list[Step]]:
    """Return the fine-tunings of every task and arm at the task's largest budget, seed by seed."""
    found: dict[str, list[Step]] = {}
    for step in steps_of(part.recipe):
        if step.kind == "finetune" and step.facts["labels"] == largest(part.recipe.tasks[step.facts["task"]]):
            arm = Arm(step.facts["init"], step.facts.get("regime"))
            found.setdefault(f"{step.facts['task']}/{arm.name}", []).append(step)
    return found


def _measured(execution: Execution, step: Step, file: Path) -> Row:
    pool: Pool[Step] = Pool(Measurement(execution, file), 1, os.cpu_count() or 1)
    (outcome,) = pool.run([step], set(step.needs))
    if outcome.error is not None:
        return {"reason": outcome.error}
    found: Row = json.loads(file.read_text())
    file.unlink()
    return found


def _fingerprint(execution: Execution, step: Step) -> str:
    """Return what tells this training from others: settings, start, probe, data."""
    facts = [execution.options(step), step.start, step.probe, step.data]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def _seconds(folder: Path, steps: list[Step]) -> float | None:
    cards = [Run.open(folder / step.name).card["training"] for step in steps]
    known = [float(card["seconds"]) for card in cards if "seconds" in card]
    return round(sum(known) / len(known), 1) if len(known) == len(cards) else None
