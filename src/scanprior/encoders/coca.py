"""The image tower of CoCa, from open_clip, without its text towers.

Yu et al. 2022, arXiv 2205.01917; open_clip's form: 256 learned queries attend to the tokens of a ViT, and the first
one gives the image's embedding. Imports open_clip, so it is imported where a CoCa encoder is made.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from open_clip import get_model_config
from open_clip.transformer import VisionTransformer
from timm.layers.pos_embed import resample_abs_pos_embed
from torch import Tensor, nn

from scanprior.encoders.base import (
    Encoder,
    EncoderConfig,
    Features,
    blocks_kept,
    fitting_sizes,
    pyramid_blocks,
)
from scanprior.errors import ConfigError


class CocaTower(VisionTransformer):  # type: ignore[misc]
    """open_clip's image tower of a CoCa configuration, for any size that its patches divide and any channels.

    open_clip's ``create_model`` builds the text towers too, of which nothing is used here: two thirds of the weights.
    """

    def __init__(self, network: str, *, size: int, channels: int) -> None:
        config = get_model_config(network)
        vision = config["vision_cfg"]
        patch = vision["patch_size"]
        if size % patch:
            raise ConfigError(
                f"size {size} is not divisible by the patch size {patch} of {network}; use size "
                f"{fitting_sizes(size, patch)}"
            )
        super().__init__(
            image_size=size,
            patch_size=patch,
            width=vision["width"],
            layers=vision["layers"],
            heads=vision["width"] // vision.get("head_width", 64),
            mlp_ratio=vision.get("mlp_ratio", 4.0),
            attentional_pool=vision["attentional_pool"],
            attn_pooler_heads=vision["attn_pooler_heads"],
            output_dim=config["embed_dim"],
            output_tokens=True,
        )
        if channels != 3:
            self.conv1 = nn.Conv2d(channels, vision["width"], patch, stride=patch, bias=False)
        self.pretrained_cfg = {"first_conv": "conv1"}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Say which layer a parameter is of, for layer decay; the pooler comes after the last block."""
        return {
            "stem": r"^conv1|^class_embedding|^positional_embedding|^ln_pre",
            "blocks": [(r"^transformer\.resblocks\.(\d+)", None), (r"^attn_pool|^ln_post|^proj", (99_999,))],
        }


class CocaEncoder(Encoder):
    """CoCa's image tower.

    Tokens are the patch tokens of the last block under the pooler's norm of its keys; the pyramid is four blocks'
    outputs at one resolution, as for other vision transformers; the pooled vector is the image's embedding: the
    first query's attention over the tokens, normalised and projected.
    """

    family: Literal["vit", "conv"] = "vit"
    net: Any

    def __init__(self, tower: CocaTower, config: EncoderConfig, *, size: int, channels: int) -> None:
        super().__init__()
        if config.pool == "cls":
            raise ConfigError(f"encoder.pool: {config.name} pools by attention; use auto or mean")
        self.net = tower
        self.name, self.size, self.channels = config.name, size, channels
        self.stride = int(tower.patch_size[0])
        self.grid = size // self.stride
        self.num_prefix_tokens = 1
        self.depth = len(tower.transformer.resblocks)
        self.token_dim = int(tower.transformer.width)
        self.pool_mode = config.pool
        self.dim = self.token_dim if config.pool == "mean" else int(tower.output_dim)
        self.pyramid_blocks = pyramid_blocks(self.depth)

    def cut_after(self, block: int) -> None:
        """Leave out the blocks after one of them, 1-based."""
        kept = blocks_kept(self, block)
        self.left_out = tuple(f"transformer.resblocks.{i}." for i in range(kept, self.depth))
        self.net.transformer.resblocks = self.net.transformer.resblocks[:kept]
        self.depth, self.pyramid_blocks = kept, pyramid_blocks(kept)

    def forward(self, images: Tensor) -> Features:
        """Encode images (B, channels, size, size)."""
        wanted = sorted({*self.pyramid_blocks})
        last, taken = self.net.transformer.forward_intermediates(self.net._embeds(images), indices=wanted)
        outputs = dict(zip(wanted, taken, strict=True))
        maps = [
            outputs[block][:, 1:].transpose(1, 2).reshape(images.shape[0], -1, self.grid, self.grid)
            for block in self.pyramid_blocks
        ]
        tokens = self.net.attn_pool.ln_k(last)[:, 1:]
        if self.pool_mode == "mean":
            return Features(tokens, maps, tokens.mean(1))
        embedding, _ = self.net._pool(last)
        return Features(tokens, maps, embedding @ self.net.proj)


def checkpoint_filter_fn(state: dict[str, Tensor], tower: CocaTower) -> dict[str, Tensor]:
    """Resample the position embedding of a checkpoint to the tower's grid (bicubic)."""
    made = dict(state)
    places, own = made.get("positional_embedding"), tower.positional_embedding
    if isinstance(places, torch.Tensor) and places.shape != own.shape:
        resampled = resample_abs_pos_embed(places[None], list(tower.grid_size), num_prefix_tokens=1)
        made["positional_embedding"] = resampled[0]
    return made
