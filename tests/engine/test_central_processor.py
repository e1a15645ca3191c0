"""The C library keeps what a step frees: the same allocations again touch no new pages."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from scanprior.engine import keep_few_kernels

STEPS = """
import resource, sys
import torch
from scanprior.engine.central_processor import keep_freed_memory

if sys.argv[1] == "keep":
    keep_freed_memory()
def step():
    held = [torch.empty(size << 20, dtype=torch.uint8).fill_(1) for size in (*[6] * 10, 70)]  # MiB
for _ in range(3):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_freed_memory_is_used_again() -> None:
    def faults(mode: str) -> int:
        # A fixed threshold, as a new process has it: without one, chance decides what is given back.
        made = subprocess.run(
            [sys.executable, "-c", STEPS, mode], capture_output=True, text=True, check=True,
            env={**os.environ, "MALLOC_MMAP_THRESHOLD_": str(128 << 10)},
        )  # fmt: skip
        return int(made.stdout)

    assert faults("keep") < 1000 < 10_000 < faults("leave")


@pytest.mark.parametrize(("said", "kept"), [(None, "256"), ("7", "7")])
def test_few_kernels_are_kept_unless_the_user_says_how_many(
    said: str | None, kept: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "ONEDNN_PRIMITIVE_CACHE_CAPACITY"
    monkeypatch.delenv(name, raising=False)
    if said is not None:
        monkeypatch.setenv(name, said)
    keep_few_kernels()
    assert os.environ.pop(name) == kept
