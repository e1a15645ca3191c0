"""Encoders over timm's networks: plain vision transformers, and networks with a pyramid."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from scanprior.encoders.base import (
    Encoder,
    EncoderConfig,
    Features,
    PyramidEncoder,
    blocks_kept,
    fitting_sizes,
    pyramid_blocks,
)
from scanprior.errors import ConfigError


class VitEncoder(Encoder):
    """A plain vision transformer: ViT, DeiT, DINOv2 and v3, AIMv2, SigLIP, BEiT, EVA.

    Besides ``forward`` it gives the steps that masked modelling needs: ``patchify``, ``embed_patches``,
    ``add_prefix``, ``block_outputs``, ``normalize`` and ``pool``.
    """

    family: Literal["vit", "conv"] = "vit"

    net: Any

    def __init__(self, net: Any, config: EncoderConfig, *, size: int, channels: int) -> None:
        super().__init__()
        self.net = net
        self.name, self.size, self.channels = config.name, size, channels
        self.stride = _side(self.net.patch_embed.patch_size)
        if size % self.stride:
            raise ConfigError(
                f"size {size} is not divisible by the patch size {self.stride} of {config.name};"
                f" use size {fitting_sizes(size, self.stride)}, or another encoder.patch_size"
            )
        self.grid = size // self.stride
        self.num_prefix_tokens = int(self.net.num_prefix_tokens)
        self.depth = len(self.net.blocks)
        self.token_dim = int(self.net.num_features)
        self.pool_mode = config.pool
        self.dim = int(self.net.head_hidden_size) if config.pool == "auto" else self.token_dim
        self.plain = type(net) is VisionTransformer and not self.net.dynamic_img_size
        if config.pool == "cls" and getattr(net, "cls_token", None) is None:
            raise ConfigError(f"encoder.pool: {config.name} has no class token; use auto or mean")
        self.pyramid_blocks = pyramid_blocks(self.depth)

    def cut_after(self, block: int) -> None:
        """Leave out the blocks after one of them, 1-based."""
        kept = blocks_kept(self, block)
        self.left_out = tuple(f"blocks.{i}." for i in range(kept, self.depth))
        self.net.blocks = self.net.blocks[:kept]
        self.depth, self.pyramid_blocks = kept, pyramid_blocks(kept)

    def forward(self, images: Tensor) -> Features:
        """Encode images (B, channels, size, size)."""
        wanted = sorted({*self.pyramid_blocks})
        outputs = dict(zip(wanted, self.block_outputs(images, wanted), strict=True))
        maps = [self.to_map(outputs[i][:, self.num_prefix_tokens :]) for i in self.pyramid_blocks]
        final = self.net.norm(outputs[self.depth - 1])
        return Features(self._token_norm(final)[:, self.num_prefix_tokens :], maps, self._pool(final))

    def to_map(self, tokens: Tensor) -> Tensor:
        """View patch tokens (B, N, D) as a map (B, D, grid, grid)."""
        batch = tokens.shape[0]  # not len(): a traced graph would keep the number
        return tokens.transpose(1, 2).view(batch, -1, self.grid, self.grid)

    def block_outputs(self, images_or_tokens: Tensor, blocks: Sequence[int]) -> list[Tensor]:
        """Return the outputs of some blocks, before the final norm, prefix tokens first.

        Args:
            images_or_tokens: images (B, C, H, W), or tokens (B, T, D) that are embedded already, such as
                ``add_prefix`` gives (plain ViT only).
            blocks: 0-based numbers in ascending order; later blocks are not run.

        Returns:
            One (B, T, D) tensor for each wanted block.
        """
        if not self.plain:
            pairs = self.net.forward_intermediates(
                images_or_tokens,
                indices=list(blocks),
                return_prefix_tokens=True,
                output_fmt="NLC",
                intermediates_only=True,
                stop_early=True,
            )
            if not self.num_prefix_tokens:
                return list(pairs)
            return [torch.cat([prefix, patches], dim=1) for patches, prefix in pairs]
        x = images_or_tokens
        if x.ndim == 4:
            x = self.net.norm_pre(self.net._pos_embed(self.net.patch_embed(x)))
        outputs = []
        for i in range(blocks[-1] + 1):
            x = self.net.blocks[i](x)
            if i in blocks:
                outputs.append(x)
        return outputs

    def patchify(self, images: Tensor) -> Tensor:
        """Cut images (B, C, H, W) into patches (B, N, C·p·p), row by row, channels first within a patch."""
        batch, channels, height, width = images.shape
        p = self.stride
        cut = images.reshape(batch, channels, height // p, p, width // p, p)
        return cut.permute(0, 2, 4, 1, 3, 5).reshape(batch, -1, channels * p * p)

    def unpatchify(self, patches: Tensor) -> Tensor:
        """Undo ``patchify``: (B, N, C·p·p) to (B, C, H, W)."""
        p = self.stride
        cut = patches.reshape(len(patches), self.grid, self.grid, -1, p, p)
        return cut.permute(0, 3, 1, 4, 2, 5).reshape(len(patches), -1, self.grid * p, self.grid * p)

    def embed_patches(self, patches: Tensor, ids: Tensor | None = None) -> Tensor:
        """Embed patches (B, K, C·p·p) and add their position: tokens (B, K, D).

        Args:
            patches: from ``patchify``, all of them or a selection.
            ids: int64 (B, K), the place of each patch in the grid; None = all, in order.

        Raises:
            ConfigError: the network is not a plain ViT, so patches cannot be given one by one.
        """
        self.require_plain("a selection of patches")
        embed = self.net.patch_embed
        tokens: Tensor = embed.norm(F.linear(patches, embed.proj.weight.flatten(1), embed.proj.bias))
        if self.net.pos_embed is None:
            return tokens
        places = (
            self.net.pos_embed if self.net.no_embed_class else self.net.pos_embed[:, self.num_prefix_tokens :]
        )
        return tokens + (places if ids is None else F.embedding(ids, places[0]))

    def add_prefix(self, tokens: Tensor) -> Tensor:
        """Put class and register tokens before patch tokens (B, K, D): the input of the first block."""
        prefix = [part for part in (self.net.cls_token, self.net.reg_token) if part is not None]
        if prefix:
            first = torch.cat(prefix, dim=1)
            if self.net.pos_embed is not None and not self.net.no_embed_class:
                first = first + self.net.pos_embed[:, : self.num_prefix_tokens]
            tokens = torch.cat([first.expand(tokens.shape[0], -1, -1).to(tokens.dtype), tokens], dim=1)
        embedded: Tensor = self.net.norm_pre(self.net.pos_drop(tokens))
        return embedded

    def normalize(self, tokens: Tensor) -> Tensor:
        """Apply the network's final norm to the outputs of a block (B, T, D)."""
        return self._token_norm(self.net.norm(tokens))

    def pool(self, tokens: Tensor) -> Tensor:
        """Pool the last block's outputs (B, T, D), prefix first and not yet normalised, to (B, dim)."""
        return self._pool(self.net.norm(tokens))

    def _token_norm(self, tokens: Tensor) -> Tensor:
        """Networks that average tokens have their norm after pooling; tokens get the same one."""
        if isinstance(self.net.norm, nn.Identity) and hasattr(self.net, "fc_norm"):
            tokens = self.net.fc_norm(tokens)
        return tokens

    def _pool(self, tokens: Tensor) -> Tensor:
        if self.pool_mode == "auto":
            pooled: Tensor = self.net.forward_head(tokens, pre_logits=True)
            return pooled
        chosen = tokens[:, 0] if self.pool_mode == "cls" else tokens[:, self.num_prefix_tokens :].mean(1)
        pooled = getattr(self.net, "fc_norm", nn.Identity())(chosen)
        return pooled

    def require_plain(self, what: str) -> None:
        """Raise ConfigError unless the network is timm's own ``VisionTransformer``."""
        if not self.plain:
            raise ConfigError(
                f"encoder.name: {what} needs a plain ViT and {self.name} is a {type(self.net).__name__};"
                " use for example vit_small_patch16_224"
            )


class ConvEncoder(PyramidEncoder):
    """A convolutional or other network with a pyramid of resolutions: ConvNeXt, ResNet, Swin, Hiera.

    Runs in channels-last memory order, which is two to four times as fast on a CPU. Takes any H and W that the network
    takes.
    """

    net: Any

    def __init__(self, net: Any, config: EncoderConfig, *, size: int, channels: int) -> None:
        super().__init__()
        if not hasattr(net, "forward_intermediates"):
            raise ConfigError(
                f"encoder.name: {config.name} gives no intermediate features; use another network"
            )
        if config.pool == "cls":
            raise ConfigError(f"encoder.pool: {config.name} has no class token; use auto or mean")
        self.net = net
        self.name, self.size, self.channels = config.name, size, channels
        self.pool_mode = config.pool
        self.num_prefix_tokens = 0
        self.token_dim = int(self.net.num_features)
        self.dim = self.token_dim if config.pool == "mean" else int(self.net.head_hidden_size)
        self.stride = int(self.net.feature_info[-1]["reduction"])
        self.depth = len(self.net.feature_info)

    def final_map(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return the last map, channels first or last as the network has it, and the pyramid."""
        final, maps = self.net.forward_intermediates(images.contiguous(memory_format=torch.channels_last))
        return final, list(maps)

    def features_of(self, final: Tensor, maps: list[Tensor]) -> Features:
        """Return the features of the last map."""
        tokens = self.tokens_of(final)
        pooled = tokens.mean(1) if self.pool_mode == "mean" else self.net.forward_head(final, pre_logits=True)
        return Features(tokens, maps, pooled)

    def tokens_of(self, final: Tensor) -> Tensor:
        """Flatten a final map, channels first or last, or drop the prefix of final tokens: (B, N, D)."""
        if final.ndim == 3:
            return final[:, getattr(self.net, "num_prefix_tokens", 0) :]
        if final.shape[1] == self.token_dim:
            return final.flatten(2).transpose(1, 2)
        return final.flatten(1, 2)


def _side(patch_size: int | tuple[int, int]) -> int:
    return patch_size if isinstance(patch_size, int) else patch_size[0]
