"""Bare training loops: what one would write for a single experiment, with nothing around it.

The timm network and the heads take part with the same weights and the same arithmetic as in scanprior, but
straight: no loop object, no logging, no keyed draws, and every batch made beforehand and held in memory.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Tensors = dict[str, Tensor]


class BareLoop:
    """Forward, backward and AdamW over batches that are in memory, again and again.

    Args:
        loss: a module that maps a batch to a scalar.
        batches: the batches.
        bf16: whether to run under bfloat16 autocast.
        clip: largest gradient norm of each tensor, where the method prescribes it.
    """

    def __init__(
        self, loss: nn.Module, batches: list[Tensors], *, bf16: bool, clip: float | None = None
    ) -> None:
        self.loss, self.batches, self.bf16, self.clip = loss, batches, bf16, clip
        self.parameters = [p for p in loss.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in self.parameters if p.ndim > 1], "weight_decay": 0.05},
            {"params": [p for p in self.parameters if p.ndim <= 1], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=1e-4, fused=True)
        self.done = 0

    def run(self, steps: int) -> None:
        """Take some steps, going on with the next batch."""
        for _ in range(steps):
            with torch.autocast("cpu", torch.bfloat16) if self.bf16 else nullcontext():
                loss = self.loss(self.batches[self.done % len(self.batches)])
            loss.backward()
            if self.clip is not None:
                self._clip(self.clip)
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.done += 1

    def _clip(self, largest: float) -> None:
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        norms = torch.stack(torch._foreach_norm(gradients))
        factors = (largest / (norms + 1e-6)).clamp_(max=1.0)
        torch._foreach_mul_(gradients, list(factors.unbind()))


class BareGmml(nn.Module):
    """Group-masked reconstruction on images that were corrupted beforehand.

    Args:
        net: timm's ViT without classifier.
        head: tokens to pixels.
        blocks: 0-based numbers of the blocks that the head reads.
    """

    def __init__(self, net: Any, head: nn.Module, blocks: list[int]) -> None:
        super().__init__()
        self.net, self.head, self.blocks = net, head, blocks

    def forward(self, batch: Tensors) -> Tensor:
        """L1 over the hidden pixels; batch: ``clean`` and ``corrupted`` (B, C, H, W), ``mask`` (B, H, W)."""
        x, read = self.net._pos_embed(self.net.patch_embed(batch["corrupted"])), []
        for number, block in enumerate(self.net.blocks):
            x = block(x)
            if number in self.blocks:
                read.append(x)
        tokens = self.net.norm(functools.reduce(torch.add, read) / len(read))[:, 1:]
        clean, mask = batch["clean"], batch["mask"]
        output = self.head(tokens, tuple(clean.shape[-2:]))
        error = (output.float() - clean).abs().mean(1)
        return (error * mask).sum() / mask.sum()


class BareMae(nn.Module):
    """Masked autoencoder on patches that were chosen beforehand.

    Args:
        net: timm's ViT without classifier.
        decoder: encoded visible patches to the hidden ones.
        patch: side of a patch in pixels.
    """

    def __init__(self, net: Any, decoder: nn.Module, patch: int) -> None:
        super().__init__()
        self.net, self.decoder, self.patch = net, decoder, patch

    def forward(self, batch: Tensors) -> Tensor:
        """Squared error on hidden patches; batch: ``images`` (B, C, H, W), ``keep``, ``restore``, ``hidden``."""
        net, keep = self.net, batch["keep"]
        cut = F.unfold(batch["images"], self.patch, stride=self.patch).transpose(1, 2)
        visible = cut.gather(1, keep[..., None].expand(-1, -1, cut.shape[2]))
        x = F.linear(visible, net.patch_embed.proj.weight.flatten(1), net.patch_embed.proj.bias)
        x = x + net.pos_embed[0, 1:][keep]
        first = (net.cls_token + net.pos_embed[:, :1]).expand(len(x), -1, -1).to(x.dtype)
        encoded = net.norm(net.blocks(torch.cat([first, x], dim=1)))
        hidden = batch["hidden"]
        target = cut.gather(1, hidden[..., None].expand(-1, -1, cut.shape[2]))
        variance, mean = torch.var_mean(target, dim=-1, keepdim=True)
        target = (target - mean) / (variance + 1e-6).sqrt()
        predicted = self.decoder(encoded, batch["restore"], hidden)
        return (predicted.float() - target).square().mean()


class BareClassifier(nn.Module):
    """A timm network and a head, trained with weighted cross-entropy.

    Args:
        net: timm's network without classifier.
        head: pooled features to logits.
        class_weights: (classes,).
    """

    def __init__(self, net: nn.Module, head: nn.Module, class_weights: Tensor) -> None:
        super().__init__()
        self.net, self.head = net, head
        self.register_buffer("class_weights", class_weights)

    def forward(self, batch: Tensors) -> Tensor:
        """Weighted cross-entropy; batch: ``images`` (B, C, H, W), ``target`` (B,) int64."""
        logits = self.head(self.net(batch["images"])).float()
        return F.cross_entropy(logits, batch["target"], self.class_weights)


def check_same(name: str, ours: Callable[[], Tensor], bare: Callable[[], Tensor]) -> None:
    """Raise AssertionError unless two losses of the same weights and images agree to 1e-4."""
    with torch.no_grad():
        first, second = float(ours()), float(bare())
    if abs(first - second) > 1e-4 * abs(second):
        raise AssertionError(
            f"{name}: the loss is {first:.6f} and that of the bare loop {second:.6f}, so it is no comparison"
        )
