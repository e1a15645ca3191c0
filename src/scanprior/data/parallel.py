"""Map a function over many items in worker processes, in order, with memory that stays flat."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from scanprior.errors import DataError
from scanprior.workers import end_broken, end_with_parent, started, worker_context

Item = TypeVar("Item")
Result = TypeVar("Result")

_CHUNK = 16


def _apply(function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    return [function(item) for item in items]


def ordered_map(
    function: Callable[[Item], Result], items: Sequence[Item], workers: int, chunk: int = _CHUNK
) -> Iterator[Result]:
    """Yield ``function(item)`` for every item, in the order of ``items``.

    Only a few chunks are in flight at a time, so memory does not grow with ``len(items)``. Until a process has
    started, items are computed in this one.

    Args:
        function: a picklable function of one item; what it raises is raised here.
        items: what to map over.
        workers: number of processes; 0 computes in this process. A set too small to pay for
            starting processes is also computed here.
        chunk: items that a process is given at a time.

    Raises:
        DataError: a process dies.
    """
    if workers < 1 or len(items) < 16 * chunk:
        yield from map(function, items)
        return
    pool = ProcessPoolExecutor(workers, worker_context(), initializer=end_with_parent)
    waiting: deque[Future[list[Result]]] = deque()
    try:
        starts = [pool.submit(started) for _ in range(workers)]
        here = 0
        while here < len(items) and not starts[0].done():
            yield function(items[here])
            here += 1
        for start in range(here, len(items), chunk):
            waiting.append(pool.submit(_apply, function, items[start : start + chunk]))
            if len(waiting) > 4 * workers:
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()
    except BrokenProcessPool as error:
        end_broken(pool)
        raise DataError(
            "a worker process died: free memory, or take fewer workers (data.workers) or 0"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
