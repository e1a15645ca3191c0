"""The printed configuration, the order of its layers, and the listings."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from api.conftest import FROM_PARENT, PRETRAINING, Command, words
from scanprior import api, objectives
from scanprior.api import session
from scanprior.api.pretraining import plan_pretraining
from scanprior.config import dump_yaml, load_yaml
from scanprior.engine import Reporter
from scanprior.run import Run

FINDINGS = ["consolidation", "effusion", "cardiomegaly", "nodule"]


def flat(tree: dict[str, object], place: str = "") -> dict[str, object]:
    found: dict[str, object] = {}
    for name, value in tree.items():
        inside = isinstance(value, dict) and value
        found |= flat(value, f"{place}{name}.") if inside else {f"{place}{name}": value}  # type: ignore[arg-type]
    return found


def each_by_itself(printed: str) -> list[str]:
    """Return a printed configuration as one ``--set`` a key; JSON is YAML."""
    return words({name: json.dumps(value) for name, value in flat(yaml.safe_load(printed)).items()})


@pytest.mark.parametrize("name", [name for name in objectives.names() if name != "toy"])
def test_the_printed_configuration_is_accepted_and_every_key_can_be_set(
    phantoms: Path, tmp_path: Path, scanprior: Command, name: str
) -> None:
    line = ["pretrain", phantoms, "--out", tmp_path / "run"]
    said = scanprior(*line, "--objective", name, "--lr", "3e-4", *words(PRETRAINING), "--dry-run")
    assert said.code == 0 and not (tmp_path / "run").exists()
    file = tmp_path / "config.yaml"
    file.write_text(said.out)
    assert yaml.safe_load(said.out)["objective"]["name"] == name
    assert scanprior(*line, "--config", file, "--dry-run").out == said.out
    again = scanprior(*line, *each_by_itself(said.out), "--dry-run")
    assert again.out == said.out, again.err


def test_options_stand_over_the_file_and_settings_over_options(
    phantoms: Path, tmp_path: Path, scanprior: Command
) -> None:
    (tmp_path / "c.yaml").write_text("objective: {name: mae}\nengine: {steps: 5, lr: 0.1, seed: 7}\n")
    line = ["pretrain", phantoms, "--out", tmp_path / "run", "--config", tmp_path / "c.yaml", "--dry-run"]

    def settled(*more: object) -> dict[str, dict[str, object]]:
        said = scanprior(*line, *more)
        assert said.code == 0, said.err
        found: dict[str, dict[str, object]] = yaml.safe_load(said.out)
        return found

    assert settled()["objective"]["name"] == "mae"
    found = settled("--objective", "gmml", "--epochs", 3, "--set", "engine.lr=1e-3")
    assert (found["objective"]["name"], found["engine"]["epochs"], found["engine"]["steps"]) == (
        "gmml",
        3,
        None,
    )
    assert (found["engine"]["lr"], found["engine"]["seed"]) == (1e-3, 7)
    assert settled("--objective", "gmml", "--set", "objective.name=sit")["objective"]["name"] == "sit"
    assert settled("--set", "engine.precision=32")["engine"]["precision"] == "32"


def test_finetuning_configuration_round_trip(
    phantoms: Path, pretrained: Run, tmp_path: Path, scanprior: Command
) -> None:
    for command in ("finetune", "probe"):
        line = [command, phantoms, "--out", tmp_path / "run", "--dry-run"]
        said = scanprior(*line, "--from", pretrained.path, "--labels", 8, *words(FROM_PARENT))
        assert said.code == 0, said.err
        (tmp_path / "c.yaml").write_text(said.out)
        assert yaml.safe_load(said.out)["parent"] == str(pretrained.path)
        assert scanprior(*line, "--config", tmp_path / "c.yaml").out == said.out
        again = scanprior(*line, *each_by_itself(said.out))
        assert again.out == said.out, again.err


def test_the_run_keeps_its_complete_configuration(finetuned: Run) -> None:
    kept = load_yaml(finetuned.path / "config.yaml")
    config = api.plan_finetuning(kept["sources"], config=kept)
    assert yaml.safe_load(dump_yaml(config)) == kept


def test_a_given_configuration_is_not_changed(phantoms: Path) -> None:
    mine = {"objective": {"name": "mae"}, "engine": {"steps": 3}}
    config = api.plan_pretraining(phantoms, config=mine)
    assert config.engine.steps == 3 and mine == {"objective": {"name": "mae"}, "engine": {"steps": 3}}


@pytest.mark.parametrize("command", ["objectives", "doctor", "encoders"])
def test_listings(scanprior: Command, command: str) -> None:
    said = scanprior(command, *(["vit_tiny", "--all"] if command == "encoders" else []))
    assert said.code == 0
    assert {"objectives": "gmml", "doctor": "cache:", "encoders": "vit_tiny_patch16_224"}[command] in said.out


def test_layer_decay_is_for_encoders_that_have_learned_something(tmp_path: Path) -> None:
    scratch = api.plan_finetuning("labels.csv")
    warm = api.plan_finetuning(
        "labels.csv", options={"encoder.weights": str(tmp_path / "weights.safetensors")}
    )
    asked = api.plan_finetuning("labels.csv", settings=["engine.layer_decay=0.9"])
    assert [plan.engine.layer_decay for plan in (scratch, warm, asked)] == [None, 0.75, 0.9]


@pytest.mark.parametrize(
    ("native", "precision", "warns"), [(False, "bf16", True), (True, "bf16", False), (False, "32", False)]
)
def test_slow_arithmetic_is_said(
    phantoms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, native: bool, precision: str, warns: bool
) -> None:
    class Heard(Reporter):
        def __init__(self) -> None:
            self.notes: list[str] = []

        def note(self, text: str) -> None:
            self.notes.append(text)

    monkeypatch.setattr(session, "cpu_computes_bf16", lambda: native)
    settled = plan_pretraining(
        phantoms, objective="mae", options={"engine.precision": precision, "engine.accelerator": "cpu"}
    )
    heard = Heard()
    session.Session(settled, tmp_path / "run", resume=False, overwrite=False, reporter=heard)
    assert any("many times slower" in note for note in heard.notes) == warns


def test_the_terminal_shows_the_metrics_of_validation_that_one_reads(
    capsys: pytest.CaptureFixture[str],
) -> None:
    from scanprior.console import ConsoleReporter

    values = {"loss": 0.5, "negative_loss": -0.5, "auroc": 0.8, "kappa": 0.25, "macro_f1": 0.75}
    ConsoleReporter().validation(20, values, "auroc")
    ConsoleReporter().validation(20, values, "kappa")
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "validation at step 20: loss 0.5000  auroc 0.8000"
    assert said[1].endswith("auroc 0.8000  kappa 0.2500")
