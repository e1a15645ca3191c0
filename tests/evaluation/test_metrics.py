"""Every metric against scikit-learn; weights against repetition; what is undefined says why."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prediction_tables import multiclass, multilabel
from sklearn import metrics as reference

from scanprior.errors import DataError
from scanprior.evaluation import Ranking, Scorer, auroc, average_precision, cohen_kappa

SMALL = settings(deadline=None, max_examples=25)
SEEDS = st.integers(0, 2**31)


def score_of(
    table: pd.DataFrame, classes: list[str], task: str, **how: object
) -> dict[tuple[str, str], float]:
    scorer = Scorer(table, classes, task, **how)  # type: ignore[arg-type]
    return {key: float(value[0]) for key, value in scorer.score(np.ones((1, len(table)))).items()}


def binned_error(confidence: np.ndarray, right: np.ndarray) -> float:
    """The expected calibration error, bin by bin."""
    total = 0.0
    for low in range(15):
        inside = (confidence * 15 >= low) & ((confidence * 15 < low + 1) | (low == 14))
        if inside.any():
            total += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    return total


def expected_of_class(truth: np.ndarray, score: np.ndarray, cut: float) -> dict[str, float]:
    called = score >= cut
    return {
        "auroc": reference.roc_auc_score(truth, score),
        "average_precision": reference.average_precision_score(truth, score),
        "sensitivity": reference.recall_score(truth, called),
        "specificity": reference.recall_score(1 - truth, ~called),
        "ppv": reference.precision_score(truth, called, zero_division=np.nan),
        "npv": reference.precision_score(1 - truth, ~called, zero_division=np.nan),
        "f1": reference.f1_score(truth, called),
    }


def mean_of_defined(values: list[float]) -> float:
    known = [value for value in values if not np.isnan(value)]
    return float(np.mean(known)) if known else np.nan


@SMALL
@given(SEEDS, st.integers(2, 5), st.integers(20, 120), st.integers(1, 3))
def test_multiclass_metrics_are_those_of_scikit_learn(seed: int, count: int, n: int, digits: int) -> None:
    classes = [f"c{i}" for i in range(count)]
    table = multiclass(np.random.default_rng(seed), n, classes, digits)
    table.loc[: count - 1, "label"] = classes  # every class occurs
    cuts = {name: {"value": 0.3} for name in classes}
    found = score_of(table, classes, "multiclass", thresholds=cuts)
    probability = table[[f"prob:{name}" for name in classes]].to_numpy()
    called = np.array(classes)[probability.argmax(axis=1)]
    right = (called == table["label"]).to_numpy(np.float64)
    onehot = (table["label"].to_numpy()[:, None] == classes).astype(np.float64)
    brier = ((onehot - probability) ** 2).sum(axis=1).mean() if count > 2 else 0.0
    if count == 2:
        brier = reference.brier_score_loss(onehot[:, 1], probability[:, 1])
    scored = classes if count > 2 else classes[1:]
    expected = {
        ("accuracy", "all"): right.mean(),
        ("balanced_accuracy", "all"): reference.balanced_accuracy_score(table["label"], called),
        ("kappa", "all"): reference.cohen_kappa_score(table["label"], called),
        ("brier", "all"): brier,
        ("ece", "all"): binned_error(probability.max(axis=1), right),
    }
    for name in scored:
        truth, score = (table["label"] == name).to_numpy(np.int64), table[f"prob:{name}"].to_numpy()
        expected |= {(m, name): v for m, v in expected_of_class(truth, score, 0.3).items()}
    if count > 2:
        for metric in ("auroc", "average_precision", "sensitivity", "specificity", "ppv", "f1"):
            expected[metric, "macro"] = mean_of_defined([expected[metric, name] for name in classes])
        expected["macro_precision", "all"] = reference.precision_score(
            table["label"], called, labels=classes, average=None, zero_division=np.nan
        ).mean()
        expected["macro_f1", "all"] = reference.f1_score(table["label"], called, average="macro")
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert found[key] == pytest.approx(value, abs=1e-12, nan_ok=True), key
    confusion = Scorer(table, classes, "multiclass").confusion()
    assert (confusion == reference.confusion_matrix(table["label"], called, labels=classes)).all()
    for weights, quadratic in (("linear", False), ("quadratic", True)):
        wanted = None if weights == "linear" else weights
        kappa = reference.cohen_kappa_score(table["label"], called, labels=classes, weights=wanted)
        assert cohen_kappa(confusion, quadratic=quadratic) == pytest.approx(kappa, abs=1e-12)


@SMALL
@given(SEEDS, st.integers(20, 100), st.floats(0, 0.6))
def test_multilabel_metrics_leave_out_unknown_labels(seed: int, n: int, missing: float) -> None:
    findings = ["effusion", "nodule", "mass"]
    table = multilabel(np.random.default_rng(seed), n, findings, missing)
    table.loc[:1, [f"label:{name}" for name in findings]] = [[0.0] * 3, [1.0] * 3]
    found = score_of(table, findings, "multilabel")
    expected = {}
    for name in findings:
        known = table[table[f"label:{name}"].notna()]
        truth, score = known[f"label:{name}"].to_numpy(np.int64), known[f"prob:{name}"].to_numpy()
        expected |= {(m, name): v for m, v in expected_of_class(truth, score, 0.5).items()}
        expected["brier", name] = reference.brier_score_loss(truth, score)
        expected["ece", name] = binned_error(score, truth)
    for metric in ("auroc", "average_precision", "sensitivity", "specificity", "ppv", "f1", "brier", "ece"):
        expected[metric, "macro"] = mean_of_defined([expected[metric, name] for name in findings])
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert found[key] == pytest.approx(value, abs=1e-12, nan_ok=True), key


@SMALL
@given(SEEDS, st.sampled_from(["multiclass", "multilabel"]))
def test_weights_are_repetition(seed: int, task: str) -> None:
    draw = np.random.default_rng(seed)
    classes = ["a", "b", "c"]
    table = multiclass(draw, 60, classes) if task == "multiclass" else multilabel(draw, 60, classes, 0.2)
    times = draw.integers(0, 4, (3, 60))
    together = Scorer(table, classes, task).score(times.astype(np.float64))  # type: ignore[arg-type]
    for row, repeats in enumerate(times):
        alone = score_of(table.loc[np.repeat(np.arange(60), repeats)].reset_index(drop=True), classes, task)
        for key, value in alone.items():
            assert together[key][row] == pytest.approx(value, abs=1e-12, nan_ok=True), key


@SMALL
@given(SEEDS, st.integers(2, 40), st.integers(1, 5))
def test_ranking_alone(seed: int, n: int, levels: int) -> None:
    draw = np.random.default_rng(seed)
    truth, score, weights = draw.integers(0, 2, n), draw.integers(0, levels, n), draw.random(n)
    if 0 < truth.sum() < n:
        wanted = reference.roc_auc_score(truth, score, sample_weight=weights)
        assert auroc(truth, score, weights) == pytest.approx(wanted, abs=1e-12)
        wanted = reference.average_precision_score(truth, score, sample_weight=weights)
        assert average_precision(truth, score, weights) == pytest.approx(wanted, abs=1e-12)
    else:
        assert np.isnan(auroc(truth, score))
        assert np.isnan(average_precision(truth, score))
    ranking, many = Ranking(truth, score), draw.integers(0, 3, (4, n)).astype(np.float64)
    both = ranking.areas(many)
    np.testing.assert_array_equal(both[0], ranking.auroc(many))
    np.testing.assert_array_equal(both[1], ranking.average_precision(many))
    true, false = ranking.counts(many)
    assert (true[:, -1] == many @ truth).all() and (false[:, -1] == many @ (1 - truth)).all()
    assert true.shape == (4, len(np.unique(score)) + 1)


def binary(labels: list[str | None], sick: list[float]) -> pd.DataFrame:
    return pd.DataFrame({"label": labels, "prob:normal": 1 - np.array(sick), "prob:sick": sick})


@pytest.mark.parametrize(
    ("labels", "sick", "undefined"),
    [
        (["sick"] * 3, [0.9, 0.8, 0.2], {
            "auroc": "no image is negative", "average_precision": "no image is negative",
            "specificity": "no image is negative", "balanced_accuracy": "a class has no image",
        }),
        (["normal"] * 2, [0.1, 0.2], {
            "auroc": "no image is positive", "average_precision": "no image is positive",
            "sensitivity": "no image is positive", "ppv": "no image is called positive",
            "f1": "no image is positive", "balanced_accuracy": "a class has no image",
            "kappa": "all images are of one class and called so",
        }),
        (["normal", "sick"], [0.1, 0.2], {"ppv": "no image is called positive"}),
        (["normal", "sick"], [0.7, 0.7], {"npv": "no image is called negative"}),
        ([None, None], [0.7, 0.7], dict.fromkeys(
            ["auroc", "average_precision", "sensitivity", "specificity", "ppv", "npv", "f1", "accuracy",
             "balanced_accuracy", "kappa", "brier", "ece"], "no image has this label")),
    ],
)  # fmt: skip
def test_undefined_metrics_have_a_reason(
    labels: list[str | None], sick: list[float], undefined: dict[str, str]
) -> None:
    table = binary(labels, sick)
    scorer = Scorer(table, ["normal", "sick"], "multiclass")
    values = score_of(table, ["normal", "sick"], "multiclass")
    assert {key[0] for key, value in values.items() if np.isnan(value)} == set(undefined)
    for metric, name in values:
        if metric in undefined:
            assert scorer.why_undefined(metric, name) == f"n/a because {undefined[metric]}"


def test_constant_scores_rank_by_chance() -> None:
    found = score_of(
        binary(["sick", "normal", "normal", "sick", "normal"], [0.5] * 5), ["normal", "sick"], "multiclass"
    )
    assert found["auroc", "sick"] == 0.5
    assert found["average_precision", "sick"] == pytest.approx(0.4)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"label": ["sick", "sock"]}, "label 'sock' is not one of the classes"),
        ({"prob:sick": [0.5, np.nan]}, "prob:sick of row 1 is nan"),
        ({"prob:sick": [0.5, 1.5]}, "prob:sick of row 1 is 1.5"),
        ({"prob:sick": None}, "no column 'prob:sick'"),
        ({"label": None}, "no column 'label'"),
    ],
)
def test_what_is_no_prediction_is_refused(change: dict[str, list[object] | None], said: str) -> None:
    table = binary(["sick", "normal"], [0.6, 0.4])
    for name, value in change.items():
        table = table.drop(columns=name) if value is None else table.assign(**{name: value})
    with pytest.raises(DataError, match=said):
        Scorer(table, ["normal", "sick"], "multiclass")


@pytest.mark.parametrize(("value", "said"), [(-1.0, r"uncertain labels \(-1\)"), (0.5, "holds 0.5")])
def test_findings_are_0_1_or_missing(value: float, said: str) -> None:
    table = pd.DataFrame({"label:mass": [1.0, value], "prob:mass": [0.5, 0.5]})
    with pytest.raises(DataError, match=said):
        Scorer(table, ["mass"], "multilabel")


def test_labels_of_nullable_columns() -> None:
    table = binary(["sick", None, "normal"], [0.6, 0.4, 0.1])
    table["label"] = table["label"].astype("string")
    assert score_of(table, ["normal", "sick"], "multiclass")["accuracy", "all"] == 1.0
    findings = pd.DataFrame({"label:mass": [1, None, 0], "prob:mass": [0.6, 0.4, 0.1]})
    findings["label:mass"] = findings["label:mass"].astype("Int64")
    assert score_of(findings, ["mass"], "multilabel")["auroc", "mass"] == 1.0
