"""What the masked autoencoders share: hiding complex patches more often, and the error on those that are hidden."""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from scanprior.encoders import Encoder
from scanprior.masking import Guidance, GuidedMask, PatchMask, guided_patch_mask, unit_weights
from scanprior.objectives.base import Objective, ObjectiveConfig


class GuidedConfig(ObjectiveConfig):
    """Settings of every masked autoencoder."""

    mask_ratio: float = Field(0.75, gt=0, lt=1, description="part of the patches hidden from the encoder")
    guidance: Guidance = Field(
        default_factory=lambda: Guidance(),
        description="which patches are hidden more often; beta 0 = at random",
    )


class GuidedObjective(Objective):
    """A masked autoencoder whose mask may follow the image, and its loss too."""

    config: GuidedConfig
    progress: Tensor

    def __init__(self, encoder: Encoder, config: Any, *, seed: int) -> None:
        super().__init__(encoder, config, seed=seed)
        self.register_buffer("progress", torch.zeros((), dtype=torch.float64))

    def after_step(self, step: int, total_steps: int) -> None:
        """Keep how much of the training is over, for the warm-up of the guidance."""
        self.progress.fill_((step + 1) / total_steps)

    def hide(self, images: Tensor, side: int, position: Tensor) -> GuidedMask:
        """Return which squares of ``side`` pixels of images (B, C, H, W) are hidden, and their scores."""
        mask, scores = guided_patch_mask(
            images, side, self.config.mask_ratio, self.config.guidance,
            progress=float(self.progress), seed=self.seed, positions=position.cpu(), purpose=self.name,
        )  # fmt: skip
        return GuidedMask(PatchMask(*(part.to(images.device) for part in mask)), scores)

    def loss_of(self, error: Tensor, hidden: Tensor, scores: Tensor | None) -> dict[str, Tensor]:
        """Return ``loss``, and ``weight`` where complex patches count more: the sum of what they count.

        Args:
            error: of the hidden patches (B, M).
            hidden: which those are, int64 (B, M).
            scores: (B, N), of all patches, or None where there is no guidance.
        """
        if scores is None or not self.config.guidance.loss_weight:
            return {"loss": error.mean()}
        counts = unit_weights(scores.gather(1, hidden), self.config.guidance)
        weight = counts.sum().clamp(min=1e-6)
        return {"loss": (error * counts).sum() / weight, "weight": weight}


def standardised(patches: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return patches (B, M, D) of mean 0 and variance 1, and the mean and deviation (B, M, 1) to undo it."""
    variance, mean = torch.var_mean(patches, dim=-1, keepdim=True)
    deviation = (variance + 1e-6).sqrt()
    return (patches - mean) / deviation, mean, deviation


def hidden_ids(hidden: Tensor) -> Tensor:
    """Return which patches are hidden, of bool (B, N) with as many in each image: int64 (B, M), rising."""
    return hidden.nonzero()[:, 1].view(len(hidden), -1)
