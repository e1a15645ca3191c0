"""How the C library hands out memory, where it is glibc: the same memory again, instead of new memory."""

from __future__ import annotations

import ctypes
import os
import platform

_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8  # of mallopt(3)


def keep_freed_memory() -> None:
    """Let the C library keep freed memory for the next batch.

    By default it gives large blocks, such as the activations of a convolution, back to the system, which then hands
    out the same pages again, zeroed one by one. Networks of many cheap layers lose most by that: EfficientNet-Lite0
    answers 64 images of 128 px in half the time without, and a training step at 224 px takes 0.8 of the time, with a
    fifth more memory. The process holds what its largest step took until it ends.
    """
    _tune(_MMAP_MAX, 0)
    _tune(_TRIM_THRESHOLD, -1)  # never


def use_one_arena() -> None:
    """Let all threads allocate from the same arena, unless the user has said how many there are.

    From those that it makes for further threads the C library gives blocks of more than 64 MB back, whatever it is
    told to keep. Threads of ConvNeXt-Tiny with 16 images of 224 px each then take 1.1 times as long, with 64 each 1.6
    times. Has to be called before other threads allocate: one that comes after them may get the arena of one of them.
    """
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    if "MALLOC_ARENA_MAX" not in os.environ and "glibc.malloc.arena" not in tunables:
        _tune(_ARENA_MAX, 1)


def _tune(parameter: int, value: int) -> None:
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).mallopt(parameter, value)
