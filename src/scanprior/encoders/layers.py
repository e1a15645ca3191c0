"""Where in a network a weight stands: its layer, which scales learning rates, and its block."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from timm.models._manipulate import group_with_matcher

from scanprior.encoders.adapters import plain_name

_NOWHERE = ""
"""A name that no network has, so that what shares its group is what the network's own grouping leaves out."""


def layers_of(net: Any) -> dict[str, int]:
    """Return the layer of every parameter by name, 0 the stem, as timm counts them for layer decay.

    Adapters are of the layer of the weight that they adapt.

    Args:
        net: with timm's ``group_matcher``.
    """
    plain = {name: plain_name(name) for name, _ in net.named_parameters()}
    numbers = _groups(plain.values(), net.group_matcher(coarse=False))
    return {name: numbers[as_loaded] for name, as_loaded in plain.items()}


def blocks_of(net: Any) -> dict[str, int]:
    """Return the block of every parameter by name: 0 before the first, then 1, 2 …

    Blocks are what the network's own ``group_matcher`` counts coarsely: the blocks of a ViT, a Hiera or SAM 2's
    trunk, the stages of a Swin, ConvNeXt, ResNet or VMamba. What stands after them, such as the last norm, is of the
    last one. Of the parameters that the grouping leaves out, those that the network holds before its first block are
    before it, and the others are of the last [our definition].

    Args:
        net: with timm's ``group_matcher``, and without adapters.
    """
    names = [name for name, _ in net.named_parameters()]
    groups = _groups([*names, _NOWHERE], net.group_matcher(coarse=True))
    ungrouped = groups.pop(_NOWHERE)
    blocks = {name: group for name, group in groups.items() if group != ungrouped}
    last, first = max(blocks.values()), next(place for place, name in enumerate(names) if blocks.get(name))
    return {name: blocks.get(name, 0 if place < first else last) for place, name in enumerate(names)}


def _groups(names: Iterable[str], matcher: Any) -> dict[str, int]:
    """Return the group of every name by a matcher of timm's: patterns, or a function."""
    found: dict[str, int] = group_with_matcher(((name, None) for name in names), matcher, reverse=True)
    return found
