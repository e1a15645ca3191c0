"""Every published encoder by its name: what is said of it, and that it works as the others do."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from scanprior.catalogue import Listed, all_listed, listed, network_of
from scanprior.encoders import EncoderConfig, create_encoder, hub
from scanprior.errors import ConfigError, WeightsError

COMPUTED = {
    "dinov2-s",
    "dinov2-s-reg",
    "dinov3-s",
    "hiera-t",
    "sam2-t",
    "sam2-t-fpn",
    "swin-t",
    "convnext-t",
    "vmamba-t",
}
"""The smallest of their families. Larger networks are built on the meta device, where shapes are followed and nothing
is computed; CoCa and AIMv2 compute in the tests against their authors' code, MAE's networks are those of timm."""

SIZES = {
    "dinov2": 42,
    "dinov3": 48,
    "aimv2": 42,
    "rad": 42,
    "mae": 48,
    "retfound": 48,
    "coca": 64,
    "hiera": 64,
}
"""Side in pixels for the test, none of it the published one."""


def make(name: str, size: int, channels: int = 3, **settings):
    return create_encoder(EncoderConfig(name=name, **settings), size=size, channels=channels, seed=0)


def size_of(entry: Listed) -> int:
    return 56 if entry.name in ("mae-h", "coca-l14") else SIZES.get(entry.family, 64)


def ids(entry: object) -> str:
    return getattr(entry, "name", str(entry))


def check_features(encoder, features, count: int) -> None:
    tokens = features.tokens
    assert features.pooled.shape == (count, encoder.dim) and tokens.shape[::2] == (count, encoder.token_dim)
    cells = encoder.size // encoder.stride
    assert tokens.shape[1] == cells * cells
    heights = [level.shape[2] for level in features.pyramid]
    assert heights == sorted(heights, reverse=True) and len(heights) >= 4
    assert all(level.shape[0] == count and level.shape[2] == level.shape[3] for level in features.pyramid)


@pytest.mark.parametrize("entry", all_listed(), ids=ids)
def test_every_listed_encoder_keeps_the_contract(entry: Listed) -> None:
    size = size_of(entry)
    if entry.name not in COMPUTED:
        with torch.device("meta"):
            encoder = make(entry.name, size, 5).eval()
            check_features(encoder, encoder(torch.empty(2, 5, size, size)), 2)
        return
    for channels in (1, 5):
        encoder = make(entry.name, size, channels)
        images = torch.randn(2, channels, size, size)
        encoder.eval()
        features = encoder(images)
        check_features(encoder, features, 2)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert encoder(images).pooled.float().isfinite().all()
    (
        features.pooled.square().sum()
        + features.tokens.square().sum()
        + sum(level.sum() for level in features.pyramid)
    ).backward()
    without = [name for name, weight in encoder.named_parameters() if weight.grad is None]
    assert len(without) <= 2, (
        without
    )  # DINOv2's last norm may serve tokens alone, a head's norm the pooled vector
    again = make(entry.name, size, 5).state_dict()
    assert all(torch.equal(value, again[key]) for key, value in encoder.state_dict().items())


RESIZED = {
    "dinov2-s": "pos_embed", "dinov2-s-reg": "pos_embed", "hiera-t": "pos_embed",
    "swin-t": "layers.2.blocks.0.attn.relative_position_bias_table",
}  # fmt: skip
"""What is resampled for another image size; the others compute their positions, or have none."""


@pytest.mark.parametrize("name", sorted(COMPUTED))
def test_weights_serve_other_sizes_and_channels(tmp_path: Path, name: str) -> None:
    entry = listed(name)
    assert entry is not None
    source, size = make(name, size_of(entry)), 64 + 32 if entry.family != "dinov2" else 70
    tensors = {key: value.contiguous() for key, value in source.net.state_dict().items()}
    save_file(tensors, tmp_path / "w.safetensors")
    encoder = make(name, size, 1, weights=str(tmp_path / "w.safetensors")).eval()
    assert encoder.loaded is not None and not encoder.loaded.missing and not encoder.loaded.left_out
    assert RESIZED.get(name, "weight") in " ".join(encoder.loaded.resized)
    grey = torch.randn(1, 1, size, size)
    with torch.no_grad():
        check_features(encoder, encoder(grey), 1)
        colour = make(name, size, 3, weights=str(tmp_path / "w.safetensors")).eval()
        torch.testing.assert_close(
            encoder(grey).pooled, colour(grey.expand(-1, 3, -1, -1)).pooled, rtol=1e-3, atol=1e-4
        )


@pytest.mark.parametrize("entry", all_listed(), ids=ids)
def test_what_is_said_of_it_is_so(entry: Listed) -> None:
    with torch.device("meta"):
        net = make(entry.name, entry.size).net
    assert sum(weight.numel() for weight in net.parameters()) == entry.parameters
    assert listed(entry.name) is entry and network_of(entry.name) == entry.network
    assert entry.source and entry.file and entry.licence
    if not entry.hub.startswith("timm/"):
        return
    published = timm.models.get_pretrained_cfg(entry.hub.removeprefix("timm/"))
    assert published is not None, f"timm knows no weights {entry.hub}"
    assert published.hf_hub_id in (entry.hub, "timm/") and published.input_size[-1] == entry.size
    words = {"CC-BY-NC-4.0": "cc-by-nc-4.0", "Apple ASCL": "apple-ascl", "DINOv3 licence": "dinov3-license"}
    if published.license:
        assert words.get(entry.licence, entry.licence.lower()) == published.license


def test_the_list_imports_no_network_library() -> None:
    code = (
        "import sys; from scanprior.cli import main\n"
        "sys.argv = ['scanprior', 'encoders']\n"
        "try: main()\nexcept SystemExit: pass\n"
        "assert not {'torch', 'timm', 'open_clip'} & set(sys.modules), sorted(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for word in ("dinov2-s", "vmamba-t", "29.5 M", "CC-BY-NC-4.0", "scanprior:cxr-tiny"):
        assert word in done.stdout


# ---- an earlier block


@pytest.mark.parametrize(("name", "size"), [("dinov2-s-reg", 28), ("coca-b32", 64)])
def test_an_earlier_block_is_the_output(tmp_path: Path, name: str, size: int) -> None:
    whole = make(name, size).eval()
    save_file(
        {key: value.contiguous() for key, value in whole.net.state_dict().items()}, tmp_path / "w.safetensors"
    )
    cut = make(name, size, weights=str(tmp_path / "w.safetensors"), output_block=5).eval()
    assert cut.depth == 5 and cut.loaded is not None and not cut.loaded.missing
    assert {key.split(".")[-4 if "attn" in key or "mlp" in key else -3] for key in cut.loaded.left_out}
    images = torch.randn(1, 3, size, size)
    with torch.no_grad():
        if name == "coca-b32":
            _, (block,) = whole.net.transformer.forward_intermediates(whole.net._embeds(images), indices=[4])
            expected = whole.net.attn_pool.ln_k(block)[:, 1:]
        else:
            expected = whole.normalize(whole.block_outputs(images, [4])[0])[:, whole.num_prefix_tokens :]
        torch.testing.assert_close(cut(images).tokens, expected)
    parts = {key: value.contiguous() for key, value in cut.net.state_dict().items()}
    save_file(parts, tmp_path / "cut.safetensors")  # as a run that was made so is loaded
    again = make(name, size, weights=str(tmp_path / "cut.safetensors"), output_block=5).eval()
    with torch.no_grad():
        assert torch.equal(again(images).pooled, cut(images).pooled)


@pytest.mark.parametrize(
    ("name", "size", "settings", "message"),
    [
        ("dinov2-xs", 28, {}, "did you mean dinov2-"),
        ("dinov2-s", 30, {}, "30 is not divisible by the patch size 14.*use size 28 or 42"),
        ("coca-b32", 40, {}, "40 is not divisible by the patch size 32 of coca_ViT-B-32; use size 32 or 64"),
        ("sam2-t-fpn", 48, {}, "sam2-t-fpn takes sizes that 32 divides; use 32 or 64"),
        ("sam2-t-fpn", 64, {"depth": 2}, "encoder.depth: sam2-t-fpn takes no such setting"),
        ("coca-b32", 64, {"drop_path": 0.1}, "encoder.drop_path: coca-b32 takes no such setting"),
        ("coca-b32", 64, {"pool": "cls"}, "pools by attention"),
        ("dinov2-s", 28, {"output_block": 13}, "dinov2-s has 12 blocks, and 13 is wanted"),
        ("convnext_atto", 32, {"output_block": 2}, "has no row of equal blocks to stop after"),
        ("dinov2-s", 28, {"revision": "main"}, "encoder.revision belongs to weights from the hub"),
        (
            "resnet18",
            32,
            {"pretrained": True, "revision": "main"},
            "encoder.revision: timm fetches the weights",
        ),
        (
            "resnet18",
            32,
            {"pretrained": True, "sha256": "0" * 64},
            "encoder.sha256: timm fetches the weights",
        ),
    ],
)
def test_settings_that_do_not_fit_are_one_clear_sentence(name, size, settings, message) -> None:
    with pytest.raises(ConfigError, match=message):
        make(name, size, **settings)


# ---- the hub


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """A hub with one commit of one file, for a made network of two blocks."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    folder = tmp_path / "snapshots" / commit
    folder.mkdir(parents=True)
    source = make("dinov2-s", 28, depth=2)
    save_file(source.net.state_dict(), folder / "model.safetensors")
    asked: dict[str, object] = {"commit": commit, "net": source.net, "file": folder / "model.safetensors"}

    def download(repo: str, file: str, *, revision: str | None) -> str:
        asked.update(repo=repo, name=file, revision=revision)
        return str(folder / file)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    return asked


def test_published_weights_are_pinned(repository) -> None:
    encoder = make("dinov2-s", 28, depth=2, pretrained=True)
    assert repository["repo"] == "timm/vit_small_patch14_dinov2.lvd142m" and repository["revision"] is None
    assert torch.equal(encoder.net.pos_embed, repository["net"].pos_embed)
    digest = hashlib.sha256(repository["file"].read_bytes()).hexdigest()
    assert encoder.fetched == hub.Fetched(repository["file"], repository["commit"], digest)
    make("dinov2-s", 28, depth=2, pretrained=True, revision=repository["commit"], sha256=digest.upper())
    assert repository["revision"] == repository["commit"]
    with pytest.raises(WeightsError, match=r"encoder\.sha256: .* has .* and 0000.* is wanted"):
        make("dinov2-s", 28, depth=2, pretrained=True, sha256="0" * 64)


def test_a_hub_that_cannot_be_reached_is_said(monkeypatch) -> None:
    def fail(*arguments, **settings):
        raise OSError("no route to host\nmore")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", fail)
    with pytest.raises(
        WeightsError, match=r"cannot be had \(no route to host\); check the network and your access"
    ):
        make("mae-b", 32, pretrained=True)
    with pytest.raises(WeightsError, match=r"vmamba-t is not on the hub; get vssm1_tiny.* from the releases"):
        make("vmamba-t", 32, pretrained=True)


def test_weights_of_another_size_or_family_are_refused(tmp_path: Path) -> None:
    def refuse(net: nn.Module, name: str, message: str) -> None:
        save_file(
            {key: value.contiguous() for key, value in net.state_dict().items()}, tmp_path / "w.safetensors"
        )
        with pytest.raises(WeightsError, match=message):
            make(name, 64, weights=str(tmp_path / "w.safetensors"))

    refuse(make("sam2-t", 64).net, "sam2-s", "not weights of sam2-s as configured|has shape")
    refuse(make("sam2-t", 64).net, "swin-t", "not weights of")
    refuse(make("sam2-t-fpn", 64).net, "convnext-t", "not weights of")
