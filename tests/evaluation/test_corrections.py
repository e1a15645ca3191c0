"""Holm's correction."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scanprior.evaluation import holm


def test_an_example_by_hand() -> None:
    # Sorted: 0.005 x 4, 0.01 x 3, 0.03 x 2, 0.04 x 1, and none below the one before it.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_none_is_no_part_of_the_family() -> None:
    assert holm([None, 0.02, math.nan, 0.6]) == [None, 0.04, None, 0.6]
    assert holm([]) == [] and holm([None]) == [None] and holm([0.3]) == [0.3]


def test_nothing_exceeds_one() -> None:
    assert holm([0.5, 0.4, 0.9]) == [1.0, 1.0, 1.0]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_against_the_formula_on_sorted_arrays(values: list[float]) -> None:
    order = np.argsort(values, kind="stable")
    stepped = np.maximum.accumulate(np.array(values)[order] * np.arange(len(values), 0, -1))
    wanted = np.empty(len(values))
    wanted[order] = np.minimum(stepped, 1)
    np.testing.assert_allclose(np.array(holm(values), float), wanted, rtol=1e-12)


def test_false_findings_are_rare() -> None:
    """Of 2,000 families of twelve comparisons of nothing, about 5 % have one at or below 0.05."""
    random = np.random.default_rng(0)
    false = sum(min(value or 0 for value in holm(list(random.uniform(size=12)))) <= 0.05 for _ in range(2000))
    assert 0.035 < false / 2000 < 0.06
