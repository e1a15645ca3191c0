"""The command that puts runs behind HTTP: serve."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from scanprior.cli.app import app, console_reporter, say


@app.command()
def serve(
    runs: Annotated[
        list[Path], typer.Argument(help="Fine-tuned runs and ensembles; the first is the default.")
    ],
    host: Annotated[
        str, typer.Option("--host", help="Address; others than loopback need a token.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0 = any that is free.")] = 8000,
    token_file: Annotated[
        Path | None,
        typer.Option("--token-file", help="Holds the token; default the variable SCANPRIOR_TOKEN."),
    ] = None,
    folder: Annotated[
        Path | None, typer.Option("--runs", help="Folder of runs and studies that the page lists.")
    ] = None,
    upload_mb: Annotated[int, typer.Option("--upload-mb", help="Megabytes of one request.")] = 200,
    files: Annotated[int, typer.Option("--files", help="Files of one request.")] = 64,
    pixels: Annotated[int, typer.Option("--pixels", help="Pixels of one image.")] = 50_000_000,
    upload_seconds: Annotated[int, typer.Option("--upload-seconds", help="For a request to arrive.")] = 60,
    read_seconds: Annotated[int, typer.Option("--read-seconds", help="For a file to be decoded.")] = 20,
    memory_mb: Annotated[int, typer.Option("--memory-mb", help="Megabytes of all requests together.")] = 1000,
    batch_size: Annotated[int, typer.Option("--batch-size", help="Images that go through together.")] = 32,
    workers: Annotated[int | None, typer.Option("--workers", min=1, help="Processes that decode.")] = None,
    certificate: Annotated[Path | None, typer.Option("--certificate", help="For HTTPS.")] = None,
    key: Annotated[Path | None, typer.Option("--key", help="Of the certificate.")] = None,
) -> None:
    """Answer images over HTTP, with a page in the browser; nothing that is sent is kept."""
    import logging

    from scanprior.serving import serve as serve_runs
    from scanprior.serving.limits import Limits

    logging.basicConfig(format="%(asctime)s %(message)s")
    logging.getLogger("scanprior.serving").setLevel(logging.INFO)
    token = None if token_file is None else _token(token_file)
    limits = Limits(
        upload_mb=upload_mb, files=files, pixels=pixels, upload_seconds=upload_seconds, read_seconds=read_seconds,
        memory_mb=memory_mb, batch_size=batch_size,
    )  # fmt: skip
    serve_runs(
        runs, host=host, port=port, token=token, folder=folder, limits=limits, workers=workers,
        certificate=certificate, key=key, reporter=console_reporter(),
    )  # fmt: skip
    say("stopped")


def _token(file: Path) -> str:
    from scanprior.errors import DataError

    try:
        return file.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no text"
        raise DataError(f"--token-file {file}: {reason.lower()}") from None
