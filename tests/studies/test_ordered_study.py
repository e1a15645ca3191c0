"""A study of classes in an order: its metric, its subgroups, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from sklearn.metrics import cohen_kappa_score

from scanprior.data.phantom import PhantomConfig, write_phantoms
from scanprior.errors import DataError
from scanprior.studies import study

FINDINGS = ["consolidation", "effusion", "cardiomegaly", "nodule"]
GRADES = ["none", "mild", "severe"]


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setenv("SCANPRIOR_CACHE", str(tmp_path / "cache"))
    source = write_phantoms(tmp_path / "phantoms", PhantomConfig(patients=50, size=32, inverted=0))
    table = pd.read_csv(source / "labels.csv").drop(columns="mask")
    found = table.groupby("patient")[FINDINGS].transform("max").sum(axis=1).clip(upper=2)
    table = table.drop(columns=FINDINGS).assign(label=np.array(GRADES)[found.astype(int)])
    table.to_csv(source / "labels.csv", index=False)
    return {
        "name": "grades",
        "data": {"ours": {}},
        "settings": {
            "data": {"size": 16, "store_size": 16, "workers": 0, "split": {"fractions": [0.5, 0.2, 0.3]}},
            "encoder": {
                "name": "vit_tiny_patch16_224", "patch_size": 8, "depth": 1, "embed_dim": 16, "num_heads": 2,
            },
            "engine": {"batch_size": 8, "precision": "32", "steps": 2},
            "evaluation": {"resamples": 100},
            "task": {"classes": GRADES},
            "selection": {"metric": "quadratic_kappa"},
        },
        "inits": {"linear": {}, "ordinal": {"settings": {"task": {"head": "ordinal"}}}},
        "baseline": "linear",
        "tasks": {
            "grading": {"data": "ours", "metrics": ["quadratic_kappa", "macro_f1"], "subgroups": {"sex": None}},
        },
        "seeds": [0, 1],
        "resamples": 100,
    }  # fmt: skip


def conducted(tree: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(tree))
    place = {"ours": tmp_path / "phantoms" / "labels.csv"}
    return study(tmp_path / "recipe.yaml", data=place, out=tmp_path / "out", workers=1)


@pytest.mark.usefixtures("in_this_process")
def test_quadratic_kappa_of_a_study(recipe: dict[str, Any], tmp_path: Path) -> None:
    results = conducted(recipe, tmp_path)
    assert not results["failed"]
    rows = {(row["init"], row["metric"]): row for row in results["efficiency"]}
    for init in ("linear", "ordinal"):
        kappas = []
        for seed in (0, 1):
            run = tmp_path / "out" / "runs" / "grading" / init / "all" / f"seed{seed}"
            table = pd.read_parquet(run / "evaluations" / "test.parquet")
            called = np.array(GRADES)[table[[f"prob:{name}" for name in GRADES]].to_numpy().argmax(axis=1)]
            kappas.append(cohen_kappa_score(table["label"], called, labels=GRADES, weights="quadratic"))
        assert rows[init, "quadratic_kappa"]["value"] == pytest.approx(np.mean(kappas), abs=1e-12)
        assert (init, "macro_f1") in rows
    groups = [row for row in results["subgroups"] if row["metric"] == "quadratic_kappa"]
    assert {row["group"] for row in groups} == {"F", "M"}
    assert "Quadratic weighted κ" in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.usefixtures("in_this_process")
def test_a_metric_of_an_order_that_is_not_given_is_refused(recipe: dict[str, Any], tmp_path: Path) -> None:
    del recipe["settings"]["task"], recipe["settings"]["selection"], recipe["inits"]["ordinal"]
    said = "tasks.grading.metrics: 'quadratic_kappa' cannot be had of ours; .* mild, none, severe are in none"
    with pytest.raises(DataError, match=said):
        conducted(recipe, tmp_path)
    assert not (tmp_path / "out" / "runs").exists()
