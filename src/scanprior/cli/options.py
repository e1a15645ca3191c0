"""Arguments and options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

Sources = Annotated[list[str], typer.Argument(help="Folders, tables, manifests or prepared stores.")]
Source = Annotated[
    str, typer.Argument(help="Folder, table, manifest, .npz file, DICOM tree or medmnist:NAME.")
]
Out = Annotated[Path, typer.Option("--out", help="Run folder to write.")]
Sets = Annotated[list[str] | None, typer.Option("--set", help="Any configuration key: a.b=c. Repeatable.")]
ConfigFile = Annotated[Path | None, typer.Option("--config", help="YAML file of settings.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with a stopped or killed run.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace a run that is there.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the resolved configuration and stop.")]
Size = Annotated[int | None, typer.Option("--size", help="Side of the network's input in pixels.")]
Labels = Annotated[str | None, typer.Option("--label-columns", help="Label column, or findings: a,b,c.")]
Map = Annotated[list[str] | None, typer.Option("--map", help="Rename a label: theirs=ours. Repeatable.")]
Layout = Annotated[
    str | None, typer.Option("--layout", help="Layout of the source, instead of detecting it.")
]
Encoder = Annotated[str | None, typer.Option("--encoder", help="Any timm name.")]
Epochs = Annotated[float | None, typer.Option("--epochs", help="Passes over the training images.")]
Steps = Annotated[int | None, typer.Option("--steps", help="Optimiser steps, instead of epochs.")]
BatchSize = Annotated[int | None, typer.Option("--batch-size", help="Images per step, over all processes.")]
LearningRate = Annotated[float | None, typer.Option("--lr", help="Peak learning rate.")]
Seed = Annotated[int | None, typer.Option("--seed", help="Key of every random decision.")]
Parent = Annotated[
    str | None, typer.Option("--from", help="Run whose encoder to start from, or scanprior:cxr-tiny.")
]
Count = Annotated[int | None, typer.Option("--labels", help="Use only so many labelled training images.")]
Fraction = Annotated[float | None, typer.Option("--label-fraction", help="Use only this share of them.")]


def data_options(
    size: int | None, labels: str | None, layout: str | None, maps: list[str] | None
) -> dict[str, Any]:
    """Return the options about the data as dotted keys."""
    return {
        "data.size": size,
        "data.label_columns": labels.split(",") if labels else None,
        "data.layout": layout,
        "data.label_map": pairs(maps) if maps else None,
    }


def pairs(maps: list[str]) -> dict[str, str]:
    """Read ``theirs=ours`` entries.

    Raises:
        ConfigError: an entry of another form.
    """
    from scanprior.errors import ConfigError

    pairs = {}
    for entry in maps:
        theirs, equals, ours = entry.partition("=")
        if not equals or not theirs or not ours:
            raise ConfigError(f"--map {entry!r}: write it as theirs=ours, for example no_finding=normal")
        pairs[theirs] = ours
    return pairs


def numbers(option: str, text: str) -> list[float]:
    """Read numbers with commas between them.

    Raises:
        ConfigError: one is none.
    """
    from scanprior.errors import ConfigError

    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise ConfigError(f"{option} {text}: give numbers with commas between them, as in -1,0,1") from error
