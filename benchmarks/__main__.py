"""``python -m benchmarks [NAME…] [--quick] [--out FILE]``: measure, print the table, write the JSON.

Every benchmark has a process of its own: what others leave behind (pools of threads, compiled kernels, memory that is
kept) changes the speed of both sides.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks import NAMES
from benchmarks.measure import REPOSITORY, Row, Settings, Side, in_own_process

RESULTS = REPOSITORY / "docs" / "results" / "bench.json"
_PACKAGES = ("torch", "torchvision", "timm", "numpy", "pillow", "scikit-learn", "lightning-fabric", "lightly")


def main(arguments: list[str] | None = None) -> int:
    """Run the named benchmarks, all by default; return the exit code."""
    chosen = _arguments(arguments)
    console = Console(highlight=False, width=None if os.isatty(1) else 150)
    threads = 1 if chosen.quick else min(2, os.cpu_count() or 1)
    begun, document = time.monotonic(), describe(threads, chosen.quick)
    found: dict[str, list[Row]] = {}
    with tempfile.TemporaryDirectory(prefix="scanprior-bench-") as folder:
        os.environ["SCANPRIOR_CACHE"] = str(Path(folder) / "cache")
        settings = Settings(Path(folder), chosen.quick, threads)
        for name in NAMES:
            if name in chosen.names:
                started = time.monotonic()
                found[name] = in_own_process(name, settings)
                console.print(f"{name}: {time.monotonic() - started:.0f} s")
    document["seconds"] = round(time.monotonic() - begun, 1)
    document["load_after"] = os.getloadavg()[0]
    document["benchmarks"] = {name: [row.to_dict() for row in rows] for name, rows in found.items()}
    rows = [row for part in found.values() for row in part]
    console.print(table(rows, verdicts=not chosen.quick))
    if chosen.quick:
        console.print("quick run: it shows that the scripts work, its numbers mean nothing")
    if chosen.out is not None:
        chosen.out.parent.mkdir(parents=True, exist_ok=True)
        chosen.out.write_text(json.dumps(document, indent=1) + "\n")
        console.print(f"wrote {chosen.out}", soft_wrap=True)
    return 0


def _arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"some of: {', '.join(NAMES)}; all by default"
    )
    parser.add_argument(
        "--quick", action="store_true", help="tiny sizes, one repeat: only to see that it runs"
    )
    parser.add_argument(
        "--out", type=Path, help="JSON file to write; docs/results/bench.json where all are run, else none"
    )
    chosen = parser.parse_args(arguments)
    for name in chosen.names:
        if name not in NAMES:
            parser.error(f"there is no benchmark {name!r}; choose from {', '.join(NAMES)}")
    if chosen.out is None and not chosen.quick and not chosen.names:
        chosen.out = RESULTS
    chosen.names = chosen.names or list(NAMES)
    return chosen


def describe(threads: int, quick: bool) -> dict[str, Any]:
    """Return the machine and the software, without anything that names the machine."""
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "quick": quick,
        "threads": threads,
        "machine": {
            "system": f"{platform.system()} {platform.machine()}",
            "processor": _processor(),
            "processors": os.cpu_count(),
            "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
            "torch_capability": torch.backends.cpu.get_cpu_capability(),
        },
        "load_before": os.getloadavg()[0],
        "versions": {"python": platform.python_version(), "scanprior": _own_version(), **_versions()},
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _own_version() -> str:
    from scanprior import __version__

    return __version__


def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def table(rows: list[Row], *, verdicts: bool = True) -> Table:
    """Return the rows as a table for the terminal, with or without saying which targets are met."""
    made = Table(box=None, pad_edge=False)
    for title, side in (("benchmark", "left"), ("value", "right"), ("spread", "right"), ("target", "right"),
                        ("", "left"), ("ours", "right"), ("reference", "right"), ("note", "left")):  # fmt: skip
        made.add_column(title, justify=side, overflow="fold")  # type: ignore[arg-type]
    words = {True: "[green]met[/green]", False: "[red]missed[/red]"} if verdicts else {}
    for row in rows:
        value = "n/a" if row.value is None else _number(row.value, row.unit)
        spread = "" if row.spread is None else " - ".join(_number(v) for v in row.spread)
        target = "" if row.target is None else f"{row.sense} {_number(row.target)}"
        made.add_row(
            row.name,
            value,
            spread,
            target,
            words.get(row.met, ""),
            _side(row.ours),
            _side(row.reference),
            row.note,
        )
    return made


def _number(value: float, unit: str = "") -> str:
    text = f"{value:.3g}" if value < 100 else f"{value:,.0f}"
    return f"{text}{unit if unit == 'x' else ' ' + unit}".rstrip()


def _side(side: Side | None) -> str:
    return "" if side is None else _number(side.median, side.unit)


if __name__ == "__main__":
    raise SystemExit(main())
