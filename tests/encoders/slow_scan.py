"""The selective scan as it is defined: one position after another, with PyTorch's own gradients."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def scan(x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
    """Scan x (B, L, E) with delta (B, L, E), A (E, N), B and C (B, L, N), D (E,)."""
    state = x.new_zeros(x.shape[0], x.shape[2], A.shape[1])
    outputs = []
    for step in range(x.shape[1]):
        inflow = delta[:, step, :, None] * B[:, step, None, :] * x[:, step, :, None]
        state = torch.exp(delta[:, step, :, None] * A) * state + inflow
        outputs.append((state * C[:, step, None, :]).sum(-1) + D * x[:, step])
    return torch.stack(outputs, 1)


def orders(height: int, width: int) -> list[list[int]]:
    """Return the positions of a map in the four orders, as numbers in row-major order."""
    rows = [y * width + x for y in range(height) for x in range(width)]
    columns = [y * width + x for x in range(width) for y in range(height)]
    return [rows, columns, rows[::-1], columns[::-1]]


def scan_2d(
    x: Tensor, steps: Tensor, weight: Tensor, bias: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor
) -> Tensor:
    """Scan x (B, H, W, E) in four orders and add the outputs up at every position."""
    total = torch.zeros_like(x).flatten(1, 2)
    for k, order in enumerate(orders(*x.shape[1:3])):
        low, b, c = (part[..., k, :].flatten(1, 2)[:, order] for part in (steps, B, C))
        y = scan(x.flatten(1, 2)[:, order], F.softplus(low @ weight[k].T + bias[k]), A[k], b, c, D[k])
        total = total.index_add(1, torch.tensor(order), y)
    return total.view_as(x)
