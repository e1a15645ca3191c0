"""Drift and shift: changed images, and other images."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from api.conftest import FINETUNING, Command
from api.runs import copied, used
from scanprior import api
from scanprior.api.evaluation import open_subject
from scanprior.api.models import load_classifier
from scanprior.data.drifts import DRIFTS, apply_drift
from scanprior.data.transforms import to_input
from scanprior.engine import Reporter
from scanprior.run import Run


@pytest.fixture(scope="module")
def own_run(finetuned: Run, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A copy of the run that other tests share, to write into."""
    return Run.open(shutil.copytree(finetuned.path, tmp_path_factory.mktemp("copy") / "ft"))


@pytest.fixture(scope="module")
def drifted(own_run: Run) -> dict[str, object]:
    return api.drift(own_run.path, kinds=["gamma", "noise"], seed=3)


def test_a_drift_changes_the_pixels_and_nothing_else(own_run: Run, drifted: dict[str, object]) -> None:
    """Predictions under a drift are those of the images changed by hand."""
    table = pd.read_parquet(own_run.path / "drifts.parquet")
    assert {(kind, n) for kind, n in zip(table["kind"], table["severity"], strict=True)} == {
        ("none", 0), *((kind, n) for kind in ("gamma", "noise") for n in range(1, 6)),
    }  # fmt: skip
    test = pd.read_parquet(own_run.path / "evaluations" / "test.parquet")
    plain = table[table["severity"] == 0]
    np.testing.assert_allclose(plain["prob:abnormal"], test["prob:abnormal"])
    subject = open_subject(
        own_run.path,
        data=None,
        split="test",
        label_map=None,
        settings=[],
        reporter=Reporter(),
    )
    model, preprocessing = load_classifier(own_run)
    pixels = subject.images.store.read(subject.rows)
    changed = apply_drift(pixels, "noise", 4, seed=3, positions=subject.rows)
    expected = model.predict([to_input(changed, preprocessing)])[:, model.classes.index("abnormal")]
    part = table[(table["kind"] == "noise") & (table["severity"] == 4)]
    np.testing.assert_allclose(part["prob:abnormal"], expected, atol=1e-6)
    assert list(part["image"]) == list(test["image"])


def test_rows_say_what_each_drift_costs(own_run: Run, drifted: dict[str, object]) -> None:
    rows = pd.DataFrame(drifted["rows"])
    own = json.loads((own_run.path / "evaluations" / "test.json").read_text())
    known = next(
        row
        for row in own["metrics"]
        if row["metric"] == "auroc" and not str(row["interval"]).startswith("DeLong")
    )
    auroc = rows[rows["metric"] == "auroc"].set_index(["kind", "severity"])
    plain = auroc.loc[("none", 0)]
    assert plain["value"] == pytest.approx(known["value"]) and pd.isna(plain["difference"])
    for place, row in auroc.iterrows():
        if place != ("none", 0):
            assert row["difference"] == pytest.approx(row["value"] - plain["value"])
            if row["difference_reason"] is None:
                assert row["difference_low"] <= row["difference"] <= row["difference_high"]
    # Thresholds are the run's own, as in its evaluation.
    sensitivity = next(row["value"] for row in own["metrics"] if row["metric"] == "sensitivity")
    assert rows[(rows["severity"] == 0) & (rows["metric"] == "sensitivity")]["value"].item() == pytest.approx(
        sensitivity
    )
    written = json.loads((own_run.path / "drifts.json").read_text())
    assert written["rows"] == drifted["rows"] and written["kinds"]["gamma"]["values"] == list(
        DRIFTS["gamma"].values
    )


def test_the_commands(
    own_run: Run,
    pretrained: Run,
    phantoms: Path,
    tmp_path: Path,
    scanprior: Command,
    refused: Callable[..., str],
) -> None:
    said = scanprior("drift", own_run.path, "--kinds", "blur")
    assert said.code == 0 and "blur" in said.out and "next:" in said.out, said.text
    assert "did you mean blur" in refused("drift", own_run.path, "--kinds", "blurr")
    said = scanprior(
        "shift",
        pretrained.path,
        "--reference",
        phantoms,
        "--target",
        phantoms,
        "--permutations",
        99,
        "--json",
        tmp_path / "s.json",
    )
    assert said.code == 0 and "no shift was found" in said.out, said.text
    found = json.loads((tmp_path / "s.json").read_text())
    images = len(pd.read_csv(phantoms / "labels.csv"))
    assert found["identical_images"] == images and found["flag"] is False
    assert "level" in refused(
        "shift", pretrained.path, "--reference", phantoms, "--target", phantoms, "--permutations", 5
    )
    assert "no run folder" in refused("shift", tmp_path, "--reference", phantoms, "--target", phantoms)


def test_images_in_the_other_polarity_are_flagged(pretrained: Run, phantoms: Path, tmp_path: Path) -> None:
    table = pd.read_csv(phantoms / "labels.csv")
    (tmp_path / "images").mkdir()
    for name in table["image"]:
        pixels = 255 - np.asarray(Image.open(phantoms / name))
        Image.fromarray(pixels).save(tmp_path / name)
    table[["image"]].to_csv(tmp_path / "labels.csv", index=False)
    found = api.shift(pretrained.path, phantoms, tmp_path, permutations=99)
    assert found["flag"] is True and found["p"] == 0.01 and found["identical_images"] == 0


def test_held_out_images_of_other_data_are_those_a_training_would_hold_out(
    own_run: Run, phantoms: Path, tmp_path: Path
) -> None:
    """The division for an evaluation elsewhere is the one that a pretraining on those data makes."""

    def renamed(table: pd.DataFrame) -> pd.DataFrame:
        return table.replace({"label": {"normal": "healthy"}})

    other = copied(phantoms, tmp_path / "other", renamed)
    table = pd.read_csv(other / "labels.csv")
    result = api.evaluate(
        own_run.path, data=other, split="held-out", name="other_hospital", label_map={"healthy": "normal"},
        settings=["evaluation.resamples=100"],
    )  # fmt: skip
    tiny = {name: own_run.config()["data"][name] for name in ("size", "workers", "split")}
    encoder = {"name": "vit_tiny_patch16_224", "patch_size": 8, "depth": 1, "embed_dim": 16, "num_heads": 2}
    config = {"data": tiny, "encoder": encoder, "engine": {"steps": 1, "batch_size": 4}}
    run = api.pretrain(other, out=tmp_path / "pre", objective="mae", config=config)
    seen = used(run, "pretrain")
    tested = set(pd.read_parquet(own_run.path / "evaluations" / "other_hospital.parquet")["image"])
    assert seen and tested and not seen & tested and len(seen | tested) == len(table)
    assert result["n"] == len(tested)


def test_uncertain_labels_take_no_part_in_a_drift(phantoms: Path, tmp_path: Path) -> None:
    def uncertain(table: pd.DataFrame) -> pd.DataFrame:
        findings = ["consolidation", "effusion"]
        for number, name in enumerate(findings):
            table[name] = table[name].where(table.index % 7 != number, -1)
        return table[["image", "patient", *findings]]

    source = copied(phantoms, tmp_path / "uncertain", uncertain)
    options = {
        **FINETUNING, "data.label_columns": ["consolidation", "effusion"], "task.uncertain": "ignore"
    }  # fmt: skip
    run = api.finetune(source, out=tmp_path / "run", options=options)
    found = api.drift(run.path, kinds=["blur"])
    own = json.loads((run.path / "evaluations" / "test.json").read_text())
    known = {(r["metric"], r["class"]): r["n"] for r in own["metrics"]}
    for row in found["rows"]:
        assert row["n"] == known[row["metric"], row["class"]]
