"""The pointing game and the share of saliency inside a mask, against loops, and random saliency against chance."""

from __future__ import annotations

from functools import partial

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scanprior.errors import DataError
from scanprior.evaluation import chance, energy_inside, evaluate_pointing, pointing_game, pointing_row


def made(seed: int, count: int = 5) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Maps of different sizes, masks of a rectangle each."""
    draws, maps, masks = np.random.default_rng(seed), [], []
    for _ in range(count):
        height, width = draws.integers(8, 20, 2)
        maps.append(draws.random((height, width)).astype(np.float32))
        mask = np.zeros((height, width), bool)
        y, x = draws.integers(0, height - 3), draws.integers(0, width - 3)
        mask[y : y + draws.integers(1, 5), x : x + draws.integers(1, 5)] = True
        masks.append(mask)
    return maps, masks


def is_near(inside: list[tuple[int, ...]], tolerance: float, i: int, j: int) -> bool:
    return any((i - a) ** 2 + (j - b) ** 2 <= tolerance**2 for a, b in inside)


@given(st.integers(0, 10_000), st.sampled_from([0.0, 1.0, 1.5, 4.0]))
def test_scores_are_loops_over_pixels(seed: int, tolerance: float) -> None:
    maps, masks = made(seed, 2)
    for saliency, mask in zip(maps, masks, strict=True):
        y, x = divmod(int(saliency.argmax()), saliency.shape[1])
        inside = [tuple(place) for place in np.argwhere(mask)]
        near = partial(is_near, inside, tolerance)
        row = pointing_row(saliency, mask, tolerance)
        assert row["pointing_game"] == near(y, x)
        area = np.mean([near(i, j) for i in range(mask.shape[0]) for j in range(mask.shape[1])])
        assert row["pointing_game:chance"] == pytest.approx(area)
        energy = sum(float(saliency[place]) for place in inside) / float(saliency.astype(np.float64).sum())
        assert row["energy_inside"] == pytest.approx(energy)
        assert row["energy_inside:chance"] == pytest.approx(len(inside) / mask.size)


def test_random_saliency_scores_as_chance_says() -> None:
    maps, masks = zip(*[(m, k) for seed in range(800) for m, k in zip(*made(seed), strict=True)], strict=True)
    assert pointing_game(maps, masks, 1).mean() == pytest.approx(chance(masks, 1).mean(), abs=0.025)
    assert energy_inside(maps, masks).mean() == pytest.approx(chance(masks).mean(), abs=0.01)
    flat, nothing = [np.ones_like(m) for m in maps], [np.zeros_like(m) for m in maps]
    for same in (flat, nothing):
        np.testing.assert_allclose(pointing_game(same, masks, 1), chance(masks, 1))
        np.testing.assert_allclose(energy_inside(same, masks), chance(masks))
    assert pointing_row(nothing[0], masks[0])["silent"] and not pointing_row(flat[0], masks[0])["silent"]


def test_perfect_and_opposite_maps() -> None:
    _, masks = made(3)
    inside, outside = [m.astype(np.float32) for m in masks], [(~m).astype(np.float32) for m in masks]
    assert (pointing_game(inside, masks) == 1).all() and (energy_inside(inside, masks) == 1).all()
    assert (pointing_game(outside, masks) == 0).all() and (energy_inside(outside, masks) == 0).all()


def test_intervals_are_over_patients() -> None:
    draws = np.random.default_rng(1)
    table = pd.DataFrame({"pointing_game": draws.integers(0, 2, 40).astype(float)})
    table["pointing_game:chance"] = draws.random(40) * 0.2
    table["energy_inside"], table["energy_inside:chance"] = draws.random(40), 0.1
    single = {row["metric"]: row for row in evaluate_pointing(table, resamples=400)}
    doubled = pd.concat([table.assign(patient=[f"p{i:02}" for i in range(40)])] * 3, ignore_index=True)
    again = {row["metric"]: row for row in evaluate_pointing(doubled, resamples=400)}
    for metric, row in single.items():
        assert row["value"] == pytest.approx(table[metric].mean())
        assert row["difference"] == pytest.approx((table[metric] - table[f"{metric}:chance"]).mean())
        assert row["low"] < row["value"] < row["high"] and "over images" in row["method"]
        error = table[metric].std() / np.sqrt(40)
        assert row["high"] - row["low"] == pytest.approx(4 * error, rel=0.2)  # normal theory
        for name in ("value", "low", "high", "difference_low", "difference_high"):
            assert again[metric][name] == pytest.approx(row[name])  # copies add no patients
        assert "over patients" in again[metric]["method"]
    assert single["energy_inside"]["p"] < 0.01
    alone = evaluate_pointing(table.head(3).assign(patient="p"), resamples=50)
    assert all(row["low"] is None and row["p"] is None for row in alone)


def test_what_cannot_be_compared_is_refused() -> None:
    maps, masks = made(2)
    with pytest.raises(DataError, match="5 maps cannot be compared with 4 masks"):
        pointing_game(maps, masks[:4])
    with pytest.raises(DataError, match="bring them to one size"):
        energy_inside([maps[0][:-1]], [masks[0]])
    with pytest.raises(DataError, match="mask 0 is empty"):
        pointing_game([maps[0]], [masks[0] & False])
    with pytest.raises(DataError, match="below 0 or that are none"):
        energy_inside([maps[0] * np.nan], [masks[0]])
    with pytest.raises(DataError, match="no image with a mask"):
        evaluate_pointing(pd.DataFrame())
