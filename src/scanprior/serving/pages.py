"""What a browser is given: the page, model cards, runs with their reports, and the description of the interface."""

from __future__ import annotations

import html
from importlib import resources
from pathlib import Path
from typing import Any

from fastapi import FastAPI, HTTPException, Query, Response
from fastapi.responses import HTMLResponse, JSONResponse
from markdown_it import MarkdownIt

from scanprior.api.browsing import notes_on, runs
from scanprior.api.run_entries import RunEntry
from scanprior.reporting.model_card import RESEARCH_ONLY

_FILES = {
    "page.css": "text/css",
    "page.js": "text/javascript",
    "view.js": "text/javascript",
    "docs.js": "text/javascript",
}
_SWAGGER = {"swagger-ui-bundle.js": "text/javascript", "swagger-ui.css": "text/css"}

_REPORT_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
"""Of reports, which hold all they need; a report that somebody else put there runs no script."""

_DOCS_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def add_pages(app: FastAPI, folder: Path | None) -> None:
    """Add the routes for browsers; ``folder`` is of the runs to browse, None = none."""
    _add_page(app)
    _add_description(app)

    @app.get("/runs")
    def listed() -> Response:
        """List the runs and studies of the server's folder, with their metrics."""
        entries = _entries(folder)
        told = {"folder": folder is not None, "runs": list(map(_told, entries)), "notes": notes_on(entries)}
        return JSONResponse(told)

    @app.get("/runs/report", response_class=HTMLResponse)
    def report(path: str = Query(max_length=1000, description="of /runs")) -> Response:
        """Return the report of a run or study."""
        entry = next((entry for entry in _entries(folder) if entry.path == path and entry.report), None)
        if entry is None or folder is None:  # a path that is not in the list is not even looked at
            raise HTTPException(404, "there is no such report")
        file = folder / entry.path / "report.html"
        if file.is_symlink() or not file.is_file():
            raise HTTPException(404, "there is no such report")
        try:
            page = file.read_bytes()
        except OSError:
            raise HTTPException(404, "there is no such report") from None
        return HTMLResponse(page, headers={"Content-Security-Policy": _REPORT_POLICY})


def card_page(name: str, card: str) -> str:
    """Return a model card as a page; what its Markdown holds of HTML is shown as text."""
    body = MarkdownIt("commonmark", {"html": False}).enable("table").render(card)
    return _page(f"Model card of {name}", f'<main class="card prose">{body}</main>')


def _add_page(app: FastAPI) -> None:
    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def page() -> Response:
        return HTMLResponse(_read("index.html").replace(b"{{notice}}", RESEARCH_ONLY.encode()))

    @app.get("/page/{name}", include_in_schema=False)
    async def file(name: str) -> Response:
        if name in _FILES:
            return Response(_read(name), media_type=_FILES[name])
        if name in _SWAGGER:
            library = resources.files("fastapi_offline") / "static" / name
            return Response(library.read_bytes(), media_type=_SWAGGER[name])
        raise HTTPException(404, "there is no such file")


def _add_description(app: FastAPI) -> None:
    @app.get("/docs", response_class=HTMLResponse, include_in_schema=False)
    async def docs() -> Response:
        head = '<link rel="stylesheet" href="/page/swagger-ui.css">'
        scripts = "".join(
            f'<script src="/page/{name}"></script>' for name in ("swagger-ui-bundle.js", "docs.js")
        )
        made = _page("Interface", f'<div id="docs"></div>{scripts}', head)
        return HTMLResponse(made, headers={"Content-Security-Policy": _DOCS_POLICY})


def _page(title: str, body: str, head: str = "") -> str:
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<title>{html.escape(title)} · scanprior</title><link rel="icon" href="data:,">{head}'
        '<link rel="stylesheet" href="/page/page.css"></head><body>'
        f'<p class="research">{html.escape(RESEARCH_ONLY)}</p>{body}</body></html>'
    )


def _read(name: str) -> bytes:
    return (resources.files("scanprior.serving") / "page" / name).read_bytes()


def _entries(folder: Path | None) -> list[RunEntry]:
    return [] if folder is None else runs(folder)


def _told(entry: RunEntry) -> dict[str, Any]:
    """Return an entry as JSON values, without the folders of this machine that a parent's path may name."""
    told = entry.as_dict()
    if entry.parent is not None:
        told["parent"] = Path(entry.parent).name
    del told["prints"]
    return told
