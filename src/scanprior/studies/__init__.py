"""Studies: many runs of a recipe, and what they say together. Imported on first use, for light workers."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scanprior.studies.conducting import study
    from scanprior.studies.recipe import Recipe, known_recipes, read_recipe

_MODULES = {"study": "conducting", "Recipe": "recipe", "known_recipes": "recipe", "read_recipe": "recipe"}

__all__ = ["Recipe", "known_recipes", "read_recipe", "study"]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(f"scanprior.studies.{_MODULES[name]}"), name)
    raise AttributeError(f"module 'scanprior.studies' has no attribute {name!r}")
