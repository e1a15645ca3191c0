"""A training step of ``mae``, against one put together from lightly's modules (MIT licence).

ViT-Ti/8 at 64 px, one channel, batch 64; 75 % hidden, decoder 128 x 2 with 4 heads, per-patch normalised
targets, mean squared error on the hidden patches; the same fused AdamW, in bfloat16 autocast where the
machine computes it, and in float32. Both draw a new mask in every step. Reference:
``MaskedVisionTransformerTIMM`` and ``MaskedVisionTransformerDecoderTIMM`` of lightly around timm's ViT, in
the order of lightly's documented example. Seconds of a stretch of steps, in turns.
"""

from __future__ import annotations

from typing import Any

import timm
import torch
from torch import Tensor, nn

from benchmarks.bare import BareLoop, Tensors
from benchmarks.measure import Row, Settings, Side, in_turns, speed_row
from scanprior.api.models import cpu_computes_bf16
from scanprior.encoders import EncoderConfig, create_encoder
from scanprior.engine import use_plain_attention
from scanprior.objectives.mae import Mae, MaeConfig

SIZE, PATCH, WIDTH, DEPTH, HEADS, RATIO = 64, 8, 128, 2, 4, 0.75


def run(settings: Settings) -> list[Row]:
    """Measure in float32, and in bfloat16 where the machine computes it."""
    precisions = [True, False] if cpu_computes_bf16() else [False]
    return [_row(settings, bf16) for bf16 in precisions]


def _row(settings: Settings, bf16: bool) -> Row:
    name = f"MAE step against lightly, {'bf16' if bf16 else 'float32'}"
    try:
        theirs = LightlyMae()
    except ImportError as error:
        return Row(name, None, target=1.0, note=f"skipped: {error}; pip install 'lightly>=1.6'")
    batch = settings.of(64, 4)
    images = torch.randn(4, batch, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    ours_batches: list[Tensors] = [
        {"views": part[None], "position": torch.arange(batch) + batch * number}
        for number, part in enumerate(images)
    ]
    ours = BareLoop(_Loss(_mae()), ours_batches, bf16=bf16)
    if bf16 and not torch.cuda.is_available():
        use_plain_attention(ours.loss)  # as the training loop does
    lightly = BareLoop(theirs, [{"images": part} for part in images], bf16=bf16)
    steps = settings.of(10, 1)
    fast, slow = in_turns(lambda: ours.run(steps), lambda: lightly.run(steps), settings.repeats)
    return speed_row(
        name,
        Side("mae", "s/step", [s / steps for s in fast]),
        Side("lightly", "s/step", [s / steps for s in slow]),
        target=1.0,
        note=f"ViT-Ti/{PATCH}, {SIZE} px, batch {batch}",
        details={"parameters": {"mae": _trained(ours.loss), "lightly": _trained(lightly.loss)}},
    )


def _mae() -> Mae:
    encoder = create_encoder(EncoderConfig(patch_size=PATCH), size=SIZE, channels=1)
    config = MaeConfig(mask_ratio=RATIO, decoder_dim=WIDTH, decoder_depth=DEPTH, decoder_heads=HEADS)
    return Mae(encoder, config, seed=0)


def _trained(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


class _Loss(nn.Module):
    def __init__(self, objective: Mae) -> None:
        super().__init__()
        self.objective = objective

    def forward(self, batch: Tensors) -> Tensor:
        return self.objective(batch)["loss"]  # type: ignore[no-any-return]


class LightlyMae(nn.Module):
    """MAE from lightly's modules.

    Raises:
        ImportError: lightly is not installed, or is older than 1.6.
    """

    def __init__(self) -> None:
        super().__init__()
        from lightly.models import utils
        from lightly.models.modules import MaskedVisionTransformerDecoderTIMM, MaskedVisionTransformerTIMM

        self.utils: Any = utils
        vit = timm.create_model(
            "vit_tiny_patch16_224", img_size=SIZE, patch_size=PATCH, in_chans=1, num_classes=0
        )
        self.backbone = MaskedVisionTransformerTIMM(vit=vit, pos_embed_initialization="learn")
        self.backbone.mask_token.requires_grad_(False)  # MAE's encoder sees no mask token
        self.patches = (SIZE // PATCH) ** 2
        self.embed = nn.Linear(vit.embed_dim, WIDTH)
        self.decoder = MaskedVisionTransformerDecoderTIMM(self.patches, WIDTH, DEPTH, HEADS)
        self.predict = nn.Linear(WIDTH, PATCH**2)

    def forward(self, batch: Tensors) -> Tensor:
        """Mean squared error on the hidden patches; batch: ``images`` (B, 1, H, W)."""
        images, utils, length = batch["images"], self.utils, 1 + self.patches
        keep, hidden = utils.random_token_mask((len(images), length), mask_ratio=RATIO, device=images.device)
        encoded = self.embed(self.backbone.encode(images, idx_keep=keep))
        tokens = utils.repeat_token(self.decoder.mask_token, (len(images), length))
        tokens = utils.set_at_index(tokens, keep, encoded.type_as(tokens))
        predicted = self.predict(utils.get_at_index(self.decoder(tokens), hidden))
        patches = utils.get_at_index(utils.patchify(images, PATCH), hidden - 1)
        return (predicted.float() - utils.normalize_mean_var(patches)).square().mean()
