"""Batches in two halves side by side."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TypeVar

import torch

Item = TypeVar("Item")
Answer = TypeVar("Answer")
Made = TypeVar("Made")


class Halves:
    """Two threads, each with half of the cores, that compute the halves of a batch side by side.

    Threads that share the work on every layer wait for each other at every layer, and the longer the more of a core
    other work takes, such as reading images or answering requests; halves wait for each other once a batch. With one
    core a batch stays whole.

    Args:
        cores: threads of PyTorch that both take together.
    """

    def __init__(self, cores: int) -> None:
        self._threads = None if cores < 2 else _started(2, cores // 2)
        torch.set_num_threads(cores)  # of all other threads, whose number the last call would decide

    def begin(self, compute: Callable[[Sequence[Item]], Made], items: Sequence[Item]) -> list[Future[Made]]:
        """Begin to compute a batch, after those that were begun before.

        Returns:
            What is made of each half; of one item, with all cores, it is made already.
        """
        if self._threads is None or len(items) < 2:
            return [_made(compute, items)]
        middle = (len(items) + 1) // 2
        return [self._threads.submit(compute, part) for part in (items[:middle], items[middle:])]

    def __call__(
        self, compute: Callable[[Sequence[Item]], Sequence[Answer]], items: Sequence[Item]
    ) -> list[Answer]:
        """Return an answer for each item; of several half of them is computed by each thread.

        Raises:
            Exception: what ``compute`` raises, once both halves have ended.
        """
        halves = self.begin(compute, items)
        wait(halves)
        return [answer for half in halves for answer in half.result()]

    def close(self) -> None:
        """End the threads; what was begun and no thread has taken up yet is not computed."""
        if self._threads is not None:
            self._threads.shutdown(cancel_futures=True)


def _made(compute: Callable[[Sequence[Item]], Made], items: Sequence[Item]) -> Future[Made]:
    """Compute in this thread."""
    future: Future[Made] = Future()
    try:
        future.set_result(compute(items))
    except Exception as error:  # raised where the result is asked for, as another thread's would be
        future.set_exception(error)
    return future


def _started(threads: int, cores: int) -> ThreadPoolExecutor:
    """Return threads that run, each of which computes on so many cores."""
    made = ThreadPoolExecutor(threads, "network-half", initializer=_take_cores, initargs=(cores,))
    all_there = threading.Barrier(threads)
    for start in [made.submit(all_there.wait) for _ in range(threads)]:
        start.result()
    return made


def _take_cores(cores: int) -> None:
    """Let this thread alone compute on so many cores."""
    torch.get_num_threads()  # a thread that has not asked takes the number of the others when it first computes
    torch.set_num_threads(cores)
