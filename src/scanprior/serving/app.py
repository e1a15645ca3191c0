"""The application: what can be asked over HTTP, and how it is answered."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import FastAPI, HTTPException, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST

from scanprior import __version__
from scanprior.errors import ConfigError, ScanpriorError
from scanprior.reporting.model_card import RESEARCH_ONLY, model_card
from scanprior.saliency import METHODS
from scanprior.serving import pages, schema
from scanprior.serving.guard import Guard, cookie_name, is_session, session_of
from scanprior.serving.limits import Limits
from scanprior.serving.served import Served
from scanprior.serving.service import Service
from scanprior.serving.uploads import BODY

log = logging.getLogger("scanprior.serving")

SESSION_SECONDS = 12 * 60 * 60
"""After which the page asks for the token again."""

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
    app.add_middleware(Guard, token=token, local=local, counts=service.counts)
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
        async with service.desk.received(request) as uploads:
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
        async with service.desk.received(request, MOST_EXPLAINED) as uploads:
            return _results(served, await service.explain(served, uploads, frame, class_name, method))

    @app.post(
        "/image",
        response_class=Response,
        responses={200: {"content": {"application/octet-stream": {}}}, **_REFUSALS},
        openapi_extra=BODY,
    )
    async def image(request: Request, frame: Frame = None) -> Response:
        """Decode one image to look at: rows of 16-bit little-endian pixels, their numbers in the headers."""
        async with service.desk.received(request, 1) as uploads:
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
        entered = token is None or is_session(request.cookies.get(cookie_name(request.scope), ""), token)
        return {"entered": entered, "limits": {"files": limits.files, "upload_mb": limits.upload_mb}}

    @app.post("/session", status_code=204, include_in_schema=False)
    async def enter(request: Request) -> Response:
        response = Response(status_code=204)
        if token is not None:
            response.set_cookie(
                cookie_name(request.scope),
                session_of(token),
                max_age=SESSION_SECONDS,
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
