"""GMML: group masked model learning (Atito, Awais, Kittler 2022, arXiv 2205.14986; SS-CXR 2211.12944)."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor

from scanprior.encoders import Encoder
from scanprior.objectives.base import Batch, ObjectiveConfig, embedding_std, register
from scanprior.objectives.reconstruction import GroupReconstruction, ReconstructionConfig, head_blocks


class GmmlConfig(ReconstructionConfig):
    """Settings of GMML; the defaults are the published ones."""

    views: Literal[1, 2] = Field(2, description="augmented views of each image in a step")
    head_blocks: str = Field(
        "auto", description="blocks the head reads, as 6-8-10-12; auto = those, scaled to the depth"
    )


@register("gmml")
class Gmml(GroupReconstruction):
    """Rebuild groups of corrupted pixels; L1 on the corrupted pixels only.

    All tokens pass the encoder. The head reads the mean of several blocks after the shared final norm.
    A network that is no plain ViT is read at its final map (our definition).
    """

    Config: ClassVar[type[ObjectiveConfig]] = GmmlConfig
    summary: ClassVar[str] = "rebuild groups of corrupted pixels from the rest of the image (SS-CXR, GMML)"
    defaults: ClassVar[dict[str, object]] = {
        "engine.epochs": 800,
        "engine.batch_size": 64,
        "engine.lr_per_256": 5e-4,
        "engine.warmup_epochs": 10,
        "engine.min_lr": 1e-6,
        "engine.weight_decay": 0.04,
        "engine.weight_decay_end": 0.4,
        "engine.clip_mode": "per_tensor",
        "engine.clip": 3.0,
        "encoder.drop_path": 0.1,
        "encoder.pool": "mean",  # ours: the loss reaches the patch tokens, not the class token
        "augment.preset": "gmml",
    }
    config: GmmlConfig

    def __init__(self, encoder: Encoder, config: GmmlConfig, *, seed: int) -> None:
        super().__init__(encoder, config, seed=seed, blocks=head_blocks(config.head_blocks, encoder.depth))

    @property
    def views(self) -> int:
        """Augmented views of each image that a batch must hold."""
        return self.config.views

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return ``loss``, ``weight`` (corrupted pixels of all views) and ``embedding_std``."""
        clean, corrupted, mask, positions = self.corrupt_views(batch, self.views)
        tokens, pooled = self.encode(corrupted, positions)
        error, count = self.reconstruction(tokens, clean, mask)
        first_view = pooled[: len(batch["position"])]
        return {"loss": error / count, "weight": count, "embedding_std": embedding_std(first_view)}
