"""The figures of the report: which curves stand in which chart, with legend, caption and table.

Up to four classes share a chart; more are drawn as small multiples, each class in colour before all the
others in grey, because a chart of fourteen bands shows nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from markupsafe import Markup

from scanprior.reporting.formatting import count, finite, interval, level_of, number, scalar
from scanprior.reporting.plots import CurveKind, Series, context_lines, curve_chart, line_chart, swatch
from scanprior.reporting.tables import Evaluation, headline, metric_entries, metric_name

SHARED_CHART = 4  # classes that still read well in one chart
BINS = 240  # points that a training curve keeps

_TITLES: dict[CurveKind, str] = {"roc": "ROC", "pr": "Precision–recall", "reliability": "Reliability"}
_KEYS: dict[CurveKind, tuple[str, str, str]] = {
    "roc": ("fpr", "tpr", "auroc"),
    "pr": ("recall", "precision", "average_precision"),
    "reliability": ("confidence", "frequency", "ece"),
}
_CAPTIONS: dict[CurveKind, str] = {
    "roc": "Dotted: chance. A ring marks the operating point at the chosen threshold.",
    "pr": "Dotted: the share of positives, which is what chance gives.",
    "reliability": "On the dotted line, predicted probabilities are as frequent as they say. "
    "Larger dots are bins with more images.",
}
_BANDS: dict[CurveKind, str] = {
    "roc": "Shaded: {level} band. ",
    "pr": "Shaded: {level} band. ",
    "reliability": "Whiskers: {level} interval of each bin. ",
}

# What training logs are called in the report, in the order they are shown, and whether the axis starts at 0.
_LOGGED: dict[str, tuple[str, bool]] = {
    "loss": ("Loss", False),
    "embedding_std": ("Embedding spread", True),
    "channel_diversity": ("Difference between channels", True),
    "lr": ("Learning rate", True),
    "weight_decay": ("Weight decay", True),
    "images_per_second": ("Images per second", True),
    "probe_auroc": ("AUROC of a probe on training images", False),
    "probe_accuracy": ("Accuracy of a probe on training images", False),
    "data_wait": ("Share of time waiting for data", True),
}
_SPLITS = {"train": "training", "val": "validation", "probe": "probe"}
_NOT_CURVES = frozenset({"step", "epoch", "split", "time", "seconds", "created"})


@dataclass(frozen=True)
class Figure:
    """A chart, or a row of small ones (``panels``: heading, chart), with its words and its numbers."""

    title: str
    caption: str
    charts: list[Markup] = field(default_factory=list)
    panels: list[tuple[str, str, Markup]] = field(default_factory=list)
    legend: list[tuple[Markup, str, str]] = field(default_factory=list)
    header: list[str] = field(default_factory=list)
    rows: list[list[str]] = field(default_factory=list)


def _numbers(values: object) -> list[float | None]:
    return [finite(v) for v in values] if isinstance(values, list) else []


def _score(evaluation: Evaluation, metric: str, klass: str) -> str:
    """Write the metric that sums up a curve: ``0.931 [0.912–0.948]``, or nothing if there is none."""
    for entry in metric_entries(evaluation):
        if entry.get("metric") == metric and entry.get("class") == klass:
            value = finite(entry.get("value"))
            return (
                "n/a"
                if value is None
                else f"{number(value)} {interval(entry.get('low'), entry.get('high'))}".strip()
            )
    return ""


def _operating_point(evaluation: Evaluation, klass: str) -> tuple[float, float] | None:
    if klass not in (evaluation.get("thresholds") or {}):
        return None
    at = {
        m.get("metric"): finite(m.get("value")) for m in metric_entries(evaluation) if m.get("class") == klass
    }
    sensitivity, specificity = at.get("sensitivity"), at.get("specificity")
    return None if sensitivity is None or specificity is None else (1 - specificity, sensitivity)


def _series(evaluation: Evaluation, kind: CurveKind) -> list[Series]:
    """Return one series a class, in the evaluation's order of classes."""
    curves = (evaluation.get("curves") or {}).get(kind) or {}
    order = [str(c) for c in evaluation.get("classes") or []]
    names = [c for c in order if c in curves] + [c for c in curves if c not in order]
    x_key, y_key, _ = _KEYS[kind]
    made = []
    for index, name in enumerate(names):
        curve = curves[name]
        made.append(
            Series(
                name,
                _numbers(curve.get(x_key)),
                _numbers(curve.get(y_key)),
                _numbers(curve.get("low")),
                _numbers(curve.get("high")),
                index,
                baseline=finite(curve.get("prevalence")) if kind == "pr" else None,
                counts=[int(c or 0) for c in curve.get("count") or []],
                point=_operating_point(evaluation, name) if kind == "roc" else None,
            )
        )
    return made


def evaluation_figures(evaluation: Evaluation, ident: str) -> list[Figure]:
    """Return the ROC, precision–recall and reliability figures that the evaluation has curves for.

    Args:
        evaluation: the evaluation dictionary.
        ident: prefix of the element ids, unique in the page.
    """
    figures = []
    for kind in ("roc", "pr", "reliability"):
        if series := _series(evaluation, kind):
            figures.append(_curve_figure(evaluation, kind, series, f"{ident}-{kind}"))
    return figures


def _curve_figure(evaluation: Evaluation, kind: CurveKind, series: list[Series], ident: str) -> Figure:
    scores = {s.name: _score(evaluation, _KEYS[kind][2], s.name) for s in series}
    short = {"roc": "AUROC", "pr": "AP", "reliability": "ECE"}[kind]
    said = {name: f"{short} {score}" if score else "" for name, score in scores.items()}
    on = f"on {evaluation.get('name') or 'the evaluation set'}"
    title = f"{_TITLES[kind]} {on}"
    banded = any(v is not None for s in series for v in s.low)
    level = level_of(evaluation)
    caption = (_BANDS[kind].format(level=level) if banded else "No band was computed. ") + _CAPTIONS[kind]
    header, rows = _curve_table(kind, series, level)
    if len(series) <= SHARED_CHART:
        desc = "; ".join(f"{name}: {said[name] or 'no summary value'}" for name in scores)
        if len(series) == 1 and kind == "reliability":
            caption += " Bars at the foot: how many images each bin holds."
        chart = curve_chart(kind, series, ident, title=title, desc=desc)
        legend = [(swatch(s.index), s.name, said[s.name]) for s in series]
        return Figure(_TITLES[kind], caption, [chart], [], legend, header, rows)
    panels = []
    for place, one in enumerate(series):
        backdrop = ""
        if kind != "reliability":
            backdrop = context_lines(series, f"{ident}-all") if place == 0 else f'<use href="#{ident}-all"/>'
        alone = Series(**{**vars(one), "index": 0})
        chart = curve_chart(
            kind,
            [alone],
            f"{ident}-{place}",
            title=f"{title}: {one.name}",
            desc=said[one.name] or "no summary value",
            compact=True,
            backdrop=backdrop,
        )
        panels.append((one.name, said[one.name], chart))
    if kind != "reliability":
        caption += " Grey: the other classes."
    return Figure(_TITLES[kind], caption, [], panels, [], header, rows)


def _curve_table(kind: CurveKind, series: list[Series], level: str) -> tuple[list[str], list[list[str]]]:
    """Return the chart's numbers: values at round places of x, or the bins of a reliability chart."""
    if kind == "reliability":
        header = ["Class", "Predicted", "Observed", f"{level} interval", "Images"]
        rows = []
        for s in series:
            for i, (x, y) in enumerate(zip(s.x, s.y, strict=False)):
                if x is not None and y is not None:
                    span = interval(s.low[i], s.high[i]) if i < min(len(s.low), len(s.high)) else ""
                    bin_count = count(s.counts[i]) if i < len(s.counts) else ""
                    rows.append([s.name, number(x), number(y), span, bin_count])
        return header, rows
    places = (0.02, 0.05, 0.1, 0.2, 0.5) if kind == "roc" else (0.5, 0.7, 0.8, 0.9, 0.95)
    words = "Sensitivity at specificity {:.2f}" if kind == "roc" else "Precision at recall {:.2f}"
    header = ["Class", *(words.format(1 - p if kind == "roc" else p) for p in places)]
    return header, [[s.name, *(_at(s, place) for place in places)] for s in series]


def _at(series: Series, place: float) -> str:
    """Write y, with its band, at the drawn point nearest to ``place``; n/a when none is within 0.03."""
    known = [
        i for i, (x, y) in enumerate(zip(series.x, series.y, strict=False)) if x is not None and y is not None
    ]
    near = min(known, key=lambda i: abs((series.x[i] or 0.0) - place), default=None)
    if near is None or abs((series.x[near] or 0.0) - place) > 0.03:
        return "n/a"
    span = (
        interval(series.low[near], series.high[near], 2)
        if near < min(len(series.low), len(series.high))
        else ""
    )
    return f"{number(series.y[near], 2)} {span}".strip()


def forest_rows(
    evaluations: Sequence[Evaluation],
) -> list[tuple[str, float, float | None, float | None, str]]:
    """Return (set, AUROC, low, high, text) of every evaluation with a headline AUROC, for the overview."""
    rows = []
    for evaluation in evaluations:
        entry = headline(evaluation)
        value = finite(entry.get("value")) if entry else None
        if entry is not None and value is not None and entry.get("metric") == "auroc":
            text = f"{number(value)} {interval(entry.get('low'), entry.get('high')) or '(no interval)'}"
            low, high = finite(entry.get("low")), finite(entry.get("high"))
            rows.append((str(evaluation.get("name") or "unnamed set"), value, low, high, text))
    return rows


def training_figures(log: Sequence[Mapping[str, Any]], selected_step: object = None) -> list[Figure]:
    """Return one figure a logged quantity, well-known ones first.

    Args:
        log: the entries of metrics.jsonl. Where a resumed run wrote a step twice, the later entry counts.
        selected_step: marked with a vertical line, if it is a number.
    """
    latest = {(str(e.get("split", "train")), e["step"]): e for e in log if finite(e.get("step")) is not None}
    entries = [latest[k] for k in sorted(latest, key=lambda k: (k[0], k[1]))]
    found = dict.fromkeys(
        k for e in entries for k, v in e.items() if k not in _NOT_CURVES and finite(v) is not None
    )
    names = [k for k in _LOGGED if k in found] + sorted(k for k in found if k not in _LOGGED)
    mark = finite(selected_step)
    return [_training_figure(name, place, entries, mark) for place, name in enumerate(names)]


def _training_figure(
    name: str, place: int, entries: Sequence[Mapping[str, Any]], mark: float | None
) -> Figure:
    title, from_zero = _LOGGED.get(name, (metric_name(name), False))
    series, header, binned = [], ["Step"], 1
    rows: dict[float, dict[str, str]] = {}
    splits = [
        s
        for s in _SPLITS
        if any(e.get("split", "train") == s and finite(e.get(name)) is not None for e in entries)
    ]
    for split in splits:
        points = [
            (float(e["step"]), v)
            for e in entries
            if e.get("split", "train") == split and (v := finite(e.get(name))) is not None
        ]
        one, size = _binned(split, points, 0 if split == "train" else 1)
        binned = max(binned, size)
        series.append(one)
        header.append(_SPLITS[split].capitalize())
        for step, value in _sample(points):
            rows.setdefault(step, {})[split] = scalar(value)
    ends = "; ".join(
        f"{s.name}: {scalar(_known(s.y)[0])} at the start, {scalar(_known(s.y)[-1])} at the end"
        for s in series
    )
    caption = f"Line: mean of {binned} logged steps; shaded: their range." if binned > 1 else ""
    if mark is not None:
        caption += f" Vertical line: step {count(mark)}, which was selected."
    ident = f"training-{place}"
    chart = line_chart(series, ident, title=title, desc=ends, from_zero=from_zero, mark=mark)
    legend = [(swatch(s.index), s.name, "") for s in series] if len(series) > 1 else []
    table = [[count(step), *(rows[step].get(s, "") for s in splits)] for step in sorted(rows)]
    return Figure(title, caption.strip(), [chart], [], legend, header, table)


def _known(values: Sequence[float | None]) -> list[float]:
    return [v for v in values if v is not None]


def _binned(split: str, points: list[tuple[float, float]], index: int) -> tuple[Series, int]:
    """Average neighbouring points so that at most ``BINS`` remain; the band is their range."""
    name = _SPLITS[split]
    size = -(-len(points) // BINS)
    groups = [points[i : i + size] for i in range(0, len(points), size)]
    xs = [sum(x for x, _ in g) / len(g) for g in groups]
    ys = [sum(y for _, y in g) / len(g) for g in groups]
    low = [min(y for _, y in g) for g in groups] if size > 1 else []
    high = [max(y for _, y in g) for g in groups] if size > 1 else []
    return Series(name, xs, ys, low, high, index, dots=split != "train" and len(groups) <= 60), size


def _sample(points: list[tuple[float, float]], wanted: int = 10) -> list[tuple[float, float]]:
    """Return about ``wanted`` evenly spread points, first and last included."""
    if len(points) <= wanted:
        return points
    return [points[round(i * (len(points) - 1) / (wanted - 1))] for i in range(wanted)]
