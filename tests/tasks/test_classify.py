"""The classification task against plain computations: losses, policies, balance, heads, probes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor
from torch.nn import functional as F

from scanprior import keyed
from scanprior.encoders import Encoder, EncoderConfig, create_encoder
from scanprior.errors import DataError
from scanprior.tasks.balance import balance_weights, sampling_weights
from scanprior.tasks.classify import (
    Classifier,
    ClassifyConfig,
    check_uncertain,
    probabilities,
    resolve_uncertain,
)
from scanprior.tasks.heads import Kind
from scanprior.tasks.measure import measure
from scanprior.tasks.probe import fit_linear_probe, fit_neighbours

CLASSES = ["a", "b", "c"]


def encoder(name: str = "vit_tiny_patch16_224", drop_path: float = 0.0) -> Encoder:
    sizes = {"patch_size": 16, "depth": 2, "embed_dim": 32, "num_heads": 2} if name.startswith("vit") else {}
    config = EncoderConfig.model_validate({"name": name, "drop_path": drop_path, **sizes})
    return create_encoder(config, size=32, channels=1, seed=1)


def classifier(kind: Kind = "multiclass", weights: Tensor | None = None, **settings: object) -> Classifier:
    with keyed.seeded(3):
        return Classifier(
            encoder(), CLASSES, kind, ClassifyConfig.model_validate(settings), weights, bank_images=40
        )


def batch(target: Tensor) -> dict[str, Tensor]:
    images = torch.randn(1, len(target), 1, 32, 32, generator=keyed.generator(5))
    return {"views": images, "target": target, "position": torch.arange(len(target))}


def test_cross_entropy_is_the_weighted_mean_over_images() -> None:
    weights = torch.tensor([0.5, 1.0, 2.0])
    model, given = classifier(weights=weights), batch(torch.tensor([0, 1, 2, 2, 0]))
    out = model(given)
    logits = model.logits(given["views"][0])
    each = torch.stack([-logits[i].log_softmax(0)[t] * weights[t] for i, t in enumerate(given["target"])])
    torch.testing.assert_close(out["loss"], each.sum() / weights[given["target"]].sum())
    assert float(out["weight"]) == pytest.approx(6.0)


def test_findings_without_a_label_take_no_part() -> None:
    nan = float("nan")
    target = torch.tensor([[1.0, nan, 0.0], [nan, nan, nan], [0.0, 1.0, 0.7]])
    model, given = classifier("multilabel"), batch(target)
    out = model(given)
    logits = model.logits(given["views"][0])
    known = [(0, 0), (0, 2), (2, 0), (2, 1), (2, 2)]
    each = [F.binary_cross_entropy_with_logits(logits[place], target[place]) for place in known]
    torch.testing.assert_close(out["loss"], torch.stack(each).mean())
    assert float(out["weight"]) == 5
    nothing = model(batch(torch.full((2, 3), nan)))
    assert float(nothing["loss"]) == 0 and float(nothing["weight"]) == 0


def test_uncertain_labels_follow_their_policy() -> None:
    values = np.array([[1.0, -1.0, 0.0], [-1.0, np.nan, 1.0]])
    draws = np.full((2, 3), 0.5)

    def resolved(policy: str) -> list[float]:
        made = resolve_uncertain(values, ClassifyConfig.model_validate({"uncertain": policy}), draws)
        assert np.array_equal(np.isnan(made[1, 1:2]), [True]) and made[0, 0] == 1 and made[0, 2] == 0
        return [float(made[0, 1]), float(made[1, 0])]

    assert np.isnan(resolved("ignore")).all()
    assert resolved("zeros") == [0.0, 0.0] and resolved("ones") == [1.0, 1.0]
    assert resolved("soft") == pytest.approx([0.7, 0.7])


def test_uncertain_labels_without_a_policy_are_refused() -> None:
    values = np.array([[1.0, -1.0, 0.0], [-1.0, np.nan, 1.0], [-1.0, 0.0, 0.0]])
    names, without = ["edema", "mass", "effusion"], ClassifyConfig.model_validate({})
    with pytest.raises(
        DataError, match=r"-1, which is uncertain \(edema 2, mass 1\).*ignore .*zeros .*ones .*soft"
    ):
        check_uncertain(values, names, without)
    check_uncertain(np.abs(values), names, without)
    check_uncertain(values, names, ClassifyConfig.model_validate({"uncertain": "zeros"}))
    many = np.full((1, 5), -1.0)
    with pytest.raises(DataError, match=r"\(a 1, b 1, c 1 and 2 more findings\)"):
        check_uncertain(many, list("abcde"), without)


def test_balance_gives_every_class_the_same_say() -> None:
    targets = np.array([0] * 6 + [1] * 3 + [2] * 1, dtype=np.float64)
    weights = balance_weights(targets, "multiclass", 3).numpy()
    totals = [weights[number] * (targets == number).sum() for number in range(3)]
    assert totals == pytest.approx([10 / 3] * 3)
    drawn = sampling_weights(targets, "multiclass", 3)
    assert [drawn[targets == number].sum() for number in range(3)] == pytest.approx([1, 1, 1])
    findings = np.array([[1.0, 0, 0], [0, 1, 0], [0, 0, 0], [0, np.nan, 0]])
    assert balance_weights(findings, "multilabel", 3).tolist() == [3.0, 2.0, 1.0]


@pytest.mark.parametrize("kind", ["multiclass", "multilabel"])
def test_probabilities(kind: Kind) -> None:
    logits = torch.tensor([[2.0, 0.0, -1.0]])
    found = probabilities(logits.half(), kind)
    wanted = logits.softmax(1) if kind == "multiclass" else logits.sigmoid()
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)
    assert found.dtype == torch.float32


def test_a_frozen_encoder_gets_no_gradient_and_stays_in_evaluation_mode() -> None:
    model = classifier()
    model.encoder.restrict("none")
    model.train()
    model(batch(torch.tensor([0, 1, 2])))["loss"].backward()
    assert not model.encoder.training and model.head.training
    assert all(p.grad is None for p in model.encoder.parameters())
    assert all(p.grad is not None for p in model.head.parameters())


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "resnet18"])
def test_layer_decay_grows_with_the_distance_from_the_head(name: str) -> None:
    model = Classifier(encoder(name), CLASSES, "multiclass", ClassifyConfig())
    depths = {key: model.layer_depth(key) for key, _ in model.named_parameters()}
    assert depths["head.linear.weight"] == 0
    stem = "patch_embed.proj.weight" if name.startswith("vit") else "conv1.weight"
    assert depths[f"encoder.net.{stem}"] == max(depths.values()) > 2
    if name.startswith("vit"):
        assert depths["encoder.net.blocks.1.mlp.fc1.weight"] < depths["encoder.net.blocks.0.mlp.fc1.weight"]
        assert depths["encoder.net.norm.weight"] == 1


@pytest.mark.parametrize("kind", ["multiclass", "multilabel"])
def test_a_linear_probe_is_logistic_regression(kind: Kind) -> None:
    """The probe's classifier gives the probabilities of scikit-learn's pipeline on the same features."""
    random = np.random.default_rng(0)
    features = random.normal(size=(90, 32)) * 3 + 1
    classes = (features[:, :3] + random.normal(size=(90, 3))).argmax(1)
    findings = (features[:, :3] > 1).astype(np.float64)
    findings[:10, 0] = np.nan
    targets = classes.astype(np.float64) if kind == "multiclass" else findings
    model = classifier(kind)
    tensor = torch.from_numpy(features).float()
    result = fit_linear_probe(model, tensor[:60], targets[:60], tensor[60:], targets[60:], measure)
    found = probabilities(model.head(tensor), kind).detach().numpy()
    normed = F.layer_norm(tensor.double(), (32,)).numpy()
    mean, std = normed[:60].mean(0), normed[:60].std(0)
    scaled = (normed - mean) / std
    settings = {"C": result["strength"], "class_weight": "balanced", "max_iter": 2000}
    if kind == "multiclass":
        wanted = LogisticRegression(**settings).fit(scaled[:60], classes[:60]).predict_proba(scaled)
        np.testing.assert_allclose(found, wanted, atol=1e-4)
    else:
        known = ~np.isnan(findings[:60, 0])
        fitted = LogisticRegression(**settings).fit(scaled[:60][known], findings[:60, 0][known] > 0.5)
        np.testing.assert_allclose(found[:, 0], fitted.predict_proba(scaled)[:, 1], atol=1e-4)
    assert result["selected_value"] > 0.7


def test_two_class_probe_orders_the_classes_rightly() -> None:
    features = torch.randn(60, 32, generator=keyed.generator(1))
    targets = (features[:, 0] > 0).double().numpy()
    model = Classifier(encoder(), ["no", "yes"], "multiclass", ClassifyConfig())
    fit_linear_probe(model, features, targets, features[:0], targets[:0], measure)
    found = probabilities(model.head(features), "multiclass").detach().numpy()
    assert ((found[:, 1] > 0.5) == (targets > 0.5)).mean() > 0.9


def test_neighbours_vote_as_in_scikit_learn() -> None:
    features = torch.randn(40, 32, generator=keyed.generator(2))
    targets = np.arange(40) % 3
    model = classifier(head="knn", neighbours=7)
    fit_neighbours(model, features, targets.astype(np.float64))
    queries = torch.randn(25, 32, generator=keyed.generator(3))
    found = probabilities(model.head(queries), "multiclass").numpy()
    reference = KNeighborsClassifier(
        7, metric="cosine", weights=lambda distance: np.exp((1 - distance) / model.config.temperature)
    ).fit(features.numpy(), targets)
    np.testing.assert_allclose(found, reference.predict_proba(queries.numpy()), atol=1e-3)


def test_drop_path_draws_are_keyed_by_position() -> None:
    with keyed.seeded(3):
        model = Classifier(encoder(drop_path=0.5), CLASSES, "multiclass", ClassifyConfig()).train()
    given = batch(torch.tensor([0, 1, 2, 0]))
    part = {name: value[:, 2:] if name == "views" else value[2:] for name, value in given.items()}
    whole_loss = model(given)["loss"]
    assert torch.equal(whole_loss, model(given)["loss"])
    halves = [
        model({n: v[:, :2] if n == "views" else v[:2] for n, v in given.items()})["loss"],
        model(part)["loss"],
    ]
    torch.testing.assert_close(whole_loss, torch.stack(halves).mean())
