"""Weights from files: our runs, timm, and the checkpoints that authors publish.

Files are read without running any code in them: ``.safetensors``, or ``.pth``/``.pt``/``.bin`` with
``weights_only=True``. Every key of the file and of the network is accounted for, in a LoadReport or
in an error.
"""

from __future__ import annotations

import math
import pickle
import struct
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.layers.pos_embed import resample_abs_pos_embed
from timm.models import adapt_input_conv
from torch import Tensor, nn

from scanprior.encoders.transformers_layout import timm_names
from scanprior.errors import WeightsError
from scanprior.run import FROZEN_ENCODER

if TYPE_CHECKING:
    from scanprior.encoders.base import Encoder

CONTAINERS = ("model", "state_dict", "SiT_model", "teacher", "student", "model_state_dict", "module")
"""Keys under which checkpoints keep their weights (MAE, timm, GMML, SiT and DINO, ...)."""

PREFIXES = (
    "encoder.net.",
    "net.",
    "encoder.",
    "module.backbone.",
    "backbone.",
    "module.encoder.",
    "module.",
    "model.",
    "visual.trunk.",
    "visual.",
    "image_encoder.trunk.",
    "image_encoder.",
    "trunk.",
    "_orig_mod.",
)
"""What stands before the network's own names, in the order of trial; nothing is tried first."""

NOT_ENCODER = (
    "head", "fc", "classifier", "decoder", "mask_token", "projector", "predictor", "pre_logits", "rec", "contr",
    "prototypes", "queue", "dist_head", "head_dist", "_fc", "norm_head",
)  # fmt: skip
"""First words of keys that belong to pretraining or classification heads and may be left out."""

DAMAGE = (RuntimeError, EOFError, OSError, ValueError, LookupError, TypeError, AttributeError, struct.error)
"""What PyTorch's reader raises on bytes that are no checkpoint."""

MAY_BE_MISSING = ("fc_norm.", "attn_pool.", "head.")
"""Parts after the last block, which a checkpoint made without them need not have."""


@dataclass(frozen=True)
class LoadReport:
    """What became of every key.

    Attributes:
        path: the file.
        loaded: keys of the network that got the file's values, including the resized ones.
        resized: those whose values were adapted: position embedding, patch size, input channels.
        left_out: keys of the file that are not of the encoder.
        missing: keys of the network that keep their first values.
        by_order: whether the file has other names, and its tensors were taken in their order.
    """

    path: Path
    loaded: tuple[str, ...]
    resized: tuple[str, ...]
    left_out: tuple[str, ...]
    missing: tuple[str, ...]
    by_order: bool = False

    def __str__(self) -> str:
        how = " by order and shape, as the names are others" if self.by_order else ""
        parts = [f"{len(self.loaded)} tensors loaded from {self.path}{how}"]
        for name in ("resized", "left_out", "missing"):
            if keys := getattr(self, name):
                parts.append(f"{len(keys)} {name.replace('_', ' ')} ({_some(keys)})")
        return ", ".join(parts)


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Read a file's tensors by name, from its container of weights if it has one.

    A run folder stands for its ``encoder.safetensors``, or else its ``model.safetensors``.

    Raises:
        WeightsError: the file is missing, damaged, holds code, or holds no weights.
    """
    file = Path(path)
    if file.is_dir():
        own = file / FROZEN_ENCODER
        file = own if own.exists() else file / "model.safetensors"
    if not file.is_file():
        raise WeightsError(f"{file}: there is no such weights file")
    if file.suffix == ".safetensors":
        try:
            return load_file(file)
        except (SafetensorError, OSError) as error:
            raise WeightsError(f"{file}: not a readable safetensors file ({error})") from error
    if file.suffix not in {".pth", ".pt", ".bin", ".ckpt", ".tar"}:
        raise WeightsError(f"{file}: weights must be a .safetensors, .pth or .pt file, not {file.suffix!r}")
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # what PyTorch's reader without code execution raises at the first object it does not allow
        raise WeightsError(
            f"{file}: holds Python objects besides tensors, which could run code, and was not opened;"
            " save its state dict as .safetensors where you trust it"
        ) from error
    except DAMAGE as error:
        raise WeightsError(f"{file}: damaged or not a PyTorch file ({type(error).__name__})") from error
    return _tensors(content, file)


def load_weights(encoder: Encoder, path: str | Path) -> LoadReport:
    """Load a file's weights into an encoder, in place.

    Position embeddings and patch filters are resampled by timm's functions; a stem for three channels
    is summed for one channel, and repeated and rescaled for others. A file of other names is taken where its
    tensors stand in the network's order, with its kinds (weight, bias, ...) and shapes throughout; that needs
    a file that keeps the order, so no .safetensors.

    Raises:
        WeightsError: the file cannot be read, or is of another network: some key of the file or of
            the network stays unexplained, or a shape differs.
    """
    file = Path(path)
    net: Any = encoder.net
    own: dict[str, Tensor] = net.state_dict()
    stored = timm_names(read_weights(file))
    prefix = _prefix(stored, own, net, file)
    by_order = prefix is None
    if prefix is None:
        stored, prefix = _named_by_order(stored, own, file, net), ""
    inside = {key.removeprefix(prefix): value for key, value in stored.items() if key.startswith(prefix)}
    left_out = [key for key in stored if not key.startswith(prefix)]

    before = {key: value.shape for key, value in inside.items()}
    state = _convert(inside, net, file)
    _adapt_stem(state, own, net)
    _adapt_positions(state, own)
    heads = [key for key in state if key not in own and (_is_head(key) or key.startswith(encoder.left_out))]
    left_out += heads + [key for key in before if key not in state and _is_head(key)]
    state = {key: value for key, value in state.items() if key not in heads}

    persistent = set(own)
    unexplained = sorted(set(state) - persistent)
    missing = [key for key in own if key not in state]
    lacking = [key for key in missing if not key.startswith(MAY_BE_MISSING)]
    wrong = [key for key in own if key in state and state[key].shape != own[key].shape]
    if wrong:
        key = wrong[0]
        raise WeightsError(
            f"{file}: {key} has shape {tuple(state[key].shape)} and {encoder.name} as configured needs"
            f" {tuple(own[key].shape)}; these are weights of another network"
        )
    if unexplained or lacking:
        what = f"lacks {_some(lacking)}" if lacking else f"has {_some(unexplained)} too many"
        raise WeightsError(f"{file}: not weights of {encoder.name} as configured: it {what}")
    net.load_state_dict(state, strict=False)
    resized = tuple(key for key in state if key in before and before[key] != state[key].shape)
    return LoadReport(file, tuple(state), resized, tuple(left_out), tuple(missing), by_order)


def _tensors(content: object, file: Path) -> dict[str, Tensor]:
    """Descend into the first known container that holds tensors; ignore epochs, optimisers, arguments."""
    for _ in range(3):
        if not isinstance(content, Mapping):
            break
        inner = next((content[key] for key in CONTAINERS if isinstance(content.get(key), Mapping)), None)
        if inner is None:
            break
        content = inner
    if isinstance(content, Mapping):
        tensors = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
        if tensors:
            return tensors
    raise WeightsError(f"{file}: holds no weights (a mapping of names to tensors)")


def _prefix(stored: dict[str, Tensor], own: Mapping[str, Tensor], net: nn.Module, file: Path) -> str | None:
    """Return the prefix under which most of the network's keys are found; "" when none is better.

    None where no key of the network is found, neither as it is nor by timm's own conversion.
    """

    counts = {prefix: sum(prefix + key in stored for key in own) for prefix in PREFIXES}
    best = max(counts, key=lambda prefix: counts[prefix])
    plain = sum(key in stored for key in own)
    if plain == 0 or counts[best] > plain:
        with suppress(WeightsError):  # official names that timm's conversion knows may begin like a prefix
            plain = max(plain, sum(key in own for key in _convert(stored, net, file)))
    if counts[best] > plain:
        return best
    return "" if plain else None


def _convert(state: dict[str, Tensor], net: nn.Module, file: Path) -> dict[str, Tensor]:
    """Apply timm's own conversion of official checkpoints to its names and sizes, if it has one."""
    convert = getattr(sys.modules[type(net).__module__], "checkpoint_filter_fn", None)
    if convert is None:
        return dict(state)
    try:
        return dict(convert(dict(state), net))
    except (RuntimeError, KeyError, AssertionError, ValueError, AttributeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise WeightsError(f"{file}: not weights of a {type(net).__name__} ({reason})") from error


def _adapt_stem(state: dict[str, Tensor], own: Mapping[str, Tensor], net: Any) -> None:
    """Fit the filters of the first layer to the network's channels, keeping the sum over channels."""
    for name in _first_layers(net):
        key = f"{name}.weight"
        if key not in state or key not in own or state[key].ndim != 4:
            continue
        given, wanted = state[key].shape[1], own[key].shape[1]
        if given == 3 != wanted:
            state[key] = adapt_input_conv(wanted, state[key])
        elif given == 1 != wanted:
            state[key] = state[key].repeat(1, wanted, 1, 1) / wanted


def _adapt_positions(state: dict[str, Tensor], own: Mapping[str, Tensor]) -> None:
    """Resample a grid of positions (1, N, D) without prefix tokens, where timm's conversion does not (Hiera)."""
    given, wanted = state.get("pos_embed"), own.get("pos_embed")
    if given is None or wanted is None or given.ndim != 3 or given.shape == wanted.shape:
        return
    sides = [math.isqrt(places.shape[1]) for places in (given, wanted)]
    if given.shape[2] == wanted.shape[2] and [side**2 for side in sides] == [given.shape[1], wanted.shape[1]]:
        state["pos_embed"] = resample_abs_pos_embed(
            given, [sides[1]] * 2, [sides[0]] * 2, num_prefix_tokens=0
        )


def _named_by_order(
    stored: dict[str, Tensor], own: Mapping[str, Tensor], file: Path, net: Any
) -> dict[str, Tensor]:
    """Give the network's names to tensors of other names, in the same order, of the same kinds and shapes.

    Raises:
        WeightsError: their number, or the kind or shape of one of them, is not that of the network.
    """
    stems = {f"{name}.weight" for name in _first_layers(net)}
    heads = {key: value for key, value in stored.items() if _is_head(key)}
    body = [(key, value) for key, value in stored.items() if key not in heads]
    if len(body) != len(own) or file.suffix == ".safetensors":
        reason = (
            "this kind of file keeps no order"
            if len(body) == len(own)
            else f"it holds {len(body)}, the network {len(own)}"
        )
        raise WeightsError(
            f"{file}: not weights of {type(net).__name__} as configured: none of its names is the network's (it has "
            f"{_some([key for key, _ in body])}), and the tensors cannot be matched by order: {reason}"
        )
    for (key, value), (name, tensor) in zip(body, own.items(), strict=True):
        same_kind = key.rsplit(".", 1)[-1] == name.rsplit(".", 1)[-1]
        if not same_kind or (value.shape != tensor.shape and name not in stems):
            raise WeightsError(
                f"{file}: not weights of {type(net).__name__} as configured: its names are others, and {key} "
                f"{tuple(value.shape)} stands where the network has {name} {tuple(tensor.shape)}; set encoder.name to "
                "the network of the file"
            )
    return {**heads, **dict(zip(own, (value for _, value in body), strict=True))}


def _first_layers(net: Any) -> tuple[str, ...]:
    """Return the names of the layers that see the image."""
    first = net.pretrained_cfg.get("first_conv") or ()
    return (first,) if isinstance(first, str) else tuple(first)


def _is_head(key: str) -> bool:
    return key.split(".")[0].startswith(NOT_ENCODER)


def _some(keys: tuple[str, ...] | list[str]) -> str:
    """Name the first keys and say how many more there are."""
    shown = ", ".join(keys[:3])
    return shown if len(keys) <= 3 else f"{shown} and {len(keys) - 3} more"
