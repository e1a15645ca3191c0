"""What can be set about a training run."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from scanprior.config import Config

Precision = Literal["auto", "32", "bf16", "16"]


class EngineConfig(Config):
    """The training loop. ``batch_size`` is the global one: processes and accumulation split it."""

    seed: int = Field(0, description="key of every random decision of the run")
    epochs: float | None = Field(None, gt=0, description="passes over the training images")
    steps: int | None = Field(None, gt=0, description="optimiser steps; instead of epochs")
    batch_size: int = Field(64, gt=0, description="images per optimiser step, over all processes")
    micro_batch: int | None = Field(
        None, gt=0, description="images per forward pass of one process; smaller means accumulation"
    )
    lr: float | None = Field(None, gt=0, description="peak learning rate; instead of lr_per_256")
    lr_per_256: float = Field(5e-4, gt=0, description="peak learning rate at batch 256, scaled linearly")
    min_lr: float = Field(1e-6, ge=0, description="learning rate at the end of the cosine")
    schedule: Literal["cosine", "constant"] = Field("cosine", description="after the warm-up")
    warmup_epochs: float | None = Field(None, ge=0, description="linear warm-up; instead of warmup_fraction")
    warmup_fraction: float = Field(0.05, ge=0, lt=1, description="linear warm-up, share of all steps")
    weight_decay: float = Field(0.05, ge=0, description="AdamW; none on biases and 1-D parameters")
    weight_decay_end: float | None = Field(None, ge=0, description="end of its cosine; empty = constant")
    betas: tuple[float, float] = Field((0.9, 0.999), description="AdamW")
    layer_decay: float | None = Field(
        None, gt=0, le=1, description="learning rate x this for every layer further from the head"
    )
    clip: float | None = Field(None, gt=0, description="largest gradient norm; empty = no clipping")
    clip_mode: Literal["global", "per_tensor"] = Field("global", description="norm of all, or of each tensor")
    ema: float | None = Field(None, gt=0, lt=1, description="decay of the averaged weights that are kept")
    precision: Precision = Field(
        "auto",
        description="auto = bf16 where the machine computes it natively and the encoder gains, else 32",
    )
    accelerator: str = Field("auto", description="auto, cpu, cuda, mps")
    devices: int = Field(1, gt=0, description="processes, one device each")
    strategy: Literal["auto", "ddp"] = Field("auto", description="how several processes work together")
    workers: int = Field(0, ge=0, description="processes that prepare batches; 0 = in the training process")
    checkpoint_every: int | None = Field(
        None, gt=0, description="steps; empty = at the ends of epochs, at least 50 steps apart"
    )
    log_every: int = Field(10, gt=0, description="steps between rows of metrics.jsonl")
    logger: Literal["none", "tensorboard", "wandb"] = Field("none", description="besides metrics.jsonl")

    @field_validator("precision", mode="before")
    @classmethod
    def _number_or_name(cls, value: object) -> object:
        return str(value) if isinstance(value, int) else value  # YAML reads 32 as a number

    @model_validator(mode="after")
    def _one_length(self) -> EngineConfig:
        if (self.epochs is None) == (self.steps is None):
            found = "neither" if self.epochs is None else f"epochs={self.epochs:g} and steps={self.steps}"
            raise ValueError(f"set either epochs or steps, found {found}")
        return self

    def peak_lr(self) -> float:
        """Return the peak learning rate (linear scaling rule unless ``lr`` is given)."""
        return self.lr if self.lr is not None else self.lr_per_256 * self.batch_size / 256

    def total_steps(self, images: int) -> int:
        """Return the number of optimiser steps for ``images`` training images."""
        if self.steps is not None:
            return self.steps
        assert self.epochs is not None
        return max(1, round(self.epochs * images / self.batch_size))

    def steps_per_epoch(self, images: int) -> float:
        """Return optimiser steps per pass over ``images`` training images; need not be whole."""
        return images / self.batch_size

    def warmup_steps(self, images: int) -> int:
        """Return the steps of linear warm-up, at most half of the run."""
        total = self.total_steps(images)
        if self.warmup_epochs is None:
            return round(self.warmup_fraction * total)
        return min(round(self.warmup_epochs * self.steps_per_epoch(images)), total // 2)
