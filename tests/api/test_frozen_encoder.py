"""The encoder of a run that did not train it is a file of its own, which runs can share."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

from api.conftest import FROM_PARENT
from scanprior import api
from scanprior.api.models import load_classifier, load_encoder
from scanprior.errors import RunError
from scanprior.files import share
from scanprior.run import Run

FROZEN = {**FROM_PARENT, "adapt.train": "none"}


@pytest.fixture(scope="module")
def frozen(phantoms: Path, pretrained: Run, tmp_path_factory: pytest.TempPathFactory) -> Run:
    out = tmp_path_factory.mktemp("frozen") / "run"
    return api.finetune(phantoms, out=out, parent=pretrained.path, options=FROZEN)


def test_a_frozen_encoder_is_kept_apart(pretrained: Run, finetuned: Run, frozen: Run) -> None:
    assert frozen.card["format"] == 2 and finetuned.card["format"] == pretrained.card["format"] == 1
    assert [file.name for file in frozen.weight_files] == ["model.safetensors", "encoder.safetensors"]
    assert finetuned.weight_files == [finetuned.weights]
    head, encoder, parent = map(load_file, (frozen.weights, frozen.encoder_weights, pretrained.weights))
    assert "head.linear.weight" in head and not any(name.startswith("encoder.") for name in head)
    assert encoder.keys() == parent.keys()
    assert all(torch.equal(encoder[name], parent[name]) for name in parent)
    whole = load_classifier(frozen)[0].state_dict()
    assert whole.keys() == head.keys() | encoder.keys()
    assert all(torch.equal(whole[name], tensor) for name, tensor in {**head, **encoder}.items())


def test_it_is_the_start_of_others(phantoms: Path, pretrained: Run, frozen: Run, tmp_path: Path) -> None:
    one, other = load_encoder(frozen).state_dict(), load_encoder(pretrained).state_dict()
    assert all(torch.equal(one[name], other[name]) for name in other)
    options = {**FROM_PARENT, "engine.steps": 1}
    runs = [
        api.finetune(phantoms, out=tmp_path / name, parent=parent.path, options=options)
        for name, parent in (("a", frozen), ("b", pretrained))
    ]
    weights = [load_file(run.weights) for run in runs]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[1])
    named = {**options, "encoder.weights": str(frozen.path), **_network(frozen)}
    third = api.finetune(phantoms, out=tmp_path / "c", options={**named, "engine.layer_decay": None})
    assert third.card["encoder"]["weights"] == str(frozen.path)


def _network(run: Run) -> dict[str, object]:
    kept = ("name", "patch_size", "depth", "embed_dim", "num_heads")
    return {f"encoder.{name}": run.card["encoder"][name] for name in kept}


def test_the_fingerprint_is_of_both_files(frozen: Run, tmp_path: Path) -> None:
    copy = Run.open(shutil.copytree(frozen.path, tmp_path / "copy"))
    assert copy.fingerprint() == frozen.fingerprint()
    for file in ("model.safetensors", "encoder.safetensors"):
        changed = Run.open(shutil.copytree(frozen.path, tmp_path / file))
        content = bytearray((changed.path / file).read_bytes())
        content[-1] ^= 1
        (changed.path / file).write_bytes(content)
        assert changed.fingerprint() != frozen.fingerprint()


def test_one_that_is_missing_is_named(
    frozen: Run, phantoms: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    copy = shutil.copytree(frozen.path, tmp_path / "copy")
    (copy / "encoder.safetensors").unlink()
    image = next(path for path in phantoms.rglob("*.png"))
    sentence = refused("predict", copy, image, "--out", tmp_path / "p.csv")
    assert "encoder.safetensors: there is no such weights file" in sentence
    (entry,) = api.runs(tmp_path)
    assert (entry.state, entry.reason) == ("damaged", "encoder.safetensors is missing")


def test_overwriting_a_frozen_run_leaves_nothing_of_it(phantoms: Path, frozen: Run, tmp_path: Path) -> None:
    copy = shutil.copytree(frozen.path, tmp_path / "copy")
    parent = frozen.card["parent"]["path"]
    options = {**FROM_PARENT, "engine.steps": 1}
    run = api.finetune(phantoms, out=copy, parent=parent, options=options, overwrite=True)
    assert run.card["format"] == 1 and not (copy / "encoder.safetensors").exists()


def test_shared_files_take_the_room_of_one(tmp_path: Path) -> None:
    files = []
    for name, content in (("a", b"same"), ("b", b"same"), ("c", b"other")):
        (tmp_path / name).mkdir()
        files.append(tmp_path / name / "encoder.safetensors")
        files[-1].write_bytes(content)
    for file in (*files, *files):
        share(file, tmp_path / "encoders")
    assert files[0].samefile(files[1]) and not files[0].samefile(files[2])
    assert [file.read_bytes() for file in files] == [b"same", b"same", b"other"]
    assert len(list((tmp_path / "encoders").iterdir())) == 2
    assert [len(list(file.parent.iterdir())) for file in files] == [1, 1, 1]
    files[0].unlink()
    assert files[1].read_bytes() == b"same"


def test_without_hard_links_files_stay_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError("no links here")

    monkeypatch.setattr("scanprior.files.os.link", refuse)
    file = tmp_path / "encoder.safetensors"
    file.write_bytes(b"weights")
    share(file, tmp_path / "encoders")
    assert file.read_bytes() == b"weights" and not list((tmp_path / "encoders").iterdir())


def test_predictions_are_those_of_the_training(frozen: Run, phantoms: Path) -> None:
    table = pd.read_parquet(frozen.path / "predictions.parquet")
    rows = table[table["split"] == "test"].head(3)
    files = [str(phantoms / name) for name in rows["image"]]
    found = api.predict(frozen.path, files)
    names = [name for name in found if name.startswith("prob:")]
    assert np.allclose(found[names], rows[names], atol=1e-6)
    assert json.loads((frozen.path / "model.json").read_text())["adapt"]["train"] == "none"


def test_an_encoder_without_some_of_its_weights_is_refused(phantoms: Path, tmp_path: Path) -> None:
    network = {"encoder.name": "test_convnext.r160_in1k"}  # its last norm may be missing in published files
    options = {**FROM_PARENT, **network, "adapt.train": "none", "engine.steps": 1}
    run = api.finetune(phantoms, out=tmp_path / "run", options=options)
    weights = load_file(run.encoder_weights)
    del weights["encoder.net.head.norm.weight"]
    save_file(weights, run.encoder_weights)
    with pytest.raises(RunError, match=r"missing \(.*head\.norm\.weight\)"):
        load_encoder(run)
