"""Telling images apart: projection head, gathering over processes, and the loss that objectives share."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn


class ProjectionHead(nn.Module):
    """MLP dim → hidden → hidden → out with batch norm after each layer, ReLU then GELU between.

    The last batch norm has no affine part. Batch norms always use the statistics of the batch they are
    given, so the head keeps no running averages: it is not used after pretraining.

    Args:
        dim: width of the pooled vector.
        hidden: width of the two hidden layers.
        out: width of the projection.
    """

    def __init__(self, dim: int, hidden: int, out: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(dim, hidden, bias=False),
            nn.BatchNorm1d(hidden, track_running_stats=False),
            nn.ReLU(),
            nn.Linear(hidden, hidden, bias=False),
            nn.BatchNorm1d(hidden, track_running_stats=False),
            nn.GELU(),
            nn.Linear(hidden, out, bias=False),
            nn.BatchNorm1d(out, affine=False, track_running_stats=False),
        )

    def forward(self, pooled: Tensor) -> Tensor:
        """Project (B, dim) to L2-normalised float32 (B, out); B ≥ 2."""
        return F.normalize(self.layers(pooled).float(), dim=1)


class _Gather(torch.autograd.Function):
    """All processes' rows in their order; backward sums the processes' gradients of one's own rows."""

    @staticmethod
    def forward(context: Any, rows: Tensor) -> Tensor:
        parts = [torch.empty_like(rows, memory_format=torch.contiguous_format) for _ in range(processes())]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].contiguous()
        dist.all_reduce(total)
        return total.chunk(processes())[dist.get_rank()]


def gather(rows: Tensor) -> Tensor:
    """Concatenate the rows (B, D; equally many each) of all processes in their order, (W·B, D); gradients flow back.

    The gradient of each process's rows is the sum over processes, so that a loss computed on the whole
    batch by every process gives, after the usual averaging of gradients, that of one process.
    """
    if processes() == 1:
        return rows
    gathered: Tensor = _Gather.apply(rows)
    return gathered


def processes() -> int:
    """Return the number of training processes."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def sum_over_processes(number: Tensor) -> Tensor:
    """Return the sum of a scalar over all processes, without gradient."""
    total = number.detach().clone()
    if processes() > 1:
        dist.all_reduce(total)
    return total


def cross_view_loss(queries: Tensor, keys: Tensor, temperature: float) -> Tensor:
    """InfoNCE between two views of a batch, both ways.

    2τ·[CE(q1·k2ᵀ/τ) + CE(q2·k1ᵀ/τ)] with the same image as the target; the negatives of an image are the
    other view's keys of the batch. As in SiT and MoCo v3 (arXiv 2104.03602, 2104.02057).

    Args:
        queries: (2, B, D) float32, L2-normalised, of the student.
        keys: (2, B, D), of the teacher.
        temperature: τ.
    """
    target = torch.arange(queries.shape[1], device=queries.device)
    terms = [F.cross_entropy(queries[v] @ keys[1 - v].T / temperature, target) for v in (0, 1)]
    return 2 * temperature * (terms[0] + terms[1])
