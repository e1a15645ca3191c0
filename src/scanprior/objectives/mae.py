"""MAE: masked autoencoder, the encoder on visible patches only (He et al. 2021, arXiv 2111.06377)."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from timm.layers.norm import LayerNorm
from timm.layers.pos_embed_sincos import build_sincos2d_pos_embed
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from scanprior import keyed
from scanprior.encoders import Encoder, VitEncoder, sample_positions
from scanprior.errors import ConfigError
from scanprior.masking import hidden_count, patches_to_pixels
from scanprior.objectives.base import Batch, ObjectiveConfig, embedding_std, register
from scanprior.objectives.guided import GuidedConfig, GuidedObjective, hidden_ids, standardised


class MaeConfig(GuidedConfig):
    """Settings of MAE; the defaults are the published ones."""

    decoder_dim: int = Field(
        512, ge=4, multiple_of=4, description="width of the decoder; 128 for small images"
    )
    decoder_depth: int = Field(8, ge=1, description="blocks of the decoder; 2 for small images")
    decoder_heads: int = Field(16, ge=1, description="attention heads of the decoder")
    decoder_position: Literal["sincos", "learned"] = Field("sincos", description="decoder position embedding")
    target_norm: Literal["patch", "none"] = Field(
        "patch", description="patch: each target patch to mean 0 and variance 1; none: pixels as they are"
    )


class Decoder(nn.Module):
    """Rebuild hidden patches from encoded visible ones: narrow transformer blocks over all patches.

    Args:
        dim: width of the encoder's tokens.
        grid: patches along a side.
        prefix: class and register tokens before the patch tokens.
        out: numbers in a patch.
        config: width, depth, heads and position embedding.
    """

    def __init__(self, dim: int, grid: int, prefix: int, out: int, config: MaeConfig) -> None:
        super().__init__()
        width = config.decoder_dim
        self.prefix = prefix
        self.embed = nn.Linear(dim, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        position = build_sincos2d_pos_embed([grid, grid], width)[None]
        if config.decoder_position == "learned":
            position = nn.init.trunc_normal_(torch.empty_like(position), std=0.02)
        self.position = nn.Parameter(position, requires_grad=config.decoder_position == "learned")
        self.blocks = nn.Sequential(
            *(
                Block(width, config.decoder_heads, qkv_bias=True, norm_layer=LayerNorm)
                for _ in range(config.decoder_depth)
            )
        )
        self.norm = LayerNorm(width)
        self.predict = nn.Linear(width, out)
        nn.init.normal_(self.mask_token, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, tokens: Tensor, ids_restore: Tensor, wanted: Tensor) -> Tensor:
        """Predict some patches.

        Args:
            tokens: encoded prefix and visible patches, (B, prefix + K, D).
            ids_restore: int64 (B, N), as in PatchMask.
            wanted: int64 (B, M), the patches to predict.

        Returns:
            (B, M, out).
        """
        x = self.embed(tokens)
        hidden = ids_restore.shape[1] - (x.shape[1] - self.prefix)
        mask_tokens = self.mask_token.to(x.dtype).expand(len(x), hidden, -1)
        shuffled = torch.cat([x[:, self.prefix :], mask_tokens], dim=1)
        patches = take(shuffled, ids_restore) + self.position
        x = torch.cat([x[:, : self.prefix].to(patches.dtype), patches], dim=1)
        x = _block_at(self.blocks[-1], self.blocks[:-1](x), wanted + self.prefix)
        predicted: Tensor = self.predict(self.norm(x))
        return predicted


def _block_at(block: Any, tokens: Tensor, ids: Tensor) -> Tensor:
    """Return the output of a timm block (B, N, D) at some tokens (B, M): only those pass its MLP."""
    tokens = tokens + block.drop_path1(block.ls1(block.attn(block.norm1(tokens))))
    tokens = take(tokens, ids)
    output: Tensor = tokens + block.drop_path2(block.ls2(block.mlp(block.norm2(tokens))))
    return output


@register("mae")
class Mae(GuidedObjective):
    """Hide most patches, encode the rest, rebuild the hidden ones; mean squared error on those.

    Patches are cut and selected before they are embedded, and only hidden ones are predicted, so no
    work is done that the loss does not need.
    """

    Config: ClassVar[type[ObjectiveConfig]] = MaeConfig
    summary: ClassVar[str] = "rebuild hidden patches from the visible quarter, plain ViT only (MAE)"
    defaults: ClassVar[dict[str, object]] = {
        "engine.lr_per_256": 1.5e-4,
        "engine.warmup_epochs": 40,
        "engine.weight_decay": 0.05,
        "engine.betas": (0.9, 0.95),
        "augment.preset": "mae",
        "encoder.pool": "mean",  # as in the published fine-tuning: the class token has no loss of its own
    }
    config: MaeConfig
    encoder: VitEncoder

    def __init__(self, encoder: Encoder, config: MaeConfig, *, seed: int) -> None:
        super().__init__(encoder, config, seed=seed)
        if not isinstance(encoder, VitEncoder):
            raise ConfigError(
                f"objective: mae hides patches from a plain ViT and {encoder.name} is none; use gmml,"
                " or an encoder such as vit_small_patch16_224"
            )
        encoder.require_plain("mae")
        hidden_count(encoder.grid**2, config.mask_ratio)
        if config.decoder_dim % config.decoder_heads:
            raise ConfigError(
                f"objective.decoder_dim: {config.decoder_dim} is not divisible by objective.decoder_heads"
                f" {config.decoder_heads}"
            )
        patch_numbers = encoder.channels * encoder.stride**2
        with keyed.seeded(keyed.key(seed, "mae_decoder")):
            self.decoder = Decoder(
                encoder.token_dim, encoder.grid, encoder.num_prefix_tokens, patch_numbers, config
            )

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return ``loss`` over hidden patches, as many in each image, and ``embedding_std``.

        Where complex patches count more, also ``weight``, the sum of what the patches count.
        """
        images = batch["views"][0]
        patches = self.encoder.patchify(images)
        mask, scores = self.hide(images, self.encoder.stride, batch["position"])
        latent = self.encode(patches, mask.ids_keep, batch["position"])
        hidden = hidden_ids(mask.mask)
        predicted = self.decoder(self.encoder.normalize(latent), mask.ids_restore, hidden)
        target = self._target(take(patches, hidden))[0]
        with torch.no_grad():
            spread = embedding_std(self.encoder.pool(latent))
        error = (predicted.float() - target).square().mean(2)
        return {**self.loss_of(error, hidden, scores), "embedding_std": spread}

    def encode(self, patches: Tensor, ids_keep: Tensor, position: Tensor) -> Tensor:
        """Encode the kept patches (B, K of N): the last block's outputs (B, prefix + K, D), before the norm."""
        tokens = self.encoder.add_prefix(self.encoder.embed_patches(take(patches, ids_keep), ids_keep))
        with sample_positions(position):
            return self.encoder.block_outputs(tokens, [self.encoder.depth - 1])[0]

    @torch.no_grad()
    def preview(self, batch: Batch) -> dict[str, Tensor]:
        """Return input, corrupted (hidden patches at 0, the mean), rebuilt and raw pictures, (B, C, H, W)."""
        training = self.training
        self.eval()
        images = batch["views"][0]
        patches = self.encoder.patchify(images)
        mask = self.hide(images, self.encoder.stride, batch["position"]).mask
        latent = self.encoder.normalize(self.encode(patches, mask.ids_keep, batch["position"]))
        everywhere = torch.arange(patches.shape[1], device=patches.device).expand(len(patches), -1)
        predicted = self.decoder(latent, mask.ids_restore, everywhere).float()
        self.train(training)
        _, mean, deviation = self._target(patches)
        raw = self.encoder.unpatchify(predicted * deviation + mean)
        grid = (self.encoder.grid, self.encoder.grid)
        hidden = patches_to_pixels(mask.mask, grid, self.encoder.stride)[:, None]
        return {
            "input": images,
            "corrupted": images.masked_fill(hidden, 0),
            "rebuilt": torch.where(hidden, raw, images),
            "raw": raw,
        }

    def _target(self, patches: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return target patches, and the mean and deviation (B, M, 1) to undo their normalisation."""
        if self.config.target_norm == "none":
            return patches, patches.new_zeros(1), patches.new_ones(1)
        return standardised(patches)


def take(tokens: Tensor, ids: Tensor) -> Tensor:
    """Select tokens (B, N, D) by ids (B, K): (B, K, D)."""
    return tokens.gather(1, ids[..., None].expand(-1, -1, tokens.shape[2]))
