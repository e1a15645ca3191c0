"""``evaluate``: valid JSON, the same every time, curves within their bands, and every reason said."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prediction_tables import World, multiclass, multilabel
from sklearn import metrics as reference

from scanprior.errors import DataError
from scanprior.evaluation import Scorer, curves, delong, evaluate, groups_of
from scanprior.evaluation.intervals import bootstrap_interval

SMALL = settings(deadline=None, max_examples=8)
SEEDS = st.integers(0, 2**31)
ROW = {"metric", "class", "value", "low", "high", "interval", "n", "positives", "reason"}


def made_by(draw: np.random.Generator, kind: str, n: int = 60) -> tuple[pd.DataFrame, dict[str, Any]]:
    if kind == "multilabel":
        findings = ["mass", "nodule"]
        return multilabel(draw, n, findings, 0.3), {"classes": findings, "task": "multilabel"}
    classes = ["normal", "sick"] if kind == "binary" else ["a", "b", "c"]
    return multiclass(draw, n, classes), {"classes": classes, "task": "multiclass"}


def row_of(result: dict[str, Any], metric: str, name: str, how: str = "bootstrap") -> dict[str, Any]:
    rows = [row for row in result["metrics"] if (row["metric"], row["class"]) == (metric, name)]
    return rows[1 if how == "DeLong" else 0]


@SMALL
@given(SEEDS, st.sampled_from(["binary", "several", "multilabel"]), st.integers(4, 80))
def test_evaluation_is_json_without_nan_and_repeatable(seed: int, kind: str, n: int) -> None:
    table, how = made_by(np.random.default_rng(seed), kind, n)
    result = evaluate(table, **how, resamples=60, seed=3)
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert evaluate(table, **how, resamples=60, seed=3) == result
    for row in result["metrics"]:
        assert row.keys() == ROW
        assert (row["low"] is None) == (row["high"] is None) == (row["interval"] is None)
        assert (row["low"] is None) == (row["reason"] is not None)
        if row["value"] is None:
            assert row["low"] is None and row["reason"].startswith("n/a because ")
        elif row["low"] is None:
            assert row["reason"].startswith("no interval because ")
        else:
            assert row["low"] <= row["value"] <= row["high"]


@SMALL
@given(SEEDS, st.sampled_from(["binary", "several", "multilabel"]), st.integers(10, 80))
def test_bands_hold_their_curves(seed: int, kind: str, n: int) -> None:
    table, how = made_by(np.random.default_rng(seed), kind, n)
    result = evaluate(table, **how, resamples=10)
    for curve, up in (("roc", "tpr"), ("pr", "precision"), ("reliability", "frequency")):
        for line in result["curves"][curve].values():
            for value, low, high in zip(line[up], line["low"], line["high"], strict=True):
                assert (value is None and low is None) or 0 <= low <= value <= high <= 1
    for name, line in result["curves"]["reliability"].items():
        truth = table[f"label:{name}"].notna() if kind == "multilabel" else table["label"]
        assert sum(line["count"]) == (truth.sum() if kind == "multilabel" else n)
        bins = np.minimum((table[f"prob:{name}"] * 10).astype(int), 9)
        known = truth if kind == "multilabel" else truth.notna()
        means = table.loc[known, f"prob:{name}"].groupby(bins[known]).mean()
        for place, mean in means.items():
            assert line["confidence"][place] == pytest.approx(mean, abs=1e-5)


@SMALL
@given(SEEDS, st.integers(10, 60))
def test_curves_are_those_of_scikit_learn(seed: int, n: int) -> None:
    table, how = made_by(np.random.default_rng(seed), "binary", n)
    table.loc[:1, "label"] = ["normal", "sick"]
    found = evaluate(table, **how, resamples=10)["curves"]
    truth, score = (table["label"] == "sick").to_numpy(), table["prob:sick"].to_numpy()
    fpr, tpr, _ = reference.roc_curve(truth, score, drop_intermediate=False)
    for rate, value in zip(found["roc"]["sick"]["fpr"], found["roc"]["sick"]["tpr"], strict=True):
        before = np.flatnonzero(fpr <= rate + 1e-9)[-1]  # the upper end of a vertical step
        after = min(before + 1, len(fpr) - 1)
        run = fpr[after] - fpr[before]
        part = (rate - fpr[before]) / run if run > 0 else 0.0
        assert value == pytest.approx(tpr[before] + part * (tpr[after] - tpr[before]), abs=2e-5)
    precision, recall, _ = reference.precision_recall_curve(truth, score)
    for wanted, value in zip(found["pr"]["sick"]["recall"], found["pr"]["sick"]["precision"], strict=True):
        reached = np.flatnonzero(recall >= max(wanted - 1e-9, 1e-9))[-1]  # recall falls along the array
        assert value == pytest.approx(precision[reached], abs=2e-5)
    assert found["pr"]["sick"]["prevalence"] == truth.mean()


def test_rows_are_the_pieces_put_together() -> None:
    world = World(50, 0.4, 0.85)
    groups, truth, score = world.draw(np.random.default_rng(1))
    table = world.table(groups, truth, score)
    result = evaluate(
        table, classes=["normal", "sick"], task="multiclass", resamples=200, seed=4, level=0.9,
        split_fingerprint="abc", thresholds={"sick": {"value": 0.4, "rule": "youden", "chosen_on": "validation"}},
    )  # fmt: skip
    assert (result["unit"], result["patients"], result["n"]) == ("patient", 50, len(table))
    assert (result["positive_class"], result["split"], result["split_fingerprint"]) == ("sick", None, "abc")
    found = row_of(result, "auroc", "sick")
    assert found["interval"] == "bootstrap over patients, 200 resamples"
    assert (found["n"], found["positives"]) == (len(table), int(truth.sum()))
    assert found["value"] == pytest.approx(reference.roc_auc_score(truth, score), abs=1e-12)
    formula = delong(truth, score, groups)
    exact = row_of(result, "auroc", "sick", "DeLong")
    assert (exact["low"], exact["high"]) == pytest.approx(formula.interval(0.9), abs=1e-9)
    assert exact["interval"] == "DeLong, by patient"
    assert found["high"] - found["low"] == pytest.approx(exact["high"] - exact["low"], rel=0.15)
    called = table["prob:sick"] >= 0.4
    assert row_of(result, "sensitivity", "sick")["value"] == pytest.approx(called[truth].mean())
    scorer, (numbers, _) = Scorer(table, result["classes"], "multiclass"), groups_of(table)
    patients = scorer.patients(numbers)
    assert patients["accuracy", "all"] == 50
    assert patients["sensitivity", "sick"] == len(np.unique(groups[truth]))
    assert sum(map(sum, result["confusion"]["counts"])) == len(table)


def test_unread_images_are_counted_and_left_out() -> None:
    table, how = made_by(np.random.default_rng(0), "binary", 40)
    whole = evaluate(table.assign(error=None), **how, resamples=50)
    gone = pd.DataFrame({"image": ["x.png"], "error": ["truncated"], "label": ["sick"]})
    together = pd.concat([table.assign(error=None).astype({"error": object}), gone], ignore_index=True)
    result = evaluate(together, **how, resamples=50)
    assert result["errors"] == 1
    assert {**result, "errors": 0} == whole
    with pytest.raises(DataError, match=r"ward: there is no image to evaluate \(1 could not be read\)"):
        evaluate(gone, **how, name="ward")


def perfect(n: int, patients: list[str] | None) -> pd.DataFrame:
    truth = np.arange(n) % 2 == 1
    return pd.DataFrame(
        {
            "image": [f"{i}.png" for i in range(n)],
            "patient": patients or [None] * n,
            "label": np.where(truth, "sick", "normal"),
            "prob:sick": np.where(truth, 0.9, 0.1),
            "prob:normal": np.where(truth, 0.1, 0.9),
        }
    )


def test_perfect_separation_has_no_interval_but_shares_have_an_exact_one() -> None:
    result = evaluate(perfect(20, None), classes=["normal", "sick"], task="multiclass", resamples=100)
    assert result["unit"] == "image" and result["patients"] is None
    exact = row_of(result, "auroc", "sick", "DeLong")
    assert exact["value"] == 1 and exact["low"] is None and "without an overlap" in exact["reason"]
    assert row_of(result, "auroc", "sick")["value"] == 1
    assert "same value" in row_of(result, "auroc", "sick")["reason"]
    found = row_of(result, "sensitivity", "sick")
    assert (found["low"], found["high"]) == pytest.approx((0.025**0.1, 1.0))
    assert found["interval"] == "exact (Clopper-Pearson), 10 images counted once"
    assert row_of(result, "accuracy", "all")["low"] == pytest.approx(0.025**0.05)


def test_a_single_patient_has_no_bootstrap_interval() -> None:
    table = perfect(6, ["one"] * 6).assign(**{"prob:sick": [0.2, 0.6, 0.7, 0.8, 0.3, 0.4]})
    result = evaluate(table, classes=["normal", "sick"], task="multiclass", resamples=50)
    assert result["patients"] == 1
    found = row_of(result, "auroc", "sick")
    assert 0 < found["value"] < 1 and found["reason"] == "no interval because it rests on a single patient"
    assert "a single patient" in row_of(result, "auroc", "sick", "DeLong")["reason"]


def test_one_class_only_and_constant_scores() -> None:
    table = perfect(8, None).assign(label="sick")
    result = evaluate(table, classes=["normal", "sick"], task="multiclass", resamples=50)
    for how in ("bootstrap", "DeLong"):
        assert row_of(result, "auroc", "sick", how)["reason"] == "n/a because no image is negative"
    assert result["curves"]["roc"] == {} and result["curves"]["pr"] == {}
    assert sum(result["curves"]["reliability"]["sick"]["count"]) == 8
    constant = perfect(8, None).assign(**{"prob:sick": 0.5, "prob:normal": 0.5})
    result = evaluate(constant, classes=["normal", "sick"], task="multiclass", resamples=50)
    assert row_of(result, "auroc", "sick")["value"] == 0.5
    assert "variance is 0" in row_of(result, "auroc", "sick", "DeLong")["reason"]


def test_patients_where_known_else_images() -> None:
    table = pd.DataFrame({"patient": ["a", None, "a", None, "b"]})
    numbers, unit = groups_of(table)
    assert unit == "patient" and numbers[0] == numbers[2] and len(set(numbers)) == 4
    assert groups_of(pd.DataFrame({"image": ["x", "y"]}))[1] == "image"
    # A patient called like an image without one is still a patient.
    assert len(set(groups_of(pd.DataFrame({"patient": [None, "image 0"]}))[0])) == 2


def test_near_duplicates_are_resampled_as_patients_are() -> None:
    table, how = made_by(np.random.default_rng(3), "binary", 120)
    table = table.drop(columns="patient", errors="ignore")
    groups = [f"g{n // 4}" for n in range(len(table))]
    near = evaluate(table.assign(near_duplicates=groups), **how, resamples=200)
    people = evaluate(table.assign(patient=groups), **how, resamples=200)
    alone = evaluate(table, **how, resamples=200)
    assert (near["unit"], near["units"], near["patients"]) == ("near-duplicate group", 30, None)
    assert (people["unit"], people["units"], people["patients"]) == ("patient", 30, 30)
    assert (alone["unit"], alone["units"], alone["patients"]) == ("image", 120, None)
    limits = [[(row["low"], row["high"]) for row in result["metrics"]] for result in (near, people, alone)]
    assert limits[0] == limits[1] != limits[2]
    assert "bootstrap over near-duplicate groups" in row_of(near, "auroc", "sick")["interval"]
    ways = {row["interval"] for row in near["metrics"] if (row["interval"] or "").startswith("DeLong")}
    assert ways == {"DeLong, by near-duplicate group"}
    both = evaluate(
        table.assign(near_duplicates=groups, patient=[f"p{n // 2}" for n in range(120)]), **how, resamples=50
    )
    assert (both["unit"], both["units"], both["patients"]) == ("near-duplicate group", 30, 60)


def test_bands_come_from_the_bootstrap() -> None:
    table, _ = made_by(np.random.default_rng(0), "binary", 400)
    groups = groups_of(table)[0]
    scorer = Scorer(table, ["normal", "sick"], "multiclass")
    roc = curves.curves(scorer, groups, 0, 0.95)["roc"]["sick"]
    wider = curves.curves(scorer, groups, 0, 0.99)["roc"]["sick"]
    assert roc["low"][50] > wider["low"][50] and roc["high"][20] < wider["high"][20]
    spread = np.random.default_rng(0).normal(0.8, 0.05, 300)
    assert bootstrap_interval("auroc", 0.8, spread, 200, "patient", 0.95).low == pytest.approx(
        0.685, abs=0.02
    )
