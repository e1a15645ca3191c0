"""Uploads are decoded in processes of their own: a file that stops or stalls one of them stops nothing else."""

from __future__ import annotations

import asyncio
import re
import signal
import threading
from collections.abc import Mapping
from concurrent.futures import TimeoutError as TookTooLong
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from pebble import ProcessExpired, ProcessPool

from scanprior.api.reading import Reading
from scanprior.data.preprocessing import Form, Preprocessing
from scanprior.data.readers import Upload, at_most, read_image
from scanprior.workers import end_with_parent, started, worker_context

_DAMAGED_DICOM = "damaged or truncated DICOM"
_QUOTED_KIND = re.compile(r" \(modality .*?\)(?=:)", re.S)
_QUOTED_VALUE = re.compile(r"(PhotometricInterpretation|VOILUTFunction|transfer syntax) .* (is not)", re.S)
_AT_A_TIME = 2
"""Files that a process has been given: one that it decodes, and the next."""
_GRACE = 10.0
"""Seconds beyond its own after which a pool of processes that does not answer is given up and made anew."""


class Decoders:
    """A few processes that decode uploads.

    Args:
        workers: how many, at least 1.
        pixels: more than these an image may not have.
        seconds: that a file may take.
    """

    def __init__(self, workers: int, pixels: int, seconds: float) -> None:
        self.pixels, self.seconds, self._workers = pixels, seconds, workers
        self._pool = self._made()
        # Few, so that what waits for long is not counted against time limits; two each, so that no process waits
        # for its next file until an event loop under load comes to it.
        self._free = asyncio.Semaphore(_AT_A_TIME * workers)

    async def start(self) -> None:
        """Start the processes before the first upload needs one."""
        starting = [self._pool.schedule(started) for _ in range(self._workers)]
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
        async with self._free:
            pool = self._pool
            longest = _AT_A_TIME * self.seconds + _GRACE
            watch = asyncio.timeout(longest)  # pebble's own needs a lock that a dead process may hold
            try:
                async with watch:
                    return await asyncio.wrap_future(self._schedule(upload, dict(forms), frame, original))
            except TookTooLong:
                if watch.expired():
                    self._renew(pool)
                return _refused(f"to read it takes longer than the {self.seconds:g} seconds allowed")
            except (ProcessExpired, BrokenProcessPool):
                return _refused(
                    "its decoder stopped: the file is damaged, or too large for the memory there is"
                )

    def close(self) -> None:
        """End the processes."""
        _end(self._pool)

    def _schedule(self, *arguments: Any) -> Any:
        work = [*arguments, self.pixels]
        try:
            return self._pool.schedule(_decode, args=work, timeout=self.seconds)
        except RuntimeError:  # a process died with nothing to do, and pebble gives up on the others
            self._renew(self._pool)
            return self._pool.schedule(_decode, args=work, timeout=self.seconds)

    def _renew(self, broken: ProcessPool) -> None:
        """Put new processes in the place of ones that do not answer, unless somebody has."""
        if self._pool is broken:
            self._pool = self._made()
            threading.Thread(target=_end, args=(broken,), daemon=True).start()

    def _made(self) -> ProcessPool:
        context = worker_context(home=__name__)
        return ProcessPool(self._workers, context=context, initializer=_begin)


def _begin() -> None:
    """Let a process be ended while it is in a library, which a handler of Python's would wait for."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    end_with_parent()


def _end(pool: ProcessPool) -> None:
    pool.stop()  # type: ignore[no-untyped-call]
    pool.join()


def _refused(reason: str) -> Reading:
    return Reading("", {}, error=reason)


def _decode(
    upload: Upload, forms: Mapping[Form, Preprocessing], frame: int | None, original: bool, pixels: int
) -> Reading:
    """Decode an upload in a worker process."""
    try:
        with at_most(pixels):
            reading = Reading.of("", lambda: read_image(upload, frame=frame), forms, original)
    except Exception as error:  # a fault of ours, or no memory; what it says may quote the file
        return _refused(f"it cannot be decoded ({type(error).__name__})")
    return reading if reading.error is None else _refused(unquoted(reading.error))


def unquoted(reason: str) -> str:
    """Return the reason why a file cannot be read without what it may quote of the header: somebody's text, perhaps."""
    if reason.startswith(_DAMAGED_DICOM):
        return _DAMAGED_DICOM  # the rest is what a library says
    return _QUOTED_VALUE.sub(r"\1 \2", _QUOTED_KIND.sub("", reason))
