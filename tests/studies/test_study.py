"""Studies from recipe to report: killed and restarted, with failures, and what the results say."""

from __future__ import annotations

import copy
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from sklearn.metrics import roc_auc_score

from scanprior.config import merge, nest
from scanprior.console import ConsoleReporter
from scanprior.data.phantom import PhantomConfig, write_phantoms
from scanprior.errors import ConfigError, DataError, RunError
from scanprior.reporting.formatting import number
from scanprior.run import Run
from scanprior.studies import study


def phantoms(patients: int, site: str, seed: int) -> dict[str, Any]:
    made = {"patients": patients, "size": 32, "sites": [site], "seed": seed}
    return {"phantom": made, "settings": {"label_columns": ["label"]}}


SMALL: dict[str, Any] = {
    "name": "small",
    "data": {"ours": phantoms(30, "a", 1)},
    "settings": {
        "data": {"size": 16, "store_size": 16, "workers": 0, "split": {"fractions": [0.5, 0.2, 0.3]}},
        "encoder": {"name": "vit_tiny_patch16_224", "patch_size": 8, "depth": 1, "embed_dim": 16, "num_heads": 2},
        "engine": {"batch_size": 8, "precision": "32", "steps": 2},
        "evaluation": {"resamples": 100},
    },
    "inits": {"scratch": {}},
    "tasks": {"screening": {"data": "ours", "labels": [6, "all"], "metrics": ["auroc"]}},
    "seeds": [0],
    "resamples": 100,
}  # fmt: skip

FULL: dict[str, Any] = {
    **SMALL,
    "name": "full",
    "data": {
        "ours": phantoms(40, "a", 1),
        "theirs": phantoms(20, "b", 2),
    },
    "pretraining": {
        "mae": {
            "data": ["ours", "theirs"], "objective": "mae",
            "settings": {"objective": {"decoder_dim": 16, "decoder_depth": 1, "decoder_heads": 2}},
        },
    },
    "inits": {"scratch": {}, "mae": {"start": "mae"}},
    "tasks": {
        "screening": {
            "data": "ours", "labels": [6, "all"], "metrics": ["auroc", "accuracy"],
            "tune": {"labels": [6], "grid": {"engine.lr": [0.001, 0.01]}},
            "elsewhere": {"site_b": {"data": "theirs"}}, "drifts": ["gamma"], "subgroups": {"sex": None},
            "ensembles": {
                "both": {"members": ["scratch", "mae"], "method": "weighted"},
                "twins": {"members": ["scratch", "scratch+1"]},
            },
            "contrasts": [["mae", "scratch"], ["both", "mae"]],
        },
        "lungs": {
            "data": "ours", "metrics": ["dice"], "settings": {"task": {"name": "segment"}}, "inits": ["scratch"],
            "drifts": ["noise"],
        },
    },
    "shift": {"site_b": {"encoder": "mae", "reference": "ours", "target": "theirs"}},
    "seeds": [0, 1],
}  # fmt: skip


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCANPRIOR_CACHE", str(tmp_path_factory.getbasetemp() / "study cache"))
    monkeypatch.setenv("COLUMNS", "200")


def written(tree: dict[str, Any], place: Path) -> Path:
    place.write_text(yaml.safe_dump(tree))
    return place


def changed(change: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
    tree = copy.deepcopy(SMALL)
    change(tree)
    return tree


def command(recipe: Path, out: Path) -> list[str]:
    program = "from scanprior.cli import main; main()"
    return [sys.executable, "-c", program, "study", str(recipe), "--out", str(out), "--workers", "2"]


@pytest.mark.usefixtures("in_this_process")
def test_a_study_killed_and_restarted_ends_with_the_same_results(tmp_path: Path) -> None:
    recipe = written(FULL, tmp_path / "full.yaml")
    whole = study(recipe, out=tmp_path / "whole", workers=2)
    assert not whole["failed"]
    check_everything_is_there(whole, tmp_path / "whole")
    check_values(whole, tmp_path / "whole")
    check_ensembles(whole, tmp_path / "whole")
    check_contrasts(whole)
    out = tmp_path / "killed"
    process = subprocess.Popen(command(recipe, out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while len(list(out.glob("tuning/*/*/*/*/model.json"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (out / "results.json").exists()
    finished = {path: path.stat().st_mtime_ns for path in out.rglob("model.json")}
    assert len(finished) >= 2
    again = subprocess.run(command(recipe, out), capture_output=True, text=True, timeout=300, check=False)
    assert again.returncode == 0, again.stdout + again.stderr
    assert {path: path.stat().st_mtime_ns for path in finished} == finished, "a finished run was done again"
    assert (out / "results.json").read_bytes() == (tmp_path / "whole" / "results.json").read_bytes()
    assert (out / "report.html").read_bytes() == (tmp_path / "whole" / "report.html").read_bytes()


def check_everything_is_there(results: dict[str, Any], folder: Path) -> None:
    for part in (
        "pretraining",
        "tuned",
        "efficiency",
        "contrasts",
        "ensembles",
        "drift",
        "synthetic",
        "subgroups",
        "gaps",
        "shift",
    ):
        assert results[part], part
    for row in results["efficiency"]:
        assert (row["low"] is None) == (row["reason"] is not None)
    assert len(results["efficiency"]) == 2 * 2 * 4 * 2 + 1
    assert len(results["ensembles"]) == 2 * 2 * 2 * (2 + 3)
    assert {row["kind"] for row in results["synthetic"]} == {"none", "gamma", "noise"}
    page = (folder / "report.html").read_text()
    assert "Phantoms" in page and "site_b" in page and "lungs" in page
    check_markdown(results, (folder / "report.md").read_text())
    for name in ("efficiency", "contrasts", "ensembles", "drift", "synthetic", "subgroups", "gaps"):
        assert len(pd.read_csv(folder / "tables" / f"{name}.csv")) == len(results[name])


def check_markdown(results: dict[str, Any], text: str) -> None:
    lines = [line for line in text.splitlines() if line.startswith("|")]
    for row in results["efficiency"]:
        if row["value"] is not None:
            start = f"| {row['labels_used']} | {row['init']} | {number(row['value'])}"
            assert any(line.startswith(start) for line in lines), start
    for before, line in pairwise(text.splitlines()):
        if before.startswith("|") and line.startswith("|"):
            assert before.count(" | ") == line.count(" | "), "rows of one table have as many cells"
    assert "## lungs" in text and "synthetic" in text


def check_ensembles(results: dict[str, Any], folder: Path) -> None:
    """Ensembles are of members of one seed and the same labels, and compared with them as their runs were measured."""

    def area(init: str, seed: int) -> float:
        file = folder / "runs" / "screening" / init / "6" / f"seed{seed}" / "evaluations" / "test.parquet"
        table = pd.read_parquet(file)
        return float(roc_auc_score(table["label"] == "abnormal", table["prob:abnormal"]))

    for name, members in (("both", ["scratch", "mae"]), ("twins", ["scratch", "scratch+1"])):
        run = Run.open(folder / "runs" / "screening" / name / "6" / "seed1")
        assert run.members() == [folder / "runs" / "screening" / member / "6" / "seed1" for member in members]
        used = [pd.read_parquet(path / "data.parquet") for path in run.members()]
        trained = [set(table.loc[table["used"] == "train", "image"]) for table in used]
        assert trained[0] == trained[1] and len(trained[0]) == 6, "the same labels"
        rows = {
            row["against"]: row for row in results["ensembles"]
            if (row["init"], row["labels"], row["evaluation"], row["metric"]) == (name, 6, "test", "auroc")
        }  # fmt: skip
        mine = np.mean([area(name, seed) for seed in (0, 1)])
        of_members = np.array([[area(member, seed) for seed in (0, 1)] for member in members])
        best = [
            Run.open(folder / "runs/screening" / name / "6" / f"seed{seed}").card["ensemble"]["best"]
            for seed in (0, 1)
        ]
        assert rows["mean member"]["difference"] == pytest.approx(mine - of_members.mean())
        assert rows["best member"]["difference"] == pytest.approx(mine - of_members[best, [0, 1]].mean())
    other = np.mean([area("both", seed) for seed in (0, 1)])  # it stands before twins
    assert rows["both"]["difference"] == pytest.approx(mine - other)
    page = (folder / "report.md").read_text()
    assert (
        "What ensembles gain: AUROC" in page and "twins is the mean of the probabilities, of scratch" in page
    )
    drifts = [row["init"] for row in results["synthetic"] if row["kind"] == "gamma"]
    assert {"twins", "both"} <= set(drifts) and "scratch+1" not in drifts
    assert {row["init"] for row in results["drift"]} == {"scratch", "mae", "twins", "both"}


def check_contrasts(results: dict[str, Any]) -> None:
    """A pair with the baseline is what is said of the baseline; another pair is the difference of two such pairs."""
    place = ("evaluation", "labels", "metric", "class")
    efficiency = {(row["init"], *(row[name] for name in place)): row for row in results["efficiency"]}
    assert len(results["contrasts"]) == 2 * 2 * 2 * 2
    for row in results["contrasts"]:
        where = tuple(row[name] for name in place)
        first, second = (efficiency[row[side], *where] for side in ("init", "against"))
        assert row["difference"] == pytest.approx(first["value"] - second["value"])
        if row["against"] == "scratch":
            same = ("difference", "difference_low", "difference_high", "p")
            assert [row[name] for name in same] == [first[name] for name in same]


def check_values(results: dict[str, Any], folder: Path) -> None:
    """Means over seeds are those of the runs' own predictions; tuning took the best; tests saw held-out images."""
    row = next(
        row for row in results["efficiency"]
        if (row["task"], row["evaluation"], row["init"], row["labels"], row["metric"])
        == ("screening", "test", "mae", "all", "auroc")
    )  # fmt: skip
    values = []
    for seed in (0, 1):
        run = folder / "runs" / "screening" / "mae" / "all" / f"seed{seed}"
        table = pd.read_parquet(run / "evaluations" / "test.parquet")
        values.append(roc_auc_score(table["label"] == "abnormal", table["prob:abnormal"]))
        assert not (run / "state").exists()
    assert row["value"] == pytest.approx(np.mean(values)) and row["seeds"] == pytest.approx(values, abs=1e-6)
    same = ("task", "evaluation", "labels", "metric")
    base = next(
        other for other in results["efficiency"]
        if other["init"] == "scratch" and all(other[name] == row[name] for name in same)
    )  # fmt: skip
    assert row["difference"] == pytest.approx(row["value"] - base["value"])
    tuned = next(r for r in results["tuned"] if (r["init"], r["labels"]) == ("mae", "all"))
    files = sorted(folder.glob("tuning/screening/mae/6/*/model.json"))
    tried = [Run.open(file.parent).card["training"]["selected_value"] for file in files]
    assert tuned["validation"] == max(tried) and tuned["tried"] == 2
    chosen = Run.open(folder / "runs/screening/mae/all/seed0").config()["engine"]["lr"]
    assert tuned["chosen"] == {"engine": {"lr": chosen}}
    # The other site is part of the pretraining, so only its held-out images are tested on.
    seen = pd.read_parquet(folder / "pretrained" / "mae" / "data.parquet")
    elsewhere = pd.read_parquet(folder / "runs/screening/scratch/all/seed0/evaluations/site_b.parquet")
    used = set(seen.loc[(seen["source"] == "theirs") & (seen["used"] == "pretrain"), "image"])
    assert used and not used & set(elsewhere["image"])


@pytest.mark.usefixtures("in_this_process")
def test_a_run_that_fails_is_named_and_tried_again(tmp_path: Path) -> None:
    first = changed(lambda tree: tree["tasks"]["screening"].update(labels=["all"]))
    study(written(first, tmp_path / "first.yaml"), out=tmp_path / "first", workers=1)
    given = tmp_path / "first" / "runs/screening/scratch/all/seed0"
    whole = (given / "model.safetensors").read_bytes()
    (given / "model.safetensors").write_bytes(whole[:100])

    def broken(tree: dict[str, Any]) -> None:
        tree["inits"]["given"] = {"start": str(given)}
        tree["tasks"]["screening"]["labels"] = ["all"]

    recipe = written(changed(broken), tmp_path / "r.yaml")
    results = study(recipe, out=tmp_path / "out", workers=1)
    ((name, why),) = results["failed"].items()
    assert name == "runs/screening/given/all/seed0" and "model.safetensors" in why
    assert [row["init"] for row in results["efficiency"]] == ["scratch"]
    assert "model.safetensors" in (tmp_path / "out" / "report.html").read_text()
    (given / "model.safetensors").write_bytes(whole)
    results = study(recipe, out=tmp_path / "out", workers=1)
    assert not results["failed"] and len(results["efficiency"]) == 2
    assert "failed" not in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.usefixtures("in_this_process")
def test_what_is_in_the_way_is_refused(tmp_path: Path) -> None:
    recipe = written(SMALL, tmp_path / "r.yaml")
    out = tmp_path / "out"
    study(recipe, out=out, workers=1)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    other = written(changed(lambda tree: tree.update(seeds=[5])), tmp_path / "other.yaml")
    with pytest.raises(
        RunError,
        match=r"a study of another recipe: recipe.seeds was \[0\] and is \[5\], and .*/seed0 is finished",
    ):
        study(other, out=out)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    with pytest.raises(RunError, match="not empty and holds no study"):
        study(recipe, out=tmp_path)
    with pytest.raises(RunError, match="a file is here"):
        study(recipe, out=tmp_path / "r.yaml")
    with pytest.raises(ConfigError, match="--data ourss=…: the recipe has no such data set"):
        study(recipe, out=tmp_path / "new", data={"ourss": tmp_path})
    with pytest.raises(ConfigError, match="makes this data set itself, of phantoms"):
        study(recipe, out=tmp_path / "new", data={"ours": tmp_path})
    with pytest.raises(ConfigError, match="workers=0"):
        study(recipe, out=tmp_path / "new", workers=0)
    assert not (tmp_path / "new").exists()


@pytest.mark.usefixtures("in_this_process")
def test_wrong_parts_of_a_recipe_are_said(tmp_path: Path) -> None:
    kept = changed(lambda tree: tree["data"]["ours"].update(keep={"view": ["L"]}))
    with pytest.raises(DataError, match=r"data.ours.keep: no image has view in L"):
        study(written(kept, tmp_path / "a.yaml"), out=tmp_path / "a")
    column = changed(lambda tree: tree["data"]["ours"].update(keep={"vieuw": ["L"]}))
    with pytest.raises(DataError, match=r"data.ours.keep: there is no column 'vieuw'; the columns are image"):
        study(written(column, tmp_path / "b.yaml"), out=tmp_path / "b")
    nothing = changed(lambda tree: tree["settings"]["engine"].update(steps=0))
    with pytest.raises(ConfigError, match=r"runs/screening/scratch/6/seed0: engine.steps: 0 will not do"):
        study(written(nothing, tmp_path / "d.yaml"), out=tmp_path / "d", workers=1)
    assert not (tmp_path / "d").exists()
    column = changed(lambda tree: tree["tasks"]["screening"].update(subgroups={"sexx": None}))
    with pytest.raises(DataError, match=r"tasks.screening.subgroups: ours has no column 'sexx'"):
        study(written(column, tmp_path / "e.yaml"), out=tmp_path / "e", workers=1)

    def elsewhere(tree: dict[str, Any]) -> None:
        tree["data"]["theirs"] = phantoms(10, "b", 2)
        tree["data"]["theirs"]["settings"] = {"label_columns": ["label"], "label_map": {"normal": "healthy"}}
        tree["tasks"]["screening"]["elsewhere"] = {"b": {"data": "theirs"}}

    with pytest.raises(DataError, match=r"theirs has the label 'healthy', which is none of abnormal"):
        study(written(changed(elsewhere), tmp_path / "f.yaml"), out=tmp_path / "f", workers=1)


def without_training(tree: dict[str, Any], tmp_path: Path, error: type[Exception], said: str) -> None:
    """Assert that a study is refused with a sentence, and nothing was trained for it."""
    with pytest.raises(error, match=said):
        study(written(tree, tmp_path / "refused.yaml"), out=tmp_path / "refused", workers=1)
    assert not list((tmp_path / "refused").glob("[!d]*/**/config.yaml"))


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        ("inits.may", {"start": "maee"}, "inits.may.start: 'maee' is neither a pretraining of the recipe nor the"),
        ("inits.may", {"start": "scanprior:none"}, "inits.may.start: scanprior:none: no such encoder comes with"),
        ("data.ours.settings.label_colums", ["x"], "data.ours.settings: label_colums: unknown .* 'label_columns'"),
        ("tasks.screening.contrasts", [["scratch", "scrach"]], "no init or ensemble 'scrach'; did you mean 'scratch'"),
        ("tasks.screening.contrasts", [["scratch", "scratch"]], "contrasts: 'scratch' is compared with itself"),
        ("tasks.screening.settings", {"data": {"siez": 3}}, "data.siez: unknown configuration key; did you mean"),
        ("tasks.screening.settings", {"engine": {"zz": 3}}, "engine.zz: unknown configuration key; known here: .*lr"),
    ],
)  # fmt: skip
def test_what_can_be_seen_of_a_recipe_is_refused_before_data_are_read(
    tmp_path: Path, place: str, value: Any, said: str
) -> None:
    without_training(merge(SMALL, nest({place: value})), tmp_path, ConfigError, said)
    assert not (tmp_path / "refused").exists()


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        ("labels", [6, 1000], r"tasks.screening.labels: ours: 1000 labels asked for and \d+ labelled training images"),
        ("tune", {"labels": [999], "grid": {"engine.lr": [1]}}, "tasks.screening.tune.labels: ours: 999 labels asked"),
        ("labels", [1], "tasks.screening.labels: ours: 1 labels cannot cover the 2 classes"),
        ("metrics", ["auroc", "quadratic_kappa"],
         "tasks.screening.metrics: 'quadratic_kappa' cannot be had of ours; .* these are two; take kappa"),
        ("subgroups", {"sex": [1, 2]}, "tasks.screening.subgroups.sex: ours: sex holds [FM]; bands are for finite"),
        ("elsewhere", {"b": {"data": "theirs", "map": {"norml": "normal"}}},
         "tasks.screening.elsewhere.b.map: theirs has no label 'norml'; its labels are abnormal, normal"),
        ("elsewhere", {"b": {"data": "theirs", "map": {"normal": "healthy"}}},
         "tasks.screening.elsewhere.b.map.normal: ours has no label 'healthy'; its labels are abnormal, normal"),
    ],
)  # fmt: skip
def test_what_only_the_data_show_is_refused_before_anything_is_trained(
    tmp_path: Path, place: str, value: Any, said: str
) -> None:
    tree = changed(lambda tree: tree["data"].update(theirs=phantoms(10, "b", 2)))
    tree["tasks"]["screening"][place] = value
    without_training(tree, tmp_path, DataError, said)


@pytest.mark.usefixtures("in_this_process")
def test_a_recipe_that_is_mended_before_anything_was_trained_takes_its_place(tmp_path: Path) -> None:
    out = tmp_path / "out"
    wrong = changed(lambda tree: tree["data"]["ours"].update(keep={"view": ["L"]}))
    with pytest.raises(DataError, match="no image has view in L"):
        study(written(wrong, tmp_path / "r.yaml"), out=out, workers=1)
    (out / "data" / "ours" / "images").mkdir(exist_ok=True)
    (out / "data" / "ours" / "labels.csv").unlink()  # as if it had been killed while it drew
    results = study(written(SMALL, tmp_path / "r.yaml"), out=out, workers=1)
    assert not results["failed"]
    # What only the report says may change later, and nothing is trained again.
    trained = {path: path.stat().st_mtime_ns for path in out.rglob("model.json")}
    more = changed(lambda tree: tree.update(title="Another title", resamples=150))
    more["tasks"]["screening"].update(metrics=["accuracy", "sensitivity"], subgroups={"sex": None})
    results = study(written(more, tmp_path / "r.yaml"), out=out, workers=1)
    assert results["title"] == "Another title"
    assert {row["metric"] for row in results["efficiency"]} == {"accuracy", "sensitivity"}
    assert {path: path.stat().st_mtime_ns for path in out.rglob("model.json")} == trained
    # Operating points are those that the run chose on its validation images.
    own = json.loads((out / "runs/screening/scratch/all/seed0/evaluations/test.json").read_text())
    known = {row["metric"]: row["value"] for row in own["metrics"]}
    for row in results["efficiency"]:
        if row["labels"] == "all":
            assert row["value"] == pytest.approx(known[row["metric"]])
    assert results["subgroups"] and "Another title" in (out / "report.html").read_text()


@pytest.mark.usefixtures("in_this_process")
def test_a_report_of_what_cannot_be_measured(tmp_path: Path) -> None:
    """No test split, another site with one class, a dot in a name, a run from outside that has seen the test images."""
    outside = changed(lambda tree: tree.update(name="first"))
    outside["pretraining"] = {"mae": FULL["pretraining"]["mae"] | {"data": ["ours"]}}
    outside["settings"]["data"]["split"] = {"fractions": [0.9, 0.05, 0.05]}
    outside["inits"] = {"scratch": {}, "mae": {"start": "mae"}}
    outside["tasks"]["screening"]["labels"] = ["all"]
    study(written(outside, tmp_path / "first.yaml"), out=tmp_path / "first", workers=2)
    tree = changed(
        lambda tree: tree.update(
            inits={"scratch": {}, "mae": {"start": str(tmp_path / "first/pretrained/mae")}}
        )
    )
    tree["settings"]["data"]["split"] = {"fractions": [0.6, 0.4, 0.0]}
    tree["data"]["theirs.v2"] = {**phantoms(12, "b", 2), "keep": {"label": ["normal"]}}
    tree["tasks"]["screening"]["elsewhere"] = {"site.b": {"data": "theirs.v2"}}
    tree["shift"] = {"site.b": {"encoder": "mae", "reference": "ours", "target": "theirs.v2"}}
    results = study(written(tree, tmp_path / "r.yaml"), out=tmp_path / "out", workers=2)
    assert not results["failed"]
    assert {row["evaluation"] for row in results["efficiency"]} == {"validation", "site.b"}
    assert any("pretraining saw" in text for text in results["warnings"])
    there = [row for row in results["efficiency"] if row["evaluation"] == "site.b"]
    assert {row["reason"] for row in there} == {"n/a because no image is positive"}
    assert {row["difference_reason"] for row in results["drift"]} == {"n/a because no image is positive"}
    page = (tmp_path / "out" / "report.html").read_text()
    assert "pretraining saw" in page and "measured on the validation images" in page and "site.b" in page
    assert [row["shift"] for row in results["shift"]] == ["site.b"]


@pytest.mark.usefixtures("in_this_process")
def test_rows_are_kept_by_their_columns(tmp_path: Path) -> None:
    kept = changed(lambda tree: tree["data"]["ours"].update(keep={"sex": ["F"], "view": ["PA"]}))
    kept["tasks"]["screening"]["labels"] = ["all"]
    study(written(kept, tmp_path / "r.yaml"), out=tmp_path / "out", workers=1)
    table = pd.read_parquet(tmp_path / "out" / "data" / "ours.parquet")
    assert set(table["sex"]) == {"F"} and set(table["view"]) == {"PA"}
    used = pd.read_parquet(tmp_path / "out" / "runs/screening/scratch/all/seed0/data.parquet")
    split = pd.read_csv(tmp_path / "out" / "data" / "ours-split.csv").set_index("image")["split"]
    assert used.set_index("image")["split"].to_dict() == split.to_dict()


def trained(folder: Path) -> dict[Path, int]:
    """Return the cards of the finished runs, and when they were written."""
    return {path: path.stat().st_mtime_ns for path in folder.rglob("model.json")}


@pytest.mark.usefixtures("in_this_process")
def test_a_recipe_whose_fine_tunings_all_failed_can_be_mended(tmp_path: Path) -> None:
    first = changed(lambda tree: tree["tasks"]["screening"].update(labels=["all"]))
    study(written(first, tmp_path / "first.yaml"), out=tmp_path / "first", workers=1)
    start = tmp_path / "first" / "runs/screening/scratch/all/seed0"
    (start / "model.safetensors").write_bytes(b"damaged")
    tree = copy.deepcopy(first)
    tree["pretraining"] = copy.deepcopy({"mae": FULL["pretraining"]["mae"] | {"data": ["ours"]}})
    tree["inits"] = {"scratch": {"start": str(start)}}
    out = tmp_path / "out"
    with pytest.raises(RunError, match="no fine-tuning succeeded"):
        study(written(tree, tmp_path / "r.yaml"), out=out, workers=1)
    before = trained(out)
    assert [path.parent.name for path in before] == ["mae"]
    tree["inits"] = {"scratch": {}}
    tree["tasks"]["screening"]["labels"] = [6]
    results = study(written(tree, tmp_path / "r.yaml"), out=out, workers=1)
    assert not results["failed"] and before.items() <= trained(out).items(), "the pretraining was done again"
    # What only adds runs keeps those that are there; what would change one of them is refused, and it is named.
    tree["seeds"] = [0, 1]
    before = trained(out)
    results = study(written(tree, tmp_path / "r.yaml"), out=out, workers=1)
    assert before.items() <= trained(out).items() and len(results["efficiency"][0]["seeds"]) == 2
    tree["pretraining"]["mae"]["settings"]["engine"] = {"steps": 3}
    with pytest.raises(
        RunError,
        match=r"engine was None .* pretrained/mae is finished .* delete \S+out/pretrained/mae$",
    ):
        study(written(tree, tmp_path / "r.yaml"), out=out, workers=1)


@pytest.mark.usefixtures("in_this_process")
def test_a_table_that_has_changed_since_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = PhantomConfig.model_validate(SMALL["data"]["ours"]["phantom"])
    source = write_phantoms(tmp_path / "source", made, workers=0)
    tree = changed(lambda tree: tree["data"]["ours"].pop("phantom"))
    tree["tasks"]["screening"]["labels"] = [6]
    recipe, out, data = written(tree, tmp_path / "r.yaml"), tmp_path / "out", {"ours": source}
    assert not study(recipe, out=out, data=data, workers=1)["warnings"]
    before = trained(out)
    table = pd.read_csv(source / "labels.csv")
    table.iloc[1:].to_csv(source / "labels.csv", index=False)
    for _ in range(2):  # as long as it is so
        results = study(recipe, out=out, data=data, workers=1, reporter=ConsoleReporter())
        (warning,) = results["warnings"]
        assert "has changed since the study began" in warning and warning in capsys.readouterr().out
    assert trained(out) == before
    shutil.rmtree(out / "runs")  # nothing rests on the old table now
    results = study(recipe, out=out, data=data, workers=1, reporter=ConsoleReporter())
    assert results["data"]["ours"]["images"] == len(table) - 1 and not results["warnings"]
    assert "ours: it has changed since the study began, and is read again" in capsys.readouterr().out


@pytest.mark.usefixtures("in_this_process")
def test_ensembles_join_a_finished_study_and_resume_without_training_again(tmp_path: Path) -> None:
    plain = changed(lambda tree: tree["tasks"]["screening"].update(labels=[6]))
    recipe, out = written(plain, tmp_path / "r.yaml"), tmp_path / "out"
    study(recipe, out=out, workers=1)
    own = trained(out)
    twins = {"twins": {"members": ["scratch", "scratch+1"], "method": "calibrated"}}
    plain["tasks"]["screening"]["ensembles"] = twins
    results = study(written(plain, recipe), out=out, workers=1)
    assert not results["failed"] and [row["init"] for row in results["efficiency"]] == ["scratch", "twins"]
    before, finished = (out / "results.json").read_bytes(), trained(out)
    assert len(own) == 1 and len(finished) == 3 and own.items() <= finished.items()
    ensemble = out / "runs/screening/twins/6/seed0/model.json"
    ensemble.unlink()  # as if it had been interrupted
    assert not study(recipe, out=out, workers=1)["failed"]
    assert (out / "results.json").read_bytes() == before
    assert {path for path, when in trained(out).items() if finished[path] != when} == {ensemble}
