"""Several processes on one training: how they start, and what one of them does for all."""

from __future__ import annotations

import atexit
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from lightning_fabric import Fabric

from scanprior.engine.settings import EngineConfig


def world_size(config: EngineConfig) -> int:
    """Return how many processes train together: what the launcher says, else ``devices``."""
    return int(os.environ.get("WORLD_SIZE", config.devices))


def launch(config: EngineConfig) -> Fabric:
    """Join the other processes of this training, or start them; return Fabric, set up.

    Under a launcher such as ``torchrun`` every process calls this by itself; otherwise, with
    ``devices`` above 1, Fabric starts the same command once more for every further device.
    """
    precision = {"32": "32-true", "bf16": "bf16-mixed", "16": "16-mixed"}[config.precision]
    world = world_size(config)
    devices = int(os.environ.get("LOCAL_WORLD_SIZE", world))
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # it repeats what the card says
    fabric = Fabric(
        accelerator=config.accelerator, devices=devices, num_nodes=max(1, world // devices),
        strategy="ddp" if world > 1 else "auto", precision=precision,
    )  # fmt: skip
    fabric.launch()
    if fabric.world_size > 1:
        # said of filters for one channel, whose two layouts are the same bytes
        warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
        atexit.register(_leave)
    return fabric


def _leave() -> None:
    """End the communication before the interpreter: its threads must not outlive it."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


@contextmanager
def first_alone(fabric: Fabric) -> Iterator[None]:
    """Let process 0 go through the block before the others, which then find its work done.

    Where it fails, the others leave without a word: it says what was wrong.
    """
    if fabric.world_size == 1:
        yield
        return
    if fabric.global_rank == 0:
        done = 0.0
        try:
            yield
            done = 1.0
        finally:
            fabric.all_reduce(torch.tensor(done, device=fabric.device), reduce_op="sum")
        return
    if not float(fabric.all_reduce(torch.tensor(0.0, device=fabric.device), reduce_op="sum")):
        raise SystemExit(2)
    yield
