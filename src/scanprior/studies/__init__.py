"""Studies: many runs of a recipe, and what they say together."""

from scanprior.studies.conducting import study
from scanprior.studies.recipe import Recipe, known_recipes, read_recipe

__all__ = ["Recipe", "known_recipes", "read_recipe", "study"]
