"""Known public datasets. A new one is one file here, which calls ``@layout(name, detect=…)``.

A layout recognises a folder and makes its manifest: what the names of files and folders and the
published tables say about patients, splits and labels, which no general rule can know.
Every module of this package is imported below, so that no list has to be kept.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from scanprior.data.manifest import Manifest


@dataclass(frozen=True)
class Layout:
    """A known dataset.

    Attributes:
        name: what the user writes after ``--layout``.
        detect: says whether a folder is the dataset; it looks at a few names and never walks the tree.
        build: makes the manifest of such a folder, or raises `DataError`.
    """

    name: str
    detect: Callable[[Path], bool]
    build: Callable[[Path], Manifest]


LAYOUTS: dict[str, Layout] = {}


def layout(
    name: str, detect: Callable[[Path], bool]
) -> Callable[[Callable[[Path], Manifest]], Callable[[Path], Manifest]]:
    """Register the decorated function as the builder of the dataset ``name``."""

    def register(build: Callable[[Path], Manifest]) -> Callable[[Path], Manifest]:
        LAYOUTS[name] = Layout(name, detect, build)
        return build

    return register


for _module in pkgutil.iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")
