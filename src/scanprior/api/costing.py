"""What a fine-tuning costs: parameters, images a second, memory. Measured on a few steps of the real one."""

from __future__ import annotations

import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from scanprior.api.features import BLOCK
from scanprior.api.finetuning import WORKS, network_of, plan_finetuning, preprocessing_of
from scanprior.api.sources import Images, load
from scanprior.config import merge
from scanprior.data.loader import evaluation_batches
from scanprior.data.transforms import Preprocessing
from scanprior.encoders import Encoder
from scanprior.engine import Reporter, Training, launch
from scanprior.run import Run

STEPS, UNTIMED = 8, 3
"""Training steps that are made, and those at the beginning that are slower and not counted."""


def training_cost(
    source: str | Path,
    *,
    parent: str | Path | None = None,
    config: Mapping[str, Any],
    probe: str | None = None,
) -> dict[str, Any]:
    """Begin a fine-tuning as ``finetune`` would, make a few of its steps, and say what it takes. Nothing is kept.

    To be called in a process of its own, as the memory is the most that the process ever held.

    Args:
        source, parent, config, probe: as in ``finetune``.

    Returns:
        ``parameters``, ``trained_parameters``, ``encoder_parameters``: numbers of weights. ``batch_size``.
        ``images_per_second``: batch size by the median time of a training step, reading and augmenting included; None
        of a probe. ``encoded_per_second``: images, where those of a frozen encoder are encoded once; else None.
        ``peak_memory_mb``: largest resident memory of this process in MB (10^6 bytes), on a GPU what PyTorch allocated
        there. ``device``: cpu, cuda, mps.

    Raises:
        ScanpriorError: as ``finetune``.
    """
    settled = plan_finetuning(source, parent=parent, config=config, probe=probe)
    length = {"engine": {"steps": STEPS, "epochs": None, "log_every": 1, "devices": 1, "logger": "none"}}
    settled = type(settled).model_validate(merge(settled.model_dump(), length))
    task = WORKS[settled.task.name]  # type: ignore[attr-defined]
    fabric = launch(settled.engine)
    images = load(settled.sources, settled.data, Reporter(), learn=task.learns)
    work = task(images, settled)
    base = None if settled.parent is None else Run.open(settled.parent)
    preprocessing = preprocessing_of(settled, images, base)
    model = network_of(work, settled, preprocessing, fabric.device, Reporter()).to(fabric.device)
    once = probe is not None or getattr(work, "features", None) is not None
    found = {
        **_parameters(model),
        "batch_size": settled.engine.batch_size,
        "images_per_second": None,
        "encoded_per_second": _encoding_rate(model, images, preprocessing, fabric.device) if once else None,
    }
    if probe is None:
        clock = _Clock()
        with tempfile.TemporaryDirectory() as folder:
            source_ = work.source(preprocessing)
            Training(model, source_, settled.engine, Path(folder), reporter=clock, fabric=fabric).run()
        found["images_per_second"] = round(settled.engine.batch_size / clock.step_time(), 2)
    return {**found, "peak_memory_mb": round(_peak_memory(fabric.device), 1), "device": fabric.device.type}


class _Clock(Reporter):
    """Takes the time at the end of every step."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def step(self, row: dict[str, Any], total: int, seconds: float) -> None:
        self.times.append(time.perf_counter())

    def step_time(self) -> float:
        """Return the median time in seconds of the steps that count."""
        return float(statistics.median(np.diff(self.times)[UNTIMED - 1 :]))


def _parameters(model: nn.Module) -> dict[str, int]:
    encoder: Any = model.encoder
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "trained_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "encoder_parameters": sum(p.numel() for p in encoder.parameters()),
    }


def _encoding_rate(
    model: nn.Module, images: Images, preprocessing: Preprocessing, device: torch.device
) -> float:
    """Return images a second of the frozen encoder, from the median time of blocks as they are kept."""
    encoder: Any = model.encoder
    assert isinstance(encoder, Encoder)
    encoder.eval()
    rows, times = np.arange(min(BLOCK, len(images.store)), dtype=np.int64), []
    for _ in range(STEPS - UNTIMED):
        begun = time.perf_counter()
        with torch.no_grad():
            for batch in evaluation_batches(images.store, rows, preprocessing, BLOCK):
                encoder(batch.to(device)).pooled.cpu()
        times.append(time.perf_counter() - begun)
    return round(len(rows) / statistics.median(times[1:]), 2)


def _peak_memory(device: torch.device) -> float:
    """Return the largest memory held so far, in MB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    status = Path("/proc/self/status")
    if status.exists():  # what Linux says through getrusage begins with the parent's memory
        lines = status.read_text().splitlines()
        peak = next((line for line in lines if line.startswith("VmHWM:")), None)
        if peak is not None:
            return int(peak.split()[1]) * 1024 / 1e6
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
