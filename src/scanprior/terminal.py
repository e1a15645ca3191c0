"""Standard output of the command line, light enough for commands that compute nothing."""

from __future__ import annotations

import os

from rich.console import Console

console = Console(highlight=False, quiet=os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0")) != "0")
"""Standard output, for results and for what to run next; of several processes, only the first speaks."""
