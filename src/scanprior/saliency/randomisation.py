"""Do maps show what was learned? They must change when the weights are replaced by random ones."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage, stats
from torch import Tensor

from scanprior import keyed
from scanprior.encoders import blocks_of
from scanprior.saliency.base import classes_of, undisturbed
from scanprior.saliency.methods import AUTO, METHODS, choose_method
from scanprior.tasks.classify import Classifier

Maps = NDArray[np.float32]

_SIGMA, _REACH = 1.5, 3.5  # of the Gaussian window: 11 x 11 pixels
_STEADY = (0.01**2, 0.03**2)


@dataclass(frozen=True)
class Randomised:
    """Maps of a network of which some weights were drawn anew.

    Attributes:
        stage: what is random: ``none``, ``head``, ``last block`` (and the head) or ``all``.
        parameters: how many numbers were drawn for it, those of the stages before not counted.
        maps: (B, S, S) float32 in [0, 1].
    """

    stage: str
    parameters: int
    maps: Maps


def randomised_maps(
    model: Classifier, images: Tensor, method: str = AUTO, seed: int = 0, classes: Tensor | None = None
) -> list[Randomised]:
    """Return maps of a network, and of the same with random weights, from the head down.

    The cascading randomisation of Adebayo et al. 2018 (arXiv 1810.03292, section 3.1) in three stages: the head (with
    a trained pooling), the last block or stage of the encoder too, and everything. The class explained stays the one
    of the trained network.

    Weights are drawn anew from a normal distribution of the same root mean square, tensor by tensor, and vectors
    (biases, gains) are shuffled, so that activations keep their scale in any network [our choice; the paper draws
    from each layer's initialisation]. The model itself is left alone.

    Args:
        model: what is explained.
        images: (B, C, S, S), normalised.
        method: a name of ``METHODS``, or ``auto``.
        seed: key of the random weights.
        classes: (B,) int64; None = the predicted ones.

    Returns:
        The trained network's first, then one a stage; a stage without weights (the head of k-NN) is left out.

    Raises:
        ConfigError: as ``choose_method``.
    """
    maps_of = METHODS[choose_method(model, method)].maps
    with undisturbed(model):
        chosen = classes_of(model, images, classes)
    made = [Randomised("none", 0, maps_of(model, images, chosen).cpu().numpy())]
    changed, done = deepcopy(model), set[str]()
    for stage, names in _stages(model):
        fresh = sorted(names - done)
        done |= names
        if fresh:
            count = _randomise(changed, fresh, seed)
            made.append(Randomised(stage, count, maps_of(changed, images, chosen).cpu().numpy()))
    return made


def likeness(made: Sequence[Randomised]) -> list[dict[str, Any]]:
    """Return how alike maps stay when weights become random; those that stay alike do not depend on the weights.

    A method that looks for edges has that fault.

    Returns:
        For each stage but the first: ``stage``, ``parameters`` (drawn anew), ``spearman`` and ``ssim``: means over the
        images where both maps vary, whose number is ``compared``; None where there is none.
    """
    return [
        {"stage": one.stage, "parameters": one.parameters, **_likeness(made[0].maps, one.maps)}
        for one in made[1:]
    ]


def structural_similarity(first: Maps, second: Maps) -> float:
    """Return the mean structural similarity of two maps (H, W) in [0, 1] (Wang et al. 2004, IEEE TIP 13:600).

    Gaussian window of 11 x 11 pixels with σ = 1.5, K1 = 0.01, K2 = 0.03, range 1; the edge is reflected.
    """
    x, y = first.astype(np.float64), second.astype(np.float64)

    def smooth(values: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(ndimage.gaussian_filter(values, _SIGMA, truncate=_REACH))

    mean_x, mean_y = smooth(x), smooth(y)
    var_x, var_y = smooth(x * x) - mean_x**2, smooth(y * y) - mean_y**2
    covariance = smooth(x * y) - mean_x * mean_y
    light, contrast = _STEADY
    above = (2 * mean_x * mean_y + light) * (2 * covariance + contrast)
    below = (mean_x**2 + mean_y**2 + light) * (var_x + var_y + contrast)
    return float((above / below).mean())


def _stages(model: Classifier) -> list[tuple[str, set[str]]]:
    """Return the names of the parameters of each stage, the whole model last."""
    every = {name for name, _ in model.named_parameters()}
    stages = [("head", {name for name in every if not name.startswith("encoder.")})]
    net = model.encoder.net
    if hasattr(net, "group_matcher"):
        blocks = blocks_of(net)
        last = max(blocks.values())
        stages.append(
            ("last block", {f"encoder.net.{name}" for name, number in blocks.items() if number == last})
        )
    return [*stages, ("all", every)]


@torch.no_grad()
def _randomise(model: Classifier, names: list[str], seed: int) -> int:
    """Draw some parameters anew, in place; return how many numbers they are."""
    parameters = dict(model.named_parameters())
    for name in names:
        weight = parameters[name]
        place = keyed.key(seed, f"randomised {name}")
        if weight.ndim < 2:
            order = torch.from_numpy(keyed.permutation(place, weight.numel()))
            weight.copy_(weight.flatten()[order.to(weight.device)].view_as(weight))
            continue
        drawn = torch.randn(weight.shape, generator=keyed.generator(place))
        weight.copy_(drawn.to(weight) * weight.square().mean().sqrt())
    return sum(parameters[name].numel() for name in names)


def _likeness(before: Maps, after: Maps) -> dict[str, Any]:
    pairs = [
        (first, second)
        for first, second in zip(before, after, strict=True)
        if np.ptp(first) and np.ptp(second)
    ]
    if not pairs:
        return {"spearman": None, "ssim": None, "compared": 0}
    ranks = [float(stats.spearmanr(first.ravel(), second.ravel()).statistic) for first, second in pairs]
    alike = [structural_similarity(first, second) for first, second in pairs]
    return {"spearman": float(np.mean(ranks)), "ssim": float(np.mean(alike)), "compared": len(pairs)}
