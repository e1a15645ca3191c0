"""Saliency methods against independent computations, and what they leave behind."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from captum.attr import LayerActivation, LayerAttribution, LayerGradCam, LayerGradientXActivation
from torch import Tensor
from torch.nn import functional as F

from saliency.made import DEIT, VIT, classifier, images, patches, trained
from scanprior.errors import ConfigError
from scanprior.evaluation import energy_inside, pointing_game
from scanprior.saliency import (
    METHODS,
    attention_rollout,
    choose_method,
    gradcam,
    gradient_attention,
    layercam,
    occlusion,
    saliency_maps,
)
from scanprior.tasks.classify import Classifier

CONV = {"name": "test_convnext"}
RESNET = {"name": "test_resnet"}


def largest_one(maps: Tensor) -> Tensor:
    return maps / maps.amax(dim=(1, 2), keepdim=True)


# Grad-CAM


@pytest.mark.parametrize("kind", ["multiclass", "multilabel"])
def test_gradcam_is_that_of_captum(kind) -> None:
    model, shown = classifier(CONV, 96, kind), images(3, 96)
    chosen = torch.tensor([0, 2, 1])
    theirs = LayerGradCam(model.logits, model.encoder.net.stages[-1]).attribute(
        shown, target=chosen, relu_attributions=True
    )
    theirs = LayerAttribution.interpolate(theirs, (96, 96), "bilinear")[:, 0].detach()
    torch.testing.assert_close(gradcam(model, shown, chosen), largest_one(theirs), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("encoder", "size", "layer"),
    [(RESNET, 96, "layer3"), (CONV, 64, "stages.1"), ({"name": "test_efficientnet"}, 96, "blocks.3")],
)
def test_layercam_is_the_deepest_map_of_enough_cells(encoder, size, layer) -> None:
    """Weighted cell by cell with the gradients above 0, which captum's products of both are divided by to find."""
    model, shown = classifier(encoder, size), images(3, size)
    chosen, module = torch.tensor([0, 2, 1]), model.encoder.net.get_submodule(layer)
    activations = LayerActivation(model.logits, module).attribute(shown).detach()
    products = LayerGradientXActivation(model.logits, module).attribute(shown, target=chosen).detach()
    assert min(activations.shape[2:]) >= 5
    weighted = torch.where(products * activations > 0, products, 0.0).sum(dim=1, keepdim=True).relu()
    theirs = LayerAttribution.interpolate(weighted, (size, size), "bilinear")[:, 0]
    torch.testing.assert_close(layercam(model, shown, chosen), largest_one(theirs), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("task", [{}, {"head": "ordinal"}, {"pooling": "attention"}])
def test_gradcam_weights_are_finite_differences(task) -> None:
    model, shown = classifier(RESNET, 64, **task).double(), images(1, 64).double()
    with torch.no_grad():
        final, maps = model.encoder.final_map(shown)

        def score(change: Tensor) -> Tensor:
            return model.logits_of(model.encoder.features_of(final + change, maps))[0, 1]

        step, weights = 1e-4, []
        for channel in range(final.shape[1]):
            change = torch.zeros_like(final)
            change[:, channel] = step  # all cells together: the sum of their slopes
            weights.append((score(change) - score(-change)) / (2 * step) / final[0, 0].numel())
        cells = (torch.stack(weights)[None, :, None, None] * final).sum(1, keepdim=True).relu()
        wanted = F.interpolate(cells, (64, 64), mode="bilinear")[:, 0].float()
    found = gradcam(model, shown, torch.tensor([1]))
    torch.testing.assert_close(found, largest_one(wanted), rtol=1e-3, atol=1e-3)  # logits of CORN are float32


# attention


def attention_of(model: Classifier, shown: Tensor) -> list[np.ndarray]:
    """Return the attention (B, heads, T, T) of each block by another way: with timm's own steps, at its dropout."""
    kept: list[np.ndarray] = []
    blocks = model.encoder.net.blocks
    hooks = [
        b.attn.attn_drop.register_forward_hook(lambda m, i, out: kept.append(out.numpy())) for b in blocks
    ]
    before = [block.attn.fused_attn for block in blocks]
    for block in blocks:
        block.attn.fused_attn = False
    with torch.no_grad():
        model.logits(shown)
    for block, hook, fused in zip(blocks, hooks, before, strict=True):
        block.attn.fused_attn = fused
        hook.remove()
    return kept


@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_rollout_is_the_product_of_the_attention_matrices(pool) -> None:
    model, shown = classifier({**VIT, "pool": pool, "depth": 3}), images(2, 32)
    product = np.broadcast_to(np.eye(17), (2, 17, 17))
    for attention in attention_of(model, shown):
        product = (0.5 * attention.mean(axis=1) + 0.5 * np.eye(17)) @ product
    moved = product - 0.5**3 * np.eye(
        17
    )  # the residual connections alone reach all patches of an average alike
    row = product[:, 0, 1:] if pool == "cls" else moved[:, 1:, 1:].mean(axis=1)
    grid = torch.from_numpy(row.reshape(2, 1, 4, 4)).float()
    wanted = largest_one(F.interpolate(grid, (32, 32), mode="bilinear")[:, 0])
    torch.testing.assert_close(attention_rollout(model, shown), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_gradient_attention_is_the_product_of_weighted_matrices(pool) -> None:
    """Its slopes by finite differences of the logit, in a network of one block and one head."""
    model = classifier({**VIT, "pool": pool, "depth": 1, "num_heads": 1}).double()
    shown, block = images(1, 32).double(), model.encoder.net.blocks[0]
    matrix = torch.from_numpy(attention_of(model, shown)[0])
    with torch.no_grad():
        tokens = model.encoder.net._pos_embed(model.encoder.net.patch_embed(shown))
        value = block.attn.qkv(block.norm1(tokens)).chunk(3, dim=-1)[2]

        def tokens_out(attention: Tensor) -> Tensor:
            x = tokens + block.attn.proj(attention[:, 0] @ value)
            return model.encoder.net.norm(x + block.mlp(block.norm2(x)))

        def score(final: Tensor) -> Tensor:
            pooled = final[:, 0] if pool == "cls" else final[:, 1:].mean(1)
            return model.head(pooled)[0, 2]

        assert torch.allclose(score(tokens_out(matrix)), model.logits(shown)[0, 2], atol=1e-5)

        def slope(function, at: Tensor) -> Tensor:
            found, step = torch.zeros_like(at).flatten(), 1e-4
            for place in range(at.numel()):
                change = torch.zeros_like(at).flatten()
                change[place] = step
                change = change.view_as(at)
                found[place] = (function(at + change) - function(at - change)) / (2 * step)
            return found.view_as(at)

        weighted = (matrix * slope(lambda a: score(tokens_out(a)), matrix)).clamp(min=0)[0, 0]
        row = weighted[0] if pool == "cls" else weighted[1:].mean(0)
    wanted = largest_one(F.interpolate(row[1:].reshape(1, 1, 4, 4), (32, 32), mode="bilinear")[:, 0]).float()
    found = gradient_attention(model, shown, torch.tensor([2]))
    torch.testing.assert_close(found, wanted, rtol=1e-2, atol=1e-3)


def test_maps_of_a_batch_are_those_of_its_images(monkeypatch) -> None:
    model, shown = classifier(VIT), images(4, 32)
    whole = gradient_attention(model, shown)
    monkeypatch.setattr("scanprior.saliency.attention._BYTES", 1)  # one image at a time
    torch.testing.assert_close(gradient_attention(model, shown), whole, rtol=1e-3, atol=1e-4)


# occlusion


@pytest.mark.parametrize("cover", ["image", "zero"])
def test_occlusion_is_a_loop_over_windows(cover) -> None:
    model, shown, chosen = classifier(VIT), images(2, 32), torch.tensor([2, 0])
    found = occlusion(model, shown, chosen, window=12, stride=6, cover=cover, batch_size=5)
    for row in range(2):
        total, times = torch.zeros(32, 32), torch.zeros(32, 32)
        with torch.no_grad():
            before = model.logits(shown[row : row + 1])[0, chosen[row]]
            for y in range(0, 26, 6):  # the last window ends at the edge
                for x in range(0, 26, 6):
                    covered = shown[row : row + 1].clone()
                    covered[..., y : y + 12, x : x + 12] = shown[row].mean() if cover == "image" else 0
                    total[y : y + 12, x : x + 12] += before - model.logits(covered)[0, chosen[row]]
                    times[y : y + 12, x : x + 12] += 1
        wanted = (total / times).clamp(min=0)
        torch.testing.assert_close(found[row], wanted / wanted.max(), rtol=1e-3, atol=1e-3)


def test_windows_that_leave_gaps_are_refused() -> None:
    with pytest.raises(ConfigError, match="a window of 4 px that moves by 5 px does not cover"):
        occlusion(classifier(VIT), images(1, 32), window=4, stride=5)


# what all have in common

SIGLIP = {**VIT, "name": "vit_base_patch16_siglip_224"}  # it pools by attention itself
ALL = [
    (CONV, 64, {}), (VIT, 32, {}), ({**VIT, "pool": "mean"}, 32, {}), (SIGLIP, 32, {}), (VIT, 32, {"head": "knn"}),
]  # fmt: skip
MULTICLASS = [
    (CONV, 64, {"pooling": "attention"}), (VIT, 32, {"pooling": "attention"}), (SIGLIP, 32, {"pooling": "attention"}),
    (VIT, 32, {"pooling": "transformer", "transformer": DEIT}), (VIT, 32, {"head": "ordinal"}),
]  # fmt: skip
KINDS = [("multiclass", *each) for each in [*ALL, *MULTICLASS]] + [("multilabel", *each) for each in ALL]


@pytest.mark.parametrize(("kind", "encoder", "size", "task"), KINDS)
def test_every_method_gives_maps_and_leaves_the_model_as_it_was(kind, encoder, size, task) -> None:
    model, shown = classifier(encoder, size, kind, **task), images(2, size)
    expected = model.predict([shown])
    model.train()
    model.encoder.net.eval()  # a mixture, as of a partly frozen encoder
    for number, weight in enumerate(model.parameters()):
        weight.requires_grad_(bool(number % 2))

    def state() -> list[object]:
        modules = [(module.training, getattr(module, "fused_attn", None)) for module in model.modules()]
        hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
        return [modules, hooks, [(w.requires_grad, w.grad) for w in model.parameters()]]

    before = state()
    fitting = [name for name, method in METHODS.items() if method.why_not(model) is None]
    assert fitting[-1] == "occlusion"
    chosen = "layercam" if "layercam" in fitting else fitting[0]  # the last map has 2 x 2 cells
    assert choose_method(model) == chosen
    assert (len(fitting) == 1) == (task.get("head") == "knn")
    for name in fitting:
        maps = saliency_maps(model, shown, None, name)
        assert maps.shape == (2, size, size) and maps.dtype == torch.float32 and not maps.requires_grad
        assert maps.min() >= 0 and maps.amax(dim=(1, 2)).eq(1).logical_or(maps.amax(dim=(1, 2)).eq(0)).all()
        assert maps.any(), name
        assert torch.equal(maps, saliency_maps(model, shown, torch.from_numpy(expected.argmax(1)), name))
        assert state() == before, name
    assert shown.grad is None and not shown.requires_grad
    np.testing.assert_array_equal(model.predict([shown]), expected)


def test_frozen_weights_change_no_map() -> None:
    for encoder, size, name in (
        (VIT, 32, "gradient_attention"),
        (CONV, 64, "gradcam"),
        (CONV, 64, "layercam"),
    ):
        model, shown = classifier(encoder, size), images(2, size)
        free = saliency_maps(model, shown, None, name)
        model.requires_grad_(False)
        torch.testing.assert_close(saliency_maps(model, shown, None, name), free)


def test_what_says_nothing_gives_zeros() -> None:
    model = classifier(VIT)
    torch.nn.init.zeros_(model.head.linear.weight)
    for name in ("gradient_attention", "occlusion"):
        assert not saliency_maps(model, images(2, 32), None, name).any()


def test_methods_that_do_not_fit_say_which_do() -> None:
    with pytest.raises(ConfigError, match=r"vit_tiny.*has no pyramid.*use gradient_attention"):
        choose_method(classifier(VIT), "gradcam")
    with pytest.raises(ConfigError, match="test_convnext is no plain vision transformer; use gradcam"):
        choose_method(classifier(CONV, 64), "gradient_attention")
    with pytest.raises(ConfigError, match=r"neighbours of a k-NN head vote.*use occlusion"):
        choose_method(classifier(VIT, head="knn"), "attention_rollout")
    with pytest.raises(ConfigError, match="did you mean gradcam"):
        choose_method(classifier(VIT), "gradcamm")
    xcit = classifier({"name": "xcit_nano_12_p16_224"}, 32)
    with pytest.raises(ConfigError, match="classifies a class token, which is no cell"):
        choose_method(xcit, "gradcam")
    assert choose_method(xcit) == "occlusion"


def test_auto_takes_a_finer_map_where_the_last_is_coarse() -> None:
    assert choose_method(classifier(RESNET, 64)) == "layercam"
    assert choose_method(classifier(RESNET, 160)) == "gradcam"


PATCHES = [
    (VIT, 32, 8, 80, "gradient_attention", {}),
    ({**VIT, "pool": "mean"}, 32, 8, 60, "gradient_attention", {}),
    (VIT, 32, 8, 80, "gradient_attention", {"pooling": "attention"}),
    (VIT, 32, 8, 80, "occlusion", {}),
    ({"name": "test_resnet"}, 96, 32, 24, "gradcam", {}),
    ({"name": "test_resnet"}, 96, 32, 24, "layercam", {}),
]


@pytest.mark.parametrize(("encoder", "size", "side", "steps", "method", "task"), PATCHES)
def test_maps_peak_on_the_patch_that_makes_the_class(encoder, size, side, steps, method, task) -> None:
    model = trained(encoder, size, side, steps, **task)
    shown, labels, masks = patches(40, size, side, seed=2)
    assert (model.predict([shown]).argmax(1) == labels.numpy()).mean() > 0.9
    found = saliency_maps(model, shown[1::2], torch.ones(20, dtype=torch.int64), method).numpy()
    inside = list(masks[1::2].numpy())
    times = 1.5 if method == "layercam" else 3  # it spreads more
    hits, energy = pointing_game(list(found), inside), energy_inside(list(found), inside)
    assert hits.mean() >= 0.8 and energy.mean() > times * (side / size) ** 2
