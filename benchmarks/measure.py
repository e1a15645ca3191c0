"""What all benchmarks share: taking turns, medians, ratios, and the cost of a child process."""

from __future__ import annotations

import importlib
import json
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Literal

REPOSITORY = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Settings:
    """How to measure.

    Attributes:
        folder: an empty folder for images, stores and runs.
        quick: sizes that only show that the code runs; its numbers mean nothing.
        threads: of PyTorch, for both sides.
    """

    folder: Path
    quick: bool = False
    threads: int = 2

    @property
    def repeats(self) -> int:
        """How often both sides are measured."""
        return 1 if self.quick else 5

    def of(self, full: int, quick: int) -> int:
        """Return a size: the first one for numbers, the second for a quick run."""
        return quick if self.quick else full


@dataclass(frozen=True)
class Side:
    """One side of a comparison.

    Attributes:
        what: what was measured, in a few words.
        unit: of the repeats.
        repeats: every measurement, in order.
    """

    what: str
    unit: str
    repeats: list[float]

    @property
    def median(self) -> float:
        """Median of the repeats."""
        return median(self.repeats)


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        name: what is compared.
        value: the ratio (or the quantity with a limit); None where it was not measured.
        unit: ``x`` for a ratio, else the unit of the value.
        target: what the value should reach (``>=``) or not exceed (``<=``); None = only reported.
        ours, reference: the two sides.
        spread: lowest and highest value over the repeats, taken pair by pair.
        note: what one has to know to read it, or why it was not measured.
        details: further numbers for the JSON file.
    """

    name: str
    value: float | None
    unit: str = "x"
    target: float | None = None
    sense: Literal[">=", "<="] = ">="
    ours: Side | None = None
    reference: Side | None = None
    spread: tuple[float, float] | None = None
    note: str = ""
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None where there is none or no value."""
        if self.value is None or self.target is None:
            return None
        return self.value >= self.target if self.sense == ">=" else self.value <= self.target

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        sides = {
            key: {"what": side.what, "unit": side.unit, "median": side.median, "repeats": side.repeats}
            for key, side in (("ours", self.ours), ("reference", self.reference))
            if side is not None
        }
        return {
            "name": self.name, "value": self.value, "unit": self.unit, "target": self.target, "sense": self.sense,
            "met": self.met, "spread": self.spread, **sides, "note": self.note, "details": self.details,
        }  # fmt: skip


def in_own_process(name: str, settings: Settings) -> list[Row]:
    """Return the rows of a benchmark that runs in a new process, which ends with it."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        return process.submit(_rows, name, settings).result()


def _rows(name: str, settings: Settings) -> list[Row]:
    import torch

    torch.set_num_threads(settings.threads)
    rows: list[Row] = importlib.import_module(f"benchmarks.{name}").run(settings)
    return rows


def speed_row(name: str, ours: Side, reference: Side, **rest: Any) -> Row:
    """Return how many times as fast we are: the median ratio of the pairs of two sides measured in turns.

    The two of a pair follow each other, so what slows the machine for a while slows both.

    Both sides are in seconds for the same work, or both are rates ("…/s").
    """
    rate = ours.unit.endswith("/s")
    pairs = [a / b if rate else b / a for a, b in zip(ours.repeats, reference.repeats, strict=True)]
    spread = (min(pairs), max(pairs))
    return Row(name, median(pairs), ours=ours, reference=reference, spread=spread, **rest)


def seconds(work: Callable[[], object]) -> float:
    """Return the seconds that one call takes."""
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def in_turns(
    ours: Callable[[], object], reference: Callable[[], object], repeats: int, warm_up: int = 1
) -> tuple[list[float], list[float]]:
    """Time two calls in turns, A B A B; the first ``warm_up`` rounds do not count."""
    taken: tuple[list[float], list[float]] = ([], [])
    for number in range(warm_up + repeats):
        for side, work in zip(taken, (ours, reference), strict=True):
            spent = seconds(work)
            if number >= warm_up:
                side.append(spent)
    return taken


@dataclass(frozen=True)
class Cost:
    """What a process cost: user and system seconds, and the peak resident memory of its largest process."""

    cpu: float
    peak_mb: float


# A process begins with the peak of the one it was forked from, so a small one has to start it.
_LAUNCHER = """
import json, os, sys
quiet = [(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)]
pid = os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ, file_actions=quiet)
_, status, usage = os.wait4(pid, 0)
code = os.waitstatus_to_exitcode(status)
print(json.dumps([code, usage.ru_utime + usage.ru_stime, usage.ru_maxrss]))
"""


def cost(command: Sequence[str], **environment: str) -> Cost:
    """Run a command and return its cost; its children count once they have ended.

    Raises:
        RuntimeError: it failed.
    """
    path = os.pathsep.join([str(REPOSITORY / "src"), str(REPOSITORY)])
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", _LAUNCHER, *command],
        capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": path, **environment},
    )  # fmt: skip
    code, cpu, peak = json.loads(done.stdout)
    if code != 0:
        raise RuntimeError(f"{' '.join(command)} ended with {code}: {done.stderr.strip()[-500:]}")
    in_kib = sys.platform != "darwin"
    return Cost(cpu, peak / 1024 if in_kib else peak / 1024**2)
