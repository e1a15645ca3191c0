"""A plain vision transformer as timm's ``Eva``, which can have a norm after its blocks and another before its head.

Both compute the same: ``Eva`` with absolute positions, without rotary ones, gates and sub-norms is a ViT. It has no
bias for the keys of its attention. That bias adds one number to all scores of a query, which the softmax takes out
again, so it is left away.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from scanprior.encoders import VitEncoder
from scanprior.errors import RunError
from scanprior.tasks.heads import LinearHead

_ARCHITECTURE = "eva02_tiny_patch14_224"
"""A name under which timm builds an ``Eva``; every dimension of it is given, and what makes it an EVA-02 turned off."""


_EPS = 1e-6
"""Of ``Eva``'s norms."""


def as_eva(encoder: VitEncoder, head: LinearHead) -> tuple[str, dict[str, Any], dict[str, Tensor]]:
    """Return architecture, arguments and weights of a ViT with a linear layer on its normalised pooled vector.

    Args:
        encoder: over timm's ``VisionTransformer`` with blocks of class ``Block``.
        head: that normalises the vector first.

    Raises:
        RunError: the network has a part that ``Eva`` has not.
    """
    net = encoder.net
    token = encoder.pool_mode == "cls" or (encoder.pool_mode == "auto" and net.global_pool == "token")
    if not token and encoder.pool_mode == "auto" and net.global_pool != "avg":
        raise _other(f"pools by {net.global_pool!r}")
    after_pooling = isinstance(net.norm, nn.Identity)
    if after_pooling and not token:
        raise _other("normalises its pooled vector, and so does the head")
    first, scaled = net.blocks[0], not isinstance(net.blocks[0].ls1, nn.Identity)
    if not isinstance(first.attn.q_norm, nn.Identity):
        raise _other("normalises queries and keys")
    if not isinstance(net.norm_pre, nn.Identity):
        raise _other("has a norm before its blocks")
    arguments = {
        "img_size": encoder.size,
        "patch_size": encoder.stride,
        "in_chans": encoder.channels,
        "embed_dim": encoder.token_dim,
        "depth": encoder.depth,
        "num_heads": first.attn.num_heads,
        "mlp_ratio": first.mlp.fc1.out_features / encoder.token_dim,
        "swiglu_mlp": False,
        "use_rot_pos_emb": False,
        "ref_feat_shape": None,
        "qkv_bias": first.attn.qkv.bias is not None,
        "init_values": 1.0 if scaled else None,
        "class_token": net.cls_token is not None,
        "num_reg_tokens": 0 if net.reg_token is None else net.reg_token.shape[1],
        "no_embed_class": net.no_embed_class,
        "use_abs_pos_emb": net.pos_embed is not None,
        "global_pool": "token" if token else "avg",
        "use_post_transformer_norm": True,
        "use_fc_norm": True,
    }
    return _ARCHITECTURE, arguments, _weights(encoder, head, after_pooling)


def _weights(encoder: VitEncoder, head: LinearHead, after_pooling: bool) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}
    for name, value in encoder.net.state_dict().items():
        if name.startswith("fc_norm."):
            name = name.removeprefix("fc_") if after_pooling else name
        elif name.endswith("attn.qkv.bias"):
            stem = name.removesuffix("qkv.bias")
            state[f"{stem}q_bias"], _, state[f"{stem}v_bias"] = value.chunk(3)
            continue
        elif name.endswith((".ls1.gamma", ".ls2.gamma")):
            name = name.replace(".ls", ".gamma_").removesuffix(".gamma")
        state[name] = value
    assert isinstance(head.norm, nn.LayerNorm)
    width, scale = encoder.token_dim, math.sqrt(_EPS / head.norm.eps)
    for name in (
        "norm.weight",
        "norm.bias",
    ):  # x / sqrt(var + ours) is y / sqrt(var(y) + theirs) of y = scale x
        state[name] = scale * state[name]
    state |= {"fc_norm.weight": torch.ones(width), "fc_norm.bias": torch.zeros(width)}
    state |= {"head.weight": head.linear.weight, "head.bias": head.linear.bias}
    return {name: value.detach().clone().contiguous() for name, value in state.items()}


def _other(what: str) -> RunError:
    return RunError(
        f"the run's head normalises the features, and timm has no such classifier for a network that {what}; "
        "use --format onnx"
    )
