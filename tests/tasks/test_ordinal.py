"""The head for classes in an order, against CORN's formulas and on a problem with an order."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import cohen_kappa_score
from torch.nn import functional as F

from scanprior import keyed
from scanprior.errors import ConfigError
from scanprior.evaluation import are_rising
from scanprior.tasks.classify import ClassifyConfig, probabilities
from scanprior.tasks.heads import LinearHead, OrdinalHead
from scanprior.tasks.measure import measure
from scanprior.tasks.ordinal import class_order, ordinal_logits

GRADES = ["none", "mild", "severe"]


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**31), st.integers(1, 7), st.sampled_from([1.0, 10.0, 100.0]))
def test_probabilities_follow_from_the_steps_and_their_order_holds(
    seed: int, steps: int, scale: float
) -> None:
    logits = scale * torch.randn(5, steps, generator=keyed.generator(seed))
    found = probabilities(ordinal_logits(logits), "multiclass").double().numpy()
    step = logits.double().sigmoid().numpy()
    for row in range(5):
        above = [1.0]
        for k in range(steps):
            above.append(above[-1] * step[row, k])  # P(y > k)
        wanted = [above[k] - above[k + 1] for k in range(steps)] + [above[steps]]
        np.testing.assert_allclose(found[row], wanted, atol=1e-5)
    assert found.sum(axis=1) == pytest.approx(np.ones(5), abs=1e-5) and (found >= 0).all()
    passed = found[:, ::-1].cumsum(axis=1)[:, ::-1]
    assert (np.diff(passed, axis=1) <= 1e-7).all()


@pytest.mark.parametrize("weighted", [False, True])
def test_the_loss_is_corns_over_the_images_that_reach_a_step(weighted: bool) -> None:
    weights = torch.tensor([0.5, 1.0, 2.0, 4.0]) if weighted else torch.ones(4)
    steps = torch.randn(20, 3, generator=keyed.generator(1), requires_grad=True)
    target = torch.arange(20) % 4
    total = torch.zeros(())
    for k in range(3):
        reach = target >= k
        higher = (target[reach] > k).float()
        each = F.binary_cross_entropy_with_logits(steps[reach, k], higher, reduction="none")
        total = total + (each * weights[target[reach]]).sum()
    wanted = total / weights[target].sum()
    found = F.cross_entropy(ordinal_logits(steps), target, weights)
    torch.testing.assert_close(found, wanted)
    gradients = [torch.autograd.grad(loss, steps)[0] for loss in (found, wanted)]
    torch.testing.assert_close(*gradients)
    # An image has nothing to say of the steps above its own.
    assert (gradients[0][target == 0][:, 1:].abs() < 1e-7).all()


def test_extreme_steps_give_finite_gradients() -> None:
    steps = torch.tensor([[500.0, -500.0], [-500.0, 500.0]], requires_grad=True)
    F.cross_entropy(ordinal_logits(steps), torch.tensor([0, 2])).backward()
    assert steps.grad is not None and steps.grad.isfinite().all()
    assert ordinal_logits(steps.half()).dtype == torch.float32


def test_the_head_begins_without_a_preference() -> None:
    head = OrdinalHead(8, 5, 0.0)
    with torch.no_grad():
        head.linear.weight.zero_()
    found = probabilities(head(torch.randn(3, 8, generator=keyed.generator(0))), "multiclass")
    torch.testing.assert_close(found, torch.full((3, 5), 0.2))


def fitted(head: LinearHead, features: torch.Tensor, target: torch.Tensor) -> LinearHead:
    optimizer = torch.optim.Adam(head.parameters(), lr=0.1)
    for _ in range(150):
        optimizer.zero_grad()
        F.cross_entropy(head(features), target).backward()
        optimizer.step()
    return head


def test_it_learns_an_order() -> None:
    """Grades are cuts through one noisy direction of the features: nearly as good as who knows the direction."""
    draw = np.random.default_rng(0)
    features = torch.from_numpy(draw.normal(size=(1200, 32))).float()
    signal = F.layer_norm(features, (32,))[:, :4].sum(dim=1).numpy()
    cuts = [-2, 0, 1, 2.5]
    truth = np.digitize(signal + draw.normal(0, 0.4, 1200), cuts)
    with keyed.seeded(0):
        head = fitted(OrdinalHead(32, 5, 0.0), features[:800], torch.from_numpy(truth[:800]))
    found = probabilities(head(features[800:]), "multiclass").detach().double().numpy()
    truth = truth[800:]
    best = cohen_kappa_score(truth, np.digitize(signal[800:], cuts), weights="quadratic")
    values = measure(found, truth.astype(np.float64), "multiclass")
    assert values["quadratic_kappa"] > 0.95 * best > 0.8
    assert (np.abs(found.argmax(axis=1) - truth) <= 1).mean() > 0.97
    wanted = cohen_kappa_score(truth, found.argmax(axis=1), weights="quadratic", labels=range(5))
    assert values["quadratic_kappa"] == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize(
    ("trained", "given", "ordinal", "order"),
    [
        (["0", "1", "10", "2"], None, True, ["0", "1", "2", "10"]),
        (["-1", "0.5", "10.0", "2"], None, True, ["-1", "0.5", "2", "10.0"]),
        (["mild", "none", "severe"], GRADES, True, GRADES),
        (["mild", "none", "severe"], GRADES, False, GRADES),
        (["mild", "none"], None, False, ["mild", "none"]),
    ],
)
def test_where_the_order_comes_from(
    trained: list[str], given: list[str] | None, ordinal: bool, order: list[str]
) -> None:
    assert class_order(trained, set(trained), given, ordinal=ordinal) == order
    ordered = ClassifyConfig(classes=given).ordered(order, "multiclass")
    assert ordered == (given is not None or are_rising(order))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (None, r"task.head: 'ordinal' needs the order of the classes, .* give task.classes in order"),
        (["none", "mild", "grave", "severe"], "task.classes: no image has the label 'grave'"),
        (["none", "mild"], "task.classes: the label 'severe' is not among them"),
    ],
)
def test_an_order_that_is_not_known_is_an_error(given: list[str] | None, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        class_order(sorted(GRADES), set(GRADES), given, ordinal=True)


def test_validation_measures_the_most_probable_class() -> None:
    from sklearn.metrics import balanced_accuracy_score, f1_score

    draw = np.random.default_rng(2)
    found, truth = draw.dirichlet(np.ones(4), 50), draw.integers(0, 4, 50)
    values, called = measure(found, truth.astype(np.float64), "multiclass"), found.argmax(axis=1)
    assert values["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(truth, called), abs=1e-6)
    assert values["macro_f1"] == pytest.approx(f1_score(truth, called, average="macro"), abs=1e-6)
    assert values["kappa"] == pytest.approx(cohen_kappa_score(truth, called), abs=1e-6)
    # Of a class without images there is no mean; all of one class, there is no kappa.
    few = truth < 3
    values = measure(found[few], truth[few].astype(np.float64), "multiclass")
    wanted = f1_score(truth[few], called[few], average="macro", labels=[0, 1, 2])
    assert values["macro_f1"] == pytest.approx(wanted, abs=1e-6)
    certain = measure(np.eye(4)[[1, 1]], np.ones(2), "multiclass")
    assert np.isnan(certain["kappa"]) and np.isnan(certain["quadratic_kappa"])
