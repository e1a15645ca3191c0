"""The same random weights here and in the library of their authors, through the files that the authors publish."""

from __future__ import annotations

import re

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from scanprior.encoders import Encoder, EncoderConfig, create_encoder

transformers = pytest.importorskip("transformers")


def loaded(
    tmp_path, name: str, state: dict[str, Tensor], *, size: int, channels: int = 3, wrap=None, **settings
):
    """Return our encoder filled from a file of that state, and what became of its keys."""
    path = tmp_path / "official.pth"
    torch.save(state if wrap is None else wrap(state), path)
    config = EncoderConfig.model_validate({"name": name, "weights": str(path), **settings})
    encoder = create_encoder(config, size=size, channels=channels, seed=1).eval()
    assert encoder.loaded is not None and not encoder.loaded.by_order
    return encoder, encoder.loaded


def shuffled(model: torch.nn.Module) -> torch.nn.Module:
    """Give every weight a random value, so that norms, scales and positions differ from their first ones."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in model.parameters():
            noise = torch.randn(weight.shape, generator=generator)
            weight.copy_(0.02 * noise if weight.ndim > 1 else weight + 0.1 * noise)
    return model.eval()


def close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def as_meta_vit(state: dict[str, Tensor], layer: str, head: dict[str, str]) -> dict[str, Tensor]:
    """Turn a transformers ViT's state into the layout in which Meta publishes DINOv2 and MAE."""
    made = {head[key]: value for key, value in state.items() if key in head}
    names = {
        "norm1": "norm1", "norm2": "norm2", "layernorm_before": "norm1", "layernorm_after": "norm2",
        "attention.o_proj": "attn.proj", "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2",
        "layer_scale1.lambda1": "ls1.gamma", "layer_scale2.lambda1": "ls2.gamma",
    }  # fmt: skip
    for key, value in state.items():
        if not (found := re.match(rf"{layer}\.(\d+)\.(.+)", key)):
            continue
        block, rest = f"blocks.{found[1]}", found[2]
        if rest.startswith("attention.q_proj."):
            kind = rest.rsplit(".", 1)[1]
            parts = [state[key.replace("q_proj", f"{part}_proj")] for part in "qkv"]
            made[f"{block}.attn.qkv.{kind}"] = torch.cat(parts)
        elif not re.match(r"attention\.[kv]_proj", rest):
            stem = next(name for name in names if rest.startswith(name))
            made[f"{block}.{names[stem]}{rest.removeprefix(stem)}"] = value
    return made


@pytest.mark.parametrize("layout", ["meta", "transformers"])
@pytest.mark.parametrize("size", [28, 42])
def test_dinov2(tmp_path, layout, size):
    config = transformers.Dinov2Config(
        hidden_size=384, num_hidden_layers=2, num_attention_heads=6, image_size=28, patch_size=14
    )
    theirs = shuffled(transformers.Dinov2Model(config))
    state = theirs.state_dict()
    if layout == "meta":
        state = as_meta_vit(state, "encoder.layer", {
            "embeddings.cls_token": "cls_token", "embeddings.mask_token": "mask_token",
            "embeddings.position_embeddings": "pos_embed", "layernorm.weight": "norm.weight",
            "layernorm.bias": "norm.bias", "embeddings.patch_embeddings.projection.weight": "patch_embed.proj.weight",
            "embeddings.patch_embeddings.projection.bias": "patch_embed.proj.bias",
        })  # fmt: skip
    else:  # the names of the files on the hub, such as Rad-DINO's
        whole = {"q": "query", "k": "key", "v": "value"}
        state = {
            re.sub(r"n\.([qkv])_proj", lambda found: f"n.attention.{whole[found[1]]}", key).replace(
                "attention.o_proj", "attention.output.dense"
            ): value
            for key, value in state.items()
        }
    encoder, report = loaded(tmp_path, "dinov2-s", state, size=size, depth=2)
    assert not report.missing and report.resized == (() if size == 28 else ("pos_embed",))
    if size == 28:
        images = torch.randn(2, 3, size, size)
        with torch.no_grad():
            out, features = theirs(images), encoder(images)
        close(features.pooled, out.pooler_output)
        close(features.tokens, out.last_hidden_state[:, 1:])


@pytest.mark.parametrize("name", ["mae-b", "retfound"])
def test_mae(tmp_path, name):
    width, heads = (768, 12) if name == "mae-b" else (1024, 16)
    config = transformers.ViTMAEConfig(
        hidden_size=width, num_hidden_layers=2, num_attention_heads=heads, intermediate_size=4 * width, image_size=32,
        mask_ratio=0.0, layer_norm_eps=1e-6,  # as in the authors' code, where the library's default is 1e-12
    )  # fmt: skip
    theirs = shuffled(transformers.ViTMAEModel(config))
    state = as_meta_vit(theirs.state_dict(), "layers", {
        "embeddings.cls_token": "cls_token", "embeddings.position_embeddings": "pos_embed",
        "embeddings.patch_embeddings.projection.weight": "patch_embed.proj.weight",
        "embeddings.patch_embeddings.projection.bias": "patch_embed.proj.bias",
        "layernorm.weight": "norm.weight", "layernorm.bias": "norm.bias",
    })  # fmt: skip
    decoder = {"decoder_embed.weight": torch.ones(2, 2), "mask_token": torch.ones(1, 1, 2)}
    encoder, report = loaded(
        tmp_path, name, {**state, **decoder}, size=32, depth=2, wrap=lambda s: {"model": s, "epoch": 1}
    )
    assert not report.missing and "decoder_embed.weight" in report.left_out
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        # noise in ascending order keeps the patches in their order
        out = theirs(images, noise=torch.arange(4.0).expand(2, -1)).last_hidden_state
        features = encoder(images)
    close(features.tokens, out[:, 1:])


def test_aimv2(tmp_path):
    config = transformers.Aimv2VisionConfig(
        hidden_size=1024, num_hidden_layers=2, num_attention_heads=8, intermediate_size=2816, image_size=28,
        patch_size=14,
    )  # fmt: skip
    theirs = shuffled(transformers.Aimv2VisionModel(config))
    given = theirs.state_dict()
    state = {
        "preprocessor.patchifier.proj.weight": given["embeddings.patch_embed.weight"],
        "preprocessor.patchifier.proj.bias": given["embeddings.patch_embed.bias"],
        "preprocessor.patchifier.norm.weight": given["embeddings.rms_norm.weight"],
        "preprocessor.pos_embed": given["embeddings.position_embedding.weight"][None],
        "trunk.post_trunk_norm.weight": given["rms_norm.weight"],
    }
    for i in range(2):
        theirs_at, ours_at = f"encoder.layers.{i}.", f"trunk.blocks.{i}."
        qkv = [given[f"{theirs_at}attention.{part}_proj.weight"] for part in "qkv"]
        state |= {
            f"{ours_at}attn.qkv.weight": torch.cat(qkv),
            f"{ours_at}attn.proj.weight": given[f"{theirs_at}attention.out_proj.weight"],
            f"{ours_at}norm_1.weight": given[f"{theirs_at}rms_norm1.weight"],
            f"{ours_at}norm_2.weight": given[f"{theirs_at}rms_norm2.weight"],
            f"{ours_at}mlp.fc1.weight": given[f"{theirs_at}ffn.gate_proj.weight"],
            f"{ours_at}mlp.fc2.weight": given[f"{theirs_at}ffn.down_proj.weight"],
            f"{ours_at}mlp.fc3.weight": given[f"{theirs_at}ffn.up_proj.weight"],
        }
    encoder, report = loaded(tmp_path, "aimv2-l", state, size=28, depth=2)
    assert not report.missing and not report.left_out
    images = torch.randn(2, 3, 28, 28)
    with torch.no_grad():
        out = theirs(images).last_hidden_state
        features = encoder(images)
    close(features.tokens, out)
    close(features.pooled, out.mean(1))


def sam2_state(theirs: torch.nn.Module) -> dict[str, Tensor]:
    """Turn a transformers SAM 2 vision model's state into the official file's."""
    names = {
        "backbone.patch_embed.projection": "trunk.patch_embed.proj", "backbone.": "trunk.",
        "layer_norm": "norm", "mlp.proj_in": "mlp.layers.0", "mlp.proj_out": "mlp.layers.1",
    }  # fmt: skip
    made = {}
    for key, value in theirs.state_dict().items():
        for old, new in names.items():
            key = key.replace(old, new)
        key = re.sub(r"neck\.convs\.(\d)\.", r"neck.convs.\1.conv.", key)
        made[f"image_encoder.{key}"] = value
    return made


@pytest.fixture(scope="module")
def sam2():
    return shuffled(transformers.Sam2VisionModel(transformers.Sam2VisionConfig()))


def test_sam2(tmp_path, sam2):
    state = {**sam2_state(sam2), "sam_mask_decoder.iou_token.weight": torch.ones(1, 256)}
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        out = sam2(images)
    trunk, report = loaded(tmp_path, "sam2-t", state, size=64, wrap=lambda s: {"model": s})
    assert {key.split(".")[0] for key in report.left_out} == {"image_encoder", "sam_mask_decoder"}
    assert not [key for key in report.missing if not key.startswith("head.")]
    with torch.no_grad():
        features = trunk(images)
    close(features.tokens, out.last_hidden_state.flatten(1, 2))
    assert [level.shape[1:] for level in features.pyramid] == [
        (96, 16, 16),
        (192, 8, 8),
        (384, 4, 4),
        (768, 2, 2),
    ]

    neck, report = loaded(tmp_path, "sam2-t-fpn", state, size=64, wrap=lambda s: {"model": s})
    assert not report.missing and report.left_out == ("sam_mask_decoder.iou_token.weight",)
    with torch.no_grad():
        features = neck(images)
    for ours, theirs in zip(features.pyramid, out.fpn_hidden_states, strict=False):
        close(ours, theirs)
    close(features.pooled, out.fpn_hidden_states[-1].mean((2, 3)))
    assert [level.shape[2] for level in features.pyramid] == [16, 8, 4, 2]


def test_coca(tmp_path):
    open_clip = pytest.importorskip("open_clip")
    from open_clip.transformer import VisionTransformer

    theirs = shuffled(
        VisionTransformer(
            image_size=64, patch_size=32, width=768, layers=12, heads=12, mlp_ratio=4.0, attentional_pool=True,
            attn_pooler_heads=8, output_dim=512, output_tokens=True,
        )
    )  # fmt: skip
    state = {f"visual.{key}": value for key, value in theirs.state_dict().items()}
    state |= {"text.ln_final.weight": torch.ones(2), "logit_scale": torch.ones(())}
    encoder, report = loaded(tmp_path, "coca-b32", state, size=64)
    assert not report.missing and set(report.left_out) == {"text.ln_final.weight", "logit_scale"}
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        pooled, _ = theirs(images)
        close(encoder(images).pooled, pooled)
    _, report = loaded(tmp_path, "coca-b32", state, size=96)
    assert report.resized == ("positional_embedding",)
    assert open_clip.get_model_config("coca_ViT-B-32")["vision_cfg"]["width"] == 768


def test_the_tower_is_that_of_open_clips_own_model():
    """The arguments that are read from the configuration are those that open_clip reads."""
    pytest.importorskip("open_clip")
    import open_clip
    from open_clip.model import _build_vision_tower

    from scanprior.encoders.coca import CocaTower

    for network in ("coca_ViT-B-32", "coca_ViT-L-14"):
        with torch.device("meta"):
            config = open_clip.get_model_config(network)
            theirs = _build_vision_tower(config["embed_dim"], config["vision_cfg"])
            ours = CocaTower(network, size=224, channels=3)
        shapes = [{k: v.shape for k, v in net.state_dict().items()} for net in (theirs, ours)]
        assert shapes[0] == shapes[1]
        assert theirs.transformer.resblocks[0].attn.num_heads == ours.transformer.resblocks[0].attn.num_heads
        assert theirs.attn_pool.attn.num_heads == ours.attn_pool.attn.num_heads


def test_grey_images_see_the_sum_of_the_filters(tmp_path, sam2):
    encoder, report = loaded(tmp_path, "sam2-t-fpn", sam2_state(sam2), size=64, channels=1)
    grey = torch.randn(1, 1, 64, 64)
    with torch.no_grad():
        close(encoder(grey).pooled, sam2(grey.expand(-1, 3, -1, -1)).fpn_hidden_states[-1].mean((2, 3)))
    assert report.resized == ("trunk.patch_embed.proj.weight",)


def test_a_safetensors_file_is_as_good(tmp_path, sam2):
    state = {key: value.contiguous() for key, value in sam2_state(sam2).items()}
    save_file(state, tmp_path / "model.safetensors")
    config = EncoderConfig(name="sam2-t", weights=str(tmp_path / "model.safetensors"))
    encoder: Encoder = create_encoder(config, size=64, channels=3)
    assert torch.equal(encoder.state_dict()["net.pos_embed"], state["image_encoder.trunk.pos_embed"])
