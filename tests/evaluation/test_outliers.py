"""The distance of an image from the training images, and its rate of false alarms."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.distance import mahalanobis

from scanprior.evaluation import OutlierScore


def test_the_score_is_the_mahalanobis_distance_under_the_fitted_covariance() -> None:
    rng = np.random.default_rng(0)
    trained = rng.normal(size=(400, 12)) * np.linspace(1, 3, 12)
    found = OutlierScore.fit(trained, trained[:0])
    rank = len(found.variances)
    assert rank == 11
    whole = found.components.T @ np.diag(
        found.variances - found.rest
    ) @ found.components + found.rest * np.eye(12)
    new = rng.normal(size=(5, 12)) * 4
    expected = [mahalanobis(x, trained.mean(0), np.linalg.inv(whole)) ** 2 / 12 for x in new]
    np.testing.assert_allclose(found.scores(new), expected, rtol=1e-9)
    assert found.scores(trained).mean() == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("images", [30, 100, 400])
def test_training_images_have_a_mean_score_of_one_even_where_they_are_fewer_than_the_numbers(
    images: int,
) -> None:
    trained = np.random.default_rng(3).normal(size=(images, 120)) * np.linspace(1, 5, 120)
    found = OutlierScore.fit(trained, trained[:0])
    assert found.scores(trained).mean() == pytest.approx(1, abs=0.04)


@pytest.mark.parametrize("false_alarms", [0.05, 0.2])
def test_false_alarms_are_as_rare_as_asked_for(false_alarms: float) -> None:
    rng = np.random.default_rng(1)
    rates = []
    for _ in range(300):
        trained, validation, new = (rng.normal(size=(n, 6)) for n in (64, 39, 50))
        found = OutlierScore.fit(trained, validation)
        flagged = found.scores(new) > found.threshold(false_alarms)
        assert (flagged == (found.p_values(found.scores(new)) <= false_alarms)).all()
        rates.append(flagged.mean())
    error = np.std(rates) / np.sqrt(len(rates))
    assert abs(np.mean(rates) - false_alarms) < 3 * error  # 39 + 1 is a multiple of 1 / rate: it is exact


def test_what_is_too_few() -> None:
    rng = np.random.default_rng(2)
    found = OutlierScore.fit(rng.normal(size=(20, 4)), rng.normal(size=(18, 4)))
    assert found.threshold(0.05) == np.inf and np.isfinite(found.threshold(1 / 19))
    none = OutlierScore.fit(rng.normal(size=(20, 4)), np.zeros((0, 4)))
    assert none.threshold(0.5) == np.inf and np.isnan(none.p_values(np.ones(2))).all()
    with pytest.raises(ValueError, match="7 images are too few"):
        OutlierScore.fit(rng.normal(size=(7, 4)), np.zeros((0, 4)))


def test_images_that_are_all_alike() -> None:
    found = OutlierScore.fit(np.ones((16, 5)), np.ones((20, 5)))
    assert np.isfinite(found.scores(np.ones((2, 5)))).all()
    assert (found.scores(np.full((1, 5), 2.0)) > found.threshold(0.1)).all()
