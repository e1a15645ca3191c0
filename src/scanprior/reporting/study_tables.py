"""The tables of a study's report: rows of ``results.json`` in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from scanprior.evaluation import LOWER_IS_BETTER
from scanprior.reporting.formatting import count, finite, number
from scanprior.reporting.tables import combination_name, metric_name

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Table:
    """A table with its caption."""

    caption: str
    header: list[str]
    rows: list[list[str]]


def data_table(results: Mapping[str, Any]) -> Table:
    """Return what is said of the data sets."""
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
    return Table(_division(results), header, rows)


def _division(results: Mapping[str, Any]) -> str:
    splits = [source["split"] for source in results["data"].values() if source["split"]]
    by = "by patient"
    if any(split.get("group") == "near_duplicates" for split in splits):
        by = "by patient and near duplicate"
    if not results["folds"]:
        return f"The division is {by}, made once, and the same in every run."
    return (
        f"Divided {by} into {results['folds']} parts; everything was done once for each of them as test images, and "
        "metrics are means over them. Images are counted for the first."
    )


def pretraining_table(results: Mapping[str, Any]) -> Table | None:
    """Return the pretrainings; None where there is none."""
    rows = [
        [
            _of_fold(row["pretraining"], row),
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


def tuned_table(results: Mapping[str, Any]) -> Table | None:
    """Return what was chosen on validation; None where nothing was."""
    rows = [
        [
            _of_fold(row["task"], row),
            row["arm"],
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


def _of_fold(name: str, row: Row) -> str:
    return f"{name}, fold {row['fold']}" if row["fold"] else name


def _flat(tree: Mapping[str, Any], place: str = "") -> str:
    parts = []
    for name, value in tree.items():
        inner = f"{place}.{name}" if place else str(name)
        if isinstance(value, Mapping):
            parts.append(_flat(value, inner))
        else:
            parts.append(f"{inner}={value:g}" if isinstance(value, float) else f"{inner}={value}")
    return ", ".join(parts)


def signed(value: object, digits: int = 3) -> str:
    """Write a difference with its sign."""
    exact = finite(value)
    return "n/a" if exact is None else f"{exact:+.{digits}f}".replace("-", "−")


def span(low: object, high: object) -> str:
    """Write the interval of a difference; nothing where there is none."""
    return (
        ""
        if finite(low) is None or finite(high) is None
        else f"[{signed(low)}–{signed(high)}]".replace("–", " to ")
    )


def difference_text(row: Row) -> str:
    """Write the difference of a comparison with its interval, or why there is none; a dash where none was made."""
    if finite(row.get("difference")) is None:
        return str(row.get("difference_reason") or "–")
    return f"{signed(row['difference'])} {span(row['difference_low'], row['difference_high'])}".strip()


def p_text(row: Row, name: str = "p") -> str:
    """Write a p-value, or a dash."""
    return number(row[name]) if finite(row.get(name)) is not None else "–"


def _ci(row: Row) -> str:
    low, high = finite(row.get("low")), finite(row.get("high"))
    span = f" [{number(low)}–{number(high)}]" if low is not None and high is not None else ""
    return number(row.get("value")) + span


def efficiency_table(rows: Sequence[Row], baseline: str, family: str = "") -> Table:
    """Return one metric of one evaluation: a row a budget, init and regime; ``family``: what p was corrected for."""
    body = []
    regimes, corrected = any(row.get("regime") for row in rows), any("p_holm" in row for row in rows)
    for row in rows:
        match = row.get("match")
        body.append(
            [
                str(row["labels_used"]),
                row["init"],
                *([row.get("regime") or "–"] if regimes else []),
                _ci(row) if finite(row["value"]) is not None else str(row["reason"]),
                number(row["deviation"]) if finite(row["deviation"]) is not None else "–",
                difference_text(row),
                *(p_text(row, name) for name in (("p", "p_holm") if corrected else ("p",))),
                labels_to_match(match) if match else "–",
            ]
        )
    header = [
        "Labels",
        "Init",
        *(["Regime"] if regimes else []),
        "Mean [interval]",
        "Seeds’ SD",
        f"Minus {baseline} [interval]",
        "p",
        *(["p (Holm)"] if corrected else []),
        f"Labels {baseline} needs",
    ]
    in_same = ", in the same regime" if regimes else ""
    caption = (
        f"Differences are paired by {rows[0]['unit']} and seed{in_same}.{f' {family}' if family else ''}"
    )
    if any(row.get("match") for row in rows):
        caption += " The last column: with how many labels the baseline is as good, by interpolation."
    else:  # a single budget, or a metric without such a curve
        header, body = header[:-1], [cells[:-1] for cells in body]
    return Table(caption, header, body)


def labels_to_match(match: Mapping[str, Any]) -> str:
    """Return with how many labels the baseline is as good, and the interval, as a cell of a table."""

    def say(entry: Mapping[str, Any] | None) -> str:
        if entry is None:
            return "n/a"
        sign = {"=": "", ">": "> ", "<=": "≤ "}[entry["relation"]]
        return f"{sign}{count(entry['labels'])}"

    value, low, high = (say(match[name]) for name in ("labels", "low", "high"))
    return value if value == low == high else f"{value} [{low} to {high}]"  # beyond what was tried, all three


def ensemble_tables(
    results: Mapping[str, Any], task: str, facts: Mapping[str, Any]
) -> list[tuple[str, Table]]:
    """Return, of every evaluation and metric, what the ensembles of a task gain over members and each other."""
    made = []
    rows = [row for row in results["ensembles"] if row["task"] == task]
    several = {
        key for key in ((row["metric"], row["class"]) for row in rows) if key[1] not in ("all", "macro")
    }
    told = "; ".join(
        f"{name} is the {combination_name(spec['method'])}, of {', '.join(spec['members'])}"
        for name, spec in facts["ensembles"].items()
    )
    further = any("+" in member for spec in facts["ensembles"].values() for member in spec["members"])
    caption = (
        f"{told}. {'+1: another training of the init on the same labels. ' if further else ''}Paired by "
        f"{rows[0]['unit'] if rows else 'patient'} and seed. The best member is chosen on validation, for each seed."
    )
    header = ["Labels", "Ensemble", "Minus", "Ensemble’s", "The other’s", "Difference [interval]", "p"]
    for evaluation, metric, cls in dict.fromkeys(
        (row["evaluation"], row["metric"], row["class"]) for row in rows
    ):
        body = [
            [
                str(row["labels_used"]),
                row["arm"],
                row["against"],
                number(row["value"]),
                number(row["value_against"]),
                difference_text(row),
                p_text(row),
            ]
            for row in rows
            if (row["evaluation"], row["metric"], row["class"]) == (evaluation, metric, cls)
        ]
        of = f" of {cls}" if (metric, cls) in several else ""
        title = f"What ensembles gain: {metric_name(metric)}{of}, {evaluation}"
        made.append((title, Table(caption, header, body)))
        caption = "As above."
    return made


def contrast_table(results: Mapping[str, Any], task: str) -> Table | None:
    """Return the differences that the recipe asks for beside those from the baseline; None where it asks for none."""
    rows = [row for row in results["contrasts"] if row["task"] == task]
    several = {
        key for key in ((row["metric"], row["class"]) for row in rows) if key[1] not in ("all", "macro")
    }
    body = [
        [
            f"{row['arm']} minus {row['against']}",
            row["evaluation"],
            metric_name(row["metric"])
            + (f" of {row['class']}" if (row["metric"], row["class"]) in several else ""),
            str(row["labels_used"]),
            number(row["value"]),
            number(row["value_against"]),
            difference_text(row),
            p_text(row),
        ]
        for row in rows
    ]
    header = [
        "Comparison",
        "Images",
        "Metric",
        "Labels",
        "The first",
        "The second",
        "Difference [interval]",
        "p",
    ]
    return Table(f"Paired by {rows[0]['unit']} and seed.", header, body) if rows else None


def drift_tables(results: Mapping[str, Any], task: str, facts: Mapping[str, Any]) -> list[tuple[str, Table]]:
    """Return, of every other data set, what is lost on it."""
    made = []
    for where in facts["elsewhere"]:
        rows = [
            [
                str(row["labels_used"]),
                row["arm"],
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
    return f"{signed(value)} {span(low, high)}".strip()


def subgroup_tables(results: Mapping[str, Any], task: str) -> list[tuple[str, Table]]:
    """Return the subgroups of every column and evaluation."""
    made = []
    rows = [row for row in results["subgroups"] if row["task"] == task]
    for evaluation, column in dict.fromkeys((row["evaluation"], row["column"]) for row in rows):
        mine = [row for row in rows if (row["evaluation"], row["column"]) == (evaluation, column)]
        body = [
            [
                str(row["group"]),
                row["arm"],
                metric_name(row["metric"]),
                count(row["n"]),
                count(row["patients"]) if row["patients"] is not None else "–",
                _ci(row) if finite(row["value"]) is not None else str(row["reason"]),
            ]
            for row in mine
        ]
        header = [column, "Init", "Metric", "Images", "Patients", "Value [interval]"]
        gaps = [
            f"{row['arm']}, {metric_name(row['metric'])}: {row['first']} above {row['second']} by "
            f"{number(row['difference'])} {span(row['low'], row['high'])} "
            f"(p {number(row['p_adjusted'])} after the search)"
            for row in results["gaps"]
            if (row["task"], row["evaluation"], row["column"]) == (task, evaluation, column)
            and finite(row.get("difference")) is not None
        ]
        largest = f" Largest gap – {'; '.join(gaps)}." if gaps else ""
        caption = f"Mean over seeds; intervals over patients.{largest}"
        made.append((f"By {column}, {evaluation}", Table(caption, header, body)))
    return made


def shift_table(results: Mapping[str, Any]) -> Table | None:
    """Return the label-free shifts; None where there are none."""
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
