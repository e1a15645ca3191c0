"""What answers requests: decoders, batches and networks, with as much under way as the limits allow."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from fastapi import HTTPException

from scanprior.api.reading import Reading, default_workers
from scanprior.data.readers import Upload
from scanprior.engine import Halves
from scanprior.serving.batching import Batches
from scanprior.serving.counting import Counts
from scanprior.serving.decoding import Decoders
from scanprior.serving.limits import Limits
from scanprior.serving.served import Answer, Served, explained, picture
from scanprior.serving.uploads import Desk

log = logging.getLogger("scanprior.serving")


class Service:
    """What the routes share.

    Args:
        served: the runs, by name; the first answers where none is named.
        limits: what a request may ask for.
        workers: processes that decode.
        folder: of runs and studies to browse; None = none.
    """

    def __init__(
        self,
        served: Mapping[str, Served],
        limits: Limits,
        *,
        workers: int | None = None,
        folder: Path | None = None,
    ) -> None:
        self.served, self.limits, self.folder = served, limits, folder
        self.counts, self.desk = Counts(), Desk(limits)
        self._workers = default_workers() if workers is None else workers
        self._waiting = 0

    async def start(self) -> None:
        """Begin to work, in the loop that runs."""
        limits = self.limits
        self._thread = ThreadPoolExecutor(1, "network")  # one at a time uses the networks
        self._halves = Halves(torch.get_num_threads())
        self._originals = asyncio.Semaphore(
            2
        )  # images and masks of full size are many times as large as what was sent
        self._decoders = Decoders(self._workers, limits.pixels, limits.read_seconds)
        await self._decoders.start()
        self._batches: dict[str, Batches[Reading, Answer]] = {}
        for name, served in self.served.items():
            self._batches[name] = Batches(
                partial(self._halves, served),
                self._thread,
                size=limits.batch_size,
                computed=partial(self._computed, name),
            )
            self._batches[name].start()

    async def close(self) -> None:
        """Stop working."""
        for batches in self._batches.values():
            await batches.close()
        await asyncio.to_thread(self._decoders.close)
        self._thread.shutdown()
        self._halves.close()

    def model(self, name: str | None) -> Served:
        """Return a run by its name.

        Raises:
            HTTPException: 404 if there is none.
        """
        if name is None:
            return next(iter(self.served.values()))
        if name not in self.served:
            raise HTTPException(404, f"there is no such model; there are: {', '.join(self.served)}")
        return self.served[name]

    async def predict(
        self, served: Served, uploads: Sequence[Upload], frame: int | None, similar: int
    ) -> list[dict[str, Any]]:
        """Return what a run says of files, one entry each."""
        with self._queued(len(uploads)):
            return await asyncio.gather(
                *(
                    self._predicted(served, number, upload, frame, similar)
                    for number, upload in enumerate(uploads)
                )
            )

    async def _predicted(
        self, served: Served, number: int, upload: Upload, frame: int | None, similar: int
    ) -> dict[str, Any]:
        batches = self._batches[served.name]
        batches.announce()
        try:
            reading = await self._decoders.read(upload, served.forms, frame=frame)
        finally:
            batches.arrived()
        if reading.error is not None:
            self.counts.images.labels(served.name, "error").inc()
            return {"file": number, "error": reading.error}
        try:
            answer = await batches.answer(reading)
            drawn = {}
            if answer.drawn is not None:
                async with self._originals:
                    drawn = await asyncio.to_thread(answer.drawn)
        except Exception as error:  # of this image alone: the others of its batch have been answered
            return self._failed(served, number, error)
        self.counts.images.labels(served.name, "answered").inc()
        said = {
            "file": number,
            "error": None,
            "height": reading.height,
            "width": reading.width,
            "frames": reading.frames,
            **answer.said,
            **drawn,
        }
        if similar:
            said["similar"] = served.similar(answer, similar)
        return said

    async def explain(
        self,
        served: Served,
        uploads: Sequence[Upload],
        frame: int | None,
        class_name: str | None,
        method: str,
    ) -> list[dict[str, Any]]:
        """Return where a run looks in files, one entry each."""
        with self._queued(len(uploads)):
            return [
                await self._explained(served, number, upload, frame, class_name, method)
                for number, upload in enumerate(uploads)
            ]

    async def _explained(
        self,
        served: Served,
        number: int,
        upload: Upload,
        frame: int | None,
        class_name: str | None,
        method: str,
    ) -> dict[str, Any]:
        async with self._originals:
            reading = await self._decoders.read(upload, {}, frame=frame, original=True)
            if reading.original is None:
                return {"file": number, "error": reading.error}
            work = partial(explained, served, reading.original, class_name, method)
            try:
                said = await asyncio.get_running_loop().run_in_executor(self._thread, work)
            except Exception as error:
                return self._failed(served, number, error)
            return {"file": number, "error": None, **said}

    def _failed(self, served: Served, number: int, error: Exception) -> dict[str, Any]:
        """Return what is said of an image that the network fails on; the log is told the kind of error alone."""
        log.error("the network failed: %s", type(error).__name__)
        self.counts.images.labels(served.name, "failed").inc()
        return {"file": number, "error": "the network failed on this image"}

    async def picture(self, upload: Upload, frame: int | None) -> tuple[Reading, tuple[bytes, int, int, int]]:
        """Return an image to look at, see ``picture``.

        Raises:
            HTTPException: 422 if it cannot be read.
        """
        with self._queued(1):
            async with self._originals:
                return await self._pictured(upload, frame)

    async def _pictured(
        self, upload: Upload, frame: int | None
    ) -> tuple[Reading, tuple[bytes, int, int, int]]:
        reading = await self._decoders.read(upload, {}, frame=frame, original=True)
        if reading.original is None:
            raise HTTPException(422, str(reading.error))
        made = await asyncio.get_running_loop().run_in_executor(None, picture, reading.original)
        return reading, made

    @contextmanager
    def _queued(self, images: int) -> Iterator[None]:
        if self._waiting + images > self.limits.images_waiting:
            raise HTTPException(429, "too many images are waiting; try again", {"Retry-After": "1"})
        self._waiting += images
        self.counts.waiting.set(self._waiting)
        try:
            yield
        finally:
            self._waiting -= images
            self.counts.waiting.set(self._waiting)

    def _computed(self, name: str, size: int, seconds: float) -> None:
        self.counts.batch_size.labels(name).observe(size)
        self.counts.batch_seconds.labels(name).observe(seconds)
