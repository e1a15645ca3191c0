"""The list of runs: what it says of real runs, of broken ones, and which runs it ranks together."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from api.conftest import Command
from scanprior import api, evaluation
from scanprior.api.browsing import FIELDS, LOWER_IS_BETTER, letters, notes_on
from scanprior.api.run_entries import RunEntry
from scanprior.run import Run

Change = Callable[[dict[str, Any]], Any]


def of_card(file: Path, change: Change) -> None:
    tree = json.loads(file.read_text())
    change(tree)
    file.write_text(json.dumps(tree))


def put(run: Run, to: Path, card: Change = lambda tree: None, test: Change = lambda tree: None) -> Path:
    """Copy what a list reads of a run, changed, and no weights."""
    (to / "evaluations").mkdir(parents=True)
    for name in ("config.yaml", "model.json", "evaluations/test.json"):
        shutil.copy(run.path / name, to / name)
    (to / "model.safetensors").touch()
    of_card(to / "model.json", card)
    of_card(to / "evaluations" / "test.json", test)
    return to


def auroc(value: float) -> Change:
    """Set the AUROC of the positive class, in both of its rows."""

    def change(tree: dict[str, Any]) -> None:
        for row in tree["metrics"]:
            if row["metric"] == "auroc":
                row["value"] = value

    return change


def both(*changes: Change) -> Change:
    def change(tree: dict[str, Any]) -> None:
        for each in changes:
            each(tree)

    return change


def by_path(entries: list[RunEntry]) -> dict[str, RunEntry]:
    return {entry.path: entry for entry in entries}


@pytest.fixture
def home(finetuned: Run, pretrained: Run, tmp_path: Path) -> Path:
    """Real runs, copied: a pretraining, and a fine-tuning with its report."""
    shutil.copytree(pretrained.path, tmp_path / "home" / "pre")
    shutil.copytree(finetuned.path, tmp_path / "home" / "deep" / "ft")
    (tmp_path / "home" / "deep" / "ft" / "report.html").touch()
    return tmp_path / "home"


def test_a_list_says_what_the_cards_and_evaluations_say(home: Path, pretrained: Run, finetuned: Run) -> None:
    found = by_path(api.runs(home))
    assert list(found) == ["deep/ft", "pre"]
    pre, ft = found["pre"], found["deep/ft"]
    assert (pre.kind, pre.state, pre.objective, pre.task, pre.labels) == (
        "pretrain",
        "finished",
        "gmml",
        None,
        None,
    )
    assert not pre.metrics and pre.evaluation is None and not pre.report
    data = finetuned.card["data"]
    assert (ft.kind, ft.state, ft.task, ft.report) == ("classify", "finished", "multiclass", True)
    assert (ft.encoder, ft.size, ft.seed) == ("vit_tiny_patch16_224", 32, finetuned.card["seed"])
    assert ft.data == (data["sources"][0]["name"],) and ft.labels == data["labels_used"]
    assert ft.parent == str(pretrained.path) and ft.created == finetuned.card["created"]
    rows = json.loads((finetuned.path / "evaluations" / "test.json").read_text())["metrics"]
    for name, metric in ft.metrics.items():
        row = next(row for row in rows if row["metric"] == name)  # DeLong's comes second
        assert (metric.value, metric.low, metric.high) == (row["value"], row["low"], row["high"]), name
    assert set(ft.metrics) == {row["metric"] for row in rows} and not row["interval"].startswith("DeLong")


def test_the_mean_over_classes_is_taken_and_not_one_of_them(finetuned: Run, tmp_path: Path) -> None:
    row = {"low": 0.1, "high": 0.9, "n": 9, "positives": 3, "reason": None, "interval": "bootstrap"}
    classes = [
        {**row, "metric": "auroc", "class": name, "value": value} for name, value in (("a", 0.6), ("b", 0.8))
    ]
    alone = [{**row, "metric": "npv", "class": name, "value": 0.5} for name in "ab"]
    dice = {
        **row,
        "metric": "dice",
        "class": "macro",
        "value": None,
        "low": None,
        "high": None,
        "reason": "why",
    }
    mean = {**row, "metric": "auroc", "class": "macro", "value": 0.7}
    put(finetuned, tmp_path / "r", test=lambda tree: tree.update(metrics=[*classes, *alone, mean, dice]))
    (entry,) = api.runs(tmp_path)
    assert set(entry.metrics) == {"auroc", "dice"}
    assert (entry.metrics["auroc"].value, entry.metrics["auroc"].of) == (0.7, "macro")
    assert (entry.metrics["dice"].value, entry.metrics["dice"].reason) == (None, "why")


def test_an_ensemble_a_segmentation_and_a_probe_are_called_so(finetuned: Run, tmp_path: Path) -> None:
    ensemble = {"method": "mean", "members": [{}, {}, {}]}
    put(finetuned, tmp_path / "ens", lambda tree: tree.update(ensemble=ensemble, preprocessing={}))
    (tmp_path / "ens" / "model.safetensors").unlink()  # an ensemble has none
    put(finetuned, tmp_path / "seg", lambda tree: tree.update(kind="segment"))
    put(finetuned, tmp_path / "probe", lambda tree: tree["task"].update(name="probe"))
    found = by_path(api.runs(tmp_path))
    assert (found["ens"].kind, found["ens"].state) == ("ensemble", "finished")
    assert found["ens"].task == "multiclass, mean of 3" and found["ens"].size is None
    assert (found["seg"].kind, found["seg"].task) == ("segment", "segmentation")
    assert found["probe"].task == "multiclass, linear probe"


BROKEN: dict[str, tuple[str, bytes | None, str]] = {
    "cut": ("model.json", b'{"format": 1, "kind": ', "model.json: not readable as JSON"),
    "empty": ("model.json", b"", "not readable as JSON"),
    "binary": ("model.json", b"\xff\xfe\x00\x01", "not readable as JSON"),
    "list": ("model.json", b"[1, 2]", "not the card of a run"),
    "deep": ("model.json", b"[" * 100_000, "nested too deeply"),
    "newer": ("model.json", b'{"format": 99}', "in format 99"),
    "lacking": ("model.json", b'{"format": 1, "kind": "classify"}', "lacks 'encoder'"),
    "weights": ("model.safetensors", None, "model.safetensors is missing"),
    "test": ("evaluations/test.json", b"{", "evaluations/test.json: not readable"),
    "nothing": ("evaluations/test.json", b"null", "it holds a NoneType"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_damaged_run_has_its_row_and_its_reason(
    name: str, finetuned: Run, tmp_path: Path, scanprior: Command
) -> None:
    file, content, reason = BROKEN[name]
    place = put(finetuned, tmp_path / "broken") / file
    place.unlink() if content is None else place.write_bytes(content)
    put(finetuned, tmp_path / "whole")
    found = by_path(api.runs(tmp_path))
    assert found["broken"].state == "damaged" and reason in str(found["broken"].reason)
    assert str(tmp_path) not in str(found["broken"].reason)
    assert found["whole"].state == "finished"
    said = scanprior("runs", tmp_path, "--best", "auroc")
    assert said.code == 0 and "damaged" in said.out and "1 of 2 runs" in said.out


CARDS = (
    "kind",
    "encoder",
    "objective",
    "task",
    "preprocessing",
    "parent",
    "data",
    "seed",
    "created",
    "ensemble",
)
TESTS = (
    "metrics",
    "classes",
    "level",
    "patients",
    "n",
    "name",
    "data",
    "training_images",
    "split_fingerprint",
)


@pytest.mark.parametrize(
    "value", [7, [1], "\ud800\x1b[31m", {"members": 3, "sources": 3}, 10**400, True, None]
)
def test_parts_of_a_form_that_nobody_expects_crash_nothing(
    value: object, finetuned: Run, tmp_path: Path, scanprior: Command
) -> None:
    for name in CARDS:
        put(finetuned, tmp_path / f"card-{name}", lambda tree, name=name: tree.update({name: value}))  # type: ignore[misc]
    for name in TESTS:
        put(finetuned, tmp_path / f"test-{name}", test=lambda tree, name=name: tree.update({name: value}))  # type: ignore[misc]
    rows = ({"metric": "auroc", "class": value, "value": value, "n": value, "positives": value}, value)
    put(finetuned, tmp_path / "rows", test=lambda tree: tree.update(metrics=rows))
    entries = api.runs(tmp_path)
    assert len(entries) == len(CARDS) + len(TESTS) + 1
    json.dumps([entry.as_dict() for entry in entries])
    said = scanprior("runs", tmp_path, "--csv", tmp_path / "t.csv", "--json", tmp_path / "t.json")
    assert said.code == 0 and "\x1b" not in said.out
    assert len(pd.read_csv(tmp_path / "t.csv")) == len(json.loads((tmp_path / "t.json").read_text())["runs"])


def test_an_unfinished_run_and_a_config_of_something_else(
    finetuned: Run, pretrained: Run, tmp_path: Path
) -> None:
    for name, run in (("ft", finetuned), ("pre", pretrained)):
        (tmp_path / name / "state").mkdir(parents=True)
        shutil.copy(run.path / "config.yaml", tmp_path / name)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.yaml").write_text("colour: red\n")
    found = by_path(api.runs(tmp_path))
    assert {(name, entry.kind, entry.state) for name, entry in found.items()} == {
        ("ft", "classify", "unfinished"), ("pre", "pretrain", "unfinished"),
    }  # fmt: skip


def test_no_link_is_followed(finetuned: Run, tmp_path: Path) -> None:
    put(finetuned, tmp_path / "elsewhere" / "run")
    home = tmp_path / "home"
    put(finetuned, home / "linked card")
    (home / "linked card" / "model.json").unlink()
    (home / "linked card" / "model.json").symlink_to(finetuned.path / "model.json")
    (home / "link").symlink_to(tmp_path / "elsewhere")
    (home / "loop").symlink_to(home)
    os.mkfifo(put(finetuned, home / "pipe") / "evaluations" / "other.json")
    found = by_path(api.runs(home, evaluation="other"))
    assert set(found) == {"linked card", "pipe"}
    assert {entry.state for entry in found.values()} == {"damaged"}
    assert "is a link" in str(found["linked card"].reason)


def test_folders_that_hold_no_runs_are_passed_over(finetuned: Run, tmp_path: Path) -> None:
    for place in (".git/run", "store/run", "r/state/run", "r/evaluations/run", "r/below/run"):
        put(finetuned, tmp_path / place)
    (tmp_path / "store" / "store.json").touch()
    put(finetuned, tmp_path / "s")
    shutil.copytree(tmp_path / "s", tmp_path / "r", dirs_exist_ok=True)
    assert list(by_path(api.runs(tmp_path))) == ["r", "r/below/run", "s"]
    assert list(by_path(api.runs(tmp_path / "s"))) == ["."]


def test_a_folder_that_cannot_be_read_is_named(
    finetuned: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(finetuned, tmp_path / "run")
    (tmp_path / "secret").mkdir()
    (tmp_path / "gone").mkdir()
    really = os.scandir

    def scandir(path: str) -> Any:
        if Path(path).name == "secret":
            raise PermissionError(13, "Permission denied", path)
        if Path(path).name == "gone":
            raise FileNotFoundError(2, "No such file", path)
        return really(path)

    monkeypatch.setattr(os, "scandir", scandir)
    found = by_path(api.runs(tmp_path))
    assert set(found) == {"run", "secret"} and "permission denied" in str(found["secret"].reason)


def test_the_best_is_first_and_equal_ones_are_best_together(finetuned: Run, tmp_path: Path) -> None:
    for name, value in (("a", 0.7), ("b", 0.9), ("c", 0.8), ("d", 0.9)):
        put(finetuned, tmp_path / name, test=auroc(value))
    found = api.runs(tmp_path, best="auroc")
    assert [(entry.path, entry.best) for entry in found] == [
        ("b", True),
        ("d", True),
        ("c", False),
        ("a", False),
    ]
    assert notes_on(found, "auroc") == []
    assert not any(entry.best for entry in api.runs(tmp_path, sort="auroc"))


def test_least_is_best_where_lower_is_better(finetuned: Run, tmp_path: Path) -> None:
    assert LOWER_IS_BETTER == evaluation.LOWER_IS_BETTER
    for name, value in (("a", 0.3), ("b", 0.1), ("c", 0.2)):

        def change(tree: dict[str, Any], value: float = value) -> None:
            next(row for row in tree["metrics"] if row["metric"] == "brier")["value"] = value

        put(finetuned, tmp_path / name, test=change)
    assert [entry.path for entry in api.runs(tmp_path, best="brier")] == ["b", "c", "a"]


OTHER_SETS: dict[str, tuple[Change, Change]] = {
    "split": (lambda card: None, lambda test: test.update(split_fingerprint="0123456789abcdef")),
    "images": (lambda card: None, lambda test: test.update(n=test["n"] - 1)),
    "labels": (lambda card: None, lambda test: test["metrics"][0].update(positives=1)),
    "classes": (lambda card: None, lambda test: test.update(classes=["normal", "pneumonia"])),
    "positive class": (lambda card: None, lambda test: test.update(positive_class="normal")),
    "data": (lambda card: card["data"]["sources"][0].update(fingerprint="f" * 16), lambda test: None),
}  # fmt: skip


@pytest.mark.parametrize("what", OTHER_SETS)
def test_other_test_sets_are_not_ranked_together(
    what: str, finetuned: Run, tmp_path: Path, scanprior: Command
) -> None:
    """The best value of all is on the smaller test set: it must not stand before the others."""
    card, test = OTHER_SETS[what]
    for name, value in (("a1", 0.7), ("a2", 0.8)):
        put(finetuned, tmp_path / name, test=auroc(value))
    put(finetuned, tmp_path / "b", card, both(auroc(0.99), test))
    found = api.runs(tmp_path, best="auroc")
    assert [(entry.path, entry.best) for entry in found] == [("a2", True), ("a1", False), ("b", True)]
    assert list(letters(found, "auroc").values()) == ["A", "B"]
    for metric in ("--best", "--sort"):
        said = scanprior("runs", tmp_path, metric, "auroc")
        assert said.code == 0 and "2 different test sets" in said.out and "test set" in said.out
    assert scanprior("runs", tmp_path, "--best", "auroc", "--filter", "path=a*").out.count("test set") == 0


def test_the_same_images_stored_at_another_size_are_ranked_together_and_it_is_said(
    finetuned: Run, tmp_path: Path
) -> None:
    """A fingerprint of stored images changes with their size, so it cannot tell whether they are the same."""

    def larger(card: dict[str, Any]) -> None:
        card["preprocessing"]["stored_size"] = 64
        card["data"]["sources"][0]["fingerprint"] = "e" * 16

    put(finetuned, tmp_path / "a", test=auroc(0.7))
    put(finetuned, tmp_path / "b", larger, auroc(0.8))
    found = api.runs(tmp_path, best="auroc")
    assert [(entry.path, entry.best) for entry in found] == [("b", True), ("a", False)]
    assert len(letters(found, "auroc")) == 1 and any(
        "in 2 forms" in note for note in notes_on(found, "auroc")
    )


def test_what_must_be_known_of_ranked_runs_is_noted(finetuned: Run, pretrained: Run, tmp_path: Path) -> None:
    put(finetuned, tmp_path / "seen", lambda card: card["data"].update(transductive=True))
    put(finetuned, tmp_path / "trained", test=lambda test: test.update(training_images=3))
    put(finetuned, tmp_path / "unknown", test=lambda test: test.update(split_fingerprint=None))
    put(finetuned, tmp_path / "level", test=lambda test: test.update(level=0.9))
    shutil.copytree(pretrained.path, tmp_path / "pre")
    found = api.runs(tmp_path, best="auroc")
    assert [entry.path for entry in found][-1] == "pre" and not by_path(found)["unknown"].best
    notes = "\n".join(notes_on(found, "auroc"))
    for said in (
        "pretraining of seen",
        "evaluated ones of trained",
        "split is not known",
        "90 %, 95 %",
        "1 of 5 runs",
    ):
        assert said in notes
    assert "take no part" not in "\n".join(notes_on(found))


def test_filters_and_sorting(
    finetuned: Run, pretrained: Run, tmp_path: Path, refused: Callable[..., str]
) -> None:
    for seed in (2, 10, 1):
        put(finetuned, tmp_path / f"seed{seed}", lambda card, seed=seed: card.update(seed=seed))  # type: ignore[misc]
    shutil.copytree(pretrained.path, tmp_path / "pre")

    def paths(**how: Any) -> list[str]:
        return [entry.path for entry in api.runs(tmp_path, **how)]

    assert paths() == ["pre", "seed1", "seed2", "seed10"]
    assert paths(sort="seed", descending=True) == ["seed10", "seed2", "seed1", "pre"]
    assert paths(sort="labels", descending=True)[-1] == "pre" == paths(sort="labels")[-1]  # it has none
    assert paths(kinds=["pretrain"]) == ["pre"]
    assert paths(filters=["path=seed*", "seed=1"]) == ["seed1"]
    assert paths(filters=["seed=1", "seed=10"]) == ["seed1", "seed10"]
    assert paths(filters=["labels=none"]) == ["pre"] and paths(filters=["report=yes"]) == []
    assert (
        paths(filters=[f"data={finetuned.card['data']['sources'][0]['name']}", "kind=classify"])[0] == "seed1"
    )
    assert "did you mean 'encoder'" in refused("runs", tmp_path, "--filter", "encodr=x")
    assert "key=value" in refused("runs", tmp_path, "--filter", "encoder")
    assert "did you mean 'auroc'" in refused("runs", tmp_path, "--best", "aurok")
    assert "did you mean 'created'" in refused("runs", tmp_path, "--sort", "creatd")
    assert "classify" in refused("runs", tmp_path, "--kind", "tune")
    assert "no such folder" in refused("runs", tmp_path / "none")
    assert "is a file" in refused("runs", tmp_path / "pre" / "model.json")
    assert "no name" in refused("runs", tmp_path, "--evaluation", "../../x")


def study_of(run: Run, folder: Path) -> Path:
    """Make what a study leaves behind: two runs in folds, one shift, one run that was begun."""
    put(run, folder / "fold1" / "runs" / "task" / "mae" / "10" / "seed0")
    put(run, folder / "fold2" / "pretrained" / "mae")
    for fold in ("fold1", "fold2"):
        (folder / fold / "study.yaml").write_text("recipe: {name: inner}\n")
        put(run, folder / fold / "data" / "never")
    (folder / "fold1" / "shift").mkdir()
    (folder / "fold1" / "shift" / "a.json").touch()
    begun = folder / "fold2" / "tuning" / "0"
    begun.mkdir(parents=True)
    shutil.copy(run.path / "config.yaml", begun)
    (folder / "study.yaml").write_text(
        yaml.safe_dump({"recipe": {"name": "mine", "data": {"ours": {}, "theirs": {}}}})
    )
    return folder


def test_a_study_is_one_row(finetuned: Run, tmp_path: Path, scanprior: Command) -> None:
    study_of(finetuned, tmp_path / "s")
    put(finetuned, tmp_path / "s2")
    put(finetuned, tmp_path / "s" / "fold1" / "runs" / "task" / "gmml" / "10" / "seed0")
    found = by_path(api.runs(tmp_path))
    assert list(found) == ["s", "s2"]
    study = found["s"]
    assert (study.kind, study.state, study.task, study.steps) == ("study", "unfinished", "mine", 4)
    assert study.data == ("ours", "theirs")
    inner = by_path(api.runs(tmp_path, every=True))
    assert len(inner) == 2 + 4 and inner["s/fold2/tuning/0"].state == "unfinished"
    results = {"name": "mine", "data": {"ours": {}}, "efficiency": [], "failed": {"runs/x": "why"}}
    (tmp_path / "s" / "results.json").write_text(json.dumps(results))
    study = by_path(api.runs(tmp_path))["s"]
    assert (study.state, study.reason, study.data) == ("unfinished", "1 step failed", ("ours",))
    (tmp_path / "s" / "results.json").write_text(json.dumps({**results, "failed": {}}))
    assert by_path(api.runs(tmp_path))["s"].state == "finished"
    (tmp_path / "s" / "results.json").write_text("{")
    assert by_path(api.runs(tmp_path))["s"].state == "damaged"
    (tmp_path / "s" / "results.json").unlink()
    (tmp_path / "s" / "study.yaml").write_text("recipe: [")
    assert by_path(api.runs(tmp_path))["s"].state == "damaged"
    said = scanprior("runs", tmp_path)
    assert said.code == 0 and "1 run and 1 study (1 damaged)" in said.out


def test_results_of_a_study_without_its_runs_and_results_of_something_else(tmp_path: Path) -> None:
    for name, tree in (
        ("copied", {"name": "n", "data": {}, "efficiency": []}),
        ("other", {"name": "n"}),
        ("list", []),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.json").write_text(json.dumps(tree))
    (entry,) = api.runs(tmp_path)
    assert (entry.path, entry.kind, entry.state, entry.steps) == ("copied", "study", "finished", None)


@pytest.mark.parametrize("width", [1, 20, 40, 60, 80, 120, 400])
def test_no_terminal_garbles_the_table(
    width: int, home: Path, scanprior: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every line of the table has one length, within the terminal; the path is there, folded or whole."""
    shutil.copytree(home / "deep" / "ft", home / ("long-" * 12) / "run")
    monkeypatch.setattr("scanprior.cli.run_table.console._width", width)
    said = scanprior("runs", home, "--best", "auroc")
    lines = [line for line in said.out.splitlines() if line[:1] in "┏┃┡│└├"]
    assert said.code == 0
    if width < 20:
        return
    assert len({len(line) for line in lines}) == 1 and len(lines[0]) <= width
    cells = [line.split("│")[1].strip() for line in lines if line.startswith("│")]
    assert ("long-" * 12 + "/run") in "".join(cells)
    assert ("no room for" in said.out) == (width < 400)
    if width >= 60:
        assert "best" in said.out and "finished" in said.out


def test_files_hold_everything(home: Path, tmp_path: Path, scanprior: Command) -> None:
    said = scanprior("runs", home, "--json", tmp_path / "new" / "l.json", "--csv", tmp_path / "l.csv")
    assert said.code == 0 and f"wrote {tmp_path / 'l.csv'}" in said.out
    told = json.loads((tmp_path / "new" / "l.json").read_text())
    entries = api.runs(home)
    assert told["runs"] == json.loads(json.dumps([entry.as_dict() for entry in entries]))
    table = pd.read_csv(tmp_path / "l.csv").set_index("path")
    assert set(FIELDS) - {"path"} < set(table.columns)
    ft = by_path(entries)["deep/ft"].metrics["auroc"]
    assert table.loc["deep/ft", ["auroc", "auroc_low", "auroc_high"]].tolist() == [ft.value, ft.low, ft.high]
    assert table.loc["pre", ["auroc", "labels"]].isna().all()


def test_names_of_patients_are_not_shown(finetuned: Run, tmp_path: Path, scanprior: Command) -> None:
    """A card names images that were left out, and an evaluation may hold names in what it shows of images."""
    secret = "Quillfeather"

    def card(tree: dict[str, Any]) -> None:
        tree["data"]["sources"][0].update(left_out=[{"image": f"{secret}.dcm", "reason": secret}])
        tree["notes"] = [f"patients {secret}"]

    put(finetuned, tmp_path / "r", card, lambda tree: tree.update(shown=[secret]))
    said = scanprior("runs", tmp_path, "--json", tmp_path / "l.json", "--csv", tmp_path / "l.csv")
    assert secret not in said.text + (tmp_path / "l.json").read_text() + (tmp_path / "l.csv").read_text()


def test_an_empty_folder(tmp_path: Path, scanprior: Command) -> None:
    said = scanprior("runs", tmp_path, "--best", "auroc")
    assert said.code == 0 and "no run or study below" in said.out


def test_two_hundred_runs_are_listed_without_a_network_library(finetuned: Run, tmp_path: Path) -> None:
    for number in range(200):
        put(finetuned, tmp_path / f"run{number}")
    code = (
        "import sys; sys.argv = ['scanprior', 'runs', sys.argv[1], '--best', 'auroc']\n"
        "from scanprior.cli import main\n"
        "try: main()\nexcept SystemExit: pass\n"
        "heavy = {'torch', 'numpy', 'pandas', 'timm', 'matplotlib'} & set(sys.modules)\n"
        "print('heavy', sorted(heavy))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert any(line.startswith("200 runs") for line in done) and done[-1] == "heavy []"
