"""Commands that train: pretrain, finetune, probe."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from scanprior.cli.app import app, console_reporter, say
from scanprior.cli.options import (
    BatchSize,
    ConfigFile,
    Count,
    DryRun,
    Encoder,
    Epochs,
    Fraction,
    Labels,
    Layout,
    LearningRate,
    Map,
    Out,
    Overwrite,
    Parent,
    Resume,
    Seed,
    Sets,
    Size,
    Sources,
    Steps,
    data_options,
)


@app.command()
def pretrain(
    sources: Sources,
    out: Out,
    objective: Annotated[
        str | None, typer.Option("--objective", help="See scanprior objectives; default gmml.")
    ] = None,
    parent: Annotated[
        str | None, typer.Option("--from", help="Run to start from, or scanprior:cxr-tiny.")
    ] = None,
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
        "encoder.name": encoder, **data_options(size, None, layout, None),
        "engine.epochs": epochs, "engine.steps": steps, "engine.batch_size": batch_size, "engine.lr": lr,
        "engine.seed": seed,
    }  # fmt: skip
    arguments: dict[str, Any] = {"config": config, "options": options, "settings": sets or []}
    if dry_run:
        from scanprior.config import dump_yaml

        say(
            dump_yaml(api.plan_pretraining(sources, objective=objective, parent=parent, **arguments)).rstrip()
        )
        return
    run = api.pretrain(
        sources, out=out, objective=objective, parent=parent, resume=resume, overwrite=overwrite,
        reporter=console_reporter(), **arguments,
    )  # fmt: skip
    say(f"wrote {run.path}: model.safetensors, model.json, metrics.jsonl, pictures/")
    say(f"next: scanprior finetune LABELS.csv --from {run.path} --labels 100 --out runs/ft")


def _finetuning(probe: str | None, dry_run: bool, sources: list[str], **arguments: Any) -> None:
    from scanprior import api
    from scanprior.reporting.trust import trust_sentences

    if dry_run:
        from scanprior.config import dump_yaml

        for name in ("out", "resume", "overwrite"):
            arguments.pop(name)
        say(dump_yaml(api.plan_finetuning(sources, probe=probe, **arguments)).rstrip())
        return
    run = api.finetune(sources, probe=probe, reporter=console_reporter(), **arguments)
    say(*trust_sentences(run.card))
    weights = ", ".join(file.name for file in run.weight_files)
    say(f"wrote {run.path}: {weights}, model.json, predictions.parquet, evaluations/")
    say(f"next: scanprior report {run.path}")
    say(f"      scanprior predict {run.path} NEW.dcm --out predictions.csv")


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
        "encoder.name": encoder, **data_options(size, labels, layout, maps), "labels.count": count,
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
        "encoder.name": encoder, **data_options(size, labels, layout, maps), "labels.count": count,
        "labels.fraction": fraction, "engine.seed": seed,
    }  # fmt: skip
    _finetuning(
        method, dry_run, sources, out=out, parent=parent, config=config, options=options, settings=sets or [],
        resume=False, overwrite=overwrite,
    )  # fmt: skip
