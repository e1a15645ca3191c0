"""What an encoder is: image in, tokens, feature pyramid and pooled vector out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from scanprior.errors import ConfigError

if TYPE_CHECKING:
    from scanprior.encoders.weights import LoadReport

Trained = Literal["all", "norm", "none"]
"""Which weights of an encoder a training changes."""


class EncoderConfig(BaseModel):
    """Which network, with which weights."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(
        "vit_tiny_patch16_224",
        description="any timm model name, a tag after a dot is allowed; or vmamba-t, vmamba-s, vmamba-b",
    )
    pretrained: bool = Field(False, description="download timm's weights (needs a network)")
    weights: str | None = Field(
        None, description="local .safetensors, .pth or .pt file, or a run folder, to start from"
    )
    patch_size: int | None = Field(None, ge=1, description="patch side in pixels (ViT)")
    depth: int | None = Field(None, ge=1, description="number of blocks (ViT)")
    embed_dim: int | None = Field(None, ge=1, description="token width (ViT)")
    num_heads: int | None = Field(None, ge=1, description="attention heads (ViT)")
    drop_path: float = Field(0.0, ge=0, lt=1, description="stochastic depth rate of the last block")
    pool: Literal["auto", "cls", "mean"] = Field(
        "auto", description="pooled vector: auto = as the network was published, cls token, mean of tokens"
    )

    def overrides(self) -> dict[str, int]:
        """Return the ViT dimensions that were set."""
        keys = ("patch_size", "depth", "embed_dim", "num_heads")
        return {key: value for key in keys if (value := getattr(self, key)) is not None}


@dataclass(frozen=True)
class Features:
    """What an encoder makes of a batch of B images.

    Attributes:
        tokens: (B, N, D), final and normalised, without class or register tokens, row by row.
        pyramid: (B, C_i, H_i, W_i) maps, fine to coarse. A ViT gives four blocks at one resolution.
        pooled: (B, dim).
    """

    tokens: Tensor
    pyramid: list[Tensor]
    pooled: Tensor


class Encoder(nn.Module):
    """Base of all encoders.

    Attributes:
        name: the model's name.
        dim: width of the pooled vector.
        token_dim: width of the tokens.
        size: side of the square input in pixels.
        channels: input channels.
        family: "vit" (all tokens at one resolution) or "conv" (a pyramid; also Swin and Hiera).
        stride: pixels of a token's side: the patch size or the total stride.
        num_prefix_tokens: class and register tokens before the patch tokens (0 in the conv family).
        depth: number of blocks of a ViT, number of stages else.
        fixed: whether nothing of it is trained.
        loaded: what became of the weights file it was made with; None without one.
    """

    name: str
    dim: int
    token_dim: int
    size: int
    channels: int
    family: Literal["vit", "conv"]
    stride: int
    num_prefix_tokens: int
    depth: int
    fixed = False
    loaded: LoadReport | None = None

    def restrict(self, trained: Trained) -> None:
        """Let a training change all weights, those of normalisation layers alone, or none.

        A normalisation layer is one whose class is called so: PyTorch's and timm's, response norms among them.
        An encoder of which nothing is trained stays in evaluation mode: no stochastic depth, and no running
        statistics that change.

        Raises:
            ConfigError: the network has no weights of that kind.
        """
        if trained == "all":
            return
        self.requires_grad_(False)
        self.fixed = trained == "none"
        if trained == "norm":
            layers = [layer for layer in self.modules() if "norm" in type(layer).__name__.lower()]
            found = [weight for layer in layers for weight in layer.parameters(recurse=False)]
            if not found:
                raise ConfigError(
                    f"adapt.train: norm: {self.name} has no normalisation layers with weights; use all or none"
                )
            for weight in found:
                weight.requires_grad_(True)

    def train(self, mode: bool = True) -> Encoder:
        """Set the mode."""
        super().train(mode and not self.fixed)
        return self

    def forward(self, images: Tensor) -> Features:
        """Encode images (B, channels, size, size)."""
        raise NotImplementedError

    def __call__(self, images: Tensor) -> Features:
        """Encode images (B, channels, size, size)."""
        features: Features = super().__call__(images)
        return features
