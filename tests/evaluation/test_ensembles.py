"""An ensemble against its members: paired differences, agreement, error correlation, calibration."""

from __future__ import annotations

import json
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit, softmax
from sklearn.metrics import roc_auc_score

from scanprior.evaluation import (
    Combination,
    Setting,
    best_member,
    compare,
    evaluate,
    evaluate_members,
    member_column,
    validate_members,
)
from scanprior.evaluation.labels import Task

MEMBERS = ["one", "two", "three"]
TASKS: tuple[Task, ...] = ("multiclass", "multilabel")


def predictions(
    task: Task, method: str, seed: int = 0, patients: int = 60
) -> tuple[pd.DataFrame, Combination]:
    """Return a table of an ensemble of three members, two images a patient, some labels missing."""
    draw = np.random.default_rng(seed)
    n, classes = 2 * patients, ["a", "b", "c"]
    label = draw.integers(3, size=n)
    draws = (draw.random((n, 3)) < 0.4).astype(float)
    truth = np.eye(3)[label] if task == "multiclass" else draws
    shared = draw.normal(size=(n, 3))
    logits = np.stack([skill * truth + shared + draw.normal(size=(n, 3)) for skill in (1.0, 2.0, 1.5)])
    found = softmax(logits, axis=-1) if task == "multiclass" else expit(logits - 1)
    table = pd.DataFrame(
        {"image": [f"{i:04d}" for i in range(n)], "patient": [f"p{i // 2}" for i in range(n)]}
    )
    if task == "multiclass":
        table["label"] = np.array(classes, dtype=object)[label]
    else:
        truth[draw.random(truth.shape) < 0.1] = np.nan
        table[[f"label:{name}" for name in classes]] = truth
    combination = Combination.fit(method, found, truth, task)  # type: ignore[arg-type]
    whole = combination(found, task)
    for number, name in enumerate(classes):
        table[f"prob:{name}"] = whole[:, number]
        for who in range(3):
            table[member_column(who, name)] = found[who, :, number]
    table["error"] = None
    table.loc[n] = {"image": "broken", "error": "empty file"}
    return table, combination


def of_member(table: pd.DataFrame, number: int) -> pd.DataFrame:
    return table.assign(**{f"prob:{name}": table[member_column(number, name)] for name in "abc"})


def setting(task: Task, **more: Any) -> Setting:
    return Setting(MEMBERS, list("abc"), task, resamples=200, **more)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("method", ["mean", "calibrated"])
def test_differences_are_those_of_compare_and_metrics_those_of_evaluate(task: Task, method: str) -> None:
    table, combination = predictions(task, method)
    result = evaluate_members(table, setting(task), combination, best=1)
    json.dumps(result, allow_nan=False)
    how: dict[str, Any] = {"classes": list("abc"), "task": task, "resamples": 200}
    against = compare(table, of_member(table, 1), **how)["differences"]
    expected = [row for row in against if row["method"] != "DeLong"]
    assert result["differences"][0]["rows"] == expected and result["differences"][0]["member"] == "two"
    for number, member in enumerate(result["members"]):
        alone = evaluate(of_member(table, number), **how)["metrics"]
        assert member["metrics"] == [r for r in alone if not str(r["interval"]).startswith("DeLong")]
    mean = {(row["metric"], row["class"]): row for row in result["differences"][1]["rows"]}
    values = [
        next(r["value"] for r in m["metrics"] if (r["metric"], r["class"]) == ("auroc", "macro"))
        for m in result["members"]
    ]
    row = mean["auroc", "macro"]
    assert row["second"] == pytest.approx(np.mean(values)) and row["low"] < row["difference"] < row["high"]


@pytest.mark.parametrize("task", TASKS)
def test_agreement_and_correlation_are_those_of_a_loop(task: Task) -> None:
    table, combination = predictions(task, "mean")
    result = evaluate_members(table, setting(task), combination, best=None)["agreement"]
    good = table[table["error"].isna()]
    found = np.stack([of_member(good, k)[[f"prob:{c}" for c in "abc"]].to_numpy() for k in range(3)])
    expected = []
    for one, other in combinations(range(3), 2):
        if task == "multiclass":
            same = np.mean(found[one].argmax(1) == found[other].argmax(1))
            right = [list("abc").index(label) for label in good["label"]]
            errors = [[1 - found[k, i, c] for i, c in enumerate(right)] for k in (one, other)]
            correlation = np.corrcoef(errors)[0, 1]
        else:
            same = np.mean((found[one] >= 0.5) == (found[other] >= 0.5))
            each = []
            for number, name in enumerate("abc"):
                known = good[f"label:{name}"].notna().to_numpy()
                truth = good[f"label:{name}"].to_numpy(float)[known]
                each.append(np.corrcoef([abs(found[k, known, number] - truth) for k in (one, other)])[0, 1])
            correlation = np.mean(each)
        expected.append((same, correlation))
    rows = [(row["agreement"], row["error_correlation"]) for row in result["pairs"]]
    np.testing.assert_allclose(rows, expected, atol=1e-9)
    for place, name in enumerate(("agreement", "error_correlation")):
        mean = result["mean"][name]
        assert mean["value"] == pytest.approx(np.mean(expected, axis=0)[place])
        assert mean["low"] < mean["value"] < mean["high"]


def test_equal_members_agree_and_gain_nothing() -> None:
    table, combination = predictions("multiclass", "mean")
    for name in "abc":
        for who in (1, 2):
            table[member_column(who, name)] = table[member_column(0, name)]
        table[f"prob:{name}"] = table[member_column(0, name)]
    result = evaluate_members(table, setting("multiclass"), combination, best=0)
    assert all(row["difference"] == pytest.approx(0, abs=1e-12) for row in result["differences"][0]["rows"])
    assert result["agreement"]["mean"]["agreement"]["value"] == 1
    assert result["agreement"]["mean"]["error_correlation"]["value"] == pytest.approx(1)
    certain = table.assign(**{member_column(who, name): 1.0 if name == "a" else 0.0
                              for who in range(3) for name in "abc"}, label="a")  # fmt: skip
    constant = evaluate_members(certain, setting("multiclass"), combination, best=0)
    json.dumps(constant, allow_nan=False)
    assert constant["agreement"]["mean"]["error_correlation"]["value"] is None


def test_calibration_is_told_before_and_after() -> None:
    table, combination = predictions("multiclass", "calibrated")
    rows = evaluate_members(table, setting("multiclass"), combination, best=0)["calibration"]
    assert [row["name"] for row in rows] == [*MEMBERS, "ensemble"]
    for row, temperature in zip(rows[:3], combination.temperatures or (), strict=True):
        assert row["temperature"] == temperature and set(row["before"]) == {"ece", "brier"}
        assert row["after"]["brier"]["value"] != row["before"]["brier"]["value"]
    alone = evaluate(table, classes=list("abc"), task="multiclass", resamples=200)["metrics"]
    brier = next(row for row in alone if row["metric"] == "brier")
    assert rows[3]["after"]["brier"] == {name: brier[name] for name in ("value", "low", "high")}
    table, combination = predictions("multiclass", "mean")
    rows = evaluate_members(table, setting("multiclass"), combination, best=0)["calibration"]
    assert all(row["after"] is None for row in rows[:3]) and rows[3]["before"] is None


@pytest.mark.parametrize("task", TASKS)
def test_the_best_member_is_that_of_the_highest_auroc_on_validation(task: Task) -> None:
    table, _ = predictions(task, "mean")
    good = table[table["error"].isna()].reset_index(drop=True)
    validated = validate_members(good, setting(task))
    for number, row in enumerate(validated):
        each = []
        for name in "abc":
            truth = (good["label"] == name).astype(float) if task == "multiclass" else good[f"label:{name}"]
            known = truth.notna()
            each.append(roc_auc_score(truth[known], good.loc[known, member_column(number, name)]))
        assert row["auroc"] == pytest.approx(np.mean(each))
    assert best_member(validated) == int(np.argmax([row["auroc"] for row in validated])) == 1
    assert best_member(validate_members(good.iloc[:0], setting(task))) is None
    equal = [{"auroc": 0.9, "log_loss": loss} for loss in (0.3, 0.2, 0.2)]
    assert best_member(equal) == 1
    none = evaluate_members(table, setting(task), Combination(), best=None)["differences"][0]
    assert none["rows"] == [] and "no validation image is common" in none["reason"]
