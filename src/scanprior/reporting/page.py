"""The report page: gathers what the sections show and writes one HTML file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from scanprior import __version__
from scanprior.errors import RunError
from scanprior.reporting import figures, looking, members, statements, tables, trust
from scanprior.reporting.formatting import count, finite, level_of, plural
from scanprior.reporting.runfiles import RunFiles, part, read_run
from scanprior.reporting.statements import Facts
from scanprior.reporting.study_tables import Table
from scanprior.reporting.thumbnails import Thumbnails, WrongCase, picture_uri, with_pictures, wrong_cases
from scanprior.run import EXPLANATIONS

PICTURE_BUDGET = 600_000  # characters of embedded pictures, so that a usual page stays under 1.5 MB
LIST_LIMIT = 200  # left-out images named in the page; the rest are counted
NO_PARENT = "None: the weights do not come from another run."


def write_report(run_folder: Path, *, out: Path | None = None, thumbnails: Thumbnails | None = None) -> Path:
    """Write the report of a run as one HTML file that needs no network, and return its path.

    The page holds no script and asks for nothing from outside; equal input gives equal bytes.
    Files that are missing or damaged are named in the page, and their sections say so.

    Args:
        run_folder: what a training command wrote. Read: config.yaml, model.json, metrics.jsonl,
            predictions.parquet, evaluations/*.json and *.parquet, pictures/*.png, explanations/*; any may be
            missing.
        out: the file to write; ``run_folder/report.html`` if None.
        thumbnails: given image references, returns for each an (H, W) or (H, W, 3) uint8 array, or None
            where there is no picture. Without it the most wrong cases are shown by name only.

    Raises:
        RunError: if the folder does not exist, its model.json is of a newer format, or the page cannot
            be written.
        ValueError: if ``thumbnails`` returns something else than described.
    """
    target = Path(run_folder) / "report.html" if out is None else Path(out)
    return write_page(target, render(read_run(Path(run_folder)), thumbnails))


def write_page(target: Path, page: str) -> Path:
    """Write a page at once or not at all, and return its path.

    Raises:
        RunError: it cannot be written.
    """
    part = target.with_name(target.name + ".part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(page, encoding="utf-8", newline="\n")
        part.replace(target)
    except OSError as error:
        raise RunError(
            f"{target} cannot be written ({error.strerror}); free space or choose another --out"
        ) from error
    return target


def render(run: RunFiles, thumbnails: Thumbnails | None = None) -> str:
    """Return the page as text."""
    return environment().get_template("report.html").render(page=gather(run, thumbnails))


def environment() -> Environment:
    """Return what the templates are filled in with."""
    made = Environment(
        loader=PackageLoader("scanprior.reporting", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters["whole"] = _whole
    made.filters["breakable"] = _breakable
    return made


def _whole(text: str) -> Markup:
    """Escape ``text`` and keep each ``[low–high]`` in it on one line."""
    return Markup(re.sub(r"\[[^\[\]]*–[^\[\]]*\]", r'<span class="nb">\g<0></span>', str(escape(text))))


def _breakable(text: str) -> Markup:
    """Escape ``text`` and let long names break after an underscore or a slash."""
    return Markup(re.sub(r"([_/])(?=\w)", r"\1<wbr>", str(escape(text))))


@dataclass(frozen=True)
class EvaluationView:
    """One evaluation section."""

    ident: str
    name: str
    heading: str
    verdict: str
    facts: Facts
    warnings: list[str]
    overall: tables.MetricTable
    by_class: tables.ClassTable | None
    every: list[tables.MetricRow]
    figures: list[figures.Figure]
    confusion: tables.Confusion | None
    thresholds: list[tables.ThresholdRow]
    wrong: list[WrongCase]
    wrong_total: int
    wrong_note: str
    cases: list[tuple[str, str]]  # of masks: what is shown, data URI
    members: list[Table]  # of an ensemble
    sets: Table | None  # of conformal sets; None where they were not measured
    outliers: Table | None  # by site; None without several
    level: str  # of the intervals


@dataclass(frozen=True)
class Page:
    """Everything the template shows, in words and drawings."""

    title: str
    eyebrow: str
    verdict: str
    transductive: bool
    chips: Facts
    alerts: list[tuple[str, str]]  # (ok | warn | bad, text)
    problems: list[str]
    data_facts: Facts
    sources: list[list[str]]
    splits: list[str]
    split_rows: list[list[str]]
    forest: list[tuple[str, str, str]]  # set, bar style, text
    forest_ticks: list[tuple[str, str]]
    forest_chance: str
    forest_levels: str
    evaluations: list[EvaluationView]
    training_facts: Facts
    training: list[figures.Figure]
    pictures: list[tuple[str, str]]
    pictures_left: list[str]
    trust: Facts  # when not to rely on the run; [] of one that does not know
    trust_notes: list[str]
    trust_measured: Table | None  # on every evaluated set; None where nothing was
    randomised: Table | None  # do maps follow the weights; None where it was not checked
    randomised_picture: str  # data URI; "" where there is none
    pointing: Table | None  # do maps lie in masks; None where it was not measured
    ensemble: Facts  # how the members are combined; [] of a run that is none
    members: Table | None
    encoder: Facts
    objective: Facts
    preprocessing: Facts
    parent: Facts
    no_parent: str
    left_out: list[tuple[str, str, str]]
    left_out_total: int
    config: Markup
    versions: Facts
    made_from: list[list[str]]
    quote: str
    limits: list[str]
    notes: list[str] = field(default_factory=list)
    version: str = __version__


def gather(run: RunFiles, thumbnails: Thumbnails | None) -> Page:
    """Decide what every section says."""
    model, training = run.model, part(run.model, "training")
    fingerprint = part(model, "data", "split").get("fingerprint")
    evaluations = sorted(run.evaluations, key=lambda e: _rank(e, fingerprint))
    views = [
        _evaluation(run, e, f"set-{i}", fingerprint, thumbnails, 10 if i == 0 else 5)
        for i, e in enumerate(evaluations)
    ]
    problems = run.problems  # pictures may add to it
    pictures, pictures_left = _pictures(run)
    randomised_picture = _randomised_picture(run)
    missing = [*tables.left_out(model), *_failed(run)]
    splits, split_rows = tables.counts_by_split(model)
    task, kind = part(model, "task"), str(model.get("kind") or ("classify" if evaluations else ""))
    rows = figures.forest_rows(evaluations)
    floor = min([0.4, *(int(10 * min(v for v in (r[1], r[2]) if v is not None)) / 10 for r in rows)])
    return Page(
        title=" · ".join(filter(None, [run.folder.resolve().name, str(task.get("name") or "")])),
        eyebrow={
            "pretrain": "Pretraining report",
            "classify": "Classification report",
            "segment": "Segmentation report",
        }.get(kind, "Run report"),
        verdict=statements.verdict(run, evaluations, kind),
        transductive=bool(part(model, "data").get("transductive")),
        chips=statements.chips(model),
        alerts=statements.alerts(model, evaluations),
        problems=problems,
        data_facts=statements.data_facts(model),
        sources=tables.sources(model),
        splits=splits,
        split_rows=split_rows,
        forest=[(n, tables.bar_style(v, a, b, floor), t) for n, v, a, b, t in rows] if len(rows) > 1 else [],
        forest_ticks=[
            (f"{(t / 10 - floor) / (1 - floor):.4f}", f"{t / 10:g}") for t in range(round(floor * 10), 11)
        ],
        forest_chance=f"{(0.5 - floor) / (1 - floor):.4f}",
        forest_levels=" or ".join(dict.fromkeys(view.level for view in views)),
        evaluations=views,
        training_facts=[*statements.training_facts(training), *statements.adapt_facts(part(model, "adapt"))],
        training=figures.training_figures(run.log, training.get("selected_step")),
        pictures=pictures,
        pictures_left=pictures_left,
        trust=trust.trust_facts(model),
        trust_notes=[*trust.trust_notes(model), *trust.trust_warnings(model, evaluations)],
        trust_measured=trust.measured_table(model, evaluations),
        randomised=looking.randomised_table(run.sanity),
        randomised_picture=randomised_picture,
        pointing=looking.pointing_table(run.pointing),
        ensemble=members.ensemble_facts(model),
        members=members.members_table(model),
        encoder=statements.facts_of(part(model, "encoder")),
        objective=statements.facts_of(part(model, "objective")),
        preprocessing=statements.facts_of(part(model, "preprocessing")),
        parent=statements.facts_of(part(model, "parent")),
        no_parent=NO_PARENT if "parent" in model else "n/a: not recorded.",
        left_out=missing[:LIST_LIMIT],
        left_out_total=len(missing),
        config=_highlighted(run.config),
        versions=[("scanprior", str(model.get("scanprior_version") or "not recorded")), *_versions(model)],
        made_from=[[name, f"{size:,}", digest] for name, size, digest in run.made_from],
        quote=statements.quote(model, evaluations),
        limits=statements.limits(
            model,
            evaluations,
            bool(pictures or randomised_picture) or any(c.uri for v in views for c in v.wrong),
        ),
        notes=[str(n) for n in model.get("notes") or []],
    )


def _rank(evaluation: Mapping[str, Any], fingerprint: object) -> tuple[int, str]:
    """Order evaluations: the run's own test split, then other sets, then splits used in training."""
    name, split = str(evaluation.get("name")), evaluation.get("split")
    if split in ("train", "val"):
        return 3, name
    own = split == "test" and (fingerprint is None or evaluation.get("split_fingerprint") == fingerprint)
    return (0 if own and name == "test" else 1 if own or name == "test" else 2), name


def _versions(model: Mapping[str, Any]) -> Facts:
    return [(str(k), str(v)) for k, v in sorted(part(model, "versions").items())]


def _unit(evaluation: Mapping[str, Any]) -> str | None:
    """Return what is drawn in a resample and how many there are: ``patient (420)``."""
    unit, units = evaluation.get("unit"), evaluation.get("units")
    return f"{unit} ({count(units)})" if unit and finite(units) is not None else unit


def _evaluation(
    run: RunFiles,
    evaluation: dict[str, Any],
    ident: str,
    fingerprint: object,
    thumbnails: Thumbnails | None,
    limit: int,
) -> EvaluationView:
    table = run.tables.get(evaluation["file"])
    if table is None and run.predictions is not None and "split" in run.predictions.columns:
        own = fingerprint is not None and evaluation.get("split_fingerprint") == fingerprint
        if own and evaluation.get("split"):
            table = run.predictions[run.predictions["split"] == evaluation["split"]]
    wrong, total = wrong_cases(table, evaluation, limit) if table is not None else ([], 0)
    if table is None:
        note = "n/a: the table of predictions for this set is not in the run folder."
    elif total:
        multilabel = evaluation.get("task") == "multilabel"
        what = "with a finding on the wrong side of its threshold" if multilabel else "classified wrongly"
        rest = f"; the {len(wrong)} worst are shown." if total > len(wrong) else "."
        note = f"{plural(total, 'image')} {what}{rest}"
    else:
        note = "No image was misclassified."
    same = evaluation.get("split_fingerprint")
    of_run = ""
    if same and fingerprint:
        of_run = " (this run’s split)" if same == fingerprint else " (not this run’s split)"
    patients = evaluation.get("patients")
    facts = [
        ("Images", count(evaluation.get("n"))),
        ("Patients", "n/a: no patient column" if finite(patients) is None else count(patients)),
        ("Unit of resampling", _unit(evaluation)),
        ("Split", evaluation.get("split")),
        ("Split fingerprint", f"{same}{of_run}" if same else None),
        ("Seed", evaluation.get("seed")),
        ("Positive class", evaluation.get("positive_class")),
        ("Distances in", evaluation.get("distances_in")),
    ]
    return EvaluationView(
        ident=ident,
        name=str(evaluation["name"]),
        heading=f"Evaluation: {evaluation['name']}",
        verdict=f"{tables.headline_text(evaluation, 3)} {tables.evaluated_on(evaluation)}",
        facts=[(k, str(v)) for k, v in facts if v is not None],
        warnings=statements.warnings_about(evaluation, table),
        overall=tables.overall(evaluation),
        by_class=tables.by_class(evaluation),
        every=tables.every(evaluation),
        figures=figures.evaluation_figures(evaluation, ident),
        confusion=tables.confusion(evaluation),
        thresholds=tables.thresholds(evaluation),
        wrong=with_pictures(wrong, thumbnails),
        wrong_total=total,
        wrong_note=note,
        cases=_cases(run, str(evaluation["name"])) if evaluation.get("task") == "segmentation" else [],
        members=members.member_tables(evaluation),
        sets=trust.sets_table(evaluation),
        outliers=trust.outliers_table(evaluation),
        level=level_of(evaluation),
    )


def _cases(run: RunFiles, name: str) -> list[tuple[str, str]]:
    """Return the overlays of the worst, median and best images: (caption, data URI)."""
    made = []
    for what in ("worst", "median", "best"):
        for file in sorted((run.folder / "evaluations" / f"{name}-cases").glob(f"{what}-*.png")):
            try:
                uri = picture_uri(file.read_bytes())
            except OSError:
                run.problems.append(f"{file.name} is no readable picture; it is left out.")
                continue
            made.append((f"{what}, Dice {file.stem.rpartition('dice')[2]}", uri))
    return made


def _failed(run: RunFiles) -> list[tuple[str, str, str]]:
    """Return (set, image, error) of images that evaluation or prediction could not read, each once."""
    named = [(e["name"], run.tables[e["file"]]) for e in run.evaluations if e["file"] in run.tables]
    if run.predictions is not None:
        named.append(("predictions", run.predictions))
    found: dict[tuple[str, str], str] = {}
    for name, table in named:
        if {"image", "error"} <= set(table.columns):
            bad = table[table["error"].notna()]
            for image, error in zip(bad["image"], bad["error"], strict=True):
                found.setdefault((str(image), str(error)), str(name))
    return [(name, image, error) for (image, error), name in found.items()]


def _pictures(run: RunFiles) -> tuple[list[tuple[str, str]], list[str]]:
    """Return (name, data URI) of the last, the first and the middle picture within the budget, and the rest."""
    names = [name for name, _ in run.pictures]
    content = dict(run.pictures)
    wanted = dict.fromkeys([names[-1], names[0], names[len(names) // 2]] if names else [])
    shown: dict[str, str] = {}
    for name in wanted:
        try:
            uri = picture_uri(content[name])
        except OSError:
            run.problems.append(f"pictures/{name} is no readable picture; it is left out.")
            continue
        if sum(map(len, shown.values())) + len(uri) <= PICTURE_BUDGET:
            shown[name] = uri
    return [(n, shown[n]) for n in names if n in shown], [n for n in names if n not in shown]


def _randomised_picture(run: RunFiles) -> str:
    try:
        return "" if run.sanity_picture is None else picture_uri(run.sanity_picture)
    except OSError:
        run.problems.append(f"{EXPLANATIONS}/sanity.png is no readable picture; it is left out.")
        return ""


def _highlighted(text: str) -> Markup:
    """Return YAML with its keys marked; everything is escaped."""
    lines = []
    for line in text.splitlines():
        match = re.match(r"^(\s*(?:- )?)([\w.\-]+)(:)(?=\s|$)(.*)$", line)
        if match:
            lead, name, colon, rest = match.groups()
            lines.append(Markup('{}<span class="key">{}</span>{}{}').format(lead, name, colon, rest))
        else:
            lines.append(escape(line))
    return Markup("\n").join(lines)
