"""Average ranks, against a plain loop."""

from __future__ import annotations

import numpy as np
import pytest

from scanprior.evaluation import Contest, Replicates, average_ranks


def made(
    values: list[list[float]], spread: float = 0.0, seed: int = 0, resamples: int = 400
) -> list[Replicates]:
    """Return models with values (models, seeds) and resamples about them, the same draw for all seeds of a model."""
    random = np.random.default_rng(seed)
    return [
        Replicates(np.array(own), np.array(own)[:, None] + random.normal(0, spread, resamples)[None], 50)
        for own in values
    ]


def rank_of(values: list[float], place: int) -> float:
    """Return the rank by counting: those that are better, and half of those that are equal."""
    better = sum(other > values[place] for other in values)
    equal = sum(other == values[place] for other in values)
    return better + (equal + 1) / 2


def test_ranks_are_those_of_a_loop() -> None:
    random = np.random.default_rng(1)
    first = random.integers(0, 4, (5, 3)) / 4  # with ties
    second = random.integers(0, 4, (5, 3)) / 4
    found = average_ranks(
        [Contest(made(first.tolist()), False, "a"), Contest(made((-second).tolist()), True, "b")]
    )
    for model, one in enumerate(found):
        each = [rank_of(part[:, seed].tolist(), model) for part in (first, second) for seed in range(3)]
        assert one.rank == pytest.approx(np.mean(each))
    assert sum(one.rank for one in found) == pytest.approx(5 * 3)


def test_lower_is_better_where_it_is_so() -> None:
    distances = Contest(made([[1.0], [2.0], [3.0]]), True, "a")
    assert [one.rank for one in average_ranks([distances])] == [1, 2, 3]


def test_intervals_widen_with_the_spread_and_stay_in_range() -> None:
    values = [[0.9, 0.9], [0.8, 0.8], [0.1, 0.1]]
    sure = average_ranks([Contest(made(values, 1e-6), False, "a")])
    assert [(one.low, one.high) for one in sure] == [(1, 1), (2, 2), (3, 3)]
    unsure = average_ranks([Contest(made(values, 0.2), False, "a")])
    for one in unsure:
        assert one.low is not None and one.high is not None and 1 <= one.low <= one.rank <= one.high <= 3
    assert (unsure[0].low, unsure[0].high) == (1, 2) and unsure[2].low == 3


def test_the_interval_is_of_ranks_taken_anew_in_every_resample() -> None:
    models = made([[0.6], [0.5], [0.4]], 0.1, resamples=1000)
    found = average_ranks([Contest(models, False, "a")], level=0.9)
    ranks = [
        [rank_of([float(each.spread[0, number]) for each in models], model) for number in range(1000)]
        for model in range(3)
    ]
    for one, own in zip(found, ranks, strict=True):
        assert (one.low, one.high) == pytest.approx(tuple(np.quantile(own, [0.05, 0.95])))


def test_tasks_on_other_patients_are_resampled_independently() -> None:
    models = made([[0.6], [0.5]], 0.2, resamples=4000)
    same = average_ranks([Contest(models, False, "a"), Contest(models, False, "a")])
    other = average_ranks([Contest(models, False, "a"), Contest(models, False, "b")], level=0.6)
    assert (same[0].low, same[0].high) == (1, 2), "the ranks of both fall together"
    assert other[0].high == pytest.approx(1.5), "one falls and the other does not"


def test_no_interval_where_resamples_have_no_value() -> None:
    models = made([[0.6], [0.5]], 0.1)
    models[0].spread[:, ::4] = np.nan
    assert average_ranks([Contest(models, False, "a")])[0].low is not None
    models[1].spread[:, 1:] = np.nan
    found = average_ranks([Contest(models, False, "a")])[0]
    assert found.rank == 1 and found.low is None and found.reason is not None
