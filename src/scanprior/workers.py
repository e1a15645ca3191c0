"""How worker processes start and end: never forked, without the user's script, and not outliving their parent."""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing.connection import wait as wait_for
from multiprocessing.context import BaseContext, SpawnContext, SpawnProcess
from types import ModuleType
from typing import Any, ClassVar


def worker_context(method: str = "forkserver", *, home: str | None = None) -> BaseContext:
    """Return the context in which worker processes are made.

    A forked child of a process with threads may hang, so processes are never forked from this one. Usually
    a process that is made otherwise first runs the main script again, which would start what that script
    does without ``if __name__ == "__main__":`` all over; ours run functions of this package alone, and do not.

    Args:
        method: "forkserver" (quick to start; "spawn" where the system has none) or "spawn".
        home: module of what the processes work on. The first that is given is imported once for all processes to come,
            also those of later pools, not by every one of them.
    """
    context = _contexts.get(method, _SpawnContext)()
    if home is not None:
        context.set_forkserver_preload([home])
    return context


def started(*needed: object) -> None:
    """Do nothing: work for a process whose start is waited for, with all that it imports for what is ``needed``."""


def end_with_parent() -> None:
    """End this worker process when the one that started it is gone: after a kill -9 nobody else does."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch(sentinel: int) -> None:
        wait_for([sentinel])
        os._exit(1)

    threading.Thread(target=watch, args=(parent.sentinel,), daemon=True).start()


def end_broken(pool: ProcessPoolExecutor) -> None:
    """Shut down a pool of which a process died.

    A process that was being started just then is missed when Python ends the others; it waits for work, and
    a mere ``shutdown`` for it, for ever.
    """
    for process in list((pool._processes or {}).values()):
        process.kill()
    pool.shutdown()


@contextmanager
def _without_script() -> Iterator[None]:
    """Hide the main module, whose file a new process is told to run."""
    script = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = script


class _SpawnWorker(SpawnProcess):
    def start(self) -> None:
        with _without_script():
            super().start()


class _SpawnContext(SpawnContext):
    Process: ClassVar[Any] = _SpawnWorker


_contexts: dict[str, type[BaseContext]] = {"spawn": _SpawnContext}

if "forkserver" in multiprocessing.get_all_start_methods():
    from multiprocessing.context import ForkServerContext, ForkServerProcess

    class _ForkServerWorker(ForkServerProcess):
        def start(self) -> None:
            with _without_script():
                super().start()

    class _ForkServerContext(ForkServerContext):
        Process: ClassVar[Any] = _ForkServerWorker

    _contexts["forkserver"] = _ForkServerContext
