"""Means over trainings: their intervals hold in simulation, and labels to match are what they should be."""

from __future__ import annotations

import numpy as np
import pytest

from scanprior.evaluation import (
    Replicates,
    labels_to_match,
    mean_change,
    mean_difference,
    mean_interval,
    replicates,
)
from scanprior.evaluation.bootstrap import resample_weights
from scanprior.evaluation.scoring import MeanScorer


class Means:
    """Scores the mean of a number an image."""

    def __init__(self, values: np.ndarray) -> None:
        self.values = values

    def score(self, weights: np.ndarray) -> dict[tuple[str, str], np.ndarray]:
        return {("accuracy", "all"): weights @ self.values / weights.sum(axis=1)}

    def known(self, metric: str, name: str) -> np.ndarray:
        return np.ones(len(self.values), dtype=bool)

    def counted(self, metric: str, name: str) -> dict[str, int]:
        return {"n": len(self.values)}

    def patients(self, groups: np.ndarray) -> dict[tuple[str, str], int]:
        return {("accuracy", "all"): len(np.unique(groups))}

    def why_undefined(self, metric: str, name: str) -> str:
        return ""


KEY = ("accuracy", "all")


def drawn(
    random: np.random.Generator, seeds: int, patients: int, of_seeds: float, mean: float
) -> list[Means]:
    """Trainings whose right answers depend on the patient and on the seed, with a true mean over both."""
    hard = random.normal(0, 0.25, patients)
    luck = random.normal(0, of_seeds, seeds)
    noise = random.normal(0, 0.2, (seeds, patients))
    return [Means(mean + hard + luck[s] + noise[s]) for s in range(seeds)]


@pytest.mark.parametrize(("of_seeds", "seeds"), [(0.0, 5), (0.03, 5), (0.06, 3), (0.1, 5)])
def test_intervals_cover_the_mean_over_patients_and_seeds(of_seeds: float, seeds: int) -> None:
    random = np.random.default_rng(7)
    groups = np.arange(60)
    covered, narrow, tries = 0, 0, 400
    for _ in range(tries):
        found = replicates(drawn(random, seeds, 60, of_seeds, 0.6), groups, 200, 0)[KEY]
        interval = mean_interval("accuracy", found, "patient", 0.95)
        assert interval.low is not None and interval.high is not None
        covered += interval.low <= 0.6 <= interval.high
        alone = found.spread.mean(axis=0).std() * 2
        narrow += abs(found.mean - 0.6) <= alone
    # With no variance between seeds, its estimate still adds some: never below, a little above.
    assert 0.93 <= covered / tries <= 0.99
    if of_seeds >= 0.06:
        assert narrow / tries < 0.9, "an interval over patients alone would do, so this test shows nothing"


def test_paired_differences_cover_and_are_narrower() -> None:
    random = np.random.default_rng(1)
    groups = np.arange(50)
    covered, widths, apart = 0, [], []
    for _ in range(600):
        hard = random.normal(0, 0.3, 50)
        sides = [
            [Means(mean + hard + random.normal(0, 0.04) + random.normal(0, 0.1, 50)) for _ in range(4)]
            for mean in (0.55, 0.5)
        ]
        first, second = (replicates(side, groups, 200, 0)[KEY] for side in sides)
        found = mean_difference(first, second, "patient", 0.95)
        covered += found.low <= 0.05 <= found.high
        widths.append(found.high - found.low)
        other = mean_change(first, second, "patient", 0.95)
        apart.append(other.high - other.low)
    assert 0.92 <= covered / 600 <= 0.98
    assert np.mean(widths) < 0.8 * np.mean(apart)  # what patients have in common cancels only when paired


def test_p_agrees_with_the_interval() -> None:
    random = np.random.default_rng(5)
    for _ in range(30):
        first, second = (
            replicates(drawn(random, 3, 30, 0.02, mean), np.arange(30), 100, 0)[KEY] for mean in (0.6, 0.5)
        )
        found = mean_difference(first, second, "patient", 0.95)
        assert (found.p < 0.05) == (found.low > 0 or found.high < 0)


def test_the_spread_is_that_of_a_loop() -> None:
    groups = np.repeat(np.arange(8), 2)
    scorers = drawn(np.random.default_rng(1), 3, 16, 0.1, 0.5)
    found = replicates(scorers, groups, 20, 4)[KEY]
    weights = np.concatenate(list(resample_weights(groups, 20, 4)))
    for number, scorer in enumerate(scorers):
        expected = [np.average(scorer.values, weights=row) for row in weights]
        np.testing.assert_allclose(found.spread[number], expected)
    np.testing.assert_allclose(found.values, [scorer.values.mean() for scorer in scorers])
    assert found.patients == 8
    mean = MeanScorer(scorers)
    np.testing.assert_allclose(mean.score(weights)[KEY], found.spread.mean(axis=0))


def test_one_training_says_so_and_one_patient_has_no_interval() -> None:
    scorers = drawn(np.random.default_rng(2), 1, 20, 0, 0.5)
    single = replicates(scorers, np.arange(20), 100, 0)[KEY]
    assert "one training" in str(mean_interval("accuracy", single, "patient", 0.95).how)
    lonely = replicates(scorers, np.zeros(20, dtype=np.int64), 100, 0)[KEY]
    assert (
        mean_interval("accuracy", lonely, "patient", 0.95).reason
        == "no interval because it rests on a single patient"
    )
    assert np.isnan(mean_difference(lonely, lonely, "patient", 0.95).low)


def steady(values: list[float], width: float = 1e-6) -> Replicates:
    random = np.random.default_rng(0)
    spread = np.array(values)[:, None] + random.normal(0, width, (len(values), 400))
    return Replicates(np.array(values), spread, 50)


def test_labels_to_match() -> None:
    curve = [steady([v, v]) for v in (0.6, 0.7, 0.8)]
    budgets = [10, 100, 1000]
    found = labels_to_match(steady([0.75, 0.75]), budgets, curve)
    assert found.labels == pytest.approx(10**2.5) and found.low == pytest.approx(found.high, rel=1e-3)
    assert labels_to_match(steady([0.81, 0.81]), budgets, curve).labels == np.inf
    assert labels_to_match(steady([0.5, 0.5]), budgets, curve).labels == 0
    falling = [steady([v, v]) for v in (9.0, 8.0, 7.0)]
    assert labels_to_match(steady([8.5, 8.5]), budgets, falling, falling=True).labels == pytest.approx(
        10**1.5
    )
    # A dip of the baseline is not an answer: what it reached with fewer labels it has reached.
    dip = [steady([v, v]) for v in (0.7, 0.6, 0.8)]
    assert labels_to_match(steady([0.65, 0.65]), budgets, dip).labels == 0
    wide = labels_to_match(
        steady([0.75, 0.75], 0.03), budgets, [steady([v, v], 0.03) for v in (0.6, 0.7, 0.8)]
    )
    assert wide.low < 10**2.5 < wide.high


def test_why_a_mean_has_no_value_is_what_the_scorers_say() -> None:
    class Undefined(Means):
        def why_undefined(self, metric: str, name: str) -> str:
            return "n/a because no image is positive"

    without, with_one = Undefined(np.full(6, np.nan)), Undefined(np.linspace(0.2, 0.8, 6))
    groups = np.arange(6)
    none = replicates([without, without], groups, 100, 0)[KEY]
    some = replicates([with_one, without], groups, 100, 0)[KEY]
    fine = replicates([with_one, with_one], groups, 100, 0)[KEY]
    assert mean_interval("accuracy", none, "patient", 0.95).reason == "n/a because no image is positive"
    assert str(mean_interval("accuracy", some, "patient", 0.95).reason).endswith(
        "positive in 1 of 2 trainings"
    )
    assert mean_change(fine, none, "patient", 0.95).reason == "n/a because no image is positive"
    assert mean_difference(none, fine, "patient", 0.95).reason == "n/a because no image is positive"
    assert fine.reason is None
