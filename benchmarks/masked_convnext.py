"""A training step of ``masked_convnet`` on the visible cells alone, against the same step on all cells.

ConvNeXt-T at 224 px, three channels, 75 % of the 32 px units hidden at random, float32, batch 16, the light
decoder, AdamW. Both paths are scanprior's: ``gathered`` gives norm and MLP of the blocks the visible cells,
``dense`` works on all cells and sets hidden ones to zero. Loss and gradients of both are checked to be equal
before anything is timed. Peak memory is that of a process that takes steps on one path alone.
"""

from __future__ import annotations

import sys

import torch
from torch import Tensor, nn

from benchmarks.bare import BareLoop, Tensors
from benchmarks.measure import Row, Settings, Side, cost, in_turns, speed_row
from scanprior.encoders import EncoderConfig, create_encoder
from scanprior.objectives.masked_convnet import EntropyGuidance, MaskedConvnet, MaskedConvnetConfig

SIZE, RATIO = 224, 0.75
_CLOSE = 1e-5


def run(settings: Settings) -> list[Row]:
    """Measure the speed of both paths, whether the faster one is chosen, and the memory of both."""
    size, batch, name = (64, 2, "convnext_atto") if settings.quick else (SIZE, 16, "convnext_tiny")
    objectives = {path: masked(name, size, path) for path in ("gathered", "dense")}
    batches = made_batches(batch, size, 2)
    difference = largest_difference(objectives["gathered"], objectives["dense"], batches[0])
    if difference > _CLOSE:
        raise AssertionError(f"the two paths differ by {difference:.1e}, so their times cannot be compared")
    loops = {path: BareLoop(Loss(made), batches, bf16=False) for path, made in objectives.items()}
    fast, slow = in_turns(lambda: loops["gathered"].run(1), lambda: loops["dense"].run(1), settings.repeats)
    note = f"{name}, {size} px, {RATIO:.0%} hidden, batch {batch}, float32"
    auto = masked(name, size, "auto")
    said = auto.prepare(batches[0])
    sides = (
        Side("visible cells alone", "images/s", [batch / s for s in fast]),
        Side("all cells", "images/s", [batch / s for s in slow]),
    )
    return [
        speed_row(
            "masked ConvNeXt step, gathered against dense", *sides, target=1.5, note=note,
            details={"largest_difference": difference, "chosen": said, "gathered_chosen": bool(auto.gathered)},
        ),
        _memory(settings, name, size, batch),
    ]  # fmt: skip


def masked(name: str, size: int, path: str, beta: float = 0.0) -> MaskedConvnet:
    """Return the objective around a network with the same weights every time."""
    torch.manual_seed(0)
    encoder = create_encoder(EncoderConfig(name=name), size=size, channels=3).to(
        memory_format=torch.channels_last
    )
    config = MaskedConvnetConfig(mask_ratio=RATIO, guidance=EntropyGuidance(beta=beta), path=path)  # type: ignore[arg-type]
    return MaskedConvnet(encoder, config, seed=0)


def made_batches(batch: int, size: int, count: int) -> list[Tensors]:
    """Return batches of noise as an objective takes them."""
    images = torch.randn(count, batch, 3, size, size, generator=torch.Generator().manual_seed(0))
    return [
        {"views": part[None].contiguous(), "position": torch.arange(batch) + batch * number}
        for number, part in enumerate(images)
    ]


def largest_difference(first: MaskedConvnet, second: MaskedConvnet, batch: Tensors) -> float:
    """Return the largest difference of loss and gradients, as part of each tensor's largest value."""
    found = []
    for objective in (first, second):
        loss = objective(batch)["loss"]
        trained = [p for p in objective.parameters() if p.requires_grad]
        found.append([loss.detach(), *torch.autograd.grad(loss, trained)])
    return max(_relative(a, b) for a, b in zip(*found, strict=True))


def _relative(first: Tensor, second: Tensor) -> float:
    return float((first - second).abs().max() / second.abs().max().clamp(min=1e-12))


class Loss(nn.Module):
    """An objective as a module that returns its loss alone."""

    def __init__(self, objective: MaskedConvnet) -> None:
        super().__init__()
        self.objective = objective

    def forward(self, batch: Tensors) -> Tensor:
        """Return the loss of a batch."""
        return self.objective(batch)["loss"]


_STEPS = """
import sys, torch
from benchmarks.bare import BareLoop
from benchmarks.masked_convnext import Loss, made_batches, masked
name, size, batch, path, threads = sys.argv[1:]
torch.set_num_threads(int(threads))
BareLoop(Loss(masked(name, int(size), path)), made_batches(int(batch), int(size), 1), bf16=False).run(2)
"""


def _memory(settings: Settings, name: str, size: int, batch: int) -> Row:
    def peak(path: str) -> float:
        words = (name, str(size), str(batch), path, str(settings.threads))
        return cost([sys.executable, "-c", _STEPS, *words]).peak_mb

    ours, dense = peak("gathered"), peak("dense")
    return Row(
        "masked ConvNeXt step: peak memory, gathered against dense", ours / dense, target=1.0, sense="<=",
        ours=Side("visible cells alone", "MB", [ours]), reference=Side("all cells", "MB", [dense]),
        note="two steps, one process each, with Python and PyTorch",
    )  # fmt: skip
