"""What a pretraining objective is, and the register of all of them."""

from __future__ import annotations

import difflib
import importlib
import math
import pkgutil
from collections.abc import Callable
from typing import Any, ClassVar, TypeVar

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from scanprior.encoders import Encoder, seed_drop_path
from scanprior.errors import ConfigError

Batch = dict[str, Tensor]


class ObjectiveConfig(BaseModel):
    """Base of the objectives' configurations: unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Objective(nn.Module):
    """A pretraining method: an encoder, what is hidden from it, heads, and a loss.

    A batch is a dict of ``views`` (V, B, C, H, W) float32, normalised; ``donors`` of the same shape,
    for each sample the same view of another image, where ``needs_donors``; and ``position`` int64 (B,),
    the samples' places in the training stream, on the CPU.

    Attributes:
        Config: the objective's configuration; its fields document every key.
        summary: one line for listings.
        defaults: published settings of engine and augmentation, as dotted keys.
        supports_accumulation: whether the loss of a batch is a mean over its parts.
        encoder: what is kept after pretraining.
    """

    Config: ClassVar[type[ObjectiveConfig]] = ObjectiveConfig
    name: ClassVar[str] = ""
    summary: ClassVar[str] = ""
    defaults: ClassVar[dict[str, object]] = {}
    supports_accumulation: ClassVar[bool] = True

    def __init__(self, encoder: Encoder, config: Any, *, seed: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.config = config
        self.seed = seed
        seed_drop_path(encoder, seed)

    @property
    def views(self) -> int:
        """Augmented views of each image that a batch must hold."""
        return 1

    @property
    def needs_donors(self) -> bool:
        """Whether a batch must hold donors."""
        return False

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return ``loss``, a scalar mean; ``weight``, what it was divided by; and scalars to log.

        Without ``weight`` the loss is a mean over images.
        """
        raise NotImplementedError

    def prepare(self, batch: Batch) -> str | None:
        """Settle what only a measurement can, before a training begins; return a sentence about it, if any.

        What is settled belongs into the state of the module, so that a resumed training keeps it.
        """
        return None

    def exported_encoder(self) -> Encoder:
        """Return the encoder that the run keeps."""
        return self.encoder

    def after_step(self, step: int, total_steps: int) -> None:
        """Update what follows the weights, after optimiser step ``step`` (0-based) of ``total_steps``."""

    def preview(self, batch: Batch) -> dict[str, Tensor]:
        """Return pictures of the first view, (B, C, H, W) each, in normalised space.

        Keys: ``input``, ``corrupted``, ``rebuilt`` (rebuilt only where hidden) and ``raw`` (the network's
        output everywhere). Leaves weights and training mode as they were.
        """
        raise NotImplementedError


_registry: dict[str, type[Objective]] = {}
AnyObjective = TypeVar("AnyObjective", bound=type[Objective])


def register(name: str) -> Callable[[AnyObjective], AnyObjective]:
    """Register an Objective class under a name; a module of this package needs no other step."""

    def add(objective: AnyObjective) -> AnyObjective:
        if name in _registry and _registry[name].__qualname__ != objective.__qualname__:
            raise ValueError(f"two objectives are called {name!r}")
        objective.name = name
        _registry[name] = objective
        return objective

    return add


def names() -> list[str]:
    """Return the names of all objectives."""
    _discover()
    return sorted(_registry)


def get(name: str) -> type[Objective]:
    """Return the objective of a name.

    Raises:
        ConfigError: there is none; the message suggests near ones.
    """
    _discover()
    if name not in _registry:
        near = difflib.get_close_matches(name, _registry, n=1)
        hint = f"did you mean {near[0]}?" if near else f"choose one of {', '.join(sorted(_registry))}"
        raise ConfigError(f"objective: there is no objective {name!r}; {hint}")
    return _registry[name]


def _discover() -> None:
    """Import every module of the package, so that each registers itself."""
    package = importlib.import_module("scanprior.objectives")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{module.name}")


def view_positions(position: Tensor, views: int) -> Tensor:
    """Return a stream position for each row of views flattened view by view: int64 (V·B,), on the CPU."""
    return (position.cpu()[None] * views + torch.arange(views)[:, None]).flatten()


@torch.no_grad()
def embedding_std(pooled: Tensor) -> Tensor:
    """Return how widely a batch of embeddings (B, D) is spread, as a scalar.

    The mean over dimensions of the standard deviation of the L2-normalised embeddings, times √D: about
    1 when they are spread over the sphere, 0 when all are equal (collapse). Our scaling of the measure
    of Chen and He 2021 (arXiv 2011.10566, section 4.1).
    """
    unit = F.normalize(pooled.detach().float(), dim=1)
    return unit.std(dim=0, correction=0).mean() * math.sqrt(unit.shape[1])
