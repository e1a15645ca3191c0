"""Losses, weights and ordered classes from end to end, on phantoms with grades."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from api.conftest import FROM_PARENT, words
from api.runs import by_image, copied, used
from scanprior import api
from scanprior.api.models import load_classifier
from scanprior.run import Run
from scanprior.tasks.balance import balance_weights

FINDINGS = ["consolidation", "effusion", "cardiomegaly", "nodule"]
GRADES = ["none", "mild", "severe"]


def graded(names: list[str]) -> Callable[[pd.DataFrame], pd.DataFrame]:
    """Label by how many findings there are: none, one, more."""

    def change(table: pd.DataFrame) -> pd.DataFrame:
        found = table.groupby("patient")[FINDINGS].transform("max").sum(axis=1).clip(upper=2)
        return table.drop(columns=FINDINGS).assign(label=np.array(names)[found.astype(int)])

    return change


@pytest.fixture(scope="module")
def text(phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copied(phantoms, tmp_path_factory.mktemp("text"), graded(GRADES))


@pytest.fixture(scope="module")
def numbers(phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copied(phantoms, tmp_path_factory.mktemp("numbers"), graded(["0", "1", "2"]))


@pytest.fixture(scope="module")
def ordinal(text: Path, pretrained: Run, tmp_path_factory: pytest.TempPathFactory) -> Run:
    options = {
        **FROM_PARENT, "task.head": "ordinal", "task.classes": GRADES, "selection.metric": "quadratic_kappa",
    }  # fmt: skip
    out = tmp_path_factory.mktemp("runs") / "ordinal"
    return api.finetune(text, out=out, parent=pretrained.path, options=options)


def rows_of(run: Run, name: str = "test") -> dict[tuple[str, str], dict[str, Any]]:
    found = json.loads((run.path / "evaluations" / f"{name}.json").read_text())
    return {(row["metric"], row["class"]): row for row in found["metrics"] if row["interval"] != "DeLong"}


def test_an_ordinal_run_is_selected_and_evaluated_by_its_order(ordinal: Run) -> None:
    from sklearn.metrics import cohen_kappa_score

    assert ordinal.card["task"]["classes"] == GRADES and ordinal.card["task"]["ordered"] is True
    assert ordinal.card["training"]["selected_by"] == "quadratic_kappa"
    table = pd.read_parquet(ordinal.path / "predictions.parquet")
    columns = [f"prob:{name}" for name in GRADES]
    np.testing.assert_allclose(table[columns].sum(axis=1), 1, atol=1e-6)

    def kappa(split: str) -> float:
        part = table[(table["split"] == split) & table["label"].notna()]
        called = np.array(GRADES)[part[columns].to_numpy().argmax(axis=1)]
        return float(cohen_kappa_score(part["label"], called, labels=GRADES, weights="quadratic"))

    assert ordinal.card["training"]["selected_value"] == pytest.approx(kappa("val"), abs=1e-6)
    assert rows_of(ordinal)["quadratic_kappa", "all"]["value"] == pytest.approx(kappa("test"), abs=1e-12)


def test_a_saved_ordinal_run_predicts_the_same(ordinal: Run, text: Path) -> None:
    table = api.predict(ordinal.path, text / "images")
    kept = by_image(pd.read_parquet(ordinal.path / "predictions.parquet"))
    columns = [f"prob:{name}" for name in GRADES]
    again = by_image(table).loc[kept.index, columns]
    np.testing.assert_allclose(again.to_numpy(), kept[columns].to_numpy(), rtol=0, atol=1e-6)
    model, _ = load_classifier(ordinal)
    assert model.head.linear.out_features == 2  # type: ignore[union-attr]


def test_an_ensemble_of_an_ordinal_and_a_linear_run(
    ordinal: Run, text: Path, pretrained: Run, tmp_path: Path
) -> None:
    options = {**FROM_PARENT, "task.classes": GRADES, "task.loss": "focal", "task.class_weights": "effective"}
    linear = api.finetune(text, out=tmp_path / "linear", parent=pretrained.path, options=options)
    assert "quadratic_kappa" in {metric for metric, _ in rows_of(linear)}
    both = api.ensemble(
        [ordinal.path, linear.path], out=tmp_path / "both", settings=["evaluation.resamples=100"]
    )
    assert both.card["task"]["ordered"] is True
    assert rows_of(both)["quadratic_kappa", "all"]["value"] is not None
    compared = api.compare(ordinal.path, linear.path, resamples=100)
    assert "quadratic_kappa" in {row["metric"] for row in compared["differences"]}


def test_numbers_are_in_order_by_themselves(numbers: Path, pretrained: Run, tmp_path: Path) -> None:
    options = {**FROM_PARENT, "task.head": "ordinal", "task.label_smoothing": 0.1}
    run = api.finetune(numbers, out=tmp_path / "run", parent=pretrained.path, options=options)
    assert run.card["task"]["classes"] == ["0", "1", "2"]
    assert rows_of(run)["quadratic_kappa", "all"]["value"] is not None


@pytest.mark.parametrize("weights", ["balanced", "effective", "none"])
def test_weights_are_of_the_labels_that_are_trained_on(
    text: Path, pretrained: Run, tmp_path: Path, weights: str
) -> None:
    options = {**FROM_PARENT, "task.class_weights": weights, "task.loss": "focal", "labels.count": 24}
    run = api.finetune(text, out=tmp_path / "run", parent=pretrained.path, options=options)
    assert run.card["task"]["settings"]["class_weights"] == weights
    model, _ = load_classifier(run)
    if weights == "none":
        assert "class_weights" not in run.card["task"] and (model.class_weights == 1).all()
        return
    labels = pd.read_csv(text / "labels.csv").set_index("image")["label"]
    trained = labels[sorted(used(run, "train"))].map({name: n for n, name in enumerate(sorted(GRADES))})
    assert len(trained) == 24
    wanted = balance_weights(trained.to_numpy(np.float64), "multiclass", 3, weights)  # type: ignore[arg-type]
    torch.testing.assert_close(model.class_weights, wanted)
    assert run.card["task"]["class_weights"] == dict(zip(sorted(GRADES), wanted.tolist(), strict=True))
    assert "quadratic_kappa" not in {metric for metric, _ in rows_of(run)}  # sorted text is in no order


def test_focal_loss_of_findings_with_gaps(phantoms: Path, pretrained: Run, tmp_path: Path) -> None:
    def gaps(table: pd.DataFrame) -> pd.DataFrame:
        table = table.drop(columns="label").astype(dict.fromkeys(FINDINGS, float))
        table.loc[table.index % 4 == 1, "effusion"] = -1
        table.loc[table.index % 4 == 2, "nodule"] = np.nan
        return table

    source = copied(phantoms, tmp_path / "source", gaps)
    options = {
        **FROM_PARENT, "data.label_columns": FINDINGS, "task.loss": "focal", "task.focal_gamma": 1.0,
        "task.class_weights": "effective", "task.uncertain": "soft", "selection.metric": "average_precision",
    }  # fmt: skip
    run = api.finetune(source, out=tmp_path / "run", parent=pretrained.path, options=options)
    assert set(run.card["task"]["class_weights"]) == set(FINDINGS)
    log = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    assert all(np.isfinite(line["loss"]) for line in log if "loss" in line)
    assert rows_of(run)["average_precision", "macro"]["value"] is not None


def test_a_probe_weighs_by_effective_numbers(text: Path, pretrained: Run, tmp_path: Path) -> None:
    options = {**FROM_PARENT, "task.class_weights": "effective", "task.classes": GRADES}
    run = api.probe(text, out=tmp_path / "run", parent=pretrained.path, options=options)
    assert run.card["task"]["classes"] == GRADES and "class_weights" not in run.card["task"]
    assert rows_of(run)["quadratic_kappa", "all"]["value"] is not None


REFUSED: dict[str, tuple[dict[str, object], list[str]]] = {
    "text without an order": ({"task.head": "ordinal"}, ["task.head", "mild, none, severe", "task.classes"]),
    "a class that is not there": (
        {"task.classes": [*GRADES, "grave"]}, ["task.classes", "'grave'", "mild, none, severe"],
    ),
    "a class left out": ({"task.classes": ["none", "mild"]}, ["task.classes", "'severe'", "data.label_map"]),
    "focal and ordinal": (
        {"task.head": "ordinal", "task.classes": GRADES, "task.loss": "focal"}, ["loss", "focal", "ordinal"],
    ),
    "weights and sampling": (
        {"task.balance": "sampling", "task.class_weights": "effective"}, ["class_weights", "balance=loss"],
    ),
    "a metric of an order": ({"selection.metric": "quadratic_kappa"}, ["selection.metric", "task.classes"]),
    "a metric of masks": ({"selection.metric": "dice"}, ["selection.metric", "dice", "quadratic_kappa"]),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused(
    text: Path, tmp_path: Path, refused: Callable[..., str], case: str, pretrained: Run
) -> None:
    settings, named = REFUSED[case]
    line = ["finetune", text, "--from", pretrained.path, "--out", tmp_path / "run"]
    said = refused(*line, *words({**FROM_PARENT, **settings}))
    assert all(part in said for part in named), said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"task.head": "ordinal"}, "task.head: 'ordinal' is for the classes of one label column"),
        ({"task.classes": GRADES}, "task.classes: "),
        ({"selection.metric": "kappa"}, "selection.metric: 'kappa' cannot be measured"),
    ],
)
def test_findings_are_in_no_order(
    phantoms: Path, tmp_path: Path, refused: Callable[..., str], settings: dict[str, object], named: str
) -> None:
    given = {**FROM_PARENT, "data.label_columns": FINDINGS, **settings}
    assert named in refused("finetune", phantoms, "--out", tmp_path / "run", *words(given))


def test_a_probe_has_no_focal_loss(phantoms: Path, tmp_path: Path, refused: Callable[..., str]) -> None:
    given = words({**FROM_PARENT, "task.loss": "focal"})
    assert "task.loss: 'focal' is for training" in refused(
        "probe", phantoms, "--out", tmp_path / "run", *given
    )
