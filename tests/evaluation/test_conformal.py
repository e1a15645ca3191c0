"""Prediction sets: thresholds by hand and by a plain loop, and how often the sets hold the truth."""

from __future__ import annotations

import json
import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats
from scipy.special import expit, softmax

from scanprior import keyed
from scanprior.errors import DataError
from scanprior.evaluation import (
    SET_METHODS,
    Conformal,
    apply_temperature,
    calibrate,
    calibrate_findings,
    coverage,
    finding_coverage,
    finding_sets,
    fit_temperature,
    prediction_sets,
)
from scanprior.evaluation.conformal import SetMethod, least_units
from scanprior.evaluation.intervals import binomial_interval, exact_interval
from scanprior.evaluation.labels import Task

Floats = NDArray[np.float64]
Numbers = NDArray[np.int64]


def drawn(draw: np.random.Generator, n: int, classes: int = 4) -> tuple[Floats, Numbers]:
    """Images whose network is wrong about its certainty: probabilities (n, C) and classes (n,)."""
    logits = draw.normal(size=(n, classes)) * 1.5
    chance = softmax(logits, axis=1).cumsum(axis=1)
    labels = (draw.random((n, 1)) > chance[:, :-1]).sum(axis=1)
    return softmax(2 * logits, axis=1), labels


def held(sets: NDArray[np.bool_], labels: Numbers) -> NDArray[np.bool_]:
    return np.asarray(sets[np.arange(len(labels)), labels])


# By hand


def test_a_tiny_example_by_hand() -> None:
    """Scores 0.1, 0.2, 0.4 and 0.7: of four, level 0.6 takes place ceil(5 * 0.6) = 3, level 0.8 place 4."""
    probabilities = np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.7, 0.3]])
    labels = np.array([0, 1, 0, 1])
    found = calibrate(probabilities, labels, 0.6)
    assert found.thresholds == pytest.approx((0.4,)) and found.units == (4,) and found.reason is None
    assert calibrate(probabilities, labels, 0.8).thresholds == pytest.approx((0.7,))
    new = np.array([[0.95, 0.05], [0.5, 0.5], [0.4, 0.6], [0.39, 0.61]])
    assert prediction_sets(new, found).tolist() == [
        [True, False],
        [False, False],
        [False, True],
        [False, True],
    ]
    full = prediction_sets(new, found, allow_empty=False)
    assert (
        full[1].tolist() == [True, False]
        and (full[[0, 2, 3]] == prediction_sets(new, found)[[0, 2, 3]]).all()
    )


def test_the_adaptive_score_by_hand() -> None:
    """Of (0.1, 0.6, 0.3) the scores are 1, 0.6 and 0.9; with a draw of 0.5: 0.95, 0.3 and 0.75."""
    one = np.array([[0.1, 0.6, 0.3]])
    for label, (plain, halved) in enumerate(((1.0, 0.95), (0.6, 0.3), (0.9, 0.75))):
        assert calibrate(one, np.array([label]), 0.5, "aps").thresholds == pytest.approx((plain,))
        found = calibrate(one, np.array([label]), 0.5, "aps", draws=np.array([0.5]))
        assert found.thresholds == pytest.approx((halved,)) and found.randomised
    found = Conformal("aps", 0.9, (0.9,), (1,))
    assert prediction_sets(np.array([[0.1, 0.6, 0.3], [0.95, 0.03, 0.02]]), found).tolist() == [
        [False, True, True],
        [False, False, False],  # one class alone is more than the threshold
    ]


def loop_scores(row: Floats, draw: float) -> list[float]:
    """One class after another, from the most probable down; of equal ones the first comes first."""
    scores = [0.0] * len(row)
    taken = 0.0
    for number in sorted(range(len(row)), key=lambda each: (-row[each], each)):
        scores[number] = taken + draw * row[number]
        taken += row[number]
    return scores


@pytest.mark.parametrize("randomised", [False, True])
@pytest.mark.parametrize("level", [0.5, 0.8, 0.95])
def test_adaptive_sets_equal_a_plain_loop(randomised: bool, level: float) -> None:
    draw = np.random.default_rng(3)
    probabilities, labels = drawn(draw, 200)
    probabilities = np.round(probabilities, 1)  # with ties
    probabilities[:, 0] += 1 - probabilities.sum(axis=1)
    probabilities = np.abs(probabilities) / np.abs(probabilities).sum(axis=1, keepdims=True)
    draws = keyed.uniform(keyed.key(0, "sets"), np.arange(200), 1)[:, 0] if randomised else None
    first, rest = slice(0, 120), slice(120, None)
    part = [None, None] if draws is None else [draws[first], draws[rest]]
    found = calibrate(probabilities[first], labels[first], level, "aps", draws=part[0])
    each = [
        loop_scores(row, 1.0 if draws is None else float(draws[number]))
        for number, row in enumerate(probabilities)
    ]
    own = sorted(each[number][labels[number]] for number in range(120))
    threshold = own[math.ceil(121 * level - 1e-9) - 1]
    assert found.thresholds == pytest.approx((threshold,), abs=1e-9)
    sets = prediction_sets(probabilities[rest], found, draws=part[1])
    wanted = [[bool(score <= threshold + 1e-9) for score in row] for row in each[120:]]
    assert sets.tolist() == wanted


@pytest.mark.parametrize(("n", "level"), [(8, 0.9), (18, 0.95), (98, 0.99), (1, 0.6), (0, 0.5)])
def test_too_few_images_give_sets_of_all_classes_and_a_reason(n: int, level: float) -> None:
    draw = np.random.default_rng(n)
    probabilities, labels = drawn(draw, n + 1)
    assert least_units(level) == n + 1
    found = calibrate(probabilities[:n], labels[:n], level)
    assert found.thresholds == (math.inf,) and prediction_sets(probabilities, found).all()
    assert f"{n} calibration units" in str(found.reason) and f"needs {n + 1}" in str(found.reason)
    one_more = calibrate(probabilities, labels, level)
    assert one_more.reason is None
    assert one_more.thresholds == pytest.approx((1 - held_probability(probabilities, labels).min(),))


def held_probability(probabilities: Floats, labels: Numbers) -> Floats:
    return np.asarray(probabilities[np.arange(len(labels)), labels])


@pytest.mark.parametrize("hundredths", range(1, 100))
def test_the_place_is_exact_for_every_level(hundredths: int) -> None:
    """(99 + 1) * level is a whole number that floats miss: 100 * 0.07 is 7.000000000000001, 0.29 a little less."""
    scores = np.arange(1, 100) / 100
    probabilities = np.stack([1 - scores, scores], axis=1)
    found = calibrate(probabilities, np.zeros(99, dtype=np.int64), hundredths / 100)
    assert found.thresholds == pytest.approx((hundredths / 100,))


# Coverage


@pytest.mark.parametrize("method", [*SET_METHODS, "aps with draws"])
@pytest.mark.parametrize(("n", "level"), [(9, 0.8), (19, 0.9), (30, 0.95), (99, 0.7)])
def test_the_level_is_kept_on_average_over_calibrations(method: str, n: int, level: float) -> None:
    """With no two equal scores the coverage is ceil((n + 1) level) / (n + 1) exactly, neither less nor more.

    One new image for each of many calibrations: independent trials. One place less would lower the coverage by
    1 / (n + 1), which at n = 9 and 19 is far outside.
    """
    draw = np.random.default_rng(round(1000 * level) + n)
    trials, name = 4000, "lac" if method == "lac" else "aps"
    probabilities, labels = drawn(draw, trials * (n + 1))
    draws = draw.random(len(labels)) if method == "aps with draws" else None
    hits = 0
    for start in range(0, len(labels), n + 1):
        old, new = slice(start, start + n), slice(start + n, start + n + 1)
        given = (None, None) if draws is None else (draws[old], draws[new])
        found = calibrate(probabilities[old], labels[old], level, name, draws=given[0])  # type: ignore[arg-type]
        hits += int(held(prediction_sets(probabilities[new], found, draws=given[1]), labels[new])[0])
    exact = math.ceil((n + 1) * level - 1e-9) / (n + 1)
    low, high = stats.binom.interval(0.9999, trials, exact)
    assert low <= hits <= high
    if n < 20:
        assert not low <= hits + trials / (n + 1) <= high and not low <= hits - trials / (n + 1) <= high


def test_every_class_has_its_level_with_thresholds_of_its_own() -> None:
    """A rare class that the network hardly knows: one threshold leaves it out, its own holds it."""
    draw = np.random.default_rng(5)
    trials, n, hits, alone = 600, 200, np.zeros(2), np.zeros(2)
    for _ in range(trials):
        labels = (draw.random(n) < 0.2).astype(np.int64)
        labels[:2] = 0, 1
        positive = expit(draw.normal(size=n) + labels - 2)
        probabilities = np.stack([1 - positive, positive], axis=1)
        rows = slice(2, None)
        for counts, conditional in ((hits, True), (alone, False)):
            found = calibrate(probabilities[rows], labels[rows], 0.9, class_conditional=conditional)
            counts += held(prediction_sets(probabilities[:2], found), labels[:2])
    assert found.thresholds and alone[1] / trials < 0.7
    for number in (
        0,
        1,
    ):  # at least the level, and at most one place more (of 20 images or more of the class)
        assert stats.binom.cdf(hits[number], trials, 0.9) > 1e-4
        assert stats.binom.sf(hits[number], trials, 0.9 + 1 / 20) > 1e-4


def test_patients_with_many_images_count_once() -> None:
    """Half of the patients have eight images that are alike: counted image by image, coverage of a patient falls."""
    draw = np.random.default_rng(6)
    trials, patients, level = 3000, 19, 0.9
    hits = {"patients": 0, "images": 0}
    for _ in range(trials):
        many = draw.random(patients + 1) < 0.5
        size = np.where(many, 8, 1)
        margin = np.where(many, 3.0, 0.0) + draw.normal(size=patients + 1)  # those with many are easy
        who = np.repeat(np.arange(patients + 1), size)
        positive = expit(margin[who] + 0.1 * draw.normal(size=len(who)))
        probabilities, labels = np.stack([1 - positive, positive], axis=1), np.ones(len(who), dtype=np.int64)
        new = int(np.flatnonzero(who == patients)[0])  # all of its images are alike, so any one
        old = who < patients
        for name, groups in (("patients", who[old]), ("images", None)):
            found = calibrate(probabilities[old], labels[old], level, groups=groups)
            hits[name] += int(prediction_sets(probabilities[new : new + 1], found)[0, 1])
    assert stats.binom.cdf(hits["patients"], trials, level) > 1e-4
    assert hits["images"] / trials < level - 0.05


def test_one_image_a_patient_is_the_same_as_no_patients() -> None:
    probabilities, labels = drawn(np.random.default_rng(7), 60)
    names = np.array([f"patient {number}" for number in np.random.default_rng(0).permutation(60)])
    assert calibrate(probabilities, labels, groups=names) == calibrate(probabilities, labels)
    twice = calibrate(np.repeat(probabilities, 3, axis=0), np.repeat(labels, 3), groups=np.repeat(names, 3))
    assert twice == calibrate(probabilities, labels)  # copies of an image teach nothing


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 2**31), method=st.sampled_from(SET_METHODS), conditional=st.booleans())
def test_a_higher_level_has_larger_sets(seed: int, method: SetMethod, conditional: bool) -> None:
    draw = np.random.default_rng(seed)
    probabilities, labels = drawn(draw, int(draw.integers(1, 80)))
    new = drawn(draw, 30)[0]
    levels = (0.1, 0.5, 0.8, 0.9, 0.95, 0.99)
    made = [
        prediction_sets(new, calibrate(probabilities, labels, level, method, class_conditional=conditional))
        for level in levels
    ]
    assert all((lower <= higher).all() for lower, higher in pairwise(made))
    for level in levels:
        found = calibrate(probabilities, labels, level, method, class_conditional=conditional)
        assert prediction_sets(new, found, allow_empty=False).any(axis=1).all()


# Findings


def test_findings_are_two_classes_each_and_unknown_ones_take_no_part() -> None:
    draw = np.random.default_rng(8)
    truth = (draw.random((80, 3)) < 0.4).astype(np.float64)
    probabilities = expit(draw.normal(size=(80, 3)) + 2 * truth - 1)
    truth[draw.random((80, 3)) < 0.2] = np.nan
    truth[:, 2] = np.nan
    found = calibrate_findings(probabilities, truth, 0.8)
    for number in (0, 1):
        known = ~np.isnan(truth[:, number])
        scores = np.sort(np.abs(truth[known, number] - probabilities[known, number]))
        assert found[number].thresholds == pytest.approx((scores[math.ceil((known.sum() + 1) * 0.8) - 1],))
        assert found[number].units == (known.sum(),)
    assert found[2].thresholds == (math.inf,) and found[2].units == (0,)
    sets = finding_sets(probabilities, found)
    assert sets.shape == (80, 3, 2) and sets[:, 2].all()
    assert (sets[:, 0, 1] == (1 - probabilities[:, 0] <= found[0].thresholds[0])).all()
    rows = finding_coverage(sets, truth)
    known = ~np.isnan(truth[:, 0])
    right = sets[known, 0, truth[known, 0].astype(int)]
    assert rows[0]["coverage"] == right.mean() and rows[0]["n"] == known.sum()
    assert rows[2]["coverage"] is None and rows[2]["reason"] and rows[2]["finding"] == 2
    of_class = calibrate_findings(probabilities, truth, 0.8, class_conditional=True, groups=np.arange(80))
    present = truth[:, 0] == 1
    assert of_class[0].units == ((truth[:, 0] == 0).sum(), present.sum())
    both = calibrate_findings(probabilities, truth, 0.8, "aps", draws=draw.random((80, 3)))
    assert finding_sets(probabilities, both, draws=draw.random((80, 3))).shape == (80, 3, 2)


# Measuring


def test_coverage_of_images_by_hand() -> None:
    sets = np.array([[1, 0, 0], [1, 1, 0], [0, 0, 0], [0, 0, 1], [1, 1, 1]], dtype=bool)
    found = coverage(sets, np.array([0, 1, 2, 0, 0]))
    assert (found["coverage"], found["n"], found["mean_size"]) == (3 / 5, 5, 7 / 5)
    assert (found["singletons"], found["empty"]) == (2 / 5, 1 / 5)
    assert [(row["class"], row["coverage"], row["n"]) for row in found["classes"]] == [
        (0, 2 / 3, 3),
        (1, 1, 1),
        (2, 0, 1),
    ]
    reference = stats.binomtest(3, 5).proportion_ci(0.95, "exact")
    assert (found["low"], found["high"]) == pytest.approx((reference.low, reference.high))
    json.dumps(found)
    assert coverage(sets[:0], np.zeros(0, dtype=np.int64))["coverage"] is None


@pytest.mark.parametrize("hits", [0, 1, 7, 19, 20])
@pytest.mark.parametrize("level", [0.8, 0.95])
def test_binomial_intervals_are_those_of_scipy(hits: int, level: float) -> None:
    reference = stats.binomtest(hits, 20).proportion_ci(level, "exact")
    assert binomial_interval(hits, 20, level) == pytest.approx((reference.low, reference.high))
    if hits in (0, 20):
        assert exact_interval(hits / 20, 20, level) == pytest.approx((reference.low, reference.high))


def test_patients_widen_the_interval_as_a_plain_bootstrap_does() -> None:
    draw = np.random.default_rng(9)
    who = np.repeat(np.arange(40), 5)
    hit = np.repeat(draw.random(40) < 0.8, 5)  # all images of a patient alike: 40 units, not 200
    sets = np.stack([hit, ~hit], axis=1)
    labels = np.zeros(200, dtype=np.int64)
    found = coverage(sets, labels, np.array([f"p{number}" for number in who]), seed=1)
    alone = coverage(sets, labels)
    assert found["coverage"] == alone["coverage"] and "40" not in found["interval"]
    assert found["interval"] == "bootstrap over patients, 2000 resamples"
    share, spread = hit.mean(), [hit[::5][draw.integers(0, 40, 40)].mean() for _ in range(4000)]
    error = np.std(spread) * np.sqrt(40 / 39) / (share * (1 - share))
    ends = expit(np.log(share / (1 - share)) + np.array([-1, 1]) * stats.t.ppf(0.975, 39) * error)
    assert (found["low"], found["high"]) == pytest.approx(tuple(ends), abs=0.01)
    assert found["high"] - found["low"] > 1.5 * (alone["high"] - alone["low"])
    assert coverage(sets[::5], labels[::5], who[::5])["interval"] == "exact (Clopper-Pearson), 40 patients"
    whole = coverage(np.ones_like(sets), labels, who)
    assert (whole["low"], whole["high"]) == pytest.approx((0.025 ** (1 / 40), 1.0))


# Kept and refused


@pytest.mark.parametrize("conditional", [False, True])
def test_thresholds_are_kept_as_json(conditional: bool) -> None:
    probabilities, _ = drawn(np.random.default_rng(1), 40)
    labels = np.arange(40) % 3  # the fourth class has no image
    found = calibrate(probabilities, labels, 0.9, class_conditional=conditional)
    assert Conformal.of_card(json.loads(json.dumps(found.card(), allow_nan=False))) == found
    if conditional:
        assert found.units == (14, 13, 13, 0) and found.thresholds[3] == math.inf
        assert (
            found.reason
            == "every set holds class 3 (0 units), because a level of 0.9 needs 9 units of a class"
        )
        assert prediction_sets(probabilities, found)[:, 3].all()


def test_what_will_not_do_is_refused() -> None:
    good, labels = np.full((4, 2), 0.5), np.array([0, 1, 0, 1])
    draws = np.full(4, 0.5)
    for wrong, said in (
        (lambda: calibrate(good, labels, 1.0), "level=1.0"),
        (lambda: calibrate(good, labels + 1), "labels go from 1 to 2"),
        (lambda: calibrate(good, labels - 1), "labels go from -1"),
        (lambda: calibrate(good, labels[:2]), "one class number for each"),
        (lambda: calibrate(good, labels / 1), "one class number for each"),
        (lambda: calibrate(good * 3, labels), "between 0 and 1"),
        (lambda: calibrate(good * np.nan, labels), "between 0 and 1"),
        (lambda: calibrate(good[:, :1], labels), "two classes or more"),
        (lambda: calibrate(good, labels, method="raps"), "method raps"),  # type: ignore[arg-type]
        (lambda: calibrate(good, labels, draws=draws), "lac takes no draws"),
        (lambda: calibrate(good, labels, method="aps", draws=draws + 1), "draws"),
        (lambda: calibrate(good, labels, groups=labels[:2]), "one patient an image"),
        (lambda: prediction_sets(good, Conformal("aps", 0.9, (0.5,), (9,), True)), "with draws"),
        (lambda: prediction_sets(good, Conformal("aps", 0.9, (0.5,), (9,)), draws=draws), "without draws"),
        (lambda: prediction_sets(good, Conformal("lac", 0.9, (0.5,) * 3, (9,) * 3)), "3 classes"),
        (lambda: calibrate_findings(good, good), "0, 1 or NaN"),
        (lambda: calibrate_findings(good, good[:2]), "shape"),
        (lambda: finding_sets(good, ()), "0 findings"),
        (lambda: coverage(good, labels), "give \\(N, C\\)"),
        (lambda: coverage(good > 0, labels + 1), "no class"),
        (lambda: coverage(good > 0, labels, labels[:2]), "one patient an image"),
        (lambda: finding_coverage(good > 0, good), "\\(N, F, 2\\)"),
    ):
        with pytest.raises(DataError, match=said):
            wrong()


# Temperatures


@pytest.mark.parametrize("task", ["multiclass", "multilabel"])
def test_a_temperature_is_found_again_and_undone(task: Task) -> None:
    draw = np.random.default_rng(2)
    logits = draw.normal(size=(6000, 3)) * 1.5
    if task == "multiclass":
        honest = softmax(logits, axis=1)
        labels = (draw.random((6000, 1)) > honest.cumsum(axis=1)[:, :-1]).sum(axis=1)
        truth, sharp = np.eye(3)[labels], softmax(2 * logits, axis=1)
    else:
        honest = expit(logits)
        truth, sharp = (draw.random(logits.shape) < honest).astype(np.float64), expit(2 * logits)
    found = fit_temperature(sharp, truth, task)
    assert found == pytest.approx(2.0, rel=0.06)
    assert np.abs(apply_temperature(sharp, 2.0, task) - honest).max() < 1e-6
