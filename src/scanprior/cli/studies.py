"""Commands about many runs: study, recipes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from scanprior.cli.app import app, console_reporter, say


@app.command()
def study(
    recipe: Annotated[str, typer.Argument(help="A recipe of the package, or a YAML file.")],
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder of the study; goes on where it was stopped.")
    ] = None,
    data: Annotated[
        list[str] | None, typer.Option("--data", help="Data set of the recipe: NAME=PATH. Repeatable.")
    ] = None,
    workers: Annotated[int | None, typer.Option("--workers", help="Processes; default one a core.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="The recipe's small form, on phantoms.")] = False,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="Key of the recipe that is other here. Repeatable.")
    ] = None,
    show: Annotated[bool, typer.Option("--show", help="Print the recipe and its steps, and stop.")] = False,
) -> None:
    """Run a recipe: many trainings compared with intervals, and one report."""
    from scanprior.errors import ConfigError

    places = {}
    for entry in data or []:
        name, equals, path = entry.partition("=")
        if not equals or not name or not path:
            raise ConfigError(f"--data {entry!r}: write it as NAME=PATH, for example kermany=data/kermany")
        places[name] = path
    if show:
        from scanprior.config import dump_yaml
        from scanprior.studies.conducting import with_data
        from scanprior.studies.plan import steps_of
        from scanprior.studies.recipe import read_recipe

        wanted = read_recipe(recipe, quick=quick, changes=settings or ())
        if places:
            wanted = with_data(wanted, places, console_reporter())
        steps = [
            f"# {step.kind:9} {f'fold{fold}/' if fold else ''}{step.name}"
            for fold, part in enumerate(wanted.of_folds() or [wanted], 1 if wanted.folds else 0)
            for step in steps_of(part)
        ]
        say(dump_yaml(wanted).rstrip(), *steps)
        return
    if out is None:
        raise ConfigError("--out is missing: name the folder of the study")
    from scanprior.studies import study as conduct

    results = conduct(
        recipe,
        out=out,
        data=places,
        workers=workers,
        quick=quick,
        changes=settings or (),
        reporter=console_reporter(),
    )
    for name, why in results["failed"].items():
        say(f"failed: {name}: {why}")
    say(f"wrote {out}: results.json, tables/, report.html", f"next: open {out / 'report.html'} in a browser")
    if results["failed"]:
        say(f"      the same command tries the {len(results['failed'])} failed steps again")
        raise typer.Exit(1)


@app.command()
def recipes() -> None:
    """List the recipes of studies that come with scanprior."""
    from scanprior.studies.recipe import known_recipes, read_recipe

    for name in known_recipes():
        say(f"{name:16} {read_recipe(name).question}")
    say("next: scanprior study NAME --data NAME=PATH --out runs/study")
