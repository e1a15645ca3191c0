"""The probe during pretraining: what it measures, on whom, and that it changes nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from sklearn.metrics import roc_auc_score

from api.conftest import PRETRAINING
from api.runs import copied
from scanprior import api
from scanprior.api.probing import TrainingProbe
from scanprior.api.settings import DataConfig, ProbeConfig
from scanprior.api.sources import load
from scanprior.config import build
from scanprior.engine import Reporter


def probe_of(source: Path, **settings: object) -> TrainingProbe:
    data = build(DataConfig, {"size": 32, "workers": 0})
    images = load([source], data, Reporter(), learn="nothing")
    rows = images.rows("train")
    return TrainingProbe(images, rows, build(ProbeConfig, settings), images.preprocessing(data, rows), 0)


class Told(torch.nn.Module):
    """An encoder whose features are whether an image is of the class, and what patient it is of."""

    def __init__(self, probe: TrainingProbe, *, says: str) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        patients = np.eye(probe.patients.max() + 1)[probe.patients]
        noise = np.random.default_rng(0).normal(0, 0.3, (len(probe.rows), 4))
        label = probe.targets[:, None]
        known = {"label": label * 2 - 1, "patient": patients * 10}[says]
        self.features, self.place = torch.from_numpy(np.concatenate([known, noise], axis=1)), 0

    def exported_encoder(self) -> Told:
        return self

    def forward(self, batch: torch.Tensor) -> object:
        part = self.features[self.place : self.place + len(batch)]
        self.place += len(batch)
        return type("Features", (), {"pooled": part})


@pytest.mark.parametrize("method", ["knn", "linear"])
def test_it_finds_what_features_say_and_not_who_they_are_of(phantoms: Path, method: str) -> None:
    probe = probe_of(phantoms, every=1, method=method)
    assert probe(Told(probe, says="label"), 1)["probe_auroc"] > 0.95
    # Features that only tell patients apart help with images of the same patient, which are never looked at.
    assert probe(Told(probe, says="patient"), 1)["probe_auroc"] < 0.75


def test_neighbours_are_those_of_a_loop(phantoms: Path) -> None:
    probe = probe_of(phantoms, every=1)
    told = Told(probe, says="label")
    features = told.features.numpy()
    features = features - features.mean(axis=0)
    expected = []
    for row, patient in zip(features, probe.patients, strict=True):
        others = np.flatnonzero(probe.patients != patient)
        near = [float(row @ features[o] / np.linalg.norm(row) / np.linalg.norm(features[o])) for o in others]
        best = np.argsort(near)[::-1][:20]
        weights = np.exp(np.array(near)[best] / 0.07)
        expected.append((weights * probe.targets[others[best]]).sum() / weights.sum())
    found = probe(told, 1)["probe_auroc"]
    assert found == pytest.approx(roc_auc_score(probe.targets, expected), abs=1e-6)


def test_it_looks_at_training_images_alone_and_as_many_as_asked(phantoms: Path) -> None:
    probe = probe_of(phantoms, every=1, images=20)
    images = load([phantoms], build(DataConfig, {"size": 32, "workers": 0}), Reporter(), learn="nothing")
    assert len(probe.rows) == 20 and set(images.frame["split"].iloc[probe.rows]) == {"train"}
    again = probe_of(phantoms, every=1, images=30)
    assert set(probe.rows) <= set(again.rows)
    for fold in range(5):
        inside = set(again.patients[again.folds == fold])
        assert inside and not inside & set(again.patients[again.folds != fold])


def test_pretraining_is_bit_equal_with_and_without_it(phantoms: Path, tmp_path: Path) -> None:
    for objective in ("mae", "sit"):
        plain = api.pretrain(phantoms, out=tmp_path / objective, objective=objective, options=PRETRAINING)
        options = {**PRETRAINING, "probe.every": 0.2}
        probed = api.pretrain(
            phantoms, out=tmp_path / f"{objective}-probed", objective=objective, options=options
        )
        first, second = load_file(plain.weights), load_file(probed.weights)
        assert all((first[name] == second[name]).all() for name in first)
        rows = [json.loads(line) for line in (probed.path / "metrics.jsonl").read_text().splitlines()]
        seen = [row for row in rows if row["split"] == "probe"]
        assert len(seen) >= 3 and all(0 <= row["probe_auroc"] <= 1 for row in seen)
        assert probed.card["training"]["selected_by"] is None
    page = api.report(probed.path).read_text()
    assert "AUROC of a probe on training images" in page


def test_what_it_cannot_look_at(phantoms: Path, tmp_path: Path, refused: Callable[..., str]) -> None:
    def one(table: pd.DataFrame) -> pd.DataFrame:
        return table[["image", "patient"]]

    bare = copied(phantoms, tmp_path / "bare", one)
    line = ["--out", tmp_path / "run", "--size", "32", "--set", "probe.every=1"]
    assert "no column of labels to probe with" in refused("pretrain", bare, *line)
    said = refused("pretrain", phantoms, *line, "--set", "probe.source=other")
    assert "probe.source: 'other' is no source with two classes" in said and "phantoms" in said
    assert not (tmp_path / "run").exists()
