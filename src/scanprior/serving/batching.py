"""Images of concurrent requests go through the network together."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from contextlib import suppress
from typing import Generic, TypeVar

Item = TypeVar("Item")
Answer = TypeVar("Answer")

LONGEST_WAIT = 0.5
"""Of the first item of a batch, for those that are announced: a share of the time that the last batch took."""
QUIET = 0.1
"""Without news after which those who were answered are not waited for: a share of the time that the last batch took."""


class Batches(Generic[Item, Answer]):
    """Collects items until a batch is full, or no more are known or likely to come, or the first has waited enough.

    While a batch is computed the next one gathers. Whoever is answered often brings the next item at once: as many as
    there were together are waited for while one comes soon after the other, so that all go together again, not in two
    batches by turns. An item that comes alone waits for nothing.

    Args:
        compute: gives an answer for each item of a batch; runs in ``executor``.
        executor: with one thread, as a network is not to be used by several at a time.
        size: items of a batch at most.
        patience: seconds that the first item waits for those that are announced, or ``LONGEST_WAIT`` if that is more.
        computed: is told the size of every batch and the seconds it took.
    """

    def __init__(
        self,
        compute: Callable[[Sequence[Item]], Sequence[Answer]],
        executor: Executor,
        *,
        size: int,
        patience: float = 0.02,
        computed: Callable[[int, float], None] = lambda size, seconds: None,
    ) -> None:
        self._compute, self._executor, self.size = compute, executor, size
        self._patience, self._computed = patience, computed
        self._waiting: deque[tuple[Item, asyncio.Future[Answer]]] = deque()
        self._some, self._enough = asyncio.Event(), asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.expected = 0
        self._together = 0  # items that there were when the last batch was done; 0 = they have gone
        self._seconds = 0.0  # that the last batch took
        self._news = 0.0  # when an item was last announced, or came, or was answered

    def start(self) -> None:
        """Begin to work, in the loop that runs."""
        self._task = asyncio.get_running_loop().create_task(self._work())

    async def close(self) -> None:
        """Stop; whoever waits, also for the batch under way, is cancelled."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
        while self._waiting:
            self._waiting.popleft()[1].cancel()

    def announce(self) -> None:
        """Say that an item is on its way; ``arrived`` must follow."""
        self.expected += 1
        self._note_news()

    def arrived(self) -> None:
        """Say that an item that was announced is here, or will not come."""
        self.expected -= 1
        self._note_news()

    async def answer(self, item: Item) -> Answer:
        """Return the answer for an item."""
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, future))
        self._some.set()
        self._note_news()
        return await future

    async def _work(self) -> None:
        while True:
            await self._gather()
            taken = [self._waiting.popleft() for _ in range(min(self.size, len(self._waiting)))]
            batch = [(item, future) for item, future in taken if not future.done()]  # some have gone away
            try:
                await self._answered(batch)
            except asyncio.CancelledError:
                for _, future in batch:
                    future.cancel()
                raise

    async def _answered(self, batch: list[tuple[Item, asyncio.Future[Answer]]]) -> None:
        """Compute a batch; where that fails each of its items alone, so that one fails for itself only."""
        if not batch:
            return
        loop = asyncio.get_running_loop()
        begun = loop.time()
        try:
            answers = await loop.run_in_executor(self._executor, self._compute, [item for item, _ in batch])
            pairs = list(zip(batch, answers, strict=True))
        except Exception as error:
            if len(batch) > 1:
                for one in batch:
                    await self._answered([one])
            elif not batch[0][1].done():
                batch[0][1].set_exception(error)
            return
        self._news = loop.time()
        self._seconds = self._news - begun
        self._together = len(batch) + len(self._waiting) + self.expected
        self._computed(len(batch), self._seconds)
        for (_, future), answer in pairs:
            if not future.done():
                future.set_result(answer)

    async def _gather(self) -> None:
        """Wait until there is a batch to compute."""
        while not self._waiting:
            self._some.clear()
            await self._some.wait()
        loop = asyncio.get_running_loop()
        longest = loop.time() + max(self._patience, LONGEST_WAIT * self._seconds)
        while not self._complete:
            end = longest if self.expected else min(longest, self._news + QUIET * self._seconds)
            if (left := end - loop.time()) <= 0:
                return
            self._enough.clear()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._enough.wait(), left)

    @property
    def _complete(self) -> bool:
        """Whether no more items are waited for."""
        there = len(self._waiting)
        return there >= self.size or (not self.expected and there >= self._together)

    def _note_news(self) -> None:
        """Look again whether there is enough; those who were answered have gone if all was quiet for too long."""
        now = asyncio.get_running_loop().time()
        if now - self._news > QUIET * self._seconds:
            self._together = 0
        self._news = now
        if self._complete:
            self._enough.set()
