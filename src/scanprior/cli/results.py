"""Commands about runs: ensemble, evaluate, compare, drift, shift, predict, report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from scanprior.cli.app import app, console_reporter, say
from scanprior.cli.options import Map, Out, Overwrite, Sets, pairs


@app.command()
def ensemble(
    runs: Annotated[
        list[Path], typer.Argument(help="Two or more fine-tuned classifiers of the same classes.")
    ],
    out: Out,
    method: Annotated[
        str, typer.Option("--method", help="mean, geometric, calibrated or weighted.")
    ] = "mean",
    sets: Sets = None,
    overwrite: Overwrite = False,
) -> None:
    """Combine fine-tuned classifiers into one run, and measure what that gains over its members."""
    import json

    from scanprior import api
    from scanprior.console import ensemble_table
    from scanprior.reporting.trust import trust_sentences
    from scanprior.terminal import console

    run = api.ensemble(
        runs, out=out, method=method, settings=sets or [], overwrite=overwrite, reporter=console_reporter()
    )
    for file in sorted((run.path / "evaluations").glob("*.json")):
        console.print(ensemble_table(json.loads(file.read_text())))
    say(*trust_sentences(run.card))
    say(f"wrote {run.path}: model.json (names its members), predictions.parquet, evaluations/")
    say(
        f"next: scanprior report {run.path}",
        f"      scanprior predict {run.path} NEW.dcm --out predictions.csv",
    )


@app.command()
def evaluate(
    run: Annotated[Path, typer.Argument(help="A fine-tuned run.")],
    data: Annotated[str | None, typer.Option("--data", help="Other images with labels.")] = None,
    split: Annotated[
        str | None, typer.Option("--split", help="train, val, test, held-out (val and test) or all.")
    ] = None,
    name: Annotated[str | None, typer.Option("--name", help="Name of the evaluation.")] = None,
    maps: Map = None,
    sets: Sets = None,
) -> None:
    """Measure a run on its test images, or as it is on another hospital's, with 95 % intervals."""
    from scanprior import api

    label_map = pairs(maps) if maps else None
    result = api.evaluate(
        run,
        data=data,
        split=split,
        name=name,
        label_map=label_map,
        settings=sets or [],
        reporter=console_reporter(),
    )
    say(f"wrote {run / 'evaluations' / (result['name'] + '.json')}", f"next: scanprior report {run}")


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
    from scanprior.console import comparison_table
    from scanprior.terminal import console

    result = api.compare(first, second, evaluation=evaluation)
    console.print(comparison_table(result))
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        from scanprior.files import write_text

        write_text(out, json.dumps(result, indent=1))
        say(f"wrote {out}")
    say(f"next: scanprior report {first}")


@app.command()
def drift(
    run: Annotated[Path, typer.Argument(help="A fine-tuned run.")],
    kinds: Annotated[
        str | None, typer.Option("--kinds", help="Such as gamma,noise; default all eight.")
    ] = None,
    data: Annotated[str | None, typer.Option("--data", help="Other images with labels.")] = None,
    split: Annotated[str | None, typer.Option("--split", help="As for evaluate.")] = None,
    seed: Annotated[int, typer.Option("--seed", help="Key of everything random in the drifts.")] = 0,
    sets: Sets = None,
) -> None:
    """Measure a run on synthetically changed images: eight kinds of drift, five severities."""
    from scanprior import api
    from scanprior.console import drift_table
    from scanprior.terminal import console

    chosen = kinds.split(",") if kinds else None
    result = api.drift(
        run, kinds=chosen, data=data, split=split, seed=seed, settings=sets or [], reporter=console_reporter()
    )
    console.print(drift_table(result))
    say(f"wrote {run / 'drifts.json'} and drifts.parquet", f"next: scanprior report {run}")


@app.command()
def shift(
    run: Annotated[Path, typer.Argument(help="A pretrained or fine-tuned run, whose encoder looks.")],
    reference: Annotated[str, typer.Option("--reference", help="Images of the kind the model was made for.")],
    target: Annotated[str, typer.Option("--target", help="Other images; no labels are needed.")],
    reference_split: Annotated[
        str | None, typer.Option("--reference-split", help="held-out for images the run was trained on.")
    ] = None,
    target_split: Annotated[str | None, typer.Option("--target-split", help="As for evaluate.")] = None,
    same_patients: Annotated[
        bool, typer.Option("--same-patients", help="Equal names in both are the same people.")
    ] = False,
    permutations: Annotated[int, typer.Option("--permutations", help="Of the patients.")] = 1000,
    seed: Annotated[int, typer.Option("--seed", help="Key of the permutations.")] = 0,
    level: Annotated[float, typer.Option("--level", help="Flag a shift at this p-value and below.")] = 0.05,
    out: Annotated[Path | None, typer.Option("--json", help="Write the result as JSON.")] = None,
    sets: Sets = None,
) -> None:
    """Test, without labels, whether images differ from those that a model was made for."""
    from scanprior import api
    from scanprior.console import shift_sentence

    result = api.shift(
        run, reference, target, reference_split=reference_split, target_split=target_split,
        same_patients=same_patients, permutations=permutations, seed=seed, level=level, out=out, settings=sets or [],
        reporter=console_reporter(),
    )  # fmt: skip
    say(shift_sentence(result))
    if out is not None:
        say(f"wrote {out}")
    say(f"next: scanprior evaluate {run} --data {target}")


@app.command()
def predict(
    run: Annotated[Path, typer.Argument(help="A fine-tuned run.")],
    paths: Annotated[
        list[str],
        typer.Argument(help="Files, folders, tables of images, patterns in quotes; DICOM included."),
    ],
    out: Annotated[
        Path,
        typer.Option(
            "--out", help="Table to write: .csv, .parquet or .jsonl; of a segmentation run a folder."
        ),
    ],
    masks: Annotated[str, typer.Option("--masks", help="Form of masks: png or npy.")] = "png",
    overlays: Annotated[bool, typer.Option(help="Draw masks over the images.")] = True,
    features: Annotated[
        Path | None, typer.Option("--features", help="Write features too: .npy or .parquet.")
    ] = None,
    tta: Annotated[int, typer.Option("--tta", help="Average over so many augmented views more.")] = 0,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Images held at a time.")] = 64,
    workers: Annotated[
        int | None, typer.Option("--workers", min=0, help="Processes that read; default half the cores.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a stopped prediction.")] = False,
) -> None:
    """Predict raw images: one row each, probabilities or masks, how far to trust them, or the error."""
    from scanprior import api

    form: Any = masks  # which ``predict`` checks
    table = api.predict(
        run, paths, out=out, masks=form, overlays=overlays, features=features, tta=tta, batch_size=batch_size,
        workers=workers, resume=resume, reporter=console_reporter(),
    )  # fmt: skip
    errors = int(table["error"].notna().sum())
    say(f"wrote {out}: {len(table):,} rows, {errors} with an error")
    if "outlier" in table and (strange := int(table["outlier"].eq(True).sum())):
        say(
            f"{strange:,} are unlike the training images (column outlier): do not rely on what is said of them"
        )
    if features is not None:
        say(f"wrote {features}")
    say(f"next: scanprior report {run}")


@app.command()
def report(
    run: Annotated[Path, typer.Argument(help="A run.")],
    out: Annotated[Path | None, typer.Option("--out", help="Default: report.html in the run.")] = None,
    thumbnails: Annotated[bool, typer.Option(help="Show the most wrong images.")] = True,
) -> None:
    """Write one self-contained page about a run."""
    from scanprior import api

    page = api.report(run, out=out, thumbnails=thumbnails)
    say(f"wrote {page}", f"next: open {page} in a browser")
