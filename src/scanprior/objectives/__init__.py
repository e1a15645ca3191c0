"""Pretraining objectives, one file each; a file put here registers itself."""

from scanprior.objectives.base import Batch, Objective, ObjectiveConfig, embedding_std, get, names, register

__all__ = ["Batch", "Objective", "ObjectiveConfig", "embedding_std", "get", "names", "register"]
