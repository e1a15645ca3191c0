"""NumPy's products between batches take one thread, and as many as before afterwards."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from scanprior import blas
from scanprior.evaluation import OutlierScore


def threads() -> set[int]:
    return {one["num_threads"] for one in threadpool_info() if one["user_api"] == "blas"}


def test_one_thread_within_and_as_many_as_before_after() -> None:
    with threadpool_limits(limits=2, user_api="blas"):
        with pytest.raises(ValueError, match="inside"), blas.one_blas_thread():
            assert threads() == {1}
            raise ValueError("inside")
        assert threads() == {2}


def test_images_are_scored_in_one_thread() -> None:
    rng = np.random.default_rng(0)
    score = OutlierScore.fit(rng.normal(size=(64, 256)), rng.normal(size=(32, 256)))
    images = rng.normal(size=(16, 256))
    found = []

    class Watched(np.ndarray):
        def __rmatmul__(self, other: np.ndarray) -> np.ndarray:
            found.append(threads())
            return other @ np.asarray(self)

    with threadpool_limits(limits=2, user_api="blas"):
        watched = replace(score, components=score.components.view(Watched)).scores(images)
    assert found == [{1}]
    assert np.array_equal(watched, score.scores(images))
