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
from scanprior.reporting.study_arms import (
    absent_ones,
    correction_limit,
    families,
    family_text,
    rank_table,
    regime_tables,
    shown,
)
from scanprior.reporting.study_costs import cost_figures, cost_table
from scanprior.reporting.study_tables import (
    Row,
    Table,
    contrast_table,
    data_table,
    drift_tables,
    efficiency_table,
    ensemble_tables,
    pretraining_table,
    shift_table,
    signed,
    span,
    subgroup_tables,
    tuned_table,
)
from scanprior.reporting.tables import metric_name


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
    absent: list[str]
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


def write_study_report(page: StudyPage, out: Path) -> Path:
    """Write the report of a study as one HTML file that needs no network, and return its path.

    Args:
        page: from ``gather``.
        out: the file to write.

    Raises:
        RunError: the page cannot be written.
    """
    return write_page(out, environment().get_template("study.html").render(page=page))


def gather(results: Mapping[str, Any], costs: Sequence[Row] = ()) -> StudyPage:
    """Decide what every section says of what ``results.json`` holds, and of what the trainings cost."""
    results = shown(results)
    sections = [_together(results, costs)]
    sections += [_section(results, task, place) for place, task in enumerate(results["tasks"])]
    level = f"{results['level']:.0%}".replace("%", " %")
    return StudyPage(
        title=str(results["title"]),
        question=str(results["question"]),
        verdict=_verdict(results),
        failed=list(results["failed"].items()),
        warnings=list(results["warnings"]),
        absent=absent_ones(results),
        facts=[
            ("Baseline", str(results["baseline"])),
            *([("Regimes", ", ".join(results["regimes"]))] if results.get("regimes") else []),
            *([("Random weights", ", ".join(results["random"]))] if results.get("random") else []),
            ("Seeds", ", ".join(map(str, results["seeds"]))),
            ("Intervals", level),
            ("Resamples of patients", count(results["resamples"])),
            ("Recipe", f"{results['name']} ({results['recipe']})"),
        ],
        data=data_table(results),
        pretraining=pretraining_table(results),
        tuned=tuned_table(results),
        sections=[section for section in sections if section.tables],
        shifts=[_shift(row) for row in results["shift"]],
        shift_table=shift_table(results),
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
    said = (
        f"Of {plural(len(rows), 'comparison')} with {results['baseline']}: {better} better beyond their interval, "
        f"{worse} worse, {len(rows) - better - worse} not decided."
    )
    if not any("p_holm" in row for row in rows):
        return said
    corrected = [row["p_holm"] for row in rows if _better(row) or _worse(row)]
    hold = sum(value is not None and value <= 1 - results["level"] for value in corrected)
    return f"{said} {hold} of them {'holds' if hold == 1 else 'hold'} after correction for their number."


def _together(results: Mapping[str, Any], costs: Sequence[Row]) -> Section:
    """Return what all tasks say together: average ranks, and what is paid for what."""
    tables = [("Average rank", rank_table(results)), ("What it costs", cost_table(costs, results))]
    figures = cost_figures(costs, results)
    return Section(
        "together", "All tasks together", "", figures, [(name, t) for name, t in tables if t is not None]
    )


def _better(row: Row) -> bool:
    edge = row["difference_high"] if row["metric"] in LOWER_IS_BETTER else row["difference_low"]
    return bool(edge < 0 if row["metric"] in LOWER_IS_BETTER else edge > 0)


def _worse(row: Row) -> bool:
    edge = row["difference_low"] if row["metric"] in LOWER_IS_BETTER else row["difference_high"]
    return bool(edge > 0 if row["metric"] in LOWER_IS_BETTER else edge < 0)


def _section(results: Mapping[str, Any], task: str, place: int) -> Section:
    facts = results["tasks"][task]
    rows = [row for row in results["efficiency"] if row["task"] == task]
    inits, arms = (list(dict.fromkeys(row[name] for row in rows)) for name in ("init", "arm"))
    sizes = families(results)
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
            regimes = list(dict.fromkeys(row.get("regime") for row in drawn))
            for part_, regime in enumerate(regimes):
                part = [row for row in drawn if row.get("regime") == regime]
                of_regime = "" if regime is None else f", {regime}"
                ident = f"task{place}-e{number_}" + (f"-{part_}" if part_ else "")
                figures.append(_curve(part, inits, ident, f"{metric_name(metric)}, {where}{of_regime}"))
        for each, klass in dict.fromkeys((row["metric"], row["class"]) for row in mine):
            part = [row for row in mine if (row["metric"], row["class"]) == (each, klass)]
            several = len({row["class"] for row in mine if row["metric"] == each}) > 1
            of_class = f" of {klass}" if several else ""
            family = family_text(each, sizes[each]) if each in sizes else ""
            tables.append(
                (
                    f"{metric_name(each)}{of_class}, {where}",
                    efficiency_table(part, results["short_baseline"], family),
                )
            )
    figures += _synthetic(results, task, metric, arms, place)
    tables += regime_tables(results, task, {name: _where(facts, name) for name in evaluations})
    if (contrasts := contrast_table(results, task)) is not None:
        tables.append(("Comparisons asked for", contrasts))
    tables += ensemble_tables(results, task, facts)
    tables += drift_tables(results, task, facts)
    tables += subgroup_tables(results, task)
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
            f"{_where(facts, evaluation)}, {plural(fewest, 'label')}: {best['arm']} {number(best['value'])}, "
            f"{signed(best['difference'])} {span(best['difference_low'], best['difference_high'])} from the baseline"
        )
    return ". ".join(said) + "." if said else ""


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
        f"Mean over seeds with its interval, over {n['unit']}s and seeds. {plural(n['n'], 'image')}{people}."
    )
    return Figure(title, caption, [chart], legend=legend)


def _synthetic(
    results: Mapping[str, Any], task: str, metric: str, arms: Sequence[str], place: int
) -> list[Figure]:
    rows = [row for row in results["synthetic"] if row["task"] == task and row["metric"] == metric]
    plain = {row["arm"]: row for row in rows if not row["severity"]}
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
        for arm in arms:
            mine = (
                [plain[arm], *(r for r in rows if r["arm"] == arm and r["kind"] == kind)]
                if arm in plain
                else []
            )
            if mine:
                series.append(
                    Series(
                        arm,
                        [float(row["severity"]) for row in mine],
                        [finite(row["value"]) for row in mine],
                        [finite(row["low"]) for row in mine],
                        [finite(row["high"]) for row in mine],
                        arms.index(arm),
                    )
                )
        desc = "; ".join(f"{one.name}: " + ", ".join(number(y) for y in one.y) for one in series)
        chart = line_chart(
            series, f"task{place}-d{number_}", title=f"{kind}: {metric_name(metric)} by severity", desc=desc,
            compact=True, y_range=(min(ends), max(ends)), x_texts={float(n): str(n) for n in range(6)},
        )  # fmt: skip
        panels.append((kind, "severity 0 to 5", chart))
    legend = [(swatch(arms.index(arm)), arm, "") for arm in arms if arm in plain]
    most = next(iter(plain.values()))["labels_used"]
    caption = (
        f"{metric_name(metric)} against severity (0 = unchanged), models of {plural(most, 'label')}; bands over "
        f"{rows[0]['unit']}s and seeds."
    )
    return [Figure("Synthetic drift of the test images", caption, panels=panels, legend=legend)]


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


def _limits(results: Mapping[str, Any]) -> list[str]:
    said = [
        "Intervals of means take in which patients or images were tested and which seeds were drawn; not which were "
        "trained on, nor which pretraining was made.",
        correction_limit(results),
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
