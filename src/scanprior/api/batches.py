"""Work on a stream of images, some at a time: computed side by side while the next ones come."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, wait
from itertools import chain, islice
from typing import TypeVar

import torch

from scanprior.api.reading import Reading
from scanprior.engine import Halves, Reporter
from scanprior.engine.memory import is_out_of_memory
from scanprior.errors import DataError

Made = TypeVar("Made")
Work = Callable[[Sequence[Reading]], Made]


def worked(
    readings: Iterator[Reading], work: Work[Made], size: int, reporter: Reporter
) -> Iterator[list[Made]]:
    """Yield what ``work`` makes of the parts of every batch, in the order of the images.

    Half of the images that are held are computed, in two parts side by side; the other half has been read, or is. From
    when memory has run out one part is computed at a time, of fewer images.

    Args:
        readings: images.
        work: may be called by two threads at a time, and again with images that memory ran out with.
        size: images held at a time.
        reporter: is told when memory runs out.

    Raises:
        DataError: not even one image fits into memory.
    """
    batch = max(1, size // 2)
    halves = Halves(torch.get_num_threads())
    try:
        left = yield from _side_by_side(readings, work, batch, halves)
    finally:
        halves.close()
    if left:
        yield from _one_by_one(chain(left, readings), work, _fewer(batch, reporter), reporter)


def _side_by_side(
    readings: Iterator[Reading], work: Work[Made], size: int, halves: Halves
) -> Generator[list[Made], None, list[Reading]]:
    """Work until the images end, or memory does; return those that were under way then."""
    under_way: deque[tuple[list[Reading], list[Future[Made]]]] = deque()
    while True:
        while len(under_way) < 2 and (batch := list(islice(readings, size))):
            under_way.append((batch, halves.begin(work, batch)))
        if not under_way:
            return []
        try:
            made = [part.result() for part in under_way[0][1]]
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            wait([part for _, parts in under_way for part in parts])
            return [reading for batch, _ in under_way for reading in batch]
        under_way.popleft()
        yield made


def _one_by_one(
    readings: Iterator[Reading], work: Work[Made], size: int, reporter: Reporter
) -> Iterator[list[Made]]:
    """Work on one batch at a time; of half as many images from when memory has run out."""
    while batch := list(islice(readings, size)):
        while batch:
            try:
                made = work(batch[:size])
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                if size == 1:
                    raise DataError(f"{batch[0].reference}: memory ran out with this image alone") from error
                size = _fewer(size, reporter)
                continue
            batch = batch[size:]
            yield [made]


def _fewer(size: int, reporter: Reporter) -> int:
    """Return how many images to go on with where memory ran out with so many."""
    size = max(1, size // 2)
    reporter.note(f"memory ran out: going on with {size} images at a time")
    return size
