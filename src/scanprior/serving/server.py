"""``serve``: runs behind HTTP, on this machine alone unless there is a token."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from scanprior.engine import Reporter, keep_few_kernels
from scanprior.errors import ConfigError, DataError
from scanprior.serving.app import create_app
from scanprior.serving.guard import is_loopback
from scanprior.serving.limits import Limits
from scanprior.serving.served import Served, open_served
from scanprior.serving.service import Service

LEAST_TOKEN = 16
"""Characters of a token."""

TOKEN_VARIABLE = "SCANPRIOR_TOKEN"

_HEAD_SECONDS = 15
"""That the head of a request may take to arrive."""

_CONNECTIONS = 512
"""At a time; each takes one of the files that the system lets a process have open, of which 1,024 are usual."""

_FULL = (
    b"HTTP/1.1 429 Too Many Requests\r\nContent-Type: application/json\r\nContent-Length: 50\r\n"
    b"Retry-After: 1\r\nConnection: close\r\n\r\n"
    b'{"detail":"too many connections are open; retry"}\n'
)

_UNREAD_SECONDS = 30
"""That the rest of an answer may take to be read once the connection is closed."""


def serve(
    runs: str | Path | Sequence[str | Path],
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    token: str | None = None,
    folder: str | Path | None = None,
    limits: Limits | None = None,
    workers: int | None = None,
    certificate: str | Path | None = None,
    key: str | Path | None = None,
    reporter: Reporter | None = None,
) -> None:
    """Answer images over HTTP until the process is asked to end (SIGINT, SIGTERM); requests under way are finished.

    Nothing that is sent is written to a disk; neither images nor names of files are logged.

    Args:
        runs: fine-tuned runs and ensembles; the first answers where a request names none.
        host: address to listen on; others than loopback need a token.
        port: to listen on; 0 = any that is free.
        token: that every request has to carry; None = that of the variable ``SCANPRIOR_TOKEN``, if any.
        folder: of runs and studies that the page lists with their reports; None = none.
        limits: what a request may ask for.
        workers: processes that decode; None = one or half the cores.
        certificate, key: files for HTTPS.
        reporter: is told where the server is.

    Raises:
        ConfigError: another host than loopback without a token, a short token, a certificate without its key.
        RunError: a run that predicts nothing.
        DataError: the port is taken, or the folder is not there.
    """
    reporter = reporter or Reporter()
    token = checked_token(os.environ.get(TOKEN_VARIABLE) if token is None else token)
    local = is_loopback(host)
    if not local and token is None:
        raise ConfigError(
            f"--host {host}: others could reach the server, so it needs a token; set {TOKEN_VARIABLE} or give "
            f"--token-file (at least {LEAST_TOKEN} characters), or stay with 127.0.0.1"
        )
    if workers is not None and workers < 1:
        raise ConfigError(f"--workers {workers}: give at least 1")
    if (certificate is None) != (key is None):
        raise ConfigError("--certificate and --key belong together; give both or none")
    if folder is not None and not Path(folder).is_dir():
        raise DataError(f"--runs {folder}: there is no such folder")
    keep_few_kernels()
    service = Service(
        open_all(runs, reporter),
        limits or Limits(),
        workers=workers,
        folder=None if folder is None else Path(folder),
    )
    config = configuration(create_app(service, token=token, local=local), certificate, key)
    try:
        config.load()
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise ConfigError(f"--certificate {certificate} --key {key}: {reason}") from None
    listening = listen(host, port)
    scheme = "http" if certificate is None else "https"
    if not local and certificate is None:
        reporter.note(
            "the token and the images travel unencrypted; give --certificate and --key, or use a proxy"
        )
    shown = f"[{host}]" if ":" in host else host
    reporter.note(f"serving on {scheme}://{shown}:{listening.getsockname()[1]}")
    gc.collect()
    gc.freeze()  # to look through all that the libraries hold takes hundreds of milliseconds, now and then
    try:
        with listening:
            _Server(config).run(sockets=[listening])
    finally:
        gc.unfreeze()


def open_all(runs: str | Path | Sequence[str | Path], reporter: Reporter) -> dict[str, Served]:
    """Load runs, each under a name of its own."""
    paths = [runs] if isinstance(runs, (str, Path)) else list(runs)
    if not paths:
        raise ConfigError("no run to serve; name at least one")
    served: dict[str, Served] = {}
    cores = torch.get_num_threads()
    # The threads that share a layer sleep between two of them once there are more than cores in the whole process,
    # and one image takes twice as long: so this thread, which computes no image later, starts none here.
    torch.set_num_threads(1)
    try:
        for path in paths:
            name = _free_name(path, served)
            reporter.note(f"loading {path}")
            served[name] = open_served(path, name)
    finally:
        torch.set_num_threads(cores)
    return served


def _free_name(path: str | Path, taken: Mapping[str, Any]) -> str:
    stem = Path(path).resolve().name
    name, number = stem, 2
    while name in taken:
        name, number = f"{stem}-{number}", number + 1
    return name


def checked_token(token: str | None) -> str | None:
    """Return a token that will do.

    Raises:
        ConfigError: it is short, or holds what no header can carry.
    """
    if token is None:
        return None
    if len(token) < LEAST_TOKEN:
        raise ConfigError(
            f"the token has {len(token)} characters; give at least {LEAST_TOKEN}, for example of "
            "python -c 'import secrets; print(secrets.token_urlsafe())'"
        )
    if not token.isascii() or not token.isprintable() or " " in token:
        raise ConfigError("the token holds blanks, or other characters than ASCII; choose another")
    return token


def configuration(
    app: FastAPI, certificate: str | Path | None = None, key: str | Path | None = None
) -> uvicorn.Config:
    """Return how the application is served: nothing logged but what is ours, heads of requests that arrive in time."""
    return uvicorn.Config(
        app,
        http=_Protocol,
        ws="none",
        lifespan="on",
        log_config=None,
        log_level=logging.ERROR,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=15,
        timeout_graceful_shutdown=60,
        ssl_certfile=certificate,
        ssl_keyfile=None if key is None else str(key),
    )


class _Server(uvicorn.Server):
    """A server that ends without complaint when it was asked to."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Take the signals that ask for an end as such, and as nothing more once it has ended."""
        with super().capture_signals():
            yield
            self._captured_signals.clear()


class _Protocol(H11Protocol):
    """HTTP/1.1 that hangs up on whoever takes too long over the head of a request, and on whoever is one too many."""

    _head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        if len(self.connections) > _CONNECTIONS:
            transport.write(_FULL)
            transport.close()
        else:
            self._wait_for_head()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._wait_for_head()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
        super().connection_lost(exc)

    def _wait_for_head(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
        self._head_timer = self.loop.call_later(_HEAD_SECONDS, self._hang_up)

    def _hang_up(self) -> None:
        if self.cycle is None or self.cycle.response_complete:  # else the head is here, and is being answered
            self.transport.close()
            self._head_timer = self.loop.call_later(_UNREAD_SECONDS, self.transport.abort)


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens.

    Raises:
        DataError: it cannot be had.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # Named as TCP, as asyncio sends small answers at once only then: else each waits up to 40 ms for the other side.
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
    except (OSError, OverflowError) as error:
        listening.close()
        reason = getattr(error, "strerror", None) or str(error)
        raise DataError(f"--host {host} --port {port}: {reason.lower()}; choose another") from None
    listening.listen(2048)
    return listening
