"""Combining the members of an ensemble: what must hold whatever they say, and what is fitted is the best."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, softmax
from sklearn.metrics import log_loss as reference_log_loss

from scanprior.evaluation.combination import (
    METHODS,
    TEMPERATURES,
    Combination,
    apply_temperature,
    fit_temperature,
    fit_weights,
    geometric_mean,
    likelihoods,
    log_loss,
)
from scanprior.evaluation.labels import Task

TASKS: tuple[Task, ...] = ("multiclass", "multilabel")
Made = tuple[np.ndarray, np.ndarray]


def made(task: Task, seed: int, members: int, images: int, classes: int, gaps: bool = True) -> Made:
    """Return probabilities (K, N, C) of members of unlike skill and confidence, and truth (N, C)."""
    draw = np.random.default_rng(seed)
    if task == "multiclass":
        truth = np.eye(classes)[draw.integers(classes, size=images)]
    else:
        truth = (draw.random((images, classes)) < 0.3).astype(float)
    skill, confidence = draw.uniform(0, 3, (2, members, 1, 1))
    logits = confidence * (skill * (truth - 0.5) + draw.normal(size=(members, images, classes)))
    found = softmax(logits, axis=-1) if task == "multiclass" else expit(logits)
    if gaps:
        unknown = draw.random(images) < 0.2 if task == "multiclass" else draw.random(truth.shape) < 0.2
        unknown[0] = False
        truth[unknown] = np.nan
    return found, truth


@st.composite
def ensembles(draw: st.DrawFn) -> tuple[Task, np.ndarray, np.ndarray]:
    task = draw(st.sampled_from(TASKS))
    number = st.integers(2, 5)
    found, truth = made(
        task, draw(st.integers(0, 10_000)), draw(number), draw(st.integers(2, 40)), draw(number)
    )
    return task, found, truth


def losses(found: np.ndarray, truth: np.ndarray, task: Task) -> np.ndarray:
    return np.array([log_loss(member, truth, task) for member in found])


@given(ensembles(), st.sampled_from(METHODS))
@settings(deadline=None, max_examples=60)
def test_the_result_is_a_probability_between_the_members(
    case: tuple[Task, np.ndarray, np.ndarray], method: str
) -> None:
    task, found, truth = case
    combination = Combination.fit(method, found, truth, task)  # type: ignore[arg-type]
    together = combination(found, task)
    assert together.shape == found.shape[1:] and (together >= 0).all() and (together <= 1 + 1e-12).all()
    if task == "multiclass":
        np.testing.assert_allclose(together.sum(axis=1), 1, atol=1e-9)
    used = combination.tempered(found, task)
    if method != "geometric" or task == "multilabel":
        assert (together >= used.min(axis=0) - 1e-9).all() and (together <= used.max(axis=0) + 1e-9).all()
    assert Combination.of_card(combination.card()) == combination


@given(ensembles(), st.sampled_from(["mean", "geometric", "weighted"]))
@settings(deadline=None, max_examples=40)
def test_equal_members_are_the_member(case: tuple[Task, np.ndarray, np.ndarray], method: str) -> None:
    task, found, truth = case
    same = np.repeat(found[:1], 3, axis=0)
    together = Combination.fit(method, same, truth, task)(same, task)  # type: ignore[arg-type]
    np.testing.assert_allclose(together, found[0], atol=1e-9)
    calibrated = Combination.fit("calibrated", same, truth, task)
    assert calibrated.temperatures is not None and len(set(calibrated.temperatures)) == 1
    alone = apply_temperature(found[0], calibrated.temperatures[0], task)
    np.testing.assert_allclose(calibrated(same, task), alone, atol=1e-12)


@given(ensembles(), st.sampled_from(METHODS), st.randoms(use_true_random=False))
@settings(deadline=None, max_examples=60)
def test_the_order_of_members_changes_nothing(
    case: tuple[Task, np.ndarray, np.ndarray], method: str, random: object
) -> None:
    task, found, truth = case
    order = list(range(len(found)))
    random.shuffle(order)  # type: ignore[attr-defined]
    one = Combination.fit(method, found, truth, task)(found, task)  # type: ignore[arg-type]
    other = Combination.fit(method, found[order], truth, task)(found[order], task)  # type: ignore[arg-type]
    if method == "weighted":  # several weights may be equally good: the loss is what is equal
        assert log_loss(one, truth, task) == pytest.approx(log_loss(other, truth, task), abs=1e-6)
    else:
        np.testing.assert_allclose(one, other, atol=1e-12)


@given(ensembles())
@settings(deadline=None, max_examples=60)
def test_a_temperature_never_raises_the_loss_and_none_near_it_is_better(
    case: tuple[Task, np.ndarray, np.ndarray],
) -> None:
    task, found, truth = case
    for member in found:
        temperature = fit_temperature(member, truth, task)
        best = log_loss(apply_temperature(member, temperature, task), truth, task)
        assert best <= log_loss(member, truth, task)
        for other in (0.9 * temperature, 1.1 * temperature):
            if TEMPERATURES[0] <= other <= TEMPERATURES[1]:
                assert best <= log_loss(apply_temperature(member, other, task), truth, task) + 1e-9


@given(ensembles())
@settings(deadline=None, max_examples=60)
def test_weights_lie_on_the_simplex_and_are_the_best(case: tuple[Task, np.ndarray, np.ndarray]) -> None:
    task, found, truth = case
    weights = fit_weights(found, truth, task)
    assert (weights >= 0).all() and weights.sum() == pytest.approx(1, abs=1e-12)
    best = log_loss(np.einsum("k,knc->nc", weights, found), truth, task)
    assert best <= log_loss(found.mean(axis=0), truth, task) + 1e-12
    assert best <= losses(found, truth, task).min() + 1e-6
    # The conditions of Karush, Kuhn and Tucker: no member would gain from more weight.
    given_to = likelihoods(found, truth, task).clip(1e-12)
    assert (given_to / (weights @ given_to)).mean(axis=1).max() <= 1 + 1e-2


@pytest.mark.parametrize("task", TASKS)
def test_the_loss_is_that_of_scikit_learn(task: Task) -> None:
    found, truth = made(task, 3, 1, 50, 4)
    if task == "multiclass":
        known = ~np.isnan(truth[:, 0])
        expected = reference_log_loss(truth[known].argmax(1), found[0][known], labels=range(4))
    else:
        known = ~np.isnan(truth)
        expected = reference_log_loss(truth[known], found[0][known])
    assert log_loss(found[0], truth, task) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("task", TASKS)
def test_geometric_mean_is_that_of_the_logits(task: Task) -> None:
    logits = np.random.default_rng(5).normal(scale=3, size=(3, 20, 4))
    found = softmax(logits, axis=-1) if task == "multiclass" else expit(logits)
    mean = logits.mean(axis=0)
    expected = softmax(mean, axis=-1) if task == "multiclass" else expit(mean)
    np.testing.assert_allclose(geometric_mean(found, task), expected, atol=1e-9)


@pytest.mark.parametrize("task", TASKS)
def test_a_known_temperature_is_found(task: Task) -> None:
    draw = np.random.default_rng(6)
    logits = draw.normal(scale=2, size=(20_000, 3))
    if task == "multiclass":
        right = (softmax(logits, axis=1).cumsum(axis=1) < draw.random((len(logits), 1))).sum(axis=1)
        truth, found = np.eye(3)[right], softmax(2.5 * logits, axis=1)
    else:
        truth, found = (draw.random(logits.shape) < expit(logits)).astype(float), expit(2.5 * logits)
    assert fit_temperature(found, truth, task) == pytest.approx(2.5, rel=0.05)


@pytest.mark.parametrize("task", TASKS)
def test_certain_members_stay_finite(task: Task) -> None:
    truth = np.eye(2)[[0, 1, 0]]
    found = np.stack([truth, 1 - truth, np.full((3, 2), 0.5)])
    for method in METHODS:
        assert np.isfinite(Combination.fit(method, found, truth, task)(found, task)).all()
    assert fit_weights(found, truth, task)[0] == pytest.approx(1, abs=1e-6)
    assert fit_temperature(found[0], truth, task) == 1.0
    assert fit_temperature(found[1], truth, task) == TEMPERATURES[1]


def test_findings_that_single_precision_rounds_to_certain_count_like_their_opposites() -> None:
    logits = np.array([[[17.5], [-17.5]], [[-2.0], [2.0]]], dtype=np.float32)
    found = (1 / (1 + np.exp(-logits))).astype(np.float32).astype(np.float64)
    assert found[0, 0, 0] == 1.0 and found[0, 1, 0] > 0
    yes, no = geometric_mean(found, "multilabel")[:, 0]
    assert yes == pytest.approx(1 - no, abs=1e-9)
    assert yes == pytest.approx(expit((16.6 - 2) / 2), abs=1e-4)
    truth = np.array([[0.0], [1.0]])
    assert log_loss(found[0], truth, "multilabel") == pytest.approx(24 * np.log(2), rel=1e-6)
