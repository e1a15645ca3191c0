"""Features of a frozen encoder are computed once, and what is trained on them is what it would be without."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from api.conftest import FROM_PARENT
from scanprior import api
from scanprior.api import features as kept
from scanprior.api.embeddings import Embedder
from scanprior.api.features import StoredFeatures, features_key
from scanprior.api.models import load_encoder
from scanprior.data.store import Store
from scanprior.data.transforms import Preprocessing, to_input
from scanprior.encoders import descriptor
from scanprior.engine import Reporter
from scanprior.errors import ConfigError
from scanprior.run import Run

FROZEN = {**FROM_PARENT, "adapt.train": "none", "engine.lr": 5e-3, "engine.precision": "32"}


class Counting(Reporter):
    """Counts the blocks of images that are encoded."""

    def __init__(self) -> None:
        self.blocks = 0

    def counted(self, done: int, total: int, what: str) -> None:
        self.blocks += "blocks of images" in what


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of features of its own; stores stay where they are."""
    monkeypatch.setattr(kept, "cache_folder", lambda: tmp_path / "features")
    return tmp_path / "features"


def stored(run: Run, phantoms: Path, tmp_path: Path, **settings) -> StoredFeatures:
    made = api.prepare(phantoms, out=tmp_path / "store", options={"data.size": 32, "data.workers": 0})
    pre = Preprocessing.model_validate({**run.card["preprocessing"], "stored_size": 32})
    given = {"tokens": True, "reporter": Reporter(), "folder": tmp_path / "kept", **settings}
    return StoredFeatures(load_encoder(run), pre, Store.open(made.path), **given)


def test_what_is_kept_is_what_the_encoder_gives(pretrained: Run, phantoms: Path, tmp_path: Path) -> None:
    reporter = Counting()
    made = stored(pretrained, phantoms, tmp_path, reporter=reporter)
    rows = np.array([40, 2, 3])
    made.ensure(rows)
    assert reporter.blocks == 2  # those of 0..31 and 32..63
    found = made.read(rows)
    with torch.no_grad():
        images = to_input(torch.from_numpy(made.store.read(rows)), made.preprocessing)
        wanted = made.encoder(images)
    torch.testing.assert_close(found.pooled, wanted.pooled, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.tokens, wanted.tokens, rtol=2e-3, atol=2e-3)
    again = stored(pretrained, phantoms, tmp_path, reporter=reporter)
    again.ensure(np.arange(len(again.store)))
    blocks = -(-len(again.store) // kept.BLOCK)
    assert reporter.blocks == blocks  # the rest alone
    assert torch.equal(again.read(rows).pooled, found.pooled)
    pooled = stored(pretrained, phantoms, tmp_path, reporter=reporter, tokens=False)
    pooled.ensure(rows)
    assert reporter.blocks == blocks and pooled.read(rows).tokens.shape == (3, 0, 0)
    told = stored(pretrained, phantoms, tmp_path, reporter=reporter, descriptors=True)
    told.ensure(rows)
    assert reporter.blocks == blocks + 2  # for what was not kept of them
    embeddings = told.embeddings(rows)
    np.testing.assert_allclose(embeddings.descriptors, descriptor(wanted), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(embeddings.pooled, found.pooled)


def test_a_block_that_was_not_finished_is_encoded_again(
    pretrained: Run, phantoms: Path, tmp_path: Path, monkeypatch
) -> None:
    made = stored(pretrained, phantoms, tmp_path)
    whole = StoredFeatures._keep

    def killed(self: StoredFeatures, block: int, values: dict) -> None:
        if block == 1:
            raise KeyboardInterrupt
        whole(self, block, values)

    monkeypatch.setattr(StoredFeatures, "_keep", killed)
    with pytest.raises(KeyboardInterrupt):
        made.ensure(np.arange(64))
    monkeypatch.setattr(StoredFeatures, "_keep", whole)
    reporter = Counting()
    again = stored(pretrained, phantoms, tmp_path, reporter=reporter)
    again.ensure(np.arange(64))
    assert reporter.blocks == 1
    fresh = stored(pretrained, phantoms, tmp_path, folder=tmp_path / "other")
    fresh.ensure(np.arange(64))
    for rows in (np.arange(32), np.arange(32, 64)):
        assert torch.equal(again.read(rows).pooled, fresh.read(rows).pooled)
        assert torch.equal(again.read(rows).tokens, fresh.read(rows).tokens)


def test_the_place_changes_with_everything_that_counts(
    pretrained: Run, phantoms: Path, tmp_path: Path
) -> None:
    made = stored(pretrained, phantoms, tmp_path)
    encoder, pre, store = made.encoder, made.preprocessing, made.store
    assert features_key(encoder, pre, store) == made.key
    other = pre.model_copy(update={"mean": [0.4]})
    keys = {made.key, features_key(encoder, other, store)}
    with torch.no_grad():
        next(iter(encoder.parameters())).view(-1)[0] += 1e-6
    keys.add(features_key(encoder, pre, store))
    assert len(keys) == 3


@pytest.mark.parametrize("pooling", ["encoder", "attention"])
def test_training_on_kept_features_is_training(
    pretrained: Run, phantoms: Path, tmp_path: Path, cache: Path, pooling: str
) -> None:
    options = {**FROZEN, "task.pooling": pooling}
    runs = {}
    for name, keep in (("kept", True), ("images", False)):
        runs[name] = api.finetune(
            phantoms,
            out=tmp_path / name,
            parent=pretrained.path,
            options={**options, "adapt.keep_features": keep},
        )
        assert cache.exists()
    first, second = (load_file(runs[name].weights) for name in runs)
    before = load_file(pretrained.weights)
    assert all(torch.equal(first[name], value) for name, value in before.items() if name in first)
    tables = [by_name(run) for run in runs.values()]
    # AdamW turns rounding where a gradient is near zero into whole steps
    np.testing.assert_allclose(tables[0], tables[1], atol=1e-3 if pooling == "encoder" else 5e-3)
    limits = [run.card["trust"]["outliers"]["threshold"] for run in runs.values()]
    assert limits[0] == pytest.approx(limits[1], rel=1e-4)
    predicted = api.predict(runs["kept"].path, phantoms / "images")
    assert len(predicted) and set(first) == set(second)


def by_name(run: Run) -> pd.DataFrame:
    table = pd.read_parquet(run.path / "predictions.parquet").sort_values("image").set_index("image")
    return table[[name for name in table if name.startswith("prob:")]]


def test_one_budget_after_another_encodes_nothing_twice(
    pretrained: Run, phantoms: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor where the features are that say what is unlike the training images."""
    embeddings = Embedder.embeddings
    monkeypatch.setattr(Embedder, "embeddings", lambda *_: pytest.fail("images are encoded"))
    reporter = Counting()

    def train(name: str, **settings) -> int:
        before = reporter.blocks
        options = {**FROZEN, **{key.replace("_", ".", 1): value for key, value in settings.items()}}
        api.finetune(
            phantoms, out=tmp_path / name, parent=pretrained.path, options=options, reporter=reporter
        )
        return reporter.blocks - before

    assert train("a", labels_count=8) > 0
    assert train("b", labels_count=8, engine_seed=1) == 0
    train("c")
    assert train("d", labels_count=4) == 0
    reused = reporter.blocks
    api.probe(phantoms, out=tmp_path / "e", parent=pretrained.path, options=FROM_PARENT, reporter=reporter)
    assert reporter.blocks == reused
    monkeypatch.setattr(Embedder, "embeddings", embeddings)
    assert train("f", augment_preset="chest_xray_mild") == 0 and len(list(cache.iterdir())) == 1


def test_training_on_kept_features_goes_on_bit_equal(
    pretrained: Run, phantoms: Path, tmp_path: Path, cache: Path, monkeypatch
) -> None:
    options = {**FROZEN, "task.pooling": "attention", "engine.checkpoint_every": 1}
    whole = api.finetune(phantoms, out=tmp_path / "whole", parent=pretrained.path, options=options)

    class Killed(Reporter):
        def step(self, row, total, seconds) -> None:
            if row["step"] >= 2:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        api.finetune(
            phantoms, out=tmp_path / "cut", parent=pretrained.path, options={**options, "engine.log_every": 1},
            reporter=Killed(),
        )  # fmt: skip
    again = api.finetune(
        phantoms,
        out=tmp_path / "cut",
        parent=pretrained.path,
        options={**options, "engine.log_every": 1},
        resume=True,
    )
    first, second = load_file(whole.weights), load_file(again.weights)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_probe_trains_no_pooling(phantoms: Path, pretrained: Run, tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"task\.pooling: 'attention' has to be trained.*scanprior finetune"
    ):
        api.probe(
            phantoms, out=tmp_path / "run", parent=pretrained.path, options={**FROM_PARENT, "task.pooling": "attention"}
        )  # fmt: skip
