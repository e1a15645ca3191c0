"""The command that shows where a run looks, and whether that can be believed: explain."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from scanprior.cli.app import app, console_reporter, say
from scanprior.cli.options import Map, Sets, pairs
from scanprior.errors import ConfigError


@app.command()
def explain(
    run: Annotated[Path, typer.Argument(help="A fine-tuned classifier, or an ensemble.")],
    paths: Annotated[
        list[str] | None,
        typer.Argument(
            help="Image files and folders; with --pointing one source with masks. --check and --pointing without any "
            "take the run's own test images, and the report shows what they find."
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Folder to write; of the run's own images default in the run."),
    ] = None,
    method: Annotated[
        str,
        typer.Option(
            "--method", help="auto, gradcam, layercam, gradient_attention, attention_rollout or occlusion."
        ),
    ] = "auto",
    classes: Annotated[
        list[str] | None,
        typer.Option("--class", help="Class to explain; default the predicted one. Repeatable."),
    ] = None,
    opacity: Annotated[float, typer.Option("--opacity", help="Of the highest value, 0 to 1.")] = 0.5,
    arrays: Annotated[bool, typer.Option("--arrays", help="Write the maps as .npy too.")] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Compare the maps with those of random weights.")
    ] = False,
    pointing: Annotated[
        bool, typer.Option("--pointing", help="Compare the maps with masks, instead of drawing them.")
    ] = False,
    split: Annotated[str | None, typer.Option("--split", help="With --pointing: as for evaluate.")] = None,
    mask: Annotated[str | None, typer.Option("--mask", help="With --pointing: the column of masks.")] = None,
    tolerance: Annotated[
        float, typer.Option("--tolerance", help="With --pointing: pixels by which a point may miss.")
    ] = 0.0,
    seed: Annotated[int, typer.Option("--seed", help="With --check: key of the random weights.")] = 0,
    maps: Map = None,
    sets: Sets = None,
) -> None:
    """Show where a classifier looks: overlays on the images; or measure it against masks."""
    from scanprior import api
    from scanprior.api.sanity import sanity_sentence
    from scanprior.run import EXPLANATIONS

    reporter = console_reporter()
    if paths and out is None:
        raise ConfigError("--out: name the folder to write; only of the run's own images there is a default")
    if not pointing:
        belonging = {"--split": split, "--mask": mask, "--tolerance": tolerance, "--map": maps, "--set": sets}
        _refuse(belonging, "belongs to --pointing; add that, or leave it out")
    if not paths:
        if not (check or pointing):
            raise ConfigError(
                "no images to explain; name files or folders, or with --check or --pointing take the run's own"
            )
        drawn = {"--class": classes if not pointing else None, "--arrays": arrays}
        _refuse(drawn, "is of images that are drawn; name files or folders, or leave it out")
    if pointing:
        _pointing(
            run, paths or [], out=out, split=split, classes=classes, mask=mask, method=method, tolerance=tolerance,
            label_map=pairs(maps) if maps else None, settings=sets or [], reporter=reporter,
        )  # fmt: skip
    if paths and not pointing:
        assert out is not None
        table = api.explain(
            run, paths, out=out, method=method, classes=classes, opacity=opacity, arrays=arrays, reporter=reporter
        )  # fmt: skip
        errors = int(table["error"].notna().sum())
        say(f"wrote {out}: {len(table):,} rows in explanations.csv, {errors} with an error; overlays/")
    if check:
        say(
            sanity_sentence(
                api.sanity_check(run, paths or None, out=out, method=method, seed=seed, reporter=reporter)
            )
        )
        say(f"wrote {out or run / EXPLANATIONS}: sanity.json, sanity.png")
    if not paths and out is None:
        say(f"next: scanprior report {run}    # shows it")
    elif not check and not pointing:
        say(f"next: scanprior explain {run} --check    # do the maps follow what was learned?")


def _pointing(run: Path, paths: list[str], out: Path | None, **settings: Any) -> None:
    from scanprior import api
    from scanprior.api.pointing_game import pointing_sentences
    from scanprior.run import EXPLANATIONS

    if len(paths) > 1:
        raise ConfigError(f"--pointing: takes one source with masks, and {len(paths)} paths are given")
    result = api.pointing(run, paths[0] if paths else None, out=out, **settings)
    say(*pointing_sentences(result), f"wrote {out or run / EXPLANATIONS}: pointing.json, pointing.csv")


def _refuse(options: dict[str, Any], why: str) -> None:
    for name, value in options.items():
        if value:
            raise ConfigError(f"{name}: {why}")
