"""The C library keeps what a step frees: the same allocations again touch no new pages."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

STEPS = """
import resource, sys, threading
if sys.argv[1] == "keep":
    import scanprior
import pyarrow  # makes threads
import torch

if sys.argv[1] == "keep":
    from scanprior.allocation import keep_freed_memory
    keep_freed_memory()
def step():
    held = [torch.empty(size << 20, dtype=torch.uint8).fill_(1) for size in (*[6] * 10, 70)]  # MiB
def steps():
    for _ in range(5):
        step()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        step()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
if sys.argv[2] == "here":
    steps()
else:
    thread = threading.Thread(target=steps)
    thread.start()
    thread.join()
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
@pytest.mark.parametrize("where", ["here", "in a thread"])
def test_freed_memory_is_used_again(where: str) -> None:
    def faults(mode: str) -> int:
        # A fixed threshold, as a new process has it: without one, chance decides what is given back.
        made = subprocess.run(
            [sys.executable, "-c", STEPS, mode, where], capture_output=True, text=True, check=True,
            env={**os.environ, "MALLOC_MMAP_THRESHOLD_": str(128 << 10)},
        )  # fmt: skip
        return int(made.stdout)

    assert faults("keep") < 0.2 * faults("leave")  # none, or what a block of other threads displaces
