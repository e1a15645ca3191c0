"""The tables of the report.

Everything here turns the dictionaries of a run folder into plain rows; the templates place them.
A value that is absent is written ``n/a`` with its reason, never left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from scanprior.evaluation import LOWER_IS_BETTER, UNBOUNDED
from scanprior.reporting.formatting import count, finite, interval, number, plural
from scanprior.reporting.runfiles import part

METRIC_NAMES = {
    "auroc": "AUROC",
    "average_precision": "Average precision",
    "accuracy": "Accuracy",
    "balanced_accuracy": "Balanced accuracy",
    "sensitivity": "Sensitivity",
    "specificity": "Specificity",
    "precision": "Precision",
    "ppv": "Positive predictive value",
    "npv": "Negative predictive value",
    "f1": "F1",
    "macro_precision": "Macro precision, most probable class",
    "macro_f1": "Macro F1, most probable class",
    "kappa": "Cohen’s κ",
    "quadratic_kappa": "Quadratic weighted κ",
    "brier": "Brier score",
    "ece": "Expected calibration error",
    "log_loss": "Log loss",
    "dice": "Dice",
    "iou": "IoU",
    "hausdorff95": "95 % Hausdorff distance",
    "surface_distance": "Average surface distance",
}
COMBINATIONS = {
    "mean": "mean of the probabilities",
    "geometric": "geometric mean of the probabilities",
    "calibrated": "mean of the probabilities after a temperature for each member",
    "weighted": "weighted mean of the probabilities",
}
COLUMN_NAMES = {"ece": "ECE"}  # where the full name would make a table too wide
WHOLE_SET = ("all", "macro", "micro", "weighted")
SPLIT_ORDER = ("train", "val", "test")

Evaluation = Mapping[str, Any]


def combination_name(method: str) -> str:
    """Return what a method of combining the members of an ensemble does."""
    return COMBINATIONS.get(method, method)


def metric_name(name: str) -> str:
    """Return the name a reader knows a metric by."""
    return METRIC_NAMES.get(name, name.replace("_", " ").capitalize())


def bar_style(value: float, low: float | None, high: float | None, floor: float = 0.0) -> str:
    """Return the custom properties that place an interval bar on the axis [floor, 1], as fractions.

    ``--v`` is the estimate, ``--a`` and ``--b`` the ends of its interval (both at the estimate when there
    is none). Values off the axis are drawn at its edge; the exact numbers always stand beside the bar.
    """

    def place(v: float) -> str:
        return f"{min(max((v - floor) / (1 - floor), 0.0), 1.0):.4f}"

    a, b = (value if end is None else end for end in (low, high))
    return f"--v:{place(value)};--a:{place(a)};--b:{place(b)}"


@dataclass(frozen=True)
class MetricRow:
    """One metric of one class or of the whole set, ready to print."""

    name: str
    arrow: str
    scope: str
    value: str
    interval: str
    method: str
    n: str
    positives: str
    reason: str
    bar: str
    mark: str = ""


def metric_row(entry: Mapping[str, Any]) -> MetricRow:
    """Turn one entry of an evaluation's ``metrics`` into a row."""
    value, low, high = (finite(entry.get(k)) for k in ("value", "low", "high"))
    method = str(entry.get("interval") or "")
    if value is not None and not method:
        method = "none computed"
    reason = "" if value is not None else str(entry.get("reason") or "n/a: no reason was recorded")
    metric = str(entry.get("metric", "?"))
    return MetricRow(
        name=metric_name(metric),
        arrow="↓" if metric in LOWER_IS_BETTER else "",
        scope=str(entry.get("class") or "all"),
        value=number(value),
        interval=interval(low, high),
        method=method,
        n=count(entry["n"]) if finite(entry.get("n")) is not None else "",
        positives=count(entry["positives"]) if finite(entry.get("positives")) is not None else "",
        reason=reason,
        bar="" if value is None or metric in UNBOUNDED else bar_style(value, low, high),
    )


def metric_entries(evaluation: Evaluation) -> list[Mapping[str, Any]]:
    """Return the evaluation's metric entries (dictionaries only)."""
    return [m for m in evaluation.get("metrics") or [] if isinstance(m, Mapping)]


@dataclass(frozen=True)
class MetricTable:
    """Metrics of the whole set, with footnotes that say how the intervals were made."""

    rows: list[MetricRow]
    methods: list[tuple[str, str]]  # mark, text


def overall(evaluation: Evaluation) -> MetricTable:
    """Return the whole set's metrics; where one class only was scored (binary), that class's come first."""
    entries = metric_entries(evaluation)
    single = len(scored_classes(evaluation)) == 1
    own = [m for m in entries if m.get("class") not in WHOLE_SET] if single else []
    rows = _named_apart([metric_row(m) for m in [*own, *(m for m in entries if m.get("class") in WHOLE_SET)]])
    methods = _Footnotes("abcdefgh")
    marked = [replace(r, mark=methods.mark(r.method)) if r.interval else r for r in rows]
    return MetricTable(marked, [(mark, text) for text, mark in methods.texts.items()])


def every(evaluation: Evaluation) -> list[MetricRow]:
    """Return all metrics, one a row."""
    return _named_apart([metric_row(m) for m in metric_entries(evaluation)])


def _named_apart(rows: list[MetricRow]) -> list[MetricRow]:
    """Add the interval's method to the name of a metric that comes a second time for the same class."""
    seen: set[tuple[str, str]] = set()
    out = []
    for row in rows:
        again = (row.name, row.scope) in seen
        seen.add((row.name, row.scope))
        out.append(replace(row, name=f"{row.name} ({row.method})") if again and row.method else row)
    return out


def scored_classes(evaluation: Evaluation) -> list[str]:
    """Return the classes that have metrics of their own, in the evaluation's order."""
    present = dict.fromkeys(
        str(m.get("class")) for m in metric_entries(evaluation) if m.get("class") not in WHOLE_SET
    )
    order = [str(c) for c in evaluation.get("classes") or []]
    return [c for c in order if c in present] + [c for c in present if c not in order]


@dataclass(frozen=True)
class Cell:
    """A value with its interval; ``note`` is the mark of its footnote."""

    value: str = ""
    interval: str = ""
    note: str = ""


@dataclass(frozen=True)
class ClassTable:
    """Classes down, metrics across; footnotes say how intervals were made and why a value is n/a."""

    columns: list[str]
    rows: list[tuple[str, str, str, list[Cell]]]  # class, n, positives, cells
    methods: list[tuple[str, str]]  # mark, text
    reasons: list[tuple[str, str]]


class _Footnotes:
    """Numbers texts in the order they are first met."""

    def __init__(self, marks: str) -> None:
        self._marks = marks
        self.texts: dict[str, str] = {}

    def mark(self, text: str) -> str:
        place = len(self.texts)
        fresh = self._marks[place] if place < len(self._marks) else str(place + 1)
        return self.texts.setdefault(text, fresh)


def by_class(evaluation: Evaluation) -> ClassTable | None:
    """Return the per-class table, or None when there are not two scored classes."""
    classes = scored_classes(evaluation)
    if len(classes) < 2:
        return None
    entries = [m for m in metric_entries(evaluation) if str(m.get("class")) in classes]
    # One column a metric and interval method, so that AUROC by bootstrap and by DeLong stand side by side.
    seen: dict[str, dict[str, Mapping[str, Any]]] = {}
    for entry in entries:
        metric, klass = str(entry.get("metric", "?")), str(entry.get("class"))
        name = COLUMN_NAMES.get(metric, metric_name(metric)) + (" ↓" if metric in LOWER_IS_BETTER else "")
        while klass in seen.get(name, {}):
            name += f" ({entry.get('interval') or 'again'})"
        seen.setdefault(name, {})[klass] = entry
    methods, reasons = _Footnotes("abcdefgh"), _Footnotes("123456789")
    rows = []
    for klass in classes:
        cells = []
        for column in seen.values():
            found = column.get(klass)
            cells.append(Cell("—") if found is None else _cell(found, methods, reasons))
        mine = [m for m in entries if str(m.get("class")) == klass]
        n = _common(m.get("n") for m in mine)
        rows.append((klass, n, _common(m.get("positives") for m in mine), cells))
    return ClassTable(
        list(seen),
        rows,
        [(m, t) for t, m in methods.texts.items()],
        [(m, t) for t, m in reasons.texts.items()],
    )


def _cell(entry: Mapping[str, Any], methods: _Footnotes, reasons: _Footnotes) -> Cell:
    row = metric_row(entry)
    if row.reason:
        return Cell("n/a", "", reasons.mark(row.reason))
    return Cell(row.value, row.interval, methods.mark(row.method))


def _common(values: Iterable[object]) -> str:
    """Write the number all agree on, or the range they span."""
    known = sorted({v for v in map(finite, values) if v is not None})
    if not known:
        return ""
    return count(known[0]) if len(known) == 1 else f"{count(known[0])}–{count(known[-1])}"


@dataclass(frozen=True)
class ThresholdRow:
    """The operating point of one class and what it gives on this set."""

    klass: str
    value: str
    rule: str
    chosen_on: str
    sensitivity: str
    specificity: str


def thresholds(evaluation: Evaluation) -> list[ThresholdRow]:
    """Return the threshold table."""
    found = evaluation.get("thresholds") or {}
    at = {(m.get("metric"), m.get("class")): metric_row(m) for m in metric_entries(evaluation)}

    def result(metric: str, klass: str) -> str:
        row = at.get((metric, klass))
        return "—" if row is None else f"{row.value} {row.interval}".strip()

    return [
        ThresholdRow(
            klass,
            number(t.get("value")),
            str(t.get("rule") or "not recorded"),
            str(t.get("chosen_on") or "not recorded"),
            result("sensitivity", klass),
            result("specificity", klass),
        )
        for klass, t in found.items()
        if isinstance(t, Mapping)
    ]


@dataclass(frozen=True)
class Confusion:
    """Counts with the true class down; ``rows`` holds (class, total, [(count, share of the row, text)])."""

    classes: list[str]
    rows: list[tuple[str, str, list[tuple[str, str, str]]]]


def confusion(evaluation: Evaluation) -> Confusion | None:
    """Return the confusion matrix, or None when the evaluation has none."""
    found = evaluation.get("confusion")
    if not isinstance(found, Mapping) or not found.get("counts"):
        return None
    classes = [str(c) for c in found.get("classes") or evaluation.get("classes") or []]
    rows = []
    for klass, counts in zip(classes, found["counts"], strict=False):
        total = sum(counts)
        shares = [c / total if total else 0.0 for c in counts]
        rows.append(
            (
                klass,
                count(total),
                [
                    (count(c), f"{s:.3f}", f"{100 * s:.0f} %" if total else "–")
                    for c, s in zip(counts, shares, strict=True)
                ],
            )
        )
    return Confusion(classes, rows)


def headline(evaluation: Evaluation) -> Mapping[str, Any] | None:
    """Return the metric entry that stands for an evaluation.

    The AUROC of the positive class, else the macro AUROC, else any AUROC, else the first entry.
    """
    entries = metric_entries(evaluation)
    positive = evaluation.get("positive_class")
    scores = [m for m in entries if m.get("metric") == "auroc"]
    for wanted in (positive, "macro"):
        for entry in scores:
            if wanted and entry.get("class") == wanted:
                return entry
    return next(iter([*scores, *entries]), None)


def headline_text(evaluation: Evaluation, digits: int = 2) -> str:
    """Write the headline as one line: ``AUROC 0.93 [0.91–0.95]``."""
    entry = headline(evaluation)
    if entry is None:
        return "no metric was recorded"
    name = metric_name(str(entry.get("metric")))
    if entry.get("class") == "macro":
        name = f"Macro {name}"
    if finite(entry.get("value")) is None:
        return f"{name} n/a ({metric_row(entry).reason.removeprefix('n/a ')})"
    span = interval(entry.get("low"), entry.get("high"), digits) or "(no interval)"
    return f"{name} {number(entry['value'], digits)} {span}"


def evaluated_on(evaluation: Evaluation) -> str:
    """Write what was evaluated: ``on 624 images of 420 patients (test)``."""
    patients = finite(evaluation.get("patients"))
    of = f" of {plural(patients, 'patient')}" if patients is not None else ""
    if evaluation.get("unit") not in (None, "image", "patient"):
        of += f" in {plural(evaluation.get('units'), str(evaluation['unit']))}"
    return f"on {plural(evaluation.get('n'), 'image')}{of} ({evaluation.get('name') or 'unnamed set'})"


def counts_by_split(model: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return the splits, and rows of images, patients and each class over them (share of the split's images)."""
    counts = part(model, "data", "split", "counts")
    splits = sorted(counts, key=lambda s: (SPLIT_ORDER.index(s) if s in SPLIT_ORDER else 9, s))
    if not splits:
        return [], []
    rows = [
        [name.capitalize(), *(count(counts[s].get(name)) for s in splits)] for name in ("images", "patients")
    ]
    classes = dict.fromkeys(str(c) for s in splits for c in counts[s].get("labels") or {})
    for klass in classes:
        cells = [klass]
        for split in splits:
            n, images = (
                finite((counts[split].get("labels") or {}).get(klass, 0)),
                finite(counts[split].get("images")),
            )
            share = f" ({100 * n / images:.0f} %)" if n is not None and images else ""
            cells.append(f"{count(n)}{share}")
        rows.append(cells)
    return splits, rows


def sources_of(model: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the data sources named in the card."""
    return [s for s in part(model, "data").get("sources") or [] if isinstance(s, Mapping)]


def sources(model: Mapping[str, Any]) -> list[list[str]]:
    """Return one row a data source: name, images, patients, layout, fingerprint, images left out."""
    rows = []
    for source in sources_of(model):
        left = source.get("left_out")
        left_count = len(left) if isinstance(left, Sequence) and not isinstance(left, str) else left
        rows.append(
            [
                str(source.get("name") or "unnamed"),
                count(source.get("images")),
                count(source.get("patients")),
                str(source.get("layout") or "–"),
                str(source.get("fingerprint") or "–"),
                count(left_count or 0),
            ]
        )
    return rows


def left_out(model: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Return (source, image, reason) of every image that was left out and is named in the card."""
    rows = []
    for source in sources_of(model):
        name, left = str(source.get("name") or "unnamed"), source.get("left_out")
        for item in left if isinstance(left, list) else []:
            if isinstance(item, Mapping):
                rows.append(
                    (name, str(item.get("image", "?")), str(item.get("reason") or "no reason recorded"))
                )
            else:
                rows.append((name, str(item), "no reason recorded"))
    return rows
