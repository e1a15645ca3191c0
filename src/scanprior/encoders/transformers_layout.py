"""Names of the transformers library for vision transformers, as some authors publish their weights.

Rad-DINO (microsoft/rad-dino), the DINOv2 files of its authors' hub pages and MAE's are in this layout.
"""

from __future__ import annotations

import re

import torch
from torch import Tensor

_PREFIXES = ("", "dinov2.", "vit.", "model.")
_MARK = "embeddings.patch_embeddings.projection.weight"

_RENAMED = (
    (r"^embeddings\.cls_token$", "cls_token"),
    (r"^embeddings\.register_tokens$", "register_tokens"),
    (r"^embeddings\.mask_token$", "mask_token"),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^(?:encoder\.)?layers?\.(\d+)\.", r"blocks.\1."),
    (r"^layernorm\.", "norm."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.attention\.(?:output\.dense|o_proj)\.", ".attn.proj."),
    (r"\.attention\.attention\.(query|key|value)\.", r".attn.\1."),
    (r"\.attention\.q_proj\.", ".attn.query."),
    (r"\.attention\.k_proj\.", ".attn.key."),
    (r"\.attention\.v_proj\.", ".attn.value."),
    (r"\.layer_scale([12])\.lambda1$", r".ls\1.gamma"),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"^(blocks\.\d+)\.output\.dense\.", r"\1.mlp.fc2."),
    (r"\.mlp\.weights_in\.", ".mlp.fc1."),
    (r"\.mlp\.weights_out\.", ".mlp.fc2."),
)


def timm_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Give the tensors of a transformers ViT, MAE or DINOv2 file timm's names; any other state as it is.

    The three projections of attention become one, in the order query, key, value.
    """
    prefix = next((p for p in _PREFIXES if p + _MARK in state), None)
    if prefix is None:
        return state
    named = {_renamed(key.removeprefix(prefix)): value for key, value in state.items()}
    made: dict[str, Tensor] = {}
    for key, value in named.items():
        if ".attn.query." in key:
            parts = [key.replace(".query.", f".{part}.") for part in ("query", "key", "value")]
            if all(part in named for part in parts):
                made[key.replace(".query.", ".qkv.")] = torch.cat([named[part] for part in parts])
                continue
        if (
            re.search(r"\.attn\.(key|value)\.", key)
            and key.replace(".key.", ".query.").replace(".value.", ".query.") in named
        ):
            continue
        made[key] = value
    return made


def _renamed(key: str) -> str:
    for pattern, name in _RENAMED:
        key = re.sub(pattern, name, key)
    return key
