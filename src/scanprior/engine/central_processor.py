"""What makes computing on a CPU faster without changing a number of it."""

from __future__ import annotations

import os

from torch import nn


def use_plain_attention(module: nn.Module) -> None:
    """Let timm's attention layers multiply out in steps: the fused kernel's bf16 backward is slow on a CPU.

    A training step takes 0.6 of the time; float32 and GPUs are better off fused.
    """
    for layer in module.modules():
        if hasattr(layer, "fused_attn"):
            layer.fused_attn = False  # type: ignore[assignment]


def keep_few_kernels() -> None:
    """Let oneDNN keep a quarter as many compiled kernels as it does by itself, unless the user has said how many.

    It compiles one for every layer and batch size, a few megabytes each, and keeps 1,024. A server of batches of all
    sizes fills that: 2.7 GB instead of 1.3 GB for EfficientNet-Lite0, and the images of a batch take no longer with
    256. Has to be called before the first network computes.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "256")
