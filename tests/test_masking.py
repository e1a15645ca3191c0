from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from reference_group_mask import reference_corrupt, reference_mask
from scanprior.errors import ConfigError
from scanprior.masking import (
    Corruption,
    corrupt,
    group_mask,
    patch_mask_from_scores,
    patches_to_pixels,
    random_patch_mask,
)

POSITIONS = np.arange(24) + 1000


def pictures(count: int, channels: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, channels, height, width, generator=torch.Generator().manual_seed(seed))


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().view(torch.int32)


@settings(deadline=None, max_examples=25)
@given(
    height=st.integers(20, 90),
    width=st.integers(20, 90),
    channels=st.sampled_from([1, 3]),
    kinds=st.sampled_from([("noise",), ("zeros",), ("replace",), ("noise", "zeros", "replace")]),
    max_replace=st.sampled_from([0.2, 0.5, 0.6, 0.75]),
    align=st.sampled_from([1, 3, 4]),
    alien_replace=st.sampled_from([0.0, 0.3]),
    seed=st.integers(0, 2**31),
)
def test_equals_the_plain_loop_bit_for_bit(
    height, width, channels, kinds, max_replace, align, alien_replace, seed
):
    config = Corruption(kinds=kinds, max_replace=max_replace, align=align, alien_replace=alien_replace)
    images = pictures(6, channels, height, width)
    donors = images.roll(1, 0)
    positions = POSITIONS[:6]
    try:
        corrupted, mask = corrupt(images, donors, config, seed=seed, positions=positions)
    except ConfigError:  # too coarse a grid for so small a picture; the loop would not end
        assert align > 1
        reject()
    expected, expected_mask = reference_corrupt(images, donors, config, seed, positions)
    assert torch.equal(mask, expected_mask)
    assert torch.equal(bits(corrupted), bits(expected))
    assert torch.equal(
        bits(corrupted)[~mask[:, None].expand_as(images)], bits(images)[~mask[:, None].expand_as(images)]
    )


def test_blocks_are_those_of_the_plain_loop_in_order():
    config = Corruption()
    mask, blocks = group_mask((64, 100), max_replace=0.75, seed=5, positions=POSITIONS, purpose="p")
    for b, position in enumerate(POSITIONS.tolist()):
        expected, taken = reference_mask((64, 100), 0.75, config, 5, "p", position)
        assert np.array_equal(mask[b], expected.numpy())
        assert [tuple(block) for block in blocks[b, : len(taken)].tolist()] == taken
        assert not blocks[b, len(taken) :].any()


@pytest.mark.parametrize(("max_replace", "low"), [(0.75, 0.5), (0.5, 0.5), (0.3, 0.3)])
@pytest.mark.parametrize("align", [1, 16])
def test_realised_ratio(max_replace, low, align):
    mask, _ = group_mask((224, 224), max_replace=max_replace, align=align, seed=1, positions=np.arange(200))
    ratio = mask.mean(axis=(1, 2))
    largest_block = (64 if align == 16 else 66) ** 2 / 224**2
    assert ratio.min() >= low
    assert ratio.max() < max_replace + largest_block
    # the target is uniform and the last block overshoots by less than half a largest block on average
    assert low + max_replace < 2 * ratio.mean() < low + max_replace + largest_block


@settings(deadline=None, max_examples=20)
@given(align=st.sampled_from([2, 4, 8]), seed=st.integers(0, 999))
def test_mask_is_constant_on_the_grid(align, seed):
    mask, blocks = group_mask((64, 64), max_replace=0.6, align=align, seed=seed, positions=[3, 4])
    cells = mask.reshape(2, 64 // align, align, 64 // align, align)
    assert (cells.any(axis=(2, 4)) == cells.all(axis=(2, 4))).all()
    assert not (blocks % align).any()


def test_blocks_keep_to_the_cap():
    _, blocks = group_mask((224, 160), max_replace=0.75, seed=2, positions=np.arange(100))
    used = blocks[blocks[..., 2] > 0]
    assert used[:, 2].max() == int(0.3 * 224) - 1
    assert used[:, 3].max() == int(0.3 * 160) - 1
    assert (used[:, 0] + used[:, 2] <= 224).all() and (used[:, 1] + used[:, 3] <= 160).all()
    assert used[:, 0].max() == 222  # U{0..H-2} for align 1: the last row is no corner


@pytest.mark.parametrize(("kinds", "rate"), [(("noise",), 1 / 2), (("noise", "zeros", "replace"), 1 / 4)])
def test_alien_rate_and_pixels(kinds, rate):
    n = 2000
    images = pictures(n, 1, 16, 16)
    donors = images + 100
    config = Corruption(kinds=kinds, max_block=0.5)
    corrupted, mask = corrupt(images, donors, config, seed=3, positions=np.arange(n))
    from_donor = torch.isclose(corrupted, donors) & mask[:, None]
    alien = from_donor.flatten(1).any(1)
    assert abs(alien.float().mean() - rate) < 4 * (rate * (1 - rate) / n) ** 0.5
    assert torch.equal(from_donor[alien][:, 0], mask[alien])  # either/or: all hidden pixels are the donor's
    assert torch.equal(corrupted[alien][from_donor[alien]], donors[alien][from_donor[alien]])
    assert not from_donor[~alien].any()


def test_noise_is_standard_normal_and_zeros_are_zero():
    images = pictures(24, 2, 64, 64) * 3 + 7
    noise = Corruption(kinds=("noise",))
    corrupted, mask = corrupt(images, None, noise, seed=1, positions=POSITIONS)
    hidden = corrupted[mask[:, None].expand_as(images)]
    assert abs(hidden.mean()) < 0.02 and abs(hidden.std() - 1) < 0.02
    corrupted, mask = corrupt(images, None, Corruption(kinds=("zeros",)), seed=1, positions=POSITIONS)
    assert (corrupted[mask[:, None].expand_as(images)] == 0).all()


def test_replace_uses_own_pixels_only():
    images = torch.arange(24.0)[:, None, None, None] * 1000 + torch.rand(24, 1, 40, 40)
    corrupted, mask = corrupt(images, None, Corruption(kinds=("replace",)), seed=1, positions=POSITIONS)
    assert torch.equal(corrupted.flatten(1)[:, 0].div(1000).floor(), torch.arange(24.0))
    assert ((corrupted - images).abs() < 1).all()
    moved = (corrupted != images).flatten(1).sum(1) / mask.flatten(1).sum(1)
    assert moved.min() > 0.9


def test_a_sample_does_not_depend_on_its_batch():
    images = pictures(24, 3, 48, 48)
    donors = images.roll(3, 0)
    config = Corruption(kinds=("noise", "replace"))
    together = corrupt(images, donors, config, seed=9, positions=POSITIONS)
    for b in (0, 7, 23):
        alone = corrupt(images[b : b + 1], donors[b : b + 1], config, seed=9, positions=POSITIONS[b : b + 1])
        assert torch.equal(alone[0][0], together[0][b]) and torch.equal(alone[1][0], together[1][b])
    other = corrupt(images, donors, config, seed=10, positions=POSITIONS)
    assert not torch.equal(other[1], together[1])


def test_input_is_not_changed():
    images, donors = pictures(8, 1, 32, 32), pictures(8, 1, 32, 32, seed=1)
    before = images.clone(), donors.clone()
    corrupt(images, donors, Corruption(kinds=("noise", "zeros", "replace")), seed=1, positions=POSITIONS[:8])
    assert torch.equal(images, before[0]) and torch.equal(donors, before[1])


@pytest.mark.parametrize(("size", "align"), [(64, 16), (16, 16), (32, 8)])
def test_settings_that_cannot_reach_the_area_are_refused(size, align):
    with pytest.raises(ConfigError, match="align"):
        group_mask((size, size), max_replace=0.75, align=align, seed=0, positions=[1])


@settings(deadline=None, max_examples=30)
@given(n=st.integers(2, 80), ratio=st.floats(0.05, 0.95), seed=st.integers(0, 999))
def test_patch_mask_hides_the_exact_number(n, ratio, seed):
    hidden = round(ratio * n)
    if hidden in (0, n):
        with pytest.raises(ConfigError, match="hides none" if not hidden else "leaves none visible"):
            random_patch_mask(n, ratio, seed=seed, positions=POSITIONS)
        return
    keep, mask, restore = random_patch_mask(n, ratio, seed=seed, positions=POSITIONS)
    assert (mask.sum(1) == hidden).all() and keep.shape == (24, n - hidden)
    for b in range(24):
        assert sorted(keep[b].tolist()) == (~mask[b]).nonzero().flatten().tolist()
        order = restore[b].argsort()
        assert torch.equal(order[: n - hidden], keep[b])


def test_patch_mask_is_uniform_and_follows_scores():
    _, mask, _ = random_patch_mask(16, 0.75, seed=0, positions=np.arange(4000))
    assert (mask.float().mean(0) - 0.75).abs().max() < 4 * (0.75 * 0.25 / 4000) ** 0.5
    scores = torch.tensor([[0.1, 0.9, 0.5, 0.7]])
    assert patch_mask_from_scores(scores, 0.5).mask.tolist() == [[False, True, False, True]]


def test_patches_to_pixels():
    spread = patches_to_pixels(torch.tensor([[True, False, False, True]]), (2, 2), 2)
    assert spread[0].int().tolist() == [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]]
