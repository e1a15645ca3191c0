"""The report's parts against step-by-step references: wrong cases, numbers, curves, pictures."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from scanprior.reporting import figures, plots, tables, thumbnails
from scanprior.reporting.formatting import duration, interval, number, scalar
from scanprior.reporting.pictures import montage, reconstruction_grid, save_png
from scanprior.reporting.study_tables import labels_to_match

CLASSES = ["normal", "pneumonia"]


def binary_table(n: int = 60) -> pd.DataFrame:
    rng = np.random.default_rng(5)
    p = rng.random(n)
    label = pd.Series(np.where(rng.random(n) < p, "pneumonia", "normal"), dtype=object)
    label[0] = None
    table = pd.DataFrame(
        {
            "image": [f"a/{i}.png" for i in range(n)],
            "patient": None,
            "label": label,
            "prob:normal": 1 - p,
            "prob:pneumonia": p,
            "error": None,
        }
    )
    table.loc[1, ["prob:normal", "prob:pneumonia"]] = np.nan
    table.loc[1, "error"] = "truncated"
    return table


@pytest.mark.parametrize("threshold", [None, 0.2, 0.8])
def test_wrong_cases_equal_a_plain_loop(threshold: float | None) -> None:
    table = binary_table()
    evaluation = {
        "task": "multiclass",
        "classes": CLASSES,
        "positive_class": "pneumonia",
        "thresholds": {} if threshold is None else {"pneumonia": {"value": threshold}},
    }
    expected = []
    for _, row in table.iterrows():
        if row["error"] is not None or row["label"] is None:
            continue
        cut = 0.5 if threshold is None else threshold
        said = "pneumonia" if row["prob:pneumonia"] >= cut else "normal"
        if said != row["label"]:
            expected.append((1 - row[f"prob:{row['label']}"], row["image"], row["label"], said))
    expected.sort(key=lambda e: -e[0])
    cases, total = thumbnails.wrong_cases(table, evaluation, limit=5)
    assert total == len(expected) > 5
    assert [(c.image, c.true, c.said) for c in cases] == [e[1:] for e in expected[:5]]
    assert [c.wrongness for c in cases] == pytest.approx([e[0] for e in expected[:5]])


def test_wrong_findings_skip_missing_and_uncertain_labels() -> None:
    table = pd.DataFrame(
        {
            "image": list("abcde"),
            "label:edema": [1.0, 0.0, np.nan, -1.0, 1.0],
            "prob:edema": [0.1, 0.9, 0.9, 0.9, 0.6],
            "label:mass": [0.0, 0.0, 1.0, 1.0, 1.0],
            "prob:mass": [0.2, 0.95, 0.3, 0.9, 0.6],
            "error": None,
        }
    )
    evaluation = {"task": "multilabel", "classes": ["edema", "mass"], "thresholds": {"edema": {"value": 0.7}}}
    cases, total = thumbnails.wrong_cases(table, evaluation)
    assert total == 4
    assert [(c.image, c.true, c.said) for c in cases] == [
        ("b", "no mass", "mass"),
        ("a", "edema", "no edema"),
        ("c", "mass", "no mass"),
        ("e", "edema", "no edema"),
    ]
    assert cases[0].wrongness == pytest.approx(0.95) and cases[0].true_probability == pytest.approx(0.05)


def test_thumbnail_keeps_the_picture() -> None:
    pixels = np.tile(np.linspace(0, 255, 400).astype(np.uint8), (200, 1))
    uri = thumbnails.thumbnail_uri(pixels)
    image = Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1])))
    assert image.format == "JPEG" and image.size == (176, 88)
    reference = np.asarray(Image.fromarray(pixels).resize((176, 88), Image.Resampling.LANCZOS), dtype=float)
    assert np.abs(np.asarray(image, dtype=float) - reference).mean() < 3
    for wrong in (pixels.astype(np.uint16), np.zeros((4, 4, 4), np.uint8)):
        with pytest.raises(ValueError, match="must be"):
            thumbnails.thumbnail_uri(wrong)


@settings(deadline=None, max_examples=80)
@given(st.floats(-2, 2, allow_nan=False))
def test_numbers_are_never_rounded_to_certainty(value: float) -> None:
    text = number(value)
    if value not in (0.0, 1.0):
        assert text not in ("0.000", "1.000", "−0.000") or value > 1
    if text[0] not in "<>":
        assert float(text.replace("−", "-")) == pytest.approx(value, abs=0.00051)


def test_numbers_in_words() -> None:
    assert [number(v) for v in (None, float("nan"), True, 0.9996, 1.0, 1e-5)] == [
        "n/a",
        "n/a",
        "n/a",
        ">0.999",
        "1.000",
        "<0.001",
    ]
    assert interval(0.1, None) == "" and interval(0.1, 0.25, 2) == "[0.10–0.25]"
    assert [duration(s) for s in (4, 125, 7300, None)] == ["4 s", "2 min 5 s", "2 h 1 min", "n/a"]
    assert scalar({"a": [1, 2.5], "b": None}) == "a 1, 2.5; b none"


@settings(deadline=None, max_examples=80)
@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6))
def test_ticks_cover_the_range_and_are_few(low: float, span: float) -> None:
    high = low + span
    if high <= low or span < abs(low) * 1e-6:
        return
    ticks = plots.nice_ticks(low, high)
    assert ticks[0] <= low + span * 1e-6 and ticks[-1] >= high - span * 1e-6
    assert 2 <= len(ticks) <= 8 and ticks == sorted(set(ticks))


def test_curve_points_land_where_they_belong() -> None:
    series = plots.Series("a", [0.0, 0.5, None, 1.0], [0.0, 0.8, 0.9, 1.0])
    svg = plots.curve_chart("pr", [series], "x", title="t", desc="d")
    data = re.search(r'class="line" d="([^"]+)"', svg)
    assert data is not None
    assert data[1].count("M") == 2  # the gap lifts the pen
    points = [tuple(map(float, p.split())) for p in re.findall(r"[\d.]+ [\d.]+", data[1])]
    (x0, y0), (x1, y1), (x2, y2) = points
    assert (x1 - x0) / (x2 - x0) == pytest.approx(0.5, abs=0.002)
    assert (y1 - y0) / (y2 - y0) == pytest.approx(0.8, abs=0.002)
    assert y2 < y0  # up is more


def test_log_of_a_resumed_run_counts_each_step_once_and_keeps_the_means() -> None:
    log = [{"step": s, "split": "train", "loss": 100.0} for s in range(900, 1001)]
    log += [{"step": s, "split": "train", "loss": float(s)} for s in range(1, 1001)]
    log += [{"step": 5, "split": "train", "loss": 5.0, "note": "text", "flag": True, "bad": float("nan")}]
    (figure,) = figures.training_figures(log)
    assert figure.title == "Loss" and "mean of 5 logged steps" in figure.caption
    series, size = figures._binned("train", [(float(s), float(s)) for s in range(1, 1001)], 0)
    assert size == 5 and len(series.x) == 200
    assert series.y[0] == 3.0 and series.low[0] == 1.0 and series.high[0] == 5.0
    assert figure.rows[0] == ["1", "1"] and figure.rows[-1] == ["1,000", "1000"]


@pytest.mark.parametrize("values", [[0.3], [0.0, 0.0], [2.0, 2.0, 2.0]])
def test_constant_and_single_values_can_be_drawn(values: list[float]) -> None:
    log = [{"step": 7 + i, "loss": v} for i, v in enumerate(values)]
    (figure,) = figures.training_figures(log)
    assert "nan" not in figure.charts[0] and "inf" not in figure.charts[0]


def test_headline_prefers_positive_class_then_macro() -> None:
    def entry(klass: str, value: float) -> dict[str, object]:
        return {"metric": "auroc", "class": klass, "value": value, "low": None, "high": None}

    metrics = [
        {"metric": "accuracy", "class": "all", "value": 0.5},
        entry("a", 0.6),
        entry("macro", 0.7),
        entry("b", 0.8),
    ]
    assert tables.headline_text({"metrics": metrics, "positive_class": "b"}) == "AUROC 0.80 (no interval)"
    assert (
        tables.headline_text({"metrics": metrics, "positive_class": None}) == "Macro AUROC 0.70 (no interval)"
    )
    assert tables.headline_text({"metrics": metrics[:2]}) == "AUROC 0.60 (no interval)"
    assert tables.headline_text({"metrics": metrics[:1]}) == "Accuracy 0.50 (no interval)"
    assert tables.headline_text({}) == "no metric was recorded"


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("batch", [1, 4, 5])
def test_reconstruction_grid_shows_the_pixels(channels: int, batch: int) -> None:
    mean, std = [0.4] * channels, [0.2] * channels
    truth = torch.rand(batch, channels, 96, 96)
    parts = [(t - 0.4) / 0.2 for t in (truth, truth * 0.5, 1 - truth)]
    sheet = np.asarray(reconstruction_grid(*parts, mean, std))
    height, width = 96, 96
    across = 1 if batch <= 4 else 2
    assert sheet.shape[:2] == (
        18 + -(-batch // across) * (height + 3),
        across * (3 * width + 6) + (across - 1) * 14 + 6,
    )
    last, row, group = batch - 1, (batch - 1) // across, (batch - 1) % across
    for c, shown in enumerate((truth, truth * 0.5, 1 - truth)):
        left, top = 3 + group * (3 * width + 6 + 14) + c * (width + 3), 18 + row * (height + 3)
        cell = sheet[top : top + height, left : left + width].astype(float)
        expected = (shown[last] * 255).permute(1, 2, 0).numpy()
        assert np.abs(cell.reshape(height, width, channels) - expected).max() <= 0.51
    assert sheet[:18].min() < 120  # the header has ink


def test_reconstruction_grid_refuses_what_it_cannot_show() -> None:
    one = torch.zeros(2, 1, 8, 8)
    with pytest.raises(ValueError, match="one shape"):
        reconstruction_grid(one, one, one[:1], [0.5], [0.2])
    with pytest.raises(ValueError, match="mean and std"):
        reconstruction_grid(one, one, one, [0.5] * 3, [0.2] * 3)


def test_montage_places_images_row_by_row() -> None:
    images = [np.full((10, 12), 20 * i, np.uint8) for i in range(5)]
    sheet = np.asarray(montage(images, 3))
    assert sheet.shape == (2 * 13 + 3, 3 * 15 + 3)
    assert (
        [sheet[8, 9 + 15 * i] for i in range(3)] == [0, 20, 40] and sheet[21, 9] == 60 and sheet[21, 24] == 80
    )
    assert montage([*images, np.zeros((4, 4, 3), np.uint8)], 2).mode == "RGB"
    for bad in ([], [np.zeros((4, 4))]):
        with pytest.raises(ValueError, match="montage needs"):
            montage(bad, 2)


def test_saved_picture_is_a_small_png(tmp_path: Path) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (700, 900), dtype=np.uint8))
    path = save_png(noise, tmp_path / "pictures" / "epoch_1.png")
    assert path.stat().st_size <= 300_000
    with Image.open(path) as image:
        assert image.format == "PNG" and image.width / image.height == pytest.approx(9 / 7, abs=0.02)
    assert [p.name for p in path.parent.iterdir()] == ["epoch_1.png"]
    small = Image.new("L", (50, 40), 7)
    with Image.open(save_png(small, tmp_path / "small.png")) as image:
        assert image.size == (50, 40)


def test_class_table_sets_methods_apart_and_footnotes_reasons() -> None:
    def entry(
        klass: str, value: float | None, how: str | None, reason: str | None = None
    ) -> dict[str, object]:
        ends = (None, None) if value is None else (value - 0.1, value + 0.1)
        return {
            "metric": "auroc",
            "class": klass,
            "value": value,
            "low": ends[0],
            "high": ends[1],
            "interval": how,
            "n": 50,
            "positives": 9,
            "reason": reason,
        }

    reason = "n/a because b has no positive image"
    metrics = [entry("a", 0.7, "bootstrap"), entry("a", 0.7, "DeLong"), entry("b", None, None, reason)]
    table = tables.by_class({"classes": ["b", "a"], "metrics": metrics})
    assert table is not None and table.columns == ["AUROC", "AUROC (DeLong)"]
    assert table.methods == [("a", "bootstrap"), ("b", "DeLong")] and table.reasons == [("1", reason)]
    assert [(row[0], [(c.value, c.interval, c.note) for c in row[3]]) for row in table.rows] == [
        ("b", [("n/a", "", "1"), ("—", "", "")]),
        ("a", [("0.700", "[0.600–0.800]", "a"), ("0.700", "[0.600–0.800]", "b")]),
    ]


@pytest.mark.parametrize(
    ("labels", "low", "high", "said"),
    [
        (("=", 116), ("<=", 25), ("=", 990), "116 [≤ 25 to 990]"),
        ((">", 1143), ("=", 38), (">", 1143), "> 1,143 [38 to > 1,143]"),
        ((">", 1143), (">", 1143), (">", 1143), "> 1,143"),
    ],
)
def test_labels_to_match_are_said_once_where_all_lie_beyond(
    labels: tuple[str, int], low: tuple[str, int], high: tuple[str, int], said: str
) -> None:
    parts = {"labels": labels, "low": low, "high": high}
    assert labels_to_match({name: {"relation": r, "labels": n} for name, (r, n) in parts.items()}) == said
