"""Thresholds against a search through every one there is."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prediction_tables import multiclass, multilabel

from scanprior.errors import DataError
from scanprior.evaluation import choose_thresholds, positive_of

SMALL = settings(deadline=None, max_examples=40)
SEEDS = st.integers(0, 2**31)


def rates(truth: np.ndarray, score: np.ndarray, cut: float) -> tuple[float, float]:
    return float((score[truth] >= cut).mean()), float((score[~truth] < cut).mean())


@SMALL
@given(SEEDS, st.integers(4, 60), st.integers(1, 3))
def test_youden_is_the_best_of_all(seed: int, n: int, digits: int) -> None:
    table = multiclass(np.random.default_rng(seed), n, ["normal", "sick"], digits)
    table.loc[:1, "label"] = ["normal", "sick"]
    chosen = choose_thresholds(table, classes=["normal", "sick"], task="multiclass")
    assert chosen.keys() == {"sick"}
    truth, score = (table["label"] == "sick").to_numpy(), table["prob:sick"].to_numpy()
    indices = {cut: sum(rates(truth, score, cut)) for cut in np.unique(score)}
    best = max(indices.values())
    assert chosen["sick"]["value"] == max(cut for cut, index in indices.items() if index > best - 1e-9)


@SMALL
@given(SEEDS, st.integers(4, 60), st.floats(0.01, 1.0))
def test_wanted_sensitivity_is_reached_by_the_highest_threshold(seed: int, n: int, wanted: float) -> None:
    table = multilabel(np.random.default_rng(seed), n, ["mass"], 0.2)
    table.loc[:1, "label:mass"] = [0.0, 1.0]
    chosen = choose_thresholds(table, rule=wanted, classes=["mass"], task="multilabel", chosen_on="val")[
        "mass"
    ]
    known = table[table["label:mass"].notna()]
    truth, score = (known["label:mass"] == 1).to_numpy(), known["prob:mass"].to_numpy()
    reach = [cut for cut in np.unique(score) if rates(truth, score, cut)[0] >= wanted - 1e-9]
    assert chosen == {"value": max(reach), "rule": f"sensitivity of at least {wanted:g}", "chosen_on": "val"}


def test_a_threshold_for_every_class_of_several() -> None:
    table = multiclass(np.random.default_rng(0), 50, ["a", "b", "c"])
    chosen = choose_thresholds(table, classes=["a", "b", "c"], task="multiclass")
    for name in "abc":
        alone = table.assign(label=np.where(table["label"] == name, name, "rest"))
        alone["prob:rest"] = 1 - alone[f"prob:{name}"]
        pair = choose_thresholds(alone, classes=["rest", name], task="multiclass", positive_class=name)
        assert chosen[name] == pair[name]


def test_without_both_kinds_it_is_one_half_and_says_so() -> None:
    table = pd.DataFrame({"label:mass": [1.0, 1.0, np.nan], "prob:mass": [0.2, 0.3, 0.4]})
    chosen = choose_thresholds(table, classes=["mass"], task="multilabel")["mass"]
    assert chosen["value"] == 0.5 and "lacks" in chosen["rule"]


@pytest.mark.parametrize("rule", [0.0, 1.5, -1.0, float("nan"), "best"])
def test_other_rules_are_refused(rule: float | str) -> None:
    table = pd.DataFrame({"label:mass": [1.0, 0.0], "prob:mass": [0.2, 0.3]})
    with pytest.raises(DataError, match="give youden, or a wanted sensitivity"):
        choose_thresholds(table, rule=rule, classes=["mass"], task="multilabel")  # type: ignore[arg-type]


def test_which_of_two_classes_is_positive() -> None:
    assert positive_of(["NORMAL", "PNEUMONIA"]) == "PNEUMONIA"
    assert positive_of(["tb", "No Finding"]) == "tb"
    assert positive_of(["cat", "dog"]) == "dog"
    assert positive_of(["cat", "dog"], "cat") == "cat"
    with pytest.raises(DataError, match="'cow' is not one of the classes"):
        positive_of(["cat", "dog"], "cow")
