"""Studies without processes of their own, for tests that are about what a study does with its steps."""

from __future__ import annotations

from collections.abc import Callable
from multiprocessing import Pipe
from typing import Any

import pytest

from scanprior.studies import pool


class Here:
    """Stands for a worker and its pipe, and works in this process when it is given a step."""

    exitcode = 0

    def __init__(self, work: Callable[[Any], None]) -> None:
        self.work = work
        self.ours, self.theirs = Pipe()

    def send(self, step: Any) -> None:
        self.theirs.send(pool.attempt(self.work, step))

    def recv(self) -> Any:
        return self.ours.recv()

    def fileno(self) -> int:
        return self.ours.fileno()

    def close(self) -> None:
        self.ours.close()
        self.theirs.close()

    def join(self, timeout: float | None = None) -> None:
        """There is nothing to wait for."""

    def is_alive(self) -> bool:
        return False


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start no workers, which cost seconds each; the pool and its order of steps are the real ones."""

    def start(self: pool.Pool[Any]) -> Any:
        here = Here(self.work)
        self._running.append(worker := pool._Worker(here, here))  # type: ignore[arg-type]
        return worker

    monkeypatch.setattr(pool.Pool, "_start", start)
