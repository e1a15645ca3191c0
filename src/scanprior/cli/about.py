"""Commands about scanprior itself: demo, objectives, encoders, doctor."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from scanprior.cli.app import app, console_reporter, say


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", help="Folder to write.")] = Path("runs/demo"),
    seed: Annotated[int, typer.Option("--seed", help="Key of every random decision.")] = 0,
) -> None:
    """Show the whole path on synthetic radiographs, in minutes: check, pretrain, fine-tune, report."""
    from scanprior.demo import run_demo

    run_demo(out, seed, console_reporter())


@app.command()
def objectives() -> None:
    """List the pretraining methods."""
    from scanprior import objectives as methods

    for name in methods.names():
        say(f"{name:12} {methods.get(name).summary}")
    say("next: scanprior pretrain SOURCE --objective NAME --dry-run --out runs/pre")


@app.command()
def encoders(
    pattern: Annotated[str, typer.Argument(help="Part of a name, such as vit_tiny.")] = "",
) -> None:
    """List the pretrained encoders in the box, and the networks that can be encoders (all of timm's)."""
    import timm

    from scanprior.run import Run, released

    for name in released():
        if pattern in name:
            say(f"{name}  {Run.open(name).card['summary']}")
    names = timm.list_models(f"*{pattern}*" if pattern else "")
    say(*names, f"{len(names)} networks; next: scanprior pretrain SOURCE --encoder NAME --out runs/pre")


@app.command()
def doctor() -> None:
    """Say what this machine has: versions, devices, decoders, cache."""
    from scanprior.doctor import examine

    say(*examine())
