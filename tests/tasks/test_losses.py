"""Focal losses and class weights against torchvision, scikit-learn and the formulas of the papers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.utils.class_weight import compute_class_weight
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import sigmoid_focal_loss

from scanprior import keyed
from scanprior.config import build
from scanprior.encoders import EncoderConfig, create_encoder
from scanprior.errors import ConfigError
from scanprior.tasks.balance import BETA, balance_weights
from scanprior.tasks.classify import Classifier, ClassifyConfig, probabilities
from scanprior.tasks.heads import Kind
from scanprior.tasks.losses import focal_binary_cross_entropy, focal_cross_entropy
from scanprior.tasks.measure import measure
from scanprior.tasks.probe import fit_linear_probe

NAN = float("nan")


def drawn(*shape: int, key: int = 0) -> Tensor:
    return 3 * torch.randn(*shape, generator=keyed.generator(key))


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0, 5.0])
def test_focal_loss_of_findings_is_that_of_torchvision(gamma: float) -> None:
    logits, target = drawn(40, 3), (drawn(40, 3, key=1) > 0).float()
    found = focal_binary_cross_entropy(logits, target, torch.ones(3), gamma)
    torch.testing.assert_close(found, sigmoid_focal_loss(logits, target, alpha=-1, gamma=gamma))
    # A weight of the positives is alpha / (1 - alpha), but for a factor.
    weighted = focal_binary_cross_entropy(logits, target, torch.full((3,), 0.25 / 0.75), gamma)
    wanted = sigmoid_focal_loss(logits, target, alpha=0.25, gamma=gamma)
    torch.testing.assert_close(weighted * 0.75, wanted)


@pytest.mark.parametrize("gamma", [0.0, 1.0, 2.0])
def test_focal_loss_of_classes_is_the_formula_image_by_image(gamma: float) -> None:
    logits, weights = drawn(30, 4), torch.tensor([0.5, 1.0, 2.0, 4.0])
    target = torch.arange(30) % 4
    found = focal_cross_entropy(logits, target, weights, 0.0, gamma)
    for row, (values, number) in enumerate(zip(logits.double(), target, strict=True)):
        p = float(values.exp()[number] / values.exp().sum())
        wanted = -float(weights[number]) * (1 - p) ** gamma * np.log(p)
        assert float(found[row]) == pytest.approx(wanted, rel=1e-4, abs=1e-9)


def test_focal_loss_without_focus_is_the_smoothed_cross_entropy() -> None:
    logits, weights, target = drawn(30, 4), torch.tensor([0.5, 1.0, 2.0, 4.0]), torch.arange(30) % 4
    found = focal_cross_entropy(logits, target, weights, 0.1, 0.0)
    wanted = F.cross_entropy(logits, target, weights, label_smoothing=0.1, reduction="none")
    torch.testing.assert_close(found, wanted)


def test_focal_losses_of_soft_labels_vanish_at_the_label() -> None:
    soft = torch.tensor([[0.7, 0.2]])
    at, beside = (
        focal_binary_cross_entropy(x, soft, torch.ones(2), 2.0) for x in (soft.logit(), drawn(1, 2))
    )
    assert (at < 1e-9).all() and (beside > 1e-3).all()
    shares = torch.tensor([[0.9, 0.05, 0.05]])  # 0.85 and a third of 0.15
    ones, number = torch.ones(3), torch.tensor([0])
    assert float(focal_cross_entropy(shares.log(), number, ones, 0.15, 2.0)) < 1e-9
    assert float(focal_cross_entropy(drawn(1, 3), number, ones, 0.15, 2.0)) > 1e-3


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_gradients_stay_finite_where_nothing_is_left_to_learn(gamma: float) -> None:
    certain = torch.tensor([[200.0, -200.0], [-200.0, 200.0]], requires_grad=True)
    findings = focal_binary_cross_entropy(certain, torch.eye(2), torch.ones(2), gamma).sum()
    classes = focal_cross_entropy(certain, torch.tensor([0, 1]), torch.ones(2), 0.0, gamma).sum()
    (gradient,) = torch.autograd.grad(findings + classes, certain)
    assert gradient.isfinite().all() and float((findings + classes).detach()) < 1e-6


def classifier(kind: Kind, weights: Tensor | None = None, **settings: object) -> Classifier:
    config = EncoderConfig.model_validate(
        {"name": "vit_tiny_patch16_224", "patch_size": 16, "depth": 1, "embed_dim": 32, "num_heads": 2}
    )
    with keyed.seeded(3):
        encoder = create_encoder(config, size=32, channels=1, seed=1)
        return Classifier(encoder, ["a", "b", "c"], kind, ClassifyConfig.model_validate(settings), weights)


def batch(target: Tensor) -> dict[str, Tensor]:
    images = torch.randn(1, len(target), 1, 32, 32, generator=keyed.generator(5))
    return {"views": images, "target": target, "position": torch.arange(len(target))}


@pytest.mark.parametrize("kind", ["multiclass", "multilabel"])
def test_a_focal_classifier_takes_the_weighted_mean_of_what_has_labels(kind: Kind) -> None:
    weights = torch.tensor([0.5, 1.0, 2.0])
    model = classifier(kind, weights, loss="focal", focal_gamma=1.5)
    findings = torch.tensor([[1.0, NAN, 0.0], [NAN, NAN, NAN], [0.0, 1.0, 0.7]])
    given = batch(torch.tensor([0, 2, 2]) if kind == "multiclass" else findings)
    out = model(given)
    logits = model.logits(given["views"][0])
    if kind == "multiclass":
        each = focal_cross_entropy(logits, given["target"], weights, 0.0, 1.5)
        total = weights[given["target"]].sum()
    else:
        each = focal_binary_cross_entropy(logits, findings.nan_to_num(), weights, 1.5)[~findings.isnan()]
        total = torch.tensor(5.0)
    torch.testing.assert_close(out["loss"], each.sum() / total)
    torch.testing.assert_close(out["weight"], total)
    out["loss"].backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.head.parameters())
    assert any(p.grad is not None and (p.grad != 0).any() for p in model.encoder.parameters())
    parts = [
        model({n: v[:, rows] if n == "views" else v[rows] for n, v in given.items()})
        for rows in (slice(0, 2), slice(2, 3))
    ]
    together = sum(part["loss"] * part["weight"] for part in parts) / total
    torch.testing.assert_close(torch.as_tensor(together), out["loss"])  # whatever the micro-batches


def test_balanced_weights_are_those_of_scikit_learn() -> None:
    targets = np.array([0] * 50 + [1] * 20 + [3] * 5, dtype=np.float64)  # class 2 has no image
    wanted = compute_class_weight("balanced", classes=np.array([0, 1, 3]), y=targets)
    found = balance_weights(targets, "multiclass", 4).numpy()
    np.testing.assert_allclose(found[[0, 1, 3]], wanted, rtol=1e-6)
    findings = np.array([[1.0, NAN]] * 3 + [[0.0, 1.0]] * 9)
    low, high = compute_class_weight("balanced", classes=np.array([0.0, 1.0]), y=findings[:, 0])
    assert balance_weights(findings, "multilabel", 2).tolist() == pytest.approx([high / low, 1.0])


def test_effective_weights_count_each_image_a_little_less() -> None:
    """The effective number is the sum of the powers of beta, image by image."""
    counts = [5000, 400, 30]
    targets = np.repeat(np.arange(3.0), counts)
    numbers = np.array([sum(BETA**j for j in range(count)) for count in counts])
    wanted = (1 / numbers) / (1 / numbers).mean()
    np.testing.assert_allclose(balance_weights(targets, "multiclass", 3, "effective"), wanted, rtol=1e-5)
    plain = balance_weights(targets, "multiclass", 3).numpy()
    assert wanted[2] / wanted[0] < plain[2] / plain[0]  # less is made of the rare class
    findings = np.concatenate([np.ones((30, 1)), np.zeros((400, 1)), np.full((70, 1), NAN)])
    found = balance_weights(findings, "multilabel", 1, "effective")
    np.testing.assert_allclose(found, [numbers[1] / numbers[2]], rtol=1e-5)
    absent = balance_weights(np.array([0.0, 0, 0, 2]), "multiclass", 3, "effective").numpy()
    assert absent[[0, 2]].mean() == pytest.approx(1)
    assert balance_weights(np.array([[1.0], [1.0]]), "multilabel", 1, "effective").tolist() == [1.0]


@pytest.mark.parametrize("kind", ["multiclass", "multilabel"])
@pytest.mark.parametrize("weights", ["effective", "none"])
def test_a_linear_probe_is_weighted_logistic_regression(kind: Kind, weights: str) -> None:
    features = torch.randn(600, 32, generator=keyed.generator(1))
    rank = (features[:, 0] + features[:, 1]).argsort().argsort().numpy()
    classes = (rank > 400) + 1 * (rank > 580)
    findings = np.stack([rank > 560, rank > 300, rank > 100], axis=1).astype(np.float64)
    targets = classes.astype(np.float64) if kind == "multiclass" else findings
    model = classifier(kind, class_weights=weights)
    fit_linear_probe(model, features, targets, features[:0], targets[:0], measure)
    found = probabilities(model.head(features), kind).detach().numpy()
    normed = F.layer_norm(features.double(), (32,)).numpy()
    scaled = (normed - normed.mean(0)) / normed.std(0)

    def share(counts: np.ndarray) -> dict[int, float] | None:
        numbers = (1 - BETA ** counts.astype(float)) / (1 - BETA)
        scale = (1 / numbers).mean()
        return None if weights == "none" else {n: 1 / number / scale for n, number in enumerate(numbers)}

    def fitted(wanted: np.ndarray) -> np.ndarray:
        settings = {"class_weight": share(np.bincount(wanted)), "max_iter": 2000}
        return np.asarray(LogisticRegression(**settings).fit(scaled, wanted).predict_proba(scaled))

    if kind == "multiclass":
        np.testing.assert_allclose(found, fitted(classes), atol=1e-3)
    else:
        for column in range(3):
            wanted = fitted(findings[:, column].astype(np.int64))[:, 1]
            np.testing.assert_allclose(found[:, column], wanted, atol=1e-3)


@pytest.mark.parametrize(
    ("settings", "weighting"),
    [
        ({}, "balanced"),
        ({"class_weights": "effective"}, "effective"),
        ({"class_weights": "none"}, None),
        ({"balance": "none"}, None),
        ({"balance": "sampling", "class_weights": "none"}, None),
    ],
)
def test_which_weights_the_loss_has(settings: dict[str, object], weighting: str | None) -> None:
    assert ClassifyConfig.model_validate(settings).weighting == weighting


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"loss": "focal", "head": "ordinal"}, "loss: 'focal' is not for head=ordinal"),
        ({"loss": "focal", "head": "knn"}, "loss: 'focal' is not for head=knn"),
        ({"class_weights": "effective", "balance": "sampling"}, "class_weights: 'effective' weighs the loss"),
        ({"class_weights": "balanced", "balance": "none"}, "class_weights: 'balanced' weighs the loss"),
        ({"focal_gamma": -1}, "focal_gamma: -1 will not do"),
        ({"classes": ["a", "b", "a"]}, "classes: 'a' is given twice"),
        ({"classes": ["a"]}, "classes: "),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        build(ClassifyConfig, settings)
