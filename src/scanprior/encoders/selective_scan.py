"""The selective scan of a state-space model, over sequences and over images in four directions.

For every channel e and state n, with a time step δ that depends on the position l of the sequence,

    h_l = exp(δ_l A) h_(l-1) + δ_l B_l x_l,    y_l = Σ_n C_l h_l + D x_l

(Gu and Dao 2023, arXiv 2312.00752, algorithm 2 with zero-order hold of A and Euler's rule for B).

How it is computed [our choice]. A sequence is cut into chunks. All chunks at once take one step after another
from a zero state, the states at their ends are carried from chunk to chunk, and all chunks take their steps again
from their true first states. A map of H rows and W columns read along its rows so takes 2 W + H short Python
steps, each a multiplication and addition on all images, rows and channels at once. Only decays exp(δ A) ≤ 1 are
multiplied and nothing is divided by them, so that neither a huge nor a tiny δ overflows.

Tried for N = 1 on one thread of a CPU, 2 to 8 maps of 14x14x384 to 56x56x96, forward and without softplus: one
step after another over the whole sequence takes 1.1 to 6 times as long, a log-step scan in each chunk (Hillis and
Steele 1986) 1.5 to 6 times, a matrix of decays exp(s_i - s_j) for each chunk of 16 and channel over 40 times.
Zero-state results that are corrected by products of decays, in place of the second round of steps, take 0.9 to
1 times as long, but these products round, and the backward pass needs the decays themselves.

The backward pass keeps the inputs and the first states of the chunks, L / chunk numbers a channel and state, and
computes the rest again. Images are worked through a few at a time, in working memory that does not grow with the
batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

BLOCK = 1 << 20
"""Elements of a working tensor, about: 4 MB in float32, so that the six of them stay in or near the last cache."""


class Direction(NamedTuple):
    """How a map is read as a sequence: row by row or column by column, from the first or the last position."""

    columns: bool
    reverse: bool


FOUR = (Direction(False, False), Direction(True, False), Direction(False, True), Direction(True, True))
"""VMamba's four orders: row-major, column-major, and both from the end (Liu et al. 2024, arXiv 2401.10166)."""

ONE = (Direction(False, False),)


def selective_scan(
    x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None = None, *, chunk: int = 32
) -> Tensor:
    """Scan sequences of L positions with E channels and N states.

    Args:
        x: input (B, L, E).
        delta: time steps (B, L, E), ≥ 0.
        A: (E, N), ≤ 0: the states' decay is exp(delta · A).
        B: (B, L, N), input to state.
        C: (B, L, N), state to output.
        D: (E,), input to output; None = 0.
        chunk: positions of a chunk, ≥ 1; changes the speed and the rounding alone. L need not be a multiple.

    Returns:
        (B, L, E): float64 where x is float64, else float32, under autocast too.

    Raises:
        ValueError: the shapes do not belong together, or the chunk is below 1.
    """
    if chunk < 1:
        raise ValueError(f"chunk is {chunk} and must be at least 1")
    batch, length, channels = x.shape
    _check("delta", delta, (batch, length, channels))
    _check("A", A, (channels, A.shape[-1]))
    for name, given in (("B", B), ("C", C)):
        _check(name, given, (batch, length, A.shape[-1]))
    chunks = -(-length // chunk)

    def cut(sequence: Tensor) -> Tensor:
        """View as (B, chunks, chunk, ·); zeros after the end have δ = 0 and change nothing before it."""
        padded = F.pad(sequence, (0, 0, 0, chunks * chunk - length))
        return padded.reshape(batch, chunks, chunk, -1)

    steps, to_state, from_state = (cut(sequence)[:, :, :, None] for sequence in (delta, B, C))
    gain = None if D is None else D[None]
    y = _scan(cut(x), steps, None, None, A[None], to_state, from_state, gain, ONE)
    return y.flatten(1, 2)[:, :length]


def selective_scan_2d(
    x: Tensor, steps: Tensor, weight: Tensor, bias: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor
) -> Tensor:
    """Scan maps in the four directions of ``FOUR`` and add the four outputs up at every position.

    The time steps of direction k are softplus(weight_k · steps + bias_k), of which only ``steps`` is kept.
    All maps are channels-last and row by row, also for the other directions: nothing needs to be reordered.

    Args:
        x: input (B, H, W, E).
        steps: (B, H, W, 4, R), time steps in R dimensions.
        weight: (4, E, R), from those to channels.
        bias: (4, E).
        A: (4, E, N), ≤ 0.
        B: (B, H, W, 4, N), input to state.
        C: (B, H, W, 4, N), state to output.
        D: (4, E), input to output.

    Returns:
        (B, H, W, E): float64 where x is float64, else float32, under autocast too.

    Raises:
        ValueError: the shapes do not belong together.
    """
    *place, channels = x.shape
    states, rank = A.shape[-1], weight.shape[-1]
    _check("steps", steps, (*place, 4, rank))
    _check("weight", weight, (4, channels, rank))
    _check("A", A, (4, channels, states))
    for name, given in (("bias", bias), ("D", D)):
        _check(name, given, (4, channels))
    for name, given in (("B", B), ("C", C)):
        _check(name, given, (*place, 4, states))
    return _scan(x, steps, weight, bias, A, B, C, D, FOUR)


def _in_full(x: Tensor) -> AbstractContextManager[object]:
    """Return a context without autocast, which tensors without values (the meta device) have no notion of."""
    return nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False)


def _check(name: str, given: Tensor, wanted: tuple[int, ...]) -> None:
    if given.shape != wanted:
        raise ValueError(f"{name} has shape {tuple(given.shape)} and must have {wanted}")


def _scan(x: Tensor, *rest: Any) -> Tensor:
    """Apply the scan in float32, or float64."""
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    given = [value.to(dtype) if isinstance(value, Tensor) else value for value in (x, *rest)]
    y: Tensor = _Scan.apply(*given)
    return y


class _Scan(torch.autograd.Function):
    """The sum over K directions of the scan of x (b, H, W, E); weight = None: steps are δ itself, R = E."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        steps: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        D: Tensor | None,
        directions: tuple[Direction, ...],
    ) -> Tensor:
        y = torch.zeros_like(x) if D is None else x * D.sum(0)
        firsts = [x.new_empty(_firsts_shape(x, A, direction)) for direction in directions]
        with _in_full(x):
            for part, (raw, delta, decay, states) in _parts(x, 4):
                for k, direction in enumerate(directions):
                    low = steps[part][..., k, :]
                    _time_steps(low, weight, bias, k, raw=raw, delta=delta, spare=(decay, states))
                    for n, rate in enumerate(A[k].T):
                        torch.mul(delta, rate, out=decay).exp_()
                        torch.mul(delta, x[part], out=states).mul_(B[part][..., k, n, None])
                        totals = _totals(delta, rate, direction)
                        _run_states(decay, states, totals, firsts[k][n, part], direction)
                        y[part].addcmul_(states, C[part][..., k, n, None])
        ctx.save_for_backward(x, steps, weight, bias, A, B, C, D, *firsts)
        ctx.directions = directions
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        inputs, firsts = ctx.saved_tensors[:8], ctx.saved_tensors[8:]
        x, of = inputs[0], _Gradients(inputs, grad)
        with _in_full(x):
            for part, work in _parts(x, 6):
                for k, direction in enumerate(ctx.directions):
                    of.add(k, direction, part, firsts[k][:, part], work)
        return *of.all(), None


class _Gradients:
    """The gradients of a scan's inputs, summed up direction by direction and part by part.

    Args:
        x, steps, weight, bias, A, B, C, D: the inputs; the attributes of these names are their gradients.
        grad: gradient of the output (b, H, W, E).
    """

    def __init__(self, inputs: tuple[Any, ...], grad: Tensor) -> None:
        x, steps, weight, bias, A, B, C, D = inputs
        self.inputs, self.grad = inputs, grad
        self.steps, self.B, self.C = torch.empty_like(steps), torch.empty_like(B), torch.empty_like(C)
        self.A = torch.zeros_like(A)
        self.weight = None if weight is None else torch.zeros_like(weight)
        self.bias = None if bias is None else torch.zeros_like(bias)
        self.x = torch.zeros_like(x) if D is None else grad * D.sum(0)
        self.D = None if D is None else (grad * x).sum((0, 1, 2)).expand_as(D)

    def all(self) -> tuple[Tensor | None, ...]:
        """Return them in the order of the inputs."""
        return self.x, self.steps, self.weight, self.bias, self.A, self.B, self.C, self.D

    def add(self, k: int, direction: Direction, part: slice, firsts: Tensor, work: list[Tensor]) -> None:
        """Compute the states of some images in direction k again, and add what they give."""
        x, steps, weight, bias, A, B, C, _ = self.inputs
        x, grad, low = x[part], self.grad[part], steps[part][..., k, :]
        raw, delta, decay, states, kept, of_delta = work
        _time_steps(low, weight, bias, k, raw=raw, delta=delta, spare=(decay, states))
        of_delta.zero_()
        for n, rate in enumerate(A[k].T):
            b, c = B[part][..., k, n, None], C[part][..., k, n, None]
            torch.mul(delta, rate, out=decay).exp_()
            torch.mul(delta, x, out=states).mul_(b)
            _rerun_states(decay, states, kept, firsts[n], direction)
            self.C[part][..., k, n] = states.mul_(grad).sum(-1)
            adjoint = torch.mul(grad, c, out=states)
            _run_adjoints(decay, adjoint, _totals(delta, rate, direction), direction)
            self.x[part].addcmul_(torch.mul(adjoint, delta, out=decay), b)
            of_delta.addcmul_(kept.mul_(adjoint), rate)
            self.A[k, :, n] += kept.mul_(delta).sum((0, 1, 2))
            of_delta.addcmul_(adjoint.mul_(x), b)
            self.B[part][..., k, n] = adjoint.mul_(delta).sum(-1)
        self._add_steps(k, part, low, of_delta, raw)

    def _add_steps(self, k: int, part: slice, low: Tensor, of_delta: Tensor, raw: Tensor) -> None:
        """Go from the gradient of δ (b, H, W, E) to those of what it is made from; overwrites both."""
        weight = self.inputs[2]
        if weight is None or self.weight is None or self.bias is None:
            self.steps[part][..., k, :] = of_delta
            return
        rows = of_delta.mul_(raw.sigmoid_()).flatten(0, 2)
        # (R, rows) and (R, E): products with few rows take a quarter of the time of those with few columns
        self.steps[part][..., k, :] = (weight[k].T @ rows.T).T.reshape(low.shape)
        self.weight[k] += (low.flatten(0, 2).T @ rows).T
        self.bias[k] += rows.sum(0)


def _parts(x: Tensor, buffers: int) -> Iterator[tuple[slice, list[Tensor]]]:
    """Yield the images of a batch, as many at a time as make about BLOCK elements.

    Each with working memory (b, H, W, E), the same every time: new memory costs more than the arithmetic on it.
    """
    count = min(len(x), max(1, BLOCK // max(1, x[:1].numel())))
    work = [x.new_empty((count, *x.shape[1:])) for _ in range(buffers)]
    for first in range(0, len(x), max(1, count)):
        part = slice(first, min(first + count, len(x)))
        yield part, [buffer[: part.stop - first] for buffer in work]


def _time_steps(
    low: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    k: int,
    *,
    raw: Tensor,
    delta: Tensor,
    spare: tuple[Tensor, Tensor],
) -> None:
    """Write weight · low + bias of direction k to ``raw`` and its softplus to ``delta``; or ``low`` to ``delta``.

    All but ``low`` (b, H, W, R) are (b, H, W, E) and contiguous; ``spare`` is overwritten.
    """
    if weight is None or bias is None:
        delta.copy_(low)
        return
    torch.addmm(bias[k], low.flatten(0, 2), weight[k].T, out=raw.view(-1, raw.shape[-1]))
    # log(1 + e) = log(w) + (e - (w - 1)) / w with w = 1 + e rounded, to the last digits also where e is tiny.
    # PyTorch's own softplus was measured at 1 to 20 ns a number, from one program to the next; this takes 2.
    small, above = spare
    torch.clamp(raw, max=80.0, out=delta).exp_()
    torch.add(delta, 1.0, out=above)
    delta.sub_(torch.sub(above, 1.0, out=small)).div_(above)
    torch.maximum(delta.add_(above.log_()), raw, out=delta)


def _firsts_shape(x: Tensor, A: Tensor, direction: Direction) -> tuple[int, ...]:
    """Return the shape of the chunks' first states: (N, b, chunks, E)."""
    return A.shape[-1], len(x), x.shape[2 if direction.columns else 1], x.shape[3]


def _totals(delta: Tensor, rate: Tensor, direction: Direction) -> Tensor:
    """Return the decay over each whole chunk, (b, chunks, E)."""
    return (delta.sum(1 if direction.columns else 2) * rate).exp_()


def _positions(values: Tensor, direction: Direction) -> list[Tensor]:
    """Cut (b, H, W, E) into views (b, chunks, E), one for each position within all chunks, in scan order."""
    views = list(values.unbind(1 if direction.columns else 2))
    return views[::-1] if direction.reverse else views


def _carry(ends: Tensor, totals: Tensor, carried: Tensor, reverse: bool) -> None:
    """Carry states from chunk to chunk.

    Args:
        ends: (b, chunks, E), the states at the chunks' ends if each began at zero.
        totals: (b, chunks, E), the decay over each chunk.
        carried: (b, chunks, E), written: the states before each chunk.
        reverse: whether the last chunk is the first.
    """
    order = slice(None, None, -1) if reverse else slice(None)
    end, total, before = (list(values.unbind(1))[order] for values in (ends, totals, carried))
    before[0].zero_()
    for m in range(len(before) - 1):
        torch.addcmul(end[m], total[m], before[m], out=before[m + 1])


def _run_states(decay: Tensor, states: Tensor, totals: Tensor, firsts: Tensor, direction: Direction) -> None:
    """Turn inflows into states, h_l = decay_l h_(l-1) + inflow_l, in place.

    Args:
        decay: (b, H, W, E).
        states: (b, H, W, E), the inflows; the states after.
        totals: (b, chunks, E), the decay over each chunk.
        firsts: (b, chunks, E), written: the states before each chunk.
        direction: along rows, whose chunks are the rows, or columns.
    """
    decays, inflows = _positions(decay, direction), _positions(states, direction)
    state = inflows[0].clone()
    for decay_l, inflow in zip(decays[1:], inflows[1:], strict=True):
        torch.addcmul(inflow, decay_l, state, out=state)
    _carry(state, totals, firsts, direction.reverse)
    state = firsts
    for decay_l, inflow in zip(decays, inflows, strict=True):
        state = torch.addcmul(inflow, decay_l, state, out=inflow)


def _rerun_states(decay: Tensor, states: Tensor, kept: Tensor, firsts: Tensor, direction: Direction) -> None:
    """Turn inflows into states as ``_run_states`` did, from the first states it found.

    ``kept`` (b, H, W, E) is written: what is left of the state before, decay_l h_(l-1).
    """
    state = firsts
    places = (_positions(values, direction) for values in (decay, states, kept))
    for decay_l, inflow, kept_l in zip(*places, strict=True):
        torch.mul(decay_l, state, out=kept_l)
        state = inflow.add_(kept_l)


def _run_adjoints(decay: Tensor, adjoint: Tensor, totals: Tensor, direction: Direction) -> None:
    """Turn the states' direct gradients into whole ones, g_l = direct_l + decay_(l+1) g_(l+1), in place."""
    decays, directs = (_positions(values, direction)[::-1] for values in (decay, adjoint))
    state = directs[0].clone()
    for decay_after, direct in zip(decays, directs[1:], strict=False):
        torch.addcmul(direct, decay_after, state, out=state)
    state.mul_(decays[-1])  # what leaves a chunk by its first position
    after = torch.empty_like(state)
    _carry(state, totals, after, not direction.reverse)
    state = directs[0].add_(after)
    for decay_after, direct in zip(decays, directs[1:], strict=False):
        state = torch.addcmul(direct, decay_after, state, out=direct)
