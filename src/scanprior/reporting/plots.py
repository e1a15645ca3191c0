"""Charts as inline SVG, built by hand.

Every chart is drawn with CSS classes and no colour of its own, so that the page's style sheet decides
light, dark and print; series differ in colour *and* dash. Each carries a title and a description for
screen readers. All text is escaped here; what these functions return is safe to place in a page.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from markupsafe import Markup, escape

COLOURS = 8  # --c0 … --c7 in style.css
DASHES = 4  # .d0 … .d3 in style.css

Number = float | None
CurveKind = Literal["roc", "pr", "reliability"]

_AXIS_LABELS: dict[CurveKind, tuple[str, str]] = {
    "roc": ("1 − specificity", "Sensitivity"),
    "pr": ("Recall (sensitivity)", "Precision"),
    "reliability": ("Predicted probability", "Observed frequency"),
}


@dataclass(frozen=True)
class Series:
    """One line of a chart: ``x`` and ``y`` with an optional band ``low``–``high`` around ``y``.

    ``None`` in any list is a gap. ``index`` picks colour and dash. ``baseline`` is a horizontal
    reference (the prevalence, in a precision–recall chart); ``counts`` are the sizes of the bins;
    ``point`` is the operating point; ``dots`` marks every value.
    """

    name: str
    x: Sequence[Number]
    y: Sequence[Number]
    low: Sequence[Number] = ()
    high: Sequence[Number] = ()
    index: int = 0
    baseline: Number = None
    counts: Sequence[int] = ()
    dots: bool = False
    point: tuple[float, float] | None = None

    @property
    def css(self) -> str:
        """The classes that give the series its colour and dash."""
        return f"c{self.index % COLOURS} d{self.index % DASHES}"


@dataclass(frozen=True)
class Axes:
    """A data rectangle inside a picture of ``width`` x ``height`` user units."""

    width: float
    height: float
    x_range: tuple[float, float] = (0.0, 1.0)
    y_range: tuple[float, float] = (0.0, 1.0)
    margin: tuple[float, float, float, float] = (10, 14, 44, 46)  # top, right, bottom, left
    x_ticks: Sequence[float] = field(default=(0, 0.2, 0.4, 0.6, 0.8, 1))
    y_ticks: Sequence[float] = field(default=(0, 0.2, 0.4, 0.6, 0.8, 1))
    x_texts: Mapping[float, str] = field(default_factory=dict)  # of ticks that do not say their own value

    def x(self, value: float) -> float:
        """Return the horizontal place of a data value."""
        low, high = self.x_range
        left, right = self.margin[3], self.width - self.margin[1]
        return left + (value - low) / (high - low) * (right - left)

    def y(self, value: float) -> float:
        """Return the vertical place of a data value."""
        low, high = self.y_range
        top, bottom = self.margin[0], self.height - self.margin[2]
        return bottom - (value - low) / (high - low) * (bottom - top)

    def frame(self, x_label: str, y_label: str) -> str:
        """Return the grid, tick labels and axis labels."""
        top, right, bottom, left = self.margin
        x_end, y_end = self.width - right, self.height - bottom
        parts = []
        for tick in self.y_ticks:
            at = _short(self.y(tick))
            parts.append(f'<path class="grid" d="M{_short(left)} {at}H{_short(x_end)}"/>')
            parts.append(
                f'<text class="tick end" x="{_short(left - 6)}" y="{at}" dy=".32em">{tick_text(tick)}</text>'
            )
        for tick in self.x_ticks:
            at = _short(self.x(tick))
            parts.append(f'<path class="grid" d="M{at} {_short(top)}V{_short(y_end)}"/>')
            parts.append(
                f'<text class="tick mid" x="{at}" y="{_short(y_end + 16)}">{self._x_text(tick)}</text>'
            )
        if x_label:
            middle = _short((left + x_end) / 2)
            parts.append(
                f'<text class="label mid" x="{middle}" y="{_short(self.height - 6)}">{escape(x_label)}</text>'
            )
        if y_label:
            turn = f"translate(11 {_short((top + y_end) / 2)}) rotate(-90)"
            parts.append(f'<text class="label mid" transform="{turn}">{escape(y_label)}</text>')
        return "".join(parts)

    def _x_text(self, tick: float) -> Markup:
        return escape(self.x_texts.get(tick, "") or tick_text(tick))

    def line(self, xs: Sequence[Number], ys: Sequence[Number]) -> str:
        """Return path data through the points; a ``None`` or non-finite value lifts the pen."""
        data, pen = [], "M"
        for x, y in zip(xs, ys, strict=False):
            if x is None or y is None or not (math.isfinite(x) and math.isfinite(y)):
                pen = "M"
                continue
            data.append(f"{pen}{_short(self.x(x))} {_short(self.y(y))}")
            pen = "L"
        return "".join(data)

    def band(self, xs: Sequence[Number], low: Sequence[Number], high: Sequence[Number]) -> str:
        """Return path data of the area between ``low`` and ``high`` where both are known."""
        rows = [
            (x, a, b)
            for x, a, b in zip(xs, low, high, strict=False)
            if x is not None and a is not None and b is not None and math.isfinite(x + a + b)
        ]
        if len(rows) < 2:
            return ""
        there = self.line([r[0] for r in rows], [r[2] for r in rows])
        back = self.line([r[0] for r in reversed(rows)], [r[1] for r in reversed(rows)])
        return f"{there}L{back[1:]}Z"


def _short(value: float) -> str:
    """Write a coordinate with one decimal at most: a tenth of a pixel is finer than any screen."""
    text = f"{value:.1f}"
    return text.removesuffix(".0")


def tick_text(value: float) -> str:
    """Write an axis value briefly: 0.2, 1, 1,500, 5e-4."""
    if value == 0:
        return "0"
    size = abs(value)
    if size < 1e-3:
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{mantissa.removesuffix('.0')}e{int(exponent)}"
    if size >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def nice_ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """Return about ``wanted`` round values that cover [low, high]; ``high`` must exceed ``low``."""
    raw = (high - low) / max(wanted - 1, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999) * power
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def svg_of(ident: str, css: str, axes: Axes, title: str, desc: str, body: str) -> Markup:
    """Return a drawing with its title and description for screen readers; ``body`` is SVG, its text escaped."""
    return Markup(
        f'<svg class="{css}" viewBox="0 0 {_short(axes.width)} {_short(axes.height)}" role="img" '
        f'aria-labelledby="{ident}-t {ident}-d"><title id="{ident}-t">{escape(title)}</title>'
        f'<desc id="{ident}-d">{escape(desc)}</desc>{body}</svg>'
    )


def _dots(axes: Axes, series: Series) -> str:
    """Return the points of a reliability chart: area grows with the bin's count, bars are its interval."""
    most = max(series.counts, default=0) or 1
    parts = []
    for i, (x, y) in enumerate(zip(series.x, series.y, strict=False)):
        if x is None or y is None:
            continue
        low = series.low[i] if i < len(series.low) else None
        high = series.high[i] if i < len(series.high) else None
        if low is not None and high is not None:
            reach = f"M{_short(axes.x(x))} {_short(axes.y(low))}V{_short(axes.y(high))}"
            parts.append(f'<path class="whisker" d="{reach}"/>')
        share = series.counts[i] / most if i < len(series.counts) else 0.5
        radius = 2.2 + 3.3 * math.sqrt(share)
        parts.append(
            f'<circle class="dot" cx="{_short(axes.x(x))}" cy="{_short(axes.y(y))}" r="{_short(radius)}"/>'
        )
    return "".join(parts)


def _histogram(axes: Axes, series: Series) -> str:
    """Return faint bars of the bin counts along the foot of a reliability chart, at most a fifth high."""
    most = max(series.counts, default=0) or 1
    bins = len(series.counts)
    parts = []
    for i, count in enumerate(series.counts):
        if count:
            left, right = axes.x(i / bins) + 1, axes.x((i + 1) / bins) - 1
            top = axes.y(0.2 * count / most)
            size = f'width="{_short(right - left)}" height="{_short(axes.y(0) - top)}"'
            parts.append(f'<rect class="count" x="{_short(left)}" y="{_short(top)}" {size}/>')
    return "".join(parts)


def _unit_axes(compact: bool) -> Axes:
    if not compact:
        return Axes(304, 298, margin=(8, 10, 40, 42))
    ticks = (0, 0.5, 1)
    return Axes(220, 212, margin=(8, 10, 24, 30), x_ticks=ticks, y_ticks=ticks)


def context_lines(series: Sequence[Series], ident: str) -> Markup:
    """Return grey lines of all ``series`` for small multiples, to be placed once and reused by its id."""
    axes = _unit_axes(compact=True)
    paths = "".join(f'<path class="context" d="{axes.line(s.x, s.y)}"/>' for s in series)
    return Markup(f'<g id="{ident}">{paths}</g>')


def curve_chart(
    kind: CurveKind,
    series: Sequence[Series],
    ident: str,
    *,
    title: str,
    desc: str,
    compact: bool = False,
    backdrop: str = "",
) -> Markup:
    """Return a ROC, precision–recall or reliability chart on the unit square.

    Args:
        kind: which of the three; decides labels, the diagonal, and dots instead of bands.
        series: lines to draw in colour, x and y in [0, 1].
        ident: prefix of the element ids, unique in the page.
        title: what screen readers hear first.
        desc: the finding in words.
        compact: a small multiple: less of everything, no axis labels.
        backdrop: SVG behind the lines, from ``context_lines`` or a ``<use>`` of it.
    """
    axes = _unit_axes(compact)
    body = axes.frame(*(("", "") if compact else _AXIS_LABELS[kind]))
    if kind != "pr":
        body += f'<path class="chance" d="{axes.line([0, 1], [0, 1])}"/>'
    if kind == "reliability" and len(series) == 1:
        body += f'<g class="{series[0].css}">{_histogram(axes, series[0])}</g>'
    body += str(backdrop)  # adding a Markup as it is would escape the drawing so far
    for one in series:
        under, over = "", ""
        if kind == "reliability":
            over = _dots(axes, one)
        elif band := axes.band(one.x, one.low, one.high):
            under = f'<path class="band" d="{band}"/>'
        if one.baseline is not None:
            under += f'<path class="chance own" d="{axes.line([0, 1], [one.baseline, one.baseline])}"/>'
        if one.point is not None:
            at = f'cx="{_short(axes.x(one.point[0]))}" cy="{_short(axes.y(one.point[1]))}"'
            over += f'<circle class="point" {at} r="4"/>'
        line = f'<path class="line" d="{axes.line(one.x, one.y)}"><title>{escape(one.name)}</title></path>'
        body += f'<g class="{one.css}">{under}{line}{over}</g>'
    return svg_of(ident, "chart small" if compact else "chart square", axes, title, desc, body)


def line_chart(
    series: Sequence[Series],
    ident: str,
    *,
    title: str,
    desc: str,
    x_label: str = "step",
    x_texts: Mapping[float, str] | None = None,
    from_zero: bool = False,
    mark: Number = None,
    compact: bool = False,
    y_range: tuple[float, float] | None = None,
) -> Markup:
    """Return a chart of lines with their bands.

    Args:
        series: with at least one finite point between them.
        ident: prefix of the element ids, unique in the page.
        title: what screen readers hear first.
        desc: the finding in words.
        x_label: of the horizontal axis.
        x_texts: the ticks of the horizontal axis and what they are called; None = round values.
        from_zero: start the vertical axis at 0.
        mark: where to draw a vertical line, such as the selected step.
        compact: a small multiple.
        y_range: of the vertical axis, to share it between charts; None = that of the series.
    """
    xs = [x for s in series for x in s.x if x is not None]
    ys = [
        v for s in series for part in (s.y, s.low, s.high) for v in part if v is not None and math.isfinite(v)
    ]
    low, high = y_range or (min(ys), max(ys))
    if from_zero:
        low = min(0.0, low)
    if high <= low:  # a constant: open a window around it
        low, high = low - (abs(low) * 0.1 or 0.5), high + (abs(high) * 0.1 or 0.5)
    y_ticks = nice_ticks(low, high)
    x_low, x_high = min(xs), max(xs)
    x_high = x_high if x_high > x_low else x_low + 1
    x_ticks = list(x_texts or [t for t in nice_ticks(x_low, x_high) if x_low <= t <= x_high])
    axes = Axes(
        *((220, 170) if compact else (340, 206)),
        (x_low, x_high),
        (y_ticks[0], y_ticks[-1]),
        (8, 10, 24, 36) if compact else (10, 16, 38, 42),
        x_ticks=x_ticks,
        y_ticks=y_ticks,
        x_texts=x_texts or {},
    )
    body = axes.frame("" if compact else x_label, "")
    if mark is not None and x_low <= mark <= x_high:
        at = _short(axes.x(mark))
        body += (
            f'<path class="mark" d="M{at} {_short(axes.margin[0])}V{_short(axes.height - axes.margin[2])}"/>'
        )
    for one in series:
        drawn = ""
        if band := axes.band(one.x, one.low, one.high):
            drawn += f'<path class="band" d="{band}"/>'
        drawn += f'<path class="line" d="{axes.line(one.x, one.y)}"><title>{escape(one.name)}</title></path>'
        known = [(x, y) for x, y in zip(one.x, one.y, strict=False) if x is not None and y is not None]
        if one.dots or len(known) == 1:
            drawn += "".join(
                f'<circle class="dot" cx="{_short(axes.x(x))}" cy="{_short(axes.y(y))}" r="2.6"/>'
                for x, y in known
            )
        body += f'<g class="{one.css}">{drawn}</g>'
    return svg_of(ident, "chart small" if compact else "chart wide", axes, title, desc, body)


def swatch(index: int) -> Markup:
    """Return the legend's sample of series ``index``."""
    css = f"c{index % COLOURS} d{index % DASHES}"
    return Markup(
        f'<svg class="swatch {css}" viewBox="0 0 26 10" aria-hidden="true"><path class="line" d="M1 5H25"/></svg>'
    )
