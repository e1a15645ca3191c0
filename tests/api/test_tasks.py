"""Fine-tuning, probing, evaluating and comparing on phantoms, from end to end."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from safetensors.torch import load_file

from api.conftest import FINETUNING, FROM_PARENT, PRETRAINING, Command, words
from api.runs import by_image, copied, used
from scanprior import api
from scanprior.api.classification import Classification
from scanprior.api.finetuning import plan_finetuning
from scanprior.api.settings import FinetuneConfig
from scanprior.api.sources import Images, load, side_columns
from scanprior.engine import Reporter
from scanprior.errors import DataError
from scanprior.run import Run

FINDINGS = ["consolidation", "effusion", "cardiomegaly", "nodule"]


class Notes(Reporter):
    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, text: str) -> None:
        self.said.append(text)


def test_multiclass_run_holds_everything(finetuned: Run) -> None:
    names = {path.name for path in finetuned.path.iterdir()}
    assert {
        "config.yaml", "model.safetensors", "model.json", "metrics.jsonl", "predictions.parquet", "data.parquet",
        "evaluations",
    } <= names  # fmt: skip
    assert finetuned.card["task"]["classes"] == ["abnormal", "normal"]
    assert finetuned.card["parent"]["kind"] == "pretrain"
    table = pd.read_parquet(finetuned.path / "predictions.parquet")
    np.testing.assert_allclose(table[["prob:abnormal", "prob:normal"]].sum(axis=1), 1, atol=1e-6)
    result = json.loads((finetuned.path / "evaluations" / "test.json").read_text())
    assert result["n"] == (table["split"] == "test").sum() and result["positive_class"] == "abnormal"
    rows = {(row["metric"], row["class"]): row for row in result["metrics"] if row["interval"] != "DeLong"}
    test = table[table["split"] == "test"]
    from sklearn.metrics import roc_auc_score

    expected = roc_auc_score(test["label"] == "abnormal", test["prob:abnormal"])
    assert rows["auroc", "abnormal"]["value"] == pytest.approx(expected, abs=1e-12)


def test_no_patient_is_in_two_splits(finetuned: Run) -> None:
    table = pd.read_parquet(finetuned.path / "data.parquet")
    assert (table.groupby("patient")["split"].nunique() == 1).all()
    assert finetuned.card["data"]["leakage"]["leakage"] is False


def with_gaps(table: pd.DataFrame) -> pd.DataFrame:
    """One finding in four is uncertain, another missing; some images have no label left."""
    table = table.drop(columns="label")
    table[FINDINGS] = table[FINDINGS].astype(float)
    table.loc[table.index % 4 == 1, "effusion"] = -1
    table.loc[table.index % 4 == 2, "nodule"] = np.nan
    table.loc[table.index % 10 == 0, FINDINGS] = np.nan
    return table


@pytest.fixture(scope="module")
def gaps(phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copied(phantoms, tmp_path_factory.mktemp("gaps"), with_gaps)


@pytest.mark.parametrize("policy", ["ignore", "zeros", "ones", "soft"])
def test_multilabel_under_each_policy(gaps: Path, pretrained: Run, tmp_path: Path, policy: str) -> None:
    options = {**FROM_PARENT, "data.label_columns": FINDINGS, "task.uncertain": policy}
    run = api.finetune(gaps, out=tmp_path, parent=pretrained.path, options=options)
    assert run.card["task"]["kind"] == "multilabel" and run.card["task"]["classes"] == FINDINGS
    labels = pd.read_csv(gaps / "labels.csv").set_index("image")
    unlabelled = set(labels.index[labels[FINDINGS].isna().all(axis=1)])
    assert unlabelled and not used(run, "train") & unlabelled
    table = pd.read_parquet(tmp_path / "predictions.parquet").set_index("image")
    pd.testing.assert_series_equal(
        table["label:effusion"], labels["effusion"].reindex(table.index), check_names=False, check_dtype=False
    )
    result = json.loads((tmp_path / "evaluations" / "test.json").read_text())
    row = next(row for row in result["metrics"] if (row["metric"], row["class"]) == ("auroc", "effusion"))
    test = table[table["split"] == "test"]
    assert row["n"] == test["label:effusion"].isin([0, 1]).sum() < len(test)  # uncertain ones are not counted


def planned(source: Path, options: dict[str, object]) -> tuple[Images, FinetuneConfig]:
    config = plan_finetuning(source, options={**FINETUNING, **options})
    return load([source], config.data, Reporter(), learn="labels"), config


def test_the_policies_differ_only_in_uncertain_labels(gaps: Path, pretrained: Run, tmp_path: Path) -> None:
    targets = {}
    for policy in ("ignore", "zeros", "ones", "soft"):
        images, config = planned(gaps, {"data.label_columns": FINDINGS, "task.uncertain": policy})
        targets[policy] = Classification(images, config).targets
    raw = images.frame[FINDINGS].to_numpy(float)
    unsure = raw == -1
    for policy, found in targets.items():
        np.testing.assert_array_equal(found[~unsure], raw[~unsure], err_msg=policy)
    assert np.isnan(targets["ignore"][unsure]).all()
    assert (targets["zeros"][unsure] == 0).all() and (targets["ones"][unsure] == 1).all()
    soft = targets["soft"][unsure]
    assert (soft >= 0.55).all() and (soft <= 0.85).all() and len(set(soft)) > 3


def test_uncertain_labels_without_a_policy_are_refused(gaps: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"uncertain \(effusion \d+\); .* ignore .* zeros .* ones .* soft"):
        api.finetune(gaps, out=tmp_path / "run", options={**FINETUNING, "data.label_columns": FINDINGS})
    sure = [name for name in FINDINGS if name != "effusion"]
    assert Classification(*planned(gaps, {"data.label_columns": sure})).classes == sure


def test_empty_findings_are_absent_where_that_is_asked_for(
    gaps: Path, phantoms: Path, tmp_path: Path, scanprior: Command
) -> None:
    options = {"data.label_columns": FINDINGS, "data.blank_findings": "absent"}
    made = api.index(gaps, options=options).frame.set_index("image")[FINDINGS]
    given = pd.read_csv(gaps / "labels.csv").set_index("image")[FINDINGS].loc[made.index]
    for image, row in given.iterrows():
        wanted = row if row.isna().all() else row.fillna(0)
        np.testing.assert_array_equal(made.loc[image], wanted, err_msg=str(image))
    assert given["nodule"].isna().sum() > made["nodule"].isna().sum() > 0
    api.prepare(gaps, out=tmp_path / "store", options={**options, "data.size": 32, "data.workers": 0})
    plain = {"data.label_columns": FINDINGS, "data.size": 32, "data.workers": 0}
    api.prepare(gaps, out=tmp_path / "plain", options=plain)
    for store in (tmp_path / "store", tmp_path / "plain"):
        images, _ = planned(store, {"data.blank_findings": "absent", "task.uncertain": "ignore"})
        np.testing.assert_array_equal(images.frame[FINDINGS], made.loc[images.frame["image"]])
    with pytest.raises(DataError, match=r"data\.blank_findings=absent is about findings, this has none"):
        api.index(phantoms, options={"data.label_columns": ["label"], "data.blank_findings": "absent"})


def test_classes_stand_in_their_own_order(phantoms: Path, tmp_path: Path) -> None:
    def ordered(table: pd.DataFrame) -> pd.DataFrame:
        return table.assign(label_order=table["label"].map({"normal": 0, "abnormal": 1}))

    source = copied(phantoms, tmp_path / "ordered", ordered)
    made = Classification(*planned(source, {"data.label_columns": ["label"]}))
    assert made.card()["classes"] == made.classes == ["normal", "abnormal"]
    np.testing.assert_array_equal(made.targets, made.images.frame["label"] == "abnormal")
    assert "label_order" not in side_columns(made.images)
    assert made.card()["ordered"] and made.settings.classes == ["normal", "abnormal"]
    ordinal = Classification(*planned(source, {"data.label_columns": ["label"], "task.head": "ordinal"}))
    assert ordinal.classes == ["normal", "abnormal"]  # text, but in a known order
    given = {"data.label_columns": ["label"], "task.classes": ["abnormal", "normal"]}
    assert Classification(*planned(source, given)).classes == ["abnormal", "normal"]


@pytest.mark.parametrize("method", ["linear", "knn"])
@pytest.mark.parametrize("findings", [False, True])
def test_probes_keep_the_encoder(
    phantoms: Path, pretrained: Run, tmp_path: Path, method: str, findings: bool
) -> None:
    options = {**FROM_PARENT, "data.label_columns": FINDINGS if findings else None}
    run = api.probe(phantoms, method=method, out=tmp_path / "run", parent=pretrained.path, options=options)
    before, after = load_file(pretrained.weights), load_file(run.encoder_weights)
    assert all((after[name] == tensor).all() for name, tensor in before.items())
    assert (run.path / "evaluations" / "test.json").exists()
    table = api.predict(run.path, phantoms / "images")
    kept = by_image(pd.read_parquet(run.path / "predictions.parquet"))
    columns = [name for name in kept if name.startswith("prob:")]
    again = by_image(table).loc[kept.index, columns]
    np.testing.assert_allclose(again.to_numpy(), kept[columns].to_numpy(), rtol=0, atol=1e-6)


def test_a_probe_without_validation_images(phantoms: Path, pretrained: Run, tmp_path: Path) -> None:
    options = {**FROM_PARENT, "data.split.fractions": [0.7, 0, 0.3], "selection.metric": "last"}
    run = api.probe(phantoms, out=tmp_path / "run", parent=pretrained.path, options=options)
    assert run.card["data"]["validation_labels_used"] == 0


def test_label_budgets_are_nested(phantoms: Path, pretrained: Run, tmp_path: Path) -> None:
    trained = []
    for count in (4, 8, 16):
        options = {**FROM_PARENT, "labels.count": count}
        run = api.probe(phantoms, out=tmp_path / str(count), parent=pretrained.path, options=options)
        trained.append(used(run, "train"))
        assert len(trained[-1]) == run.card["data"]["labels_used"] == count
    assert trained[0] < trained[1] < trained[2]
    labels = pd.read_csv(phantoms / "labels.csv").set_index("image")["label"]
    assert labels[list(trained[0])].value_counts().to_dict() == {"normal": 2, "abnormal": 2}


def test_label_map_and_sampling(phantoms: Path, tmp_path: Path, scanprior: Command) -> None:
    said = scanprior(
        "finetune", phantoms, "--out", tmp_path / "run", "--map", "normal=no_finding", "--label-fraction", 0.5,
        *words({**FINETUNING, "task.balance": "sampling"}),
    )  # fmt: skip
    assert said.code == 0, said.err
    run = Run.open(tmp_path / "run")
    assert run.card["task"]["classes"] == ["abnormal", "no_finding"]
    said = scanprior(
        "evaluate", run.path, "--data", phantoms, "--map", "normal=no_finding", "--name", "again"
    )
    assert said.code == 0 and (run.path / "evaluations" / "again.json").exists()
    assert "training images of the run" in said.out


def test_a_store_is_a_source_too(phantoms: Path, pretrained: Run, tmp_path: Path, scanprior: Command) -> None:
    said = scanprior("prepare", phantoms, "--size", 32, "--out", tmp_path / "store")
    assert said.code == 0, said.err
    line = ["--from", pretrained.path, *words(FROM_PARENT)]
    assert scanprior("finetune", tmp_path / "store", "--out", tmp_path / "a", *line).code == 0
    assert scanprior("finetune", phantoms, "--out", tmp_path / "b", *line).code == 0
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in "ab"]
    assert weights[0] == weights[1]
    said = scanprior(
        "probe", tmp_path / "store", "--out", tmp_path / "c", "--label-columns", "effusion", *line
    )
    assert said.code == 0, said.err
    assert "effusion" in json.dumps(Run.open(tmp_path / "c").card["task"])


def test_a_manifest_is_a_source_too(phantoms: Path, tmp_path: Path, scanprior: Command) -> None:
    for name in ("m.parquet", "m.csv"):
        said = scanprior("index", phantoms, "--out", tmp_path / name)
        assert said.code == 0 and "next: scanprior check" in said.out
    found = api.index(tmp_path / "m.parquet")
    assert found.fingerprint() == api.index(phantoms).fingerprint()


# transductive, leaks


def test_pretraining_keeps_off_the_test_images(finetuned: Run, pretrained: Run) -> None:
    assert not used(pretrained, "pretrain") & used(finetuned, "test")
    assert not used(pretrained, "pretrain") & used(finetuned, "val")
    assert finetuned.card["notes"] == [] and finetuned.card["data"]["transductive"] is False


def test_transductive_pretraining_is_said_through_two_stages(phantoms: Path, tmp_path: Path) -> None:
    first = api.pretrain(phantoms, out=tmp_path / "first", options={**PRETRAINING, "data.transductive": True})
    assert len(used(first, "pretrain")) == len(api.index(phantoms))
    second = api.pretrain(phantoms, out=tmp_path / "second", parent=first.path, options=PRETRAINING)
    tuned = api.finetune(phantoms, out=tmp_path / "tuned", parent=second.path, options=FROM_PARENT)
    assert tuned.card["data"]["transductive"] is True
    test = len(used(tuned, "test"))
    assert f"saw {test} of the test images" in tuned.card["notes"][0]
    page = api.report(tuned.path).read_text()
    assert "ransductive" in page


def test_training_images_that_are_test_images_are_left_out(phantoms: Path, tmp_path: Path) -> None:
    """Three test images lie in train once more, under other names and other patients."""
    table = pd.read_csv(phantoms / "labels.csv").drop(columns="mask")
    table["split"] = table["patient"].map(
        lambda p: ["train", "train", "train", "val", "test"][int(p[1:]) % 5]
    )
    source = copied(phantoms, tmp_path / "data", lambda _: table)
    again = table[table["split"] == "test"].head(3).copy()
    for number, (row, name) in enumerate(again["image"].items()):
        twin = f"images/twin-{number}.bmp"
        with Image.open(source / name) as image:
            image.save(source / twin)
        again.loc[row, ["image", "patient", "split"]] = [twin, f"twin-{number}", "train"]
    pd.concat([table, again]).to_csv(source / "labels.csv", index=False)
    notes = Notes()
    run = api.finetune(source, out=tmp_path / "run", options=FINETUNING, reporter=notes)
    assert not any("twin" in name for name in used(run, "train"))
    assert run.card["data"]["leakage"]["excluded"] == 3
    assert any("left out 3 training images" in text for text in notes.said)
    kept = api.finetune(source, out=tmp_path / "kept", options={**FINETUNING, "data.exclude_leaks": False})
    assert sum("twin" in name for name in used(kept, "train")) == 3
    assert "twin" not in " ".join(used(run, "test") | used(run, "val"))


# evaluate and compare


def test_evaluate_on_another_hospital(
    phantoms: Path, finetuned: Run, tmp_path: Path, scanprior: Command
) -> None:
    other = copied(phantoms, tmp_path / "elsewhere", lambda table: table[table["site"] == "b"])
    broken = pd.read_csv(other / "labels.csv")["image"].iloc[:2]
    for name in broken:
        (other / name).write_bytes((other / name).read_bytes()[:300])
    said = scanprior("evaluate", finetuned.path, "--data", other, "--set", "evaluation.resamples=100")
    assert said.code == 0, said.err
    result = json.loads((finetuned.path / "evaluations" / "elsewhere.json").read_text())
    table = pd.read_parquet(finetuned.path / "evaluations" / "elsewhere.parquet")
    assert result["errors"] == 2 and result["n"] == len(table) - 2
    wrong = table[table["error"].notna()]
    assert sorted(wrong["image"]) == sorted(broken) and wrong["prob:normal"].isna().all()
    own = json.loads((finetuned.path / "evaluations" / "test.json").read_text())
    assert {k: v["value"] for k, v in result["thresholds"].items()} == {
        k: v["value"] for k, v in own["thresholds"].items()
    }  # chosen on validation, not here


def test_evaluating_again_gives_the_same(phantoms: Path, finetuned: Run) -> None:
    first = json.loads((finetuned.path / "evaluations" / "test.json").read_text())
    again = api.evaluate(finetuned.path, name="test-again")
    assert again["metrics"] == first["metrics"] and again["n"] == first["n"]
    everything = api.evaluate(finetuned.path, split="all", settings=["evaluation.resamples=100"])
    assert everything["n"] == len(api.index(phantoms))


def test_compare_two_runs(phantoms: Path, finetuned: Run, tmp_path: Path, scanprior: Command) -> None:
    scratch = api.finetune(phantoms, out=tmp_path / "scratch", options=FINETUNING)
    said = scanprior("compare", finetuned.path, scratch.path, "--json", tmp_path / "new" / "c.json")
    assert said.code == 0, said.err
    rows = json.loads((tmp_path / "new" / "c.json").read_text())["differences"]
    values = []
    for run in (finetuned, scratch):
        metrics = json.loads((run.path / "evaluations" / "test.json").read_text())["metrics"]
        values.append(next(m["value"] for m in metrics if (m["metric"], m["class"]) == ("auroc", "abnormal")))
    row = next(row for row in rows if (row["metric"], row["class"]) == ("auroc", "abnormal"))
    assert row["difference"] == pytest.approx(values[0] - values[1], abs=1e-9)
    assert row["low"] <= row["difference"] <= row["high"]
    same = api.compare(finetuned.path, finetuned.path, resamples=100)
    assert all(row["difference"] in (0, None) for row in same["differences"])


def test_compare_passes_over_unreadable_images(phantoms: Path, finetuned: Run, tmp_path: Path) -> None:
    other = copied(phantoms, tmp_path / "elsewhere")
    (other / "images" / sorted(p.name for p in (other / "images").iterdir())[0]).write_bytes(b"")
    scratch = api.finetune(phantoms, out=tmp_path / "scratch", options=FINETUNING)
    for run in (finetuned, scratch):
        api.evaluate(run.path, data=other, name="broken", settings=["evaluation.resamples=100"])
    result = api.compare(finetuned.path, scratch.path, evaluation="broken", resamples=100)
    assert result["n"] == len(api.index(phantoms)) - 1


def test_several_sources_are_pooled(phantoms: Path, tmp_path: Path) -> None:
    """Both folders name their patients alike; they are different people."""
    sources = [
        copied(phantoms, tmp_path / name / "images-of", lambda table, site=name: table[table["site"] == site])
        for name in "ab"
    ]  # fmt: skip
    run = api.finetune(sources, out=tmp_path / "run", options=FINETUNING)
    assert len(run.card["data"]["sources"]) == 2
    assert sum(source["images"] for source in run.card["data"]["sources"]) == len(api.index(phantoms))
    table = pd.read_parquet(run.path / "predictions.parquet")
    assert table["patient"].notna().all()


def test_split_groups(phantoms: Path, tmp_path: Path) -> None:
    for group in ("none", "cluster", "near_duplicates", "site", "patient"):
        options = {**PRETRAINING, "data.split.group": group, "data.split.fractions": [0.5, 0, 0.5]}
        run = api.pretrain(phantoms, out=tmp_path / group, options=options)
        table = pd.read_parquet(run.path / "data.parquet")
        assert 0 < len(table) < len(api.index(phantoms))
        assert ("near_duplicates" in table) == (group == "near_duplicates")


def test_overwrite_replaces_the_whole_run(phantoms: Path, tmp_path: Path) -> None:
    run = api.finetune(phantoms, out=tmp_path / "run", options=FINETUNING)
    api.report(run.path)
    api.pretrain(phantoms, out=tmp_path / "run", options=PRETRAINING, overwrite=True)
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert not names & {"predictions.parquet", "evaluations", "report.html"}
    assert Run.open(tmp_path / "run").card["kind"] == "pretrain"
