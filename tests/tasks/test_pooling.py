"""What turns features into one vector: attention over the tokens, and a whole transformer."""

from __future__ import annotations

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from scanprior import keyed
from scanprior.encoders import Encoder, EncoderConfig, Features, create_encoder
from scanprior.errors import ConfigError, WeightsError
from scanprior.tasks.classify import Classifier, ClassifyConfig
from scanprior.tasks.pooling import AttentionPooling, TransformerPooling

CLASSES = ["a", "b", "c"]
SMALL = "deit_tiny_patch16_224"


def encoder(name: str = "vit_tiny_patch16_224", size: int = 32) -> Encoder:
    sizes = {"patch_size": 8, "depth": 1, "embed_dim": 48, "num_heads": 3} if name.startswith("vit") else {}
    config = EncoderConfig.model_validate({"name": name, **sizes})
    return create_encoder(config, size=size, channels=1, seed=1)


def features(tokens: torch.Tensor) -> Features:
    return Features(tokens, [], tokens.mean(1))


@pytest.mark.parametrize(("width", "heads"), [(192, 3), (48, 1), (320, 5), (1280, 20), (97, 1)])
def test_attention_pooling_is_what_it_says(width: int, heads: int) -> None:
    with keyed.seeded(2):
        pool = AttentionPooling(width).eval()
    attend, tokens = pool.attend, torch.randn(2, 7, width)
    assert attend.num_heads == heads
    x = F.layer_norm(tokens, (width,), pool.norm.weight, pool.norm.bias)
    key, value = attend.kv(x).chunk(2, dim=-1)
    query = attend.q(attend.latent[0, 0])
    parts = []
    for h in range(heads):
        part = slice(h * width // heads, (h + 1) * width // heads)
        share = (key[..., part] @ query[part] * (width // heads) ** -0.5).softmax(dim=1)
        parts.append((share[..., None] * value[..., part]).sum(1))
    out = attend.proj(torch.cat(parts, dim=1))
    torch.testing.assert_close(
        pool(features(tokens)), out + attend.mlp(attend.norm(out)), rtol=1e-4, atol=1e-5
    )
    torch.testing.assert_close(pool(features(tokens.flip(1))), pool(features(tokens)))  # order plays no part


def test_a_transformer_over_tokens_is_deit_behind_a_projector(tmp_path) -> None:
    deit = timm.create_model(SMALL, num_classes=5, img_size=64).eval()
    save_file(deit.state_dict(), tmp_path / "deit.safetensors")
    made = encoder()
    pool = TransformerPooling(made, SMALL, str(tmp_path / "deit.safetensors")).eval()
    tokens = torch.randn(2, 16, 48)
    with torch.no_grad():
        x = deit._pos_embed(pool.projector(tokens)[:, :])
        expected = deit.forward_head(deit.norm(deit.blocks(deit.norm_pre(x))), pre_logits=True)
        torch.testing.assert_close(pool(features(tokens)), expected)
    assert not any("patch_embed" in name for name, _ in pool.named_parameters())
    resized = TransformerPooling(encoder(size=48), SMALL, str(tmp_path / "deit.safetensors"))
    assert resized.vit.net.pos_embed.shape[1] == 37  # 6 x 6 tokens, resampled


@pytest.mark.parametrize("pooling", ["attention", "transformer"])
@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "convnext_atto"])
def test_heads_over_pooled_tokens_train(pooling: str, name: str) -> None:
    settings = {"pooling": pooling, "transformer": SMALL}
    made = encoder(name, 64 if name == "convnext_atto" else 32)
    with keyed.seeded(3):
        model = Classifier(made, CLASSES, "multiclass", ClassifyConfig.model_validate(settings))
    made.restrict("none")
    model.train()
    images = torch.randn(1, 8, 1, made.size, made.size, generator=keyed.generator(5))
    batch = {"views": images, "target": torch.arange(8) % 3, "position": torch.arange(8)}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-4)
    losses = []
    for _ in range(10):
        loss = model(batch)["loss"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss))
    assert losses[-1] < losses[0] and all(p.grad is None for p in made.parameters())
    assert {model.layer_depth(key) for key, _ in model.named_parameters() if "encoder" not in key} == {0}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"pooling": "attention", "head": "knn"},
            "pooling: 'attention' has to be trained, and head=knn is not",
        ),
        ({"transformer_weights": "x.pth"}, "transformer_weights: they are of pooling=transformer"),
    ],
)
def test_settings_that_do_not_go_together(settings, message) -> None:
    with pytest.raises(ValueError, match=message):
        ClassifyConfig.model_validate(settings)


def test_transformers_that_cannot_be(tmp_path) -> None:
    with pytest.raises(ConfigError, match=r"resnet18.*(cannot be built|is no plain)"):
        TransformerPooling(encoder(), "resnet18", None)
    with pytest.raises(ConfigError, match="is no plain vision transformer"):
        TransformerPooling(encoder(), "eva02_tiny_patch14_224", None)
    save_file({"w": torch.ones(1)}, tmp_path / "w.safetensors")
    with pytest.raises(WeightsError, match="not weights of"):
        TransformerPooling(encoder(), SMALL, str(tmp_path / "w.safetensors"))
