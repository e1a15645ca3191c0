"""Ensembles of tiny networks on phantoms: what they predict, what they refuse, what they say of their members."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.special import softmax

from api.conftest import FINETUNING, FROM_PARENT, Command
from api.runs import copied, used
from scanprior import api
from scanprior.api.models import load_predictor
from scanprior.engine.checkpoint import load_weights, replace_weights
from scanprior.errors import RunError
from scanprior.evaluation import Combination
from scanprior.run import Run

FINDINGS = ["consolidation", "effusion", "cardiomegaly", "nodule"]
PROBABILITIES = ["prob:abnormal", "prob:normal"]
CONVNET = {
    **{name: value for name, value in FINETUNING.items() if not name.startswith("encoder.")},
    "encoder.name": "test_resnet.r160_in1k", "data.size": 40, "data.fit": "pad", "data.channels": 3,
    "engine.seed": 5,
}  # fmt: skip


@pytest.fixture(scope="module")
def members(
    phantoms: Path, finetuned: Run, pretrained: Run, tmp_path_factory: pytest.TempPathFactory
) -> list[Run]:
    """A transformer, a ConvNet at another size with other preprocessing, and a probe."""
    home = tmp_path_factory.mktemp("members")
    convnet = api.finetune(phantoms, out=home / "convnet", options=CONVNET)
    probe = api.probe(phantoms, out=home / "probe", parent=pretrained.path, method="knn", options=FROM_PARENT)
    return [Run.open(shutil.copytree(finetuned.path, home / "vit")), convnet, probe]


@pytest.fixture(scope="module")
def mean(members: list[Run], tmp_path_factory: pytest.TempPathFactory) -> Run:
    return api.ensemble([run.path for run in members], out=members[0].path.parent / "ensemble")


def predictions(run: Run) -> pd.DataFrame:
    return pd.read_parquet(run.path / "predictions.parquet").set_index("image").sort_index()


def evaluation(run: Run, name: str = "test") -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run.path / "evaluations" / f"{name}.json").read_text())
    return found


def test_the_mean_is_that_of_what_the_members_wrote(members: list[Run], mean: Run) -> None:
    tables = [predictions(run) for run in members]
    found = predictions(mean)
    expected = np.mean([table.loc[found.index, PROBABILITIES].to_numpy() for table in tables], axis=0)
    np.testing.assert_allclose(found[PROBABILITIES], expected, atol=1e-6)
    for number, table in enumerate(tables, start=1):
        own = [f"member:{number}:abnormal", f"member:{number}:normal"]
        np.testing.assert_allclose(found[own], table.loc[found.index, PROBABILITIES], atol=1e-6)
    assert (
        found[["label", "split", "patient"]] == tables[0].loc[found.index, ["label", "split", "patient"]]
    ).all(axis=None)


def test_the_card_names_the_members(members: list[Run], mean: Run) -> None:
    card = json.loads((mean.path / "model.json").read_text())
    assert card["kind"] == "classify" and card["task"]["classes"] == ["abnormal", "normal"]
    section = card["ensemble"]
    assert section["method"] == "mean" and section["weights"] is None and section["temperatures"] is None
    assert [row["path"] for row in section["members"]] == ["../vit", "../convnet", "../probe"]
    assert [row["fingerprint"] for row in section["members"]] == [run.fingerprint() for run in members]
    assert [row["size"] for row in section["members"]] == [32, 40, 32]
    scores = [row["validation"]["auroc"] for row in section["members"]]
    assert scores[section["best"]] == max(scores)
    assert section["validation_images"] == (predictions(mean)["split"] == "val").sum()
    assert used(mean, "train") == used(members[0], "train")
    assert mean.members() == [run.path.resolve() for run in members]


@pytest.mark.parametrize("method", ["geometric", "calibrated", "weighted"])
def test_every_method(members: list[Run], mean: Run, method: str, tmp_path: Path) -> None:
    run = api.ensemble([run.path for run in members], out=tmp_path / "run", method=method)
    table, plain = predictions(run), predictions(mean)
    each = np.stack([plain[[f"member:{k}:abnormal", f"member:{k}:normal"]].to_numpy() for k in (1, 2, 3)])
    section = run.card["ensemble"]
    if method == "geometric":
        expected = softmax(np.log(each).mean(axis=0), axis=1)
    elif method == "weighted":
        assert sum(section["weights"]) == pytest.approx(1) and min(section["weights"]) >= 0
        expected = np.tensordot(section["weights"], each, axes=1)
    else:
        scaled = [softmax(np.log(p) / t, axis=1) for p, t in zip(each, section["temperatures"], strict=True)]
        expected = np.mean(scaled, axis=0)
    np.testing.assert_allclose(table[PROBABILITIES], expected, atol=1e-9)
    val = plain[plain["split"] == "val"]
    truth = np.stack([val["label"] == "abnormal", val["label"] == "normal"], axis=1).astype(float)
    fitted = Combination.fit(method, each[:, (plain["split"] == "val").to_numpy()], truth, "multiclass")  # type: ignore[arg-type]
    assert Combination.of_card(section) == fitted


def test_evaluation_says_what_the_ensemble_gains(members: list[Run], mean: Run) -> None:
    result = evaluation(mean)
    section = result["ensemble"]
    assert [row["name"] for row in section["members"]] == ["vit", "convnet", "probe"]
    for run, row in zip(members, section["members"], strict=True):
        own = [
            metric for metric in evaluation(run)["metrics"]
            if not str(metric["interval"]).startswith("DeLong") and metric["metric"] in ("auroc", "brier", "accuracy")
        ]  # fmt: skip
        found = {(metric["metric"], metric["class"]): metric for metric in row["metrics"]}
        for metric in own:
            assert found[metric["metric"], metric["class"]]["value"] == pytest.approx(
                metric["value"], abs=1e-6
            )
    best = members[mean.card["ensemble"]["best"]]
    against = {(row["metric"], row["class"]): row for row in section["differences"][0]["rows"]}
    compared = api.compare(mean.path, best.path, resamples=100)["differences"]
    for row in compared:
        if row["method"] != "DeLong" and row["metric"] in ("auroc", "accuracy", "brier"):
            found = against[row["metric"], row["class"]]
            for name in ("difference", "low", "high"):
                assert found[name] == pytest.approx(row[name], abs=1e-5), (row["metric"], name)
    assert section["differences"][1]["against"] == "mean member"
    assert len(section["agreement"]["pairs"]) == 3 and len(section["calibration"]) == 4
    assert result["thresholds"]["abnormal"]["chosen_on"] == "validation"


def test_predict_gives_what_was_evaluated_and_decodes_each_image_once(
    phantoms: Path, mean: Run, monkeypatch: pytest.MonkeyPatch, scanprior: Command, tmp_path: Path
) -> None:
    from scanprior.api import reading

    read: list[str] = []
    real = reading.read_reference
    monkeypatch.setattr(reading, "read_reference", lambda name: (read.append(name), real(name))[1])
    kept = predictions(mean)
    table = api.predict(mean.path, [phantoms / name for name in kept.index], batch_size=7)
    assert len(read) == len(kept)
    np.testing.assert_allclose(table[PROBABILITIES], kept[PROBABILITIES], atol=1e-6)
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"none")
    said = scanprior("predict", mean.path, broken, phantoms / kept.index[0], "--out", tmp_path / "p.csv")
    assert said.code == 0 and "2 rows, 1 with an error" in said.out
    trust = ["outlier_score", "outlier_p", "outlier"]  # the few validation images give no more
    wanted = ["image", "predicted", *PROBABILITIES, *trust, "error"]
    assert list(pd.read_csv(tmp_path / "p.csv").columns) == wanted


def test_evaluate_drift_and_report_work_on_it(
    phantoms: Path, members: list[Run], mean: Run, scanprior: Command, tmp_path: Path
) -> None:
    before = evaluation(mean)
    said = scanprior("evaluate", mean.path)
    assert said.code == 0, said.err
    assert evaluation(mean) == before
    elsewhere = copied(phantoms, tmp_path / "elsewhere")
    result = api.evaluate(mean.path, data=elsewhere, split="all")
    assert result["training_images"] == len(used(mean, "train")) and len(result["ensemble"]["members"]) == 3
    rows = api.drift(mean.path, kinds=["gamma"])["rows"]
    assert (
        next(row for row in rows if row["metric"] == "auroc")["value"]
        == next(row for row in before["metrics"] if row["metric"] == "auroc")["value"]
    )
    page = api.report(mean.path, out=tmp_path / "report.html").read_text()
    for text in (
        "The ensemble and its members",
        "convnet",
        "minus the best member",
        "Error correlation",
        "vit",
    ):
        assert text in page, text
    assert "no training curves" not in page


def test_the_folders_can_move_together(members: list[Run], mean: Run, phantoms: Path, tmp_path: Path) -> None:
    home = shutil.copytree(mean.path.parent, tmp_path / "moved")
    image = next((phantoms / "images").iterdir())
    there, here = api.predict(home / "ensemble", image), api.predict(mean.path, image)
    pd.testing.assert_frame_equal(there, here)
    weights = load_weights(home / "convnet" / "model.safetensors")
    name = next(name for name, tensor in weights.items() if tensor.dtype.is_floating_point)
    replace_weights({**weights, name: weights[name] + 1}, home / "convnet" / "model.safetensors")
    with pytest.raises(RunError, match="has changed since it became a member"):
        api.predict(home / "ensemble", image)
    shutil.rmtree(home / "convnet")
    with pytest.raises(RunError, match=r"convnet: this is no run folder"):
        api.predict(home / "ensemble", image)


def test_findings_in_another_order_are_matched_by_name(
    phantoms: Path, tmp_path: Path, scanprior: Command
) -> None:
    orders = [FINDINGS, FINDINGS[::-1]]
    for number, order in enumerate(orders):
        options = {**FINETUNING, "data.label_columns": order, "engine.seed": number}
        api.finetune(phantoms, out=tmp_path / f"run{number}", options=options)
    said = scanprior(
        "ensemble", tmp_path / "run0", tmp_path / "run1", "--out", tmp_path / "both", "--method", "calibrated"
    )
    assert said.code == 0, said.err
    assert "another order" in said.out and "matched by name" in said.out
    run = Run.open(tmp_path / "both")
    assert run.card["task"]["classes"] == FINDINGS
    table, second = predictions(run), predictions(Run.open(tmp_path / "run1"))
    for name in FINDINGS:
        np.testing.assert_allclose(
            table[f"member:2:{name}"], second.loc[table.index, f"prob:{name}"], atol=1e-6
        )
    assert "ensemble minus the best member" in said.out


# what is refused


def test_refusals_about_the_members(
    members: list[Run],
    mean: Run,
    pretrained: Run,
    phantoms: Path,
    tmp_path: Path,
    refused: Callable[..., str],
) -> None:
    vit, convnet, _ = (run.path for run in members)
    out = ["--out", tmp_path / "out"]
    assert "two runs or more" in refused("ensemble", vit, *out)
    assert "is named twice" in refused("ensemble", vit, convnet, vit.parent / "." / "vit", *out)
    copy = shutil.copytree(vit, tmp_path / "copy")
    assert "holds the weights of" in refused("ensemble", vit, copy, *out)
    assert "only fine-tuned classifiers" in refused("ensemble", vit, pretrained.path, *out)
    assert "name one of its members" in refused("ensemble", vit, mean.path, *out)
    assert "choose one of mean" in refused("ensemble", vit, convnet, *out, "--method", "median")
    assert "this is one of the members" in refused("ensemble", vit, convnet, "--out", vit, "--overwrite")
    assert "takes this from its members" in refused("ensemble", vit, convnet, *out, "--set", "data.size=64")
    assert "a run is there already" in refused("ensemble", vit, convnet, "--out", mean.path)
    assert not (tmp_path / "out").exists() and (vit / "model.json").exists()
    findings = api.finetune(
        phantoms, out=tmp_path / "findings", options={**FINETUNING, "data.label_columns": FINDINGS}
    )
    assert "its task is multilabel" in refused("ensemble", vit, findings.path, *out)
    renamed = copied(phantoms, tmp_path / "data", lambda t: t.replace({"label": {"abnormal": "ill"}}))
    other = api.finetune(renamed, out=tmp_path / "renamed", options=FINETUNING)
    said = refused("ensemble", vit, other.path, *out)
    assert "has the classes ill, normal" in said and "abnormal, normal" in said
    (copy / "data.parquet").unlink()
    assert "does not say which images" in refused("ensemble", convnet, copy, *out)


def test_a_member_trained_on_the_test_images_is_refused_with_the_list(
    members: list[Run], phantoms: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    other = api.finetune(phantoms, out=tmp_path / "other", options={**FINETUNING, "data.split.seed": 9})
    both = used(other, "train") & used(members[0], "test")
    assert both
    said = refused("ensemble", members[0].path, other.path, "--out", tmp_path / "out")
    assert f"was trained on {len(both)} of the" in said and str(other.path) in said
    assert sum(image in said for image in both) == min(len(both), 10)


def test_fitted_methods_need_validation_images_in_common(
    members: list[Run], phantoms: Path, tmp_path: Path, refused: Callable[..., str], scanprior: Command
) -> None:
    """One run has the test images of the others, and trains on their validation images."""
    first = members[0]
    spare = sorted(used(first, "train"))[:12]

    def split(table: pd.DataFrame) -> pd.DataFrame:
        tested, validates = table["image"].isin(used(first, "test")), table["image"].isin(spare)
        return table.assign(split=np.select([tested, validates], ["test", "val"], "train"))

    source = copied(phantoms, tmp_path / "data", split)
    other = api.finetune(source, out=tmp_path / "other", options=FINETUNING)
    assert used(other, "test") == used(first, "test") and used(other, "val") == set(spare)
    line = ["ensemble", members[0].path, other.path, "--out", tmp_path / "out"]
    for method in ("calibrated", "weighted"):
        assert "no validation image is common" in refused(*line, "--method", method)
    said = scanprior(*line, "--method", "geometric")
    assert said.code == 0 and "thresholds are 0.5" in said.out, said.err
    section = evaluation(Run.open(tmp_path / "out"))["ensemble"]
    assert section["best_member"] is None and section["differences"][0]["rows"] == []
    assert "no validation image is common" in section["differences"][0]["reason"]


def test_what_needs_one_network_refuses_an_ensemble(
    mean: Run, phantoms: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    for line in (
        ["finetune", phantoms, "--from", mean.path, "--out", tmp_path / "out"],
        ["pretrain", phantoms, "--from", mean.path, "--out", tmp_path / "out"],
        ["shift", mean.path, "--reference", phantoms, "--target", phantoms],
    ):
        assert "an ensemble has no network of its own" in refused(*line)


# what is said of the images


def with_history(run: Run, place: Path, change: Callable[[pd.DataFrame], pd.DataFrame]) -> Path:
    """Copy a run that says it has used other images."""
    copy = shutil.copytree(run.path, place)
    table = pd.read_parquet(copy / "data.parquet")
    change(table).to_parquet(copy / "data.parquet", index=False)
    return copy


def trained_on_a_patient(table: pd.DataFrame, **also: str) -> pd.DataFrame:
    """Add a training image of the patient of the first test image."""
    first = table[table["used"] == "test"].iloc[[0]]
    return pd.concat([table, first.assign(image="other.png", used="train", pixels="0" * 32)]).assign(**also)


@pytest.mark.parametrize("source", [{}, {"source": "under another name"}])
def test_a_member_trained_on_patients_of_the_test_images_is_refused_with_the_list(
    members: list[Run], tmp_path: Path, refused: Callable[..., str], source: dict[str, str]
) -> None:
    other = with_history(members[1], tmp_path / "copy", lambda table: trained_on_a_patient(table, **source))
    tested = pd.read_parquet(other / "data.parquet").query("used == 'test'").iloc[0]
    said = refused("ensemble", members[0].path, other, "--out", tmp_path / "out")
    assert f"{other}: was trained on other images of 1 patient of the test images" in said
    assert f"({tested['patient']})" in said


def test_what_flatters_all_members_alike_is_told(
    members: list[Run], tmp_path: Path, scanprior: Command
) -> None:
    """The first member's division is not by patient, and the second was selected on test images."""
    first = with_history(members[0], tmp_path / "first", trained_on_a_patient)

    def selected(table: pd.DataFrame) -> pd.DataFrame:
        test = table.index[table["used"] == "test"]
        table.loc[test[1:4], "used"] = "val"
        return trained_on_a_patient(table)

    second = with_history(members[1], tmp_path / "second", selected)
    said = scanprior("ensemble", first, second, "--out", tmp_path / "out")
    assert said.code == 0, said.err
    notes = Run.open(tmp_path / "out").card["notes"]
    assert sum(note.startswith("1 patient of the evaluated images (") for note in notes) == 2, notes
    assert any("was selected on 3 of the evaluated images" in note for note in notes)
    assert all(f"warning: {note}" in said.out for note in notes)


def test_evaluation_of_other_data_decodes_each_image_once(
    phantoms: Path, mean: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from scanprior.data import store_chunks

    elsewhere = copied(phantoms, tmp_path / "elsewhere", lambda table: table.iloc[:20])
    read: list[str] = []
    real = store_chunks.read_reference
    monkeypatch.setattr(
        store_chunks, "read_reference", lambda name, root: (read.append(name), real(name, root))[1]
    )
    how: dict[str, Any] = {"split": "all", "name": "decoded", "settings": ["data.workers=0"]}
    result = api.evaluate(mean.path, data=elsewhere, **how)
    assert len(load_predictor(mean).forms) == 2
    assert len(read) == len(set(read)) == result["n"] == 20
    api.evaluate(mean.path, data=elsewhere, **how)
    assert len(read) == 20


def test_without_test_images_validation_is_evaluated(
    members: list[Run], phantoms: Path, tmp_path: Path
) -> None:
    first = members[0]

    def split(table: pd.DataFrame) -> pd.DataFrame:
        return table.assign(split=np.where(table["image"].isin(used(first, "train")), "train", "val"))

    source = copied(phantoms, tmp_path / "data", split)
    runs = [
        api.finetune(source, out=tmp_path / f"run{seed}", options={**FINETUNING, "engine.seed": seed}).path
        for seed in (0, 1)
    ]
    run = api.ensemble(runs, out=tmp_path / "out", method="weighted")
    assert [path.name for path in (run.path / "evaluations").glob("*.json")] == ["validation.json"]
    result = evaluation(run, "validation")
    assert result["n"] == run.card["ensemble"]["validation_images"] == len(used(run, "val"))
    assert "was selected" not in " ".join(run.card["notes"])
    assert any(
        note.startswith("weighted was fitted and the best member was chosen") for note in run.card["notes"]
    )


def test_a_temperature_at_the_end_of_its_range_is_told() -> None:
    from scanprior.api.ensembling import _notes_on_temperatures

    section = {"members": [{"name": "one"}, {"name": "two"}], "temperatures": [20.0, 1.3]}
    assert _notes_on_temperatures(section) == [
        "one: its temperature is 20, the end of the range: what it says has nothing to do with the validation images"
    ]
    assert _notes_on_temperatures({**section, "temperatures": None}) == []
