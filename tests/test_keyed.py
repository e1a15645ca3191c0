"""Keyed randomness: uniform, independent of batch composition, stable across machines."""

from __future__ import annotations

import numpy as np
import torch
from scipy import stats

from scanprior import keyed


def test_keys_are_stable_and_tell_purposes_apart() -> None:
    assert keyed.key(3, "mask") == 16130075064947816733
    made = {
        keyed.key(seed, purpose, part)
        for seed in range(5)
        for purpose in ("mask", "crop")
        for part in range(5)
    }
    assert len(made) == 50
    assert keyed.key(1, "a", 23) != keyed.key(1, "a", 2, 3)


def test_uniform_numbers_pass_tests_of_uniformity_and_independence() -> None:
    drawn = keyed.uniform(keyed.key(0, "test"), np.arange(20_000), 3)
    for column in drawn.T:
        assert stats.kstest(column, "uniform").pvalue > 1e-3
    correlation = np.corrcoef(np.vstack([drawn.T, drawn[np.r_[1:20_000, 0], 0]]))
    assert np.abs(correlation - np.eye(4)).max() < 0.03


def test_a_row_depends_on_its_position_alone() -> None:
    place = keyed.key(5, "crop")
    together = keyed.uniform(place, [7, 3, 12], 4)
    assert np.array_equal(together[1:2], keyed.uniform(place, [3], 4))
    normal = keyed.normal(place, [7, 3, 12], (2, 5))
    assert torch.equal(normal[2:], keyed.normal(place, [12], (2, 5)))
    quantiles = keyed.normal_quantiles(place, [7, 3, 12], (3, 5))
    assert np.array_equal(quantiles[2:], keyed.normal_quantiles(place, [12], (3, 5)))


def test_normal_numbers_are_normal() -> None:
    drawn = keyed.normal(keyed.key(1, "noise"), range(200), (1, 16, 16)).flatten().numpy()
    assert stats.kstest(drawn, "norm").pvalue > 1e-3


def test_normal_quantiles_are_normal_to_16_bits_and_independent_of_their_neighbours() -> None:
    drawn = keyed.normal_quantiles(keyed.key(1, "noise"), range(400), (1, 32, 32))
    assert drawn.dtype == np.float32 and drawn.shape == (400, 1, 32, 32)
    flat = drawn.reshape(400, -1)
    assert stats.kstest(flat.ravel(), "norm").pvalue > 1e-3
    assert abs(flat.var() - 1) < 4 * np.sqrt(2 / flat.size) and np.abs(flat).max() < 4.34
    for apart in (1, 2, 4, 32):  # four neighbours are cut from one 64-bit draw
        assert abs((flat[:, apart:] * flat[:, :-apart]).mean()) < 4 / np.sqrt(flat.size)
    place = stats.norm.cdf(flat[:50].astype(np.float64)) * 65536 - 0.5  # in units of a class
    assert np.abs(place - place.round()).max() < 0.02


def test_permutations_hold_every_number_and_differ() -> None:
    first, second = (keyed.permutation(keyed.key(0, "order", number), 100) for number in range(2))
    assert sorted(first) == list(range(100)) and not np.array_equal(first, second)


def test_seeded_puts_the_state_back() -> None:
    before = torch.get_rng_state()
    with keyed.seeded(3):
        first = torch.rand(3)
    assert torch.equal(before, torch.get_rng_state())
    with keyed.seeded(3):
        assert torch.equal(first, torch.rand(3))
