"""THE training loop: pretraining and fine-tuning, one process or many, from the start or resumed."""

from __future__ import annotations

import json
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from scanprior import keyed
from scanprior.allocation import keep_freed_memory
from scanprior.engine.central_processor import use_plain_attention
from scanprior.engine.checkpoint import Checkpoints, Progress, load_weights, replace_weights
from scanprior.engine.logs import MetricsLog, Reporter
from scanprior.engine.memory import fitting, is_out_of_memory
from scanprior.engine.optimizer import Schedules, clip_gradients, make_optimizer, set_step
from scanprior.engine.processes import launch, world_size
from scanprior.engine.settings import EngineConfig
from scanprior.engine.stream import Batch, BatchSource, Shares, batches
from scanprior.errors import ConfigError, TrainingError

Validate = Callable[[nn.Module, int], dict[str, float]]

LEAST_STEPS_APART = 50
"""Between checkpoints at the ends of epochs: with 20 labels an epoch is a step, and writing takes longer."""


@dataclass
class Training:
    """Everything one training needs; ``run`` does it.

    Attributes:
        module: ``forward(batch) -> dict`` with ``loss`` (the mean over ``weight`` units, by default
            over images) and scalars to log; ``after_step(step, total)`` is called if it exists.
        source: the training images.
        config: the loop's settings.
        folder: the run folder; gets ``state/`` and ``metrics.jsonl``.
        validate: called with the module in evaluation mode, returns what to log.
        validate_every: steps between validations.
        select: the validation metric, greater is better, whose best step is kept; None = the last step.
        on_epoch: called with the module after the first step and after every epoch, on one process.
        reporter: shows progress to the user.
        fabric: what ``launch`` returned; None = launched by ``run``.

    Raises:
        ConfigError: the batch does not divide into processes and micro-batches.
    """

    module: nn.Module
    source: BatchSource
    config: EngineConfig
    folder: Path
    validate: Validate | None = None
    validate_every: int | None = None
    select: str | None = None
    on_epoch: Callable[[nn.Module, int], None] | None = None
    reporter: Reporter = field(default_factory=Reporter)
    fabric: Fabric | None = None

    def __post_init__(self) -> None:
        self.shares = Shares(self.config, world_size(self.config))
        if self.shares.accumulation > 1 and not getattr(self.module, "supports_accumulation", True):
            raise ConfigError(
                "engine.micro_batch: this objective compares the images of the whole batch with each other; "
                "leave micro_batch empty and choose engine.batch_size that fits into memory"
            )

    def run(self, *, resume: bool = False) -> dict[str, Any]:
        """Train to the end; the module holds the selected weights afterwards.

        Returns:
            steps, seconds, images_per_second, precision, selected_step, selected_value, world.

        Raises:
            TrainingError: the loss is not finite, or a checkpoint cannot be written.
            RunError: the checkpoint to resume from is of another network.
            KeyboardInterrupt, SystemExit: on SIGINT and SIGTERM, after a checkpoint.
        """
        return _Loop(self).run(resume)


class _Loop:
    def __init__(self, training: Training) -> None:
        self.training, self.config = training, training.config
        config = self.config
        self.fabric = training.fabric or launch(config)
        self.shares = training.shares
        self.images = len(training.source)
        self.total = config.total_steps(self.images)
        self.epoch_steps = config.steps_per_epoch(self.images)
        self.schedules = Schedules(config, self.total, config.warmup_steps(self.images))
        self.checkpoints = Checkpoints(training.folder / "state")
        self.best_file = training.folder / "state" / "best.safetensors"
        self.stop_signal: int | None = None
        self.saved_step = 0

    def run(self, resume: bool) -> dict[str, Any]:
        training, fabric = self.training, self.fabric
        self.raw = training.module.to(fabric.device)
        if fabric.device.type == "cpu":
            keep_freed_memory()
            if self.config.precision == "bf16":
                use_plain_attention(self.raw)
        self.parameters = [p for p in self.raw.parameters() if p.requires_grad]
        self.average = _copy_of(self.raw) if self.config.ema is not None else None
        optimizer = make_optimizer(self.raw, self.config)
        self.progress = (
            self.checkpoints.load(self.raw, optimizer, self.average) if resume else None
        ) or Progress()
        if not self.progress.step:
            self._prepare()
        self.saved_step = self.progress.step
        self.log = MetricsLog(training.folder, self.config, self.progress.step, fabric.is_global_zero)
        self.module, self.optimizer = fabric.setup(self.raw, optimizer)
        self.raw_optimizer = optimizer
        self.started = time.perf_counter() - self.progress.seconds
        with self._signals():
            self._steps()
        return self._finish()

    def _prepare(self) -> None:
        """Let the module settle what it wants to measure first, on the first batch."""
        settle = getattr(self.raw, "prepare", None)
        if settle is None:
            return
        count = self.shares.batch // self.shares.world // self.shares.accumulation
        places = np.arange(count, dtype=np.int64)
        with self.fabric.autocast():
            said = settle(self.fabric.to_device(self.training.source.batch(places, places)))
        if said:
            self.training.reporter.note(said)

    def _steps(self) -> None:
        first = self.progress.step
        stream = batches(
            self.training.source, self.shares, self.config, fabric_rank(self.fabric), first, self.total
        )
        self.log.open()
        for step in range(first, self.total):
            waited = time.perf_counter()
            micro = [next(stream) for _ in range(self.shares.accumulation)]
            begun = time.perf_counter()
            lr, decay = set_step(self.raw_optimizer, self.schedules, step)
            logs = self._fitting_step(step, micro)
            self.progress.step = step + 1
            self.log.add(logs, wait=begun - waited, seconds=time.perf_counter() - waited)
            if (step + 1) % self.config.log_every == 0 or step + 1 == self.total:
                self._report(step + 1, lr, decay)
            self._milestones(step + 1)

    def _fitting_step(self, step: int, micro: list[Batch]) -> dict[str, Tensor]:
        try:
            return self._step(step, [self.fabric.to_device(batch) for batch in micro])
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise TrainingError(
            self._too_much(len(micro[0]["position"]), reason)
        )  # the step's tensors are let go of

    def _too_much(self, images: int, reason: str) -> str:
        """Say that a batch does not fit into memory, and what would."""
        self.optimizer.zero_grad()
        if self.fabric.device.type == "cuda":
            torch.cuda.empty_cache()

        def attempt(count: int) -> None:
            places = np.arange(count, dtype=np.int64)
            batch = self.fabric.to_device(self.training.source.batch(places, places))
            try:
                with self.fabric.no_backward_sync(self.module):
                    self.fabric.backward(self.module(batch)["loss"])
            finally:
                self.optimizer.zero_grad()

        several = getattr(self.raw, "supports_accumulation", True)
        key = "micro_batch" if several else "batch_size"
        count = fitting(attempt, images)
        same = ", which takes the same steps" if several else ""
        advice = (
            f"{count} do: set engine.{key}={count}{same}"
            if count
            else "no smaller share of them does: use a smaller data.size or encoder"
        )
        return f"engine.batch_size: {images} images at once do not fit into memory ({reason}); {advice}"

    def _step(self, step: int, micro: list[Batch]) -> dict[str, Tensor]:
        """One optimiser step over all micro-batches and processes; the gradient is the exact global mean."""
        world, reference, total = self.fabric.world_size, None, 0.0
        logs: dict[str, Tensor] = {}
        for number, batch in enumerate(micro):
            last = number == len(micro) - 1
            place = keyed.key(self.config.seed, "network", step, number, self.fabric.global_rank)
            with self.fabric.no_backward_sync(self.module, enabled=not last), keyed.seeded(place):
                out = self.module(batch)
                weight = out.pop("weight", None)
                local = float(len(batch["position"])) if weight is None else float(weight)
                everywhere = self._sum(local)
                reference = reference or everywhere
                share = local * world / reference if reference else 0.0  # no labelled image in this batch
                self.fabric.backward(out["loss"] * share)
            total += everywhere
            for name, value in out.items():
                logs[name] = logs.get(name, torch.zeros(())) + value.detach().float().cpu() * local
        if reference and total != reference:
            torch._foreach_mul_([p.grad for p in self.parameters if p.grad is not None], reference / total)
        self.fabric.strategy.precision.unscale_gradients(self.optimizer)
        logs = {name: value * world / max(total, 1e-12) for name, value in logs.items()}
        if self.config.clip is not None or (step + 1) % self.config.log_every == 0:
            self.log.once["gradient_norm"] = clip_gradients(self.parameters, self.config)
        if not math.isfinite(float(logs["loss"])):
            raise TrainingError(
                f"the loss is {float(logs['loss'])} at step {step}; lower engine.lr, raise engine.warmup_fraction, "
                "or train with engine.precision=32; the last checkpoint is kept"
            )
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.average is not None:
            _average_into(self.average, self.raw, float(self.config.ema or 0))
        after = getattr(self.raw, "after_step", None)
        if after is not None:
            after(step, self.total)
        return logs

    def _sum(self, value: float) -> float:
        if self.fabric.world_size == 1:
            return value
        return float(self.fabric.all_reduce(torch.tensor(value, device=self.fabric.device), reduce_op="sum"))

    def _report(self, step: int, lr: float, decay: float) -> None:
        row = self.log.row(self.config.batch_size)
        if self.fabric.world_size > 1:
            row = {name: self._sum(value) / self.fabric.world_size for name, value in row.items()}
        place = {"step": step, "epoch": round(step / self.epoch_steps, 4), "split": "train"}
        self.log.write({**place, **row, "lr": lr, "weight_decay": decay})
        self.training.reporter.step({**place, **row}, self.total, time.perf_counter() - self.started)

    def _milestones(self, step: int) -> None:
        training, last = self.training, step == self.total
        epoch_over = int(step / self.epoch_steps) > int((step - 1) / self.epoch_steps)
        if training.validate is not None and (last or step % (training.validate_every or self.total) == 0):
            self._validate(step)
        if training.on_epoch is not None and (epoch_over or last or step == 1) and self.fabric.is_global_zero:
            training.on_epoch(self.raw, int(step / self.epoch_steps))
        every = self.config.checkpoint_every
        due = step % every == 0 if every else epoch_over and step - self.saved_step >= LEAST_STEPS_APART
        stop = self._stop_asked()
        if due or last or stop:
            self._checkpoint()
        if stop and not last:
            self._leave()

    def _validate(self, step: int) -> None:
        training = self.training
        assert training.validate is not None
        with _averaged(self.raw, self.average):
            self.raw.eval()
            values = training.validate(self.raw, step)
            self.raw.train()
            self.log.write(
                {"step": step, "epoch": round(step / self.epoch_steps, 4), "split": "val", **values}
            )
            training.reporter.validation(step, values, training.select)
            value = values.get(training.select) if training.select else None
            best = self.progress.best_value
            if value is not None and math.isfinite(value) and (best is None or value > best):
                self.progress.best_value, self.progress.best_step = value, step
                if self.fabric.is_global_zero:
                    self.best_file.parent.mkdir(parents=True, exist_ok=True)
                    replace_weights(self.raw.state_dict(), self.best_file)

    def _checkpoint(self) -> None:
        self.saved_step = self.progress.step
        self.progress.seconds = time.perf_counter() - self.started
        if self.fabric.is_global_zero:
            self.log.flush()
            self.checkpoints.save(self.progress, self.raw, self.raw_optimizer, self.average)
        self.fabric.barrier()

    def _finish(self) -> dict[str, Any]:
        self.log.close()
        if self.average is not None:
            self.raw.load_state_dict(self.average, strict=False)
        if self.progress.best_step is not None and self.progress.best_step != self.total:
            self.raw.load_state_dict(load_weights(self.best_file))
        self.fabric.barrier()
        seconds = time.perf_counter() - self.started
        return {
            "steps": self.total,
            "epochs": round(self.total / self.epoch_steps, 3),
            "batch_size": self.config.batch_size,
            "seconds": round(seconds, 1),
            "images_per_second": round(self.total * self.config.batch_size / seconds, 1),
            "precision": self.config.precision,
            "processes": self.fabric.world_size,
            "selected_step": self.progress.best_step or self.total,
            "selected_by": self.training.select,
            "selected_value": self.progress.best_value,
        }

    def _stop_asked(self) -> bool:
        if self.fabric.world_size == 1:
            return self.stop_signal is not None
        return self._sum(float(self.stop_signal is not None)) > 0

    def _leave(self) -> None:
        self.log.close()
        number = self.stop_signal or signal.SIGTERM
        self.training.reporter.note(
            f"stopped by {signal.Signals(number).name} at step {self.progress.step} of {self.total}; "
            "the checkpoint is written, the same command with --resume goes on"
        )
        raise SystemExit(128 + number)

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """Turn SIGTERM and SIGINT into a checkpoint after the step under way; a second one ends at once."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def ask(number: int, frame: FrameType | None) -> None:
            if self.stop_signal is not None:
                os._exit(128 + number)
            self.stop_signal = number

        before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def fabric_rank(fabric: Fabric) -> int:
    """Return this process's number among all."""
    return int(fabric.global_rank)


def _copy_of(module: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in module.named_parameters() if p.requires_grad}


@torch.no_grad()
def _average_into(average: dict[str, Tensor], module: nn.Module, decay: float) -> None:
    current = dict(module.named_parameters())
    torch._foreach_lerp_(list(average.values()), [current[name] for name in average], 1 - decay)


@contextmanager
def _averaged(module: nn.Module, average: dict[str, Tensor] | None) -> Iterator[None]:
    """Put the averaged weights into the module inside the block."""
    if average is None:
        yield
        return
    kept = _copy_of(module)
    module.load_state_dict(average, strict=False)
    try:
        yield
    finally:
        module.load_state_dict(kept, strict=False)


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """Return the rows of ``metrics.jsonl`` of a run."""
    path = folder / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
