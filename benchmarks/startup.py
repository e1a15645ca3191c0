"""CPU seconds (user + system) of ``scanprior --help``, of ``encoders`` and of ``import scanprior``, in new processes.

Absolute limits, not ratios: all include the start of the interpreter, which is shown beside them.
One run before the first counted one fills the cache of compiled files.
"""

from __future__ import annotations

import sys

from benchmarks.measure import Row, Settings, Side, cost


def run(settings: Settings) -> list[Row]:
    """Measure them, in turns with a bare interpreter."""
    commands = {
        "help": [sys.executable, "-m", "scanprior", "--help"],
        "encoders": [sys.executable, "-m", "scanprior", "encoders"],
        "import": [sys.executable, "-c", "import scanprior"],
        "bare": [sys.executable, "-c", "pass"],
    }
    taken: dict[str, list[float]] = {name: [] for name in commands}
    for number in range(1 + settings.of(10, 1)):
        for name, command in commands.items():
            spent = cost(command).cpu
            if number:
                taken[name].append(spent)
    bare = Side("a bare interpreter", "s", taken["bare"])
    rows = []
    limits = (
        ("help", "scanprior --help", 0.3),
        ("encoders", "scanprior encoders", 0.5),
        ("import", "import scanprior", 0.2),
    )
    for name, what, limit in limits:
        side = Side(what, "s", taken[name])
        spread = (min(side.repeats), max(side.repeats))
        rows.append(Row(f"{what}: CPU time", side.median, "s", limit, "<=", side, bare, spread))
    return rows
