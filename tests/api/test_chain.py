"""Chains of pretrainings: each goes on from the one before, and the last knows where it comes from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import timm
import torch
from safetensors.torch import load_file

from api.conftest import QUICK, SHORT
from scanprior import api
from scanprior.engine import Reporter
from scanprior.errors import ConfigError
from scanprior.run import Run

CONVNET: dict[str, Any] = {
    **SHORT, "engine.steps": 2, "data.size": 32, "data.workers": 0, "encoder.name": "convnextv2_atto",
    "objective.name": "masked_convnet", "objective.decoder_dim": 32, "objective.path": "dense",
}  # fmt: skip


class Notes(Reporter):
    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, text: str) -> None:
        self.said.append(text)


@pytest.fixture(scope="module")
def base(phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """From a weights file with names of its own."""
    folder = tmp_path_factory.mktemp("chain")
    with torch.random.fork_rng():
        torch.manual_seed(3)
        state = timm.create_model("convnextv2_atto", in_chans=3, num_classes=0).state_dict()
    other = {f"part{i}.{name.rsplit('.', 1)[1]}": value for i, (name, value) in enumerate(state.items())}
    torch.save(other, folder / "imagenet.pth")
    notes = Notes()
    options = {**CONVNET, "encoder.weights": str(folder / "imagenet.pth")}
    run = api.pretrain(phantoms, out=folder / "base", options=options, reporter=notes)
    assert any("by order and shape" in text for text in notes.said), notes.said
    made = load_file(run.weights)
    mean = state["stages.3.blocks.1.mlp.fc1.weight"]
    torch.testing.assert_close(
        made["encoder.net.stages.3.blocks.1.mlp.fc1.weight"], mean, rtol=0, atol=0.02
    )  # two short steps away from the file
    return run


@pytest.fixture(scope="module")
def target(base: Run, phantoms: Path) -> Run:
    """The second stage trains normalisation layers alone."""
    options = {name: value for name, value in CONVNET.items() if not name.startswith("encoder.")}
    options |= {"adapt.train": "norm"}
    return api.pretrain(phantoms, out=base.path.parent / "target", parent=base.path, options=options)


def test_norm_only_stage_changes_norms_and_nothing_else(base: Run, target: Run) -> None:
    before, after = load_file(base.weights), load_file(target.weights)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    words = ("norm", "grn", "downsample.0", "stem.1")
    assert all(any(word in name for word in words) for name in changed), changed
    assert target.config()["adapt"]["train"] == "norm"


def test_the_last_run_knows_the_whole_chain(base: Run, target: Run, phantoms: Path, tmp_path: Path) -> None:
    options = {**SHORT, **QUICK, "engine.steps": 2, "data.workers": 0, "augment.preset": "none"}
    run = api.finetune(phantoms, out=tmp_path / "run", parent=target.path, options=options)
    first = run.card["parent"]
    assert (first["path"], first["fingerprint"]) == (str(target.path), target.fingerprint())
    second = first["parent"]
    assert (second["path"], second["fingerprint"]) == (str(base.path), base.fingerprint())
    assert second["parent"] is None and second["objective"] == "masked_convnet"
    assert run.config()["adapt"]["train"] == "all"  # a restriction is of one stage


def test_test_images_that_an_early_stage_saw_are_told(base: Run, phantoms: Path, tmp_path: Path) -> None:
    """A chain whose first stage saw everything stays transductive."""
    options: dict[str, Any] = {**CONVNET, "data.transductive": True}
    seen = api.pretrain(phantoms, out=tmp_path / "seen", options=options)
    rest = {name: value for name, value in CONVNET.items() if not name.startswith("encoder.")}
    later = api.pretrain(phantoms, out=tmp_path / "later", parent=seen.path, options=rest)
    few = {**SHORT, **QUICK, "engine.steps": 1, "data.workers": 0, "augment.preset": "none"}
    run = api.finetune(phantoms, out=tmp_path / "run", parent=later.path, options=few)
    held_out = pd.read_parquet(run.path / "data.parquet")["used"].isin(["val", "test"]).sum()
    assert run.card["data"]["transductive"] is True and held_out
    assert any(text.startswith("transductive: the pretraining saw") for text in run.card["notes"])


def test_a_pretraining_of_nothing_is_refused(phantoms: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"adapt.*train: none would pretrain nothing"):
        api.pretrain(phantoms, out=tmp_path / "run", options={**CONVNET, "adapt.train": "none"})
