"""What turns an encoder's features into the one vector that a head classifies."""

from __future__ import annotations

from typing import Any, Literal

import timm
from timm.layers.attention_pool import AttentionPoolLatent
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from scanprior.encoders import Encoder, EncoderConfig, Features, VitEncoder, load_weights
from scanprior.errors import ConfigError

Pooling = Literal["encoder", "attention", "transformer"]

_PATCH = 16
"""Side of the patches that a transformer over tokens believes to see; only its grid of positions depends on it."""


class Pooler(nn.Module):
    """From an encoder's features to one vector (B, dim)."""

    dim: int

    def forward(self, features: Features) -> Tensor:
        """Pool to (B, dim)."""
        raise NotImplementedError


def make_pooling(
    kind: Pooling, encoder: Encoder, transformer: str, transformer_weights: str | None
) -> Pooler:
    """Return the pooling of a kind.

    Raises:
        ConfigError: the transformer is not a plain ViT of timm's.
        WeightsError: its weights cannot be had or are of another network.
    """
    if kind == "attention":
        return AttentionPooling(encoder.token_dim)
    if kind == "transformer":
        return TransformerPooling(encoder, transformer, transformer_weights)
    return EncoderPooling(encoder.dim)


class EncoderPooling(Pooler):
    """The encoder's own pooled vector."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, features: Features) -> Tensor:
        """Return the pooled vector (B, dim)."""
        return features.pooled


class AttentionPooling(Pooler):
    """One learned query attends over the normalised tokens.

    Multi-head attention pooling as in Set Transformer (Lee et al. 2019, arXiv 1810.00825, section 3.2) and SigLIP, by
    timm. Heads are 64 wide where that divides the tokens' width, else as near to it as does.

    Args:
        width: D, the tokens' width.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dim = width
        fitting = [heads for heads in range(1, width + 1) if width % heads == 0]
        heads = min(fitting, key=lambda count: abs(width / count - 64))
        self.norm = nn.LayerNorm(width)
        self.attend = AttentionPoolLatent(width, num_heads=heads, norm_layer=nn.LayerNorm)

    def forward(self, features: Features) -> Tensor:
        """Pool tokens (B, N, D) to (B, D)."""
        pooled: Tensor = self.attend(self.norm(features.tokens))
        return pooled


class TransformerPooling(Pooler):
    """A whole vision transformer over the encoder's tokens, whose pooled vector is taken.

    The "multi-head attention head" of arXiv 2505.19779: a linear projector with a LayerNorm to the transformer's width,
    then DeiT without its patch embedding. It adds 86 million parameters with DeiT-B, its published choice.

    Args:
        encoder: whose tokens it sees; they stand on a square grid.
        name: a plain vision transformer of timm's.
        weights: file of its weights; None = first values.
    """

    def __init__(self, encoder: Encoder, name: str, weights: str | None) -> None:
        super().__init__()
        side = encoder.size // encoder.stride
        try:
            net: Any = timm.create_model(name, num_classes=0, img_size=side * _PATCH)
        except (RuntimeError, TypeError, ValueError, AssertionError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise ConfigError(
                f"task.transformer: {name!r} cannot be built for {side} x {side} tokens ({reason})"
            ) from error
        if type(net) is not VisionTransformer:
            raise ConfigError(
                f"task.transformer: {name} is no plain vision transformer; use deit_base_patch16_224"
            )
        vit = VitEncoder(net, EncoderConfig(name=name), size=side * _PATCH, channels=3)
        if weights is not None:
            load_weights(vit, weights)
        net.patch_embed.proj = nn.Identity()  # the projector stands in its place
        self.dim = vit.dim
        self.projector = nn.Sequential(
            nn.Linear(encoder.token_dim, vit.token_dim), nn.LayerNorm(vit.token_dim)
        )
        self.vit = vit

    def forward(self, features: Features) -> Tensor:
        """Pool tokens (B, N, D) to (B, dim)."""
        vit, tokens = self.vit, self.projector(features.tokens)
        net: Any = vit.net
        places = net.pos_embed if net.no_embed_class else net.pos_embed[:, vit.num_prefix_tokens :]
        (last,) = vit.block_outputs(vit.add_prefix(tokens + places), [vit.depth - 1])
        return vit.pool(last)
