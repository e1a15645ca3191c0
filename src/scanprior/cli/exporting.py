"""The command that writes a run for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from scanprior.cli.app import app, console_reporter, say


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="A fine-tuned run, or an ensemble.")],
    out: Annotated[Path, typer.Option("--out", help="File to write, or of timm and hf a folder.")],
    form: Annotated[str, typer.Option("--format", help="onnx, torchscript, timm or hf.")] = "onnx",
    images: Annotated[
        list[str] | None,
        typer.Option("--images", help="Folder or file to compare on; default the run's own. Repeatable."),
    ] = None,
) -> None:
    """Write a run as a file that needs no scanprior, compared with it, with a model card."""
    from scanprior import api

    written = api.export(run, format=form, out=out, images=images, reporter=console_reporter())  # type: ignore[arg-type]
    say(
        f"wrote {written.path} and {written.card}", f"next: read {written.card}; it says how to load the file"
    )
