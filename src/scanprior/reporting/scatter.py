"""A chart of quality against size: one point an init and regime, with its interval and the init's name."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from scanprior.reporting.plots import COLOURS, Axes, nice_ticks, svg_of
from scanprior.reporting.study_arms import arm_text, marked

APART = 5.5
"""Units between the middles of neighbouring points: those of nearly the same size are set side by side."""
LETTER, LINE = 7.2, 12.0
"""Width of a letter and height of a line of a name, on average."""
WIDTH, HEIGHT, MARGIN = 460.0, 300.0, (22.0, 14.0, 38.0, 42.0)

_SHAPES = (
    "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0 -8 0Z",  # circle
    "M-3.6 -3.6H3.6V3.6H-3.6Z",  # square
    "M0 -4.8L4.6 3.6H-4.6Z",  # triangle
    "M0 -5L5 0L0 5L-5 0Z",  # diamond
    "M0 4.8L4.6 -3.6H-4.6Z",  # triangle on its tip
    "M-1.6 -4.8H1.6V-1.6H4.8V1.6H1.6V4.8H-1.6V1.6H-4.8V-1.6H-1.6Z",  # plus
)
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Point:
    """One init in one regime.

    Attributes:
        name: of the init.
        regime: of it.
        size: number of parameters.
        value, low, high: metric and interval; the ends are None where there is no interval.
        colour, shape: number of the init, and of the regime.
        random: whether its weights are meant to be random; drawn hollow.
    """

    name: str
    regime: str
    size: float
    value: float
    low: float | None
    high: float | None
    colour: int
    shape: int
    random: bool = False

    @property
    def spoken(self) -> str:
        """Name, mark and regime in words."""
        return arm_text(marked(self.name, self.random), self.regime)


def scatter_chart(points: Sequence[Point], ident: str, *, title: str, desc: str, x_label: str) -> Markup:
    """Return a chart with sizes on a logarithmic horizontal axis.

    Args:
        points: at least one.
        ident: prefix of the element ids, unique in the page.
        title: what screen readers hear first.
        desc: the finding in words.
        x_label: of the horizontal axis.
    """
    axes = _axes(points, x_label)
    order = sorted(points, key=lambda one: (one.size, one.name, one.shape))
    places = _spread([axes.x(math.log10(one.size)) for one in order], axes)
    body = axes.frame(x_label, "")
    taken: list[Box] = []
    for one, x in zip(order, places, strict=True):
        top, bottom = axes.y(one.value), axes.y(one.value)
        whisker = ""
        if one.low is not None and one.high is not None:
            top, bottom = axes.y(one.high), axes.y(one.low)
            whisker = f'<path class="whisker" d="M{x:.1f} {top:.1f}V{bottom:.1f}"/>'
        said, kind = escape(f"{one.spoken}: {one.value:.3f}"), "dot hollow" if one.random else "dot"
        outline = _SHAPES[one.shape % len(_SHAPES)]
        at = f"translate({x:.1f} {axes.y(one.value):.1f})"
        body += (
            f'<g class="c{one.colour % COLOURS}">{whisker}'
            f'<path class="{kind}" transform="{at}" d="{outline}"><title>{said}</title></path>'
            "</g>"
        )
        taken.append((x - 5, min(top, axes.y(one.value) - 5), x + 5, max(bottom, axes.y(one.value) + 5)))
    for name in dict.fromkeys(one.name for one in order):
        mine = [number for number, one in enumerate(order) if one.name == name]
        body += _named(name, order[mine[0]].colour, [taken[number] for number in mine], taken, axes)
    return svg_of(ident, "chart scatter", axes, title, desc, body)


def shape_swatch(shape: int, *, hollow: bool = False) -> Markup:
    """Return the legend's sample of a regime's shape, filled or hollow."""
    kind = "dot hollow" if hollow else "dot"
    return Markup(
        f'<svg class="swatch" viewBox="0 0 26 10" aria-hidden="true"><path class="{kind}" transform="translate(13 5)" '
        f'd="{_SHAPES[shape % len(_SHAPES)]}"/></svg>'
    )


def _axes(points: Sequence[Point], x_label: str) -> Axes:
    sizes = [math.log10(one.size) for one in points]
    ends = [end for one in points for end in (one.low, one.high, one.value) if end is not None]
    low, high = min(ends), max(ends)
    if high <= low:
        low, high = low - 0.05, high + 0.05
    y_ticks = nice_ticks(low, high)
    room = max(0.12, 0.12 * (max(sizes) - min(sizes)))
    x_low, x_high = min(sizes) - room, max(sizes) + room
    digits = (1, 2, 5) if x_high - x_low < 2 else (1,)
    ticks = {
        math.log10(digit * 10**power): size_text(digit * 10.0**power)
        for power in range(math.floor(x_low), math.ceil(x_high) + 1)
        for digit in digits
        if x_low <= math.log10(digit * 10**power) <= x_high
    }
    if len(ticks) < 2:  # all of nearly one size
        ticks = {tick: size_text(10**tick) for tick in (x_low, (x_low + x_high) / 2, x_high)}
    return Axes(
        WIDTH, HEIGHT, (x_low, x_high), (y_ticks[0], y_ticks[-1]), MARGIN, list(ticks), y_ticks, ticks
    )


def size_text(parameters: float) -> str:
    """Write a number of parameters: 650, 5.5 M, 86.6 M, 1.1 B."""
    for unit, name in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if parameters >= unit * 0.9995:
            return f"{parameters / unit:.3g} {name}"
    return f"{parameters:.0f}"


def _spread(places: Sequence[float], axes: Axes) -> list[float]:
    """Return rising places with ``APART`` between them at least, each group of close ones about its own middle."""
    groups: list[list[float]] = []  # the wanted places of each
    for place in places:
        groups.append([place])
        while len(groups) > 1 and _edges(groups[-1])[0] - _edges(groups[-2])[1] < APART:
            last = groups.pop()
            groups[-1] += last
    made = [_edges(group)[0] + number * APART for group in groups for number in range(len(group))]
    left, right = axes.margin[3] + 6, axes.width - axes.margin[1] - 6
    shift = max(left - made[0], 0.0) + min(right - made[-1], 0.0)
    return [place + shift for place in made]


def _edges(group: Sequence[float]) -> tuple[float, float]:
    """Return the first and last place of a group that is spread about the middle of what it wanted."""
    middle, reach = sum(group) / len(group), (len(group) - 1) * APART / 2
    return middle - reach, middle + reach


def _named(name: str, colour: int, mine: Sequence[Box], taken: list[Box], axes: Axes) -> str:
    """Return a name as near to its points as nothing else stands, with a line to them where that is not beside them."""
    whole = (mine[0][0], min(box[1] for box in mine), mine[-1][2], max(box[3] for box in mine))
    half, middle = len(name) * LETTER / 2, (whole[0] + whole[2]) / 2
    left, right = axes.margin[3] + half, axes.width - axes.margin[1] - half
    bottom = axes.height - axes.margin[2] - LINE / 2
    aside = [middle + side * step for step in range(0, int(axes.width), 8) for side in (1, -1)]
    places = [
        (x, float(y))
        for x in dict.fromkeys(min(max(x, left), right) for x in aside)
        for y in range(int(LINE / 2), int(bottom), 3)
    ]
    places.sort(
        key=lambda place: _distance(_box(place[0], place[1], half), whole) + abs(place[0] - middle) / 8
    )
    free = (
        place for place in places if not any(_overlap(_box(place[0], place[1], half), box) for box in taken)
    )
    x, y = next(free, (middle, LINE / 2))
    taken.append(_box(x, y, half))
    leader = ""
    if _distance(_box(x, y, half), whole) > LINE:
        start = y + LINE / 2 if y < whole[1] else y - LINE / 2 if y > whole[3] else y
        near = min(max(y, whole[1]), whole[3])
        leader = f'<path class="leader" d="M{x:.1f} {start:.1f}L{middle:.1f} {near:.1f}"/>'
    return (
        f'<g class="c{colour % COLOURS}">{leader}<text class="name mid" x="{x:.1f}" y="{y:.1f}" dy=".32em">'
        f"{escape(name)}</text></g>"
    )


def _distance(one: Box, other: Box) -> float:
    """Return how far apart the edges of two boxes are; 0 where they touch."""
    across = max(one[0] - other[2], other[0] - one[2], 0.0)
    return math.hypot(across, max(one[1] - other[3], other[1] - one[3], 0.0))


def _box(x: float, y: float, half: float) -> Box:
    return x - half, y - LINE / 2, x + half, y + LINE / 2


def _overlap(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
