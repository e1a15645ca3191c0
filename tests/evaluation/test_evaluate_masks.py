"""``evaluate_masks`` and ``compare_masks``: plain means, counted gaps, intervals that hold the truth."""

from __future__ import annotations

import json
from collections import defaultdict
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from scanprior.errors import DataError
from scanprior.evaluation import compare_masks, evaluate_masks, mask_row
from scanprior.evaluation.intervals import log_interval
from scanprior.evaluation.segmentation import METRICS

SMALL = settings(deadline=None, max_examples=15)
SEEDS = st.integers(0, 2**31)
CLASSES = ["lung", "heart"]
ROW = {"metric", "class", "value", "low", "high", "interval", "n", "undefined", "partial", "reason"}
OF_ONE = "n/a because the predicted mask is empty"


def made(draw: np.random.Generator, n: int = 60, missing: float = 0.2) -> pd.DataFrame:
    """Two images a patient; some distances undefined."""
    table = pd.DataFrame({"image": [f"{i:04d}.png" for i in range(n)]})
    table["patient"] = [f"p{i // 2}" for i in range(n)]
    for name in CLASSES:
        overlap, gone = draw.beta(6, 2, n), draw.random(n) < missing
        table[f"dice:{name}"] = np.where(gone, 0.0, overlap)
        table[f"iou:{name}"] = table[f"dice:{name}"] / (2 - table[f"dice:{name}"])
        for metric in ("hausdorff95", "surface_distance"):
            table[f"{metric}:{name}"] = np.where(gone, np.nan, draw.lognormal(1, 0.5, n))
        table[f"reason:{name}"] = np.where(gone, OF_ONE, None)
    return table


def rows_by(rows: list[dict[str, Any]]) -> dict[tuple[str, str], dict[str, Any]]:
    return {(row["metric"], row["class"]): row for row in rows}


@SMALL
@given(SEEDS, st.integers(1, 60), st.sampled_from([0.0, 0.3, 0.9, 1.0]))
def test_means_and_counts_are_those_of_loops(seed: int, n: int, missing: float) -> None:
    table = made(np.random.default_rng(seed), n, missing)
    result = evaluate_masks(table, classes=CLASSES, resamples=40, seed=2)
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert result == evaluate_masks(table, classes=CLASSES, resamples=40, seed=2)
    found = rows_by(result["metrics"])
    assert found.keys() == {(metric, name) for metric in METRICS for name in (*CLASSES, "macro")}
    for (metric, name), row in found.items():
        assert row.keys() == ROW
        values = []
        for _, image in table.iterrows():
            each = [image[f"{metric}:{one}"] for one in (CLASSES if name == "macro" else [name])]
            known = [value for value in each if not np.isnan(value)]
            values += [sum(known) / len(known)] if known else []
        assert row["n"] == len(values) == n - sum(row["undefined"].values())
        if values:
            assert row["value"] == pytest.approx(sum(values) / len(values))
        else:
            assert row["value"] is None and row["reason"].startswith("n/a because ")
        if row["low"] is not None:
            assert row["reason"] is None and 0 <= row["low"] < row["value"] < row["high"]
            assert metric in ("hausdorff95", "surface_distance") or row["high"] <= 1
        else:
            assert row["reason"] and row["interval"] is None
    gone = table[[f"hausdorff95:{name}" for name in CLASSES]].isna().sum(axis=1)
    assert found["hausdorff95", "macro"]["partial"] == (gone == 1).sum()
    assert found["hausdorff95", "lung"]["undefined"] == (
        {OF_ONE: count} if (count := int(table["hausdorff95:lung"].isna().sum())) else {}
    )
    assert found["dice", "lung"]["n"] == n  # an empty prediction counts as 0


def test_masks_to_evaluation() -> None:
    """Measured masks: an empty prediction lowers Dice, and is counted where it has no distance."""
    square = np.zeros((20, 20), dtype=bool)
    square[5:15, 5:15] = True
    predicted = [square, np.roll(square, 2, axis=0), np.zeros_like(square), np.zeros_like(square)]
    true = [square, square, square, np.zeros_like(square)]
    rows = [
        {"image": f"{number}.png", **mask_row({"lung": ours}, {"lung": theirs}, (0.5, 0.5))}
        for number, (ours, theirs) in enumerate(zip(predicted, true, strict=True))
    ]
    unread = {"image": "4.png", "error": "truncated"}
    result = evaluate_masks(
        pd.DataFrame([*rows, unread]), classes=["lung"], name="ward", split_fingerprint="abc",
        distances_in="mm", resamples=50, level=0.9,
    )  # fmt: skip
    assert (result["n"], result["patients"], result["unit"], result["errors"]) == (4, None, "image", 1)
    assert (result["task"], result["name"], result["split_fingerprint"]) == ("segmentation", "ward", "abc")
    assert (result["distances_in"], result["level"], result["split"]) == ("mm", 0.9, None)
    found = rows_by(result["metrics"])
    assert ("dice", "macro") not in found
    assert found["dice", "lung"]["value"] == pytest.approx((1 + 0.8 + 0 + 1) / 4)
    assert found["iou", "lung"]["value"] == pytest.approx((1 + 80 / 120 + 0 + 1) / 4)
    assert found["hausdorff95", "lung"]["value"] == pytest.approx((0 + 1 + 0) / 3)
    assert found["hausdorff95", "lung"]["undefined"] == {OF_ONE: 1}


def test_no_interval_has_a_reason() -> None:
    same = made(np.random.default_rng(0), 8, 0.0).assign(**{"dice:lung": 1.0, "iou:lung": 1.0})
    found = rows_by(evaluate_masks(same, classes=["lung"], resamples=20)["metrics"])
    assert found["dice", "lung"]["value"] == 1 and "same value" in found["dice", "lung"]["reason"]
    alone = same.assign(patient="one", **{"dice:lung": np.linspace(0.1, 0.9, 8)})
    found = rows_by(evaluate_masks(alone, classes=["lung"], resamples=20)["metrics"])
    assert found["dice", "lung"]["reason"] == "no interval because it rests on a single patient"
    nothing = same.drop(columns="reason:lung").assign(**{"hausdorff95:lung": np.nan})
    row = rows_by(evaluate_masks(nothing, classes=["lung"], resamples=20)["metrics"])["hausdorff95", "lung"]
    assert row["n"] == 0 and row["undefined"] == {"n/a without a reason given": 8} and row["value"] is None


@pytest.mark.parametrize(
    ("column", "value", "said"),
    [
        ("dice:lung", 1.2, "dice:lung of 0000.png is 1.2; it lies between 0 and 1"),
        ("iou:lung", -0.1, "lies between 0 and 1"),
        ("hausdorff95:lung", np.inf, "is inf; it is 0 or more, and missing where undefined"),
        ("surface_distance:lung", -1.0, "is -1; it is 0 or more"),
        ("iou:lung", None, "no column 'iou:lung'"),
    ],
)
def test_what_is_no_metric_is_refused(column: str, value: float | None, said: str) -> None:
    table = made(np.random.default_rng(0), 4)
    table = table.drop(columns=column) if value is None else table.assign(**{column: value})
    with pytest.raises(DataError, match=said):
        evaluate_masks(table, classes=CLASSES, resamples=10)


def test_an_evaluation_needs_an_image() -> None:
    with pytest.raises(DataError, match=r"test: there is no image to evaluate \(4 could not be read\)"):
        evaluate_masks(made(np.random.default_rng(0), 4).assign(error="x"), classes=CLASSES)


# How often the intervals hold the truth.


GRID = (np.arange(10000) + 0.5) / 10000
KINDS = {
    "dice": stats.beta(1.2, 6).ppf(GRID),  # skewed to the right: most masks are poor
    "iou": stats.beta(8, 1.2).ppf(GRID),  # skewed to the left: most masks are good
    "hausdorff95": stats.lognorm(0.6, scale=3).ppf(GRID),
    "surface_distance": stats.expon(scale=2).ppf(GRID),
}
GROUPS = np.repeat(np.arange(30), 2)


def world(draw: np.random.Generator) -> pd.DataFrame:
    """30 patients of 2 images, correlated within the patient, whose metrics have the means of KINDS."""
    traits = np.sqrt(0.5) * (draw.normal(size=30)[GROUPS] + draw.normal(size=60))
    place = (stats.norm.cdf(traits) * len(GRID)).astype(int)
    metrics = {f"{metric}:x": values[place] for metric, values in KINDS.items()}
    return pd.DataFrame({"image": np.arange(60).astype(str), "patient": GROUPS.astype(str), **metrics})


def test_coverage_of_intervals_over_30_patients() -> None:
    draw, hits, narrow = np.random.default_rng(0), defaultdict(list), []
    for number in range(800):
        table = world(draw)
        for row in evaluate_masks(table, classes=["x"], resamples=200, seed=number)["metrics"]:
            hits[row["metric"]].append(row["low"] <= KINDS[row["metric"]].mean() <= row["high"])
        if number < 200:  # patients overlooked
            rows = evaluate_masks(table.drop(columns="patient"), classes=["x"], resamples=200)["metrics"]
            narrow.append(rows[0]["low"] <= KINDS["dice"].mean() <= rows[0]["high"])
    found = {metric: float(np.mean(each)) for metric, each in hits.items()}
    assert all(0.93 <= found[metric] <= 0.97 for metric in ("dice", "iou")), found
    assert all(0.92 <= each <= 0.97 for each in found.values()), found  # few see the far tail of distances
    assert np.mean(narrow) < 0.92  # so the test can tell


def test_p_of_compared_masks_is_uniform_without_a_difference() -> None:
    draw, found = np.random.default_rng(0), defaultdict(list)
    for number in range(500):
        result = compare_masks(world(draw), world(draw), classes=["x"], resamples=200, seed=number)
        for row in result["differences"]:
            found[row["metric"]].append(row["p"])
    for metric, each in found.items():
        assert 0.025 <= np.mean(np.array(each) <= 0.05) <= 0.075, metric
        assert stats.kstest(each, "uniform").pvalue > 0.005, metric


@SMALL
@given(st.floats(0.01, 100), st.floats(1e-6, 1e3), st.floats(0.5, 100))
def test_log_interval_holds_the_value_and_stays_above_0(value: float, error: float, freedom: float) -> None:
    low, high = log_interval(value, error, freedom, 0.95)
    assert 0 <= low <= value <= high < np.inf
    assert np.isnan(log_interval(0.0, error, freedom, 0.95)).all()
    assert np.isnan(log_interval(value, 0.0, freedom, 0.95)).all()
    low, high = log_interval(value, 1e-4 * value, 1e6, 0.95)
    assert (low, high) == pytest.approx((value * (1 - 1.96e-4), value * (1 + 1.96e-4)), rel=1e-6)


# Two runs.


@SMALL
@given(SEEDS)
def test_differences_are_of_images_where_both_have_a_value(seed: int) -> None:
    draw = np.random.default_rng(seed)
    first, second = made(draw), made(draw)
    result = compare_masks(
        first, second.sample(frac=1, random_state=1), classes=CLASSES, names=("a", "b"), resamples=60
    )
    json.dumps(result, allow_nan=False)
    assert (result["n"], result["patients"], result["left_out"]) == (60, 30, 0)
    back = rows_by(compare_masks(second, first, classes=CLASSES, resamples=60)["differences"])
    for (metric, name), row in rows_by(result["differences"]).items():
        if name == "macro":
            continue
        ours, theirs = first[f"{metric}:{name}"], second[f"{metric}:{name}"]
        both = ours.notna() & theirs.notna()
        assert row["first"] == pytest.approx(ours[both].mean()) and row["n"] == both.sum()
        assert row["difference"] == pytest.approx((ours - theirs)[both].mean(), abs=1e-12)
        assert (row["low"], row["high"]) == pytest.approx(
            (-back[metric, name]["high"], -back[metric, name]["low"]), abs=1e-12
        )
        wanted = {
            f"a: {OF_ONE}": int(ours.isna().sum()),
            f"b: {OF_ONE}": int((ours.notna() & theirs.isna()).sum()),
        }
        assert row["undefined"] == {key: count for key, count in wanted.items() if count}


def test_a_better_run_and_the_same_run() -> None:
    first = made(np.random.default_rng(0), missing=0.0)
    worse = first.assign(**{"dice:lung": first["dice:lung"] * np.random.default_rng(1).uniform(0.8, 1, 60)})
    found = rows_by(compare_masks(first, worse, classes=CLASSES, resamples=300)["differences"])
    row = found["dice", "lung"]
    assert 0 < row["low"] < row["difference"] < row["high"] and row["p"] < 0.02
    assert row["method"] == "paired bootstrap over patients, 300 resamples"
    row = found["hausdorff95", "lung"]
    assert row["difference"] == 0 and row["p"] == 1 and "same difference" in row["reason"]
    broken = worse.assign(error=["broken", *[None] * 59])
    assert compare_masks(first, broken, classes=CLASSES, resamples=10)["left_out"] == 1
    with pytest.raises(DataError, match="evaluate both on the same images first"):
        compare_masks(first, worse[1:], classes=CLASSES, resamples=10)


def test_a_value_undefined_in_one_is_undefined_in_all() -> None:
    """A model that predicts nothing on the hard images is not compared by the easy ones."""
    from scanprior.evaluation import defined_in_all

    tables = []
    for empty in ([], [2], [0, 2]):
        table = pd.DataFrame({"image": list("abcd"), "dice:x": 0.5, "iou:x": 0.4})
        for metric in ("hausdorff95", "surface_distance"):
            table[f"{metric}:x"] = [1.0, 2.0, 3.0, 4.0]
            table.loc[empty, f"{metric}:x"] = np.nan
        table["reason:x"] = [("nothing predicted" if n in empty else None) for n in range(4)]
        tables.append(table)
    made = defined_in_all(tables, ["x"], ["full", "one", "two"])
    for table in made:
        assert table["hausdorff95:x"].isna().tolist() == [True, False, True, False]
        assert table["dice:x"].tolist() == [0.5] * 4
        assert table["reason:x"].tolist()[::2] == ["two: nothing predicted", "one: nothing predicted"]
    assert tables[0]["hausdorff95:x"].notna().all()
