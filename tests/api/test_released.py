"""The encoders in the box: small, documented, without a word of where they were made, and usable by name."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from api.conftest import QUICK, SHORT, Command
from scanprior import api
from scanprior.api.models import load_encoder
from scanprior.data.phantom import PhantomConfig, write_phantoms
from scanprior.run import Run, located, released

NAME = "scanprior:cxr-tiny"


def test_the_box_holds_it() -> None:
    assert NAME in released() and located(NAME) == released()[NAME]


@pytest.mark.parametrize("name", sorted(released()))
def test_files_are_small_and_tell_what_matters(name: str) -> None:
    folder = located(name)
    weights = load_file(folder / "model.safetensors")
    assert (folder / "model.safetensors").stat().st_size <= 6_000_000
    assert {tensor.dtype for tensor in weights.values()} == {torch.float16}
    card = Run.open(name).card
    for part in ("summary", "licence", "training_images", "results", "limits", "seed"):
        assert card[part] is not None, part
    assert {source["name"] for source in card["data"]["sources"]} == set(card["training_images"])
    assert not card["data"]["transductive"]
    for row in card["results"]:
        assert row["low"] <= row["value"] <= row["high"] and len(row["seeds"]) >= 5
    seen = pd.read_parquet(folder / "data.parquet")
    assert len(seen) == card["data"]["images_used"] and set(seen["split"]) == {"train"}
    for file in folder.iterdir():
        text = file.read_bytes().decode("latin-1")
        assert not re.search(r"(?<![\w.])/(home|root|work|tmp|Users)/", text), file.name
    page = (folder / "README.md").read_text()
    assert "licence" in page and "no medical device" in page


def test_fine_tuning_starts_from_it(tmp_path: Path, scanprior: Command) -> None:
    source = write_phantoms(tmp_path / "phantoms", PhantomConfig(patients=40, size=64, sites=("a",), seed=5))
    out = tmp_path / "run"
    options = {**SHORT, **QUICK, "engine.steps": 1, "engine.lr": 1e-9, "labels.count": 10}
    run = api.finetune(source, out=out, parent=NAME, options=options)
    assert run.card["parent"]["path"] == NAME and run.card["encoder"]["depth"] == 6
    assert run.card["preprocessing"]["size"] == 64
    first, second = load_file(located(NAME) / "model.safetensors"), load_file(run.weights)
    for key, tensor in first.items():
        torch.testing.assert_close(second[key], tensor.float(), atol=1e-6, rtol=0)
    with torch.no_grad():
        features = load_encoder(Run.open(NAME))(torch.randn(2, 1, 64, 64)).pooled
    assert features.shape == (2, 192) and features.dtype == torch.float32 and features.isfinite().all()
    said = scanprior("encoders", "cxr")
    assert NAME in said.out and "next:" in said.out


def test_names_that_are_not_in_the_box(tmp_path: Path, refused: Callable[..., str]) -> None:
    said = refused("finetune", tmp_path, "--from", "scanprior:cxr-huge", "--out", tmp_path / "run")
    assert "no such encoder comes with scanprior" in said and NAME in said


def test_it_says_when_test_images_are_among_those_it_has_seen(
    tmp_path: Path, real_data: Callable[[str], Path]
) -> None:
    folder = real_data("shenzhen")
    table = pd.read_csv(folder / "labels.csv").groupby("label").head(30)
    table.drop(columns=["mask"]).to_csv(tmp_path / "some.csv", index=False)
    options = {**SHORT, **QUICK, "engine.steps": 1, "labels.count": 10, "data.root": str(folder)}
    run = api.finetune(tmp_path / "some.csv", out=tmp_path / "run", parent=NAME, options=options)
    assert run.card["data"]["transductive"] and "the pretraining saw" in run.card["notes"][0]
