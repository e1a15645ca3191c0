"""What a worker does with a step: one training and what is measured of it. Finished work is not done again."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from scanprior.config import Tree
from scanprior.errors import RunError
from scanprior.files import share
from scanprior.run import Run

if TYPE_CHECKING:
    from scanprior.studies.plan import Step

ENCODERS = "encoders"
"""Folder of a study with the frozen encoders that its runs share."""


@dataclass(frozen=True)
class Execution:
    """Executes steps in the folder of a study.

    Args:
        folder: of the study; its data sets are the manifests in ``data/``.
        seen: names of the data sets that a pretraining sees; tests on them take held-out images alone.
    """

    folder: Path
    seen: frozenset[str]

    def __call__(self, step: Step) -> None:
        """Do what is left of a step.

        Raises:
            ScanpriorError: anything that the user can mend.
        """
        if step.kind == "shift":
            self._shift(step)
        elif step.kind == "pretrain":
            self._pretrain(step)
        elif step.kind == "ensemble":
            self._ensemble(step)
        else:
            self._finetune(step)

    def done(self, step: Step) -> bool:
        """Return whether nothing is left of a step."""
        path = self.folder / step.name
        if step.kind == "shift":
            return self._shift_file(step).exists()
        return Run.finished(path) and not self._evaluations_left(step) and not self._drifts_left(step)

    def data(self, name: str) -> Path:
        """Return the manifest of a data set."""
        return self.folder / "data" / f"{name}.parquet"

    def _pretrain(self, step: Step) -> None:
        from scanprior import api

        out = self.folder / step.name
        api.pretrain(
            [self.data(name) for name in step.data], out=out, objective=step.objective, parent=self.start(step),
            config=step.options, resume=True,
        )  # fmt: skip
        self._tidy(out)

    def _finetune(self, step: Step) -> None:
        from scanprior import api

        out = self.folder / step.name
        api.finetune(
            self.data(step.data[0]), out=out, parent=self.start(step), config=self.options(step), resume=True,
            probe=step.probe,
        )  # fmt: skip
        self._tidy(out)
        self._measure(step)

    def options(self, step: Step) -> Tree:
        """Return the configuration of a fine-tuning, with what the best of its tuning steps tried."""
        from scanprior.api.settings import layered

        return layered(step.options, self.best_of(step.tuned_by)[1]) if step.tuned_by else step.options

    def _ensemble(self, step: Step) -> None:
        from scanprior import api

        out = self.folder / step.name
        if not Run.finished(out):
            assert step.method is not None
            members = [self.folder / name for name in step.needs]
            api.ensemble(members, out=out, method=step.method, overwrite=True)
        self._measure(step)

    def _measure(self, step: Step) -> None:
        """Test a finished run on other data and under synthetic drifts, where that is left to do."""
        from scanprior import api

        out = self.folder / step.name
        for name in self._evaluations_left(step):
            data, label_map = step.elsewhere[name]
            split = "held-out" if data in self.seen else None
            api.evaluate(out, data=self.data(data), split=split, name=name, label_map=label_map)
        if self._drifts_left(step):
            api.drift(out, kinds=step.drifts)

    def _shift(self, step: Step) -> None:
        from scanprior import api

        assert step.start is not None
        reference, target = (self.data(name) for name in step.data)
        start = self.start(step)
        assert start is not None
        # Images that the encoder was trained on may look alike to it for that alone.
        splits = ["held-out" if name in self.seen else None for name in step.data]
        api.shift(
            start, reference, target, reference_split=splits[0], target_split=splits[1], out=self._shift_file(step)
        )  # fmt: skip

    def start(self, step: Step) -> Path | None:
        """Return the run whose encoder a step starts from."""
        if step.start is None:
            return None
        return self.folder / step.start if step.start in step.needs else Path(step.start)

    def best_of(self, tried: tuple[tuple[str, Tree], ...]) -> tuple[str, Tree, float]:
        """Return the tuning step of the best validation, the first of equals, what it tried, and its value."""
        values = [self._validated(name) for name, _ in tried]
        best = max(range(len(tried)), key=lambda number: (values[number], -number))
        return *tried[best], values[best]

    def _validated(self, name: str) -> float:
        value = Run.open(self.folder / name).card["training"]["selected_value"]
        if value is None or math.isnan(value):
            raise RunError(f"{self.folder / name}: validates nothing, so nothing can be chosen by it")
        return float(value)

    def _evaluations_left(self, step: Step) -> list[str]:
        folder = self.folder / step.name / "evaluations"
        return [name for name in step.elsewhere if not (folder / f"{name}.json").exists()]

    def _drifts_left(self, step: Step) -> bool:
        file = self.folder / step.name / "drifts.json"
        if not step.drifts or not file.exists():
            return bool(step.drifts)
        return not set(step.drifts) <= set(json.loads(file.read_text())["kinds"])

    def _shift_file(self, step: Step) -> Path:
        return self.folder / f"{step.name}.json"

    def _tidy(self, out: Path) -> None:
        """Remove the state that only an unfinished training needs; let runs of one frozen encoder share its file."""
        shutil.rmtree(out / "state", ignore_errors=True)
        run = Run.open(out)
        if not run.is_ensemble and run.encoder_weights != run.weights:
            share(run.encoder_weights, self.folder / ENCODERS)
