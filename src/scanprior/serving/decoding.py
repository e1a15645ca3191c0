"""Uploads are decoded in processes of their own: a file that stops or stalls one of them stops nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from concurrent.futures import TimeoutError as TookTooLong

from pebble import ProcessExpired, ProcessPool

from scanprior.api.reading import Reading
from scanprior.data.preprocessing import Form, Preprocessing
from scanprior.data.readers import Upload, at_most, read_image
from scanprior.workers import end_with_parent, worker_context

_DAMAGED_DICOM = "damaged or truncated DICOM"


class Decoders:
    """A few processes that decode uploads.

    Args:
        workers: how many.
        pixels: more than these an image may not have.
        seconds: that a file may take.
    """

    def __init__(self, workers: int, pixels: int, seconds: float) -> None:
        self.pixels, self.seconds, self._workers = pixels, seconds, workers
        context = worker_context()
        context.set_forkserver_preload([__name__])  # imported once: one that was ended is replaced at once
        self._pool = ProcessPool(workers, context=context, initializer=end_with_parent)

    async def start(self) -> None:
        """Start the processes, which takes seconds, before the first upload needs one."""
        starting = [self._pool.schedule(_ready) for _ in range(self._workers)]
        await asyncio.gather(*map(asyncio.wrap_future, starting))

    async def read(
        self,
        upload: Upload,
        forms: Mapping[Form, Preprocessing],
        *,
        frame: int | None = None,
        original: bool = False,
    ) -> Reading:
        """Decode an upload.

        Args:
            upload: the file.
            forms: that the networks need.
            frame: of a file of several, from 0; None = the first.
            original: whether the decoded image is wanted, too.
        """
        work = self._pool.schedule(
            _decode, args=[upload, dict(forms), frame, original, self.pixels], timeout=self.seconds
        )
        try:
            return await asyncio.wrap_future(work)
        except TookTooLong:
            return _refused(f"to read it takes longer than the {self.seconds:g} seconds allowed")
        except ProcessExpired:
            return _refused("its decoder stopped: the file is damaged, or too large for the memory there is")

    def close(self) -> None:
        """End the processes."""
        self._pool.stop()  # type: ignore[no-untyped-call]
        self._pool.join()


def _refused(reason: str) -> Reading:
    return Reading("", {}, error=reason)


def _ready() -> None:
    """Do nothing, in a process that has started."""


def _decode(
    upload: Upload, forms: Mapping[Form, Preprocessing], frame: int | None, original: bool, pixels: int
) -> Reading:
    """Decode an upload in a worker process."""
    with at_most(pixels):
        reading = Reading.of("", lambda: read_image(upload, frame=frame), forms, original)
    if reading.error is not None and reading.error.startswith(_DAMAGED_DICOM):
        return _refused(_DAMAGED_DICOM)  # what a library says of it may quote the header
    return reading
