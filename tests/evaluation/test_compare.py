"""``compare``: paired, antisymmetric, calibrated under no difference, and only on the same images."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pandas as pd
import pytest
from prediction_tables import World, multiclass, multilabel
from scipy import stats

from scanprior.errors import DataError
from scanprior.evaluation import (
    Ranking,
    compare,
    delong,
    evaluate,
    percentile_interval,
    resample_weights,
    two_sided_p,
)

CLASSES = ["normal", "sick"]
HOW: dict[str, Any] = {"classes": CLASSES, "task": "multiclass"}


def pair(draw: np.random.Generator, world: World, better: float = 0.0) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Two models that err alike to one half; the first's scores are further apart by ``better``."""
    groups, truth, shared = world.draw(draw)
    ours, theirs = (shared + draw.normal(size=len(truth)) for _ in range(2))
    return tuple(world.table(groups, truth, score / np.sqrt(2)) for score in (ours + better * truth, theirs))  # type: ignore[return-value]


def rows_by(result: dict[str, Any]) -> dict[tuple[str, str, bool], dict[str, Any]]:
    return {(row["metric"], row["class"], row["method"] == "DeLong"): row for row in result["differences"]}


def test_values_are_those_of_the_two_evaluations() -> None:
    first, second = pair(np.random.default_rng(0), World(60, 0.4, 0.85))
    cuts = {"sick": {"value": 0.4}}, {"sick": {"value": 0.6}}
    result = compare(first, second.sample(frac=1, random_state=1), **HOW, resamples=100, thresholds=cuts)
    json.dumps(result, allow_nan=False)
    assert result["patients"] == 60 and result["unit"] == "patient"
    for side, table, cut in (("first", first, cuts[0]), ("second", second, cuts[1])):
        alone = evaluate(table, **HOW, resamples=10, thresholds=cut)["metrics"]
        assert [row[side] for row in result["differences"]] == pytest.approx([row["value"] for row in alone])
    for row in result["differences"]:
        assert row["difference"] == pytest.approx(row["first"] - row["second"])
        assert row["low"] < row["difference"] < row["high"]


def test_exchanging_the_two_changes_the_sign_alone() -> None:
    first, second = pair(np.random.default_rng(1), World(60, 0.4, 0.85), better=0.5)
    one = rows_by(compare(first, second, **HOW, resamples=200))
    other = rows_by(compare(second, first, **HOW, resamples=200))
    for key, row in one.items():
        back = other[key]
        assert (back["low"], back["high"]) == pytest.approx((-row["high"], -row["low"]), abs=1e-12)
        assert back["difference"] == -row["difference"] and back["p"] == pytest.approx(row["p"], abs=1e-12)


def test_p_is_uniform_without_a_difference() -> None:
    world, draw = World(100, 0.4, 0.85, images=2), np.random.default_rng(0)
    found: dict[str, list[float]] = {"bootstrap": [], "DeLong": []}
    inside: dict[str, list[bool]] = {"bootstrap": [], "DeLong": []}
    for number in range(800):
        groups, truth, shared = world.draw(draw)
        scores = shared + draw.normal(size=(2, len(truth)))
        exact = delong(truth, scores, groups)
        _, low, high, p = exact.difference()
        found["DeLong"].append(p)
        inside["DeLong"].append(low <= 0 <= high)
        weights = np.concatenate(list(resample_weights(groups, 250, seed=number)))
        spread = Ranking(truth, scores[0]).auroc(weights) - Ranking(truth, scores[1]).auroc(weights)
        low, high = percentile_interval(spread, exact.patients, 0.95)
        found["bootstrap"].append(two_sided_p(spread, exact.patients))
        inside["bootstrap"].append(low <= 0 <= high)
    for how, each in found.items():
        assert stats.kstest(each, "uniform").pvalue > 0.005, how
        assert 0.03 <= np.mean(np.array(each) <= 0.05) <= 0.07, how
        assert 0.93 <= np.mean(inside[how]) <= 0.97, how


def test_p_is_small_with_a_difference() -> None:
    first, second = pair(np.random.default_rng(0), World(200, 0.4, 0.7), better=1.5)
    result = rows_by(compare(first, second, **HOW, resamples=500))
    assert result["auroc", "sick", False]["p"] < 0.02 and result["auroc", "sick", True]["p"] < 1e-4
    assert result["auroc", "sick", False]["low"] > 0 and result["auroc", "sick", True]["low"] > 0


def test_a_run_against_itself() -> None:
    first, _ = pair(np.random.default_rng(2), World(40, 0.4, 0.85))
    for row in compare(first, first.copy(), **HOW, resamples=50)["differences"]:
        assert row["difference"] == 0 and row["low"] is None and "no interval because" in row["reason"]
        assert row["p"] == (None if row["method"] == "DeLong" else 1.0)


def test_undefined_differences_have_a_reason() -> None:
    table = multilabel(np.random.default_rng(0), 40, ["mass", "nodule"], 0.2)
    table["label:nodule"] = np.where(table["label:nodule"].isna(), np.nan, 0.0)
    other = table.assign(**{"prob:mass": 0.1})
    result = rows_by(compare(table, other, classes=["mass", "nodule"], task="multilabel", resamples=50))
    json.dumps(list(result.values()), allow_nan=False)
    for by_delong in (False, True):
        row = result["auroc", "nodule", by_delong]
        assert row["difference"] is None and row["reason"] == "n/a because no image is positive"
    row = result["ppv", "mass", False]  # only the second calls no image positive
    assert row["first"] is not None and row["second"] is None and row["p"] is None
    assert row["reason"] == "n/a because no image is called positive"


def test_multiclass_pairs() -> None:
    draw = np.random.default_rng(0)
    first = multiclass(draw, 60, ["a", "b", "c"])
    second = multiclass(draw, 60, ["a", "b", "c"]).assign(label=first["label"])
    result = rows_by(compare(first, second, classes=["a", "b", "c"], task="multiclass", resamples=50))
    assert result["auroc", "macro", False]["p"] > 0 and ("auroc", "macro", True) not in result


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.iloc[:-1], "evaluate both on the same images first"),
        (lambda t: t.assign(image="x" + t["image"]), "of which 0 are the same"),
        (lambda t: t.assign(label=t["label"].where(t.index != 3, "sick")), "label 00003 differently"),
        (lambda t: t.assign(label=t["label"].where(t.index != 3)), "label 00003 differently"),
        (lambda t: pd.concat([t, t.iloc[:1]]), "holds 00000 twice"),
        (lambda t: t.drop(columns="label"), "right: has no column 'label'"),
        (lambda t: t.assign(error="broken"), "every image could not be read"),
    ],
)
def test_only_the_same_images_with_the_same_labels(change: Any, said: str) -> None:
    first, second = pair(np.random.default_rng(3), World(20, 0.5, 0.8))
    first.loc[3, "label"] = second.loc[3, "label"] = "normal"
    with pytest.raises(DataError, match=said):
        compare(first, change(second), **HOW, names=("left", "right"), resamples=10)


def test_an_image_that_one_could_not_read_is_left_out_of_both() -> None:
    first, second = pair(np.random.default_rng(3), World(20, 0.5, 0.8))
    broken = second.assign(error=["broken", *[None] * (len(second) - 1)])
    result = compare(first, broken, **HOW, resamples=50)
    assert result["left_out"] == 1 and result["n"] == len(first) - 1
    assert result["differences"] == compare(first[1:], second[1:], **HOW, resamples=50)["differences"]
    assert compare(first, second, **HOW, resamples=10)["left_out"] == 0
