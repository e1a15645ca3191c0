"""The shift score: against loops and scikit-learn, its false alarms, its power, and what it refuses."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.linear_model import Ridge
from sklearn.metrics import roc_auc_score

from scanprior.errors import ConfigError, DataError
from scanprior.evaluation import shift, shift_score
from scanprior.evaluation import shift_statistics as statistics
from scanprior.evaluation.shift_units import Units, units_of

Floats = NDArray[np.float64]


def patients_images(draw: np.random.Generator, patients: int, each: int, width: int = 16) -> Floats:
    """Features (patients * each, width) of variance 1, correlated by 0.8 within a patient."""
    own, shared = draw.normal(size=(patients, each, width)), draw.normal(size=(patients, 1, width))
    mixed = own if each == 1 else np.sqrt(0.8) * shared + np.sqrt(0.2) * own
    return mixed.reshape(-1, width)


def names(prefix: str, patients: int, each: int) -> list[str]:
    return [f"{prefix}{number}" for number in range(patients) for _ in range(each)]


def mixed_sets(draw: np.random.Generator) -> tuple[Floats, Units]:
    """Some patients in one set, some in both, with one to three images."""
    first = [f"p{number}" for number in draw.integers(0, 15, 30)]
    second = [f"p{number}" for number in draw.integers(10, 25, 24)]
    return draw.normal(size=(54, 5)), units_of((30, 24), (first, second))


# --- the statistics, step by step ------------------------------------------------------------------------


def test_discrepancy_is_that_of_a_loop_over_pairs_of_patients() -> None:
    features, units = mixed_sets(np.random.default_rng(0))
    assert units.shared > 0
    sides = units.permutations(4, key=1)
    sums, bandwidth = statistics.kernel_sums(features, units, key=2)
    values, between = statistics.discrepancies(sums, units, sides)
    for row, side in enumerate(sides):
        means: dict[tuple[bool, bool], list[float]] = {
            (True, True): [],
            (True, False): [],
            (False, False): [],
        }
        for i in range(54):
            for j in range(54):
                kind = (side[units.unit[i]] == 1, side[units.unit[j]] == 1)
                if units.patient[i] == units.patient[j] or kind not in means:
                    continue
                squared = np.square(features[i] - features[j]).sum()
                widths = np.array([0.5, 1, 2]) * bandwidth
                means[kind].append(np.exp(-squared / (2 * widths**2)).mean())
        within, cross = np.mean(means[True, True]) + np.mean(means[False, False]), np.mean(means[True, False])
        assert values[row] == pytest.approx(within - 2 * cross, abs=1e-9)
        assert between[row] == pytest.approx(cross)


def test_bandwidth_is_the_median_distance() -> None:
    draw = np.random.default_rng(1)
    features = draw.normal(size=(60, 3))
    units = units_of((30, 30), (None, None))
    distances = [np.linalg.norm(features[i] - features[j]) for i in range(60) for j in range(i)]
    assert statistics.kernel_sums(features, units, key=0)[1] == pytest.approx(np.median(distances))


@pytest.mark.parametrize("width", [5, 90])
def test_auroc_is_that_of_ridge_classifiers_trained_one_by_one(width: int) -> None:
    draw = np.random.default_rng(2)
    _, units = mixed_sets(draw)
    features = statistics.standardise(draw.normal(size=(54, width)))
    sides = units.permutations(3, key=5)
    folds = statistics._folds(units, key=6)
    assert all(len(set(folds[units.patient == patient])) == 1 for patient in units.patient)
    for side, found in zip(sides, statistics.aurocs(features, units, sides, key=6), strict=True):
        target = 1 - side[units.unit]
        scores = np.empty(54)
        for fold in range(statistics.FOLDS):
            used = folds != fold
            model = Ridge(alpha=0.1 * used.sum()).fit(features[used], target[used])
            scores[~used] = model.predict(features[~used]) - target[used].mean()
        assert found == pytest.approx(roc_auc_score(target, scores), abs=1e-9)


def test_p_values_count_the_observed_among_the_permutations() -> None:
    statistic = np.array([3.0, 1.0, 3.0, 5.0, 0.0])
    assert statistics.p_values(statistic).tolist() == [3 / 5, 4 / 5, 3 / 5, 1 / 5, 5 / 5]


def test_permutations_deal_patients_and_swap_those_of_both_sets() -> None:
    _, units = mixed_sets(np.random.default_rng(3))
    sides = units.permutations(400, key=0)
    assert np.array_equal(sides[0], units.in_reference)
    assert (sides.sum(axis=1) == units.in_reference.sum()).all()
    twice = [np.flatnonzero(units.owner == owner) for owner in np.unique(units.owner)]
    pairs = [pair for pair in twice if len(pair) == 2]
    assert len(pairs) == units.shared
    for pair in pairs:
        assert (sides[:, pair].sum(axis=1) == 1).all()
    alone = np.concatenate([pair for pair in twice if len(pair) == 1])
    assert np.ptp(sides[1:, alone].mean(axis=0)) < 0.2
    assert np.array_equal(units.permutations(7, key=0), sides[:8])


# --- false alarms and power ------------------------------------------------------------------------------


def flags(sets: int, patients: int, each: int, seed: int, change: Any = lambda target: target) -> float:
    """Share of pairs of sets that are flagged, the second one changed."""
    found = 0
    for number in range(sets):
        draw = np.random.default_rng([seed, number])
        reference = patients_images(draw, patients, each)
        target = change(patients_images(draw, patients, each))
        ids = {
            "reference_patients": names("a", patients, each),
            "target_patients": names("b", patients, each),
        }
        found += shift_score(reference, target, permutations=99, seed=number, **ids)["flag"]
    return found / sets


@pytest.mark.parametrize(("patients", "each"), [(30, 1), (20, 3)])
def test_false_alarms_are_as_rare_as_the_level(patients: int, each: int) -> None:
    assert 0.02 <= flags(400, patients, each, seed=1) <= 0.07


@pytest.mark.parametrize(("patients", "each"), [(40, 1), (25, 3)])
def test_a_shift_of_the_mean_or_of_the_spread_is_found(patients: int, each: int) -> None:
    assert flags(30, patients, each, 2, lambda target: target + 0.5) >= 0.9
    assert flags(30, patients, each, 3, lambda target: 1.5 * target) >= 0.9


def test_without_its_patients_a_clustered_set_looks_shifted() -> None:
    """Why patients are to be given; and that the test above could fail."""
    draw = np.random.default_rng(4)
    found = [
        shift_score(patients_images(draw, 20, 3), patients_images(draw, 20, 3), permutations=99)["flag"]
        for _ in range(10)
    ]
    assert np.mean(found) > 0.5


def test_the_same_patients_before_and_after_are_compared_in_pairs() -> None:
    draw = np.random.default_rng(5)
    before = 3 * patients_images(draw, 30, 1)
    after = before + 0.4 + 0.2 * draw.normal(size=before.shape)
    ids = names("p", 30, 1)
    paired = shift_score(before, after, reference_patients=ids, target_patients=ids, permutations=199)
    assert paired["flag"] and paired["shared_patients"] == 30
    assert not shift_score(before, after, permutations=199)["flag"]


def test_effect_does_not_grow_with_the_number_of_images() -> None:
    effects = {}
    for patients in (50, 400):
        draw = np.random.default_rng(6)
        found = [
            shift_score(
                patients_images(draw, patients, 1), patients_images(draw, patients, 1) + 0.5, permutations=19
            )
            for _ in range(8)
        ]
        effects[patients] = np.mean([one["mmd"]["effect"] for one in found])
    assert effects[50] == pytest.approx(effects[400], rel=0.15)
    far = shift_score(patients_images(draw, 20, 1), patients_images(draw, 20, 1) + 1000, permutations=19)
    assert 0.5 < far["mmd"]["effect"] <= 1 and far["classifier"]["auroc"] == 1


# --- the result ------------------------------------------------------------------------------------------


def test_result_is_json_and_the_same_again() -> None:
    draw = np.random.default_rng(7)
    sets = patients_images(draw, 20, 2), patients_images(draw, 15, 1)
    result = shift_score(*sets, reference_patients=names("a", 20, 2), permutations=59, seed=3)
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert result == shift_score(*sets, reference_patients=names("a", 20, 2), permutations=59, seed=3)
    assert result["images"] == {"reference": 40, "target": 15}
    assert result["patients"] == {"reference": 20, "target": 15}
    assert result["unit"] == "patient" and result["left_out"] == {"reference": 0, "target": 0}
    assert result["p"] in [count / 60 for count in range(1, 61)]
    assert type(result["flag"]) is bool and result["flag"] == (result["p"] <= 0.05)


@pytest.mark.parametrize("given", [True, False])
def test_identical_sets_are_no_shift(given: bool) -> None:
    features = np.random.default_rng(8).normal(size=(40, 6))
    ids = names("p", 20, 2) if given else None
    result = shift_score(features, features, reference_patients=ids, target_patients=ids, permutations=99)
    assert result["identical"] == 40
    assert result["flag"] is False and result["p"] > 0.5
    if given:
        assert result["mmd"]["value"] == 0 and result["p"] == 1 and result["classifier"]["auroc"] == 0.5
    else:
        assert result["mmd"]["value"] < 0


def test_features_that_do_not_vary_say_nothing() -> None:
    flat = shift_score(np.ones((20, 4)), np.ones((20, 4)), permutations=19)
    assert flat["flag"] is False and flat["mmd"]["effect"] == 0 and flat["classifier"]["auroc"] == 0.5
    draw = np.random.default_rng(9)
    first, second = draw.normal(size=(20, 4)), draw.normal(size=(20, 4))
    padded = [np.hstack([part, np.full((20, 2), 0.1)]) for part in (first, second)]
    assert shift_score(*padded)["mmd"] == pytest.approx(shift_score(first, second)["mmd"])


def test_large_sets_are_subsampled_by_whole_patients(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shift, "MOST_IMAGES", 100)
    draw = np.random.default_rng(10)
    ids = {"reference_patients": names("a", 60, 3), "target_patients": names("b", 30, 1)}
    sets = patients_images(draw, 60, 3), patients_images(draw, 30, 1)
    result = shift_score(*sets, permutations=19, **ids)
    assert result["images"] == {"reference": 69, "target": 30}
    assert result["patients"] == {"reference": 23, "target": 30}
    assert result["left_out"] == {"reference": 111, "target": 0}
    units = units_of((180, 30), tuple(ids.values()))
    kept = units.subsample(100, key=1)
    assert set(np.bincount(units.patient[kept], minlength=90)[units.patient[kept]]) == {1, 3}
    assert not np.array_equal(kept, units.subsample(100, key=2))


@pytest.mark.parametrize(
    ("images", "ids", "reason"),
    [
        (9, None, "needs 10 images in each set, found 30 in the reference and 9 in the target"),
        (0, None, "found 30 in the reference and 0 in the target"),
        (27, names("b", 9, 3), "needs 10 patients in each set, found 30 in the reference and 9"),
    ],
)
def test_few_patients_give_no_score_and_a_reason(images: int, ids: list[str] | None, reason: str) -> None:
    result = shift_score(np.zeros((30, 3)), np.zeros((images, 3)), target_patients=ids)
    assert reason in result["reason"]
    assert result["flag"] is None and result["p"] is None
    assert result["mmd"]["effect"] is None and result["classifier"]["auroc"] is None
    json.dumps(result, allow_nan=False)


def test_a_missing_patient_is_a_patient_of_its_own() -> None:
    units = units_of((4, 3), (["p", None, float("nan"), "p"], [1, "1", None]))
    assert units.patients == (3, 2) and units.shared == 0


def test_unusable_features_are_errors() -> None:
    good = np.zeros((20, 4))
    broken = good.copy()
    broken[3, 1], broken[7] = np.nan, np.inf
    for target, message in (
        (broken, r"2 of 20 images of the target .* not finite, the first in row 3"),
        (np.zeros((20, 5)), "has 4 features and the target 5; take both from the same encoder"),
        (np.zeros(20), r"the target's features have the shape \(20,\)"),
        (np.zeros((20, 0)), r"have the shape \(20, 0\)"),
        ([["a", "b"]], "no table of numbers"),
    ):
        with pytest.raises(DataError, match=message):
            shift_score(good, target)
    with pytest.raises(DataError, match="has 20 images and 3 patients"):
        shift_score(good, good, target_patients=["a", "b", "c"])
    with pytest.raises(ConfigError, match=r"10 permutations never reach the level 0\.05; take 19 or more"):
        shift_score(good, good, permutations=10)
    with pytest.raises(ConfigError, match="level is 2"):
        shift_score(good, good, level=2)
