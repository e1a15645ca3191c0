"""Map a function over many items in worker processes, in order, with memory that stays flat."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from typing import Generic, TypeVar

from scanprior.errors import DataError
from scanprior.workers import end_broken, end_with_parent, started, worker_context

Item = TypeVar("Item")
Result = TypeVar("Result")

_CHUNK = 16


def _apply(function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    return [function(item) for item in items]


class _Chunks(Generic[Item, Result]):
    """Chunks of items under way, in order; while the first of them is waited for, others are computed here."""

    def __init__(self, pool: ProcessPoolExecutor, function: Callable[[Item], Result]) -> None:
        self.pool, self.function = pool, function
        self.waiting: deque[tuple[Sequence[Item], Future[list[Result]]]] = deque()

    def __len__(self) -> int:
        return len(self.waiting)

    def add(self, items: Sequence[Item]) -> None:
        self.waiting.append((items, self.pool.submit(_apply, self.function, items)))

    def first(self) -> list[Result]:
        """Return the results of the first chunk, which is no longer under way then."""
        _, future = self.waiting.popleft()
        while not future.done() and self._help():
            pass
        return future.result()

    def _help(self) -> bool:
        """Compute the next chunk that no process has taken up yet; False where there is none."""
        for place, (items, future) in enumerate(self.waiting):
            if future.cancel():
                here: Future[list[Result]] = Future()
                try:
                    here.set_result(_apply(self.function, items))
                except Exception as error:  # raised when it is this chunk's turn
                    here.set_exception(error)
                self.waiting[place] = (items, here)
                return True
        return False


def ordered_map(
    function: Callable[[Item], Result], items: Sequence[Item], workers: int, chunk: int = _CHUNK
) -> Iterator[Result]:
    """Yield ``function(item)`` for every item, in the order of ``items``.

    Only a few chunks are in flight at a time, so memory does not grow with ``len(items)``. Until a process has
    started, and while this one would wait for others, items are computed in this one too.

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
    whole = function.func if isinstance(function, partial) else function
    context = worker_context(home=whole.__module__)
    pool = ProcessPoolExecutor(workers, context, initializer=end_with_parent)
    under_way = _Chunks(pool, function)
    try:
        starts = [pool.submit(started, function) for _ in range(workers)]
        here = 0
        while here < len(items) and not starts[0].done():
            yield function(items[here])
            here += 1
        for start in range(here, len(items), chunk):
            under_way.add(items[start : start + chunk])
            if len(under_way) > 4 * workers:
                yield from under_way.first()
        while under_way:
            yield from under_way.first()
    except BrokenProcessPool as error:
        end_broken(pool)
        raise DataError(
            "a worker process died: free memory, or take fewer workers (data.workers) or 0"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
