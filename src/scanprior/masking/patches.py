"""Patch masks: which of the patches (or units) of an image are hidden, as exact counts."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from scanprior import keyed
from scanprior.errors import ConfigError
from scanprior.keyed import Positions


class PatchMask(NamedTuple):
    """Which patches of each image are visible.

    Attributes:
        ids_keep: int64 (B, K), the visible patches in the order they are given to the encoder.
        mask: bool (B, N), True = hidden.
        ids_restore: int64 (B, N), place of each patch in (visible, then hidden) order.
    """

    ids_keep: Tensor
    mask: Tensor
    ids_restore: Tensor


def hidden_count(n_patches: int, ratio: float) -> int:
    """Return round(ratio·N), how many patches of an image are hidden.

    Raises:
        ConfigError: that is none of them, or all.
    """
    hidden = round(ratio * n_patches)
    if 0 < hidden < n_patches:
        return hidden
    what = "leaves none visible" if hidden else "hides none"
    low, high = 0.5 / n_patches, (n_patches - 0.5) / n_patches
    use = f"more than {low:.3g} and less than {high:.3g}" if n_patches > 1 else "a smaller patch or unit"
    raise ConfigError(f"mask_ratio: {ratio:g} of {n_patches} patches or units {what}; use {use}")


def random_patch_mask(
    n_patches: int, ratio: float, *, seed: int, positions: Positions, purpose: str = "patches"
) -> PatchMask:
    """Hide exactly round(ratio·N) patches of each image, uniformly without replacement (MAE).

    Args:
        n_patches: N, patches of an image.
        ratio: part to hide, in (0, 1).
        seed: seed of the run.
        positions: int64 stream positions, (B,).
        purpose: names the stream of draws.

    Raises:
        ConfigError: no patch would be hidden, or none would stay visible.
    """
    scores = keyed.uniform(keyed.key(seed, purpose), positions, n_patches)
    return patch_mask_from_scores(torch.from_numpy(scores), ratio)


def patch_mask_from_scores(scores: Tensor, ratio: float) -> PatchMask:
    """Hide the round(ratio·N) patches of highest score, (B, N); ties by place; errors as ``random_patch_mask``."""
    n_patches = scores.shape[1]
    hidden = hidden_count(n_patches, ratio)
    order = scores.argsort(dim=1, stable=True)
    ids_restore = torch.empty_like(order)
    ids_restore.scatter_(1, order, torch.arange(n_patches, device=order.device).expand_as(order))
    return PatchMask(order[:, : n_patches - hidden], ids_restore >= n_patches - hidden, ids_restore)


def patches_to_pixels(mask: Tensor, grid: tuple[int, int], patch_size: int) -> Tensor:
    """Spread a patch mask (B, N) over the pixels of each patch: (B, H, W), same dtype."""
    cells = mask.view(len(mask), *grid)
    return cells.repeat_interleave(patch_size, 1).repeat_interleave(patch_size, 2)
