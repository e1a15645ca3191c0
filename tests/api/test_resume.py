"""kill -9 and --resume give the weights of the run that was left alone; so do more workers and processes."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from api.conftest import FINETUNING, FROM_PARENT, PRETRAINING, Command, words
from scanprior import api, objectives
from scanprior.engine import Reporter
from scanprior.run import Run

STEPS = {"engine.steps": 7, "engine.checkpoint_every": 2, "engine.log_every": 1}
SMALL = {
    "sit": {"objective.head_hidden": 32, "objective.head_out": 16},
    "mae": {
        "objective.decoder_dim": 32, "objective.decoder_depth": 1, "objective.decoder_heads": 4,
        "objective.guidance.beta": 1.0,
    },
    # the way through the encoder is measured otherwise, and two trainings might choose differently
    "masked_convnet": {
        "encoder.name": "convnext_atto", "objective.decoder_dim": 32, "objective.path": "gathered",
    },
}  # fmt: skip
OBJECTIVES = [name for name in objectives.names() if name != "toy"]  # "toy" lives in another test


class KilledAt(Reporter):
    """Ends its own process without warning, after a step."""

    def __init__(self, step: int) -> None:
        self.at = step

    def step(self, row: dict[str, object], total: int, seconds: float) -> None:
        if row["step"] == self.at:
            os.kill(os.getpid(), signal.SIGKILL)


def in_process(target: Callable[[], object]) -> int:
    process = multiprocessing.get_context("fork").Process(target=target)
    process.start()
    process.join()
    return int(process.exitcode or 0)


def assert_same_weights(one: Run | Path, other: Run | Path, tolerance: float = 0.0, unseen: str = "") -> None:
    """Compare weights: all bytes, or all values but those of ``unseen``, a parameter the loss does not depend on."""
    paths = [(run.path if isinstance(run, Run) else run) / "model.safetensors" for run in (one, other)]
    if not tolerance:
        assert paths[0].read_bytes() == paths[1].read_bytes()
        return
    first, second = map(load_file, paths)
    assert first.keys() == second.keys()
    for name in first.keys() - {unseen}:
        if name.endswith("qkv.bias"):  # attention does not depend on the keys' bias: its gradient is rounding
            first[name], second[name] = (torch.cat(w.chunk(3)[::2]) for w in (first[name], second[name]))
        torch.testing.assert_close(first[name], second[name], rtol=tolerance, atol=tolerance)


def pretrain(
    phantoms: Path, out: Path, name: str, *, resume: bool = False, kill: int = 0, **changes: object
) -> Run:
    shared = PRETRAINING
    if "encoder.name" in SMALL.get(name, {}):  # its sizes are of a ViT
        shared = {key: value for key, value in shared.items() if not key.startswith("encoder.")}
    options = {**shared, **STEPS, **SMALL.get(name, {}), "encoder.drop_path": 0.1}
    return api.pretrain(
        phantoms, out=out, objective=name, options={**options, **{f"engine.{k}": v for k, v in changes.items()}},
        resume=resume, reporter=KilledAt(kill) if kill else None,
    )  # fmt: skip


def finetune(
    phantoms: Path, out: Path, parent: Run, *, resume: bool = False, kill: int = 0, **changes: object
) -> Run:
    options = {
        **FROM_PARENT, **STEPS, "encoder.drop_path": 0.1, "task.dropout": 0.2, "augment.preset": "chest_xray",
        "selection.every": 3, "engine.ema": 0.8,
        **{k if "." in k else f"engine.{k}": v for k, v in changes.items()},
    }  # fmt: skip
    return api.finetune(
        phantoms, out=out, parent=parent.path, options=options, resume=resume,
        reporter=KilledAt(kill) if kill else None,
    )  # fmt: skip


@pytest.fixture(scope="module")
def whole_gmml(phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A pretraining that was left alone."""
    return pretrain(phantoms, tmp_path_factory.mktemp("whole") / "gmml", "gmml")


@pytest.fixture(scope="module")
def whole_tuned(phantoms: Path, pretrained: Run, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A fine-tuning that was left alone."""
    return finetune(phantoms, tmp_path_factory.mktemp("whole") / "tuned", pretrained)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_killed_pretraining_resumes_bit_equal(
    phantoms: Path, tmp_path: Path, name: str, request: pytest.FixtureRequest
) -> None:
    made = name == "gmml"
    whole = request.getfixturevalue("whole_gmml") if made else pretrain(phantoms, tmp_path / "whole", name)
    killed = tmp_path / "killed"
    assert in_process(lambda: pretrain(phantoms, killed, name, kill=5)) == -signal.SIGKILL
    assert not Run.finished(killed)
    assert_same_weights(whole, pretrain(phantoms, killed, name, resume=True))
    rows = [json.loads(line) for line in (killed / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, 8))


def test_workers_change_nothing_over_a_kill(phantoms: Path, whole_gmml: Run, tmp_path: Path) -> None:
    killed = tmp_path / "killed"
    assert in_process(lambda: pretrain(phantoms, killed, "gmml", kill=3, workers=1)) == -signal.SIGKILL
    assert_same_weights(whole_gmml, pretrain(phantoms, killed, "gmml", resume=True, workers=2))


def test_workers_change_nothing_of_a_finetuning(
    phantoms: Path, pretrained: Run, whole_tuned: Run, tmp_path: Path
) -> None:
    assert_same_weights(whole_tuned, finetune(phantoms, tmp_path / "helped", pretrained, workers=2))


@pytest.mark.parametrize("step", [1, 4, 6])
def test_a_killed_finetuning_resumes_bit_equal(
    phantoms: Path, pretrained: Run, whole_tuned: Run, tmp_path: Path, step: int
) -> None:
    killed = tmp_path / "killed"
    assert in_process(lambda: finetune(phantoms, killed, pretrained, kill=step)) == -signal.SIGKILL
    resumed = finetune(phantoms, killed, pretrained, resume=True)
    assert_same_weights(whole_tuned, resumed)
    assert resumed.card["training"]["selected_step"] == whole_tuned.card["training"]["selected_step"]
    tables = [(run.path / "evaluations" / "test.json").read_text() for run in (whole_tuned, resumed)]
    assert tables[0] == tables[1]


def test_a_killed_adaptation_resumes_bit_equal(phantoms: Path, pretrained: Run, tmp_path: Path) -> None:
    """Low-rank adapters in one block: saved with the state, and merged in the end, averaged as they are."""
    pytest.importorskip("peft")
    some = {"adapt.train": "lora", "adapt.from_block": 2, "adapt.lora.rank": 2, "lr": 0.01}
    whole = finetune(phantoms, tmp_path / "whole", pretrained, **some)
    killed = tmp_path / "killed"
    assert in_process(lambda: finetune(phantoms, killed, pretrained, kill=5, **some)) == -signal.SIGKILL
    state = load_file(killed / "state" / "step-00000004" / "module.safetensors")
    assert state["encoder.net.blocks.1.attn.qkv.lora_B.default.weight"].any()
    assert_same_weights(whole, finetune(phantoms, killed, pretrained, resume=True, **some))
    before, after = load_file(pretrained.weights), load_file(whole.weights)
    assert {name for name in after if name.startswith("encoder.")} == set(before)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {f"encoder.net.blocks.1.attn.{layer}.weight" for layer in ("qkv", "proj")}
    size = before["encoder.net.norm.weight"].numel()
    adapt = whole.card["adapt"]
    assert adapt["encoder"] == {
        "trained": 2 * (size + 3 * size) + 2 * (size + size),
        "of": sum(tensor.numel() for tensor in before.values()),
    }
    assert adapt["head"] == {"trained": 2 * size + 2, "of": 2 * size + 2}
    assert (adapt["train"], adapt["from_block"], adapt["lora"]["rank"]) == ("lora", 2, 2)
    evaluated = json.loads((whole.path / "evaluations" / "test.json").read_text())
    again = api.evaluate(whole.path, name="again")  # by the merged weights from the file
    assert evaluated["metrics"] == again["metrics"]


def test_a_kill_while_evaluating_leaves_no_finished_run(
    phantoms: Path, pretrained: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(Reporter):
        def evaluation(self, result: dict[str, object]) -> None:
            os.kill(os.getpid(), signal.SIGKILL)

    def run(reporter: Reporter | None = None, resume: bool = False) -> Run:
        return api.finetune(
            phantoms, out=tmp_path / "run", parent=pretrained.path, options={**FROM_PARENT, **STEPS},
            reporter=reporter, resume=resume,
        )  # fmt: skip

    assert in_process(lambda: run(Killed())) == -signal.SIGKILL
    assert not Run.finished(tmp_path / "run")
    assert (run(resume=True).path / "evaluations" / "test.json").exists()


def test_sigterm_on_the_command_line_then_resume(
    phantoms: Path, tmp_path: Path, scanprior: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = pretrain(phantoms, tmp_path / "whole", "mae")
    out = tmp_path / "run"
    line = [
        "pretrain", phantoms, "--objective", "mae", "--out", out,
        *words({**PRETRAINING, **STEPS, **SMALL["mae"], "encoder.drop_path": 0.1}),
    ]  # fmt: skip
    from scanprior.console import ConsoleReporter

    kept = ConsoleReporter.step

    def step(self: ConsoleReporter, row: dict[str, object], total: int, seconds: float) -> None:
        kept(self, row, total, seconds)
        if row["step"] == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(ConsoleReporter, "step", step)
    said = scanprior(*line)
    assert said.code == 128 + signal.SIGTERM and "with --resume goes on" in said.out
    monkeypatch.undo()
    monkeypatch.setenv("SCANPRIOR_CACHE", str(tmp_path / "another-cache"))  # prepared anew, and the same
    assert scanprior(*line, "--resume").code == 0
    assert_same_weights(whole, out)
    said = scanprior(*line, "--resume")
    assert said.code == 0 and "finished already" in said.out


def together(target: Callable[[], object]) -> None:
    """Run a function in two processes that are told of each other as a launcher does it."""
    with socket.socket() as found:
        found.bind(("localhost", 0))
        port = found.getsockname()[1]

    def one(rank: int) -> None:
        os.environ.update(
            RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2", MASTER_ADDR="localhost",
            MASTER_PORT=str(port), TORCHELASTIC_RUN_ID="test", GROUP_RANK="0",
        )  # fmt: skip
        target()

    context = multiprocessing.get_context("fork")
    both = [context.Process(target=one, args=(rank,)) for rank in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(60)
    assert [process.exitcode for process in both] == [0, 0]


@pytest.mark.parametrize("name", OBJECTIVES)
def test_two_processes_pretrain_as_one(phantoms: Path, tmp_path: Path, name: str) -> None:
    one = pretrain(phantoms, tmp_path / "one", name)
    together(lambda: pretrain(phantoms, tmp_path / "two", name))
    assert Run.open(tmp_path / "two").card["training"]["processes"] == 2
    # sit's head begins with a batch norm, which takes any bias of the pooled vector away again
    unseen = "encoder.net.norm.bias" if name == "sit" else ""
    assert_same_weights(one, tmp_path / "two", 1e-5, unseen)


def test_two_processes_finetune_as_one(phantoms: Path, pretrained: Run, tmp_path: Path) -> None:
    one = finetune(phantoms, tmp_path / "one", pretrained)
    together(lambda: finetune(phantoms, tmp_path / "two", pretrained))
    assert_same_weights(one, tmp_path / "two", 1e-5)
    values = [json.loads((tmp_path / n / "evaluations" / "test.json").read_text()) for n in ("one", "two")]
    assert [row["metric"] for row in values[0]["metrics"]] == [row["metric"] for row in values[1]["metrics"]]


def test_the_launcher_starts_the_command_line_twice(phantoms: Path, tmp_path: Path) -> None:
    """Nothing is prepared before, so both processes meet at an empty cache and an empty run folder."""
    one = pretrain(phantoms, tmp_path / "one", "gmml")
    source = str(Path(api.__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "scanprior",
         "pretrain", phantoms, "--out", tmp_path / "two",
         *words({**PRETRAINING, **STEPS, "encoder.drop_path": 0.1})],
        capture_output=True, text=True, timeout=120,
        env={**os.environ, "PYTHONPATH": source, "SCANPRIOR_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("wrote ") == 1
    assert_same_weights(one, tmp_path / "two", 1e-5)


def test_a_run_is_not_resumed_with_other_settings(
    phantoms: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    assert in_process(lambda: pretrain(phantoms, tmp_path / "run", "gmml", kill=3)) == -signal.SIGKILL
    line = ["pretrain", phantoms, "--out", tmp_path / "run", "--resume"]
    options = {**PRETRAINING, **STEPS, "encoder.drop_path": 0.1, "engine.lr": 0.5}
    sentence = refused(*line, *words(options))
    assert "engine.lr=0.5" in sentence and str(tmp_path / "run") in sentence


def test_from_scratch_and_resume_of_nothing(phantoms: Path, tmp_path: Path) -> None:
    run = api.finetune(phantoms, out=tmp_path / "new", options={**FINETUNING, **STEPS}, resume=True)
    assert run.card["parent"] is None and run.card["training"]["steps"] == 7
