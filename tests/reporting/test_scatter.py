"""The chart of quality against size."""

from __future__ import annotations

import math
import re
from itertools import pairwise
from xml.etree import ElementTree

import pytest

from scanprior.reporting.scatter import APART, Point, scatter_chart, size_text


def point(name: str, size: float, value: float, regime: str = "", number: int = 0) -> Point:
    return Point(name, regime, size, value, value - 0.02, value + 0.02, number, number)


def drawn(points: list[Point]) -> ElementTree.Element:
    return ElementTree.fromstring(scatter_chart(points, "c", title="t", desc="d", x_label="parameters"))


def places(chart: ElementTree.Element) -> list[tuple[float, float]]:
    marks = [mark.get("transform", "") for mark in chart.iter("path") if mark.get("class") == "dot"]
    found = [re.fullmatch(r"translate\(([\d.]+) ([\d.]+)\)", mark) for mark in marks]
    return [(float(one[1]), float(one[2])) for one in found if one is not None]


def test_size_is_logarithmic_and_quality_upwards() -> None:
    chart = drawn([point("a", 1e6, 0.5), point("b", 1e7, 0.7, number=1), point("c", 1e8, 0.6, number=2)])
    (ax, ay), (bx, by), (cx, cy) = places(chart)
    assert bx - ax == pytest.approx(cx - bx, abs=0.2) and by < cy < ay
    bars = [bar.get("d", "") for bar in chart.iter("path") if bar.get("class") == "whisker"]
    ends = [re.fullmatch(r"M([\d.]+) ([\d.]+)V([\d.]+)", bar) for bar in bars]
    for (x, y), end in zip(places(chart), ends, strict=True):
        assert end is not None and float(end[1]) == x
        assert y - float(end[2]) == pytest.approx(float(end[3]) - y, abs=0.2)
    assert {"1 M", "10 M", "100 M"} <= {text.text for text in chart.iter("text")}


def test_points_of_one_size_stand_side_by_side_and_names_apart() -> None:
    names = [f"encoder-{number}" for number in range(6)]
    points = [
        point(name, 86e6 * (1 + number / 500), 0.8 + 0.01 * regime, f"r{regime}", number)
        for number, name in enumerate(names)
        for regime in range(3)
    ]
    chart = drawn(points)
    across = [x for x, _ in places(chart)]
    assert len(across) == 18 and all(right - left > APART - 0.2 for left, right in pairwise(across))
    assert min(across) > 42 and max(across) < 446
    boxes = []
    for text in chart.iter("text"):
        if text.get("class") == "name mid":
            x, y, half = float(text.get("x", "")), float(text.get("y", "")), 3.5 * len(text.text or "")
            boxes.append((text.text, x - half, x + half, y - 6, y + 6))
    assert sorted(str(box[0]) for box in boxes) == names
    for place, one in enumerate(boxes):
        for other in boxes[:place]:
            assert one[1] >= other[2] or other[1] >= one[2] or one[3] >= other[4] or other[3] >= one[4]
        assert not any(one[1] < x < one[2] and one[3] < y < one[4] for x, y in places(chart))


def test_one_point_without_an_interval_and_names_that_are_markup() -> None:
    chart = drawn([Point("<b>&", "r<1>", 5e6, 0.5, None, None, 0, 0)])
    assert "<b>&" in [text.text for text in chart.iter("text")]
    assert [title.text for title in chart.iter("title")][1] == "<b>&, r<1>: 0.500"
    assert all(math.isfinite(value) for value in places(chart)[0])


def test_random_weights_are_hollow_and_said() -> None:
    chart = drawn(
        [Point("a", "full", 5e6, 0.5, None, None, 0, 0), Point("b", "", 6e6, 0.6, None, None, 1, 0, True)]
    )
    assert [mark.get("class") for mark in chart.iter("path") if "dot" in mark.get("class", "")] == [
        "dot",
        "dot hollow",
    ]
    assert [title.text for title in chart.iter("title")][1:] == [
        "a, full: 0.500",
        "b (random weights): 0.600",
    ]
    assert {"a", "b"} <= {text.text for text in chart.iter("text")}


def test_sizes_in_words() -> None:
    assert [size_text(n) for n in (650, 5_524_416, 86_579_712, 999_600_000, 1_136_479_232)] == [
        "650", "5.52 M", "86.6 M", "1 B", "1.14 B",
    ]  # fmt: skip
