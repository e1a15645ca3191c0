"""Bootstrap and DeLong against plain references, and how often their intervals hold the truth."""

from __future__ import annotations

import itertools
from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from prediction_tables import World, multiclass, multilabel
from scipy import stats
from sklearn import metrics as reference

from scanprior import keyed
from scanprior.evaluation import Ranking, Scorer, delong, percentile_interval, resample_weights, two_sided_p
from scanprior.evaluation.intervals import bootstrap_interval, exact_interval, logit_interval, macro_patients
from scanprior.evaluation.scoring import patients_of, resampled

Floats = NDArray[np.float64]
SMALL = settings(deadline=None, max_examples=25)
SEEDS = st.integers(0, 2**31)
CLASSES = ["normal", "sick"]


def drawn_images(groups: NDArray[np.int64], number: int, seed: int) -> NDArray[np.int64]:
    """Image numbers of one resample, patient after patient."""
    count = int(groups.max()) + 1
    chosen = (keyed.uniform(keyed.key(seed, "bootstrap"), [number], count)[0] * count).astype(np.int64)
    return np.concatenate([np.flatnonzero(groups == patient) for patient in chosen])


def test_resamples_equal_scikit_learn_on_the_drawn_images() -> None:
    draw = np.random.default_rng(0)
    groups = np.repeat(np.arange(70), draw.integers(1, 4, 70))
    truth, score = draw.integers(0, 2, len(groups)), np.round(draw.random(len(groups)), 2)
    table = multiclass(draw, len(groups), ["a", "b", "c"])
    ranked = World(70, 0.4, 0.8).table(groups, truth == 1, score)
    scorers = [Scorer(ranked, CLASSES, "multiclass"), Scorer(table, ["a", "b", "c"], "multiclass")]
    binary, several = resampled(scorers, groups, 30, seed=5)
    probability = table[["prob:a", "prob:b", "prob:c"]].to_numpy()
    for number in range(30):
        at = drawn_images(groups, number, seed=5)
        area = reference.roc_auc_score(truth[at], score[at])
        assert abs(binary["auroc", "sick"][number] - area) < 1e-12
        area = reference.average_precision_score(truth[at], score[at])
        assert abs(binary["average_precision", "sick"][number] - area) < 1e-9
        label, called = (
            table["label"].to_numpy()[at],
            np.array(["a", "b", "c"])[probability[at].argmax(axis=1)],
        )
        for metric, wanted in (
            ("accuracy", reference.accuracy_score(label, called)),
            ("balanced_accuracy", reference.balanced_accuracy_score(label, called)),
            ("kappa", reference.cohen_kappa_score(label, called)),
        ):
            assert abs(several[metric, "all"][number] - wanted) < 1e-9


def test_resamples_do_not_depend_on_how_many_there_are_or_on_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    groups = np.array([0, 0, 1, 2, 2, 2, 3])
    whole = np.concatenate(list(resample_weights(groups, 50, 1)))
    monkeypatch.setattr("scanprior.evaluation.bootstrap._BLOCK", 21)
    parts = list(resample_weights(groups, 20, 1))
    assert len(parts) == 7
    np.testing.assert_array_equal(np.concatenate(parts), whole[:20])
    assert (whole[:, [0, 3, 3]] == whole[:, [1, 4, 5]]).all()  # all images of a patient together
    first_images = [0, 2, 3, 6]
    assert (whole[:, first_images].sum(axis=1) == 4).all()  # four patients are drawn each time
    assert abs(whole.mean() - 1) < 0.1
    assert not np.array_equal(whole, np.concatenate(list(resample_weights(groups, 50, 2))))


def components(truth: NDArray[np.bool_], score: Floats) -> tuple[Floats, Floats]:
    """Structural components of DeLong et al. 1988, pair by pair."""
    pairs = [[(x > y) + 0.5 * (x == y) for y in score[~truth]] for x in score[truth]]
    return np.mean(pairs, axis=1), np.mean(pairs, axis=0)


@SMALL
@given(SEEDS, st.integers(2, 25), st.integers(2, 25), st.integers(2, 30))
def test_delong_is_its_definition(seed: int, m: int, n: int, levels: int) -> None:
    draw = np.random.default_rng(seed)
    truth = draw.permutation(np.arange(m + n) < m)
    scores = draw.integers(0, levels, (2, m + n)).astype(np.float64)
    parts = [components(truth, score) for score in scores]
    found = delong(truth, scores)
    for row, (positive, _) in enumerate(parts):
        assert abs(found.auroc[row] - positive.mean()) < 1e-10
        assert abs(found.auroc[row] - reference.roc_auc_score(truth, scores[row])) < 1e-10
    wanted = np.cov([part[0] for part in parts]) / m + np.cov([part[1] for part in parts]) / n
    np.testing.assert_allclose(found.covariance, wanted, atol=1e-10, rtol=0)
    single = delong(truth, scores, np.arange(m + n))
    np.testing.assert_allclose(single.covariance, found.covariance, atol=1e-12, rtol=0)


@SMALL
@given(SEEDS, st.integers(4, 15))
def test_clustered_delong_is_obuchowski(seed: int, patients: int) -> None:
    draw = np.random.default_rng(seed)
    groups = np.repeat(np.arange(patients), draw.integers(1, 4, patients))
    truth = draw.random(len(groups)) < 0.5
    truth[:4] = [True, False, True, False]
    groups = draw.permutation(groups) * 7 + 3  # numbers need not be 0..g-1
    scores = draw.integers(0, 8, (2, len(groups))).astype(np.float64)
    m, n = truth.sum(), (~truth).sum()
    sums = []  # of each score: by patient, over positives and over negatives
    for score in scores:
        positive, negative = components(truth, score)
        area, by_patient = positive.mean(), []
        for patient in np.unique(groups):
            mine, others = groups[truth] == patient, groups[~truth] == patient
            by_patient.append(
                [positive[mine].sum() - mine.sum() * area, negative[others].sum() - others.sum() * area]
            )
        sums.append(np.array(by_patient))
    count = len(np.unique(groups))
    with_positive, with_negative = len(np.unique(groups[truth])), len(np.unique(groups[~truth]))
    wanted = np.empty((2, 2))
    for a, b in itertools.product(range(2), repeat=2):
        s10 = with_positive / ((with_positive - 1) * m) * (sums[a][:, 0] * sums[b][:, 0]).sum()
        s01 = with_negative / ((with_negative - 1) * n) * (sums[a][:, 1] * sums[b][:, 1]).sum()
        s11 = count / (count - 1) * (sums[a][:, 0] * sums[b][:, 1] + sums[b][:, 0] * sums[a][:, 1]).sum()
        wanted[a, b] = s10 / m + s01 / n + s11 / (m * n)
    if with_positive > 1 and with_negative > 1:
        found = delong(truth, scores, groups)
        np.testing.assert_allclose(found.covariance, wanted, atol=1e-10, rtol=0)
        assert found.patients == min(with_positive, with_negative)


def test_delong_without_an_interval_says_why() -> None:
    truth = np.array([True, True, False, False])
    for scores, groups, said in (
        ([4.0, 3.0, 2.0, 1.0], None, "separated without an overlap"),
        ([1.0, 2.0, 3.0, 4.0], None, "separated without an overlap"),
        ([1.0, 1.0, 1.0, 1.0], None, "variance is 0"),
        ([4.0, 2.0, 3.0, 1.0], np.array([0, 0, 1, 2]), "a single patient"),
    ):
        found = delong(truth, np.array(scores), groups)
        assert np.isnan(found.interval()).all()
        assert said in found.why_none()
    same = delong(truth, np.array([[4.0, 2.0, 3.0, 1.0], [8.0, 4.0, 6.0, 2.0]]))
    assert same.difference()[0] == 0 and np.isnan(same.difference()[1:]).all()
    with pytest.raises(ValueError, match="positive and negative"):
        delong(np.ones(3, dtype=bool), np.arange(3.0))


# How often the intervals hold the truth.


def share_of_hits(world: World, worlds: int, resamples: int) -> dict[str, float]:
    """Coverage of the bootstrap intervals and of DeLong's, as ``evaluate`` makes them."""
    draw, hits = np.random.default_rng(0), defaultdict(list)
    for number in range(worlds):
        groups, truth, score = world.draw(draw)
        right = (score >= world.shift / 2) == truth
        weights = np.concatenate(
            [np.ones((1, len(truth))), *resample_weights(groups, resamples, seed=number)], axis=0
        )
        sides = np.stack([truth, truth & right, ~truth, ~truth & right, right], axis=1).astype(np.float64)
        yes, hit, no, spared, good = (weights @ sides).T
        count = [len(np.unique(groups[rows])) for rows in (truth, ~truth, truth | True)]
        for metric, wanted, values, patients in (
            ("auroc", world.auroc, Ranking(truth, score).auroc(weights), min(count)),
            ("sensitivity", world.hit_rate, hit / yes, count[0]),
            ("specificity", world.hit_rate, spared / no, count[1]),
            ("accuracy", world.hit_rate, good / (yes + no), count[2]),
        ):
            found = bootstrap_interval(metric, values[0], values[1:], patients, "patient", 0.95)
            assert found.low is not None and found.high is not None, found.reason
            hits[metric].append(found.low <= wanted <= found.high)
        low, high = delong(truth, score, groups).interval()
        hits["DeLong"].append(low <= world.auroc <= high)
    return {name: float(np.mean(each)) for name, each in hits.items()}


@pytest.mark.parametrize("world", [World(80, 0.3, 0.85), World(100, 0.4, 0.9, images=2, mixed=True)], ids=str)
def test_coverage_of_intervals_over_patients(world: World) -> None:
    found = share_of_hits(world, worlds=1500, resamples=250)
    assert 0.93 <= found["sensitivity"] <= 0.98, found  # a share of two dozen patients moves in steps
    assert all(0.93 <= found[name] <= 0.97 for name in ("auroc", "DeLong", "specificity", "accuracy")), found


def test_coverage_of_delong() -> None:
    world, wide, hits, images = World(60, 0.4, 0.85), World(120, 0.3, 0.85, images=1), defaultdict(list), 3
    draw = np.random.default_rng(0)
    for _ in range(1500):
        groups, truth, score = wide.draw(draw)
        low, high = delong(truth, score).interval()
        hits["independent"].append(low <= wide.auroc <= high)
        groups = np.repeat(np.arange(world.patients), images)
        truth, score = world.of(draw, groups)
        for name, who in (("clustered", groups), ("clusters overlooked", None)):
            low, high = delong(truth, score, who).interval()
            hits[name].append(low <= world.auroc <= high)
    found = {name: float(np.mean(each)) for name, each in hits.items()}
    assert 0.93 <= found["independent"] <= 0.97, found
    assert 0.93 <= found["clustered"] <= 0.97, found
    assert found["clusters overlooked"] < 0.9, found  # so the test can tell


# Parts.


@SMALL
@given(st.integers(1, 60), st.floats(0.5, 0.99))
def test_exact_interval_is_clopper_pearson(patients: int, level: float) -> None:
    for value, right in ((1.0, patients), (0.0, 0)):
        wanted = stats.binomtest(right, patients).proportion_ci(level, method="exact")
        assert exact_interval(value, patients, level) == pytest.approx((wanted.low, wanted.high), abs=1e-9)


@SMALL
@given(st.floats(0.001, 0.999), st.floats(1e-6, 10), st.floats(0.5, 100))
def test_logit_interval_holds_the_value_and_stays_within(value: float, error: float, freedom: float) -> None:
    low, high = logit_interval(value, error, freedom, 0.95)
    assert 0 <= low <= value <= high <= 1
    bottom, top = logit_interval(2 * value - 1, 2 * error, freedom, 0.95, -1.0, 1.0)
    assert (bottom, top) == pytest.approx((2 * low - 1, 2 * high - 1), abs=1e-9)
    assert np.isnan(logit_interval(1.0, error, freedom, 0.95)).all()
    assert np.isnan(logit_interval(value, 0.0, freedom, 0.95)).all()


def test_logit_interval_of_many_is_the_plain_one() -> None:
    low, high = logit_interval(0.8, 0.001, 1e6, 0.95)
    assert (low, high) == pytest.approx((0.8 - 1.96 * 0.001, 0.8 + 1.96 * 0.001), abs=1e-5)


@pytest.mark.parametrize(
    ("metric", "value", "spread", "patients", "said"),
    [
        ("auroc", 0.7, [0.6, 0.8], 1, "rests on a single patient"),
        ("auroc", 0.7, [0.7, np.nan, np.nan], 9, "fewer than half"),
        ("auroc", 1.0, [1.0] * 9, 9, "every resample gives the same value"),
        ("auroc", 1.0, [1.0, 1.0, 0.9], 9, "end of its range"),
        ("brier", 0.25, [0.25] * 5, 9, "every resample gives the same value"),
    ],
)
def test_no_interval_has_a_reason(
    metric: str, value: float, spread: list[float], patients: int, said: str
) -> None:
    found = bootstrap_interval(metric, value, np.array(spread), patients, "patient", 0.95)
    assert (found.low, found.high, found.how) == (None, None, None)
    assert said in (found.reason or "")


def test_error_of_calibration_has_an_interval_that_holds_it() -> None:
    """Its resamples lie above it: percentiles of them would leave the value itself out."""
    spread = np.random.default_rng(0).uniform(0.06, 0.12, 500)
    found = bootstrap_interval("ece", 0.05, spread, 100, "image", 0.95)
    assert found.low == 0 and found.high == 0.05
    found = bootstrap_interval("ece", 0.10, spread, 100, "image", 0.95)
    assert found.low == pytest.approx(0.2 - np.quantile(spread, 0.975))
    assert found.high == pytest.approx(0.2 - np.quantile(spread, 0.025))


def test_macro_mean_rests_on_its_classes() -> None:
    draw = np.random.default_rng(0)
    even = [draw.normal(size=4000), draw.normal(size=4000)]
    assert macro_patients(even, [11, 11]) == pytest.approx(21, rel=0.02)
    assert macro_patients([even[0], 0.01 * even[1]], [11, 300]) == pytest.approx(11, rel=0.02)
    assert macro_patients(even, [11, 1]) == 1
    table = multilabel(draw, 200, ["mass", "nodule"], 0.1)
    scorer, groups = Scorer(table, ["mass", "nodule"], "multilabel"), np.arange(200)
    spread = resampled([scorer], groups, 200, 0)[0]
    found = patients_of(scorer, groups, spread)
    rarer = [found["auroc", name] for name in ("mass", "nodule")]
    assert min(rarer) < found["auroc", "macro"] <= sum(rarer)
    assert found.keys() == spread.keys()


def test_percentile_interval_widens_for_few_patients() -> None:
    values = np.random.default_rng(0).normal(size=20000)
    many, few = percentile_interval(values, 10**6, 0.95), percentile_interval(values, 10, 0.95)
    assert many == pytest.approx(np.quantile(values, [0.025, 0.975]), abs=1e-3)
    assert few[1] == pytest.approx(stats.t.ppf(0.975, 9) * np.sqrt(10 / 9), abs=0.06)
    assert np.isnan(percentile_interval(values, 1, 0.95)).all()
    assert np.isnan(percentile_interval(np.array([1.0, np.nan, np.nan]), 9, 0.95)).all()


@SMALL
@given(SEEDS, st.integers(4, 200), st.floats(-3, 3))
def test_p_agrees_with_the_interval(seed: int, patients: int, shift: float) -> None:
    values = np.random.default_rng(seed).normal(size=4000) + shift
    p, mirrored = two_sided_p(values, patients), two_sided_p(-values, patients)
    assert p == mirrored and 0 < p <= 1
    for level in (0.5, 0.8):
        low, high = percentile_interval(values, patients, level)
        if abs(p - (1 - level)) > 0.01:  # the count has one added
            assert (low <= 0 <= high) == (p > 1 - level)
