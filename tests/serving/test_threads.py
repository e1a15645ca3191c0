"""Batches are computed two at a time, each in its share of the cores; explanations alone."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

import pytest
import torch

from scanprior.serving.batching import Batches
from scanprior.serving.threads import NetworkThreads


@asynccontextmanager
async def started(cores: int) -> AsyncIterator[NetworkThreads]:
    before = torch.get_num_threads()
    threads = NetworkThreads(cores)
    try:
        yield threads
    finally:
        threads.close()
        torch.set_num_threads(before)


def run(test: Callable[[NetworkThreads], Awaitable[None]], cores: int) -> None:
    async def whole() -> None:
        async with started(cores) as threads:
            await asyncio.wait_for(test(threads), 60)

    asyncio.run(whole())


def test_two_batches_share_the_cores_and_one_has_all() -> None:
    both = threading.Barrier(2)

    def together() -> int:
        both.wait(30)  # not passed by one after the other
        return torch.get_num_threads()

    async def test(threads: NetworkThreads) -> None:
        assert await threads.compute(torch.get_num_threads) == 4
        assert sorted(await asyncio.gather(*(threads.compute(together) for _ in range(2)))) == [2, 4]
        assert torch.get_num_threads() == 4
        assert await threads.compute(torch.get_num_threads) == 4

    run(test, cores=4)


def test_on_one_core_there_is_one_at_a_time() -> None:
    async def test(threads: NetworkThreads) -> None:
        assert threads.at_a_time == 1
        await threads.acquire()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(threads.acquire(), 0.01)

    run(test, cores=1)


def test_what_is_alone_waits_for_batches_and_they_for_it() -> None:
    events: list[str] = []

    async def test(threads: NetworkThreads) -> None:
        go = threading.Event()

        def compute(items: Sequence[str]) -> Sequence[str]:
            go.wait(30)
            events.extend(items)
            return items

        async def explain(name: str) -> None:
            async with threads.alone():
                await threads.compute(lambda: events.append(name))

        batches = Batches(compute, threads, size=1)
        batches.start()
        first = asyncio.create_task(batches.answer("first"))
        await asyncio.sleep(0.01)  # it is under way
        others = [asyncio.create_task(explain(name)) for name in ("one", "other")]
        await asyncio.sleep(0.01)
        last = asyncio.create_task(batches.answer("last"))
        await asyncio.sleep(0.01)
        assert events == []
        go.set()
        await asyncio.gather(first, *others, last)
        await batches.close()

    run(test, cores=2)
    assert events[0] == "first" and sorted(events) == ["first", "last", "one", "other"]


def test_batches_under_way_are_cancelled_when_it_stops() -> None:
    async def test(threads: NetworkThreads) -> None:
        go = threading.Event()

        def compute(items: Sequence[int]) -> Sequence[int]:
            go.wait(30)
            return items

        batches = Batches(compute, threads, size=1)
        batches.start()
        waiting = [asyncio.create_task(batches.answer(n)) for n in range(5)]  # two computed, three waiting
        await asyncio.sleep(0.05)
        closing = asyncio.create_task(batches.close())
        await asyncio.sleep(0.01)
        go.set()
        await closing
        found = await asyncio.gather(*waiting, return_exceptions=True)
        assert all(isinstance(one, asyncio.CancelledError) for one in found)
        for _ in range(threads.at_a_time):  # none is kept
            await asyncio.wait_for(threads.acquire(), 1)

    run(test, cores=2)
