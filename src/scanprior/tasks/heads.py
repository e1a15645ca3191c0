"""Heads: from the pooled vector of an image to the logits of its classes."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scanprior import keyed
from scanprior.tasks.ordinal import even_steps, ordinal_logits

Kind = Literal["multiclass", "multilabel"]


class LinearHead(nn.Module):
    """Dropout and one linear layer on the pooled features.

    The features are normalised without parameters first (LayerNorm without affine), so that one
    learning rate serves encoders of different scale [our definition], unless ``normalise`` is off. Dropout
    is keyed by sample, so that it does not change with processes and micro-batches.
    """

    def __init__(
        self, width: int, classes: int, dropout: float, seed: int = 0, normalise: bool = True
    ) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False) if normalise else nn.Identity()
        self.dropout, self.seed = dropout, seed
        self.linear = nn.Linear(width, classes)
        nn.init.trunc_normal_(self.linear.weight, std=0.01)
        nn.init.zeros_(self.linear.bias)

    def forward(self, pooled: Tensor, positions: Tensor | None = None) -> Tensor:
        """Map pooled features (B, D) to logits (B, classes); ``positions`` (B,) are needed in training."""
        features = self.norm(pooled)
        if self.training and self.dropout and positions is not None:
            draws = keyed.uniform(keyed.key(self.seed, "head dropout"), positions.cpu(), features.shape[1])
            kept = torch.from_numpy((draws >= self.dropout) / (1 - self.dropout))
            features = features * kept.to(features.device, features.dtype)
        return self.linear(features)  # type: ignore[no-any-return]


class OrdinalHead(LinearHead):
    """A linear head for classes in an order: one logit a step between them, made logits of the classes.

    It begins with equal probabilities, as a linear head does [our definition].
    """

    def __init__(
        self, width: int, classes: int, dropout: float, seed: int = 0, normalise: bool = True
    ) -> None:
        super().__init__(width, classes - 1, dropout, seed, normalise)
        with torch.no_grad():
            self.linear.bias.copy_(even_steps(classes))

    def forward(self, pooled: Tensor, positions: Tensor | None = None) -> Tensor:
        """Map pooled features (B, D) to logits (B, classes), the logarithms of their probabilities."""
        return ordinal_logits(super().forward(pooled, positions))


class NeighbourHead(nn.Module):
    """Weighted nearest-neighbour votes over a bank of labelled training features.

    The weight of a neighbour is exp(cosine / temperature) (Wu et al. 2018, section 3.4). Logits are
    log votes (multi-class) or the log-odds of the votes (multi-label).
    """

    bank: Tensor
    targets: Tensor

    def __init__(
        self, width: int, classes: int, images: int, kind: Kind, neighbours: int, temperature: float
    ) -> None:
        super().__init__()
        self.kind, self.neighbours, self.temperature = kind, neighbours, temperature
        self.register_buffer("bank", torch.zeros(images, width))
        self.register_buffer("targets", torch.zeros(images, classes))

    def fill(self, features: Tensor, targets: Tensor) -> None:
        """Store features (N, D) and targets: (N, classes) in [0, 1], NaN where missing."""
        self.bank.copy_(F.normalize(features, dim=1))
        self.targets.copy_(targets)

    def forward(self, pooled: Tensor, positions: Tensor | None = None) -> Tensor:
        """Map pooled features (B, D) to logits (B, classes)."""
        similarity = F.normalize(pooled.float(), dim=1) @ self.bank.T
        near, index = similarity.topk(min(self.neighbours, len(self.bank)), dim=1)
        weight = (near / self.temperature).softmax(dim=1).unsqueeze(2)
        targets = self.targets[index]
        known = ~targets.isnan()
        votes = (weight * targets.nan_to_num(0.5) * known).sum(1) / (weight * known).sum(1).clamp(min=1e-6)
        votes = votes.clamp(1e-4, 1 - 1e-4)
        return votes.log() if self.kind == "multiclass" else votes.logit()
