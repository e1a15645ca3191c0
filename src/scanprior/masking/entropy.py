"""Entropy-guided masks: units that hold more are hidden more often, or less.

That high entropy is masked is the direction of the entropy-guided masked autoencoder (Florindo and Moura
2026, arXiv 2605.21970), whose definition is not published, and of its sibling MO-MAE (arXiv 2605.26287).
Everything here is our definition: complexity of a unit, standardised within the image, times a strength,
plus Gumbel noise; the M largest are hidden, which draws M units without replacement with odds
exp(strength times score).
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from scanprior import keyed
from scanprior.errors import ConfigError
from scanprior.keyed import Positions
from scanprior.masking.patches import PatchMask, patch_mask_from_scores, random_patch_mask

Measure = Literal["shannon", "renyi", "gradient", "local_std"]

_AT_ONCE = 8
"""Images whose complexity is worked out together on a CPU: what is made of them stays in its cache."""

_LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in grey (ITU-R BT.601)."""


class Guidance(BaseModel):
    """What guides a mask, and how strongly."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    beta: float = Field(
        0.0, description="strength: above 0 hides complex units more often, below 0 flat ones; 0 = at random"
    )
    measure: Measure = Field(
        "shannon",
        description="complexity of a unit: shannon or renyi entropy of its grey values, gradient (Shannon entropy of "
        "the gradient's length), local_std (standard deviation)",
    )
    renyi_order: float = Field(2.0, gt=0, description="order of the Rényi entropy; 1 = Shannon")
    bins: int = Field(
        32, ge=2, le=256, description="classes of the histogram; many are biased in small units"
    )
    stretch: float = Field(
        1.0,
        ge=0,
        lt=50,
        description="per cent of an image's darkest and brightest pixels that are clipped before its values are "
        "spread over the classes",
    )
    warmup: float = Field(
        0.2, ge=0, le=1, description="part of the training over which the strength grows from 0"
    )
    mix: float = Field(0.1, ge=0, le=1, description="part of the images masked at random all the same")

    loss_weight: float = Field(
        0.0,
        ge=0,
        description="how much more the loss counts complex units: weight max(0, 1 + loss_weight x score)",
    )

    def strength(self, progress: float) -> float:
        """Return the strength after a part of the training, in [0, 1]."""
        return self.beta * (min(1.0, progress / self.warmup) if self.warmup else 1.0)


class GuidedMask(NamedTuple):
    """A mask and what guided it.

    Attributes:
        mask: which units are hidden.
        scores: complexity of the units, standardised within each image, float32 (B, N); None where nothing asks
            for them.
    """

    mask: PatchMask
    scores: Tensor | None


def guided_patch_mask(
    images: Tensor,
    unit: int,
    ratio: float,
    guidance: Guidance,
    *,
    progress: float = 1.0,
    seed: int,
    positions: Positions,
    purpose: str = "patches",
) -> GuidedMask:
    """Hide exactly round(ratio·N) units of each image, complex ones more often.

    With strength 0 the mask is that of ``random_patch_mask`` of the same key, bit for bit.

    Args:
        images: (B, C, H, W), in any affine scale of the pixels.
        unit: side of a unit in pixels; N = (H / unit)·(W / unit), row by row.
        ratio: part to hide, in (0, 1).
        guidance: measure and strength.
        progress: part of the training that is over, in [0, 1], for the warm-up.
        seed: seed of the run.
        positions: int64 stream positions, (B,).
        purpose: names the stream of draws.

    Raises:
        ConfigError: the unit does not divide the image, or no unit would be hidden, or none visible.
    """
    scores = unit_scores(images, unit, guidance) if guidance.beta or guidance.loss_weight else None
    units = (images.shape[-2] // unit) * (images.shape[-1] // unit)
    strength = guidance.strength(progress)
    if scores is None or not strength:
        return GuidedMask(
            random_patch_mask(units, ratio, seed=seed, positions=positions, purpose=purpose), scores
        )
    draws = torch.from_numpy(keyed.uniform(keyed.key(seed, purpose), positions, units))
    mixed = torch.from_numpy(keyed.uniform(keyed.key(seed, f"{purpose}/mix"), positions, 1)) < guidance.mix
    gumbel = -(-draws.log()).log()  # as the draws are ordered, so what is mixed in is at random as above
    guided = gumbel + strength * scores.cpu()
    return GuidedMask(patch_mask_from_scores(torch.where(mixed, gumbel, guided), ratio), scores)


def unit_weights(scores: Tensor, guidance: Guidance) -> Tensor:
    """Return how much the loss counts units of some scores: max(0, 1 + loss_weight·score), the same shape."""
    return (1 + guidance.loss_weight * scores).clamp(min=0)


def unit_scores(images: Tensor, unit: int, guidance: Guidance) -> Tensor:
    """Return the complexity of units, standardised within each image: float32 (B, N).

    (H - mean) / (deviation + 1e-6) over the units of the image: all 0 where they are equal.

    Raises:
        ConfigError: the unit does not divide the image.
    """
    values = unit_complexity(images, unit, guidance)
    deviation, mean = torch.std_mean(values, dim=1, correction=0, keepdim=True)
    scores: Tensor = (values - mean) / (deviation + 1e-6)
    return scores


def unit_complexity(images: Tensor, unit: int, guidance: Guidance) -> Tensor:
    """Return how much units hold, in [0, 1], before it is standardised: float32 (B, N).

    The grey image (mean of channels; BT.601 of three) is spread over [0, 1] between its own percentiles, so
    gain and offset change nothing. ``gradient`` takes the length of its gradient (central differences),
    spread likewise. Entropies are those of a histogram of ``bins`` equal classes, divided by the logarithm
    of their number, with a correction for small units: Shannon's that of Miller and Madow (1955), (m - 1) / 2n
    nats for m occupied classes and n pixels; Rényi's the power sums estimated by falling factorials (Acharya
    et al. 2015, arXiv 1408.1000), which is exact in the mean for whole orders.

    Args:
        images: (B, C, H, W), in any affine scale.
        unit: side of a unit in pixels.
        guidance: names the measure.

    Raises:
        ConfigError: the unit does not divide the image.
    """
    height, width = images.shape[-2:]
    if height % unit or width % unit:
        raise ConfigError(f"a {height}x{width} px image is not divisible by mask units of {unit} px")
    at_once = _AT_ONCE if images.device.type == "cpu" else max(1, len(images))
    pieces = torch.split(images.detach(), at_once)
    return torch.cat([_complexity(piece, unit, guidance) for piece in pieces])


def _complexity(images: Tensor, unit: int, guidance: Guidance) -> Tensor:
    height, width = images.shape[-2:]
    grey = _spread(_grey(images.float()), guidance.stretch)
    if guidance.measure == "gradient":
        down, right = torch.gradient(grey, dim=(1, 2))
        grey = _spread(torch.hypot(down, right), guidance.stretch)
    cells = grey.reshape(len(grey), height // unit, unit, width // unit, unit)
    cells = cells.transpose(2, 3).reshape(len(grey), -1, unit * unit)
    if guidance.measure == "local_std":
        return cells.std(dim=2, correction=0)
    counts = _histograms(cells, guidance.bins)
    order = guidance.renyi_order if guidance.measure == "renyi" else 1.0
    return _entropy(counts, order).clamp_(0, 1)


def _grey(images: Tensor) -> Tensor:
    """Return the grey images (B, H, W); each to the last bit as it is in any other batch."""
    if images.shape[1] == len(_LUMA):
        red, green, blue = images.unbind(1)
        return (_LUMA[0] * red).add_(green, alpha=_LUMA[1]).add_(blue, alpha=_LUMA[2])
    return images.mean(1)


def _spread(grey: Tensor, percent: float) -> Tensor:
    """Map each image (B, H, W) to [0, 1] between its percentiles, which are pixels of it; a flat one to 0."""
    flat = grey.flatten(1)
    aside = int(percent / 100 * (flat.shape[1] - 1))
    low, high = (  # topk finds the pixel in half the time of kthvalue
        flat.topk(1 + aside, dim=1, largest=False, sorted=False).values.amax(1),
        flat.topk(1 + aside, dim=1, largest=True, sorted=False).values.amin(1),
    )
    extent = high - low
    scaled = flat.sub(low[:, None]).div_(torch.where(extent > 0, extent, torch.ones_like(extent))[:, None])
    return scaled.clamp_(0, 1).view_as(grey)


def _histograms(cells: Tensor, bins: int) -> Tensor:
    """Count the values in [0, 1] of each unit (B, N, n) in equal classes: float32 (B, N, bins)."""
    batch, units, _ = cells.shape
    place = (cells * bins).long().clamp_(max=bins - 1)
    place += torch.arange(batch * units, device=cells.device).view(batch, units, 1) * bins
    counts = torch.bincount(place.flatten(), minlength=batch * units * bins)
    return counts.view(batch, units, bins).float()


def _entropy(counts: Tensor, order: float) -> Tensor:
    """Return the entropy of histograms (..., bins) in units of log(bins), corrected for their size."""
    n, bins = counts.sum(-1), counts.shape[-1]
    top = torch.log(counts.new_tensor(float(bins)))
    if abs(order - 1) < 1e-6:
        plug_in = torch.special.entr(counts / n[..., None]).sum(-1)
        shannon: Tensor = (plug_in + ((counts > 0).sum(-1) - 1) / (2 * n)) / top
        return shannon
    counts, n = counts.double(), n.double()  # a difference of large numbers, divided by a small one
    above = counts + 1 - order
    falling = torch.lgamma(counts + 1) - torch.lgamma(above.clamp(min=1e-6))
    total = torch.lgamma(n + 1) - torch.lgamma(n + 1 - order)
    powers = torch.where((above > 0) & (counts > 0), (falling - total[..., None]).exp(), 0).sum(-1)
    plain = (counts / n[..., None]).pow(order).sum(-1)
    renyi: Tensor = torch.where(powers > 0, powers, plain).log() / ((1 - order) * top)
    return renyi.float()
