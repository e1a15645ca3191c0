"""VMamba-T with its selective scan: against scans step by step, against Swin-T, and its memory.

Forward and backward of the network without classifier, float32, three channels, in evaluation mode (no stochastic
depth), with a weighted mean of the pooled vector as the loss. The other two scans are put in place of ours in the
same network, in plain PyTorch, and left to its gradients:

- ``as_defined``: a loop over positions that reads and writes them by index, as reference code states the
  recurrence. The gradient of every reading is as large as the whole sequence, so that the time grows with the square
  of its length: it is measured once, with two images, and more would take minutes.
- ``unbound``: the same loop by somebody who knows that: all four directions at once, positions first, and all
  positions cut apart beforehand. It has no target: most of the network's time is not the scan, so that no scan could
  make it five times as fast.

Output and gradients of all are checked to be equal before anything is timed. Swin-T is timm's, in the same loop.
Memory is what a process takes at its peak with one forward and backward pass, less that of one with 32 px.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.measure import Row, Settings, Side, cost, in_turns, speed_row
from scanprior.encoders import VMamba, vmamba

SIZE, BATCH = 224, 8
SHAPES = {"vmamba-t": vmamba.SHAPES["vmamba-t"], "quick": vmamba.Shape(16, (1, 1, 1, 1), 1.0)}
Scan = Callable[..., Tensor]
_CLOSE = 1e-4


def run(settings: Settings) -> list[Row]:
    """Measure the speed against three references, and how memory grows."""
    name = "quick" if settings.quick else "vmamba-t"
    net, size, batch = network(name), settings.of(SIZE, 32), settings.of(BATCH, 2)
    return [
        _against_loop(net, "as_defined", size, 2, 1, target=5.0),
        _against_loop(net, "unbound", size, batch, settings.repeats, target=None),
        _against_swin(net, size, batch, settings.repeats),
        _memory(settings, name, size),
    ]


def network(name: str) -> VMamba:
    """Return a network without classifier, with the same weights every time."""
    torch.manual_seed(0)
    return VMamba(SHAPES[name], num_classes=0).eval()


def made_images(batch: int, size: int) -> Tensor:
    """Return noise (batch, 3, size, size) in channels-last order, as the encoder gives it to the network."""
    images = torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(0))
    return images.contiguous(memory_format=torch.channels_last)


def forward_backward(net: nn.Module, images: Tensor) -> Tensor:
    """Return the loss, and leave its gradients in the weights."""
    net.zero_grad()
    pooled = net(images)
    loss: Tensor = (pooled * torch.linspace(-1, 1, pooled.shape[1])).mean()
    loss.backward()
    return loss.detach()


@contextmanager
def scanned_by(scan: Scan) -> Iterator[None]:
    """Let VMamba scan by another function inside."""
    ours = vmamba.selective_scan_2d
    vmamba.selective_scan_2d = scan  # type: ignore[assignment]
    try:
        yield
    finally:
        vmamba.selective_scan_2d = ours


def as_defined(
    x: Tensor, steps: Tensor, weight: Tensor, bias: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor
) -> Tensor:
    """Scan maps (B, H, W, E) in four directions, one position after another, by index."""
    return _scan(_loop_by_index, x, steps, weight, bias, A, B, C, D)


def unbound(
    x: Tensor, steps: Tensor, weight: Tensor, bias: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor
) -> Tensor:
    """Scan maps (B, H, W, E) in four directions, one position after another, cut apart beforehand."""
    return _scan(_loop_unbound, x, steps, weight, bias, A, B, C, D)


def _loop_by_index(decay: Tensor, inflow: Tensor) -> Tensor:
    """Return the states of (L, 4, B, E)."""
    state, states = torch.zeros_like(decay[0]), []
    for position in range(len(decay)):
        state = decay[position] * state + inflow[position]
        states.append(state)
    return torch.stack(states)


def _loop_unbound(decay: Tensor, inflow: Tensor) -> Tensor:
    """Return the states of (L, 4, B, E)."""
    state, states = torch.zeros_like(decay[0]), []
    for decay_l, inflow_l in zip(decay.unbind(), inflow.unbind(), strict=True):
        state = torch.addcmul(inflow_l, decay_l, state)
        states.append(state)
    return torch.stack(states)


def _scan(loop: Callable[[Tensor, Tensor], Tensor], x: Tensor, *rest: Tensor) -> Tensor:
    """Scan in four stacked directions, positions first, with one state a channel."""
    steps, weight, bias, A, B, C, D = rest
    batch, height, width, channels = x.shape
    sequences = _four(x[:, :, :, None].expand(-1, -1, -1, 4, -1))
    low, to_state, from_state = (_four(part) for part in (steps, B, C))
    delta = F.softplus(low @ weight.mT + bias[:, None])
    states = loop(torch.exp(delta * A.mT), delta * sequences * to_state)
    y = (states * from_state + D[:, None] * sequences).permute(1, 2, 0, 3)
    along = (y[0] + y[2].flip(1)).view(batch, height, width, channels)
    return along + (y[1] + y[3].flip(1)).view(batch, width, height, channels).transpose(1, 2)


def _four(values: Tensor) -> Tensor:
    """Reorder (B, H, W, 4, ·) to the four sequences, (L, 4, B, ·)."""
    rows = values.flatten(1, 2)
    columns = values.transpose(1, 2).flatten(1, 2)
    parts = rows[:, :, 0], columns[:, :, 1], rows[:, :, 2].flip(1), columns[:, :, 3].flip(1)
    return torch.stack([part.transpose(0, 1) for part in parts], 1)


LOOPS: dict[str, Scan] = {"as_defined": as_defined, "unbound": unbound}


def largest_difference(net: VMamba, images: Tensor, scan: Scan) -> float:
    """Return the largest difference of loss and gradients, as part of each tensor's largest value."""
    found = []
    for chosen in (vmamba.selective_scan_2d, scan):
        with scanned_by(chosen):
            loss = forward_backward(net, images)
        found.append([loss, *(weight.grad for weight in net.parameters() if weight.grad is not None)])
    return max(
        float((a - b).abs().max() / b.abs().max().clamp(min=1e-12)) for a, b in zip(*found, strict=True)
    )


def _against_loop(net: VMamba, name: str, size: int, batch: int, repeats: int, target: float | None) -> Row:
    scan, images = LOOPS[name], made_images(batch, size)
    difference = largest_difference(net, made_images(1, 32), scan)
    if difference > _CLOSE:
        raise AssertionError(f"the two scans differ by {difference:.1e}, so their times cannot be compared")

    def loop() -> None:
        with scanned_by(scan):
            forward_backward(net, images)

    warm_up = 0 if name == "as_defined" else 1
    ours, steps = in_turns(lambda: forward_backward(net, images), loop, repeats, warm_up)
    return speed_row(
        f"VMamba step, against a scan step by step ({name.replace('_', ' ')})",
        Side("chunks at once", "images/s", [batch / s for s in ours]),
        Side("a loop over positions", "images/s", [batch / s for s in steps]),
        target=target, note=_note(size, batch), details={"largest_difference": difference},
    )  # fmt: skip


def _against_swin(net: VMamba, size: int, batch: int, repeats: int) -> Row:
    swin = timm.create_model("swin_tiny_patch4_window7_224", img_size=size, num_classes=0).eval()
    images = made_images(batch, size)
    ours, theirs = in_turns(
        lambda: forward_backward(net, images), lambda: forward_backward(swin, images), repeats
    )
    ratios = sorted(a / b for a, b in zip(ours, theirs, strict=True))
    return Row(
        "VMamba step, time of Swin-T's", ratios[len(ratios) // 2], target=3.0, sense="<=",
        ours=Side("VMamba", "s", ours), reference=Side("swin_tiny_patch4_window7_224", "s", theirs),
        spread=(ratios[0], ratios[-1]), note=_note(size, batch),
    )  # fmt: skip


def _note(size: int, batch: int) -> str:
    return f"{size} px, batch {batch}, float32, forward and backward"


_PASS = """
import sys, torch
from benchmarks.selective_scan import forward_backward, made_images, network
name, batch, size, threads = sys.argv[1:]
torch.set_num_threads(int(threads))
forward_backward(network(name), made_images(int(batch), int(size)))
"""


def _memory(settings: Settings, name: str, size: int) -> Row:
    batch = settings.of(8, 2)

    def peak(side: int) -> float:
        words = (name, str(batch), str(side), str(settings.threads))
        return cost([sys.executable, "-c", _PASS, *words]).peak_mb

    base, small, large = peak(32), peak(size), peak(2 * size)
    return Row(
        "VMamba step: memory of four times the tokens", (large - base) / (small - base), target=4.4, sense="<=",
        ours=Side(f"{2 * size} px", "MB", [large - base]), reference=Side(f"{size} px", "MB", [small - base]),
        note=f"batch {batch}, peaks of one process each, less one with 32 px", details={"base_mb": base},
    )  # fmt: skip
