"""The run folder: everything one training produced, and the unit that later commands take."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from scanprior import __version__
from scanprior.config import dump_yaml, load_yaml
from scanprior.errors import RunError
from scanprior.files import write_text

FORMAT = 2
"""Version of the layout of a run; a run of a greater one is refused. In 2 a frozen encoder is a file of its own."""

FROZEN_ENCODER = "encoder.safetensors"
"""Weights of an encoder that was not trained."""

EXPLANATIONS = "explanations"
"""Folder in a run of what was found out about its maps on its own images."""

_PACKAGES = ("torch", "torchvision", "timm", "numpy", "pydicom", "pillow", "scikit-learn", "lightning-fabric")


RELEASED = "scanprior:"
"""How the name of an encoder that comes with the package begins."""


def released() -> dict[str, Path]:
    """Return the encoders that come with the package: ``scanprior:NAME`` to run folder."""
    folder = Path(str(files("scanprior") / "released"))
    return {f"{RELEASED}{file.parent.name}": file.parent for file in sorted(folder.glob("*/model.json"))}


def located(name: str | Path) -> Path:
    """Return the folder of a run: a path as it is, or what ``scanprior:NAME`` stands for.

    Raises:
        RunError: no encoder of that name comes with the package.
    """
    if not str(name).startswith(RELEASED):
        return Path(name)
    known = released()
    if str(name) not in known:
        raise RunError(f"{name}: no such encoder comes with scanprior; these do: {', '.join(known)}")
    return known[str(name)]


class Run:
    """A run folder.

    Attributes:
        path: the folder.
        card: the content of ``model.json``: encoder, task, preprocessing, parent, data, versions, seed.
    """

    def __init__(self, path: Path, card: dict[str, Any]) -> None:
        self.path, self.card = path, card

    @classmethod
    def create(cls, path: Path, config: BaseModel, *, resume: bool, overwrite: bool = False) -> Run:
        """Begin a run, or go on with one.

        Raises:
            RunError: the folder holds a run already (and neither ``resume`` nor ``overwrite``), holds
                something else, or was begun with another configuration.
        """
        path = Path(path)
        cls.check(path, config, resume=resume, overwrite=overwrite)
        begun = path / "config.yaml"
        if begun.exists():
            if resume:
                return cls(path, {})
            _remove_run(path)
        path.mkdir(parents=True, exist_ok=True)
        write_text(begun, dump_yaml(config))
        return cls(path, {})

    @staticmethod
    def check(path: Path, config: BaseModel, *, resume: bool, overwrite: bool = False) -> None:
        """Raise what ``create`` would raise, and change nothing."""
        if path.exists() and not path.is_dir():
            raise RunError(f"{path}: a file stands where the run folder should be; choose another --out")
        if (path / "config.yaml").exists():
            if resume:
                _same_config(path / "config.yaml", config)
            elif not overwrite:
                raise RunError(
                    f"{path}: a run is there already; add --resume to go on, or choose another --out"
                )
        elif path.is_dir() and any(p.name != "config.yaml.part" for p in path.iterdir()):
            raise RunError(f"{path}: the folder is not empty and holds no run; choose another --out")

    @classmethod
    def open(cls, path: Path | str) -> Run:
        """Open a finished run, or by ``scanprior:NAME`` one that comes with the package.

        Raises:
            RunError: no run, a run that is not finished, or one of a newer scanprior.
        """
        path = located(path)
        card_file = path / "model.json"
        if not card_file.exists():
            if (path / "config.yaml").exists():
                raise RunError(f"{path}: this run is not finished; go on with its command and --resume")
            raise RunError(f"{path}: this is no run folder (it has no model.json)")
        try:
            card = json.loads(card_file.read_text())
        except ValueError as error:
            raise RunError(f"{card_file}: not readable as JSON ({error}); the run is damaged") from error
        if not isinstance(card, dict) or not isinstance(card.get("format"), int):
            raise RunError(f"{card_file}: not the card of a run (it names no format); the run is damaged")
        if card["format"] > FORMAT:
            raise RunError(
                f"{path}: written by scanprior {card.get('scanprior_version')} in format {card['format']}, this is "
                f"{__version__} with format {FORMAT}; update scanprior"
            )
        lacking = [name for name in ("kind", "encoder", "preprocessing", "data") if name not in card]
        if lacking:
            raise RunError(f"{card_file}: lacks {lacking[0]!r}; the run is damaged")
        return cls(path, card)

    def finish(self, card: dict[str, Any]) -> None:
        """Write ``model.json``, the last file of a run: a run with it is finished."""
        self.card = card
        write_text(self.path / "model.json", json.dumps(card, indent=2))

    @staticmethod
    def finished(path: Path) -> bool:
        """Return whether the folder holds a finished run."""
        return (Path(path) / "model.json").exists()

    @property
    def is_ensemble(self) -> bool:
        """Whether the run has no network of its own but names others as its members."""
        return "ensemble" in self.card

    def refuse_ensemble(self) -> None:
        """Raise where one network is needed and the run is an ensemble.

        Raises:
            RunError: it is one; names its members.
        """
        if self.is_ensemble:
            members = ", ".join(str(member) for member in self.members())
            raise RunError(
                f"{self.path}: an ensemble has no network of its own; name one of its members: {members}"
            )

    def members(self) -> list[Path]:
        """Return the folders of the members of an ensemble; paths in its card start at its own folder."""
        named = (self.path.resolve() / member["path"] for member in self.card["ensemble"]["members"])
        return [Path(os.path.normpath(path)) for path in named]

    @property
    def weights(self) -> Path:
        """Path of the weights; without those of the encoder, where these are a file of their own."""
        return self.path / "model.safetensors"

    @property
    def encoder_weights(self) -> Path:
        """Path of the encoder's weights: a file of its own of an encoder that was not trained, which runs can share."""
        return self.path / str(self.card.get("encoder_file", self.weights.name))

    @property
    def weight_files(self) -> list[Path]:
        """Paths of all weights."""
        return list(dict.fromkeys([self.weights, self.encoder_weights]))

    def fingerprint(self) -> str:
        """Return the first 16 hex digits of the SHA-256 of the weights."""
        return _digest(*self.weight_files)

    def card_fingerprint(self) -> str:
        """Return the first 16 hex digits of the SHA-256 of ``model.json``: preprocessing, classes and all."""
        return _digest(self.path / "model.json")

    def config(self) -> dict[str, Any]:
        """Return the configuration the run was made with."""
        return load_yaml(self.path / "config.yaml")


def _digest(*paths: Path) -> str:
    """Return the first 16 hex digits of the SHA-256 of files, one after the other."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()[:16]


def describe(kind: str, seed: int, *, frozen: bool = False, **parts: Any) -> dict[str, Any]:
    """Return a card with the version, time and software filled in; ``frozen``: the encoder is a file of its own."""
    return {
        "format": FORMAT
        if frozen
        else 1,  # so that an older scanprior refuses those alone that it cannot read
        **({"encoder_file": FROZEN_ENCODER} if frozen else {}),
        "kind": kind,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "scanprior_version": __version__,
        "versions": {"python": platform.python_version(), **_versions()},
        "seed": seed,
        **parts,
    }


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


_MAY_CHANGE = {
    "data": {"workers"},
    "engine": {"workers", "devices", "micro_batch", "checkpoint_every", "log_every", "logger", "accelerator"},
}


def _same_config(begun: Path, config: BaseModel) -> None:
    before, now = load_yaml(begun), config.model_dump(mode="json")
    for place, old, new in _differences(before, now):
        section, _, name = place.partition(".")
        if name not in _MAY_CHANGE.get(section, set()):
            raise RunError(
                f"{begun.parent}: cannot be resumed with {place}={new!r}, it was begun with {old!r}; "
                "use the same settings, or choose another --out"
            )


def _differences(before: Any, now: Any, place: str = "") -> list[tuple[str, Any, Any]]:
    if isinstance(before, dict) and isinstance(now, dict):
        names = {**before, **now}
        inner = (_differences(before.get(n), now.get(n), f"{place}.{n}" if place else str(n)) for n in names)
        return [difference for found in inner for difference in found]
    return [] if before == now else [(place, before, now)]


_PARTS = (
    "config.yaml",
    "model.json",
    "model.safetensors",
    FROZEN_ENCODER,
    "metrics.jsonl",
    "data.parquet",
    "predictions.parquet",
    "reference.safetensors",
    "reference.parquet",
    "report.html",
)


def _remove_run(path: Path) -> None:
    import shutil

    for name in _PARTS:
        (path / name).unlink(missing_ok=True)
    for folder in ("state", "pictures", "evaluations", EXPLANATIONS, "tensorboard"):
        shutil.rmtree(path / folder, ignore_errors=True)
