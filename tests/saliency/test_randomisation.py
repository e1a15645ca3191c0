"""The sanity check: maps that follow the weights change with them, and others are found out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from saliency.made import VIT, classifier, images, patches, trained
from scanprior.saliency import METHODS, Method, likeness, randomised_maps, structural_similarity
from scanprior.tasks.classify import Classifier


@pytest.fixture(scope="module")
def model() -> Classifier:
    return trained(VIT, 32, 8, 80)


def check(*arguments, **settings) -> list[dict[str, Any]]:
    return likeness(randomised_maps(*arguments, **settings))


def by_stage(stages, value: str = "spearman") -> dict[str, float]:
    return {stage["stage"]: stage[value] for stage in stages}


@pytest.mark.parametrize("method", ["gradient_attention", "occlusion"])
def test_maps_of_a_trained_model_follow_its_weights(model: Classifier, method: str) -> None:
    shown, before = patches(12, 32, 8, seed=2)[0], {n: w.clone() for n, w in model.state_dict().items()}
    result = check(model, shown, method)
    found = by_stage(result)
    assert list(found) == ["head", "last block", "all"]
    assert abs(found["all"]) < 0.4 and by_stage(result, "ssim")["all"] < 0.4
    counts = by_stage(result, "parameters")
    head = sum(weight.numel() for name, weight in model.named_parameters() if "encoder" not in name)
    assert counts["head"] == head and sum(counts.values()) == sum(p.numel() for p in model.parameters())
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    assert check(model, shown, method) == result  # the same seed
    assert by_stage(check(model, shown, method, seed=1)) != found


def test_rollout_knows_nothing_of_the_head(model: Classifier) -> None:
    found = by_stage(check(model, patches(6, 32, 8, seed=2)[0], "attention_rollout"))
    assert found["head"] == pytest.approx(1) and found["all"] < 0.9


def test_a_method_that_looks_for_edges_is_found_out(model: Classifier, monkeypatch) -> None:
    def edges(model: Classifier, shown: torch.Tensor, classes: torch.Tensor | None) -> torch.Tensor:
        return shown[:, 0].diff(dim=1, prepend=shown[:, 0, :1]).abs()

    monkeypatch.setitem(METHODS, "edges", Method(edges, lambda model: None, "edges"))
    result = check(model, patches(6, 32, 8, seed=2)[0], "edges")
    assert list(by_stage(result).values()) == pytest.approx([1, 1, 1])


def test_maps_of_nothing_are_not_compared() -> None:
    model = classifier(VIT)
    torch.nn.init.zeros_(model.head.linear.weight)
    stages = check(model, images(2, 32), "gradient_attention")
    assert all(stage["compared"] == 0 and stage["spearman"] is None for stage in stages)


def test_a_head_without_weights_has_no_stage() -> None:
    result = check(classifier(VIT, head="knn"), images(2, 32))
    assert list(by_stage(result)) == ["last block", "all"]


def test_structural_similarity_is_that_of_the_paper() -> None:
    draws = np.random.default_rng(0)
    x, y = draws.random((14, 12)).astype(np.float32), draws.random((14, 12)).astype(np.float32)
    y = 0.5 * x + 0.5 * y
    offsets = np.arange(-5, 6)
    kernel = np.exp(-np.add.outer(offsets**2, offsets**2) / (2 * 1.5**2))
    kernel /= kernel.sum()
    wide = [np.pad(each.astype(np.float64), 5, mode="symmetric") for each in (x, y)]
    values = []
    for row in range(14):
        for column in range(12):
            a, b = (each[row : row + 11, column : column + 11] for each in wide)
            mean_a, mean_b = (kernel * a).sum(), (kernel * b).sum()
            var_a, var_b = (kernel * (a - mean_a) ** 2).sum(), (kernel * (b - mean_b) ** 2).sum()
            both = (kernel * (a - mean_a) * (b - mean_b)).sum()
            top = (2 * mean_a * mean_b + 0.01**2) * (2 * both + 0.03**2)
            values.append(top / ((mean_a**2 + mean_b**2 + 0.01**2) * (var_a + var_b + 0.03**2)))
    assert structural_similarity(x, y) == pytest.approx(np.mean(values), abs=1e-9)
    assert structural_similarity(x, x) == pytest.approx(1)
