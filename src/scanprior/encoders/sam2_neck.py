"""The image encoder of SAM 2: the Hiera trunk with its feature-pyramid neck.

Ravi et al. 2024, arXiv 2408.00714: four lateral 1x1 convolutions to 256 channels, and a top-down path (nearest
upsampling, sum) that reaches from the map at stride 32 into that at stride 16 alone.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scanprior.encoders.base import EncoderConfig, Features, PyramidEncoder
from scanprior.errors import ConfigError

NECK_DIM = 256


class Sam2ImageEncoder(nn.Module):
    """Trunk and neck, named as in the official checkpoints, where they stand below ``image_encoder.``.

    Args:
        trunk: timm's ``sam2_hiera_*`` without a head.
    """

    def __init__(self, trunk: Any) -> None:
        super().__init__()
        self.trunk = trunk
        self.trunk.head = nn.Identity()  # timm's, of its classifiers
        self.neck = _Neck([info["num_chs"] for info in trunk.feature_info])
        self.pretrained_cfg = {"first_conv": "trunk.patch_embed.proj"}

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return the neck's maps of images (B, C, H, W), fine to coarse: (B, 256, H/4, W/4) to (B, 256, H/32, W/32)."""
        _, maps = self.trunk.forward_intermediates(images)
        made: list[Tensor] = self.neck(maps)
        return made

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Say which layer a parameter is of, for layer decay; the neck comes after the last block."""
        return {
            "stem": r"^trunk\.pos_embed|^trunk\.patch_embed",
            "blocks": [(r"^trunk\.blocks\.(\d+)", None), (r"^neck", (99_999,))],
        }


class _Neck(nn.Module):
    def __init__(self, channels: list[int]) -> None:
        super().__init__()
        # the official list begins with the coarsest level, and every convolution has a container of its own
        self.convs = nn.ModuleList(
            nn.Sequential(OrderedDict(conv=nn.Conv2d(width, NECK_DIM, 1))) for width in reversed(channels)
        )

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        fine_to_coarse = [conv(level) for conv, level in zip(reversed(self.convs), maps, strict=True)]
        coarse, middle = fine_to_coarse[-1], fine_to_coarse[-2]
        fine_to_coarse[-2] = middle + F.interpolate(coarse, size=middle.shape[2:], mode="nearest")
        return fine_to_coarse


class Sam2FpnEncoder(PyramidEncoder):
    """SAM 2's image encoder with its neck.

    Tokens and the pooled vector are those of ``vision_features``, the neck's map at stride 16, as arXiv 2505.19779
    uses it: the mean over its cells. The pyramid is the neck's four maps.
    """

    def __init__(self, trunk: Any, config: EncoderConfig, *, size: int, channels: int) -> None:
        super().__init__()
        if config.pool == "cls":
            raise ConfigError(f"encoder.pool: {config.name} has no class token; use auto or mean")
        self.net = Sam2ImageEncoder(trunk)
        self.name, self.size, self.channels = config.name, size, channels
        self.num_prefix_tokens = 0
        self.dim = self.token_dim = NECK_DIM
        self.stride = 16
        self.depth = len(trunk.feature_info)

    def final_map(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return the neck's map at stride 16 and its four maps; sizes that 32 divides."""
        pyramid: list[Tensor] = self.net(images.contiguous(memory_format=torch.channels_last))
        return pyramid[-2], pyramid

    def features_of(self, final: Tensor, maps: list[Tensor]) -> Features:
        """Return the features of the map at stride 16."""
        tokens = self.tokens_of(final)
        return Features(tokens, maps, tokens.mean(1))

    def tokens_of(self, final: Tensor) -> Tensor:
        """View the map as tokens (B, N, D)."""
        return final.flatten(2).transpose(1, 2)


def checkpoint_filter_fn(state: dict[str, Tensor], net: nn.Module) -> dict[str, Tensor]:
    """Give the trunk's perceptrons timm's names."""
    renamed = {}
    for key, value in state.items():
        key = key.replace("mlp.layers.0.", "mlp.fc1.").replace("mlp.layers.1.", "mlp.fc2.")
        renamed[key] = value
    return renamed
