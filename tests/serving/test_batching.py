"""Which images go through the network together, in a time of the test's own."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Executor, Future
from typing import Any

import pytest

from scanprior.serving.batching import LONGEST_WAIT, QUIET, Batches

SECONDS = 0.1
"""That every batch takes."""
PATIENCE = 0.02


class Clock(selectors.SelectSelector):
    """Whoever waits has waited."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        assert timeout is not None, "everybody waits for ever"
        self.now += max(timeout, 0)
        return super().select(0)


class Loop(asyncio.SelectorEventLoop):
    """A loop whose time is that of the clock."""

    def __init__(self) -> None:
        self.clock = Clock()
        super().__init__(self.clock)

    def time(self) -> float:
        return self.clock.now


class Network(Executor):
    """Takes ``SECONDS`` for whatever it is given."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **options: Any) -> Future[Any]:
        future: Future[Any] = Future()
        asyncio.get_running_loop().call_later(SECONDS, lambda: future.set_result(fn(*args)))
        return future


class Bench:
    """Batches of at most eight items, and how large they were."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.batches: Batches[float, float] = Batches(self._compute, Network(), size=8, patience=PATIENCE)
        self.batches.start()

    def _compute(self, items: Sequence[float]) -> Sequence[float]:
        self.sizes.append(len(items))
        return items

    async def waited(self, after: float = 0.0, decoding: float | None = None) -> float:
        """Return the seconds that an item took from when it was there; it may be announced before."""
        await asyncio.sleep(after)
        if decoding is not None:
            self.batches.announce()
            await asyncio.sleep(decoding)
            self.batches.arrived()
        begun = asyncio.get_running_loop().time()
        await self.batches.answer(begun)
        return asyncio.get_running_loop().time() - begun


def run(work: Callable[[Bench], Coroutine[Any, Any, None]]) -> None:
    async def whole() -> None:
        bench = Bench()
        await work(bench)
        await bench.batches.close()

    with asyncio.Runner(loop_factory=Loop) as runner:
        runner.run(whole())


def test_who_comes_alone_waits_for_nothing() -> None:
    async def work(bench: Bench) -> None:
        assert await bench.waited() == pytest.approx(SECONDS)
        assert await bench.waited() == pytest.approx(SECONDS)  # and again at once
        await asyncio.gather(*(bench.waited() for _ in range(8)))
        assert await bench.waited(after=2 * QUIET * SECONDS, decoding=0.001) == pytest.approx(SECONDS)

    run(work)


def test_who_comes_back_soon_goes_with_the_others_again() -> None:
    async def work(bench: Bench) -> None:
        async def client(number: int) -> None:
            await asyncio.sleep(0.005 * number)
            for _ in range(4):
                await bench.waited(after=0.003, decoding=0.001)

        await asyncio.gather(*(client(number) for number in range(6)))
        assert bench.sizes == [1, 6, 6, 6, 5]

    run(work)


def test_who_does_not_come_back_is_waited_for_but_shortly() -> None:
    async def work(bench: Bench) -> None:
        await asyncio.gather(*(bench.waited() for _ in range(6)))
        waits = await asyncio.gather(*(bench.waited(after=0.001 * number) for number in range(3)))
        assert bench.sizes == [6, 3]
        assert max(waits) == pytest.approx(0.002 + (QUIET + 1) * SECONDS)
        one_of_three = await bench.waited(after=0.001)
        assert one_of_three == pytest.approx((QUIET + 1) * SECONDS)

    run(work)


def test_announced_items_are_waited_for_so_long_and_no_longer() -> None:
    async def work(bench: Bench) -> None:
        soon = asyncio.gather(bench.waited(), bench.waited(decoding=PATIENCE / 2))
        assert await soon == pytest.approx([PATIENCE / 2 + SECONDS, SECONDS])
        await asyncio.sleep(1)
        late = asyncio.gather(bench.waited(), bench.waited(decoding=2 * SECONDS))
        assert (await late)[0] == pytest.approx((LONGEST_WAIT + 1) * SECONDS)
        assert bench.sizes == [2, 1, 1]

    run(work)


def test_a_full_batch_goes_at_once() -> None:
    async def work(bench: Bench) -> None:
        announced = asyncio.create_task(bench.waited(decoding=10.0))
        waits = await asyncio.gather(*(bench.waited(after=0.0001 * number) for number in range(8)))
        assert bench.sizes == [8] and min(waits) == pytest.approx(SECONDS)
        await announced

    run(work)


def test_whoever_waits_when_it_closes_is_cancelled() -> None:
    async def work(bench: Bench) -> None:
        under_way = asyncio.create_task(bench.waited())
        later = asyncio.create_task(bench.waited(after=SECONDS / 2))
        await asyncio.sleep(SECONDS * 0.8)
        await bench.batches.close()
        for task in (under_way, later):
            with pytest.raises(asyncio.CancelledError):
                await task
        assert not any(bench.sizes)

    run(work)
