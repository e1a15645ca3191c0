"""Low-rank adapters (LoRA, Hu et al. 2021, arXiv 2106.09685) on the linear layers of an encoder, by peft.

The weight W of a layer stays as it is, and W + (alpha / rank) · B A is what the layer multiplies with; A (rank, in)
and B (out, rank) are trained, from A as PyTorch draws a linear layer's and B = 0. After a training the sum becomes the
layer's weight, and nothing is left of the adapters.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from pydantic import Field
from torch import nn

from scanprior.config import Config
from scanprior.errors import ConfigError

if TYPE_CHECKING:
    from scanprior.encoders.base import Encoder

Target = Literal["attention", "mlp"]

_CALLED: dict[Target, tuple[str, ...]] = {"attention": ("attn", "attention"), "mlp": ("mlp", "glu", "ffn")}
"""Words in the name or class of a module, in lower case, that say what it is; the innermost one decides."""

_RENAMED = re.compile(r"\.base_layer(?=\.)|\.lora_[AB]\.default(?=\.)")
"""What peft puts into the names of weights: ``qkv.base_layer.weight``, ``qkv.lora_A.default.weight``."""


class LoraConfig(Config):
    """Low-rank adapters of ``adapt.train=lora``."""

    rank: int = Field(8, ge=1, description="r, the rank of what is added to a weight")
    alpha: float = Field(16.0, gt=0, description="what is added counts alpha / rank")
    targets: tuple[Target, ...] = Field(
        ("attention",),
        min_length=1,
        description="whose linear layers: attention (query, key, value and output), mlp",
    )


@dataclass(frozen=True)
class Adapters:
    """The adapters of a network.

    Attributes:
        layers: names of the layers that have one.
        set_apart: names of the attention modules that add the bias of ``qkv`` by itself for them.
    """

    layers: tuple[str, ...]
    set_apart: tuple[str, ...]

    def merge(self, net: nn.Module) -> None:
        """Add the adapters to the weights and take them out: the network is again what it was, with other weights."""
        for name in self.layers:
            adapted: Any = net.get_submodule(name)
            adapted.merge()
            net.set_submodule(name, adapted.get_base_layer())
        for name in self.set_apart:
            _set_bias_apart(net.get_submodule(name), False)
        vars(net).pop("peft_config", None)


def attach(encoder: Encoder, config: LoraConfig, fixed: Collection[str]) -> Adapters:
    """Put adapters on the network of an encoder; they alone are trained.

    A is drawn from torch's own generator, so that the same seed gives the same adapters inside ``keyed.seeded``.

    Args:
        encoder: whose linear layers are found by where they stand: inside a module whose name or class says that it
            is attention, or a perceptron, and where the encoder calls them.
        config: rank, alpha, and which layers.
        fixed: names of the network's parameters that stay without.

    Raises:
        ConfigError: peft is not installed, or the network has no such layers that can be adapted.
    """
    try:
        from peft import LoraConfig as PeftConfig
        from peft import inject_adapter_in_model
    except ImportError as error:
        raise ConfigError("adapt.train: lora needs peft; pip install 'scanprior[lora]'") from error
    net = encoder.net
    inside = _linear_layers(net)
    if "attention" not in {target for target, _ in inside.values()}:
        raise ConfigError(f"adapt.train: lora: {encoder.name} has no attention to adapt; use norm or all")
    apart = [name for name, module in net.named_modules() if _set_bias_apart(module, True)]
    chosen = [name for name, (target, _) in inside.items() if target in config.targets]
    layers = [name for name in _called(encoder, inside, chosen) if f"{name}.weight" not in fixed]
    if not layers:
        raise ConfigError(
            f"adapt.train: lora: the trained blocks of {encoder.name} have no {' or '.join(config.targets)} to adapt; "
            "begin with an earlier adapt.from_block"
        )
    pattern = "|".join(map(re.escape, layers))  # a list of names would match the ends of other names, too
    settings: dict[str, Any] = {"r": config.rank, "lora_alpha": config.alpha, "target_modules": pattern}
    inject_adapter_in_model(PeftConfig(**settings), net)
    return Adapters(tuple(layers), tuple(apart))


def plain_name(name: str) -> str:
    """Return the name of a weight without adapters: of the weight, or for an adapter of the one it adapts.

    Example:
        >>> plain_name("blocks.0.attn.qkv.base_layer.bias"), plain_name("blocks.0.attn.qkv.lora_B.default.weight")
        ('blocks.0.attn.qkv.bias', 'blocks.0.attn.qkv.weight')
    """
    return _RENAMED.sub("", name)


def is_adapter(name: str) -> bool:
    """Return whether a parameter's name is that of an adapter."""
    return re.search(r"\.lora_[AB]\.default\.", name) is not None


def _linear_layers(net: nn.Module) -> dict[str, tuple[Target, str]]:
    """Return what every linear layer is part of: its name to the kind and the name of the module around it."""
    modules, found = dict(net.named_modules()), {}
    for name, module in modules.items():
        if not isinstance(module, nn.Linear):
            continue
        around = name
        while around := around.rpartition(".")[0]:
            said = f"{around.rpartition('.')[2]} {type(modules[around]).__name__}".lower()
            kinds = [kind for kind, words in _CALLED.items() if any(word in said for word in words)]
            if kinds:
                found[name] = (kinds[-1], around)
                break
    return found


def _set_bias_apart(module: Any, apart: bool) -> bool:
    """Let attention call its layer ``qkv`` and add the bias after, or not; return whether that changed anything.

    timm's BEiT, EVA and Swin v2 multiply with the weight of ``qkv`` without calling it, unless told so.
    """
    if getattr(module, "qkv_bias_separate", apart) == apart:
        return False
    module.qkv_bias_separate = apart
    return True


@torch.no_grad()
def _called(encoder: Encoder, inside: dict[str, tuple[Target, str]], layers: list[str]) -> list[str]:
    """Return those of the layers that the encoder calls on an image.

    Raises:
        ConfigError: a module is called and multiplies with the weight of such a layer by itself, so that an adapter
            would change nothing.
    """
    net, called = encoder.net, set()
    watched = {name: net.get_submodule(name) for layer in layers for name in (layer, inside[layer][1])}
    hooks = [
        module.register_forward_pre_hook(lambda _, __, name=name: called.add(name))
        for name, module in watched.items()
    ]
    training, place = encoder.training, next(encoder.parameters())
    encoder.eval()
    encoder(torch.zeros(1, encoder.channels, encoder.size, encoder.size, device=place.device))
    encoder.train(training)
    for hook in hooks:
        hook.remove()
    for name in layers:
        around = inside[name][1]
        if name not in called and around in called:
            raise ConfigError(
                f"adapt.train: lora: {encoder.name} cannot have adapters, as its {type(watched[around]).__name__} "
                f"({around}) does not call its layer {name.rpartition('.')[2]} but takes its weight; use norm or all"
            )
    return [name for name in layers if name in called]
