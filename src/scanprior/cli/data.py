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
    from scanprior.console import console
    from scanprior.data.check_view import render

    options = data_options(None, labels, layout, maps)
    audit = api.check(source, near=near, options=options, settings=sets or [], reporter=console_reporter())
    console.print(render(audit))
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(audit.to_dict(), indent=1))
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
