"""What a report can know: the files of a run folder, read without changing or guessing anything."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from pyarrow.lib import ArrowException

from scanprior.errors import RunError
from scanprior.run import EXPLANATIONS

FORMAT = 1  # of model.json; newer cards are refused, because their fields may mean something else

_MISSING = {
    "config.yaml": "config.yaml is not in the run folder, so the configuration is not shown.",
    "model.json": "model.json is not in the run folder, so data, provenance and versions are not known.",
    "metrics.jsonl": "metrics.jsonl is not in the run folder, so there are no training curves.",
}


@dataclass
class RunFiles:
    """The readable content of a run folder; ``problems`` names what is missing or damaged."""

    folder: Path
    config: str = ""
    model: dict[str, Any] = field(default_factory=dict)
    log: list[dict[str, Any]] = field(default_factory=list)
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    tables: dict[str, pd.DataFrame] = field(default_factory=dict)  # by the evaluation file's stem
    predictions: pd.DataFrame | None = None
    pictures: list[tuple[str, bytes]] = field(default_factory=list)
    sanity: dict[str, Any] = field(default_factory=dict)  # of maps; {} where it was not checked
    sanity_picture: bytes | None = None
    pointing: dict[str, Any] = field(default_factory=dict)  # of maps at masks; {} where it was not measured
    problems: list[str] = field(default_factory=list)
    made_from: list[tuple[str, int, str]] = field(default_factory=list)  # name, bytes, sha256[:16]

    def bytes_of(self, name: str) -> bytes | None:
        """Return a file's content and note its fingerprint; None, with a problem noted, if unreadable."""
        path = self.folder / name
        if not path.is_file():
            if name in _MISSING:
                self.problems.append(_MISSING[name])
            return None
        try:
            content = path.read_bytes()
        except OSError as error:
            self.problems.append(f"{name} cannot be read ({error.strerror}).")
            return None
        self.made_from.append((name, len(content), hashlib.sha256(content).hexdigest()[:16]))
        return content

    def text_of(self, name: str) -> str:
        """Return a UTF-8 file's text; bytes that are not UTF-8 are shown as �."""
        return (self.bytes_of(name) or b"").decode("utf-8", errors="replace")

    def object_of(self, name: str) -> dict[str, Any]:
        """Return a file's JSON object; {} with a problem noted if it holds none."""
        content = self.bytes_of(name)
        if content is None:
            return {}
        try:
            found = json.loads(content)
        except ValueError as error:
            self.problems.append(f"{name} is not valid JSON ({error}).")
            return {}
        if not isinstance(found, dict):
            self.problems.append(f"{name} holds no JSON object but a {type(found).__name__}.")
            return {}
        return found

    def table_of(self, name: str) -> pd.DataFrame | None:
        """Return a parquet table; None with a problem noted if it cannot be read."""
        if self.bytes_of(name) is None:
            return None
        try:
            return pd.read_parquet(self.folder / name)
        except (OSError, ArrowException, ValueError) as error:
            self.problems.append(f"{name} is not a readable Parquet table ({str(error).splitlines()[0]}).")
            return None


def part(model: Mapping[str, Any], *keys: str) -> dict[str, Any]:
    """Return a nested object of the card (model.json), {} where it is absent or null."""
    found: Any = model
    for name in keys:
        found = found.get(name) if isinstance(found, Mapping) else None
    return dict(found) if isinstance(found, Mapping) else {}


def read_run(folder: Path) -> RunFiles:
    """Read the files of a run folder that a report is made from; any may be missing.

    Raises:
        RunError: if there is no such folder, or its model.json is of a newer format.
    """
    if not folder.is_dir():
        raise RunError(f"{folder} is no run folder; give the folder that a training command wrote with --out")
    run = RunFiles(folder)
    run.config = run.text_of("config.yaml")
    run.model = run.object_of("model.json")
    version = run.model.get("format", FORMAT)
    if not isinstance(version, int) or version > FORMAT:
        raise RunError(
            f"{folder / 'model.json'} has format {version!r}, this version reads up to {FORMAT}; update scanprior"
        )
    if "ensemble" not in run.model:  # which was not trained
        _read_log(run)
    run.predictions = run.table_of("predictions.parquet")
    for path in _sorted(folder / "evaluations", "*.json"):
        if evaluation := run.object_of(f"evaluations/{path.name}"):
            run.evaluations.append({"name": path.stem, **evaluation, "file": path.stem})
            table = run.table_of(f"evaluations/{path.stem}.parquet")
            if table is not None:
                run.tables[path.stem] = table
    for path in _sorted(folder / "pictures", "*.png"):
        content = run.bytes_of(f"pictures/{path.name}")
        if content is not None:
            run.pictures.append((path.name, content))
    run.sanity = run.object_of(f"{EXPLANATIONS}/sanity.json")
    run.sanity_picture = run.bytes_of(f"{EXPLANATIONS}/sanity.png") if run.sanity else None
    run.pointing = run.object_of(f"{EXPLANATIONS}/pointing.json")
    return run


def _sorted(folder: Path, pattern: str) -> list[Path]:
    """Return matching files, numbers in their names in numeric order (epoch_9 before epoch_10)."""

    def natural(path: Path) -> list[tuple[int, str]]:
        return [(int(p), "") if p.isdecimal() else (-1, p) for p in re.split(r"([0-9]+)", path.name)]

    return sorted(folder.glob(pattern), key=natural)


def _read_log(run: RunFiles) -> None:
    bad = 0
    for line in run.text_of("metrics.jsonl").splitlines():
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except ValueError:
            bad += 1
            continue
        if isinstance(entry, dict):
            run.log.append(entry)
        else:
            bad += 1
    if bad:
        run.problems.append(f"metrics.jsonl: {bad} unreadable line{'s' if bad > 1 else ''} skipped.")
