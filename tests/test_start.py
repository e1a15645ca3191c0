"""What the command line loads before it knows what is wanted of it."""

from __future__ import annotations

import subprocess
import sys


def test_the_command_line_starts_with_what_a_terminal_needs() -> None:
    program = (
        "import sys\n"
        "import scanprior.cli\n"
        "heavy = {'torch', 'numpy', 'pandas', 'timm', 'pydantic', 'yaml', 'scanprior.run'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
