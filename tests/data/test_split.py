"""Splits and budgets: by patient, stratified, the same for the same seed whatever the order of rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scanprior.data.manifest import Manifest
from scanprior.data.split import assign_splits, joined_groups, label_budget, owners_of, split_fingerprint
from scanprior.errors import SplitError


def made(patients: int, seed: int = 0, classes: int = 3, most: int = 4) -> Manifest:
    """Patients of one class each, with one to ``most`` images; at least four patients a class."""
    random = np.random.default_rng(seed)
    rows = [
        {"image": f"p{patient}/{number}.png", "patient": f"p{patient}", "label": "abcdefg"[patient % classes]}
        for patient in range(patients)
        for number in range(random.integers(1, most + 1))
    ]
    return Manifest(pd.DataFrame(rows, dtype="str"), Path(), ["label"], "made")


def by_image(manifest: Manifest) -> dict[str, str]:
    return dict(zip(manifest.frame["image"], manifest.frame["split"], strict=True))


@settings(max_examples=40, deadline=None)
@given(patients=st.integers(12, 150), seed=st.integers(0, 10**9), classes=st.integers(1, 4))
def test_splits_keep_their_promises(patients: int, seed: int, classes: int) -> None:
    manifest = made(patients, seed, classes)
    split = assign_splits(manifest, seed=seed)
    frame = split.frame
    assert set(frame["split"]) == {"train", "val", "test"}
    assert (frame.groupby("patient")["split"].nunique() == 1).all()
    for label, rows in frame.groupby("label"):
        shares = rows["split"].value_counts() / len(rows)
        assert set(shares.index) == {"train", "val", "test"}, label
        for name, wanted in zip(("train", "val", "test"), (0.7, 0.15, 0.15), strict=True):
            # Patients go whole (4 images at most), and each split is owed one patient of each class.
            assert abs(shares[name] - wanted) * len(rows) <= 8 + 1e-9
    again = manifest.subset(np.random.default_rng(seed).permutation(len(manifest)))
    assert by_image(assign_splits(again, seed=seed)) == by_image(split)
    assert split_fingerprint(assign_splits(again, seed=seed).frame) == split_fingerprint(frame)


def test_seeds_differ_and_large_sets_come_close() -> None:
    manifest = made(1500, 1)
    first, second = assign_splits(manifest, seed=1), assign_splits(manifest, seed=2)
    assert split_fingerprint(first.frame) != split_fingerprint(second.frame)
    for label, rows in first.frame.groupby("label"):
        shares = rows["split"].value_counts(normalize=True)
        assert abs(shares["train"] - 0.7) < 0.01 and abs(shares["val"] - 0.15) < 0.01, label
    # Independent seeds put about 0.7² + 2 x 0.15² of the patients into the same split.
    same = (first.frame["split"] == second.frame["split"]).mean()
    assert abs(same - 0.535) < 0.06


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**9))
def test_findings_are_spread_rarest_first(seed: int) -> None:
    random = np.random.default_rng(seed)
    frame = pd.DataFrame(
        {"image": [f"{n}.png" for n in range(400)], "patient": [f"p{n // 2}" for n in range(400)]}
    )
    for name, rate in (("common", 0.4), ("some", 0.1), ("rare", 0.03)):
        frame[name] = random.choice([1.0, 0.0, -1.0, np.nan], p=[rate, 0.8 - rate, 0.1, 0.1], size=400)
    split = assign_splits(Manifest(frame, Path(), ["common", "some", "rare"], "findings"), seed=seed).frame
    assert (split.groupby("patient")["split"].nunique() == 1).all()
    for name in ("common", "some", "rare"):
        present = split.loc[split[name] == 1, "split"].value_counts()
        assert abs(present.get("test", 0) - 0.15 * present.sum()) <= 4
        assert abs(present["train"] - 0.7 * present.sum()) <= 6


def test_an_official_test_set_is_kept() -> None:
    manifest = made(60)
    official = np.where(manifest.frame["patient"].str[1:].astype(int) < 45, "train", "test")
    frame = manifest.frame.assign(split=official)
    split = assign_splits(Manifest(frame, Path(), ["label"], "official"), seed=4).frame
    assert (split.loc[official == "test", "split"] == "test").all()
    assert set(split.loc[official == "train", "split"]) == {"train", "val"}
    share = (split.loc[official == "train", "split"] == "val").mean()
    assert abs(share - 0.15 / 0.85) < 0.06
    anew = assign_splits(Manifest(frame, Path(), ["label"], "official"), seed=4, keep_test=False).frame
    assert (anew.loc[official == "test", "split"] != "test").any()
    complete = assign_splits(Manifest(split, Path(), ["label"], "official"), seed=9).frame
    assert (complete["split"] == split["split"]).all()
    two = assign_splits(manifest, fractions=(0.8, 0.2, 0), seed=1).frame
    assert set(two["split"]) == {"train", "val"}


@settings(max_examples=20, deadline=None)
@given(patients=st.integers(40, 150), seed=st.integers(0, 10**9), folds=st.integers(2, 5))
def test_folds_test_every_image_once(patients: int, seed: int, folds: int) -> None:
    manifest = made(patients, seed)
    shuffled = manifest.subset(np.random.default_rng(seed).permutation(len(manifest)))
    tested: list[str] = []
    for k in range(1, folds + 1):
        split = assign_splits(manifest, seed=seed, fold=(k, folds))
        frame = split.frame
        assert by_image(assign_splits(shuffled, seed=seed, fold=(k, folds))) == by_image(split)
        assert (frame.groupby("patient")["split"].nunique() == 1).all()
        assert set(frame["split"]) == {"train", "val", "test"}
        for label, rows in frame.groupby("label"):
            here = rows["split"].value_counts()
            assert abs(here["test"] - len(rows) / folds) <= 8, label  # as of shares: patients go whole
            assert abs(here["val"] - 0.15 / 0.85 * (len(rows) - here["test"])) <= 8, label
        tested += frame.loc[frame["split"] == "test", "image"].tolist()
    assert sorted(tested) == sorted(manifest.frame["image"])


def test_folds_validate_on_different_images() -> None:
    manifest = made(400, 1)
    frames = [assign_splits(manifest, seed=1, fold=(k, 5)).frame for k in (1, 2)]
    val = [set(frame.loc[frame["split"] == "val", "image"]) for frame in frames]
    # Independent draws of 15 / 85 of the rest would share about 15 / 85 x 3 / 4 of it.
    assert len(val[0] & val[1]) / len(val[0]) < 0.25
    no_val = assign_splits(manifest, fractions=(0.7, 0, 0.3), fold=(1, 5)).frame["split"]
    assert set(no_val) == {"train", "test"} and abs((no_val == "test").mean() - 0.2) < 0.02


def test_folds_that_cannot_be() -> None:
    manifest = made(30)
    for fold in ((0, 5), (6, 5), (1, 1)):
        with pytest.raises(SplitError, match=rf"fold {fold[0]} of {fold[1]} is none; take 1 to {fold[1]}"):
            assign_splits(manifest, fold=fold)
    official = Manifest(
        manifest.frame.assign(split=["test"] * 3 + ["train"] * (len(manifest) - 3)), Path(), ["label"], "own"
    )
    with pytest.raises(
        SplitError, match=r"own: 3 images are val or test by its own split, which data\.split\.folds=5"
    ):
        assign_splits(official, fold=(1, 5))
    assert (assign_splits(official, fold=(1, 5), keep_test=False).frame["split"] == "test").sum() > 3
    few = manifest.subset(np.flatnonzero(manifest.frame["patient"].isin([f"p{n}" for n in range(12)])))
    with pytest.raises(
        SplitError, match="the class 'a' has 4 patients or groups to divide and cannot be in all of fold 1"
    ):
        assign_splits(few, fold=(1, 5))


def test_near_duplicates_are_the_owners_where_they_are_known() -> None:
    frame = pd.DataFrame(
        {"image": [f"{n}.png" for n in range(6)], "patient": ["p", "p", "q", None, None, None]}
    )
    joined = joined_groups(frame, np.array([0, 1, 1, 3, 4, 4]))
    assert joined.tolist() == ["0.png", "0.png", "0.png", "3.png", "4.png", "4.png"]
    assert owners_of(frame).tolist() == ["p", "p", "q", "3.png", "4.png", "5.png"]
    assert owners_of(frame.assign(near_duplicates=joined)).tolist() == joined.tolist()
    assert owners_of(frame[["image"]]).tolist() == frame["image"].tolist()


def test_a_budget_takes_one_image_of_near_duplicates_before_a_second() -> None:
    frame = pd.DataFrame({"image": [f"{n}.png" for n in range(40)], "label": ["a", "b"] * 20})
    near = frame.assign(
        near_duplicates=[f"g{n // 2 % 10}" for n in range(40)]
    )  # ten groups, each of both classes
    for seed in range(5):
        first = near.iloc[label_budget(near, ["label"], count=10, seed=seed)]
        assert (first.groupby("label")["near_duplicates"].nunique() == 5).all()
    alone = [near.iloc[label_budget(near, ["label"], count=10, seed=seed, group=None)] for seed in range(5)]
    assert min(part.groupby("label")["near_duplicates"].nunique().min() for part in alone) < 5, "by chance"
    drawn = near[near["label"] == "a"].reset_index(drop=True)
    order = drawn.iloc[label_budget(drawn, ["label"], count=20, seed=1)]
    assert order["near_duplicates"][:10].nunique() == 10, "each gives one before any gives a second"


def test_groups_join_patients_and_duplicates() -> None:
    frame = pd.DataFrame(
        {"image": [f"{n}.png" for n in range(60)], "patient": [f"p{n // 2}" for n in range(60)]}
    )
    manifest = Manifest(frame, Path(), [], "joined")
    clusters = np.arange(60)
    clusters[[1, 2]] = 1  # patients p0 and p1 share an image
    clusters[[3, 4]] = 3  # and p1 and p2
    for seed in range(8):
        split = assign_splits(manifest, seed=seed, clusters=clusters).frame["split"]
        assert split[:6].nunique() == 1
    column = frame.assign(ward=[f"w{n % 10}" for n in range(60)])
    split = assign_splits(Manifest(column, Path(), [], "wards"), group="ward").frame
    assert (split.groupby("ward")["split"].nunique() == 1).all()
    # Rows without a patient are alone, not one large patient.
    unknown = frame.assign(patient=pd.Series([None] * 60, dtype="str"))
    assert assign_splits(Manifest(unknown, Path(), [], "unknown")).frame["split"].nunique() == 3


def test_splits_that_cannot_be() -> None:
    manifest = made(30)
    single = manifest.frame.copy()
    single.loc[single["patient"] == "p7", "label"] = "rare"
    with pytest.raises(
        SplitError, match=r"the class 'rare' has 1 patient .* cannot be in all of train, val, test"
    ):
        assign_splits(Manifest(single, Path(), ["label"], "single"))
    assert (
        assign_splits(Manifest(single, Path(), ["label"], "single"), stratify=False).frame["split"].nunique()
        == 3
    )
    with pytest.raises(
        SplitError, match=r"2 patient\(s\) or group\(s\) cannot be divided into train, val, test"
    ):
        assign_splits(
            Manifest(manifest.frame[manifest.frame["patient"].isin(["p0", "p1"])], Path(), [], "few")
        )
    with pytest.raises(SplitError, match="nothing is left to train on"):
        assign_splits(Manifest(manifest.frame.assign(split="test"), Path(), ["label"], "tested"))
    with pytest.raises(SplitError, match="no column 'pateint' to group by; did you mean 'patient'"):
        assign_splits(manifest, group="pateint")
    with pytest.raises(SplitError, match="needs the clusters of a check"):
        assign_splits(manifest, group="cluster")
    with pytest.raises(SplitError, match="3 cluster numbers for"):
        assign_splits(manifest, clusters=np.arange(3))
    with pytest.raises(SplitError, match="sum to 1"):
        assign_splits(manifest, fractions=(0.7, 0.2, 0.2))
    with pytest.raises(SplitError, match="no split column"):
        split_fingerprint(manifest.frame)


def test_fingerprint_is_of_images_and_splits() -> None:
    frame = assign_splits(made(30)).frame
    assert len(split_fingerprint(frame)) == 16
    assert split_fingerprint(frame.iloc[::-1]) == split_fingerprint(frame)
    assert split_fingerprint(frame.assign(label="x")) == split_fingerprint(frame)
    moved = frame.copy()
    moved.loc[0, "split"] = "val" if moved["split"][0] != "val" else "test"
    assert split_fingerprint(moved) != split_fingerprint(frame)


@settings(max_examples=40, deadline=None)
@given(patients=st.integers(12, 80), seed=st.integers(0, 10**9), data=st.data())
def test_budgets_are_nested_and_balanced(patients: int, seed: int, data: st.DataObject) -> None:
    frame = made(patients, seed).frame
    large = data.draw(st.integers(4, len(frame)))
    small = data.draw(st.integers(3, large - 1))
    big = label_budget(frame, ["label"], count=large, seed=seed)
    assert big.dtype == np.int64 and len(set(big.tolist())) == large
    assert label_budget(frame, ["label"], count=small, seed=seed).tolist() == big[:small].tolist()
    counts = frame.iloc[big]["label"].value_counts()
    there = frame["label"].value_counts()
    for label, count in counts.items():  # even, as far as the classes reach
        assert count == there[label] or count >= counts.max() - 1
    order = np.random.default_rng(seed).permutation(len(frame))
    shuffled = frame.iloc[order]
    images = shuffled["image"].iloc[label_budget(shuffled, ["label"], count=large, seed=seed)]
    assert images.tolist() == frame["image"].iloc[big].tolist()


def test_budgets_take_every_patient_once_first() -> None:
    frame = made(30, 2).frame
    drawn = frame.iloc[label_budget(frame, ["label"], count=30, seed=1)]
    assert drawn["patient"].nunique() == 30
    other = frame.iloc[label_budget(frame, ["label"], count=10, seed=2)]
    assert set(other["image"]) != set(drawn["image"][:10])


def test_budgets_draw_labelled_training_rows() -> None:
    frame = assign_splits(made(60), seed=3).frame
    frame.loc[::5, "label"] = None
    usable = (frame["split"] == "train") & frame["label"].notna()
    drawn = label_budget(frame, ["label"], fraction=1.0)
    assert sorted(drawn.tolist()) == np.flatnonzero(usable).tolist()
    assert len(label_budget(frame, ["label"], fraction=0.1)) == round(0.1 * usable.sum())
    with pytest.raises(
        SplitError, match=rf"999 labels asked for and {usable.sum()} labelled training images"
    ):
        label_budget(frame, ["label"], count=999)
    with pytest.raises(SplitError, match="2 labels cannot cover the 3 classes"):
        label_budget(frame, ["label"], count=2)
    with pytest.raises(SplitError, match="either a count or a fraction"):
        label_budget(frame, ["label"])
    with pytest.raises(SplitError, match=r"not in \(0, 1\]"):
        label_budget(frame, ["label"], fraction=10)


def test_budgets_of_findings_hold_each_finding() -> None:
    random = np.random.default_rng(0)
    frame = pd.DataFrame({"image": [f"{n}.png" for n in range(300)]})
    frame["common"] = random.choice([1.0, 0.0, np.nan], p=[0.5, 0.4, 0.1], size=300)
    frame["rare"] = random.choice([1.0, 0.0, np.nan], p=[0.03, 0.87, 0.1], size=300)
    frame.loc[:20, ["common", "rare"]] = np.nan
    frame.loc[21:40, ["common", "rare"]] = -1.0
    drawn = frame.iloc[label_budget(frame, ["common", "rare"], count=12, seed=1)]
    assert (drawn["rare"] == 1).sum() >= 3 and (drawn["common"] == 1).sum() >= 4
    assert drawn[["common", "rare"]].isin([0.0, 1.0]).any(axis=1).all()
    with pytest.raises(SplitError, match="ask for 1 to "):
        label_budget(frame, ["common", "rare"], count=260)
