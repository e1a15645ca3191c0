"""The model card of a run in Markdown: what it is, what it was made from, how good it is and where that ends.

After Mitchell et al. 2019, "Model cards for model reporting" (arXiv 1810.03993): the sections that a run can fill from
its own files. No image, patient or path is named.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scanprior.reporting import statements, tables
from scanprior.reporting.formatting import level_of, plural, scalar
from scanprior.reporting.looking import looking_sentences
from scanprior.reporting.runfiles import RunFiles, part, read_run
from scanprior.reporting.trust import measured_sentences, trust_sentences, trust_warnings
from scanprior.reporting.weights_origin import origins
from scanprior.run import Run, located

Row = Sequence[str]

RESEARCH_ONLY = "Research use only. Not a medical device: no decision about a patient may rest on it."


@dataclass(frozen=True)
class ExportNotes:
    """What the card of an exported file says beyond that of its run.

    Attributes:
        name: of the file or folder.
        code: what loads it, in Python.
        loading: what goes in and comes out, a sentence each.
        checks: how far it agrees with scanprior, a sentence each.
        versions: package to version, of what wrote it.
        metadata: a block at the top that model hubs read; empty = none.
    """

    name: str
    code: str
    loading: Sequence[str]
    checks: Sequence[str]
    versions: Mapping[str, str] = field(default_factory=dict)
    metadata: str = ""


def model_card(run: Run | Path | str, export: ExportNotes | None = None) -> str:
    """Return the model card of a run as Markdown.

    Args:
        run: a finished run.
        export: of a file that was made of it; None = the card is of the run.

    Raises:
        RunError: there is no such run.
    """
    opened = run if isinstance(run, Run) else Run.open(run)
    files = read_run(located(opened.path))
    return "\n".join(_lines(opened, files, export)) + "\n"


def _lines(run: Run, files: RunFiles, export: ExportNotes | None) -> Iterator[str]:
    if export is not None and export.metadata:
        yield f"---\n{export.metadata.strip()}\n---\n"
    yield f"# {export.name if export is not None else run.path.resolve().name}\n"
    yield f"{_summary(run.card)}\n"
    yield f"**{RESEARCH_ONLY}**\n"
    if export is not None:
        yield from _loading(export)
    yield from _facts("What it is", _identity(run))
    yield from _use(run.card)
    yield from _data(run.card)
    yield from _evaluations(files)
    yield from _limits(run.card, files)
    yield from _facts("Preprocessing", _preprocessing(run))
    yield from _weights(run)
    if export is not None:
        yield "## Agreement with scanprior\n"
        yield from (f"- {text}" for text in export.checks)
        yield ""
    yield from _facts("Versions", _versions(run.card, export))


def _summary(card: Mapping[str, Any]) -> str:
    task, encoder = part(card, "task"), part(card, "encoder")
    names = ", ".join(map(str, task.get("classes") or []))
    network = encoder.get("name")
    if card.get("kind") == "segment":
        return f"A segmentation of medical images into {names} ({task.get('kind')}), by {network}."
    if card.get("kind") == "classify":
        kinds = {"multiclass": "one class an image", "multilabel": "every finding by itself"}
        return (
            f"A classifier of medical images: {names} ({kinds.get(str(task.get('kind')), '')}), by {network}."
        )
    return f"A pretrained encoder for medical images, {network}, without a task."


def _loading(export: ExportNotes) -> Iterator[str]:
    yield "## How to load it\n"
    yield f"```python\n{export.code.strip()}\n```\n"
    yield from (f"- {text}" for text in export.loading)
    yield ""


def _identity(run: Run) -> Iterator[tuple[str, str]]:
    card, task = run.card, part(run.card, "task")
    yield "Encoder", str(part(card, "encoder").get("name"))
    if task:
        yield "Classes", ", ".join(map(str, task.get("classes") or []))
        settings = part(task, "settings")
        yield from (
            (name.capitalize(), str(settings[name])) for name in ("head", "decoder") if settings.get(name)
        )
        if task.get("ordered"):
            yield "Order", "the classes are in an order, from least to most"
    if run.is_ensemble:
        section = card["ensemble"]
        yield "Combination", tables.combination_name(section["method"])
        for member in section["members"]:
            text = f"{member['encoder']}, {member['size']} px, fingerprint {member['fingerprint']}"
            yield f"Member {member['name']}", text
        yield "Fingerprint", f"{run.card_fingerprint()} (of the card, which holds those of the members)"
    else:
        yield "Fingerprint", f"{run.fingerprint()} (SHA-256 of the weights, 16 digits)"
    yield from statements.adapt_facts(part(card, "adapt"))
    yield from statements.training_facts(part(card, "training"))
    yield "Seed", scalar(card.get("seed"))
    yield "Made", str(card.get("created"))


def _use(card: Mapping[str, Any]) -> Iterator[str]:
    yield "## What it is for\n"
    yield (
        "Research on images like those it was trained on: the same kind of examination, acquired and preprocessed in "
        "the same way. On images of another kind, device or group of people its numbers below do not hold; measure it "
        "there first (`scanprior evaluate RUN --data IMAGES`).\n"
    )
    if card.get("kind") == "classify":
        yield (
            "It gives probabilities; thresholds for them were chosen on validation images and belong to the prevalence "
            "there.\n"
        )


def _data(card: Mapping[str, Any]) -> Iterator[str]:
    yield "## Data\n"
    rows = tables.sources(card)
    if rows:
        header = ("source", "images", "patients", "layout", "fingerprint", "left out")
        yield from _table(header, rows)
    splits, counts = tables.counts_by_split(card)
    if splits:
        yield from _table(("", *splits), counts)
    for name, value in statements.data_facts(card):
        yield f"- {name}: {value}"
    for _, text in statements.alerts({**card, "kind": None}, []):
        yield f"- {text}"
    for name, value in statements.chips(card):
        if name in ("Objective", "Starts from"):
            yield f"- {name}: {value}"
    yield ""


def _evaluations(files: RunFiles) -> Iterator[str]:
    yield "## Results\n"
    if not files.evaluations:
        yield "It has not been evaluated.\n"
    for evaluation in files.evaluations:
        yield f"### {_name(evaluation)}\n"
        yield f"{tables.headline_text(evaluation, 3)} {tables.evaluated_on(evaluation)}.\n"
        header = ("metric", "of", "value", level_of(evaluation), "images", "positive", "interval by")
        yield from _table(header, [_metric(row) for row in tables.every(evaluation)])
        yield from (
            f"- {text}" for text in statements.warnings_about(evaluation, files.tables.get(_file(evaluation)))
        )
        if evaluation.get("split_fingerprint"):
            yield f"- Split fingerprint: {evaluation['split_fingerprint']}"
        yield ""
        yield from _subgroups(evaluation)


def _name(evaluation: Mapping[str, Any]) -> str:
    return str(evaluation.get("name") or "unnamed set")


def _file(evaluation: Mapping[str, Any]) -> str:
    return str(evaluation.get("file") or "")


def _metric(row: tables.MetricRow) -> Row:
    value = row.value if not row.reason else f"n/a ({row.reason.removeprefix('n/a: ')})"
    return f"{row.name} {row.arrow}".strip(), row.scope, value, row.interval, row.n, row.positives, row.method


def _subgroups(evaluation: Mapping[str, Any]) -> Iterator[str]:
    """Yield the rows of ``evaluation.subgroups``, where an evaluation keeps them: one entry a group and metric."""
    rows = [entry for entry in evaluation.get("subgroups") or [] if isinstance(entry, Mapping)]
    if not rows:
        return
    made = [
        [f"{entry.get('column', '')} {entry.get('group')}".strip(), *_metric(tables.metric_row(entry))[:6]]
        for entry in rows
    ]
    header = ("group", "metric", "of", "value", level_of(evaluation), "images", "positive")
    yield from _table(header, made)


def _limits(card: Mapping[str, Any], files: RunFiles) -> Iterator[str]:
    evaluations = files.evaluations
    yield "## Limits\n"
    if not any(evaluation.get("data") for evaluation in evaluations):
        yield "- It was not tested on images of another source: nothing says how it does at another site."
    if not any(evaluation.get("subgroups") for evaluation in evaluations):
        yield "- It was not evaluated in subgroups of age, sex, view or device."
    yield from (f"- {text}" for text in statements.limits(card, evaluations, has_images=False))
    yield from (f"- Fitted on validation images: {text}" for text in trust_sentences(card))
    yield from (f"- Measured on {text}" for text in measured_sentences(card, evaluations))
    yield from (f"- {text}" for text in trust_warnings(card, evaluations))
    yield from (f"- {text}" for text in looking_sentences(files.sanity, files.pointing))
    if part(card, "task", "settings").get("head") == "knn":
        yield (
            "- The head holds the features of its training images: whoever has the model can test whether an image was "
            "among them."
        )
    yield ""


def _preprocessing(run: Run) -> Iterator[tuple[str, str]]:
    for name, pre in preprocessings(run):
        side = pre.get("stored_size") or pre["size"]
        text = f"made square at {side} px ({pre['fit']}), {plural(pre['channels'], 'channel')} of {pre['depth']} bits; "
        if side != pre["size"]:
            text += f"resized to {pre['size']} px (bilinear, antialiased); "
        if pre.get("standardize") == "image":
            text += "standardised with the mean and standard deviation of each image"
        else:
            mean, deviation = (", ".join(f"{v:.4f}" for v in pre[key]) for key in ("mean", "std"))
            text += f"in [0, 1], minus {mean}, divided by {deviation}"
        yield name or "Images", text


def preprocessings(run: Run) -> list[tuple[str, Mapping[str, Any]]]:
    """Return the preprocessing of a run, or of every member with its name."""
    if not run.is_ensemble:
        return [("", run.card["preprocessing"])]
    named = zip(run.card["ensemble"]["members"], run.members(), strict=True)
    return [(f"Member {member['name']}", Run.open(path).card["preprocessing"]) for member, path in named]


def _weights(run: Run) -> Iterator[str]:
    yield "## Licence\n"
    for origin in origins(run):
        licence = f"licence {origin.licence}" if origin.licence else "their licence is not known here"
        drawn = origin.what.startswith("first values")
        yield f"- The weights began as {origin.what}{'' if drawn else f': {licence}'}."
    yield "- The images have licences and citations of their own, which hold for what is made of them, too."
    yield ""


def _versions(card: Mapping[str, Any], export: ExportNotes | None) -> Iterator[tuple[str, str]]:
    named = {"scanprior": card.get("scanprior_version"), **part(card, "versions")}
    yield "Trained with", ", ".join(f"{k} {v}" for k, v in named.items() if v)
    if export is not None:
        yield "Exported with", ", ".join(f"{k} {v}" for k, v in export.versions.items())


def _facts(heading: str, facts: Iterator[tuple[str, str]]) -> Iterator[str]:
    yield f"## {heading}\n"
    yield from (f"- {name}: {value}" for name, value in facts)
    yield ""


def _table(header: Row, rows: Sequence[Row]) -> Iterator[str]:
    yield _row(header)
    yield _row(["---"] * len(header))
    yield from map(_row, rows)
    yield ""


def _row(cells: Row) -> str:
    return "| " + " | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"
