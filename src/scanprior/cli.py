"""The command line: one thin function a command, heavy imports inside."""

from __future__ import annotations

import errno
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from scanprior import __version__
from scanprior.errors import ScanpriorError

app = typer.Typer(
    name="scanprior",
    help="Learn a prior from the scans you have, and spend your few labels well.",
    epilog="First steps: scanprior demo, then scanprior check YOUR_FOLDER. Research use only, not a medical device.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

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


def main() -> None:
    """Run the command line; user errors become one sentence and exit code 2."""
    arguments = sys.argv[1:]
    debug = "--debug" in arguments
    try:
        app([argument for argument in arguments if argument != "--debug"], standalone_mode=True)
    except ScanpriorError as error:
        if debug:
            raise
        _fail(str(error))
    except OSError as error:
        if debug or (error.filename is None and error.errno not in (errno.ENOSPC, errno.EDQUOT)):
            raise
        reason = (error.strerror or str(error)).lower()
        _fail(f"{error.filename}: {reason}" if error.filename else f"{reason}: free some and run this again")


def _fail(sentence: str) -> None:
    from rich.console import Console

    Console(stderr=True, highlight=False).print(f"error: {sentence}", markup=False, soft_wrap=True)
    raise SystemExit(2)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"scanprior {__version__}")
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show it.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Global options."""


def _say(*lines: str) -> None:
    from scanprior.console import console

    for line in lines:
        console.print(line, markup=False, soft_wrap=True)


def _reporter() -> Any:
    from scanprior.console import ConsoleReporter

    return ConsoleReporter()


def _data_options(
    size: int | None, labels: str | None, layout: str | None, maps: list[str] | None
) -> dict[str, Any]:
    return {
        "data.size": size,
        "data.label_columns": labels.split(",") if labels else None,
        "data.layout": layout,
        "data.label_map": _pairs(maps) if maps else None,
    }


def _pairs(maps: list[str]) -> dict[str, str]:
    from scanprior.errors import ConfigError

    pairs = {}
    for entry in maps:
        theirs, equals, ours = entry.partition("=")
        if not equals or not theirs or not ours:
            raise ConfigError(f"--map {entry!r}: write it as theirs=ours, for example no_finding=normal")
        pairs[theirs] = ours
    return pairs


@app.command()
def index(
    source: Source,
    out: Annotated[Path, typer.Option("--out", help="Manifest to write, .parquet or .csv.")],
    labels: Labels = None,
    layout: Layout = None,
    maps: Map = None,
    sets: Sets = None,
) -> None:
    """Read a source into a manifest: one row an image."""
    from scanprior import api

    options = _data_options(None, labels, layout, maps)
    manifest = api.index(source, out=out, options=options, settings=sets or [], reporter=_reporter())
    # A CSV file cannot say where its images are; a Parquet manifest does.
    beside = out.suffix != ".csv" or manifest.root.resolve() == out.parent.resolve()
    where = "" if beside else f" --set data.root={manifest.root}"
    _say(f"wrote {out} with {len(manifest):,} rows", f"next: scanprior check {out}{where}")


@app.command()
def check(
    source: Source,
    out: Annotated[Path | None, typer.Option("--json", help="Write everything found as JSON.")] = None,
    near: Annotated[bool, typer.Option("--near/--no-near", help="Look for near-duplicates too.")] = True,
    labels: Labels = None,
    layout: Layout = None,
    maps: Map = None,
    sets: Sets = None,
) -> None:
    """Find broken images, duplicates and patients across splits. Exit code 1 when there is leakage."""
    import json

    from scanprior import api
    from scanprior.console import console
    from scanprior.data.check_view import render

    options = _data_options(None, labels, layout, maps)
    audit = api.check(source, near=near, options=options, settings=sets or [], reporter=_reporter())
    console.print(render(audit))
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(audit.to_dict(), indent=1))
        _say(f"wrote {out}")
    if audit.leakage:
        _say("leakage: results on this split would be too good; mend the split before training")
        raise typer.Exit(1)
    _say(f"next: scanprior pretrain {source} --out runs/pre")


@app.command()
def prepare(
    source: Source,
    out: Annotated[Path, typer.Option("--out", help="Store folder to write.")],
    size: Size = None,
    labels: Labels = None,
    layout: Layout = None,
    maps: Map = None,
    sets: Sets = None,
) -> None:
    """Decode the images once into a memory-mapped store; run again to go on after a kill."""
    from scanprior import api

    options = _data_options(size, labels, layout, maps)
    store = api.prepare(source, out=out, options=options, settings=sets or [], reporter=_reporter())
    left_out = len(store.audit["left_out"])
    _say(
        f"wrote {out}: {len(store):,} images of {store.size} px; {left_out} left out, named in {out / 'store.json'}"
    )
    _say(f"next: scanprior pretrain {out} --size {store.size} --out runs/pre")


@app.command()
def pretrain(
    sources: Sources,
    out: Out,
    objective: Annotated[
        str | None, typer.Option("--objective", help="See scanprior objectives; default gmml.")
    ] = None,
    parent: Annotated[str | None, typer.Option("--from", help="Run to start from.")] = None,
    encoder: Encoder = None,
    size: Size = None,
    epochs: Epochs = None,
    steps: Steps = None,
    batch_size: BatchSize = None,
    lr: LearningRate = None,
    seed: Seed = None,
    layout: Layout = None,
    config: ConfigFile = None,
    sets: Sets = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
) -> None:
    """Learn an encoder from images without labels."""
    from scanprior import api

    options = {
        "encoder.name": encoder, **_data_options(size, None, layout, None),
        "engine.epochs": epochs, "engine.steps": steps, "engine.batch_size": batch_size, "engine.lr": lr,
        "engine.seed": seed,
    }  # fmt: skip
    arguments: dict[str, Any] = {"config": config, "options": options, "settings": sets or []}
    if dry_run:
        from scanprior.config import dump_yaml

        _say(
            dump_yaml(api.plan_pretraining(sources, objective=objective, parent=parent, **arguments)).rstrip()
        )
        return
    run = api.pretrain(
        sources, out=out, objective=objective, parent=parent, resume=resume, overwrite=overwrite,
        reporter=_reporter(), **arguments,
    )  # fmt: skip
    _say(f"wrote {run.path}: model.safetensors, model.json, metrics.jsonl, pictures/")
    _say(f"next: scanprior finetune LABELS.csv --from {run.path} --labels 100 --out runs/ft")


def _finetuning(probe: str | None, dry_run: bool, sources: list[str], **arguments: Any) -> None:
    from scanprior import api

    if dry_run:
        from scanprior.config import dump_yaml

        for name in ("out", "resume", "overwrite"):
            arguments.pop(name)
        _say(dump_yaml(api.plan_finetuning(sources, probe=probe, **arguments)).rstrip())
        return
    run = api.finetune(sources, probe=probe, reporter=_reporter(), **arguments)
    _say(f"wrote {run.path}: model.safetensors, model.json, predictions.parquet, evaluations/")
    _say(f"next: scanprior report {run.path}")
    _say(f"      scanprior predict {run.path} NEW.dcm --out predictions.csv")


Parent = Annotated[str | None, typer.Option("--from", help="Run whose encoder to start from.")]
Count = Annotated[int | None, typer.Option("--labels", help="Use only so many labelled training images.")]
Fraction = Annotated[float | None, typer.Option("--label-fraction", help="Use only this share of them.")]


@app.command()
def finetune(
    sources: Sources,
    out: Out,
    parent: Parent = None,
    encoder: Encoder = None,
    count: Count = None,
    fraction: Fraction = None,
    size: Size = None,
    epochs: Epochs = None,
    steps: Steps = None,
    batch_size: BatchSize = None,
    lr: LearningRate = None,
    seed: Seed = None,
    labels: Labels = None,
    layout: Layout = None,
    maps: Map = None,
    config: ConfigFile = None,
    sets: Sets = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
) -> None:
    """Train a classifier on labels, from a pretrained run or from scratch, and evaluate it."""
    options = {
        "encoder.name": encoder, **_data_options(size, labels, layout, maps), "labels.count": count,
        "labels.fraction": fraction, "engine.epochs": epochs, "engine.steps": steps,
        "engine.batch_size": batch_size, "engine.lr": lr, "engine.seed": seed,
    }  # fmt: skip
    _finetuning(
        None, dry_run, sources, out=out, parent=parent, config=config, options=options, settings=sets or [],
        resume=resume, overwrite=overwrite,
    )  # fmt: skip


@app.command()
def probe(
    sources: Sources,
    out: Out,
    parent: Parent = None,
    encoder: Encoder = None,
    method: Annotated[str, typer.Option("--method", help="linear or knn.")] = "linear",
    count: Count = None,
    fraction: Fraction = None,
    size: Size = None,
    seed: Seed = None,
    labels: Labels = None,
    layout: Layout = None,
    maps: Map = None,
    config: ConfigFile = None,
    sets: Sets = None,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
) -> None:
    """Fit a linear or nearest-neighbour classifier on the frozen features of a run."""
    options = {
        "encoder.name": encoder, **_data_options(size, labels, layout, maps), "labels.count": count,
        "labels.fraction": fraction, "engine.seed": seed,
    }  # fmt: skip
    _finetuning(
        method, dry_run, sources, out=out, parent=parent, config=config, options=options, settings=sets or [],
        resume=False, overwrite=overwrite,
    )  # fmt: skip


@app.command()
def evaluate(
    run: Annotated[Path, typer.Argument(help="A fine-tuned run.")],
    data: Annotated[str | None, typer.Option("--data", help="Other images with labels.")] = None,
    split: Annotated[str | None, typer.Option("--split", help="train, val, test or all.")] = None,
    name: Annotated[str | None, typer.Option("--name", help="Name of the evaluation.")] = None,
    maps: Map = None,
    sets: Sets = None,
) -> None:
    """Measure a run on its test images, or as it is on another hospital's, with 95 % intervals."""
    from scanprior import api

    label_map = _pairs(maps) if maps else None
    result = api.evaluate(
        run, data=data, split=split, name=name, label_map=label_map, settings=sets or [], reporter=_reporter()
    )
    _say(f"wrote {run / 'evaluations' / (result['name'] + '.json')}", f"next: scanprior report {run}")


@app.command()
def compare(
    first: Annotated[Path, typer.Argument(help="A fine-tuned run.")],
    second: Annotated[Path, typer.Argument(help="Another one, evaluated on the same images.")],
    evaluation: Annotated[str | None, typer.Option("--evaluation", help="Which; default test.")] = None,
    out: Annotated[Path | None, typer.Option("--json", help="Write the comparison as JSON.")] = None,
) -> None:
    """Compare two runs on the same images: paired differences with intervals."""
    import json

    from scanprior import api
    from scanprior.console import comparison_table, console

    result = api.compare(first, second, evaluation=evaluation)
    console.print(comparison_table(result))
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(result, indent=1))
        _say(f"wrote {out}")
    _say(f"next: scanprior report {first}")


@app.command()
def predict(
    run: Annotated[Path, typer.Argument(help="A fine-tuned run.")],
    paths: Annotated[list[str], typer.Argument(help="Image files and folders, DICOM included.")],
    out: Annotated[Path, typer.Option("--out", help="Table to write, .csv or .parquet.")],
) -> None:
    """Predict raw images: one row each, probabilities or the error."""
    from scanprior import api

    table = api.predict(run, paths, out=out, reporter=_reporter())
    errors = int(table["error"].notna().sum())
    _say(f"wrote {out}: {len(table):,} rows, {errors} with an error", f"next: scanprior report {run}")


@app.command()
def report(
    run: Annotated[Path, typer.Argument(help="A run.")],
    out: Annotated[Path | None, typer.Option("--out", help="Default: report.html in the run.")] = None,
    thumbnails: Annotated[bool, typer.Option(help="Show the most wrong images.")] = True,
) -> None:
    """Write one self-contained page about a run."""
    from scanprior import api

    page = api.report(run, out=out, thumbnails=thumbnails)
    _say(f"wrote {page}", f"next: open {page} in a browser")


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", help="Folder to write.")] = Path("runs/demo"),
    seed: Annotated[int, typer.Option("--seed", help="Key of every random decision.")] = 0,
) -> None:
    """Show the whole path on synthetic radiographs, in minutes: check, pretrain, fine-tune, report."""
    from scanprior.demo import run_demo

    run_demo(out, seed, _reporter())


@app.command()
def objectives() -> None:
    """List the pretraining methods."""
    from scanprior import objectives as methods

    for name in methods.names():
        _say(f"{name:12} {methods.get(name).summary}")
    _say("next: scanprior pretrain SOURCE --objective NAME --dry-run --out runs/pre")


@app.command()
def encoders(
    pattern: Annotated[str, typer.Argument(help="Part of a name, such as vit_tiny.")] = "",
) -> None:
    """List the networks that can be encoders (all of timm's)."""
    import timm

    names = timm.list_models(f"*{pattern}*" if pattern else "")
    _say(*names, f"{len(names)} networks; next: scanprior pretrain SOURCE --encoder NAME --out runs/pre")


@app.command()
def doctor() -> None:
    """Say what this machine has: versions, devices, decoders, cache."""
    from scanprior.doctor import examine

    _say(*examine())
