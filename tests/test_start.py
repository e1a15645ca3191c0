"""What a process loads before it works: the command line, and the processes that read images beside others."""

from __future__ import annotations

import subprocess
import sys

import pytest

NETWORKS = {"torch", "timm", "sklearn"}


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("scanprior.cli", {*NETWORKS, "numpy", "pandas", "pydantic", "yaml", "scanprior.run"}),
        ("scanprior.api.reading", NETWORKS),
        ("scanprior.data.store_writer", NETWORKS),
        ("scanprior.data.check", NETWORKS),
        ("scanprior.serving.decoding", NETWORKS),
    ],
)
def test_a_process_loads_only_what_it_needs(module: str, heavy: set[str]) -> None:
    program = f"import sys\nimport {module}\nfound = {heavy} & set(sys.modules)\nassert not found, found"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
