"""Encoders made from timm's networks, by name."""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, Literal

import timm
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from scanprior import keyed
from scanprior.encoders.base import Encoder, EncoderConfig, Features
from scanprior.encoders.drop_path import key_drop_path
from scanprior.encoders.vmamba import SHAPES, VMamba
from scanprior.encoders.weights import load_weights
from scanprior.errors import ConfigError, WeightsError


def create_encoder(config: EncoderConfig, *, size: int, channels: int, seed: int | None = None) -> Encoder:
    """Make the encoder a configuration names, with the weights it names.

    Args:
        config: network, weights and overrides.
        size: side of the square input in pixels.
        channels: input channels; RGB filters of given weights are summed for one channel.
        seed: seed of the run, for the first weights and for drop path; None leaves the first weights
            to PyTorch's global generator.

    Raises:
        ConfigError: the name is unknown, or the network does not take these dimensions.
        WeightsError: the weights cannot be had or are of another network.

    Example:
        >>> encoder = create_encoder(
        ...     EncoderConfig(name="vit_tiny_patch16_224", patch_size=8, depth=2), size=32, channels=1, seed=3
        ... )
        >>> encoder(torch.zeros(2, 1, 32, 32)).tokens.shape
        torch.Size([2, 16, 192])
    """
    if config.pretrained and config.weights:
        raise ConfigError("encoder.pretrained and encoder.weights exclude each other; keep one of them")
    with nullcontext() if seed is None else keyed.seeded(keyed.key(seed, "encoder")):
        net = _build(config, size, channels)
    vit = _is_vit(net)
    if not vit and (overrides := config.overrides()):
        raise ConfigError(
            f"encoder.{next(iter(overrides))}: {config.name} is not a plain vision transformer and takes"
            " none of patch_size, depth, embed_dim, num_heads; remove the key"
        )
    key_drop_path(net, 0 if seed is None else seed)
    encoder = (VitEncoder if vit else ConvEncoder)(net, config, size=size, channels=channels)
    if config.weights:
        encoder.loaded = load_weights(encoder, config.weights)
    return encoder


def _build(config: EncoderConfig, size: int, channels: int) -> nn.Module:
    architecture = config.name.split(".", 1)[0]
    if config.name in SHAPES:
        if config.pretrained:
            raise ConfigError(
                f"encoder.pretrained: weights of {config.name} cannot be downloaded;"
                " give a local file as encoder.weights"
            )
        return VMamba(SHAPES[config.name], channels, num_classes=0, drop_path_rate=config.drop_path)
    if not timm.is_model(architecture):
        near = difflib.get_close_matches(architecture, [*SHAPES, *timm.list_models()], n=3, cutoff=0.5)
        hint = f"did you mean {', '.join(near)}?" if near else "see `scanprior encoders`"
        raise ConfigError(f"encoder.name: timm has no network {config.name!r}; {hint}")
    arguments: dict[str, Any] = {"img_size": size, **config.overrides()}
    if config.drop_path:
        arguments["drop_path_rate"] = config.drop_path
    while True:
        try:
            net: nn.Module = timm.create_model(
                config.name, pretrained=config.pretrained, num_classes=0, in_chans=channels, **arguments
            )
            return net
        except TypeError as error:
            named = re.search(r"unexpected keyword argument '(\w+)'", str(error))
            if named is None or named[1] not in arguments:
                raise
            if named[1] != "img_size":  # convolutional networks take any size and no such argument
                key = {"drop_path_rate": "drop_path"}.get(named[1], named[1])
                raise ConfigError(f"encoder.{key}: {config.name} takes no such setting; remove it") from error
            del arguments["img_size"]
        except (AssertionError, ValueError, RuntimeError, OSError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
            if config.pretrained:
                raise WeightsError(
                    f"encoder.pretrained: timm's weights of {config.name} cannot be had ({reason});"
                    " check the network, or give a local file as encoder.weights"
                ) from error
            raise ConfigError(
                f"encoder.name: {config.name} cannot be built for {size} px with {config.overrides()} ({reason})"
            ) from error


def _is_vit(net: Any) -> bool:
    """Whether all blocks work on one grid of patch tokens that can be read after any block."""
    if not all(hasattr(net, part) for part in ("blocks", "patch_embed", "num_prefix_tokens", "forward_head")):
        return False
    taps = (
        inspect.signature(net.forward_intermediates).parameters
        if hasattr(net, "forward_intermediates")
        else {}
    )
    return "return_prefix_tokens" in taps


class VitEncoder(Encoder):
    """A plain vision transformer: ViT, DeiT, DINOv2 and v3, AIMv2, SigLIP, BEiT, EVA.

    Besides ``forward`` it gives the steps that masked modelling needs: ``patchify``, ``embed_patches``,
    ``add_prefix``, ``block_outputs``, ``normalize`` and ``pool``.
    """

    family: Literal["vit", "conv"] = "vit"

    def __init__(self, net: Any, config: EncoderConfig, *, size: int, channels: int) -> None:
        super().__init__()
        self.net = net
        self.name, self.size, self.channels = config.name, size, channels
        self.stride = _side(self.net.patch_embed.patch_size)
        if size % self.stride:
            below = size // self.stride * self.stride
            near = " or ".join(str(fit) for fit in (below, below + self.stride) if fit)
            raise ConfigError(
                f"size {size} is not divisible by the patch size {self.stride} of {config.name};"
                f" use size {near}, or another encoder.patch_size"
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
        # Four evenly spaced blocks, the last among them: 3, 6, 9, 12 of 12 (as UNETR taps them).
        self.pyramid_blocks = [-(-(i + 1) * self.depth // 4) - 1 for i in range(4)]

    def forward(self, images: Tensor) -> Features:
        """Encode images (B, channels, size, size)."""
        wanted = sorted({*self.pyramid_blocks})
        outputs = dict(zip(wanted, self.block_outputs(images, wanted), strict=True))
        maps = [self.to_map(outputs[i][:, self.num_prefix_tokens :]) for i in self.pyramid_blocks]
        final = self.net.norm(outputs[self.depth - 1])
        return Features(self._token_norm(final)[:, self.num_prefix_tokens :], maps, self._pool(final))

    def to_map(self, tokens: Tensor) -> Tensor:
        """View patch tokens (B, N, D) as a map (B, D, grid, grid)."""
        return tokens.transpose(1, 2).view(len(tokens), -1, self.grid, self.grid)

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
            tokens = torch.cat([first.expand(len(tokens), -1, -1).to(tokens.dtype), tokens], dim=1)
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


class ConvEncoder(Encoder):
    """A convolutional or other network with a pyramid of resolutions: ConvNeXt, ResNet, Swin, Hiera.

    Runs in channels-last memory order, which is two to four times as fast on a CPU.
    """

    family: Literal["vit", "conv"] = "conv"

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

    def forward(self, images: Tensor) -> Features:
        """Encode images (B, channels, H, W); any H and W that the network takes."""
        final, maps = self.net.forward_intermediates(images.contiguous(memory_format=torch.channels_last))
        tokens = self._to_tokens(final)
        pooled = tokens.mean(1) if self.pool_mode == "mean" else self.net.forward_head(final, pre_logits=True)
        return Features(tokens, list(maps), pooled)

    def _to_tokens(self, final: Tensor) -> Tensor:
        """Flatten a final map, channels first or last, or drop the prefix of final tokens: (B, N, D)."""
        if final.ndim == 3:
            return final[:, getattr(self.net, "num_prefix_tokens", 0) :]
        if final.shape[1] == self.token_dim:
            return final.flatten(2).transpose(1, 2)
        return final.flatten(1, 2)


def _side(patch_size: int | tuple[int, int]) -> int:
    return patch_size if isinstance(patch_size, int) else patch_size[0]
