"""Files of a request, held in memory: never on a disk, never more than is allowed, never for ever."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from pathlib import PurePosixPath

from fastapi import HTTPException, Request
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect

from scanprior.data.readers import IMAGE_SUFFIXES, Upload
from scanprior.serving.limits import Limits

FIELD = "files"
"""Name of the multipart field."""

BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": [FIELD],
                    "properties": {
                        FIELD: {
                            "type": "array",
                            "items": {"type": "string", "format": "binary"},
                            "description": "DICOM, PNG, JPEG, TIFF or BMP files, one or many",
                        }
                    },
                }
            }
        },
    }
}
"""The body of a request in the description of the interface."""


class _Form(MultiPartParser):
    """A multipart form that knows whether its end has come."""

    ended = False

    def on_end(self) -> None:
        super().on_end()
        self.ended = True


class _Held:
    """What has come of one request."""

    def __init__(self, desk: Desk) -> None:
        self.desk, self.bytes = desk, 0

    def add(self, count: int) -> None:
        self.bytes += count
        self.desk.held += count


class Desk:
    """Receives the files of requests, and knows how many bytes of them are held."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.held = 0

    @asynccontextmanager
    async def received(self, request: Request, most: int | None = None) -> AsyncIterator[list[Upload]]:
        """Give the files of a multipart request, and count what has come of it for as long as they are needed.

        Names of files are not kept: of each only its suffix, and only that of an image.

        Args:
            request: the request.
            most: files, if fewer than ``limits.files``.

        Raises:
            HTTPException: 408 if it arrives too slowly, 413 if it is too large, 415 if it is no multipart form, 400
                or 422 if it is no good one, 429 if too much is held already.
        """
        own = _Held(self)
        try:
            yield await self._receive(request, min(most or self.limits.files, self.limits.files), own)
        finally:
            self.held -= own.bytes

    async def _receive(self, request: Request, most: int, own: _Held) -> list[Upload]:
        kind = request.headers.get("content-type", "")
        if kind.partition(";")[0].strip().lower() != "multipart/form-data":
            raise HTTPException(
                415, f"send the files as multipart/form-data in the field {FIELD!r}, not as {kind[:80]!r}"
            )
        announced = request.headers.get(
            "content-length", ""
        )  # of digits alone, or the request had been refused
        if announced and int(announced[:20]) > self.limits.upload_bytes:
            raise self._too_large()
        parser = _Form(
            request.headers, self._counted(request, own), max_files=most, max_fields=8, max_part_size=4096
        )
        parser.spool_max_size = self.limits.upload_bytes + 1  # beyond which Python would write to a disk
        try:
            async with asyncio.timeout(self.limits.upload_seconds):
                form = await parser.parse()
        except TimeoutError:
            raise HTTPException(
                408, f"the upload takes longer than {self.limits.upload_seconds} seconds"
            ) from None
        except MultiPartException as error:
            what = f"at most {most} files are taken at a time" if "Too many files" in error.message else None
            raise HTTPException(413 if what else 400, what or "the multipart form is damaged") from None
        except UnicodeError:  # a name in an encoding that is none
            raise HTTPException(400, "the multipart form is damaged") from None
        except ClientDisconnect:
            raise HTTPException(400, "the upload was cut off") from None
        try:
            if not parser.ended:
                raise HTTPException(400, "the multipart form was cut off: its end is missing")
            return self._files(form.multi_items())
        finally:
            await form.close()

    def _files(self, items: list[tuple[str, UploadFile | str]]) -> list[Upload]:
        found = [value for name, value in items if name == FIELD and isinstance(value, UploadFile)]
        if not found:
            raise HTTPException(422, f"no file in the field {FIELD!r} of the form")
        return [Upload(file.file.read(), f"image{_suffix(file.filename)}") for file in found]

    async def _counted(self, request: Request, own: _Held) -> AsyncGenerator[bytes, None]:
        async for chunk in request.stream():
            own.add(len(chunk))
            if own.bytes > self.limits.upload_bytes:
                raise self._too_large()
            if self.held > self.limits.memory_mb * 1_000_000:
                raise HTTPException(429, "too many uploads at a time; try again", {"Retry-After": "1"})
            yield chunk

    def _too_large(self) -> HTTPException:
        return HTTPException(413, f"the request is larger than {self.limits.upload_mb} MB")


def _suffix(name: str | None) -> str:
    suffix = PurePosixPath(name or "").suffix.lower()
    return suffix if suffix in IMAGE_SUFFIXES else ""
