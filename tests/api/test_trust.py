"""What a run knows of its limits, in its card, its files and its predictions."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from torch.nn.modules.module import register_module_forward_hook

from api.conftest import FINETUNING, Command, words
from scanprior import api
from scanprior.api.models import load_predictor
from scanprior.api.outlier_detection import chosen_rows
from scanprior.api.reference import Reference, thumbnail
from scanprior.api.settings import TrustConfig
from scanprior.api.trust import Trust, assess
from scanprior.encoders import Encoder
from scanprior.evaluation import apply_temperature, fit_temperature
from scanprior.reporting.model_card import model_card
from scanprior.run import Run

SPLIT = {"data.split.fractions": [0.4, 0.4, 0.2]}


@pytest.fixture(scope="module")
def trusted(phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    out = tmp_path_factory.mktemp("trusted") / "run"
    return api.finetune(phantoms, out=out, options={**FINETUNING, **SPLIT, "trust.reference_images": 30})


def test_the_card_says_what_was_fitted_on_validation(trusted: Run) -> None:
    kept = trusted.card["trust"]
    table = pd.read_parquet(trusted.path / "predictions.parquet")
    val = table[table["split"] == "val"]
    found = val[["prob:abnormal", "prob:normal"]].to_numpy()
    truth = np.stack([val["label"] == name for name in ("abnormal", "normal")], axis=1).astype(float)
    assert kept["temperature"]["value"] == fit_temperature(found, truth, "multiclass")
    assert kept["temperature"]["images"] == len(val) and kept["notes"] == []
    before, after = kept["temperature"]["log_loss"]
    assert after <= before
    assert kept["outliers"]["reference_images"] == 30 and kept["outliers"]["false_alarms"] == 0.05


def test_predictions_say_it(trusted: Run, phantoms: Path, tmp_path: Path) -> None:
    table = pd.read_parquet(trusted.path / "predictions.parquet")
    val = table[table["split"] == "val"].reset_index(drop=True)
    said = api.predict(trusted.path, [phantoms / name for name in val["image"]])
    found = said[["prob:abnormal", "prob:normal"]].to_numpy()
    value = trusted.card["trust"]["temperature"]["value"]
    np.testing.assert_allclose(
        said[["calibrated:abnormal", "calibrated:normal"]], apply_temperature(found, value, "multiclass")
    )
    held = [label in sets.split("|") for label, sets in zip(val["label"], said["conformal_set"], strict=True)]
    assert np.mean(held) >= 0.9  # on the very images it was fitted on
    assert said["outlier"].mean() <= 0.05 and said["outlier_p"].min() > 0
    noise = np.random.default_rng(0).integers(0, 256, (48, 48), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    (tmp_path / "broken.png").write_bytes(b"none")
    other = api.predict(trusted.path, [tmp_path / "noise.png", tmp_path / "broken.png"])
    assert other["outlier"].tolist() == [True, None] and other["outlier_score"].isna().tolist() == [
        False,
        True,
    ]
    assert other["conformal_set"].isna().tolist() == [False, True]


@pytest.mark.parametrize("column", ["patient", "near_duplicates"])
def test_sets_are_fitted_with_every_patient_counting_once(trusted: Run, tmp_path: Path, column: str) -> None:
    """Also where one image is of an unknown patient, and where near duplicates stay together."""
    shutil.copytree(trusted.path, tmp_path / "run")
    file = tmp_path / "run" / "predictions.parquet"
    table = pd.read_parquet(file)
    val = table.index[table["split"] == "val"]
    table.loc[val, column] = [None, *(f"g{n // 3}" for n in range(len(val) - 1))]
    table.to_parquet(file, index=False)
    run = Run.open(tmp_path / "run")
    assess(run, load_predictor(run), TrustConfig())
    assert run.card["trust"]["sets"]["thresholds"][0]["units"] == [1 + -(-(len(val) - 1) // 3)]


def test_similar_cases_have_labels_and_pictures_but_no_names(trusted: Run) -> None:
    reference = Reference.open(trusted)
    assert reference is not None
    assert list(reference.table.columns) == ["label", "thumbnail"] and len(reference.table) == 30
    assert reference.table["thumbnail"].iloc[0][:2] == b"\xff\xd8"
    rows, alike = reference.similar(reference.pooled[3:5], 4)
    assert rows[:, 0].tolist() == [3, 4] and alike[:, 0] == pytest.approx(1, abs=1e-3)
    assert (np.diff(alike, axis=1) <= 1e-6).all()


def test_what_is_too_little_is_said(phantoms: Path, tmp_path: Path) -> None:
    options = {**FINETUNING, "data.split.fractions": [0.8, 0.1, 0.1], "trust.reference_images": 0}
    run = api.finetune(phantoms, out=tmp_path / "run", options=options)
    kept = run.card["trust"]
    assert kept["temperature"] is None and kept["sets"] is None and kept["outliers"] is None
    assert any("too few for a calibration" in note for note in kept["notes"])
    assert Trust.open(run).names == [] and not (run.path / "reference.parquet").exists()


def test_the_kept_images_are_drawn_the_same_way_every_time() -> None:
    rows = np.arange(5, 205, dtype=np.int64)
    chosen = chosen_rows(rows, 50)
    assert len(chosen) == 50 and (np.diff(chosen) > 0).all() and set(chosen) <= set(rows)
    assert set(chosen_rows(rows[:100], 100)) == set(rows[:100])
    np.testing.assert_array_equal(chosen, chosen_rows(rows, 50))


def test_thumbnails_of_deep_and_coloured_images() -> None:
    for pixels in (np.full((1, 200, 200), 40_000, np.uint16), np.full((3, 50, 50), 90, np.uint8)):
        assert thumbnail(pixels)[:2] == b"\xff\xd8"


def test_evaluations_measure_the_sets(trusted: Run, phantoms: Path) -> None:
    """Of the run's own test images, and of others by site."""
    own = json.loads((trusted.path / "evaluations" / "test.json").read_text())
    table = pd.read_parquet(trusted.path / "evaluations" / "test.parquet")
    trust = Trust.open(trusted)
    assert trust.sets is not None
    named = trust.sets.named(table[["prob:abnormal", "prob:normal"]].to_numpy(), ["abnormal", "normal"])
    held = np.array([label in found.split("|") for label, found in zip(table["label"], named, strict=True)])
    rows = {(row["of"], row["site"]): row for row in own["sets"]}
    sites = sorted(table["site"].unique())
    assert set(rows) == {("all", None), ("abnormal", None), ("normal", None), *(("all", s) for s in sites)}
    for (of, site), row in rows.items():
        here = (table["label"].eq(of) | (of == "all")) & (table["site"].eq(site) | (site is None))
        assert row["coverage"] == pytest.approx(held[here].mean()) and row["n"] == here.sum()
        assert row["low"] <= row["coverage"] <= row["high"] and 1 <= row["mean_size"] <= 2
    again = api.evaluate(
        trusted.path, data=phantoms, split="all", name="every", settings=["evaluation.resamples=100"]
    )
    assert {row["of"] for row in again["sets"]} == {"all", "abnormal", "normal"}


def test_evaluations_count_outliers_as_predict_calls_them(
    trusted: Run, phantoms: Path, tmp_path: Path
) -> None:
    """In the run's own evaluation, and of images by site of which one holds noise."""
    table = pd.read_parquet(trusted.path / "evaluations" / "test.parquet")
    said = api.predict(trusted.path, [phantoms / name for name in table["image"]])
    assert table["outlier"].tolist() == said["outlier"].tolist()  # read from the store there, from files here
    np.testing.assert_allclose(table["outlier_score"], said["outlier_score"], rtol=1e-3)
    own = json.loads((trusted.path / "evaluations" / "test.json").read_text())["outliers"]
    assert own[0]["share"] == said["outlier"].mean() and own[0]["n"] == len(table)
    kept = pd.read_parquet(trusted.path / "predictions.parquet")
    assert kept.loc[kept["split"] == "val", "outlier"].isna().all()  # which have set the threshold
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    rows = []
    for number, name in enumerate(table["image"]):
        pixels = np.random.default_rng(number).integers(0, 256, (48, 48), dtype=np.uint8)
        picture = Image.fromarray(pixels) if number % 2 else Image.open(phantoms / name)
        picture.save(mixed / f"{number}.png")
        rows.append(
            [f"{number}.png", f"p{number}", table["label"][number], "noise" if number % 2 else "same"]
        )
    header = ["image", "patient", "label", "site"]
    pd.DataFrame(rows, columns=header).to_csv(mixed / "labels.csv", index=False)
    found = api.evaluate(
        trusted.path, data=mixed, split="all", name="mixed", settings=["evaluation.resamples=100"]
    )
    shares = {row["site"]: row["share"] for row in found["outliers"]}
    assert shares["noise"] == 1 and shares["same"] < 0.5
    page = api.report(trusted.path).read_text()
    assert "mixed: a share of" in page and "Images unlike the training" in page
    card = model_card(trusted)
    assert "- mixed: a share of" in card and "- Measured on test: conformal sets held the truth of" in card


def test_counting_outliers_takes_no_further_pass(trusted: Run, phantoms: Path) -> None:
    passes: list[int] = []

    def count(module: object, inputs: tuple[np.ndarray, ...], output: object) -> None:
        if isinstance(module, Encoder):
            passes.append(len(inputs[0]))

    hook = register_module_forward_hook(count)
    try:
        result = api.evaluate(trusted.path, settings=["evaluation.resamples=100"])
    finally:
        hook.remove()
    assert sum(passes) == result["n"] and result["outliers"][0]["n"] == result["n"]


def test_a_head_on_kept_features_leaves_outliers_to_evaluate(phantoms: Path, tmp_path: Path) -> None:
    options = {**FINETUNING, **SPLIT, "adapt.train": "none", "trust.reference_images": 30}
    run = api.finetune(phantoms, out=tmp_path / "run", options=options)
    own = json.loads((run.path / "evaluations" / "test.json").read_text())
    assert own["sets"] and "outliers" not in own
    again = api.evaluate(run.path, settings=["evaluation.resamples=100"])
    assert again["outliers"][0]["n"] == own["n"]


def test_an_ensemble_counts_outliers_of_its_test_images(
    trusted: Run, phantoms: Path, tmp_path: Path, scanprior: Command
) -> None:
    options = {**FINETUNING, **SPLIT, "trust.reference_images": 30, "engine.seed": 1}
    other = api.finetune(phantoms, out=tmp_path / "other", options=options)
    said = scanprior(
        "ensemble", trusted.path, other.path, "--out", tmp_path / "both", "--set", "trust.reference_images=30"
    )
    assert said.code == 0 and "temperature: " in said.out and "90% are to hold the truth" in said.out, (
        said.text
    )
    both = Run.open(tmp_path / "both")
    evaluation = json.loads((both.path / "evaluations" / "test.json").read_text())
    table = pd.read_parquet(both.path / "evaluations" / "test.parquet")
    assert evaluation["sets"][0]["n"] == evaluation["outliers"][0]["n"] == len(table)
    threshold = both.card["trust"]["outliers"]["threshold"]
    assert evaluation["outliers"][0]["share"] == (table["outlier_score"] > threshold).mean()
    assert table["prob:normal"].to_numpy() == pytest.approx(
        api.predict(both.path, [phantoms / name for name in table["image"]])["prob:normal"], abs=1e-4
    )


def test_a_run_of_before_is_evaluated_and_reported_without_it(
    trusted: Run, phantoms: Path, tmp_path: Path
) -> None:
    old = tmp_path / "old"
    shutil.copytree(trusted.path, old)
    card = json.loads((old / "model.json").read_text())
    del card["trust"]
    (old / "model.json").write_text(json.dumps(card))
    for file in [*old.glob("reference.*"), *(old / "evaluations").iterdir()]:
        file.unlink()
    found = api.evaluate(old, settings=["evaluation.resamples=100"])
    assert "sets" not in found and "outliers" not in found
    assert "When not to rely on it" not in api.report(old).read_text()
    assert "Fitted on validation" not in model_card(Run.open(old))


def test_the_report_the_card_and_the_terminal_say_it(
    trusted: Run, phantoms: Path, tmp_path: Path, scanprior: Command
) -> None:
    page = api.report(trusted.path).read_text()
    assert "When not to rely on it" in page and "Conformal sets" in page
    temperature = trusted.card["trust"]["temperature"]["value"]
    assert f"{temperature:.2f} (log loss" in page
    card = model_card(trusted)
    assert "90% are to hold the truth; least ambiguous sets" in card
    assert f"flagged above a score of {trusted.card['trust']['outliers']['threshold']:.2f}" in card
    few = {**FINETUNING, "data.split.fractions": [0.8, 0.1, 0.1]}
    said = scanprior("finetune", phantoms, "--out", tmp_path / "few", *words(few))
    assert said.code == 0 and "too few for a calibration" in said.out
    assert "too few for a calibration" in api.report(tmp_path / "few").read_text()
