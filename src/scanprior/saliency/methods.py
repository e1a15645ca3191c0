"""The saliency methods by name, and which of them fits a classifier."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from scanprior.encoders import PyramidEncoder
from scanprior.errors import ConfigError
from scanprior.saliency.attention import attention_rollout, gradient_attention, why_unreadable
from scanprior.saliency.gradcam import FEW_CELLS, cells_along, gradcam, why_no_map
from scanprior.saliency.layercam import layercam, why_no_level
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


def _without_level(model: Classifier) -> str | None:
    return _without_gradient(model) or why_no_level(model)


def _is_fine(model: Classifier) -> bool:
    """Return whether the last map is fine enough, or the only one there is."""
    side = cells_along(model.encoder) if isinstance(model.encoder, PyramidEncoder) else None
    return side is None or side >= FEW_CELLS or why_no_level(model) is not None


def _always(model: Classifier) -> bool:
    return True


def _without_attention(model: Classifier) -> str | None:
    return _without_gradient(model) or why_unreadable(model)


@dataclass(frozen=True)
class Method:
    """A way to say where a classifier looks.

    Attributes:
        maps: of a classifier, images (B, C, S, S) and classes (B,) or None: (B, S, S) float32 in [0, 1].
        why_not: why it cannot be used on a classifier; None where it can.
        summary: in a few words.
        auto: whether ``auto`` takes it where it can be used.
    """

    maps: Callable[[Classifier, Tensor, Tensor | None], Tensor]
    why_not: Callable[[Classifier], str | None]
    summary: str
    auto: Callable[[Classifier], bool] = _always


METHODS: dict[str, Method] = {
    "gradcam": Method(gradcam, _without_map, "last feature map, weighted by gradients", _is_fine),
    "layercam": Method(
        layercam, _without_level, "an earlier feature map, weighted by gradients cell by cell"
    ),
    "gradient_attention": Method(
        gradient_attention, _without_attention, "attention of all blocks, weighted by gradients"
    ),
    "attention_rollout": Method(
        attention_rollout, _without_attention, "attention of all blocks; the same for all classes"
    ),
    "occlusion": Method(occlusion, _never, "what the score loses when windows are covered; slow"),
}
"""``auto`` takes the first that fits and is fine enough; never rollout, as what is before it fits where it does."""


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
        name: the method wanted; ``auto`` is gradcam for encoders with a pyramid, or layercam where its last map has
            fewer than 5 x 5 cells, gradient_attention for vision transformers whose attention can be read, else
            occlusion.

    Raises:
        ConfigError: there is no such method, or it does not fit the classifier; says why and what does.
    """
    check_method(name)
    if name == AUTO:
        usable = (each for each, method in METHODS.items() if method.why_not(model) is None)
        return next(each for each in usable if METHODS[each].auto(model))
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
