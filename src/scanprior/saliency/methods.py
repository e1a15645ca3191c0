"""The saliency methods by name, and which of them fits a classifier."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from scanprior.errors import ConfigError
from scanprior.saliency.attention import attention_rollout, gradient_attention, why_unreadable
from scanprior.saliency.gradcam import gradcam, why_no_map
from scanprior.saliency.occlusion import occlusion
from scanprior.tasks.classify import Classifier
from scanprior.tasks.heads import NeighbourHead

AUTO = "auto"


def _never(model: Classifier) -> str | None:
    return None


def _without_gradient(model: Classifier) -> str | None:
    """Return why gradients of a head say nothing."""
    voting = isinstance(model.head, NeighbourHead)
    return "neighbours of a k-NN head vote, which has no useful gradient" if voting else None


def _without_map(model: Classifier) -> str | None:
    return _without_gradient(model) or why_no_map(model)


def _without_attention(model: Classifier) -> str | None:
    return _without_gradient(model) or why_unreadable(model)


@dataclass(frozen=True)
class Method:
    """A way to say where a classifier looks.

    Attributes:
        maps: of a classifier, images (B, C, S, S) and classes (B,) or None: (B, S, S) float32 in [0, 1].
        why_not: why it cannot be used on a classifier; None where it can.
        summary: in a few words.
    """

    maps: Callable[[Classifier, Tensor, Tensor | None], Tensor]
    why_not: Callable[[Classifier], str | None]
    summary: str


METHODS: dict[str, Method] = {
    "gradcam": Method(gradcam, _without_map, "last feature map, weighted by gradients"),
    "gradient_attention": Method(
        gradient_attention, _without_attention, "attention of all blocks, weighted by gradients"
    ),
    "attention_rollout": Method(
        attention_rollout, _without_attention, "attention of all blocks; the same for all classes"
    ),
    "occlusion": Method(occlusion, _never, "what the score loses when windows are covered; slow"),
}
"""``auto`` takes the first that fits. That is never rollout, which fits where the method before it does."""


def check_method(name: str) -> None:
    """Refuse a name that is no method.

    Raises:
        ConfigError: the name and those that there are.
    """
    if name != AUTO and name not in METHODS:
        near = difflib.get_close_matches(name, METHODS, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ConfigError(f"--method {name}: {hint}choose one of {AUTO}, {', '.join(METHODS)}")


def choose_method(model: Classifier, name: str = AUTO) -> str:
    """Return the name of the method for a classifier.

    Args:
        model: what is explained.
        name: the method wanted; ``auto`` is gradcam for encoders with a pyramid, gradient_attention for vision
            transformers whose attention can be read, else occlusion.

    Raises:
        ConfigError: there is no such method, or it does not fit the classifier; says why and what does.
    """
    check_method(name)
    if name == AUTO:
        return next(each for each, method in METHODS.items() if method.why_not(model) is None)
    reason = METHODS[name].why_not(model)
    if reason is not None:
        fitting = [each for each, method in METHODS.items() if method.why_not(model) is None]
        raise ConfigError(f"--method {name}: {reason}; use {' or '.join(fitting)}")
    return name


def saliency_maps(
    model: Classifier, images: Tensor, classes: Tensor | None = None, method: str = AUTO
) -> Tensor:
    """Return where a classifier looks, for one class of every image.

    Args:
        model: left as it was: mode, gradients, attention kernels.
        images: (B, C, S, S), normalised.
        classes: (B,) int64 places in ``model.classes``; None = the predicted ones.
        method: a name of ``METHODS``, or ``auto``.

    Returns:
        (B, S, S) float32, from 0 to 1 in each image; zeros where nothing speaks for the class.

    Raises:
        ConfigError: as ``choose_method``.
    """
    return METHODS[choose_method(model, method)].maps(model, images, classes)
