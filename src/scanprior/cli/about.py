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
    pattern: Annotated[str, typer.Argument(help="Part of a name, such as dinov2.")] = "",
    every: Annotated[bool, typer.Option("--all", help="List all of timm's networks, too.")] = False,
) -> None:
    """List the encoders: those in the box, and published ones with size, licence and source of their weights."""
    from scanprior.catalogue import all_listed
    from scanprior.run import Run, released

    for name in released():
        if pattern in name:
            say(f"{name}  {Run.open(name).card['summary']}")
    shown = [entry for entry in all_listed() if pattern in entry.name or pattern in entry.network]
    if shown:
        say(f"{'encoder':14} {'parameters':>10}  {'pixels':>6}  {'licence of weights':18}  official weights")
    for entry in shown:
        millions = f"{entry.parameters / 1e6:,.1f} M"
        say(f"{entry.name:14} {millions:>10}  {entry.size:>6}  {entry.licence:18}  {entry.source}")
    if every:
        import timm

        names = timm.list_models(f"*{pattern}*" if pattern else "")
        say(*names, f"{len(names)} networks of timm")
    else:
        say("any network of timm's is an encoder, too: scanprior encoders --all vit_tiny")
    say("next: scanprior finetune LABELS.csv --encoder NAME --set encoder.weights=FILE --out runs/ft")


@app.command()
def doctor() -> None:
    """Say what this machine has: versions, devices, decoders, cache."""
    from scanprior.doctor import examine

    say(*examine())
