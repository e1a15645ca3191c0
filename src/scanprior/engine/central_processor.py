"""What makes computing on a CPU faster without changing a number of it."""

from __future__ import annotations

import ctypes
import os
import platform

from torch import nn

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # of mallopt(3)
_LARGEST_TRIM = (1 << 31) - 1  # bytes; the most that fits the argument


def use_plain_attention(module: nn.Module) -> None:
    """Let timm's attention layers multiply out in steps: the fused kernel's bf16 backward is slow on a CPU.

    A training step takes 0.6 of the time; float32 and GPUs are better off fused.
    """
    for layer in module.modules():
        if hasattr(layer, "fused_attn"):
            layer.fused_attn = False  # type: ignore[assignment]


def keep_freed_memory() -> None:
    """Let the C library keep freed memory for the next batch, where it is glibc.

    By default it gives large blocks, such as the activations of a convolution, back to the system, which then hands
    out the same pages again, zeroed one by one. Networks of many cheap layers lose most by that: EfficientNet-Lite0
    answers 64 images of 128 px in half the time without, and a training step at 224 px takes 0.8 of the time, with a
    fifth more memory. The process holds what its largest step took until it ends.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    tune = ctypes.CDLL(None).mallopt
    tune(_MMAP_MAX, 0)
    tune(_TRIM_THRESHOLD, _LARGEST_TRIM)


def keep_few_kernels() -> None:
    """Let oneDNN keep a quarter as many compiled kernels as it does by itself, unless the user has said how many.

    It compiles one for every layer and batch size, a few megabytes each, and keeps 1,024. A server of batches of all
    sizes fills that: 2.7 GB instead of 1.3 GB for EfficientNet-Lite0, and the images of a batch take no longer with
    256. Has to be called before the first network computes.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "256")
