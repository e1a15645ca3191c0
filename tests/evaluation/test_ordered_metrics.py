"""Metrics of the most probable class and of classes in an order: values, resamples, intervals, what is undefined."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prediction_tables import multiclass
from sklearn import metrics as reference

from scanprior.evaluation import Scorer, are_rising, compare, evaluate, replicates, subgroups, why_not
from scanprior.evaluation.bootstrap import resample_weights
from scanprior.evaluation.labels import groups_of

GRADES = ["0", "1", "2", "3", "4"]
KAPPA = ("quadratic_kappa", "all")


def called_of(table: pd.DataFrame, classes: list[str]) -> np.ndarray:
    return np.array(classes)[table[[f"prob:{name}" for name in classes]].to_numpy().argmax(axis=1)]


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 2**31), st.integers(3, 5), st.integers(10, 80))
def test_weighted_values_are_those_of_scikit_learn(seed: int, count: int, n: int) -> None:
    draw, classes = np.random.default_rng(seed), GRADES[:count]
    table = multiclass(draw, n, classes)
    table.loc[: count - 1, "label"] = classes
    weights = draw.integers(0, 4, (3, n)).astype(np.float64)
    found = Scorer(table, classes, "multiclass").score(weights)
    truth, called = table["label"].to_numpy(), called_of(table, classes)
    for row, each in enumerate(weights):
        if each.sum() and len(np.unique(truth[each > 0])) > 1:
            kappa = reference.cohen_kappa_score(
                truth, called, labels=classes, weights="quadratic", sample_weight=each
            )
            assert found[KAPPA][row] == pytest.approx(kappa, abs=1e-12)
        if len(np.unique(truth[each > 0])) == count:
            f1 = reference.f1_score(truth, called, average="macro", labels=classes, sample_weight=each)
            assert found["macro_f1", "all"][row] == pytest.approx(f1, abs=1e-12)
        else:
            assert np.isnan(found["macro_f1", "all"][row])
        if len(np.unique(called[each > 0])) == count:
            precision = reference.precision_score(
                truth, called, average="macro", labels=classes, sample_weight=each
            )
            assert found["macro_precision", "all"][row] == pytest.approx(precision, abs=1e-12)
        else:
            assert np.isnan(found["macro_precision", "all"][row])


def test_macro_auroc_is_one_against_the_rest() -> None:
    draw = np.random.default_rng(3)
    table = multiclass(draw, 60, GRADES, digits=12)
    found = Scorer(table, GRADES, "multiclass").score(np.ones((1, 60)))
    scores = table[[f"prob:{name}" for name in GRADES]].to_numpy()
    scores /= scores.sum(axis=1, keepdims=True)
    wanted = reference.roc_auc_score(table["label"], scores, multi_class="ovr", average="macro")
    assert float(found["auroc", "macro"][0]) == pytest.approx(wanted, abs=1e-9)
    onehot = (table["label"].to_numpy()[:, None] == GRADES).astype(int)
    wanted = reference.average_precision_score(onehot, scores, average="macro")
    assert float(found["average_precision", "macro"][0]) == pytest.approx(wanted, abs=1e-9)


def test_resamples_are_those_of_a_loop_over_drawn_patients() -> None:
    table = multiclass(np.random.default_rng(1), 60, GRADES)
    groups, _ = groups_of(table)
    scorers = [Scorer(table, GRADES, "multiclass")] * 2
    found = replicates(scorers, groups, 40, 5)[KAPPA]
    drawn = np.concatenate(list(resample_weights(groups, 40, 5))).astype(int)
    called = called_of(table, GRADES)
    for row, times in enumerate(drawn):
        rows = np.repeat(np.arange(60), times)
        assert len(rows) and (np.unique(groups[rows], return_counts=True)[1] > 0).all()
        wanted = reference.cohen_kappa_score(
            table["label"].to_numpy()[rows], called[rows], labels=GRADES, weights="quadratic"
        )
        np.testing.assert_allclose(found.spread[:, row], wanted, atol=1e-12)


def test_every_row_has_an_interval_that_holds_its_value() -> None:
    table = multiclass(np.random.default_rng(2), 200, GRADES).assign(site=np.resize(["a", "b"], 200))
    result = evaluate(table, classes=GRADES, task="multiclass", resamples=200)
    json.dumps(result, allow_nan=False)
    rows = {(row["metric"], row["class"]): row for row in result["metrics"]}
    for key in (KAPPA, ("kappa", "all"), ("macro_f1", "all"), ("macro_precision", "all"), ("ppv", "macro")):
        row = rows[key]
        assert row["low"] < row["value"] < row["high"] and row["n"] == 200, key
    other = multiclass(np.random.default_rng(3), 200, GRADES).assign(label=table["label"])
    both = compare(table, other, classes=GRADES, task="multiclass", resamples=200)["differences"]
    mine = next(row for row in both if (row["metric"], row["class"]) == KAPPA)
    assert mine["first"] == rows[KAPPA]["value"] and mine["low"] < mine["difference"] < mine["high"]
    groups = subgroups(table, "site", classes=GRADES, task="multiclass", resamples=200)
    assert (groups["metric"] == "quadratic_kappa").sum() == 2


@pytest.mark.parametrize(
    ("classes", "ordered", "there"),
    [
        (["0", "1", "2"], None, True),
        (["0", "1", "2"], False, False),
        (["mild", "none", "severe"], None, False),
        (["none", "mild", "severe"], True, True),
        (["0", "10", "2"], None, False),
        (["0", "1"], True, False),
    ],
)
def test_quadratic_kappa_is_of_three_classes_in_an_order(
    classes: list[str], ordered: bool | None, there: bool
) -> None:
    table = multiclass(np.random.default_rng(0), 40, classes)
    scorer = Scorer(table, classes, "multiclass", ordered=ordered)
    assert (KAPPA in scorer.score(np.ones((1, 40)))) == there
    known = are_rising(classes) if ordered is None else ordered
    assert (why_not("quadratic_kappa", "multiclass", classes, known) is None) == there


def test_what_cannot_be_had_says_why() -> None:
    def said(metric: str, task: str = "multiclass") -> str:
        return str(why_not(metric, task, ["mild", "none", "severe"], False))  # type: ignore[arg-type]

    assert "give them from least to most in task.classes" in said("quadratic_kappa")
    assert "these have findings" in said("kappa", "multilabel")
    assert "take f1" in str(why_not("macro_f1", "multiclass", ["a", "b"], False))
    assert said("kappa") == said("auroc", "multilabel") == "None"


def test_undefined_metrics_have_a_reason() -> None:
    def scored(labels: list[str], called: list[int]) -> dict[str, str]:
        found = pd.DataFrame(np.eye(3)[called], columns=[f"prob:{name}" for name in GRADES[:3]])
        scorer = Scorer(found.assign(label=labels), GRADES[:3], "multiclass")
        values = scorer.score(np.ones((1, len(labels))))
        wanted = ("macro_precision", "macro_f1", "quadratic_kappa")
        return {m: scorer.why_undefined(m, "all") for m in wanted if np.isnan(values[m, "all"][0])}

    assert scored(["0", "1", "2"], [0, 1, 2]) == {}
    assert scored(["0", "1", "1"], [0, 1, 2]) == {"macro_f1": "n/a because a class has no image"}
    never = {"macro_precision": "n/a because no image is called one of the classes"}
    assert scored(["0", "1", "2"], [0, 1, 1]) == never
    assert scored(["1", "1"], [1, 1]) == {
        **never, "macro_f1": "n/a because a class has no image",
        "quadratic_kappa": "n/a because all images are of one class and called so",
    }  # fmt: skip


def test_quadratic_kappa_punishes_the_distance() -> None:
    near, far = (
        pd.DataFrame(np.eye(3)[called], columns=[f"prob:{name}" for name in GRADES[:3]]).assign(
            label=["0", "0", "1", "2", "2"]
        )
        for called in ([0, 1, 1, 2, 2], [0, 2, 1, 2, 2])
    )
    values = [Scorer(table, GRADES[:3], "multiclass").score(np.ones((1, 5))) for table in (near, far)]
    assert values[0]["accuracy", "all"] == values[1]["accuracy", "all"]
    assert values[0][KAPPA][0] > values[1][KAPPA][0]
