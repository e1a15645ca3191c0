"""Times the real training loop from inside, and takes turns with a bare loop."""

from __future__ import annotations

import time
from typing import Any

from benchmarks.bare import BareLoop
from benchmarks.measure import Settings
from scanprior.engine import Reporter


class Interleaved(Reporter):
    """A reporter that measures the training it is given to.

    Every cycle is three reports of the engine: the first is to settle after the bare loop (with loader
    workers, to use up what they made meanwhile), then two are timed; then the bare loop takes two
    uncounted steps and as many as were timed. Everything that the engine does in a step is inside the
    times: reading the store, augmenting, corrupting, the step, the metrics and their file. The cycles are
    short, and three times as many as other benchmarks have repeats: a ratio near one needs both sides in
    the same weather.

    Attributes:
        ours, bare: seconds of every timed stretch of ``steps`` steps.
    """

    def __init__(self, settings: Settings, loop: BareLoop) -> None:
        self.loop = loop
        self.every = settings.of(4, 1)
        self.steps = 2 * self.every
        self.total = 3 * self.every * settings.repeats * settings.of(3, 1)
        self.ours: list[float] = []
        self.bare: list[float] = []
        self._reports, self._begun = 0, 0.0

    def options(self) -> dict[str, Any]:
        """Return the engine settings that the measurement needs."""
        return {
            "engine.steps": self.total,
            "engine.log_every": self.every,
            "engine.checkpoint_every": self.total,
            "engine.batch_size": 64,
        }

    def step(self, row: dict[str, Any], total: int, seconds: float) -> None:
        """Take a report of the engine; at the end of a cycle run the bare loop."""
        self._reports += 1
        if self._reports % 3 == 1:
            self._begun = time.perf_counter()
        elif self._reports % 3 == 0:
            self.ours.append(time.perf_counter() - self._begun)
            self.loop.run(2)
            begun = time.perf_counter()
            self.loop.run(self.steps)
            self.bare.append(time.perf_counter() - begun)
