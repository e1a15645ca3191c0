"""Phantoms, tiny networks and the command line, for tests of whole commands."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from scanprior import api
from scanprior.cli import main
from scanprior.data.phantom import PhantomConfig, write_phantoms
from scanprior.run import Run

TINY = {
    "data.size": 32, "data.workers": 0, "encoder.name": "vit_tiny_patch16_224", "encoder.patch_size": 8,
    "encoder.depth": 2, "encoder.embed_dim": 32, "encoder.num_heads": 2,
}  # fmt: skip
SHORT = {"engine.steps": 6, "engine.batch_size": 8, "engine.precision": "32", "engine.accelerator": "cpu"}
QUICK = {"evaluation.resamples": 100}

PRETRAINING = {**TINY, **SHORT}
FINETUNING = {**PRETRAINING, **QUICK, "augment.preset": "none"}
FROM_PARENT = {name: value for name, value in FINETUNING.items() if not name.startswith("encoder.")}


@pytest.fixture(scope="session", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Keep prepared stores and the user's salt out of the real cache."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SCANPRIOR_CACHE", str(folder))
        patch.setenv("COLUMNS", "200")
        yield folder


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty made-up patients at two sites; labels ``normal`` and ``abnormal``, four findings."""
    return write_phantoms(
        tmp_path_factory.mktemp("phantoms") / "phantoms", PhantomConfig(patients=60, size=48, inverted=0)
    )


@pytest.fixture(scope="session")
def pretrained(phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return api.pretrain(phantoms, out=tmp_path_factory.mktemp("runs") / "pre", options=PRETRAINING)


@pytest.fixture(scope="session")
def finetuned(phantoms: Path, pretrained: Run, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return api.finetune(
        phantoms, out=tmp_path_factory.mktemp("runs") / "ft", parent=pretrained.path, options=FROM_PARENT
    )


@dataclass
class Said:
    """What a command printed and how it ended."""

    code: int
    out: str
    err: str

    @property
    def text(self) -> str:
        return self.out + self.err


Command = Callable[..., Said]


@pytest.fixture
def scanprior(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Run the command line in this process; what it raises beyond SystemExit is a failure."""

    def run(*words: object) -> Said:
        monkeypatch.setattr(sys, "argv", ["scanprior", *map(str, words)])
        capsys.readouterr()
        code = 0
        try:
            main()
        except SystemExit as end:
            code = int(end.code or 0)
        printed = capsys.readouterr()
        return Said(code, printed.out, printed.err)

    return run


@pytest.fixture
def refused(scanprior: Command) -> Callable[..., str]:
    """Run a command that must be refused in one clear sentence; return the sentence."""

    def run(*words: object) -> str:
        said = scanprior(*words)
        assert said.code == 2, said.text
        assert "Traceback" not in said.text
        lines = said.err.strip().splitlines()
        assert len(lines) == 1 and lines[0].startswith("error: "), said.err
        return lines[0].removeprefix("error: ")

    return run


def words(options: dict[str, object]) -> list[str]:
    """Return options as ``--set`` arguments."""
    return [word for name, value in options.items() for word in ("--set", f"{name}={value}")]
