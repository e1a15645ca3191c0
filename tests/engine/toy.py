"""A small trainable problem without images, for tests of the loop."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from scanprior import keyed
from scanprior.engine import EngineConfig, Order, Training


class ToySource:
    """Regression batches as a function of stream positions; ``weights`` makes the images count unequally."""

    def __init__(self, images: int = 40, seed: int = 0, weighted: bool = False) -> None:
        self.order = Order(images, seed)
        generator = keyed.generator(keyed.key(seed, "toy"))
        self.x = torch.randn(images, 6, generator=generator)
        self.y = self.x.sum(1, keepdim=True).tanh()
        self.unit = torch.arange(1, images + 1).float() if weighted else torch.ones(images)

    def __len__(self) -> int:
        return len(self.x)

    def batch(self, positions: np.ndarray, window: np.ndarray) -> dict[str, Tensor]:
        images = torch.from_numpy(self.order(positions))
        noise = keyed.normal(keyed.key(1, "noise"), positions, (6,))
        return {
            "x": self.x[images] + 0.05 * noise, "y": self.y[images], "unit": self.unit[images],
            "position": torch.from_numpy(positions),
        }  # fmt: skip


class ToyModel(nn.Module):
    """A small network that can send its own process a signal after a step."""

    def __init__(
        self, dropout: float = 0.0, signal_at: int | None = None, number: int = signal.SIGKILL
    ) -> None:
        super().__init__()
        self.signal_at, self.number = signal_at, number
        with keyed.seeded(7):
            self.net = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Dropout(dropout), nn.Linear(16, 1))
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        each = (self.net(batch["x"]) - batch["y"]).square()[:, 0]
        weight = batch["unit"].sum()
        return {"loss": (each * batch["unit"]).sum() / weight, "weight": weight}

    def after_step(self, step: int, total: int) -> None:
        self.seen += 1
        if step == self.signal_at:
            os.kill(os.getpid(), self.number)


def settings(**changes: object) -> EngineConfig:
    base = {
        "steps": 23, "batch_size": 8, "lr": 0.01, "accelerator": "cpu", "precision": "32",
        "checkpoint_every": 5, "log_every": 4, "weight_decay": 0.04, "weight_decay_end": 0.4,
    }  # fmt: skip
    return EngineConfig.model_validate({**base, **changes})


def train(
    folder: Path,
    *,
    source: object = None,
    model: ToyModel | None = None,
    resume: bool = False,
    **changes: object,
) -> ToyModel:
    model = model or ToyModel()
    Training(model, source or ToySource(), settings(**changes), folder).run(resume=resume)
    return model
