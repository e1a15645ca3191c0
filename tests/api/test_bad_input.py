"""Whatever is wrong with the input: one clear sentence, exit code 2, and nothing lost."""

from __future__ import annotations

import errno
import json
import pickle
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from api.conftest import FINETUNING, FROM_PARENT, PRETRAINING, Command, words
from scanprior import api
from scanprior.data import store_chunks, store_journal
from scanprior.engine import checkpoint
from scanprior.run import Run

Refused = Callable[..., str]
Table = Callable[[pd.DataFrame], pd.DataFrame]


@pytest.fixture
def table(phantoms: Path, tmp_path: Path) -> Callable[[Table], Path]:
    """Write the label table with a change, beside links to the images."""

    def make(change: Table) -> Path:
        folder = tmp_path / "source"
        folder.mkdir()
        (folder / "images").symlink_to(phantoms / "images")
        change(pd.read_csv(phantoms / "labels.csv").drop(columns="mask")).to_csv(
            folder / "labels.csv", index=False
        )
        return folder / "labels.csv"

    return make


def snapshot(folder: Path) -> Mapping[str, tuple[bytes, int]]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def tune(source: object, out: Path, **options: object) -> list[object]:
    return ["finetune", source, "--out", out, *words({**FINETUNING, **options})]


def first(frame: pd.DataFrame, column: str, value: object) -> pd.DataFrame:
    frame = frame.astype({column: object}) if column in frame else frame
    frame.loc[frame.index[3], column] = value
    return frame


# tables: (change to the table, settings, what the sentence must name)
TABLES: dict[str, tuple[Table, dict[str, object], list[str]]] = {
    "no such image column": (lambda t: t, {"data.image_column": "picture"}, ["labels.csv", "picture", "image"]),
    "no such patient column": (lambda t: t, {"data.patient_column": "subject"}, ["labels.csv", "subject"]),
    "no such label column": (lambda t: t, {"data.label_columns": ["efusion"]}, ["efusion", "effusion"]),
    "a table without images": (lambda t: t[["age", "label"]], {}, ["labels.csv", "image"]),
    "a path that climbs": (lambda t: first(t, "image", "../x.png"), {}, ["labels.csv", "row 5", "../x.png", ".."]),
    "a path elsewhere": (lambda t: first(t, "image", "/etc/x.png"), {}, ["labels.csv", "row 5", "/etc/x.png", "root"]),
    "a row twice": (lambda t: pd.concat([t, t.iloc[[2]]]), {}, ["labels.csv", "row 4", "row", "p0000"]),
    "a label that is no label": (
        lambda t: first(t, "effusion", "maybe so"), {"data.label_columns": ["effusion", "nodule"]},
        ["labels.csv", "effusion", "maybe so"],
    ),
    "a number that is no label": (
        lambda t: first(t, "effusion", 7), {"data.label_columns": ["effusion", "nodule"]}, ["effusion", "7"],
    ),
    "a split with a typo": (
        lambda t: first(t.assign(split="train"), "split", "tranin"), {}, ["labels.csv", "row 5", "tranin", "train"],
    ),
    "a class with one patient": (lambda t: first(t, "label", "rarity"), {}, ["rarity", "1 patient"]),
    "one class": (lambda t: t.assign(label="normal", split=np.resize(["train", "val"], len(t))), {}, ["normal", "two"]),
    "no labels": (lambda t: t[["image", "patient"]], {}, ["label"]),
    "nothing to train on": (lambda t: t.assign(split="test"), {}, ["train"]),
    "no validation images": (
        lambda t: t, {"data.split.fractions": [0.8, 0, 0.2]}, ["validation", "selection.metric=last"],
    ),
    "fractions that do not add up": (lambda t: t, {"data.split.fractions": [0.8, 0.5, 0.2]}, ["fractions", "0.5"]),
    "a group that is no column": (lambda t: t, {"data.split.group": "famly"}, ["famly"]),
    "a label to rename that is not there": (lambda t: t, {"data.label_map": "{sick: ill}"}, ["sick", "normal"]),
    "a layout that is none": (lambda t: t, {"data.layout": "tabel"}, ["tabel", "table"]),
    "more labels than there are": (lambda t: t, {"labels.count": 5000}, ["5000", "9"]),
    "fewer labels than classes": (lambda t: t, {"labels.count": 1}, ["1 label", "2"]),
    "both budgets": (lambda t: t, {"labels.count": 9, "labels.fraction": 0.5}, ["labels.count", "labels.fraction"]),
}  # fmt: skip


@pytest.mark.parametrize("case", TABLES)
def test_a_wrong_table(case: str, table: Callable[[Table], Path], tmp_path: Path, refused: Refused) -> None:
    change, options, named = TABLES[case]
    sentence = refused(*tune(table(change), tmp_path / "run", **options))
    for word in named:
        assert word in sentence, sentence
    assert not (tmp_path / "run").exists()


CONFIGURATIONS: dict[str, tuple[dict[str, object], list[str]]] = {
    "a typo in a key": ({"engine.bach_size": 8}, ["engine.bach_size", "'batch_size'"]),
    "a typo in a section": ({"engin.steps": 8}, ["engin", "engine"]),
    "a typo in the objective's keys": ({"objective.veiws": 2}, ["objective.veiws", "'views'"]),
    "a word for a number": ({"engine.batch_size": "many"}, ["engine.batch_size", "many"]),
    "a negative number": ({"engine.batch_size": -4}, ["engine.batch_size", "-4"]),
    "steps and epochs": ({"engine.epochs": 3}, ["epochs", "steps"]),
    "a preset that is none": ({"augment.preset": "chest_xry"}, ["chest_xry", "chest_xray"]),
    "an objective that is none": ({"objective.name": "gmlm"}, ["gmlm", "gmml"]),
    "an encoder that is none": ({"encoder.name": "vit_tinny_patch16_224"}, ["vit_tinny", "vit_tiny_patch16_224"]),
    "a size the patch does not divide": ({"data.size": 36}, ["36", "8"]),
    "heads that do not divide the width": ({"encoder.num_heads": 5}, ["num_heads"]),
    "a patch for a network without": (
        {"encoder.name": "convnext_atto", "encoder.depth": "null", "encoder.num_heads": "null",
         "encoder.embed_dim": "null"},
        ["encoder.patch_size", "convnext_atto"],
    ),
    "a convolutional network for mae": (
        {"objective.name": "mae", "encoder.name": "convnext_atto", "encoder.patch_size": "null",
         "encoder.depth": "null", "encoder.embed_dim": "null", "encoder.num_heads": "null"},
        ["convnext_atto"],
    ),
    "micro-batches that do not divide": ({"engine.micro_batch": 3}, ["micro_batch=3", "8"]),
    "parts of a batch that must be whole": ({"objective.name": "sit", "engine.micro_batch": 4}, ["micro_batch"]),
    "weights that are not there": ({"encoder.weights": "/nowhere/w.pth"}, ["/nowhere/w.pth"]),
    "a setting without a value": ({"engine": 3}, ["engine"]),
}  # fmt: skip


@pytest.mark.parametrize("case", CONFIGURATIONS)
def test_a_wrong_configuration(case: str, phantoms: Path, tmp_path: Path, refused: Refused) -> None:
    options, named = CONFIGURATIONS[case]
    sentence = refused("pretrain", phantoms, "--out", tmp_path / "run", *words({**PRETRAINING, **options}))
    for word in named:
        assert word in sentence, sentence
    assert not (tmp_path / "run").exists()


def test_a_wrong_line(phantoms: Path, tmp_path: Path, refused: Refused, scanprior: Command) -> None:
    out = ["--out", tmp_path / "run"]
    assert "engine.lr" in refused("pretrain", phantoms, *out, "--set", "engine.lr")
    assert "--map" in refused("finetune", phantoms, *out, "--map", "normal")
    (tmp_path / "bad.yaml").write_text("engine: [1, 2")
    assert "bad.yaml" in refused("pretrain", phantoms, *out, "--config", tmp_path / "bad.yaml")
    assert "none.yaml" in refused("pretrain", phantoms, *out, "--config", tmp_path / "none.yaml")
    (tmp_path / "list.yaml").write_text("- 1")
    assert "list.yaml" in refused("pretrain", phantoms, *out, "--config", tmp_path / "list.yaml")
    assert "knn" in refused(*tune(phantoms, tmp_path / "run", **{"task.head": "knn"}))
    assert "svm" in refused("probe", phantoms, *out, "--method", "svm")
    assert scanprior("pretrian", phantoms).code == 2 and scanprior("pretrain").code == 2
    assert not (tmp_path / "run").exists()


def test_sources_that_are_none(tmp_path: Path, refused: Refused) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "readme.txt").write_text("no images")
    for command in (["index"], ["prepare"], ["pretrain"], ["finetune"], ["probe"]):
        for folder in ("empty", "text", "missing"):
            sentence = refused(*command, tmp_path / folder, "--out", tmp_path / "out.csv")
            assert folder in sentence
    assert "empty" in refused("check", tmp_path / "empty")
    assert not (tmp_path / "out.csv").exists()
    assert "medmnist" in refused("index", "medmnist:pneumoniamnistt", "--out", tmp_path / "out.csv")


def test_sources_without_one_readable_image(tmp_path: Path, refused: Refused) -> None:
    for name in ("a.png", "b.png"):
        (tmp_path / "images").mkdir(exist_ok=True)
        (tmp_path / "images" / name).write_bytes(b"")
    sentence = refused("pretrain", tmp_path / "images", "--out", tmp_path / "run", *words(PRETRAINING))
    assert "a.png" in sentence and "none of the 2 images" in sentence


def test_a_run_that_is_there_is_not_touched(
    phantoms: Path, pretrained: Run, finetuned: Run, tmp_path: Path, refused: Refused
) -> None:
    before = snapshot(pretrained.path)
    again = ["pretrain", phantoms, "--out", pretrained.path]
    for line in (
        [*again, *words(PRETRAINING)],
        tune(phantoms, pretrained.path),
        [*again, "--resume", *words({**PRETRAINING, "engine.seed": 5})],
        [*again, "--overwrite", *words({**PRETRAINING, "data.size": 36})],
        [*again, "--overwrite", *words({**PRETRAINING, "engine.micro_batch": 3})],
        [*tune(phantoms, pretrained.path, **{"labels.count": 9999}), "--overwrite"],
        ["pretrain", tmp_path / "nowhere", "--out", pretrained.path, "--overwrite"],
    ):
        refused(*line)
        assert snapshot(pretrained.path) == before
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "thesis.txt").write_text("three years of work")
    assert "notes" in refused(*tune(phantoms, tmp_path / "notes"))
    assert "thesis.txt" in refused(*tune(phantoms, tmp_path / "notes" / "thesis.txt"))
    assert "notes" in refused(*tune(phantoms, tmp_path / "notes"), "--overwrite")
    assert (tmp_path / "notes" / "thesis.txt").read_text() == "three years of work"


def test_runs_that_cannot_be_used(
    phantoms: Path, pretrained: Run, finetuned: Run, tmp_path: Path, refused: Refused
) -> None:
    image = phantoms / "images"
    out = ["--out", tmp_path / "p.csv"]
    assert "nowhere" in refused("predict", tmp_path / "nowhere", image, *out)
    assert "fine-tune" in refused("predict", pretrained.path, image, *out)
    assert "fine-tune" in refused("evaluate", pretrained.path)

    newer = shutil.copytree(finetuned.path, tmp_path / "newer")
    card = json.loads((newer / "model.json").read_text())
    (newer / "model.json").write_text(json.dumps({**card, "format": 99, "scanprior_version": "7.0"}))
    before = snapshot(newer)
    for line in (
        ["predict", newer, image, *out], ["evaluate", newer], ["compare", newer, newer], ["report", newer],
        ["finetune", phantoms, "--from", newer, "--out", tmp_path / "run"],
    ):  # fmt: skip
        sentence = refused(*line)
        assert "7.0" in sentence and "99" in sentence and "newer" in sentence and "update" in sentence
    assert snapshot(newer) == before

    for text in ("{", "[]", '{"format": "x"}', '{"format": 1}'):
        (newer / "model.json").write_text(text)
        assert "newer" in refused("predict", newer, image, *out)
    (newer / "model.json").unlink()
    assert "--resume" in refused("report", newer)

    torn = shutil.copytree(finetuned.path, tmp_path / "torn")
    (torn / "model.safetensors").write_bytes(finetuned.weights.read_bytes()[:-100])
    assert "torn" in refused("predict", torn, image, *out)
    (torn / "model.safetensors").unlink()
    assert "torn" in refused("predict", torn, image, *out)
    other = load_file(finetuned.weights)
    other["head.linear.weight"] = torch.zeros(5, 32)
    save_file(other, torn / "model.safetensors")
    assert "torn" in refused("evaluate", torn)
    assert not (tmp_path / "p.csv").exists()


def test_weights_of_another_network(
    phantoms: Path, pretrained: Run, tmp_path: Path, refused: Refused
) -> None:
    options = {**FROM_PARENT, "encoder.depth": 3}
    line = ["finetune", phantoms, "--from", pretrained.path, "--out", tmp_path / "run"]
    sentence = refused(*line, *words(options))
    assert "model.safetensors" in sentence and "vit_tiny_patch16_224" in sentence
    assert "convnext_atto" in refused(*line, *words({**FROM_PARENT, "encoder.name": "convnext_atto"}))
    deeper = {**PRETRAINING, "encoder.depth": 3}
    sentence = refused(
        "pretrain", phantoms, "--from", pretrained.path, "--out", tmp_path / "run", *words(deeper)
    )
    assert "model.safetensors" in sentence
    assert not (tmp_path / "run").exists()


class Bomb:
    def __reduce__(self) -> tuple[Callable[..., None], tuple[str]]:
        return Path.touch, (Path(__file__).with_name("exploded"),)  # type: ignore[return-value]


def test_weights_that_hold_code_are_not_run(phantoms: Path, tmp_path: Path, refused: Refused) -> None:
    torch.save({"model": Bomb()}, tmp_path / "bomb.pth")
    (tmp_path / "raw.pth").write_bytes(pickle.dumps({"model": Bomb()}, protocol=2))
    (tmp_path / "text.pth").write_text("no weights")
    for name in ("bomb.pth", "raw.pth", "text.pth"):
        options = {**PRETRAINING, "encoder.weights": tmp_path / name}
        sentence = refused("pretrain", phantoms, "--out", tmp_path / "run", *words(options))
        assert name in sentence
        assert "code" in sentence or name == "text.pth"
    assert not Path(__file__).with_name("exploded").exists()
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_of_another_network_is_not_resumed(
    phantoms: Path, pretrained: Run, tmp_path: Path, refused: Refused
) -> None:
    run = shutil.copytree(pretrained.path, tmp_path / "run")
    (run / "model.json").unlink()
    step = next((run / "state").iterdir())
    weights = load_file(step / "module.safetensors")
    save_file({name: torch.zeros(3) for name in weights}, step / "module.safetensors")
    sentence = refused("pretrain", phantoms, "--out", run, "--resume", *words(PRETRAINING))
    assert step.name in sentence and "does not fit" in sentence
    (step / "module.safetensors").write_bytes(b"torn")
    assert step.name in refused("pretrain", phantoms, "--out", run, "--resume", *words(PRETRAINING))


def test_stores_that_do_not_fit(phantoms: Path, pretrained: Run, tmp_path: Path, refused: Refused) -> None:
    api.prepare(phantoms, out=tmp_path / "store", options={"data.size": 24, "data.workers": 0})
    sentence = refused("pretrain", tmp_path / "store", "--out", tmp_path / "run", *words(PRETRAINING))
    assert "24" in sentence and "32" in sentence and "store" in sentence
    api.prepare(
        phantoms, out=tmp_path / "rgb", options={"data.size": 32, "data.channels": 3, "data.workers": 0}
    )
    line = [
        "finetune",
        tmp_path / "rgb",
        "--from",
        pretrained.path,
        "--out",
        tmp_path / "run",
        *words(FROM_PARENT),
    ]
    assert "channels" in refused(*line)
    sentence = refused("prepare", phantoms, "--size", 40, "--out", tmp_path / "store")
    assert "store" in sentence and "24" in sentence
    mixed = ["pretrain", tmp_path / "rgb", phantoms, "--out", tmp_path / "run", *words(PRETRAINING)]
    assert "channels" in refused(*mixed)
    card = json.loads((tmp_path / "store" / "store.json").read_text())
    (tmp_path / "store" / "store.json").write_text(json.dumps({**card, "version": 99}))
    assert "99" in refused("pretrain", tmp_path / "store", "--out", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_other_data_that_does_not_fit(
    phantoms: Path, finetuned: Run, tmp_path: Path, table: Callable[[Table], Path], refused: Refused
) -> None:
    before = snapshot(finetuned.path)
    other = table(lambda t: t.replace({"label": {"abnormal": "pneumonia"}}))
    sentence = refused("evaluate", finetuned.path, "--data", other)
    assert "pneumonia" in sentence and "--map" in sentence and "normal" in sentence
    assert "--split" in refused("evaluate", finetuned.path, "--data", phantoms, "--split", "tset")
    assert "nowhere" in refused("evaluate", finetuned.path, "--data", tmp_path / "nowhere")
    assert "no evaluation" in refused("compare", finetuned.path, finetuned.path, "--evaluation", "elsewhere")
    assert "nowhere" in refused("predict", finetuned.path, tmp_path / "nowhere", "--out", tmp_path / "p.csv")
    assert ".xlsx" in refused("predict", finetuned.path, phantoms, "--out", tmp_path / "p.xlsx")
    (tmp_path / "empty").mkdir()
    refused("predict", finetuned.path, tmp_path / "empty", "--out", tmp_path / "p.csv")
    assert snapshot(finetuned.path) == before


def test_compare_refuses_other_images_and_classes(
    phantoms: Path, finetuned: Run, tmp_path: Path, refused: Refused
) -> None:
    seed = {**FINETUNING, "data.split.seed": 4}
    other = api.finetune(phantoms, out=tmp_path / "other-split", options=seed)
    assert "other-split" in refused("compare", finetuned.path, other.path)
    names = {**FINETUNING, "data.label_map": {"normal": "clear"}}
    renamed = api.finetune(phantoms, out=tmp_path / "renamed", options=names)
    assert "clear" in refused("compare", finetuned.path, renamed.path)


def full(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_while_preparing(
    phantoms: Path, tmp_path: Path, refused: Refused, scanprior: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, calls = store_journal.Journal.add, []

    def add(self: store_journal.Journal, record: store_chunks.Record) -> None:
        calls.append(record)
        if len(calls) > 1:
            full()
        kept(self, record)

    line = ["prepare", phantoms, "--size", 32, "--out", tmp_path / "store", "--set", "data.workers=0"]
    with monkeypatch.context() as patch:
        patch.setattr(store_journal.Journal, "add", add)
        patch.setattr("scanprior.data.store_writer.division", lambda size, depth: (16, 64))
        sentence = refused(*line)
        assert "disk is full" in sentence and "store" in sentence and "again" in sentence
        patch.setattr(store_journal.Journal, "add", kept)
        assert scanprior(*line).code == 0
    whole = api.prepare(phantoms, out=tmp_path / "whole", options={"data.size": 32, "data.workers": 0})
    again = api.prepare(phantoms, out=tmp_path / "other", options={"data.size": 32, "data.workers": 0})
    assert whole.fingerprint == again.fingerprint


def test_a_full_disk_while_checkpointing(
    phantoms: Path, tmp_path: Path, refused: Refused, scanprior: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {**PRETRAINING, "engine.checkpoint_every": 2}
    whole = api.pretrain(phantoms, out=tmp_path / "whole", options=options)
    kept = checkpoint.save_weights

    def save(state: dict[str, torch.Tensor], path: Path, *rest: object) -> None:
        if "00000004" in str(path):
            full()
        kept(state, path)

    line = ["pretrain", phantoms, "--out", tmp_path / "run", *words(options)]
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_weights", save)
        sentence = refused(*line)
        assert "step-00000002 is intact" in sentence and "--resume" in sentence
    assert scanprior(*line, "--resume").code == 0
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == whole.weights.read_bytes()


@pytest.mark.parametrize("where", ["scanprior.api.pretraining.save_encoder", "scanprior.run.Run.finish"])
def test_a_full_disk_at_the_end(
    where: str,
    phantoms: Path,
    tmp_path: Path,
    refused: Refused,
    scanprior: Command,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    line = ["pretrain", phantoms, "--out", tmp_path / "run", *words(PRETRAINING)]
    with monkeypatch.context() as patch:
        patch.setattr(where, full)
        assert "no space left" in refused(*line).lower()
    assert scanprior(*line, "--resume").code == 0
    assert Run.finished(tmp_path / "run")


def test_a_loss_that_is_not_finite(phantoms: Path, tmp_path: Path, refused: Refused) -> None:
    sentence = refused(*tune(phantoms, tmp_path / "run", **{"engine.lr": 1e30, "engine.warmup_fraction": 0}))
    assert "engine.lr" in sentence and "loss" in sentence


def test_images_that_lie(phantoms: Path, tmp_path: Path, scanprior: Command) -> None:
    """A bomb, text, NaN pixels and torn files among good ones: left out of training, and named."""
    source = tmp_path / "data"
    shutil.copytree(phantoms / "images", source / "all")
    good = sorted((source / "all").iterdir())
    Image.fromarray(np.full((8, 8), np.nan, np.float32)).save(source / "all" / "nan.tiff")
    (source / "all" / "text.png").write_text("not an image")
    (source / "all" / "zero.jpg").write_bytes(b"")
    (source / "all" / "torn.png").write_bytes(good[0].read_bytes()[:-200])
    header = bytearray(good[0].read_bytes())
    header[16:24] = (60000).to_bytes(4, "big") * 2
    (source / "all" / "bomb.png").write_bytes(header)
    run = tmp_path / "run"
    said = scanprior("pretrain", source, "--out", run, *words(PRETRAINING))
    assert said.code == 0 and "5 left out" in said.out, said.text
    card = json.loads((run / "model.json").read_text())
    listed = {Path(entry["image"]).name: entry["reason"] for entry in card["data"]["sources"][0]["left_out"]}
    assert set(listed) == {"nan.tiff", "text.png", "zero.jpg", "torn.png", "bomb.png"}
    assert card["data"]["images_used"] == len(good)
    page = api.report(run).read_text()
    assert all(name in page for name in listed)
