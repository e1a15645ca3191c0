"""A study of inits in regimes: what is compared with what, what is absent, what it costs, and its report."""

from __future__ import annotations

import copy
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from safetensors.torch import load_file
from sklearn.metrics import roc_auc_score

from scanprior.engine import Reporter
from scanprior.errors import ConfigError
from scanprior.evaluation import holm
from scanprior.run import Run
from scanprior.studies import study
from studies.test_study import SMALL, phantoms, trained, written

GONE = "weights/<i>gone</i>.pth"
SOURCE = "dinov2_vits14_pretrain.pth of facebookresearch/dinov2"
TRANSFER: dict[str, Any] = {
    **copy.deepcopy(SMALL),
    "name": "transfer",
    "data": {"ours": phantoms(40, "a", 1)},
    "inits": {
        "scratch": {"random": True},
        "deeper": {"settings": {"encoder": {"depth": 2}}},
        "gone": {"if_absent": "leave_out", "settings": {"encoder": {"name": "dinov2-s", "weights": GONE}}},
    },
    "regimes": {
        "linear": {"probe": "linear"},
        "full": {"settings": {"engine": {"lr": 0.003}}},
    },
    "baseline_regime": "linear",
    "tasks": {
        "here": {
            "data": "ours", "metrics": ["auroc", "accuracy"],
            "contrasts": [["deeper@full", "deeper@linear"], ["deeper@full", "scratch@full"]],
        },
        "few": {"data": "ours", "labels": [8], "metrics": ["auroc"]},
    },
    "seeds": [0, 1],
    "costs": True,
}  # fmt: skip


class Notes(Reporter):
    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, text: str) -> None:
        self.said.append(text)


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCANPRIOR_CACHE", str(tmp_path_factory.getbasetemp() / "transfer cache"))


def small(**changes: Any) -> dict[str, Any]:
    """Return a study of one task and seed, without costs."""
    made = {**copy.deepcopy(TRANSFER), "seeds": [0], "costs": False, **changes}
    made["tasks"] = {"here": {**made["tasks"]["here"], "contrasts": []}}
    return made


@pytest.mark.usefixtures("in_this_process")
def test_inits_in_regimes(tmp_path: Path) -> None:
    recipe, out, notes = written(TRANSFER, tmp_path / "r.yaml"), tmp_path / "out", Notes()
    results = study(recipe, out=out, workers=1, reporter=notes)
    assert not results["failed"]
    check_differences(results, out)
    check_contrasts(results)
    check_ranks(results)
    check_costs(results, out)
    check_report(results, out)
    check_shared_encoders(out)
    assert results["absent"] == [
        {
            "init": "gone",
            "file": GONE,
            "source": results["absent"][0]["source"],
            "reason": f"{GONE} is not there",
        }
    ]
    assert SOURCE in results["absent"][0]["source"] and results["random"] == ["scratch"]
    assert not list(out.glob("runs/*/gone*")), "nothing stands for what is absent"
    assert sum("left out: gone" in text for text in notes.said) == 1

    # Killed: a run and a cost are not there yet. What is there is not done again, and the results are equal.
    before, costs, runs = (out / "results.json").read_bytes(), (out / "costs.json").read_bytes(), trained(out)
    page = (out / "report.html").read_bytes()
    (out / "results.json").unlink()
    lost = out / "runs/few/deeper@full/8/seed1"
    shutil.rmtree(lost)
    again = Notes()
    study(recipe, out=out, workers=1, reporter=again)
    assert {path for path, when in trained(out).items() if runs[path] != when} == {lost / "model.json"}
    assert (out / "results.json").read_bytes() == before
    assert (out / "costs.json").read_bytes() == costs and (out / "report.html").read_bytes() == page
    assert not any("measuring" in text for text in again.said) and any(
        "measuring" in text for text in notes.said
    )


def check_differences(results: dict[str, Any], out: Path) -> None:
    """Every init is compared with the baseline in its own regime, and every regime with the baseline regime."""

    def area(task: str, arm: str) -> float:
        values = []
        for seed in (0, 1):
            labels = "all" if task == "here" else 8
            file = out / f"runs/{task}/{arm}/{labels}/seed{seed}/evaluations/test.parquet"
            table = pd.read_parquet(file)
            values.append(roc_auc_score(table["label"] == "abnormal", table["prob:abnormal"]))
        return float(np.mean(values))

    rows = [row for row in results["efficiency"] if row["metric"] == "auroc"]
    assert len(rows) == 2 * 2 * 2 and {row["evaluation"] for row in rows} == {"test"}
    for row in rows:
        own = area(row["task"], f"{row['init']}@{row['regime']}")
        assert row["value"] == pytest.approx(own)
        if row["init"] == "scratch":
            assert "difference" not in row and "p_holm" not in row
        else:
            base = area(row["task"], f"scratch@{row['regime']}")
            assert row["difference"] == pytest.approx(own - base)
    compared = [row for row in results["efficiency"] if "p" in row]
    for metric in ("auroc", "accuracy"):
        family = [row for row in compared if row["metric"] == metric]
        assert [row["p_holm"] for row in family] == holm([row["p"] for row in family])
    assert len([row for row in compared if row["metric"] == "auroc"]) == 4
    gains = [row for row in results["regime_gains"] if row["metric"] == "auroc"]
    assert len(gains) == 2 * 2 and {(row["regime"], row["against"]) for row in gains} == {("full", "linear")}
    for row in gains:
        mine, other = (area(row["task"], f"{row['init']}@{regime}") for regime in ("full", "linear"))
        assert row["difference"] == pytest.approx(mine - other) and "p_holm" in row
    linear = Run.open(out / "runs/here/deeper@linear/all/seed0")
    assert linear.config()["command"] == "probe" and linear.config()["adapt"]["train"] == "none"


def check_contrasts(results: dict[str, Any]) -> None:
    """Arms that a recipe compares by name: as with the baseline regime, and as with the baseline."""
    compared = ("value", "value_against", "difference", "difference_low", "difference_high", "p")
    for row in results["contrasts"]:
        same = [row[name] for name in ("task", "metric", "class", "labels", "evaluation")]
        others = results["regime_gains"] if row["against"] == "deeper@linear" else results["efficiency"]
        (other,) = (
            one for one in others
            if (one["init"], one["regime"]) == ("deeper", "full")
            and [one[name] for name in ("task", "metric", "class", "labels", "evaluation")] == same
        )  # fmt: skip
        assert all(row[name] == other[name] for name in compared if name in other)
    assert len(results["contrasts"]) == 2 * 2


def check_ranks(results: dict[str, Any]) -> None:
    """Average ranks are those of a loop over tasks and seeds."""
    arms = [(init, regime) for regime in ("linear", "full") for init in ("scratch", "deeper")]
    values = {
        (row["task"], row["init"], row["regime"]): row["seeds"]
        for row in results["efficiency"] if row["metric"] == "auroc"
    }  # fmt: skip
    ranks = results["ranks"]
    assert ranks["seeds"] == [0, 1] and not ranks["left_out"]
    over = [(one["task"], one["labels"], one["metric"]) for one in ranks["over"]]
    assert sorted(over) == [("few", 8, "auroc"), ("here", "all", "auroc")]
    assert [row["rank"] for row in ranks["rows"]] == sorted(row["rank"] for row in ranks["rows"])
    for row in ranks["rows"]:
        each = []
        for task in ("here", "few"):
            for seed in (0, 1):
                own = values[task, row["init"], row["regime"]][seed]
                others = [values[task, *arm][seed] for arm in arms]
                each.append(sum(one > own for one in others) + (sum(one == own for one in others) + 1) / 2)
        assert row["rank"] == pytest.approx(np.mean(each))
        assert 1 <= row["low"] <= row["high"] <= 4


def check_shared_encoders(out: Path) -> None:
    """Probes of one frozen encoder hold one file; a trained one is the run's own."""
    kept = list((out / "encoders").iterdir())
    probes = list(out.glob("runs/*/*@linear/*/seed*/encoder.safetensors"))
    assert len(probes) == 2 * 2 * 2 and len(kept) == 2 * 2  # inits and seeds; both tasks have the same images
    for file in kept:
        assert sum(probe.samefile(file) for probe in probes) == 2
    assert not list(out.glob("runs/*/*@full/*/seed*/encoder.safetensors"))


def check_costs(results: dict[str, Any], out: Path) -> None:
    costs = json.loads((out / "costs.json").read_text())
    assert "costs" not in results and "images_per_second" not in json.dumps(results)
    assert len(costs) == 2 * 2 * 2 and not (out / "costs.part.json").exists()
    for name, cost in costs.items():
        task, arm = name.split("/")
        files = Run.open(next(out.glob(f"runs/{task}/{arm}/*/seed0"))).weight_files
        weights = {key: tensor for file in files for key, tensor in load_file(file).items()}
        learned = [tensor.numel() for key, tensor in weights.items() if key != "class_weights"]
        assert cost["parameters"] == sum(learned)
        assert cost["peak_memory_mb"] > 50 and cost["device"] == "cpu" and cost["batch_size"] == 8
        assert cost["parameters"] > cost["encoder_parameters"] > 0
        if arm.endswith("linear"):
            assert cost["trained_parameters"] == cost["parameters"] - cost["encoder_parameters"]
            assert cost["images_per_second"] is None and cost["encoded_per_second"] > 0
            assert cost["seconds"] is None
        else:
            assert cost["trained_parameters"] == cost["parameters"]
            cards = [Run.open(path.parent).card for path in out.glob(f"runs/{task}/{arm}/*/*/model.json")]
            times = [card["training"]["seconds"] for card in cards]
            assert len(times) == 2 and cost["images_per_second"] > 0 and cost["encoded_per_second"] is None
            assert cost["seconds"] == pytest.approx(np.mean(times), abs=0.06)
    assert costs["here/deeper@full"]["encoder_parameters"] > costs["here/scratch@full"]["encoder_parameters"]
    assert (
        len(pd.read_csv(out / "tables" / "costs.csv")) == 8
        and len(pd.read_csv(out / "tables" / "ranks.csv")) == 4
    )


def check_report(results: dict[str, Any], out: Path) -> None:
    page, text = ((out / f"report.{end}").read_text().replace("<wbr>", "") for end in ("html", "md"))
    for shown in (page, text):
        assert "gone is left out" in shown and SOURCE in shown
        assert "deeper, full minus deeper, linear" in shown
        assert "deeper, full minus scratch (random weights), full" in shown
        assert "scratch (random weights)" in shown and "All tasks together" in shown
        assert "p (Holm)" in shown and "corrected for 4 comparisons of AUROC" in shown
        assert (
            "Regimes minus linear: AUROC" in shown
            and "Average rank" in shown
            and "Peak memory" in shown
            and "Encodes/s" in shown
        )
        assert "No correction was made" not in shown and "after correction for their number" in shown
    assert "| scratch |" not in text, "random ones are marked wherever they are shown"
    assert page.count('class="chart scatter"') == 2 and "parameters of the encoder" in page
    row = next(row for row in results["efficiency"] if row["init"] == "deeper" and row["regime"] == "full")
    assert f"| {row['labels_used']} | deeper | full | " in text
    assert "<i>gone" not in page and "&lt;i&gt;gone" in page
    assert "http://" not in page and "https://" not in page


@pytest.mark.usefixtures("in_this_process")
def test_an_init_that_is_absent_ends_the_study_before_it_begins(tmp_path: Path) -> None:
    made = small()
    del made["inits"]["gone"]["if_absent"]
    said = (
        rf"inits.gone: {re.escape(GONE)} is not there; it comes from the {SOURCE}.*set if_absent: leave_out"
    )
    with pytest.raises(ConfigError, match=said):
        study(written(made, tmp_path / "r.yaml"), out=tmp_path / "out", workers=1)
    assert not (tmp_path / "out").exists()
    made = small(baseline="gone")
    with pytest.raises(
        ConfigError, match=f"inits.gone: {re.escape(GONE)} is not there; .* it is the baseline"
    ):
        study(written(made, tmp_path / "r.yaml"), out=tmp_path / "out", workers=1)


@pytest.mark.usefixtures("in_this_process")
def test_weights_of_the_hub_and_runs_can_be_absent_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a network and with an empty cache; an init whose trainings are finished needs no weights."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    weights = tmp_path / "deeper.safetensors"
    inits = {
        "scratch": {},
        "hub": {"if_absent": "leave_out", "settings": {"encoder": {"name": "sam2-t", "pretrained": True}}},
        "run": {"if_absent": "leave_out", "start": str(tmp_path / "no run")},
    }
    made = small(inits=inits, regimes={"linear": {"probe": "linear"}}, baseline_regime=None)
    made["tasks"]["here"]["metrics"] = ["auroc"]
    out = tmp_path / "out"
    results = study(written(made, tmp_path / "r.yaml"), out=out, workers=1)
    absent = {row["init"]: row for row in results["absent"]}
    assert set(absent) == {"hub", "run"} and "random" not in results
    assert absent["hub"]["file"] == "sam2_hiera_tiny.pt" and "cannot be had" in absent["hub"]["reason"]
    assert absent["run"]["file"] == str(tmp_path / "no run")
    shutil.copy(out / "runs/here/scratch@linear/all/seed0/encoder.safetensors", weights)
    made["inits"]["run"] = {"settings": {"encoder": {"weights": str(weights)}}}
    results = study(written(made, tmp_path / "r.yaml"), out=out, workers=1)  # it joins the others
    assert {row["init"] for row in results["efficiency"]} == {"scratch", "run"}
    assert [row["init"] for row in results["absent"]] == ["hub"]
    weights.unlink()
    results = study(written(made, tmp_path / "r.yaml"), out=out, workers=1)
    assert {row["init"] for row in results["efficiency"]} == {"scratch", "run"}


@pytest.mark.usefixtures("in_this_process")
def test_what_some_init_lacks_is_not_ranked(tmp_path: Path) -> None:
    made = small(regimes={"linear": {"probe": "linear"}}, baseline_regime=None)
    made["tasks"]["part"] = {"data": "ours", "labels": [6], "metrics": ["auroc"], "inits": ["scratch"]}
    made["tasks"]["here"]["labels"] = [6, "all"]
    results = study(written(made, tmp_path / "r.yaml"), out=tmp_path / "out", workers=1)
    ranks = results["ranks"]
    assert [(one["task"], one["labels"]) for one in ranks["over"]] == [("here", 6), ("here", "all")]
    assert ranks["left_out"] == ["part"] and len(ranks["rows"]) == 2
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Left out, as some init lacks it in part: part" in page
    assert not (tmp_path / "out" / "costs.json").exists() and "Peak memory" not in page


@pytest.mark.usefixtures("in_this_process")
def test_a_cost_that_cannot_be_measured_is_said_and_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = small(regimes={"linear": {"probe": "linear"}}, baseline_regime=None, costs=True)
    recipe, out = written(made, tmp_path / "r.yaml"), tmp_path / "out"
    with monkeypatch.context() as broken:
        broken.setattr("scanprior.api.costing.WORKS", {})
        results = study(recipe, out=out, workers=1)
    assert not results["failed"] and not (out / "costs.json").exists()
    assert (out / "report.md").read_text().count("KeyError: 'classify'") == 2
    before = trained(out)
    study(recipe, out=out, workers=1)
    assert len(json.loads((out / "costs.json").read_text())) == 2 and trained(out) == before
    assert "KeyError" not in (out / "report.md").read_text()
