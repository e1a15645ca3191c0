"""oneDNN keeps as many compiled kernels as a server of all batch sizes has memory for."""

from __future__ import annotations

import os

import pytest

from scanprior.engine import keep_few_kernels


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
