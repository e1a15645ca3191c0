"""SiT: group reconstruction with a contrastive head and an EMA teacher (Atito et al. 2021, arXiv 2104.03602)."""

from __future__ import annotations

import copy
import math
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from scanprior import keyed
from scanprior.encoders import Encoder
from scanprior.masking import Kind
from scanprior.objectives.base import Batch, ObjectiveConfig, embedding_std, register
from scanprior.objectives.contrastive import (
    ProjectionHead,
    cross_view_loss,
    gather,
    processes,
    sum_over_processes,
)
from scanprior.objectives.reconstruction import GroupReconstruction, ReconstructionConfig


class SitConfig(ReconstructionConfig):
    """Settings of SiT; the defaults are the published ones."""

    kinds: tuple[Kind, ...] = Field(("zeros",), min_length=1, description="fills, one drawn per image")
    max_replace: float = Field(0.5, gt=0, lt=1, description="largest part corrupted")
    reconstruction_weight: float = Field(
        1.0, ge=0, description="λ of the reconstruction; 5 is advised for small data sets"
    )
    temperature: float = Field(0.2, gt=0, description="τ of the contrastive loss")
    momentum: float = Field(
        0.996, ge=0, le=1, description="first momentum of the teacher; ends at 1 (cosine)"
    )
    head_hidden: int = Field(4096, ge=1, description="width of the projection head's hidden layers")
    head_out: int = Field(256, ge=1, description="width of the projection")
    export: Literal["student", "teacher"] = Field("student", description="whose encoder the run keeps")


@register("sit")
class Sit(GroupReconstruction):
    """Rebuild corrupted views, and match them to an EMA teacher's clean views among the whole batch.

    The head reads the final tokens. The teacher's encoder runs as in inference (no drop path); both
    projection heads use the statistics of all views of the global batch (our definition). Every process
    computes the contrastive loss of the global batch, so parts of a batch cannot be accumulated.
    """

    Config: ClassVar[type[ObjectiveConfig]] = SitConfig
    summary: ClassVar[str] = "rebuild corrupted groups and tell images apart with an EMA teacher (SiT)"
    supports_accumulation: ClassVar[bool] = False
    defaults: ClassVar[dict[str, object]] = {
        "engine.epochs": 800,
        "engine.batch_size": 64,
        "engine.lr_per_256": 5e-4,
        "engine.warmup_epochs": 10,
        "engine.min_lr": 1e-6,
        "engine.weight_decay": 0.04,
        "engine.weight_decay_end": 0.1,
        "engine.clip_mode": "per_tensor",
        "engine.clip": 3.0,
        "encoder.drop_path": 0.1,
        "augment.preset": "sit",
    }
    trains_pooled: ClassVar[bool] = True
    config: SitConfig

    def __init__(self, encoder: Encoder, config: SitConfig, *, seed: int) -> None:
        super().__init__(encoder, config, seed=seed, blocks=[encoder.depth - 1])
        with keyed.seeded(keyed.key(seed, "projection_head")):
            self.projection = ProjectionHead(encoder.dim, config.head_hidden, config.head_out)
        self.teacher = nn.ModuleDict(
            {"encoder": copy.deepcopy(encoder), "projection": copy.deepcopy(self.projection)}
        ).requires_grad_(False)
        self.train(self.training)

    @property
    def views(self) -> int:
        """Two: each is matched to the other."""
        return 2

    def train(self, mode: bool = True) -> Sit:
        """Set the mode of the student; the teacher's encoder stays in evaluation."""
        super().train(mode)
        self.teacher["encoder"].eval()
        return self

    def exported_encoder(self) -> Encoder:
        """Return the encoder that the run keeps: the student's or the teacher's."""
        kept = self.teacher["encoder"] if self.config.export == "teacher" else self.encoder
        assert isinstance(kept, Encoder)
        return kept

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return ``loss`` (of the global batch), its two parts, and ``embedding_std``."""
        clean, corrupted, mask, positions = self.corrupt_views(batch, 2)
        tokens, pooled = self.encode(corrupted, positions)
        error, count = self.reconstruction(tokens, clean, mask)
        # Averaging gradients over W processes turns W·error/total into the error of the global batch.
        reconstruction = error * processes() / sum_over_processes(count)

        with torch.no_grad():
            keys = self._project(self.teacher["encoder"](clean).pooled, self.teacher["projection"])
        queries = self._project(pooled, self.projection)
        contrastive = cross_view_loss(queries, keys, self.config.temperature)
        return {
            "loss": contrastive + self.config.reconstruction_weight * reconstruction,
            "loss_contrastive": contrastive.detach(),
            "loss_reconstruction": reconstruction.detach(),
            "embedding_std": embedding_std(pooled.chunk(2)[0]),
        }

    def _project(self, pooled: Tensor, head: nn.Module) -> Tensor:
        """Project both views' pooled vectors (2·B, dim) of all processes: (2, W·B, out)."""
        views = [gather(view) for view in pooled.chunk(2)]
        projected: Tensor = head(torch.cat(views))
        return projected.view(2, -1, projected.shape[1])

    @torch.no_grad()
    def after_step(self, step: int, total_steps: int) -> None:
        """Move the teacher towards the student; the momentum goes from its first value to 1 by a cosine."""
        momentum = 1 - (1 - self.config.momentum) * (math.cos(math.pi * step / max(total_steps, 1)) + 1) / 2
        pairs = ((self.teacher["encoder"], self.encoder), (self.teacher["projection"], self.projection))
        for teacher, student in pairs:
            torch._foreach_lerp_(list(teacher.parameters()), list(student.parameters()), 1 - momentum)
            for follower, buffer in zip(teacher.buffers(), student.buffers(), strict=True):
                follower.copy_(buffer)
