"""The report of a study: what its runs say together, on one page."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scanprior import __version__
from scanprior.evaluation import LOWER_IS_BETTER
from scanprior.reporting.figures import Figure
from scanprior.reporting.formatting import count, finite, number, plural
from scanprior.reporting.page import environment, write_page
from scanprior.reporting.plots import Series, line_chart, swatch
from scanprior.reporting.tables import metric_name

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Table:
    """A table with its caption."""

    caption: str
    header: list[str]
    rows: list[list[str]]


@dataclass(frozen=True)
class Section:
    """One task: figures and tables, each with its heading."""

    ident: str
    heading: str
    verdict: str
    figures: list[Figure]
    tables: list[tuple[str, Table]]


@dataclass(frozen=True)
class StudyPage:
    """Everything the template shows, in words and drawings."""

    title: str
    question: str
    verdict: str
    failed: list[tuple[str, str]]
    warnings: list[str]
    facts: list[tuple[str, str]]
    data: Table
    pretraining: Table | None
    tuned: Table | None
    sections: list[Section]
    shifts: list[tuple[str, str]]
    shift_table: Table | None
    phantoms: bool
    limits: list[str]
    version: str = __version__


def write_study_report(results: Mapping[str, Any], out: Path) -> Path:
    """Write the report of a study as one HTML file that needs no network, and return its path.

    Args:
        results: what ``results.json`` holds.
        out: the file to write.

    Raises:
        RunError: the page cannot be written.
    """
    return write_page(out, environment().get_template("study.html").render(page=gather(results)))


def gather(results: Mapping[str, Any]) -> StudyPage:
    """Decide what every section says."""
    sections = [_section(results, task, place) for place, task in enumerate(results["tasks"])]
    level = f"{results['level']:.0%}".replace("%", " %")
    return StudyPage(
        title=str(results["title"]),
        question=str(results["question"]),
        verdict=_verdict(results),
        failed=list(results["failed"].items()),
        warnings=list(results["warnings"]),
        facts=[
            ("Baseline", str(results["baseline"])),
            ("Seeds", ", ".join(map(str, results["seeds"]))),
            ("Intervals", level),
            ("Resamples of patients", count(results["resamples"])),
            ("Recipe", f"{results['name']} ({results['recipe']})"),
        ],
        data=_data(results),
        pretraining=_pretraining(results),
        tuned=_tuned(results),
        sections=[section for section in sections if section.tables],
        shifts=[_shift(row) for row in results["shift"]],
        shift_table=_shift_table(results),
        phantoms=any(source["phantom"] for source in results["data"].values()),
        limits=_limits(results),
    )


def _verdict(results: Mapping[str, Any]) -> str:
    """Say how many of the comparisons with the baseline are clear, and which way."""
    rows = [row for row in results["efficiency"] if finite(row.get("difference_low")) is not None]
    if not rows:
        return "No comparison with the baseline has an interval."
    first = {task: facts["metrics"][0] for task, facts in results["tasks"].items()}
    rows = [row for row in rows if row["metric"] == first[row["task"]]]
    better = sum(_better(row) for row in rows)
    worse = sum(_worse(row) for row in rows)
    return (
        f"Of {plural(len(rows), 'comparison')} with {results['baseline']}, {better} are better beyond their interval, "
        f"{worse} are worse, {len(rows) - better - worse} are not decided."
    )


def _better(row: Row) -> bool:
    edge = row["difference_high"] if row["metric"] in LOWER_IS_BETTER else row["difference_low"]
    return bool(edge < 0 if row["metric"] in LOWER_IS_BETTER else edge > 0)


def _worse(row: Row) -> bool:
    edge = row["difference_low"] if row["metric"] in LOWER_IS_BETTER else row["difference_high"]
    return bool(edge > 0 if row["metric"] in LOWER_IS_BETTER else edge < 0)


def _data(results: Mapping[str, Any]) -> Table:
    rows = []
    for name, source in results["data"].items():
        split = source["split"] or {}
        counts = split.get("counts") or {}
        images = ", ".join(
            f"{part} {counts[part]['images']:,}" for part in ("train", "val", "test") if part in counts
        )
        rows.append(
            [
                name,
                source["about"] or ("phantoms" if source["phantom"] else ""),
                count(source["images"]),
                count(source["patients"]) if source["patients"] is not None else "unknown",
                images or "as it is",
                str(split.get("fingerprint") or "–"),
            ]
        )
    header = ["Data", "What it is", "Images", "Patients", "Split", "Split fingerprint"]
    return Table("The division is by patient, made once, and the same in every run.", header, rows)


def _pretraining(results: Mapping[str, Any]) -> Table | None:
    rows = [
        [
            row["pretraining"],
            row["objective"],
            ", ".join(row["data"]),
            count(row["images"]),
            count(row["steps"]),
        ]
        for row in results["pretraining"]
    ]
    header = ["Pretraining", "Objective", "Data", "Training images", "Steps"]
    seen = any("pretraining saw" in text for text in results["warnings"])
    caption = "Without labels." if seen else "Of training patients alone, without labels."
    return Table(caption, header, rows) if rows else None


def _tuned(results: Mapping[str, Any]) -> Table | None:
    rows = [
        [
            row["task"],
            row["init"],
            str(row["labels"]),
            str(row["tuned_at"]),
            _flat(row["chosen"]),
            str(row["tried"]),
            number(row["validation"]),
        ]
        for row in results["tuned"]
    ]
    header = ["Task", "Init", "Labels", "Chosen at", "Chosen", "Of", "Validation"]
    return Table("Chosen on validation, from the same grid for every init.", header, rows) if rows else None


def _flat(tree: Mapping[str, Any], place: str = "") -> str:
    parts = []
    for name, value in tree.items():
        inner = f"{place}.{name}" if place else str(name)
        if isinstance(value, Mapping):
            parts.append(_flat(value, inner))
        else:
            parts.append(f"{inner}={value:g}" if isinstance(value, float) else f"{inner}={value}")
    return ", ".join(parts)


def _section(results: Mapping[str, Any], task: str, place: int) -> Section:
    facts = results["tasks"][task]
    rows = [row for row in results["efficiency"] if row["task"] == task]
    inits = list(dict.fromkeys(row["init"] for row in rows))
    evaluations = list(dict.fromkeys(row["evaluation"] for row in rows))
    metric = facts["metrics"][0]
    figures, tables = [], []
    for number_, evaluation in enumerate(evaluations):
        mine = [row for row in rows if row["evaluation"] == evaluation]
        drawn = [row for row in mine if row["metric"] == metric]
        where = _where(facts, evaluation)
        drawn = [row for row in drawn if row["class"] == drawn[0]["class"]]
        if len({row["labels_used"] for row in drawn}) > 1 and any(
            finite(row["value"]) is not None for row in drawn
        ):
            figures.append(_curve(drawn, inits, f"task{place}-e{number_}", f"{metric_name(metric)}, {where}"))
        for each, klass in dict.fromkeys((row["metric"], row["class"]) for row in mine):
            part = [row for row in mine if (row["metric"], row["class"]) == (each, klass)]
            several = len({row["class"] for row in mine if row["metric"] == each}) > 1
            of_class = f" of {klass}" if several else ""
            tables.append((f"{metric_name(each)}{of_class}, {where}", _efficiency(part, results["baseline"])))
    figures += _synthetic(results, task, metric, inits, place)
    tables += _drift_tables(results, task, facts)
    tables += _subgroup_tables(results, task)
    return Section(f"task-{place}", task, _task_verdict(rows, metric, evaluations, facts), figures, tables)


def _where(facts: Mapping[str, Any], evaluation: str) -> str:
    if evaluation in facts["elsewhere"]:
        return f"{evaluation} as it is (trained on {facts['data']})"
    return f"{facts['data']}, {evaluation} patients"


def _task_verdict(
    rows: Sequence[Row], metric: str, evaluations: Sequence[str], facts: Mapping[str, Any]
) -> str:
    """Say of the fewest labels which init is best, and by how much."""
    said = []
    for evaluation in evaluations:
        mine = [row for row in rows if row["metric"] == metric and row["evaluation"] == evaluation]
        known = [
            row
            for row in mine
            if finite(row.get("difference")) is not None and finite(row["value"]) is not None
        ]
        if not known:
            continue
        fewest = min(row["labels_used"] for row in known)
        sign = -1 if metric in LOWER_IS_BETTER else 1
        best = max(
            (row for row in known if row["labels_used"] == fewest), key=lambda row: sign * row["difference"]
        )
        said.append(
            f"{_where(facts, evaluation)}, {plural(fewest, 'label')}: {best['init']} {number(best['value'])}, "
            f"{_signed(best['difference'])} {_span(best['difference_low'], best['difference_high'])} from the baseline"
        )
    return ". ".join(said) + "." if said else ""


def _signed(value: object, digits: int = 3) -> str:
    exact = finite(value)
    return "n/a" if exact is None else f"{exact:+.{digits}f}".replace("-", "−")


def _span(low: object, high: object) -> str:
    return (
        ""
        if finite(low) is None or finite(high) is None
        else f"[{_signed(low)}–{_signed(high)}]".replace("–", " to ")
    )


def _ci(row: Row) -> str:
    low, high = finite(row.get("low")), finite(row.get("high"))
    span = f" [{number(low)}–{number(high)}]" if low is not None and high is not None else ""
    return number(row.get("value")) + span


def _ticks(budgets: Iterable[float]) -> dict[float, str]:
    return {math.log2(budget): f"{budget:,.0f}" for budget in sorted(set(budgets))}


def _curve(rows: Sequence[Row], inits: Sequence[str], ident: str, title: str) -> Figure:
    """Return the label-efficiency curve: one line an init, with the band of its interval."""
    series = []
    for init in inits:
        mine = sorted((row for row in rows if row["init"] == init), key=lambda row: row["labels_used"])
        if mine:
            series.append(
                Series(
                    init,
                    [math.log2(row["labels_used"]) for row in mine],
                    [finite(row["value"]) for row in mine],
                    [finite(row["low"]) for row in mine],
                    [finite(row["high"]) for row in mine],
                    inits.index(init),
                    dots=True,
                )
            )
    desc = "; ".join(f"{one.name}: " + ", ".join(number(y) for y in one.y) for one in series)
    chart = line_chart(
        series, ident, title=title, desc=desc, x_label="labelled training images",
        x_texts=_ticks(row["labels_used"] for row in rows),
    )  # fmt: skip
    legend = [(swatch(one.index), one.name, "") for one in series]
    n = rows[0]
    people = f" of {plural(n['patients'], 'patient')}" if n["patients"] is not None else ""
    caption = (
        f"Mean over seeds with its interval, over patients and seeds. {plural(n['n'], 'image')}{people}."
    )
    return Figure(title, caption, [chart], legend=legend)


def _efficiency(rows: Sequence[Row], baseline: str) -> Table:
    body = []
    for row in rows:
        match = row.get("match")
        body.append(
            [
                str(row["labels_used"]),
                row["init"],
                _ci(row) if finite(row["value"]) is not None else str(row["reason"]),
                number(row["deviation"]) if finite(row["deviation"]) is not None else "–",
                "–"
                if finite(row.get("difference")) is None
                else f"{_signed(row['difference'])} {_span(row['difference_low'], row['difference_high'])}".strip(),
                number(row["p"]) if finite(row.get("p")) is not None else "–",
                _match(match) if match else "–",
            ]
        )
    header = [
        "Labels",
        "Init",
        "Mean [interval]",
        "Seeds’ SD",
        f"Minus {baseline} [interval]",
        "p",
        f"{baseline} needs",
    ]
    caption = (
        "Differences are paired by patient and seed. The last column: with how many labels the baseline is as good, "
        "by interpolation."
    )
    return Table(caption, header, body)


def _match(match: Mapping[str, Any]) -> str:
    def say(entry: Mapping[str, Any] | None) -> str:
        if entry is None:
            return "n/a"
        sign = {"=": "", ">": "> ", "<=": "≤ "}[entry["relation"]]
        return f"{sign}{count(entry['labels'])}"

    return f"{say(match['labels'])} [{say(match['low'])} to {say(match['high'])}]"


def _synthetic(
    results: Mapping[str, Any], task: str, metric: str, inits: Sequence[str], place: int
) -> list[Figure]:
    rows = [row for row in results["synthetic"] if row["task"] == task and row["metric"] == metric]
    plain = {row["init"]: row for row in rows if not row["severity"]}
    kinds = [kind for kind in dict.fromkeys(row["kind"] for row in rows) if kind != "none"]
    if not kinds:
        return []
    rows = [row for row in rows if row["class"] == rows[0]["class"]]
    ends = [end for row in rows for end in (row["low"], row["high"], row["value"]) if finite(end) is not None]
    if not ends:
        return []
    panels = []
    for number_, kind in enumerate(kinds):
        series = []
        for init in inits:
            mine = (
                [plain[init], *(r for r in rows if r["init"] == init and r["kind"] == kind)]
                if init in plain
                else []
            )
            if mine:
                series.append(
                    Series(
                        init,
                        [float(row["severity"]) for row in mine],
                        [finite(row["value"]) for row in mine],
                        [finite(row["low"]) for row in mine],
                        [finite(row["high"]) for row in mine],
                        inits.index(init),
                    )
                )
        desc = "; ".join(f"{one.name}: " + ", ".join(number(y) for y in one.y) for one in series)
        chart = line_chart(
            series, f"task{place}-d{number_}", title=f"{kind}: {metric_name(metric)} by severity", desc=desc,
            compact=True, y_range=(min(ends), max(ends)), x_texts={float(n): str(n) for n in range(6)},
        )  # fmt: skip
        panels.append((kind, "", chart))
    legend = [(swatch(inits.index(init)), init, "") for init in inits if init in plain]
    most = next(iter(plain.values()))["labels_used"]
    caption = (
        f"{metric_name(metric)} against severity (0 = unchanged), models of {plural(most, 'label')}; bands over "
        "patients and seeds."
    )
    return [Figure("Synthetic drift of the test images", caption, panels=panels, legend=legend)]


def _drift_tables(results: Mapping[str, Any], task: str, facts: Mapping[str, Any]) -> list[tuple[str, Table]]:
    made = []
    for where in facts["elsewhere"]:
        rows = [
            [
                str(row["labels_used"]),
                row["init"],
                metric_name(row["metric"]),
                number(row["value_here"]),
                number(row["value_there"]),
                _lost(row),
            ]
            for row in results["drift"]
            if row["task"] == task and row["evaluation"] == where
        ]
        if rows:
            header = ["Labels", "Init", "Metric", facts["data"], where, "Lost [interval]"]
            caption = (
                "Own test images less the other data set; other patients, so both their uncertainties count."
            )
            made.append((f"What is lost on {where}", Table(caption, header, rows)))
    return made


def _lost(row: Row) -> str:
    """Say how much worse it is elsewhere: less of what is better larger, more of what is better smaller."""
    value, low, high = (finite(row[name]) for name in ("difference", "difference_low", "difference_high"))
    if row["metric"] in LOWER_IS_BETTER:
        value, low, high = (None if end is None else -end for end in (value, high, low))
    return f"{_signed(value)} {_span(low, high)}".strip()


def _subgroup_tables(results: Mapping[str, Any], task: str) -> list[tuple[str, Table]]:
    made = []
    rows = [row for row in results["subgroups"] if row["task"] == task]
    for evaluation, column in dict.fromkeys((row["evaluation"], row["column"]) for row in rows):
        mine = [row for row in rows if (row["evaluation"], row["column"]) == (evaluation, column)]
        body = [
            [
                str(row["group"]),
                row["init"],
                metric_name(row["metric"]),
                count(row["n"]),
                count(row["patients"]) if row["patients"] is not None else "–",
                _ci(row) if finite(row["value"]) is not None else str(row["reason"]),
            ]
            for row in mine
        ]
        header = [column, "Init", "Metric", "Images", "Patients", "Value [interval]"]
        gaps = [
            f"{row['init']}, {metric_name(row['metric'])}: {row['first']} above {row['second']} by "
            f"{number(row['difference'])} {_span(row['low'], row['high'])} "
            f"(p {number(row['p_adjusted'])} after the search)"
            for row in results["gaps"]
            if (row["task"], row["evaluation"], row["column"]) == (task, evaluation, column)
            and finite(row.get("difference")) is not None
        ]
        largest = f" Largest gap – {'; '.join(gaps)}." if gaps else ""
        caption = f"Mean over seeds; intervals over patients.{largest}"
        made.append((f"By {column}, {evaluation}", Table(caption, header, body)))
    return made


def _shift(row: Row) -> tuple[str, str]:
    """Return how a shift is to be shown, and what is said of it."""
    if row["flag"] is None:
        return "warn", f"{row['shift']}: no verdict ({row['reason']})."
    if row["flag"]:
        return "warn", f"{row['shift']}: the images differ from the reference (p {number(row['p'])})."
    return (
        "ok",
        f"{row['shift']}: no shift found (p {number(row['p'])}); that does not show that there is none.",
    )


def _shift_table(results: Mapping[str, Any]) -> Table | None:
    rows = [
        [
            row["shift"],
            count(row["patients"]["reference"]),
            count(row["patients"]["target"]),
            number(row["p"]),
            number(row["mmd"]["effect"]),
            number(row["classifier"]["auroc"]),
        ]
        for row in results["shift"]
    ]
    header = ["Shift", "Reference", "Target", "p", "MMD effect", "Classifier’s AUROC"]
    caption = (
        f"Patients or images on each side; p by permutation. Flagged at {results['shift'][0]['level']:g}."
        if rows
        else ""
    )
    return Table(caption, header, rows) if rows else None


def _limits(results: Mapping[str, Any]) -> list[str]:
    said = [
        "Intervals of means take in which patients were tested and which seeds were drawn; not which patients were "
        "trained on, nor which pretraining was made.",
        "No correction was made for the number of comparisons.",
    ]
    if any(row["evaluation"] == "validation" for row in results["efficiency"]):
        said.append(
            "A task without test images is measured on the validation images by which its steps and settings were "
            "chosen, which flatters every init."
        )
    undefined = [row for row in results["efficiency"] if row.get("undefined")]
    if undefined:
        said.append(
            "Mean distances leave out images for which a model predicts nothing; differences are of the images for "
            "which all compared runs predict something. Read them with Dice."
        )
    if len(results["seeds"]) < 3:
        said.append(
            f"With {plural(len(results['seeds']), 'seed')} the spread between trainings is hardly known."
        )
    return said
