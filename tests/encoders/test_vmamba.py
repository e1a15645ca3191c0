from __future__ import annotations

import math
import re
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from timm.models import group_parameters

from encoders import slow_scan
from scanprior import catalogue
from scanprior.encoders import EncoderConfig, KeyedDropPath, create_encoder, sample_positions
from scanprior.encoders.vmamba import SHAPES, SS2D, Shape, VMamba, checkpoint_filter_fn
from scanprior.engine.optimizer import parameter_groups
from scanprior.engine.settings import EngineConfig
from scanprior.errors import ConfigError, WeightsError
from scanprior.tasks.classify import Classifier, ClassifyConfig
from scanprior.tasks.decoders import make_decoder

SMALL = Shape(16, (1, 2, 1, 1), 2.0)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """A small network beside the published ones."""
    monkeypatch.setitem(SHAPES, "vmamba-small", SMALL)
    monkeypatch.setitem(
        catalogue._LISTED, "vmamba-small", replace(catalogue.all_listed()[-1], name="vmamba-small")
    )


def make(*, name="vmamba-small", size=64, channels=1, seed=0, **settings):
    return create_encoder(EncoderConfig(name=name, **settings), size=size, channels=channels, seed=seed)


@pytest.mark.parametrize(
    ("name", "encoder", "classifier"),
    [
        ("vmamba-t", 29_478_528, 30_249_064),
        ("vmamba-s", 49_377_216, 50_147_752),
        ("vmamba-b", 87_530_752, 88_557_800),
    ],
)
def test_numbers_of_parameters_are_the_published_ones(name, encoder, classifier):
    with torch.device("meta"):
        net = VMamba(SHAPES[name])
    assert sum(p.numel() for p in net.parameters()) == classifier
    rest = (p.numel() for key, p in net.named_parameters() if not key.startswith("classifier."))
    assert sum(rest) == encoder


def test_names_of_the_weights_are_the_published_ones():
    with torch.device("meta"):
        net = VMamba(SHAPES["vmamba-t"])
    op = "in_proj.weight conv2d.weight x_proj_weight dt_projs_weight dt_projs_bias A_logs Ds out_proj.weight"
    wanted = {f"patch_embed.{i}.{kind}" for i in (0, 2, 5, 7) for kind in ("weight", "bias")}
    for i, depth in enumerate((2, 2, 8, 2)):
        for block in (f"layers.{i}.blocks.{j}" for j in range(depth)):
            wanted |= {f"{block}.op.{name}" for name in op.split()}
            parts = ("norm", "norm2", "op.out_norm", "mlp.fc1", "mlp.fc2")
            wanted |= {f"{block}.{part}.{kind}" for part in parts for kind in ("weight", "bias")}
        if i < 3:
            wanted |= {f"layers.{i}.downsample.{j}.{kind}" for j in (1, 3) for kind in ("weight", "bias")}
    wanted |= {f"classifier.{part}.{kind}" for part in ("norm", "head") for kind in ("weight", "bias")}
    assert set(net.state_dict()) == wanted
    block = net.layers[1].blocks[0].op
    shapes = {key: tuple(value.shape) for key, value in block.named_parameters()}
    assert shapes["x_proj_weight"] == (4, 14, 192) and shapes["dt_projs_weight"] == (4, 192, 12)
    assert shapes["dt_projs_bias"] == (4, 192) and shapes["A_logs"] == (768, 1) and shapes["Ds"] == (768,)


# ---- the network


@pytest.mark.parametrize(("height", "width"), [(64, 64), (65, 37), (1, 1), (33, 224)])
@pytest.mark.parametrize("channels", [1, 3])
def test_features_of_any_size(height, width, channels):
    encoder = make(channels=channels).eval()
    images = torch.randn(2, channels, height, width)
    with torch.no_grad():
        features = encoder(images)
        final = encoder.net.forward_features(images)
    for i, level in enumerate(features.pyramid):
        stride = 4 << i
        assert level.shape == (2, 16 << i, math.ceil(height / stride), math.ceil(width / stride))
        assert level.shape[1] == encoder.net.feature_info[i]["num_chs"]
    assert (encoder.family, encoder.stride, encoder.depth, encoder.dim) == ("conv", 32, 4, 128)
    norm = encoder.net.classifier.norm
    torch.testing.assert_close(features.tokens, norm(features.pyramid[-1].flatten(2).transpose(1, 2)))
    torch.testing.assert_close(features.pooled, features.tokens.mean(1))
    torch.testing.assert_close(features.pooled, encoder.net.forward_head(final, pre_logits=True))
    assert torch.equal(encoder.net(images), features.pooled)


def test_single_stages_can_be_asked_for():
    net = VMamba(SMALL, in_chans=1).eval()
    images = torch.randn(1, 1, 64, 64)
    final, maps = net.forward_intermediates(images)
    again, some = net.forward_intermediates(images, indices=[0, 2])
    assert torch.equal(final, again) and all(map(torch.equal, some, (maps[0], maps[2])))
    assert [level.shape[1] for level in net.forward_intermediates(images, indices=2)[1]] == [64, 128]
    assert net(images).shape == (1, 1000)


@pytest.mark.parametrize("states", [1, 2])
@pytest.mark.parametrize(("height", "width"), [(3, 4), (5, 2)])
def test_the_scan_of_a_block_equals_a_loop_over_positions_in_four_orders(height, width, states):
    """Written out from the description: projections of each reordered sequence, and a loop over its positions."""
    op = SS2D(16, 2.0, states).double()
    with torch.no_grad():
        for weight in (op.A_logs, op.Ds, op.dt_projs_bias):
            weight.add_(torch.randn_like(weight) / 2)  # other values in every direction
    x = torch.randn(2, height, width, 16, dtype=torch.float64)
    inner = op.in_proj(x).permute(0, 3, 1, 2)
    inner = F.silu(F.conv2d(inner, op.conv2d.weight, padding=1, groups=32)).flatten(2).transpose(1, 2)
    total = torch.zeros_like(inner)
    for k, order in enumerate(slow_scan.orders(height, width)):
        sequence = inner[:, order]
        low, b, c = (sequence @ op.x_proj_weight[k].T).split([op.dt_rank, states, states], dim=-1)
        delta = F.softplus(low @ op.dt_projs_weight[k].T + op.dt_projs_bias[k])
        own = slice(32 * k, 32 * (k + 1))
        total[:, order] += slow_scan.scan(sequence, delta, -op.A_logs[own].exp(), b, c, op.Ds[own])
    wanted = op.out_proj(op.out_norm(total)).view_as(x)
    torch.testing.assert_close(op(x), wanted, rtol=1e-9, atol=1e-9)


def test_first_values_of_the_scan():
    op = SS2D(32, 2.0, 3)
    torch.testing.assert_close(op.A_logs.exp(), torch.tensor([1.0, 2.0, 3.0]).expand(4 * 64, 3))
    assert torch.equal(op.Ds, torch.ones(4 * 64))
    steps = F.softplus(op.dt_projs_bias)
    assert 0.001 * 0.999 <= steps.min() < 0.0013 and 0.077 < steps.max() <= 0.1 * 1.001
    torch.testing.assert_close(steps.log().mean().exp(), torch.tensor(0.01), rtol=0.35, atol=0)
    assert op.dt_rank == 2 and 0.6 < op.dt_projs_weight.abs().max() <= 2**-0.5


def test_first_weights_depend_on_the_seed_alone():
    torch.manual_seed(1)
    first = make(seed=4).state_dict()
    torch.manual_seed(2)
    second = make(seed=4).state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)
    other = make(seed=5).state_dict()
    for name in ("A_logs", "Ds"):  # which are not drawn
        assert torch.equal(
            other[f"net.layers.0.blocks.0.op.{name}"], first[f"net.layers.0.blocks.0.op.{name}"]
        )
    for name in ("x_proj_weight", "dt_projs_weight", "dt_projs_bias", "in_proj.weight"):
        assert not torch.equal(
            other[f"net.layers.0.blocks.0.op.{name}"], first[f"net.layers.0.blocks.0.op.{name}"]
        )


# ---- training


@pytest.mark.parametrize("autocast", [False, True])
def test_gradients_reach_every_weight(autocast):
    encoder = make(channels=3)
    images = torch.randn(2, 3, 64, 64)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        features = encoder(images)
        loss = features.tokens.float().square().mul(torch.linspace(0, 1, 128)).mean()
    loss.backward()
    for name, weight in encoder.named_parameters():
        assert weight.grad is not None and weight.grad.isfinite().all(), name
        assert weight.grad.abs().max() > 0, name


def test_bfloat16_is_close_to_float32():
    encoder = make().eval()
    images = torch.randn(2, 1, 64, 64)
    with torch.no_grad():
        exact = encoder(images).pooled
        with torch.autocast("cpu", torch.bfloat16):
            rough = encoder(images).pooled
    torch.testing.assert_close(rough.float(), exact, rtol=0.05, atol=0.05)


def test_loss_falls_on_a_few_images():
    torch.manual_seed(0)
    net = VMamba(SMALL, in_chans=1, num_classes=4)
    images, target = torch.randn(8, 1, 64, 64), torch.arange(8) % 4
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
    losses = []
    for _ in range(12):
        loss = F.cross_entropy(net(images), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]


def test_no_weight_decay_on_decays_gains_and_biases():
    encoder = torch.nn.ModuleDict({"encoder": make()})  # inside a task
    groups = parameter_groups(encoder, EngineConfig(steps=1))
    decays = {name: group["decays"] for group in groups for name in group["names"]}
    assert len(decays) == len(list(encoder.parameters()))
    for name, parameter in encoder.named_parameters():
        spared = name.endswith((".A_logs", ".Ds", ".dt_projs_bias")) or parameter.ndim == 1
        assert decays[name] is not spared, name
    assert sum(name.endswith(".A_logs") for name in decays) == sum(SMALL.depths)


def test_layers_are_ordered_from_the_stem_to_the_head():
    net = VMamba(SMALL)
    depth = group_parameters(net, net.group_matcher(), reverse=True)
    assert set(depth) == {name for name, _ in net.named_parameters()}
    places = {
        "patch_embed.7.weight": 0, "layers.0.blocks.0.norm.weight": 1, "layers.0.downsample.1.weight": 1,
        "layers.1.blocks.0.op.A_logs": 2, "layers.1.blocks.1.op.A_logs": 3, "layers.1.downsample.3.weight": 3,
        "layers.2.blocks.0.mlp.fc1.weight": 4, "layers.3.blocks.0.norm2.bias": 5, "classifier.norm.weight": 5,
    }  # fmt: skip
    assert {name: depth[name] for name in places} == places
    coarse = group_parameters(net, net.group_matcher(coarse=True), reverse=True)
    assert coarse["layers.0.downsample.1.weight"] == coarse["layers.0.blocks.0.norm.weight"]


def test_drop_path_is_keyed_by_sample():
    encoder = make(drop_path=0.5, seed=3).train()
    layers = [module for module in encoder.modules() if isinstance(module, KeyedDropPath)]
    assert [layer.drop_prob for layer in layers] == pytest.approx([0.125, 0.25, 0.375, 0.5])
    images, positions = torch.randn(4, 1, 64, 64), torch.arange(4)
    with sample_positions(positions):
        together = encoder(images).pooled
    parts = []
    for b in range(0, 4, 2):
        with sample_positions(positions[b : b + 2]):
            parts.append(encoder(images[b : b + 2]).pooled)
    torch.testing.assert_close(torch.cat(parts), together)
    with sample_positions(positions + 4):
        assert not torch.allclose(encoder(images).pooled, together)


def test_norm_only_training():
    encoder = make()
    encoder.restrict("norm")
    trained = {name for name, weight in encoder.named_parameters() if weight.requires_grad}
    assert trained and all(re.search(r"norm|patch_embed\.[27]|downsample\.3", name) for name in trained)
    encoder(torch.randn(2, 1, 32, 32)).pooled.square().sum().backward()
    assert all(weight.grad is not None for weight in encoder.parameters() if weight.requires_grad)


def test_tasks_take_it():
    """Layer decay of the classifier and the decoder of masks, which ask more of a network than its features."""
    encoder = make()
    task = Classifier(encoder, ["a", "b"], "multiclass", ClassifyConfig())
    groups = parameter_groups(task, EngineConfig(steps=1, layer_decay=0.5))
    scales = {name: group["lr_scale"] for group in groups for name in group["names"]}
    assert scales["head.linear.weight"] == 1
    assert scales["encoder.net.layers.3.blocks.0.op.A_logs"] == 0.5
    assert scales["encoder.net.patch_embed.0.weight"] == 0.5**6
    pytest.importorskip("segmentation_models_pytorch")
    images = torch.randn(2, 1, 64, 64)
    assert make_decoder(encoder, "auto", 16)(images, encoder(images)).shape[-2:] == (64, 64)


# ---- weights


OLD = {
    r"^patch_embed\.0\.": "patch_embed.proj.",
    r"^patch_embed\.2\.": "patch_embed.norm.",
    r"(blocks\.\d+)\.norm\.": r"\1.ln_1.",
    r"(blocks\.\d+)\.op\.": r"\1.self_attention.",
    r"^classifier\.": "",
}


def old_names(state):
    """Give weights the names of early checkpoints."""
    for pattern, old in OLD.items():
        state = {re.sub(pattern, old, key): value for key, value in state.items()}
    return state


def as_convolutions(state):
    """Store products with channels as 1x1 convolutions."""
    words = ("in_proj.weight", "out_proj.weight", "fc1.weight", "fc2.weight")
    return {key: value[:, :, None, None] if key.endswith(words) else value for key, value in state.items()}


@pytest.mark.parametrize("names", [dict, old_names])
@pytest.mark.parametrize("layout", [dict, as_convolutions])
def test_published_files_load(names, layout, tmp_path):
    torch.manual_seed(0)
    source = VMamba(SMALL).eval()
    state = names(layout(source.state_dict()))
    assert names is dict or {"patch_embed.proj.weight", "norm.bias", "head.weight"} <= set(state)
    assert names is dict or "layers.1.blocks.0.self_attention.A_logs" in state
    torch.save({"model": state, "epoch": 3}, tmp_path / "vssm.pth")
    encoder = make(channels=3, weights=str(tmp_path / "vssm.pth")).eval()
    report = encoder.loaded
    assert report.missing == () and not report.by_order
    assert set(report.left_out) == {key for key in state if "head." in key} and len(report.left_out) == 2
    assert set(report.loaded) == set(encoder.net.state_dict())
    images = torch.randn(1, 3, 50, 64)
    with torch.no_grad():
        wanted, maps = source.forward_intermediates(images)
        features = encoder(images)
    torch.testing.assert_close(features.tokens, wanted.flatten(2).transpose(1, 2))
    for ours, other in zip(features.pyramid, maps, strict=True):
        torch.testing.assert_close(ours, other)


def test_the_classifier_is_loaded_where_the_network_has_one():
    source = VMamba(SMALL, num_classes=5)
    target = VMamba(SMALL, num_classes=5)
    state = checkpoint_filter_fn(old_names(as_convolutions(source.state_dict())), target)
    target.load_state_dict(state)
    assert torch.equal(target.classifier.head.weight, source.classifier.head.weight)


def test_rgb_filters_are_summed_for_grey(tmp_path):
    source = VMamba(SMALL, num_classes=0)
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    encoder = make(weights=str(tmp_path / "w.safetensors"))
    wanted = source.patch_embed[0].weight.sum(1, keepdim=True)
    torch.testing.assert_close(encoder.net.patch_embed[0].weight, wanted)
    assert encoder.loaded.resized == ("patch_embed.0.weight",)


def test_unexplained_keys_and_other_networks_are_refused(tmp_path):
    def refuse(state, message):
        torch.save({"model": state}, tmp_path / "w.pth")
        with pytest.raises(WeightsError, match=message):
            make(channels=3, weights=str(tmp_path / "w.pth"))

    state = VMamba(SMALL).state_dict()
    refuse(
        {**state, "layers.0.blocks.0.op.surprise": torch.ones(1)},
        "has layers.0.blocks.0.op.surprise too many",
    )
    refuse(
        {key: value for key, value in state.items() if "A_logs" not in key},
        "lacks layers.0.blocks.0.op.A_logs",
    )
    refuse(VMamba(Shape(32, SMALL.depths, 2.0)).state_dict(), r"has shape .* needs")
    refuse(VMamba(Shape(16, SMALL.depths, 1.0)).state_dict(), r"has shape .* needs")


def test_settings_it_does_not_take_are_errors():
    with pytest.raises(WeightsError, match=r"is not on the hub; get"):
        make(pretrained=True)
    with pytest.raises(ConfigError, match=r"encoder.depth: vmamba-small takes no such setting"):
        make(depth=3)
    with pytest.raises(ConfigError, match=r"no class token"):
        make(pool="cls")
    with pytest.raises(ConfigError, match=r"did you mean .*vmamba-t"):
        make(name="vmamba_t")
