"""The threads in which networks compute."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TypeVar

import torch

Result = TypeVar("Result")

AT_A_TIME = 2
"""Batches that are computed at a time, where there is more than one core."""


class NetworkThreads:
    """Threads for a few batches at a time, each in its share of the cores; one that comes alone has all of them.

    Two threads that share the work on every layer wait for each other at every layer, and the longer the more of a core
    the answering of requests takes. Two batches side by side do not wait: a server of EfficientNet-Lite0 under load
    answers 1.15 times as many images (128 px, two cores, 32 clients).

    Args:
        cores: threads of PyTorch that all batches together take.

    Attributes:
        at_a_time: how many batches.
    """

    def __init__(self, cores: int) -> None:
        self.at_a_time = min(AT_A_TIME, cores)
        self._free, self._one = asyncio.Semaphore(self.at_a_time), asyncio.Lock()
        self._computing = 0
        self._whole = _started("network", 1, cores)
        self._shares = _started("network-share", self.at_a_time, cores // self.at_a_time)
        torch.set_num_threads(cores)  # those of other threads, of which the last call decides

    async def acquire(self) -> None:
        """Wait until a batch may be computed; ``release`` must follow."""
        await self._free.acquire()

    def release(self) -> None:
        """Let another batch be computed."""
        self._free.release()

    async def compute(self, work: Callable[[], Result]) -> Result:
        """Do the work of a batch for which this was acquired."""
        threads = self._shares if self._computing else self._whole
        self._computing += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(threads, work)
        finally:
            self._computing -= 1

    @asynccontextmanager
    async def alone(self) -> AsyncIterator[None]:
        """Wait until no batch is computed, and let none but the caller's work be, within."""
        async with self._one, AsyncExitStack() as held:
            for _ in range(self.at_a_time):
                await held.enter_async_context(self._free)
            yield

    def close(self) -> None:
        """End the threads once their work is done."""
        self._whole.shutdown()
        self._shares.shutdown()


def _started(name: str, threads: int, cores: int) -> ThreadPoolExecutor:
    """Return threads that run, each of which computes on so many cores."""
    made = ThreadPoolExecutor(threads, name, initializer=_take_cores, initargs=(cores,))
    all_there = threading.Barrier(threads)
    for start in [made.submit(all_there.wait) for _ in range(threads)]:
        start.result()
    return made


def _take_cores(cores: int) -> None:
    """Let this thread alone compute on so many cores."""
    torch.get_num_threads()  # what is asked for first in a thread would take the number of the others later
    torch.set_num_threads(cores)
