"""Encoders by name: published ones, and any network of timm's."""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import timm
from torch import nn

from scanprior import keyed
from scanprior.catalogue import Listed, listed, similar
from scanprior.encoders.base import Encoder, EncoderConfig, fitting_sizes
from scanprior.encoders.drop_path import key_drop_path
from scanprior.encoders.hub import fetch
from scanprior.encoders.sam2_neck import Sam2FpnEncoder
from scanprior.encoders.timm_encoder import ConvEncoder, VitEncoder
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
        >>> import torch
        >>> encoder = create_encoder(
        ...     EncoderConfig(name="vit_tiny_patch16_224", patch_size=8, depth=2), size=32, channels=1, seed=3
        ... )
        >>> encoder(torch.zeros(2, 1, 32, 32)).tokens.shape
        torch.Size([2, 16, 192])
    """
    if config.pretrained and config.weights:
        raise ConfigError("encoder.pretrained and encoder.weights exclude each other; keep one of them")
    entry = listed(config.name)
    _check_pins(config, known=entry is not None)
    with nullcontext() if seed is None else keyed.seeded(keyed.key(seed, "encoder")):
        encoder = _built(config, size, channels)
    key_drop_path(encoder.net, 0 if seed is None else seed)
    if config.output_block is not None:
        encoder.cut_after(config.output_block)
    if config.weights:
        encoder.loaded = load_weights(encoder, config.weights)
    elif config.pretrained and entry is not None:
        encoder.fetched = fetch(entry, config.revision, config.sha256)
        encoder.loaded = load_weights(encoder, encoder.fetched.path)
    return encoder


def _check_pins(config: EncoderConfig, *, known: bool) -> None:
    """Refuse a commit or checksum of weights that are not downloaded here, rather than leave it unused."""
    key = "revision" if config.revision else "sha256" if config.sha256 else None
    if key is None:
        return
    if not config.pretrained:
        raise ConfigError(
            f"encoder.{key} belongs to weights from the hub; set encoder.pretrained, or remove it"
        )
    if not known:
        raise ConfigError(
            f"encoder.{key}: timm fetches the weights of {config.name} by itself; pin those of the names that "
            "`scanprior encoders` lists, or give a local file as encoder.weights"
        )


def _built(config: EncoderConfig, size: int, channels: int) -> Encoder:
    """Make the encoder with its first weights, by whose implementation it is."""
    entry = listed(config.name)
    if entry is None or entry.provider == "timm":
        name, downloads = (config.name, config.pretrained) if entry is None else (entry.network, False)
        return _over_timm(_timm_network(name, config, size, channels, downloads), config, size, channels)
    if settings := config.overrides():
        raise ConfigError(f"encoder.{next(iter(settings))}: {config.name} takes no such setting; remove it")
    return _BUILDERS[entry.family](entry, config, size, channels)


def _sam2(entry: Listed, config: EncoderConfig, size: int, channels: int) -> Encoder:
    if size % 32:
        raise ConfigError(
            f"size {size}: {config.name} takes sizes that 32 divides; use {fitting_sizes(size, 32)}"
        )
    trunk = _timm_network(entry.network, config, size, channels, downloads=False)
    return Sam2FpnEncoder(trunk, config, size=size, channels=channels)


def _vmamba(entry: Listed, config: EncoderConfig, size: int, channels: int) -> Encoder:
    net = VMamba(SHAPES[entry.name], channels, num_classes=0, drop_path_rate=config.drop_path)
    return ConvEncoder(net, config, size=size, channels=channels)


def _coca(entry: Listed, config: EncoderConfig, size: int, channels: int) -> Encoder:
    if config.drop_path:
        raise ConfigError(f"encoder.drop_path: {config.name} takes no such setting; remove it")
    try:
        from scanprior.encoders.coca import CocaEncoder, CocaTower
    except ImportError as error:
        raise ConfigError(
            f"encoder.name: {config.name} needs open_clip; pip install 'scanprior[coca]'"
        ) from error
    tower = CocaTower(entry.network, size=size, channels=channels)
    return CocaEncoder(tower, config, size=size, channels=channels)


_BUILDERS: dict[str, Callable[[Listed, EncoderConfig, int, int], Encoder]] = {
    "sam2": _sam2,
    "vmamba": _vmamba,
    "coca": _coca,
}
"""What makes the published encoders of a family that are more than one of timm's networks."""


def _over_timm(net: nn.Module, config: EncoderConfig, size: int, channels: int) -> Encoder:
    vit = _is_vit(net)
    if not vit and (overrides := config.overrides()):
        raise ConfigError(
            f"encoder.{next(iter(overrides))}: {config.name} is not a plain vision transformer and takes"
            " none of patch_size, depth, embed_dim, num_heads; remove the key"
        )
    return (VitEncoder if vit else ConvEncoder)(net, config, size=size, channels=channels)


def _timm_network(name: str, config: EncoderConfig, size: int, channels: int, downloads: bool) -> nn.Module:
    architecture = name.split(".", 1)[0]
    if not timm.is_model(architecture):
        near = [*similar(name), *difflib.get_close_matches(architecture, timm.list_models(), n=3, cutoff=0.5)]
        hint = f"did you mean {', '.join(near)}?" if near else "see `scanprior encoders`"
        raise ConfigError(f"encoder.name: there is no network {name!r}, here or in timm; {hint}")
    arguments: dict[str, Any] = {"img_size": size, **config.overrides()}
    if config.drop_path:
        arguments["drop_path_rate"] = config.drop_path
    while True:
        try:
            net: nn.Module = timm.create_model(
                name, pretrained=downloads, num_classes=0, in_chans=channels, **arguments
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
            if downloads:
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
