"""Worker processes for steps that depend on one another; a step that fails, or kills its process, ends no other."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import Any, Generic, Protocol, TypeVar

from scanprior.errors import ScanpriorError, system_sentence
from scanprior.workers import end_with_parent, worker_context


class Task(Protocol):
    """What the pool knows of a step; it is pickled."""

    @property
    def name(self) -> str:
        """Its name, by which others need it."""

    @property
    def needs(self) -> tuple[str, ...]:
        """Names of the steps before it."""


Unit = TypeVar("Unit", bound=Task)


@dataclass
class Outcome:
    """How a step ended.

    Attributes:
        name: of the step.
        error: one sentence; None where it is done.
        seconds: that it took in its worker; None where it was not run to an end.
    """

    name: str
    error: str | None = None
    seconds: float | None = None


@dataclass
class _Worker:
    process: multiprocessing.process.BaseProcess
    pipe: Connection
    step: str | None = None


@dataclass
class Pool(Generic[Unit]):
    """Runs steps in processes of their own, at most one a worker, as soon as what they need is done.

    Args:
        work: called with a step in a worker; it must be importable there.
        workers: number of processes.
        threads: of the arithmetic in each; 1 where there is a worker a core.
    """

    work: Callable[[Unit], None]
    workers: int
    threads: int = 1
    _running: list[_Worker] = field(default_factory=list)

    def run(self, steps: Sequence[Unit], done: set[str]) -> Iterator[Outcome]:
        """Yield how every step ended that is not done already, in the order they end.

        A step that needs one that failed is not run; its outcome says why.

        Args:
            steps: in the order in which they are preferred.
            done: names of the steps that are finished.
        """
        waiting = {step.name: step for step in steps if step.name not in done}
        finished, failed = set(done), dict[str, str]()
        try:
            while waiting or any(worker.step for worker in self._running):
                yield from self._given_up(waiting, failed)
                self._hand_out(waiting, finished)
                for outcome in self._next():
                    if outcome.error is None:
                        finished.add(outcome.name)
                    else:
                        failed[outcome.name] = outcome.error
                    yield outcome
        finally:
            self._end()

    def _given_up(self, waiting: dict[str, Unit], failed: dict[str, str]) -> Iterator[Outcome]:
        while lost := [(n, need) for n, step in waiting.items() for need in step.needs if need in failed]:
            for name, need in lost:
                if waiting.pop(name, None) is not None:
                    failed[name] = f"not run, because {need} failed"
                    yield Outcome(name, failed[name])

    def _hand_out(self, waiting: dict[str, Unit], finished: set[str]) -> None:
        for step in list(waiting.values()):
            if not finished.issuperset(step.needs):
                continue
            free = next((worker for worker in self._running if worker.step is None), None)
            if free is None:
                if len(self._running) >= self.workers:
                    return
                free = self._start()
            try:
                free.pipe.send(step)
            except OSError:  # it died while it had nothing to do; the step takes another
                self._running.remove(free)
                return self._hand_out(waiting, finished)
            free.step = step.name
            del waiting[step.name]

    def _next(self) -> list[Outcome]:
        """Wait for a worker to end a step, or to die."""
        busy = [worker for worker in self._running if worker.step is not None]
        ready = wait([worker.pipe for worker in busy])
        outcomes = []
        for worker in busy:
            if worker.pipe not in ready:
                continue
            assert worker.step is not None
            seconds = None
            try:
                error, seconds = worker.pipe.recv()
            except (EOFError, ConnectionResetError):
                worker.process.join()
                self._running.remove(worker)
                error = _death(worker.process.exitcode)
            outcomes.append(Outcome(worker.step, error, seconds))
            worker.step = None
        return outcomes

    def _start(self) -> _Worker:
        context: Any = worker_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs, self.work, self.threads))
        process.start()
        theirs.close()
        self._running.append(worker := _Worker(process, ours))
        return worker

    def _end(self) -> None:
        for worker in self._running:
            worker.pipe.close()
            if worker.step is not None:
                worker.process.terminate()
        for worker in self._running:
            worker.process.join(10)
            if worker.process.is_alive():
                worker.process.kill()
        self._running.clear()


def _death(code: int | None) -> str:
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        memory = "; the system does that when memory runs out: try fewer workers" if name == "SIGKILL" else ""
        return f"its process was killed by {name}{memory}"
    return f"its process ended with code {code}"


def _serve(pipe: Connection, work: Callable[[Any], None], threads: int) -> None:
    """Work on steps until the pipe is closed, which the end of the process that holds it does too."""
    os.setpgid(0, 0)  # an interrupt from the terminal is for the process that started this one
    end_with_parent()
    os.environ["OMP_NUM_THREADS"] = str(threads)  # read by torch when it is imported, which is costly
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(threads)
    while True:
        try:
            step = pipe.recv()
        except EOFError:
            return
        pipe.send(attempt(work, step))


def attempt(work: Callable[[Unit], None], step: Unit) -> tuple[str | None, float]:
    """Work on a step; return a sentence on what went wrong, None where nothing did, and the seconds it took."""
    begun, said = time.perf_counter(), None
    try:
        work(step)
    except ScanpriorError as error:
        said = str(error)
    except Exception as error:  # whatever it is, it ends this step and no other
        told = system_sentence(error) if isinstance(error, OSError) else None
        said = told or f"{type(error).__name__}: {' '.join(str(error).split())}"
    return said, round(time.perf_counter() - begun, 2)
