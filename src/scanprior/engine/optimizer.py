"""Parameter groups, schedules and clipping."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from scanprior.engine.settings import EngineConfig


@dataclass(frozen=True)
class Schedules:
    """Learning rate and weight decay as functions of the step, 0-based.

    Linear warm-up to ``peak_lr``, then a cosine that ends at ``min_lr`` on the last step; weight
    decay follows a cosine from its start to its end over all steps.
    """

    config: EngineConfig
    total: int
    warmup: int

    def lr(self, step: int) -> float:
        """Return the learning rate of a step."""
        peak, low = self.config.peak_lr(), min(self.config.min_lr, self.config.peak_lr())
        if step < self.warmup:
            return peak * (step + 1) / self.warmup
        if self.config.schedule == "constant":
            return peak
        return _cosine(peak, low, step - self.warmup, self.total - self.warmup)

    def weight_decay(self, step: int) -> float:
        """Return the weight decay of a step."""
        end = self.config.weight_decay_end
        return (
            self.config.weight_decay
            if end is None
            else _cosine(self.config.weight_decay, end, step, self.total)
        )


def _cosine(start: float, end: float, step: int, steps: int) -> float:
    done = step / max(1, steps - 1)
    return end + 0.5 * (start - end) * (1 + math.cos(math.pi * min(1.0, done)))


def parameter_groups(module: nn.Module, config: EngineConfig) -> list[dict[str, Any]]:
    """Group the trainable parameters of a module by weight decay and learning-rate scale.

    Biases and 1-D parameters get no weight decay, nor do those that the module or a module inside it names in
    its ``no_weight_decay``, a frozenset.
    With ``layer_decay`` the learning rate of a parameter is scaled by
    ``layer_decay ** depth_from_head``, where the depth comes from ``module.layer_depth(name)``.
    """
    exempt = _exempt(module)
    groups: dict[tuple[bool, float], dict[str, Any]] = {}
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        decays = parameter.ndim > 1 and name not in exempt
        scale = 1.0
        if config.layer_decay is not None:
            scale = config.layer_decay ** module.layer_depth(name)  # type: ignore[operator]
        group = groups.setdefault(
            (decays, scale),
            {"params": [], "names": [], "decays": decays, "lr_scale": scale, "weight_decay": 0.0},
        )
        group["params"].append(parameter)
        group["names"].append(name)
    return list(groups.values())


def _exempt(module: nn.Module) -> set[str]:
    """Return the full names of the parameters that modules want without weight decay; timm's methods do not count."""
    named = ((place, getattr(part, "no_weight_decay", None)) for place, part in module.named_modules())
    return {
        f"{place}.{name}" if place else name
        for place, names in named
        if isinstance(names, frozenset)
        for name in names
    }


def make_optimizer(module: nn.Module, config: EngineConfig) -> torch.optim.AdamW:
    """Return AdamW over the parameter groups of a module."""
    return torch.optim.AdamW(
        parameter_groups(module, config), lr=config.peak_lr(), betas=config.betas, fused=True
    )


def set_step(optimizer: torch.optim.Optimizer, schedules: Schedules, step: int) -> tuple[float, float]:
    """Put the learning rate and weight decay of a step into the optimiser; return both."""
    lr, decay = schedules.lr(step), schedules.weight_decay(step)
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]
        group["weight_decay"] = decay if group["decays"] else 0.0
    return lr, decay


def clip_gradients(parameters: list[nn.Parameter], config: EngineConfig) -> Tensor:
    """Clip in place; return the global gradient norm before clipping, a scalar."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    norms = torch._foreach_norm(gradients)
    total: Tensor = torch.linalg.vector_norm(torch.stack(norms))
    if config.clip is None:
        return total
    sizes = total if config.clip_mode == "global" else torch.stack(norms)
    factors = (config.clip / (sizes + 1e-6)).clamp(max=1.0)
    torch._foreach_mul_(gradients, factors if factors.ndim == 0 else list(factors.unbind()))
    return total
