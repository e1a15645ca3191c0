"""Classes in an order: their logits out of thresholds, and where the order comes from."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from scanprior.errors import ConfigError
from scanprior.evaluation import are_numbers


def ordinal_logits(steps: Tensor) -> Tensor:
    """Return logits of K classes in an order, out of those of the K - 1 steps between them.

    CORN (Shi, Cao and Raschka 2021, arXiv 2111.08851): the logit of step k says whether an image that is at
    least of class k is of a higher one, so P(y > k) is the product of the sigmoids of the steps up to k. It falls
    from class to class whatever the weights, while CORAL (Cao, Mirjalili and Raschka 2020, arXiv 1901.07884)
    has that only at the optimum, and gives all steps the same direction in the features. The logits returned are
    the logarithms of the class probabilities P(y > k - 1) - P(y > k), so that softmax gives these, and their
    cross-entropy is CORN's loss: the binary cross-entropies of each step over the images that reach it,
    summed and divided by the number of images, not by that of all the binary labels [our choice: it is the
    likelihood of the classes, and weights of classes have their usual meaning].

    Args:
        steps: (B, K - 1).

    Returns:
        (B, K) float32, at most 0.
    """
    steps = steps.float()
    nothing = steps.new_zeros(steps.shape[0], 1)
    reached = torch.cat([nothing, F.logsigmoid(steps).cumsum(dim=1)], dim=1)
    stopped = torch.cat([F.logsigmoid(-steps), nothing], dim=1)
    return reached + stopped


def even_steps(classes: int) -> Tensor:
    """Return the step logits (classes - 1,) of equal probabilities."""
    above = torch.arange(classes - 1, 0, -1, dtype=torch.float32)
    return above.log()  # of those at least here one is here, the others are above


def class_order(
    trained: Sequence[str], labels: Collection[str], given: Sequence[str] | None, *, ordinal: bool
) -> list[str]:
    """Return the classes in their order.

    Args:
        trained: classes of the training images, as the manifest has them in order.
        labels: of all images.
        given: the order that the user gives, from least to most.
        ordinal: whether the order matters; then numbers are sorted by value.

    Raises:
        ConfigError: what is given is not all of the labels and nothing else, or text has no order.
    """
    if given is not None:
        known = ", ".join(sorted(labels))
        for name in given:
            if name not in labels:
                raise ConfigError(
                    f"task.classes: no image has the label {name!r}; the labels are {known or 'none'}"
                )
        for name in sorted(set(labels) - set(given)):
            raise ConfigError(
                f"task.classes: the label {name!r} is not among them; the labels are {known}; name it, or give it "
                "another name with data.label_map"
            )
        return list(given)
    if not ordinal:
        return list(trained)
    if not are_numbers(trained):
        raise ConfigError(
            f"task.head: 'ordinal' needs the order of the classes, and {', '.join(trained)} are no numbers; give "
            f"task.classes in order from least to most, such as task.classes=[{', '.join(trained)}]"
        )
    return sorted(trained, key=float)
