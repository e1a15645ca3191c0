"""Studies in folds: everything once for each part of the data, and means over the parts."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from scanprior.errors import ConfigError
from scanprior.evaluation.replicates import Replicates, averaged, mean_difference
from scanprior.studies import study
from scanprior.studies.recipe import read_recipe
from studies.test_study import SMALL, trained, written

FOLDED: dict[str, Any] = {
    **copy.deepcopy(SMALL),
    "name": "folded",
    "folds": 2,
    "pretraining": {
        "mae": {
            "data": ["ours"], "objective": "mae",
            "settings": {"objective": {"decoder_dim": 16, "decoder_depth": 1, "decoder_heads": 2}},
        },
    },
    "inits": {"scratch": {}, "mae": {"start": "mae"}},
    "seeds": [0, 1],
}  # fmt: skip
FOLDED["settings"]["data"]["split"] = {"seed": 0}
FOLDED["tasks"]["screening"] |= {
    "labels": ["all"], "metrics": ["auroc", "accuracy"], "ensembles": {"both": {"members": ["scratch", "mae"]}},
    "tune": {"labels": ["all"], "grid": {"engine.lr": [0.001, 0.01]}},
}  # fmt: skip


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCANPRIOR_CACHE", str(tmp_path_factory.getbasetemp() / "fold cache"))
    monkeypatch.setenv("COLUMNS", "200")


@pytest.mark.usefixtures("in_this_process")
def test_a_study_in_folds(tmp_path: Path) -> None:
    recipe, out = written(FOLDED, tmp_path / "r.yaml"), tmp_path / "out"
    results = study(recipe, out=out, workers=1)
    assert results["folds"] == 2 and not results["failed"] and not results["warnings"]
    tests = [
        pd.read_parquet(path)
        for path in sorted(out.glob("fold*/runs/screening/mae/all/seed0/evaluations/test.parquet"))
    ]
    images = [set(table["image"]) for table in tests]
    assert len(images) == 2 and not images[0] & images[1]
    whole = pd.read_parquet(out / "fold1" / "data" / "ours.parquet")
    assert images[0] | images[1] == set(whole["image"]), "every image is tested once"
    assert not set(tests[0]["patient"]) & set(tests[1]["patient"])
    for fold in (1, 2):  # no pretraining saw what its fold is tested on
        seen = pd.read_parquet(out / f"fold{fold}" / "pretrained" / "mae" / "data.parquet")
        assert len(seen) and not set(seen["image"]) & images[fold - 1]

    rows = {(row["init"], row["metric"]): row for row in results["efficiency"]}
    for init in ("scratch", "mae", "both"):
        each = [
            [
                json.loads(
                    (
                        out / f"fold{fold}/runs/screening/{init}/all/seed{seed}/evaluations/test.json"
                    ).read_text()
                )
                for fold in (1, 2)
            ]
            for seed in (0, 1)
        ]
        values = [np.mean([_metric(result, "accuracy") for result in folds]) for folds in each]
        assert rows[init, "accuracy"]["seeds"] == pytest.approx(values, abs=1e-6)
        assert rows[init, "accuracy"]["value"] == pytest.approx(np.mean(values), abs=1e-9)
        assert rows[init, "auroc"]["n"] == len(whole) == rows[init, "auroc"]["n"]
        assert rows[init, "auroc"]["patients"] == whole["patient"].nunique()
    assert rows["mae", "auroc"]["difference"] == pytest.approx(
        rows["mae", "auroc"]["value"] - rows["scratch", "auroc"]["value"]
    )
    against = {row["against"]: row for row in results["ensembles"] if row["metric"] == "accuracy"}
    members = [np.mean(rows[init, "accuracy"]["seeds"]) for init in ("scratch", "mae")]
    assert against["mean member"]["value_against"] == pytest.approx(np.mean(members))
    assert (
        {row["fold"] for row in results["tuned"]} == {row["fold"] for row in results["pretraining"]} == {1, 2}
    )
    report = (out / "report.md").read_text()
    assert "into 2 parts" in report and "mae, fold 2" in report

    before, written_before = trained(out), (out / "results.json").read_bytes()
    study(recipe, out=out, workers=1)
    assert trained(out) == before, "a finished run was done again"
    assert (out / "results.json").read_bytes() == written_before

    lost = out / "fold2" / "runs/screening/mae/all/seed1"  # a run that fails in one fold is named with it
    (lost / "model.json").unlink()
    (out / "fold2/pretrained/mae/model.safetensors").write_bytes(b"damaged")
    results = study(recipe, out=out, workers=1)
    assert list(results["failed"]) == ["fold2/runs/screening/mae/all/seed1"]
    rows = {(row["init"], row["metric"]): row for row in results["efficiency"]}
    assert len(rows["mae", "auroc"]["seeds"]) == 1  # only seeds that all folds have are averaged
    assert len(rows["scratch", "auroc"]["seeds"]) == 2


def _metric(result: dict[str, Any], name: str) -> float:
    return next(float(row["value"]) for row in result["metrics"] if row["metric"] == name)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"settings": {"data": {"split": {"folds": 3, "fold": 1}}}}, "set by the recipe's folds"),
        ({"tasks": {"t": {"data": "ours", "metrics": ["auroc"], "drifts": ["gamma"]}}}, r"tasks\.t\.drifts"),
        ({"tasks": {"t": {"data": "ours", "metrics": ["auroc"], "subgroups": {"sex": None}}}}, r"tasks\.t\.subgroups"),
        (
            {"tasks": {"t": {"data": "ours", "metrics": ["dice"], "settings": {"task": {"name": "segment"}}}}},
            r"tasks\.t is a segmentation",
        ),
        ({"shift": {"s": {"encoder": "mae", "reference": "ours", "target": "ours"}}}, "shift compares whole"),
        ({"folds": 1}, "folds"),
    ],
)  # fmt: skip
def test_what_folds_cannot_have_is_refused(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=said):
        read_recipe(written({**FOLDED, **change}, tmp_path / "r.yaml"))


def test_keys_of_a_recipe_can_be_changed_on_the_command_line(tmp_path: Path) -> None:
    path = written(FOLDED, tmp_path / "r.yaml")
    changed = read_recipe(path, changes=["seeds=[5]", "settings.augment.preset=ultrasound"])
    assert changed.seeds == [5] and changed.settings["augment"]["preset"] == "ultrasound"
    assert changed.settings["encoder"]["depth"] == 1
    with pytest.raises(ConfigError, match=r"seedz.*did you mean"):
        read_recipe(path, changes=["seedz=[5]"])


def test_intervals_over_folds_cover() -> None:
    """Means over three folds of 12 patients and four trainings: the difference of nothing holds 0 in 92 to 99 %."""
    random = np.random.default_rng(0)
    held, repeats, folds, size, trainings, resamples = 0, 400, 3, 12, 4, 300
    for _ in range(repeats):
        parts: list[list[Replicates]] = [[], []]
        for _ in range(folds):
            weights = random.multinomial(size, np.full(size, 1 / size), resamples) / size
            shared = random.normal(size=size)
            for side in parts:
                scores = (
                    shared + random.normal(size=(trainings, size)) + random.normal(0, 0.3, (trainings, 1))
                )
                scores += random.normal(0, 0.5, size)  # what a kind of training does to each patient
                side.append(Replicates(scores.mean(1), scores @ weights.T, size))
        one, two = (averaged(side, apart=True) for side in parts)
        found = mean_difference(one, two, "patient", 0.95)
        assert found.low is not None and found.high is not None
        held += found.low <= 0 <= found.high
    assert 0.92 <= held / repeats <= 0.99, held / repeats
