"""Weights from the hub, from the configuration to the card and on to a child."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from api.conftest import FINETUNING
from scanprior import api
from scanprior.encoders import EncoderConfig, create_encoder
from scanprior.run import Run

COMMIT = "0123456789abcdef0123456789abcdef01234567"
SMALL = {"name": "dinov2-s", "depth": 1, "embed_dim": 48, "num_heads": 3}


def test_a_card_names_the_commit_and_the_checksum(
    phantoms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "snapshots" / COMMIT / "model.safetensors"
    file.parent.mkdir(parents=True)
    source = create_encoder(EncoderConfig.model_validate(SMALL), size=28, channels=3, seed=4)
    save_file(source.net.state_dict(), file)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *names, **settings: str(file))
    options = {name: value for name, value in FINETUNING.items() if not name.startswith("encoder.")}
    options |= {f"encoder.{name}": value for name, value in SMALL.items()}
    options |= {"data.size": 28, "adapt.train": "none", "encoder.pretrained": True}
    run = api.finetune(phantoms, out=tmp_path / "run", options=options)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    assert (run.card["encoder"]["revision"], run.card["encoder"]["sha256"]) == (COMMIT, digest)
    assert torch.equal(load_file(run.encoder_weights)["encoder.net.pos_embed"], source.net.pos_embed)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", None)  # nothing is downloaded any more
    assert len(api.predict(run.path, phantoms / "images"))
    without = {
        name: value for name, value in options.items() if not name.startswith(("encoder.", "data.size"))
    }
    child = api.probe(phantoms, out=tmp_path / "child", parent=run.path, options=without)
    assert Run.open(child.path).card["encoder"]["revision"] is None
    assert torch.equal(load_file(child.encoder_weights)["encoder.net.pos_embed"], source.net.pos_embed)
