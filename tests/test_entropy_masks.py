"""Entropy-guided masks: the measures, the draws, and what changes neither."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from scanprior.errors import ConfigError
from scanprior.masking import (
    Guidance,
    guided_patch_mask,
    random_patch_mask,
    unit_complexity,
    unit_scores,
    unit_weights,
)

MEASURES = ("shannon", "renyi", "gradient", "local_std")


def textured(batch: int, size: int = 64, unit: int = 16, seed: int = 0) -> torch.Tensor:
    """Images whose units hold more and more, row by row: noise of growing width on a slope."""
    units = size // unit
    width = torch.linspace(0.02, 1, units * units).view(units, units)
    width = width.repeat_interleave(unit, 0).repeat_interleave(unit, 1)
    noise = torch.rand(batch, 1, size, size, generator=torch.Generator().manual_seed(seed))
    return noise * width


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("measure", MEASURES)
def test_an_image_is_as_complex_in_any_batch(measure: str, channels: int) -> None:
    images = torch.rand(19, channels, 48, 48, generator=torch.Generator().manual_seed(3))
    together = unit_complexity(images, 16, Guidance(measure=measure))
    for number, image in enumerate(images):
        assert torch.equal(unit_complexity(image[None], 16, Guidance(measure=measure))[0], together[number])


@pytest.mark.parametrize("measure", MEASURES)
def test_flat_units_hold_nothing(measure: str) -> None:
    images = torch.full((2, 1, 32, 32), 0.3)
    guidance = Guidance(measure=measure)
    assert unit_complexity(images, 16, guidance).abs().max() == 0
    assert unit_scores(images, 16, guidance).abs().max() == 0
    images[:, :, :16, :16] = torch.rand(16, 16, generator=torch.Generator().manual_seed(0))
    flat = unit_complexity(images, 16, guidance)[:, 3]  # touches the other only at its corner
    assert flat.abs().max() == 0


@pytest.mark.parametrize(
    ("measure", "order"), [("shannon", 1.0), ("renyi", 2.0), ("renyi", 0.5), ("renyi", 3.0)]
)
def test_uniform_noise_holds_nearly_all_there_is(measure: str, order: float) -> None:
    images = torch.rand(64, 1, 64, 64, generator=torch.Generator().manual_seed(1))
    found = unit_complexity(images, 16, Guidance(measure=measure, renyi_order=order, stretch=0.0))
    assert found.mean() > 0.985 and found.max() <= 1


def reference(values: np.ndarray, bins: int, order: float) -> float:
    """The entropy of one unit as the definition says."""
    counts = np.bincount(np.minimum((values * bins).astype(int), bins - 1).ravel(), minlength=bins)
    n = counts.sum()
    if order == 1:
        share = counts[counts > 0] / n
        nats = -(share * np.log(share)).sum() + (np.count_nonzero(counts) - 1) / (2 * n)
        return min(1.0, nats / math.log(bins))
    powers = sum(math.perm(int(c), int(order)) for c in counts) / math.perm(int(n), int(order))
    return min(1.0, math.log(powers) / ((1 - order) * math.log(bins)))


@pytest.mark.parametrize(("measure", "order"), [("shannon", 1.0), ("renyi", 2.0), ("renyi", 3.0)])
def test_entropy_equals_the_definition_unit_by_unit(measure: str, order: float) -> None:
    images = textured(3, seed=2).double().float()
    found = unit_complexity(images, 16, Guidance(measure=measure, renyi_order=order, stretch=0.0))
    for b in range(3):
        grey = images[b, 0].numpy()
        grey = (grey - grey.min()) / (grey.max() - grey.min())
        for n in range(16):
            row, column = 16 * (n // 4), 16 * (n % 4)
            cell = grey[row : row + 16, column : column + 16]
            assert found[b, n].item() == pytest.approx(reference(cell, 32, order), abs=1e-5)


def test_renyi_of_order_one_is_shannon_and_orders_near_it_are_close() -> None:
    images = textured(4)
    shannon = unit_complexity(images, 16, Guidance(measure="shannon"))
    assert torch.equal(unit_complexity(images, 16, Guidance(measure="renyi", renyi_order=1.0)), shannon)
    near = unit_complexity(images, 16, Guidance(measure="renyi", renyi_order=1.001))
    assert (near - shannon).abs().max() < 0.02


def test_the_corrections_take_the_bias_of_small_units_away() -> None:
    images = torch.rand(400, 1, 64, 64, generator=torch.Generator().manual_seed(3)).square()
    for measure, order in (("shannon", 1.0), ("renyi", 2.0)):
        guidance = Guidance(measure=measure, renyi_order=order, stretch=0.0)
        small, large = (float(unit_complexity(images, unit, guidance).mean()) for unit in (16, 64))
        assert abs(small - large) < 0.006, measure
        cells = images.numpy().reshape(400, 4, 16, 4, 16).transpose(0, 1, 3, 2, 4).reshape(-1, 256)
        share = np.stack([np.histogram(cell, 32, (0, 1))[0] for cell in cells[:2000]]) / 256
        plain = np.log((share**order).sum(1)) / (1 - order) if order != 1 else stats.entropy(share, axis=1)
        assert abs(plain.mean() / math.log(32) - large) > 0.012, "without them it would be there"


@given(
    st.sampled_from(MEASURES), st.sampled_from([0.25, 0.5, 2.0, 8.0]), st.sampled_from([-2.0, 0.0, 0.5, 3.0])
)
@settings(max_examples=30, deadline=None)
def test_gain_and_offset_change_no_rank(measure: str, gain: float, offset: float) -> None:
    images = textured(2)
    guidance = Guidance(measure=measure)
    before = unit_complexity(images, 16, guidance)
    after = unit_complexity(images * gain + offset, 16, guidance)
    assert (before - after).abs().max() < 5e-3
    for one, other in zip(before, after, strict=True):
        assert stats.spearmanr(one, other).statistic > 0.99


def test_colour_is_seen_as_grey() -> None:
    grey = textured(2)
    colour = torch.cat([grey] * 3, dim=1)
    assert (
        unit_complexity(colour, 16, Guidance()) - unit_complexity(grey, 16, Guidance())
    ).abs().max() < 5e-3
    two = torch.cat([grey] * 2, dim=1)
    assert torch.equal(unit_complexity(two, 16, Guidance()), unit_complexity(grey, 16, Guidance()))


@given(
    st.floats(-4, 4), st.floats(0.05, 0.95), st.integers(0, 2**31), st.integers(0, 10**9),
    st.sampled_from(MEASURES),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_counts_are_exact_and_draws_are_keyed(
    beta: float, ratio: float, seed: int, first: int, measure: str
) -> None:
    images = textured(5)
    images[2] = 0.7  # a blank one
    guidance = Guidance(beta=beta, measure=measure, warmup=0.0)
    positions = np.arange(first, first + 5)
    mask, _ = guided_patch_mask(images, 16, ratio, guidance, seed=seed, positions=positions)
    hidden = min(max(round(ratio * 16), 1), 15)
    assert (mask.mask.sum(1) == hidden).all() and mask.ids_keep.shape == (5, 16 - hidden)
    assert not mask.mask.gather(1, mask.ids_keep).any()
    alone, _ = guided_patch_mask(images[3:4], 16, ratio, guidance, seed=seed, positions=positions[3:4])
    assert torch.equal(alone.mask[0], mask.mask[3]), "the others of the batch change nothing"
    other, _ = guided_patch_mask(images, 16, ratio, guidance, seed=seed + 1, positions=positions)
    assert other.mask.shape == mask.mask.shape


@pytest.mark.parametrize(
    "guidance", [Guidance(), Guidance(beta=2.0, mix=1.0), Guidance(beta=2.0, warmup=0.5)]
)
def test_strength_zero_is_exactly_random(guidance: Guidance) -> None:
    positions = np.arange(40)
    mask, _ = guided_patch_mask(textured(40), 16, 0.6, guidance, progress=0.0, seed=5, positions=positions)
    plain = random_patch_mask(16, 0.6, seed=5, positions=positions)
    for one, other in zip(mask, plain, strict=True):
        assert torch.equal(one, other)


def test_strength_zero_hides_every_unit_as_often() -> None:
    positions = np.arange(6000)
    mask = guided_patch_mask(torch.zeros(6000, 1, 8, 8), 2, 0.5, Guidance(), seed=0, positions=positions).mask
    often = mask.mask.float().mean(0)
    assert (often - 0.5).abs().max() < 4 * math.sqrt(0.25 / 6000)


@pytest.mark.parametrize("beta", [1.5, -1.5])
def test_more_complex_units_are_hidden_more_often_and_less_below_zero(beta: float) -> None:
    images = textured(1).expand(4000, -1, -1, -1)
    guidance = Guidance(beta=beta, warmup=0.0, mix=0.0)
    mask, scores = guided_patch_mask(images, 16, 0.5, guidance, seed=0, positions=np.arange(4000))
    assert scores is not None
    often = mask.mask.float().mean(0)
    order = scores[0].argsort(descending=beta < 0)
    ranked = often[order]
    assert (ranked[1:] >= ranked[:-1] - 0.035).all() and ranked[-1] - ranked[0] > 0.5
    # odds of the first unit drawn: without replacement and M = 1 they are exp(beta z) / sum
    one, _ = guided_patch_mask(images, 16, 1 / 16, guidance, seed=1, positions=np.arange(4000))
    expected = torch.softmax(beta * scores[0], 0)
    assert (one.mask.float().mean(0) - expected).abs().max() < 4 * math.sqrt(0.25 / 4000)


def test_a_part_of_the_images_is_masked_at_random() -> None:
    images = textured(1).expand(4000, -1, -1, -1)
    guidance = Guidance(beta=50.0, warmup=0.0, mix=0.3)
    mask, scores = guided_patch_mask(images, 16, 0.5, guidance, seed=0, positions=np.arange(4000))
    assert scores is not None
    hard = torch.zeros(16, dtype=torch.bool)
    hard[scores[0].topk(8).indices] = True
    share = float((mask.mask == hard).all(1).float().mean())
    assert abs(share - 0.7) < 4 * math.sqrt(0.21 / 4000)


def test_weights_of_the_loss() -> None:
    scores = torch.tensor([[-3.0, 0.0, 2.0]])
    assert torch.equal(unit_weights(scores, Guidance(loss_weight=0.5)), torch.tensor([[0.0, 1.0, 2.0]]))
    assert torch.equal(unit_weights(scores, Guidance()), torch.ones(1, 3))


def test_a_unit_that_does_not_divide_the_image() -> None:
    with pytest.raises(ConfigError, match="30x32 px image is not divisible by mask units of 16"):
        unit_scores(torch.zeros(1, 1, 30, 32), 16, Guidance())
