"""Sets of a run on evaluated images: whose images count together, and where."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from scanprior.evaluation import evaluate
from scanprior.evaluation.conformal_sets import ConformalSets
from scanprior.evaluation.outliers import flagged_shares
from scanprior.evaluation.shares import by_site

HOW = {"level": 0.95, "resamples": 400, "seed": 0}


def clustered() -> pd.DataFrame:
    """Twenty patients with ten images each that are all alike, two patients a near-duplicate group."""
    draw = np.random.default_rng(0)
    label, chance = (
        np.repeat(values, 10)
        for values in (draw.choice(["a", "b"], 20), np.clip(draw.random(20), 0.01, 0.99))
    )
    row = np.arange(200)
    return pd.DataFrame(
        {
            "image": row.astype(str), "patient": [f"p{n // 10}" for n in row], "label": label,
            "prob:a": 1 - chance, "prob:b": chance, "outlier": np.repeat(draw.random(20) < 0.4, 10), "error": None,
        }
    )  # fmt: skip


def fitted(table: pd.DataFrame) -> ConformalSets:
    truth = np.stack([table["label"] == name for name in "ab"], axis=1).astype(float)
    return ConformalSets.fit(table[["prob:a", "prob:b"]].to_numpy(), truth, "multiclass", 0.7, "lac", None)


@pytest.mark.parametrize("unknown", [0, 1, 200])
@pytest.mark.parametrize("groups", [False, True])
def test_the_unit_is_that_of_the_other_metrics(unknown: int, groups: bool) -> None:
    table = clustered()
    table.loc[: unknown - 1, "patient"] = None
    if groups:
        table["near_duplicates"] = [f"g{n // 20}" for n in range(200)]
    metrics = evaluate(table, classes=["a", "b"], task="multiclass", resamples=100)
    for row in (
        fitted(table).measured(table, ["a", "b"], **HOW)[0],
        flagged_shares(table, **HOW)[0],
    ):
        if metrics["unit"] == "image":
            assert row["interval"] == "exact (Clopper-Pearson), 200 images"
        else:
            assert row["interval"] == f"bootstrap over {metrics['unit']}s, 400 resamples"
    assert metrics["unit"] == ("near-duplicate group" if groups else "image" if unknown == 200 else "patient")


def test_one_image_without_a_patient_does_not_narrow_the_interval() -> None:
    table = clustered()
    for measure in (
        lambda t: fitted(t).measured(t, ["a", "b"], **HOW)[0],
        lambda t: flagged_shares(t, **HOW)[0],
    ):
        known = measure(table)
        lost = measure(table.assign(patient=table["patient"].where(table.index > 0)))
        alone = measure(table.assign(patient=None))
        width, narrow = known["high"] - known["low"], alone["high"] - alone["low"]
        assert narrow < 0.5 * width and lost["high"] - lost["low"] == pytest.approx(width, rel=0.1)


def test_shares_of_outliers_by_hand() -> None:
    table = pd.DataFrame(
        {
            "patient": ["p", "q", "r", "s", "t", "u"], "site": ["x", "x", "y", "y", None, "y"],
            "outlier": pd.array([True, False, True, True, False, None], dtype="boolean"),
            "error": [None] * 5 + ["truncated"],
        }
    )  # fmt: skip
    rows = flagged_shares(table)
    assert [(row["site"], row["share"], row["n"]) for row in rows] == [
        (None, 0.6, 5),
        ("x", 0.5, 2),
        ("y", 1, 2),
    ]
    assert all(row["low"] <= row["share"] <= row["high"] for row in rows)
    assert flagged_shares(table.iloc[5:]) == []


def test_sites_are_told_apart_only_where_there_are_several() -> None:
    assert [name for name, _ in by_site(pd.DataFrame({"site": ["x", "x", None]}))] == [None]
    assert [name for name, _ in by_site(pd.DataFrame({"image": ["1"]}))] == [None]
    found = dict(by_site(pd.DataFrame({"site": [2, 1, 1]})))
    assert {name: rows.tolist() for name, rows in found.items()} == {
        None: [True] * 3, "1": [False, True, True], "2": [True, False, False],
    }  # fmt: skip
