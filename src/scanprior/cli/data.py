"""Commands about images: index, check, prepare."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from scanprior.cli.app import app, console_reporter, say
from scanprior.cli.options import Labels, Layout, Map, Sets, Size, Source, data_options


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

    options = data_options(None, labels, layout, maps)
    manifest = api.index(source, out=out, options=options, settings=sets or [], reporter=console_reporter())
    # A CSV file cannot say where its images are; a Parquet manifest does.
    beside = out.suffix != ".csv" or manifest.root.resolve() == out.parent.resolve()
    where = "" if beside else f" --set data.root={manifest.root}"
    say(f"wrote {out} with {len(manifest):,} rows", f"next: scanprior check {out}{where}")


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
    from scanprior.data.check_view import render
    from scanprior.terminal import console

    options = data_options(None, labels, layout, maps)
    audit = api.check(source, near=near, options=options, settings=sets or [], reporter=console_reporter())
    console.print(render(audit))
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        from scanprior.files import write_text

        write_text(out, json.dumps(audit.to_dict(), indent=1))
        say(f"wrote {out}")
    if audit.leakage:
        say("leakage: results on this split would be too good; mend the split before training")
        raise typer.Exit(1)
    say(f"next: scanprior pretrain {source} --out runs/pre")


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

    options = data_options(size, labels, layout, maps)
    store = api.prepare(source, out=out, options=options, settings=sets or [], reporter=console_reporter())
    left_out = len(store.audit["left_out"])
    say(
        f"wrote {out}: {len(store):,} images of {store.size} px; {left_out} left out, named in {out / 'store.json'}"
    )
    say(f"next: scanprior pretrain {out} --size {store.size} --out runs/pre")


@app.command()
def mask_preview(
    paths: Annotated[list[str], typer.Argument(help="Image files and folders.")],
    out: Annotated[Path, typer.Option("--out", help="PNG file to write.")],
    betas: Annotated[
        str, typer.Option("--betas", help="Strengths: 0 = at random, below 0 hides flat units.")
    ] = "-1,0,1,3",
    measure: Annotated[
        str | None, typer.Option("--measure", help="shannon, renyi, gradient or local_std.")
    ] = None,
    unit: Annotated[int, typer.Option("--unit", help="Side of a mask unit in pixels.")] = 32,
    ratio: Annotated[float, typer.Option("--ratio", help="Part to hide.")] = 0.6,
    size: Annotated[int, typer.Option("--size", help="Side that images are brought to.")] = 224,
    images: Annotated[int, typer.Option("--images", help="How many are drawn.")] = 4,
    seed: Annotated[int, typer.Option("--seed", help="Key of the draws.")] = 0,
) -> None:
    """Draw what entropy-guided masks hide on your images, at several strengths."""
    from scanprior import api
    from scanprior.cli.options import numbers

    picture = api.mask_preview(
        paths, out=out, betas=numbers("--betas", betas), unit=unit, ratio=ratio, size=size, images=images,
        guidance={} if measure is None else {"measure": measure}, seed=seed, reporter=console_reporter(),
    )  # fmt: skip
    say(
        f"wrote {picture}",
        f"next: scanprior pretrain {paths[0]} --objective masked_convnet --set objective.unit={unit} --out runs/pre",
    )
