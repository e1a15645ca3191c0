from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from encoders import slow_scan
from scanprior.encoders import selective_scan as module
from scanprior.encoders.selective_scan import selective_scan, selective_scan_2d

EXACT = {"rtol": 1e-10, "atol": 1e-10}


def sequences(length, states=1, *, batch=2, channels=3, seed=0, dtype=torch.float64):
    """Return x, delta, A, B, C, D of a sequence."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=dtype)

    x, delta = normal(batch, length, channels), F.softplus(normal(batch, length, channels))
    a = -normal(channels, states).exp()
    return x, delta, a, normal(batch, length, states), normal(batch, length, states), normal(channels)


def maps(height, width, states=1, *, batch=2, channels=3, rank=2, seed=0, dtype=torch.float64):
    """Return x, steps, weight, bias, A, B, C, D of maps."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=dtype)

    place = (batch, height, width)
    return (
        normal(*place, channels), normal(*place, 4, rank), normal(4, channels, rank), normal(4, channels),
        -normal(4, channels, states).exp(), normal(*place, 4, states), normal(*place, 4, states), normal(4, channels),
    )  # fmt: skip


def gradients(function, inputs):
    """Return the output and the gradients of a weighted sum of it."""
    inputs = [value.detach().clone().requires_grad_() for value in inputs]
    y = function(*inputs)
    weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)
    return [y.detach(), *torch.autograd.grad((y * weights).sum(), inputs)]


@settings(max_examples=40, deadline=None)
@given(
    length=st.integers(1, 40), states=st.integers(1, 3), chunk=st.integers(1, 45), seed=st.integers(0, 999)
)
def test_sequences_equal_a_loop_over_positions(length, states, chunk, seed):
    inputs = sequences(length, states, seed=seed)
    found = gradients(lambda *given: selective_scan(*given, chunk=chunk), inputs)
    for ours, wanted in zip(found, gradients(slow_scan.scan, inputs), strict=True):
        torch.testing.assert_close(ours, wanted, **EXACT)


@settings(max_examples=30, deadline=None)
@given(height=st.integers(1, 7), width=st.integers(1, 7), states=st.integers(1, 3), seed=st.integers(0, 999))
def test_maps_equal_a_loop_over_positions(height, width, states, seed):
    inputs = maps(height, width, states, seed=seed)
    found = gradients(selective_scan_2d, inputs)
    for ours, wanted in zip(found, gradients(slow_scan.scan_2d, inputs), strict=True):
        torch.testing.assert_close(ours, wanted, **EXACT)


@pytest.mark.parametrize("states", [1, 2])
def test_gradients_equal_finite_differences(states):
    def required(inputs):
        return [value.requires_grad_() for value in inputs]

    flat = required(sequences(7, states, batch=1, channels=2))
    assert torch.autograd.gradcheck(lambda *given: selective_scan(*given, chunk=3), flat)
    assert torch.autograd.gradcheck(selective_scan_2d, required(maps(2, 3, states, batch=1, channels=2)))


@pytest.mark.parametrize("block", [1, 30, 100])
def test_working_on_a_few_images_at_a_time_changes_nothing(block, monkeypatch):
    inputs = maps(3, 4, batch=5)
    whole = gradients(selective_scan_2d, inputs)
    monkeypatch.setattr(module, "BLOCK", block)
    for ours, wanted in zip(gradients(selective_scan_2d, inputs), whole, strict=True):
        torch.testing.assert_close(ours, wanted, **EXACT)


@pytest.mark.parametrize("layout", ["channels first", "one image expanded"])
def test_any_memory_order(layout):
    x, *rest = maps(3, 4)
    x = (
        x.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
        if layout == "channels first"
        else x[:1].expand_as(x)
    )
    inputs = [x, *rest]
    y = selective_scan_2d(*inputs)
    torch.testing.assert_close(y, slow_scan.scan_2d(*inputs), **EXACT)
    x.requires_grad_()
    (ours,) = torch.autograd.grad(selective_scan_2d(x, *rest).sum(), x)  # an expanded gradient
    (wanted,) = torch.autograd.grad(slow_scan.scan_2d(x, *rest).sum(), x)
    torch.testing.assert_close(ours, wanted, **EXACT)


@pytest.mark.parametrize("raw", [-80.0, -30.0, -12.0, 0.0, 12.0, 60.0, 1e4])
def test_huge_and_tiny_time_steps(raw):
    """In float32 against the loop in float64; a time step of 1e4 forgets all, one of e^-80 moves nothing."""
    inputs = list(maps(4, 40, channels=2, dtype=torch.float32))
    inputs[3] = torch.full_like(inputs[3], raw)
    smallest = torch.finfo(torch.float32).tiny
    found = gradients(selective_scan_2d, inputs)
    wanted = gradients(slow_scan.scan_2d, [value.double() for value in inputs])
    for ours, exact in zip(found, wanted, strict=True):
        assert ours.dtype == torch.float32 and ours.isfinite().all()
        scale = float(exact.abs().max())
        torch.testing.assert_close(ours.double(), exact, rtol=1e-3, atol=1e-5 * scale + smallest)


def test_many_huge_steps_in_a_row_forget_without_overflow():
    x, _, a, b, c, d = sequences(400, dtype=torch.float32)
    y = selective_scan(x, torch.full_like(x, 1e6), a, b, c, d)
    torch.testing.assert_close(y, 1e6 * x * b * c + d * x)


def test_softplus_keeps_its_digits():
    """The time step alone, read off a scan of one position with B = C = 1 and D = 0, over 36 orders of magnitude."""
    raw = torch.linspace(-80, 40, 4001)
    one = torch.ones(1, 1, 1, 4, 1)
    inputs = (
        torch.ones(1, 1, 1, 4001), one, torch.zeros(4, 4001, 1), raw.expand(4, -1), -torch.ones(4, 4001, 1), one, one,
        torch.zeros(4, 4001),
    )  # fmt: skip
    exact = F.softplus(raw.double(), threshold=1e3)
    torch.testing.assert_close((selective_scan_2d(*inputs)[0, 0, 0] / 4).double(), exact, rtol=5e-7, atol=0)


def test_autocast_computes_in_float32():
    inputs = [value.float() for value in maps(3, 5)]
    wanted = gradients(selective_scan_2d, inputs)
    with torch.autocast("cpu", torch.bfloat16):
        found = gradients(selective_scan_2d, inputs)
    for ours, exact in zip(found, wanted, strict=True):
        assert torch.equal(ours, exact)
    half = [value.bfloat16().requires_grad_() for value in inputs]
    y = selective_scan_2d(*half)
    assert y.dtype == torch.float32
    assert all(grad.dtype == torch.bfloat16 for grad in torch.autograd.grad(y.sum(), half))


def test_what_is_kept_for_the_backward_pass_does_not_grow_with_the_chunk():
    """The inputs, and one state a chunk: no tensor of all positions besides x."""
    kept = []
    x, steps, *rest = maps(8, 16, channels=32)
    with torch.autograd.graph.saved_tensors_hooks(
        lambda value: kept.append(value) or value, lambda value: value
    ):
        selective_scan_2d(x.requires_grad_(), steps, *rest)
    assert [tuple(value.shape) for value in kept if value.numel() >= x.numel()] == [tuple(x.shape)]
    firsts = sorted(tuple(value.shape) for value in kept[8:])
    assert firsts == [(1, 2, 8, 32)] * 2 + [(1, 2, 16, 32)] * 2


def test_shapes_that_do_not_belong_together():
    x, delta, a, b, c, d = sequences(5)
    with pytest.raises(ValueError, match=r"delta has shape \(2, 4, 3\) and must have \(2, 5, 3\)"):
        selective_scan(x, delta[:, :4], a, b, c, d)
    with pytest.raises(ValueError, match=r"B has shape \(1, 5, 1\)"):
        selective_scan(x, delta, a, b[:1], c, d)
    with pytest.raises(ValueError, match="chunk is 0"):
        selective_scan(x, delta, a, b, c, d, chunk=0)
    inputs = list(maps(2, 3))
    inputs[7] = inputs[7][:1]
    with pytest.raises(ValueError, match=r"D has shape \(1, 3\) and must have \(4, 3\)"):
        selective_scan_2d(*inputs)
