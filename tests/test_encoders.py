from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from scanprior import keyed
from scanprior.encoders import (
    EncoderConfig,
    KeyedDropPath,
    create_encoder,
    load_weights,
    sample_positions,
)
from scanprior.errors import ConfigError, WeightsError

TINY = {"patch_size": 8, "depth": 2, "embed_dim": 48, "num_heads": 3}
VIT = "vit_tiny_patch16_224"


def make(name: str = VIT, *, size: int = 32, channels: int = 1, seed: int | None = 0, **settings):
    if name == VIT:
        settings = {**TINY, **settings}
    return create_encoder(EncoderConfig(name=name, **settings), size=size, channels=channels, seed=seed)


NETWORKS = [
    (VIT, 32, {}),
    (VIT, 48, {"patch_size": 16, "depth": 5, "pool": "mean"}),
    ("vit_small_patch14_reg4_dinov2", 28, {"depth": 2}),
    ("deit3_small_patch16_224", 32, {"depth": 1}),  # no position for the class token
    ("vit_base_patch16_siglip_224", 32, {"depth": 1, "embed_dim": 48, "num_heads": 3}),  # no class token
    ("vit_small_patch16_dinov3", 32, {"depth": 2}),
    ("deit_tiny_distilled_patch16_224", 32, {"depth": 2}),
    ("convnext_atto", 37, {}),
    ("tf_efficientnet_lite0", 40, {}),
    ("mobilenetv3_small_100", 33, {"pool": "mean"}),
    ("swin_tiny_patch4_window7_224", 64, {}),
]


@pytest.mark.parametrize(("name", "size", "settings"), NETWORKS, ids=lambda value: str(value)[:24])
@pytest.mark.parametrize("channels", [1, 3])
def test_features_agree_with_timm(name, size, settings, channels):
    if channels == 3 and name.startswith(("swin", "vit_s", "vit_b", "deit")):
        pytest.skip("one channel count is enough for this family")
    encoder = make(name, size=size, channels=channels, **settings).eval()
    images = torch.randn(2, channels, size, size)
    with torch.no_grad():
        features = encoder(images)
        final = encoder.net.forward_features(images)
        pooled = encoder.net.forward_head(final, pre_logits=True)
    assert features.pooled.shape == (2, encoder.dim)
    assert features.tokens.shape[::2] == (2, encoder.token_dim)
    if settings.get("pool") != "mean":
        torch.testing.assert_close(features.pooled, pooled, rtol=1e-4, atol=1e-5)
    else:
        torch.testing.assert_close(features.pooled, features.tokens.mean(1), rtol=1e-4, atol=1e-5)
    heights = [level.shape[2] for level in features.pyramid]
    assert heights == sorted(heights, reverse=True)
    if encoder.family == "vit":
        grid = size // encoder.stride
        assert len(heights) == 4 and set(heights) == {grid} and features.tokens.shape[1] == grid**2
        norm = (
            encoder.net.norm if not isinstance(encoder.net.norm, torch.nn.Identity) else encoder.net.fc_norm
        )
        last = features.pyramid[-1].flatten(2).transpose(1, 2)
        torch.testing.assert_close(norm(last), features.tokens)


@pytest.mark.parametrize("name", [VIT, "vit_small_patch14_reg4_dinov2", "deit3_small_patch16_224"])
def test_embedding_all_patches_equals_timm(name):
    size = 28 if "patch14" in name else 32
    encoder = make(name, size=size, depth=2).eval()
    images = torch.randn(2, 1, size, size)
    patches = encoder.patchify(images)
    assert torch.equal(encoder.unpatchify(patches), images)
    tokens = encoder.add_prefix(encoder.embed_patches(patches))
    outputs = encoder.block_outputs(tokens, [0, 1])
    torch.testing.assert_close(encoder.normalize(outputs[1]), encoder.net.forward_features(images))
    torch.testing.assert_close(encoder.block_outputs(images, [0])[0], outputs[0])


@pytest.mark.parametrize(
    ("name", "size", "settings", "message"),
    [
        ("vit_tiny_patch16_24", 32, {}, "did you mean vit_tiny_patch16_224"),
        ("hf-hub:somebody/model", 32, {}, "there is no network .hf-hub:somebody"),
        (VIT, 33, {}, "33 is not divisible by the patch size 8.*use size 32 or 40"),
        ("resnet18", 32, {"depth": 3}, "encoder.depth: resnet18 takes no such setting"),
        ("convnext_atto", 32, {"patch_size": 2}, "encoder.patch_size: convnext_atto is not a plain vision"),
        (VIT, 32, {"embed_dim": 50}, "cannot be built.*num_heads"),
        ("vgg11", 32, {"drop_path": 0.1}, "encoder.drop_path"),
        ("resnet18", 32, {"pool": "cls"}, "no class token"),
        ("resnet18", 32, {"pretrained": True, "weights": "x"}, "exclude each other"),
    ],
)
def test_configuration_errors_are_one_clear_sentence(name, size, settings, message):
    with pytest.raises(ConfigError, match=message):
        make(name, size=size, **settings)


def test_first_weights_depend_on_the_seed_alone():
    torch.manual_seed(1)
    first = make(seed=4).state_dict()
    state = torch.get_rng_state()
    torch.manual_seed(2)
    second = make(seed=4).state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)
    torch.manual_seed(1)
    make(seed=5)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(make(seed=5).net.pos_embed, first["net.pos_embed"])


# ---- weights


def test_pretrained_without_network_says_so(monkeypatch):
    def fail(*arguments, **settings):
        raise OSError("no route to host")

    monkeypatch.setattr("timm.models._builder.load_pretrained", fail)
    with pytest.raises(WeightsError, match=r"cannot be had \(no route to host\).*check the network"):
        make("resnet18", pretrained=True)


def test_rgb_filters_are_summed_for_grey(tmp_path):
    net = timm.create_model("resnet18", num_classes=5)
    save_file(net.state_dict(), tmp_path / "w.safetensors")
    encoder = make("resnet18")
    report = load_weights(encoder, tmp_path / "w.safetensors")
    assert torch.equal(encoder.net.conv1.weight, net.conv1.weight.sum(1, keepdim=True))
    assert report.resized == ("conv1.weight",) and set(report.left_out) == {"fc.weight", "fc.bias"}
    assert report.missing == () and len(report.loaded) == len(encoder.net.state_dict())


def test_position_embedding_is_resampled(tmp_path):
    source = make(size=32, seed=1)
    save_file(
        {f"encoder.{key}": value for key, value in source.state_dict().items()},
        tmp_path / "model.safetensors",
    )
    target = make(size=64, seed=2, weights=str(tmp_path))  # a run folder
    assert target.net.pos_embed.shape[1] == 65
    assert torch.equal(target.net.blocks[1].mlp.fc1.weight, source.net.blocks[1].mlp.fc1.weight)
    expected = timm.layers.resample_abs_pos_embed(source.net.pos_embed, [8, 8], num_prefix_tokens=1)
    torch.testing.assert_close(target.net.pos_embed, expected)
    report = load_weights(make(size=64), tmp_path)
    assert report.resized == ("pos_embed",) and report.left_out == ()


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"model": {**state, "decoder_embed.weight": torch.ones(2), "head.bias": torch.ones(2)}},
        lambda state: {"SiT_model": {f"module.backbone.{k}": v for k, v in state.items()}, "epoch": 3},
        lambda state: {
            "student": {"x.y": torch.ones(1)},
            "teacher": {f"backbone.{k}": v for k, v in state.items()},
        },
        lambda state: {"state_dict": {f"module.{k}": v for k, v in state.items()}},
    ],
    ids=["mae", "gmml", "teacher", "data-parallel"],
)
def test_published_layouts_of_checkpoints(tmp_path, wrap):
    source = make(seed=1)
    torch.save(wrap(source.net.state_dict()), tmp_path / "w.pth")
    target = make(seed=2, weights=str(tmp_path / "w.pth"))
    images = torch.randn(1, 1, 32, 32)
    assert torch.equal(target(images).tokens, source(images).tokens)


class _Code:
    def __reduce__(self):
        return print, ("this must not run",)


def test_a_file_that_holds_code_is_refused(tmp_path, capsys):
    path = tmp_path / "evil.pth"
    torch.save({"model": {"a": torch.ones(1)}, "args": _Code()}, path)
    with pytest.raises(WeightsError, match=r"evil\.pth: holds Python objects besides tensors"):
        make(weights=str(path))
    path.write_bytes(pickle.dumps(_Code()))
    with pytest.raises(WeightsError):
        make(weights=str(path))
    assert "must not run" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.pth", b"", "damaged or not a PyTorch file"),
        ("a.pth", b"PK\x03\x04 truncated", "damaged or not a PyTorch file"),
        ("a.pt", b"these are words", "damaged or not a PyTorch file"),
        ("a.safetensors", b"{}", "not a readable safetensors file"),
        ("a.txt", b"x", "must be a .safetensors"),
    ],
)
def test_damaged_files(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(WeightsError, match=message):
        make(weights=str(tmp_path / name))
    with pytest.raises(WeightsError, match="no such weights file"):
        make(weights=str(tmp_path / "nothing.pth"))


def test_weights_of_another_network_are_refused(tmp_path):
    def refuse(state, message, **settings):
        save_file(state, tmp_path / "w.safetensors")
        with pytest.raises(WeightsError, match=message):
            make(weights=str(tmp_path / "w.safetensors"), **settings)

    state = make(seed=1).net.state_dict()
    refuse(make(depth=3).net.state_dict(), "blocks.2.* too many")
    refuse(make(depth=1).net.state_dict(), "lacks blocks.1")
    refuse(make(embed_dim=96).net.state_dict(), "has shape .* needs")
    refuse({**state, "blocks.0.surprise": torch.ones(1)}, "has blocks.0.surprise too many")
    refuse(make("resnet18").net.state_dict(), "not weights of")
    refuse({"w": torch.ones(1)}, "it holds 1, the network 30")


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "convnext_atto", "resnet18"])
def test_other_names_in_the_same_order_are_matched(name, tmp_path):
    """As the original layout of EfficientNet-Lite, made here from timm's tensors."""
    net = timm.create_model(name)
    head = {"conv_stem.weight": "_conv_stem", "classifier.weight": "_fc", "classifier.bias": "_fc"}
    original = {}
    for i, (key, value) in enumerate(net.state_dict().items()):
        other = "fc" if key.startswith(("fc.", "head.fc")) else f"_blocks.{i}"
        original[f"{head.get(key, other)}.{key.rsplit('.', 1)[1]}"] = value
    torch.save(original, tmp_path / "other.pth")
    encoder = make(name, channels=3).eval()
    report = load_weights(encoder, tmp_path / "other.pth")
    assert report.by_order and "by order and shape" in str(report) and not report.missing
    images = torch.randn(1, 3, 32, 32)
    torch.testing.assert_close(encoder.net.forward_features(images), net.eval().forward_features(images))
    with pytest.raises(WeightsError, match=r"it holds \d+, the network \d+|stands where"):
        make("tf_efficientnet_lite1", channels=3, weights=str(tmp_path / "other.pth"))
    save_file({key: value.contiguous() for key, value in original.items()}, tmp_path / "other.safetensors")
    with pytest.raises(WeightsError, match="keeps no order"):
        load_weights(encoder, tmp_path / "other.safetensors")


def test_other_names_in_another_order_are_refused(tmp_path):
    state = timm.create_model("resnet18", num_classes=0).state_dict()
    other = {f"part{i}.{key.rsplit('.', 1)[1]}": value for i, (key, value) in enumerate(state.items())}
    keys = list(other)
    first, second = (next(k for k in keys if other[k].shape == (width, width, 3, 3)) for width in (64, 128))
    other[first], other[second] = other[second], other[first]
    torch.save(other, tmp_path / "other.pth")
    with pytest.raises(WeightsError, match=rf"{first} \(128, 128, 3, 3\) stands where the network has"):
        make("resnet18", channels=3, weights=str(tmp_path / "other.pth"))


# ---- drop path


def test_drop_path_equals_its_definition():
    layer = KeyedDropPath(0.4, layer=3, layers=5, seed=7)
    branch = torch.randn(500, 2, 3)
    positions = np.arange(500) * 3
    with sample_positions(positions):
        dropped = layer(branch)
    for b in range(500):
        draw = keyed.uniform(keyed.key(7, "drop_path"), [positions[b]], 5)[0, 3]
        torch.testing.assert_close(dropped[b], branch[b] / 0.6 if draw >= 0.4 else torch.zeros(2, 3))
    kept = (dropped != 0).flatten(1).any(1).float().mean()
    assert abs(kept - 0.6) < 4 * (0.24 / 500) ** 0.5
    assert layer.eval()(branch) is branch


def test_drop_path_does_not_depend_on_batching():
    encoder = make(drop_path=0.5, depth=4, seed=3).train()
    layers = [module for module in encoder.modules() if isinstance(module, KeyedDropPath)]
    assert len({layer.layer for layer in layers}) == len(layers) >= 6
    images, positions = torch.randn(6, 1, 32, 32), torch.arange(6) + 50
    with sample_positions(positions):
        together = encoder(images).pooled
        assert torch.equal(encoder(images).pooled, together)
    parts = []
    for b in range(0, 6, 2):
        with sample_positions(positions[b : b + 2]):
            parts.append(encoder(images[b : b + 2]).pooled)
    torch.testing.assert_close(torch.cat(parts), together)
    with sample_positions(positions + 1):
        assert not torch.allclose(encoder(images).pooled, together)


def test_drop_path_without_positions_is_an_error():
    encoder = make(drop_path=0.5).train()
    with pytest.raises(RuntimeError, match="sample_positions"):
        encoder(torch.randn(2, 1, 32, 32))
    with sample_positions([1, 2, 3]), pytest.raises(RuntimeError, match="2 samples and 3 are set"):
        encoder(torch.randn(2, 1, 32, 32))
    encoder.eval()(torch.randn(2, 1, 32, 32))


def test_no_pickle_in_the_tree(tmp_path: Path):
    encoder = make()
    save_file(encoder.state_dict(), tmp_path / "w.safetensors")  # refuses tensors that share or stride memory
    assert all(key.startswith("net.") for key in encoder.state_dict())


@pytest.mark.parametrize(
    "name", ["vit_tiny_patch16_224", "resnet18", "convnextv2_atto", "convnext_atto", "tf_efficientnet_lite0"]
)
def test_norm_only_training_changes_the_normalisation_layers_alone(name: str) -> None:
    size = {"patch_size": 16, "depth": 1} if name.startswith("vit") else {}
    made = create_encoder(EncoderConfig.model_validate({"name": name, **size}), size=32, channels=1, seed=0)
    made.restrict("norm")
    made.train()
    before = {key: value.clone() for key, value in made.named_parameters()}
    optimizer = torch.optim.SGD((p for p in made.parameters() if p.requires_grad), lr=0.1)
    made(
        torch.randn(3, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    ).pooled.square().sum().backward()
    optimizer.step()
    changed = {key for key, value in made.named_parameters() if not torch.equal(value, before[key])}
    words = ("norm", "bn", "grn", "downsample.1", "downsample.0", "stem.1")
    assert changed and all(any(word in key for word in words) for key in changed), changed
    vectors = {key for key, value in before.items() if value.ndim == 1 and ("norm" in key or "bn" in key)}
    trained = {key for key, value in made.named_parameters() if value.requires_grad}
    assert vectors <= trained
    assert made.training  # running statistics go on


def test_a_fixed_encoder_stays_in_evaluation_mode_and_without_gradients() -> None:
    made = create_encoder(EncoderConfig(name="resnet18"), size=32, channels=1, seed=0)
    made.restrict("none")
    whole = torch.nn.Sequential(made).train()
    assert whole.training and not any(part.training for part in made.modules())
    assert not any(weight.requires_grad for weight in made.parameters())


def test_norm_only_needs_normalisation_layers() -> None:
    made = create_encoder(EncoderConfig(name="vgg11"), size=32, channels=1, seed=0)
    with pytest.raises(ConfigError, match="vgg11 has no normalisation layers"):
        made.restrict("norm")
