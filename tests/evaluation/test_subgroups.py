"""Subgroups: bands that lose no image, evaluations of the parts, and gaps that search honestly."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prediction_tables import World, multiclass, multilabel

from scanprior.errors import DataError
from scanprior.evaluation import evaluate, evaluate_masks, largest_gap, subgroups
from scanprior.evaluation.bands import groups_by
from scanprior.evaluation.gaps import _gap, _Side

SMALL = settings(deadline=None, max_examples=20)
SEEDS = st.integers(0, 2**31)
CLASSES = ["normal", "sick"]
HOW: dict[str, Any] = {"classes": CLASSES, "task": "multiclass"}


def names(values: Any, bands: list[float] | None = None) -> list[Any]:
    return groups_by(pd.DataFrame({"age": values}), "age", bands).tolist()


# Groups.


def test_bands_of_ages() -> None:
    ages = [0, 17, 18, 39, 40, 64, 65, 99, None, -1]
    wanted = ["0–17", "0–17", "18–39", "18–39", "40–64", "40–64", "65+", "65+", "unknown", "under 0"]
    assert names(ages, [0, 18, 40, 65, np.inf]) == wanted
    assert names(ages, [0, 18, 40, 65]) == wanted
    order = groups_by(pd.DataFrame({"age": ages}), "age", [0, 18, 40, 65]).cat.categories.tolist()
    assert order == ["under 0", "0–17", "18–39", "40–64", "65+", "unknown"]
    assert names([0.5, 17.99, 18.0, np.nan], [0, 18, 40]) == [
        "0 to under 18", "0 to under 18", "18 to under 40", "unknown",
    ]  # fmt: skip
    assert names(["3", "20", None], [0, 18]) == ["0–17", "18+", "unknown"]
    assert names([4, 5, 6], [4, 5, 6]) == ["4", "5", "6+"]
    assert names([-7, 1], [-9, -5, 5]) == ["-9 to -6", "-5 to 4"]
    assert names([1, 2], [-np.inf, np.inf]) == ["all", "all"]


def test_many_numbers_are_cut_at_their_quartiles() -> None:
    values = np.arange(1, 101)
    assert pd.Series(names(values)).value_counts(sort=False).to_dict() == {
        "under 26": 25, "26–50": 25, "51–75": 25, "76+": 25,
    }  # fmt: skip
    assert names([*range(10)] * 3) == [*range(10)] * 3  # ten distinct ones are groups of their own
    assert set(names([0] * 90 + [*range(1, 11)])) == {"under 1", "1+"}
    assert set(names(np.array(["b", "a", None] * 20))) == {"a", "b", "unknown"}
    assert set(names([True, False, True])) == {True, False}
    assert set(names(np.linspace(0, 1, 41))) == {
        "under 0.25", "0.25 to under 0.5", "0.5 to under 0.75", "0.75+",
    }  # fmt: skip


@SMALL
@given(
    st.lists(st.none() | st.floats(-1e6, 1e6) | st.integers(-50, 50), min_size=1, max_size=60),
    st.none() | st.lists(st.integers(-60, 60), min_size=1, max_size=5, unique=True).map(sorted),
)
def test_every_image_is_in_the_band_that_holds_it(
    values: list[float | None], bands: list[float] | None
) -> None:
    numbers = pd.Series(values, dtype=float)
    found = groups_by(pd.DataFrame({"age": numbers}), "age", bands)
    assert found.notna().all() and len(found) == len(values)
    assert ((found == "unknown") == numbers.isna()).all()
    spans = [part for _, part in numbers[numbers.notna()].groupby(found, observed=True)]
    for before, after in pairwise(spans):  # in order, and none overlaps the next
        assert before.max() < after.min()
    if bands is not None:
        for edge in bands:
            assert all((span < edge).all() or (span >= edge).all() for span in spans)


@pytest.mark.parametrize(
    ("values", "bands", "said"),
    [
        ([1.0], [5, 3], "give edges that rise"),
        ([1.0], [], "give edges that rise"),
        ([1.0], [np.nan], "give edges that rise"),
        (["north", "south"], [0, 18], "age holds north; bands are for finite numbers"),
        ([1.0, np.inf], [0, 18], "age holds inf"),
    ],
)
def test_what_makes_no_bands_is_refused(values: Any, bands: list[float], said: str) -> None:
    with pytest.raises(DataError, match=said):
        names(values, bands)


# Evaluations of the parts.


def table_with_sites(n: int = 80) -> pd.DataFrame:
    table = multiclass(np.random.default_rng(0), n, CLASSES)
    return table.assign(site=np.where(np.arange(n) % 4 < 2, "north", "south"), error=None)


def test_subgroups_are_evaluations_of_the_parts() -> None:
    table = table_with_sites()
    found = subgroups(table, "site", **HOW, resamples=50)
    assert found.columns[0] == "group"
    for site, rows in found.groupby("group"):
        part = evaluate(table[table["site"] == site], **HOW, resamples=50)
        kept = rows.drop(columns=["group", "patients"]).reset_index(drop=True)
        pd.testing.assert_frame_equal(kept, pd.DataFrame(part["metrics"]))
        assert (rows["patients"] == part["patients"]).all()
    with pytest.raises(DataError, match="no column 'ward'"):
        subgroups(table, "ward", **HOW)


def test_a_missing_value_is_a_group_and_one_class_has_a_reason() -> None:
    table = table_with_sites()
    table["site"] = table["site"].where(np.arange(80) % 8 != 0).astype(object)
    table.loc[table["site"] == "south", "label"] = "sick"
    found = subgroups(table, "site", **HOW, resamples=50)
    assert found["group"].unique().tolist() == ["north", "south", "unknown"]
    assert found.groupby("group")["n"].first().to_dict() == {"north": 30, "south": 40, "unknown": 10}
    row = found[(found["group"] == "south") & (found["metric"] == "auroc")].iloc[0]
    assert row["reason"] == "n/a because no image is negative"
    gap = largest_gap(table, "site", **HOW, resamples=50).set_index(["metric", "class"]).loc["auroc", "sick"]
    assert gap["left_out"] == {"south": "n/a because no image is negative"}
    assert {gap["first"], gap["second"]} == {"north", "unknown"} and gap["pairs"] == 1
    table.loc[table["site"] == "south", "label"] = table_with_sites()["label"]
    gap = largest_gap(table[table["site"].notna()], "site", **HOW, resamples=200)
    assert (gap["p_adjusted"].dropna() == gap["p"].dropna()).all() and gap["p"].notna().any()  # one pair


def test_patients_are_those_whose_label_is_known() -> None:
    table = multilabel(np.random.default_rng(0), 60, ["mass", "nodule"], 0.3)
    table["patient"] = [f"p{i // 3}" for i in range(60)]
    table["age"] = np.arange(60)
    found = subgroups(
        table, "age", classes=["mass", "nodule"], task="multilabel", bands=[0, 30], resamples=20
    )
    for group, rows in (("0–29", table[:30]), ("30+", table[30:])):
        row = found[(found["group"] == group) & (found["class"] == "mass")].iloc[0]
        assert row["n"] == rows["label:mass"].notna().sum()
        assert row["patients"] == rows.loc[rows["label:mass"].notna(), "patient"].nunique()
    alone = subgroups(
        table.assign(patient=None), "age", classes=["mass", "nodule"], task="multilabel", resamples=20
    )
    assert alone["patients"].isna().all()


# Gaps.


def ward(draw: np.random.Generator, worlds: list[World]) -> pd.DataFrame:
    """One group a world, of patients of its own."""
    parts = []
    for number, world in enumerate(worlds):
        part = world.table(*world.draw(draw)).assign(site=f"s{number}")
        parts.append(part.assign(patient=f"s{number} " + part["patient"]))
    together = pd.concat(parts, ignore_index=True)
    return together.assign(image=np.arange(len(together)).astype(str))


def auroc_gap(table: pd.DataFrame, resamples: int = 200, seed: int = 0) -> pd.Series:
    found = largest_gap(table, "site", **HOW, resamples=resamples, seed=seed)
    return found[(found["metric"] == "auroc") & (found["class"] == "sick")].iloc[0]


def test_the_gap_is_that_of_the_two_groups() -> None:
    table = ward(np.random.default_rng(0), [World(60, 0.4, area) for area in (0.9, 0.7, 0.8)])
    parts = subgroups(table, "site", **HOW, resamples=20)
    gaps = largest_gap(table, "site", **HOW, resamples=200)
    assert gaps.set_index(["metric", "class"]).index.is_unique
    for _, gap in gaps.iterrows():
        same = (parts["metric"] == gap["metric"]) & (parts["class"] == gap["class"])
        values = parts[same].drop_duplicates("group").set_index("group")["value"]
        assert gap["difference"] == pytest.approx(values.max() - values.min())
        assert (values[gap["first"]], values[gap["second"]]) == (values.max(), values.min())
        assert gap["low"] < gap["difference"] < gap["high"] and gap["p"] <= gap["p_adjusted"] <= 1
        assert (gap["pairs"], gap["left_out"]) == (3, {})
        assert gap["method"] == "bootstrap over patients, 200 resamples, all groups together"
    gap = auroc_gap(table)
    assert (gap["first"], gap["second"]) == ("s0", "s1") and gap["p_adjusted"] < 0.05


def test_a_patient_in_two_groups_is_drawn_into_both() -> None:
    """The same images on both sides: their difference is 0 in every resample."""
    table = ward(np.random.default_rng(0), [World(60, 0.4, 0.8)])
    twice = pd.concat([table, table.assign(site="s1", image="x" + table["image"])], ignore_index=True)
    gap = auroc_gap(twice)
    assert gap["difference"] == 0 and "same difference" in gap["reason"] and gap["p"] == 1


def test_a_group_that_never_varies_is_not_certain() -> None:
    """All right in three patients is no evidence of a gap."""
    table = ward(np.random.default_rng(0), [World(60, 0.4, 0.8), World(6, 0.5, 0.999)])
    gaps = largest_gap(table, "site", **HOW, resamples=100).set_index(["metric", "class"])
    gap = gaps.loc["sensitivity", "sick"]
    assert gap["first"] == "s1" and gap["first_value"] == 1 and gap["difference"] > 0
    assert gap[["low", "high", "p", "p_adjusted"]].isna().all()
    assert gap["reason"] == "no interval because every resample gives the same value for s1"
    alone = table[(table["site"] == "s0") | (table["patient"] == "s1 p00000")]
    gap = (
        largest_gap(alone, "site", **HOW, resamples=50).set_index(["metric", "class"]).loc["accuracy", "all"]
    )
    assert pd.isna(gap["difference"]) and gap["pairs"] == 0
    assert gap["left_out"] == {"s1": "it rests on a single patient"}
    assert gap["reason"] == "n/a because fewer than two groups have a value"


def test_searching_for_the_largest_gap_is_paid_for() -> None:
    """Four groups alike: the adjusted p-value is below 0.05 in 5 % or fewer, the plain one far more often."""
    draw, sizes = np.random.default_rng(0), (20, 30, 40, 60)
    n, edges = sum(sizes), np.cumsum((0, *sizes))
    plain, adjusted, inside = [], [], []
    for _ in range(600):
        values = draw.beta(6, 2, n)
        weights = np.concatenate([np.ones((1, n)), draw.multinomial(n, np.full(n, 1 / n), 200)])
        sides = []
        for name, (start, end) in enumerate(pairwise(edges)):
            part = weights[:, start:end]
            means = part @ values[start:end] / part.sum(axis=1)
            sides.append(_Side(name, means[0], means[1:], end - start))
        gap = _gap(sides, "patient", 0.95)
        plain.append(gap["p"] <= 0.05)
        adjusted.append(gap["p_adjusted"] <= 0.05)
        chosen = _gap(sides[:2], "patient", 0.95)  # a pair chosen beforehand
        inside.append(chosen["low"] <= 0 <= chosen["high"])
    assert 0.02 <= np.mean(adjusted) <= 0.07, np.mean(adjusted)
    assert np.mean(plain) > 0.12, np.mean(plain)
    assert 0.92 <= np.mean(inside) <= 0.98, np.mean(inside)


def test_masks_have_subgroups_and_gaps() -> None:
    draw = np.random.default_rng(0)
    table = pd.DataFrame({"image": np.arange(60).astype(str), "patient": np.arange(60) // 2})
    table["site"] = np.where(np.arange(60) < 30, "north", "south")
    for metric in ("dice", "iou", "hausdorff95", "surface_distance"):
        table[f"{metric}:lung"] = draw.beta(6, 2, 60) * np.where(table["site"] == "north", 1.0, 0.7)
    how: dict[str, Any] = {"classes": ["lung"], "task": "segmentation", "resamples": 100}
    found = subgroups(table, "site", **how)
    north = evaluate_masks(table[:30], classes=["lung"], resamples=100)["metrics"]
    kept = found[found["group"] == "north"].drop(columns=["group", "patients"])
    pd.testing.assert_frame_equal(kept.reset_index(drop=True), pd.DataFrame(north))
    assert (found["patients"] == 15).all()
    gap = largest_gap(table, "site", **how).set_index("metric").loc["dice"]
    assert gap["first"] == "north" and 0 < gap["low"] < gap["difference"] and gap["p"] < 0.05
