"""The loop: exact resume, exact splitting of the batch, schedules, clipping, signals, a full disk."""

from __future__ import annotations

import errno
import json
import math
import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import nn

from engine.toy import ToyModel, ToySource, settings, train
from scanprior.engine import Order, Reporter, Training
from scanprior.engine import checkpoint as checkpoint_module
from scanprior.engine.optimizer import Schedules, clip_gradients, parameter_groups
from scanprior.errors import ConfigError, RunError, TrainingError


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name


def assert_close(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor], tolerance: float) -> None:
    for name in first:
        torch.testing.assert_close(first[name], second[name], rtol=tolerance, atol=tolerance)


def in_process(target: object, *arguments: object) -> int:
    process = multiprocessing.get_context("fork").Process(target=target, args=arguments)  # type: ignore[arg-type]
    process.start()
    process.join()
    return int(process.exitcode or 0)


def killed_run(folder: Path, step: int, workers: int) -> None:
    train(folder, model=ToyModel(0.2, signal_at=step), workers=workers, ema=0.9)


@pytest.mark.parametrize(("step", "workers"), [(3, 0), (12, 0), (20, 1), (13, 2)])
def test_a_killed_run_resumes_bit_equal(tmp_path: Path, step: int, workers: int) -> None:
    whole = train(tmp_path / "whole", model=ToyModel(0.2), ema=0.9)
    assert in_process(killed_run, tmp_path / "killed", step, workers) == -signal.SIGKILL
    resumed = train(tmp_path / "killed", model=ToyModel(0.2), resume=True, workers=workers, ema=0.9)
    assert_equal(weights(whole), weights(resumed))
    rows = [json.loads(line) for line in (tmp_path / "killed" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [4, 8, 12, 16, 20, 23]


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(tmp_path: Path, workers: int) -> None:
    alone, helped = train(tmp_path / "a"), train(tmp_path / "b", workers=workers)
    assert_equal(weights(alone), weights(helped))


@pytest.mark.parametrize("micro", [1, 2, 4])
def test_accumulation_gives_the_global_mean(tmp_path: Path, micro: int) -> None:
    """Images count unequally, so a mean of micro-batch means would be wrong."""
    source = ToySource(weighted=True)
    whole = train(tmp_path / "a", source=source, clip=0.1)
    split = train(tmp_path / "b", source=source, clip=0.1, micro_batch=micro)
    assert_close(weights(whole), weights(split), 1e-5)


def test_two_processes_equal_one(tmp_path: Path) -> None:
    one = train(tmp_path / "one", source=ToySource(weighted=True), clip=0.1, ema=0.9)
    script = Path(__file__).parent / "two_processes.py"
    folders = os.pathsep.join([str(script.parent.parent), os.environ.get("PYTHONPATH", "")])
    subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", script, tmp_path / "two"],
        check=True, capture_output=True, timeout=120, env={**os.environ, "PYTHONPATH": folders},
    )  # fmt: skip
    assert_close(weights(one), load_file(tmp_path / "two" / "weights.safetensors"), 1e-5)


def test_sigterm_writes_a_checkpoint_and_resumes_bit_equal(tmp_path: Path) -> None:
    whole = train(tmp_path / "whole")
    notes: list[str] = []

    class Notes(Reporter):
        def note(self, text: str) -> None:
            notes.append(text)

    model = ToyModel(signal_at=7, number=signal.SIGTERM)
    with pytest.raises(SystemExit) as stop:
        Training(model, ToySource(), settings(), tmp_path / "run", reporter=Notes()).run()
    assert stop.value.code == 128 + signal.SIGTERM
    assert "--resume" in notes[0] and "step 8 of 23" in notes[0]
    assert_equal(weights(whole), weights(train(tmp_path / "run", resume=True)))


def test_short_epochs_do_not_write_a_checkpoint_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved: list[int] = []
    monkeypatch.setattr(
        checkpoint_module.Checkpoints, "save", lambda self, progress, *rest: saved.append(progress.step)
    )
    train(tmp_path, checkpoint_every=None, steps=120, batch_size=2 * len(ToySource()))
    assert saved == [50, 100, 120]


def test_a_full_disk_keeps_the_checkpoint_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = train(tmp_path / "whole")
    kept = checkpoint_module.save_weights

    def full(state: dict[str, torch.Tensor], path: Path, *rest: object) -> None:
        if "step-00000010" in str(path) and path.name == "optimizer.safetensors":
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        kept(state, path)

    monkeypatch.setattr(checkpoint_module, "save_weights", full)
    with pytest.raises(TrainingError, match=r"No space left.*step-00000005 is intact.*--resume"):
        train(tmp_path / "run")
    monkeypatch.undo()
    assert [p.name for p in (tmp_path / "run" / "state").iterdir()] == ["step-00000005"]
    assert_equal(weights(whole), weights(train(tmp_path / "run", resume=True)))


def test_a_checkpoint_of_another_network_is_refused(tmp_path: Path) -> None:
    train(tmp_path)
    other = ToyModel()
    other.net[0] = nn.Linear(6, 17)
    with pytest.raises(RunError, match="does not fit the configured network"):
        Training(other, ToySource(), settings(), tmp_path).run(resume=True)


def test_the_best_step_is_kept_over_a_kill(tmp_path: Path) -> None:
    """The validation score peaks at step 12; the weights of that step are the result."""

    def run(folder: Path, model: ToyModel, resume: bool = False) -> ToyModel:
        training = Training(
            model, ToySource(), settings(), folder,
            validate=lambda module, step: {"score": -abs(step - 12.0)}, validate_every=3, select="score",
        )  # fmt: skip
        result = training.run(resume=resume)
        assert (result["selected_step"], result["selected_value"]) == (12, 0.0)
        return model

    whole = run(tmp_path / "whole", ToyModel())
    steps = train(tmp_path / "short", steps=23)
    assert not torch.equal(weights(whole)["net.0.weight"], weights(steps)["net.0.weight"])
    assert float(whole.seen) == 12
    assert in_process(run, tmp_path / "killed", ToyModel(signal_at=14)) == -signal.SIGKILL
    assert_equal(weights(whole), weights(run(tmp_path / "killed", ToyModel(), resume=True)))


def test_a_loss_that_is_not_finite_stops_with_advice(tmp_path: Path) -> None:
    source = ToySource()
    source.y[:] = math.nan
    with pytest.raises(TrainingError, match=r"the loss is nan at step 0; lower engine\.lr"):
        train(tmp_path, source=source)


class Hungry(ToyModel):
    """Runs out of memory with more than some images at once."""

    def __init__(self, most: int, error: Exception, together: bool = False) -> None:
        super().__init__()
        self.most, self.error, self.supports_accumulation = most, error, not together

    def forward(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        if len(batch["x"]) > self.most:
            raise self.error
        return super().forward(batch)


GPU = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB\nmore")
CPU = RuntimeError(
    "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."
)


@pytest.mark.parametrize(
    ("model", "advice"),
    [
        (
            Hungry(3, GPU),
            r"8 images at once .*\(CUDA out .* GiB\); 2 do: set engine.micro_batch=2, .* same steps",
        ),
        (Hungry(4, CPU, together=True), r"DefaultCPUAllocator.*; 4 do: set engine\.batch_size=4$"),
        (
            Hungry(0, MemoryError()),
            r"\(MemoryError\); no smaller share of them does: use a smaller data\.size",
        ),
    ],
)
def test_a_batch_that_does_not_fit_into_memory(tmp_path: Path, model: Hungry, advice: str) -> None:
    with pytest.raises(TrainingError, match=advice):
        train(tmp_path, model=model)
    if "micro_batch" in advice:
        train(tmp_path / "again", model=Hungry(3, GPU), micro_batch=2)


def test_other_errors_of_the_network_are_not_taken_for_a_lack_of_memory(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="shapes"):
        train(tmp_path, model=Hungry(0, RuntimeError("shapes do not fit")))


def test_a_batch_without_labels_is_no_error(tmp_path: Path) -> None:
    source = ToySource()
    source.unit[:] = 0

    class NoLabels(ToyModel):
        def forward(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            each = (self.net(batch["x"]) - batch["y"]).square()[:, 0] * batch["unit"]
            return {"loss": each.sum(), "weight": batch["unit"].sum()}

    model = NoLabels()
    before = weights(model.net)
    Training(model, source, settings(weight_decay=0.0, weight_decay_end=None), tmp_path).run()
    assert_equal(before, weights(model.net))


def test_schedules_have_the_published_ends() -> None:
    config = settings(steps=1000, lr=1e-3, min_lr=1e-6, warmup_fraction=0.1)
    schedules = Schedules(config, 1000, 100)
    assert schedules.lr(0) == pytest.approx(1e-5) and schedules.lr(99) == pytest.approx(1e-3)
    assert schedules.lr(100) == pytest.approx(1e-3) and schedules.lr(999) == pytest.approx(1e-6)
    assert schedules.weight_decay(0) == pytest.approx(0.04) and schedules.weight_decay(999) == pytest.approx(
        0.4
    )
    assert schedules.weight_decay(500) == pytest.approx(0.22, abs=1e-3)


def test_clipping_per_tensor_and_global() -> None:
    def gradients(mode: str, limit: float) -> list[torch.Tensor]:
        parameters = [nn.Parameter(torch.zeros(4)), nn.Parameter(torch.zeros(4))]
        parameters[0].grad, parameters[1].grad = torch.full((4,), 3.0), torch.full((4,), 0.5)
        total = clip_gradients(parameters, settings(clip=limit, clip_mode=mode))
        assert float(total) == pytest.approx(math.sqrt(36 + 1))
        return [p.grad for p in parameters]  # type: ignore[misc]

    first, second = gradients("per_tensor", 3.0)
    assert float(first.norm()) == pytest.approx(3.0, rel=1e-5) and torch.equal(second, torch.full((4,), 0.5))
    together = torch.cat(gradients("global", 3.0))
    assert float(together.norm()) == pytest.approx(3.0, rel=1e-5)


def test_one_dimensional_parameters_do_not_decay() -> None:
    groups = parameter_groups(ToyModel(), settings())
    assert {name: group["decays"] for group in groups for name in group["names"]} == {
        "net.0.weight": True, "net.0.bias": False, "net.3.weight": True, "net.3.bias": False,
    }  # fmt: skip


@given(st.integers(1, 50), st.integers(0, 3))
@examples(max_examples=20, deadline=None)
def test_every_pass_holds_every_image_once(images: int, seed: int) -> None:
    order = Order(images, seed)
    for number in range(3):
        drawn = order(np.arange(number * images, (number + 1) * images))
        assert sorted(drawn) == list(range(images))


def test_a_batch_that_does_not_divide_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"engine\.micro_batch=3 does not divide the 8 images"):
        train(tmp_path, micro_batch=3)
