"""Command about many runs: runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from scanprior.cli.app import app, say


@app.command()
def runs(
    folder: Annotated[Path, typer.Argument(help="Folder that the runs and studies lie in.")],
    sort: Annotated[str, typer.Option("--sort", help="Such as created, labels, encoder or auroc.")] = "path",
    descending: Annotated[bool, typer.Option("--descending/--ascending", help="Order of --sort.")] = False,
    kinds: Annotated[
        list[str] | None,
        typer.Option("--kind", help="pretrain, classify, segment, ensemble or study. Repeatable."),
    ] = None,
    filters: Annotated[
        list[str] | None,
        typer.Option("--filter", help="Such as encoder=vit_* or state=unfinished. Repeatable."),
    ] = None,
    best: Annotated[
        str | None, typer.Option("--best", help="Rank by a metric, such as auroc, by test set.")
    ] = None,
    evaluation: Annotated[str, typer.Option("--evaluation", help="Whose metrics are shown.")] = "test",
    every: Annotated[bool, typer.Option("--all", help="List the runs inside studies, too.")] = False,
    as_json: Annotated[Path | None, typer.Option("--json", help="Write the list as JSON.")] = None,
    as_csv: Annotated[Path | None, typer.Option("--csv", help="Write the list as a table.")] = None,
) -> None:
    """List the runs and studies below a folder, with their metrics; links are not followed."""
    from scanprior.api.browsing import FIELDS, notes_on
    from scanprior.api.browsing import runs as listed
    from scanprior.cli.run_table import csv_text, json_text, print_table
    from scanprior.files import write_text

    entries = listed(
        folder, sort=sort, descending=descending, kinds=kinds or (), filters=filters or (), best=best,
        evaluation=evaluation, every=every,
    )  # fmt: skip
    metric = best or (sort if sort not in FIELDS else None)
    notes = notes_on(entries, metric)
    if entries:
        print_table(entries, folder, metric, evaluation)
        say(*(f"note: {note}" for note in notes))
    else:
        say(f"no run or study {'of these ' if kinds or filters else ''}below {folder}")
    for file, text in ((as_json, json_text), (as_csv, csv_text)):
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            write_text(file, text(entries, notes))
            say(f"wrote {file}")
    first = [
        str(folder / entry.path) for entry in entries if entry.state == "finished" and entry.kind != "study"
    ]
    if best is not None and len(first) > 1 and entries[0].test_set == entries[1].test_set:
        which = "" if evaluation == "test" else f" --evaluation {evaluation}"
        say(f"next: scanprior compare {first[0]} {first[1]}{which}")
    elif first:
        say(f"next: scanprior report {first[0]}")
