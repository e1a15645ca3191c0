"""Shared fixtures: real images where there are any, one thread, no network."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def real_data() -> Callable[[str], Path]:
    """Return the folder of a real data set, or skip the test with the reason."""
    home = Path(os.environ.get("SCANPRIOR_DATA", REPOSITORY.parent / "shared" / "data"))

    def folder(name: str) -> Path:
        path = home / name
        if not path.is_dir():
            pytest.skip(f"no real images: {name} is not in the folder SCANPRIOR_DATA points to")
        return path

    return folder
