"""Runs behind a server that listens, in a thread of this process."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import uvicorn

from api.conftest import FINETUNING, _cache, phantoms
from scanprior import api
from scanprior.engine import Reporter
from scanprior.run import Run
from scanprior.serving.app import create_app
from scanprior.serving.limits import Limits
from scanprior.serving.server import configuration, listen, open_all
from scanprior.serving.service import Service

__all__ = ["_cache", "phantoms"]

SPLIT = {"data.split.fractions": [0.4, 0.4, 0.2]}
TOKEN = "a-token-of-twenty-nine-letters"


@dataclass
class Server:
    """A server that listens."""

    port: int
    service: Service
    client: httpx.Client

    def post(self, path: str, *files: Path | tuple[str, bytes], **options: object) -> httpx.Response:
        """Send files in one multipart form; query parameters by name."""
        named = [each if isinstance(each, tuple) else (each.name, each.read_bytes()) for each in files]
        form = [("files", file) for file in named]
        return self.client.post(path, files=form, params=options)

    def alive(self) -> bool:
        """Say whether it still answers."""
        return self.client.get("/health").json()["status"] == "ok"


@contextmanager
def listening(
    runs: list[Path], limits: Limits | None = None, *, token: str | None = None, folder: Path | None = None
) -> Iterator[Server]:
    service = Service(open_all(runs, Reporter()), limits or Limits(), workers=1, folder=folder)
    app = create_app(service, token=token)
    server = uvicorn.Server(configuration(app))
    with listen("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.02)
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            yield Server(port, service, client)
        server.should_exit = True
        thread.join(60)
        assert not thread.is_alive()


@pytest.fixture(scope="session")
def classifier(phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    out = tmp_path_factory.mktemp("served") / "chest"
    return api.finetune(phantoms, out=out, options={**FINETUNING, **SPLIT})


@pytest.fixture(scope="session")
def segmenter(phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    out = tmp_path_factory.mktemp("served") / "lungs"
    masks = {"task.name": "segment", "task.width": 4}
    return api.finetune(phantoms, out=out, options={**FINETUNING, **masks})


@pytest.fixture(scope="session")
def server(classifier: Run, segmenter: Run) -> Iterator[Server]:
    with listening([classifier.path, segmenter.path], folder=classifier.path.parent) as running:
        yield running


@pytest.fixture(scope="session")
def images(phantoms: Path) -> list[Path]:
    return sorted((phantoms / "images").iterdir())
