"""The application: what can be asked over HTTP, and how it is answered."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, HTTPException, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST

from scanprior import __version__
from scanprior.api.reading import Reading, default_workers
from scanprior.data.readers import Upload
from scanprior.errors import ConfigError, ScanpriorError
from scanprior.reporting.model_card import RESEARCH_ONLY, model_card
from scanprior.saliency import METHODS
from scanprior.serving import pages, schema
from scanprior.serving.batching import Batches
from scanprior.serving.counting import Counts
from scanprior.serving.decoding import Decoders
from scanprior.serving.guard import COOKIE, Guard, is_session, session_of
from scanprior.serving.limits import Limits
from scanprior.serving.served import Answer, Served, explained, picture
from scanprior.serving.uploads import BODY, Desk

log = logging.getLogger("scanprior.serving")

MOST_EXPLAINED = 8
"""Files of one request to ``/explain``, which takes far longer than a prediction."""

_REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"model": schema.Problem, "description": reason}
    for status, reason in {
        400: "the form is damaged or was cut off",
        401: "the token is missing or wrong",
        403: "a page of another site sent it",
        404: "no such model",
        408: "the upload takes too long",
        413: "too large, or too many files",
        415: "no multipart form",
        422: "not one file could be read, or a parameter is wrong",
        429: "too much at a time",
    }.items()
}

ModelName = Annotated[str | None, Query(max_length=200, description="of /models; default the first")]
Each = Annotated[bool, Query(description="answer 200 with each file's error, even if not one could be read")]
Frame = Annotated[int | None, Query(ge=0, le=100_000, description="of a file of several, from 0")]


class Service:
    """What the routes share.

    Args:
        served: the runs, by name; the first answers where none is named.
        limits: what a request may ask for.
        workers: processes that decode.
        batching: whether images of several requests go through the network together.
        folder: of runs and studies to browse; None = none.
    """

    def __init__(
        self,
        served: Mapping[str, Served],
        limits: Limits,
        *,
        workers: int | None = None,
        batching: bool = True,
        folder: Path | None = None,
    ) -> None:
        self.served, self.limits, self.folder = served, limits, folder
        self.counts, self.desk = Counts(), Desk(limits)
        self._workers = default_workers() if workers is None else workers
        self._size = limits.batch_size if batching else 1
        self._waiting = 0

    async def start(self) -> None:
        """Begin to work, in the loop that runs."""
        limits = self.limits
        self._thread = ThreadPoolExecutor(1, "network")  # one at a time uses the networks
        self._originals = asyncio.Semaphore(2)  # decoded images are many times as large as what was sent
        self._decoders = Decoders(self._workers, limits.pixels, limits.read_seconds)
        await self._decoders.start()
        self._batches: dict[str, Batches[Reading, Answer]] = {}
        for name, served in self.served.items():
            self._batches[name] = Batches(
                served, self._thread, size=self._size, computed=partial(self._computed, name)
            )
            self._batches[name].start()

    async def close(self) -> None:
        """Stop working."""
        for batches in self._batches.values():
            await batches.close()
        await asyncio.to_thread(self._decoders.close)
        self._thread.shutdown()

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
        except Exception as error:  # of this image alone: the others of its batch have been answered
            log.error("the network failed: %s", type(error).__name__)
            self.counts.images.labels(served.name, "failed").inc()
            return {"file": number, "error": "the network failed on this image"}
        self.counts.images.labels(served.name, "answered").inc()
        said = {
            "file": number,
            "error": None,
            "height": reading.height,
            "width": reading.width,
            "frames": reading.frames,
            **answer.said,
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
            return {"file": number, "error": None, **await self._in_network(work)}

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

    async def _in_network(self, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

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


def create_app(service: Service, *, token: str | None = None, local: bool = True) -> FastAPI:
    """Return the application.

    Args:
        service: what answers.
        token: that requests have to carry; None = none.
        local: whether only requests to loopback are answered.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await service.start()
        yield
        await service.close()

    app = FastAPI(
        title="scanprior",
        version=__version__,
        description=f"Trained runs answer medical images. {RESEARCH_ONLY}",
        lifespan=lifespan,
        docs_url=None,  # they would load scripts from elsewhere
        redoc_url=None,
        openapi_url="/openapi.json",
    )
    app.add_exception_handler(RequestValidationError, _wrong_parameter)
    app.add_exception_handler(ConfigError, _wrong_choice)
    app.add_exception_handler(ScanpriorError, _gone)
    _answering(app, service)
    _telling(app, service)
    _entering(app, service.limits, token)
    pages.add_pages(app, service.folder)
    app.add_middleware(
        Guard,
        token=token,
        local=local,
        counts=service.counts,
        routes=frozenset(route.path for route in app.routes if hasattr(route, "path")),
    )
    return app


def _answering(app: FastAPI, service: Service) -> None:
    """Add the routes that take images."""

    @app.post("/predict", response_model=schema.Predictions, responses=_REFUSALS, openapi_extra=BODY)
    async def predict(
        request: Request,
        model: ModelName = None,
        frame: Frame = None,
        similar: Annotated[int, Query(ge=0, le=20, description="training images shown beside each")] = 0,
        each: Each = False,
    ) -> Response:
        """Say what is to be seen in images: probabilities, sets, how unlike the training images they are; or masks."""
        served = service.model(model)
        with service.desk.room_for(request):
            uploads = await service.desk.receive(request)
            return _results(served, await service.predict(served, uploads, frame, similar), each)

    @app.post("/explain", response_model=schema.Explanations, responses=_REFUSALS, openapi_extra=BODY)
    async def explain(
        request: Request,
        model: ModelName = None,
        frame: Frame = None,
        class_name: Annotated[
            str | None, Query(alias="class", max_length=200, description="default the predicted one")
        ] = None,
        method: Annotated[str, Query(description=f"auto, {', '.join(METHODS)}")] = "auto",
    ) -> Response:
        """Show where a classifier looks in images."""
        served = service.model(model)
        if served.explainer is None:
            raise HTTPException(422, f"{served.name} predicts masks: /predict shows them")
        if class_name is not None:
            served.explainer.check_class(class_name)
        if method not in served.methods:
            raise HTTPException(422, f"this method does not fit; these do: {', '.join(served.methods)}")
        with service.desk.room_for(request):
            uploads = await service.desk.receive(request, MOST_EXPLAINED)
            return _results(served, await service.explain(served, uploads, frame, class_name, method))

    @app.post(
        "/image",
        response_class=Response,
        responses={200: {"content": {"application/octet-stream": {}}}, **_REFUSALS},
        openapi_extra=BODY,
    )
    async def image(request: Request, frame: Frame = None) -> Response:
        """Decode one image to look at: rows of 16-bit little-endian pixels, their numbers in the headers."""
        with service.desk.room_for(request):
            uploads = await service.desk.receive(request, 1)
            reading, (data, height, width, channels) = await service.picture(uploads[0], frame)
        assert reading.original is not None
        told = {
            "X-Height": height, "X-Width": width, "X-Channels": channels, "X-Frames": reading.frames,
            "X-Bits": reading.original.source_bits,
        }  # fmt: skip
        headers = {name: str(value) for name, value in told.items()}
        return Response(data, media_type="application/octet-stream", headers=headers)


def _telling(app: FastAPI, service: Service) -> None:
    """Add the routes that tell of the models and of the server."""

    @app.get("/models", response_model=list[schema.Model])
    async def models() -> Response:
        """List the runs that answer, the default one first."""
        return JSONResponse([_about(served) for served in service.served.values()])

    @app.get("/models/{name}/card", response_class=PlainTextResponse, responses={404: _REFUSALS[404]})
    def card(name: str) -> Response:
        """Return the model card of a run, as Markdown."""
        return PlainTextResponse(model_card(service.model(name).run), media_type="text/markdown")

    @app.get("/models/{name}/card.html", response_class=HTMLResponse, include_in_schema=False)
    def card_page(name: str) -> Response:
        return HTMLResponse(pages.card_page(name, model_card(service.model(name).run)))

    @app.get("/health")
    async def health() -> dict[str, str]:
        """Say that the server answers."""
        return {"status": "ok", "version": __version__}

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> Response:
        """Count requests, images and batches, for Prometheus."""
        return Response(service.counts.text(), media_type=CONTENT_TYPE_LATEST)


def _entering(app: FastAPI, limits: Limits, token: str | None) -> None:
    """Add the routes by which the page knows whether it is let in, and keeps that it was."""

    @app.get("/session", include_in_schema=False)
    async def session(request: Request) -> dict[str, Any]:
        entered = token is None or is_session(request.cookies.get(COOKIE, ""), token)
        return {"entered": entered, "limits": {"files": limits.files, "upload_mb": limits.upload_mb}}

    @app.post("/session", status_code=204, include_in_schema=False)
    async def enter(request: Request) -> Response:
        response = Response(status_code=204)
        if token is not None:
            response.set_cookie(
                COOKIE,
                session_of(token),
                httponly=True,
                samesite="strict",
                secure=request.url.scheme == "https",
            )
        return response


def _about(served: Served) -> dict[str, Any]:
    card = served.run.card
    return {
        "name": served.name,
        "kind": served.kind,
        "classes": list(served.classes),
        "encoder": card["encoder"]["name"],
        "size": card["preprocessing"]["size"],
        "created": card.get("created"),
        "fingerprint": served.fingerprint,
        **served.about,
    }


def _results(served: Served, results: list[dict[str, Any]], each: bool = False) -> JSONResponse:
    """Return results; where there is nothing but errors, the request is one that could not be processed.

    Unless ``each`` file's error is an answer to whoever asks.
    """
    failed = not each and all(result["error"] is not None for result in results)
    body = {
        "model": served.name,
        "fingerprint": served.fingerprint,
        "notice": RESEARCH_ONLY,
        "results": results,
    }
    if failed:
        body["detail"] = results[0]["error"] if len(results) == 1 else "not one of the files could be read"
    return JSONResponse(body, 422 if failed else 200)


async def _wrong_parameter(request: Request, error: Exception) -> JSONResponse:
    """Name a wrong parameter, without repeating what was sent."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"][1:])
    return JSONResponse({"detail": f"{place}: {first['msg'].lower()}"}, 422)


async def _wrong_choice(request: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"detail": str(error).removeprefix("--")}, 422)


async def _gone(request: Request, error: Exception) -> JSONResponse:
    """Say that a run is no longer where it was; the error itself would name folders of this machine."""
    log.error("%s in %s", type(error).__name__, request.scope.get("route"))
    return JSONResponse({"detail": "this is no longer there, or cannot be read"}, 404)
