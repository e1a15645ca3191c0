"""VMamba: a pyramid network of state-space blocks that scan an image in four directions.

Liu et al. 2024, arXiv 2401.10166, in the form of the released second version: one state a channel, no gate, a
depth-wise 3x3 convolution before the scan. The names of the weights are those of the published checkpoints.
All maps inside are channels-last, (B, H, W, C), where norms and products over channels are contiguous.
"""

from __future__ import annotations

import math
import re
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from timm.layers.drop import DropPath
from torch import Tensor, nn

from scanprior.encoders.selective_scan import FOUR, selective_scan_2d


class Shape(NamedTuple):
    """The dimensions of a network: width of the first stage, blocks of the stages, width of the scan."""

    dim: int
    depths: tuple[int, ...]
    ssm_ratio: float


SHAPES = {
    "vmamba-t": Shape(96, (2, 2, 8, 2), 1.0),
    "vmamba-s": Shape(96, (2, 2, 15, 2), 2.0),
    "vmamba-b": Shape(128, (2, 2, 15, 2), 2.0),
}
"""The networks by name; their authors call them tiny s1l8, small s2l15 and base s2l15, with drop path .2, .3, .6."""


class VMamba(nn.Module):
    """The network, with timm's interface of a pyramid network.

    Images (B, in_chans, H, W) of any size; every stage halves the map, rounded up, from a quarter on.

    Args:
        shape: its dimensions.
        in_chans: input channels.
        num_classes: outputs of the classifier; 0 = the pooled vector.
        drop_path_rate: stochastic depth rate of the last block; it grows evenly from 0 at the first.
        d_state: states of a channel, N.
    """

    def __init__(
        self,
        shape: Shape,
        in_chans: int = 3,
        num_classes: int = 1000,
        drop_path_rate: float = 0.0,
        d_state: int = 1,
    ) -> None:
        super().__init__()
        widths = [shape.dim << i for i in range(len(shape.depths))]
        self.num_features = self.head_hidden_size = widths[-1]
        self.num_classes = num_classes
        self.feature_info = [
            {"num_chs": width, "reduction": 4 << i, "module": f"layers.{i}"} for i, width in enumerate(widths)
        ]
        self.pretrained_cfg = {"first_conv": "patch_embed.0", "classifier": "classifier.head"}
        self.patch_embed = _stem(in_chans, shape.dim)
        last = sum(shape.depths) - 1
        rates = iter(drop_path_rate * i / max(1, last) for i in range(last + 1))
        layers = []
        for i, (width, depth) in enumerate(zip(widths, shape.depths, strict=True)):
            blocks = (Block(width, shape.ssm_ratio, d_state, next(rates)) for _ in range(depth))
            down = _downsample(width) if i < len(widths) - 1 else nn.Identity()
            layers.append(nn.Sequential(OrderedDict(blocks=nn.Sequential(*blocks), downsample=down)))
        self.layers = nn.ModuleList(layers)
        head = nn.Linear(widths[-1], num_classes) if num_classes else nn.Identity()
        self.classifier = nn.ModuleDict({"norm": nn.LayerNorm(widths[-1]), "head": head})
        self.apply(_init)

    def forward_intermediates(
        self, images: Tensor, indices: int | Sequence[int] | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """Return the final normalised map and the stages' maps, all (B, C_i, H_i, W_i).

        Args:
            images: (B, in_chans, H, W).
            indices: which stages' maps; a number = that many of the last; None = all.
        """
        if isinstance(indices, int):
            indices = range(len(self.layers) - indices, len(self.layers))
        wanted = range(len(self.layers)) if indices is None else indices
        x, maps = self.patch_embed(images), []
        for layer in self.layers:
            x = layer.get_submodule("blocks")(x)
            maps.append(x.permute(0, 3, 1, 2))
            x = layer.get_submodule("downsample")(x)
        final: Tensor = self.classifier["norm"](x)
        return final.permute(0, 3, 1, 2), [maps[i] for i in wanted]

    def forward_features(self, images: Tensor) -> Tensor:
        """Return the final normalised map (B, num_features, H / 32, W / 32)."""
        return self.forward_intermediates(images)[0]

    def forward_head(self, final: Tensor, pre_logits: bool = False) -> Tensor:
        """Average a final map (B, num_features, H, W) to (B, num_features), and classify unless ``pre_logits``."""
        pooled = final.mean((2, 3))
        return pooled if pre_logits else self.classifier["head"](pooled)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, num_classes), or the pooled vector (B, num_features) without classes."""
        return self.forward_head(self.forward_features(images))

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return the patterns by which timm groups weights into layers: stages, or blocks."""
        fine = [
            (r"^layers\.(\d+)\.blocks\.(\d+)", None),
            (r"^layers\.(\d+)\.downsample", (99999,)),  # timm's word for: with the layer before
            (r"^classifier", (99999,)),
        ]
        return {"stem": r"^patch_embed", "blocks": r"^layers\.(\d+)" if coarse else fine}


class Block(nn.Module):
    """x + SS2D(LN x), then + MLP(LN x), on maps (B, H, W, dim)."""

    def __init__(self, dim: int, ssm_ratio: float, d_state: int, drop_path: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.op = SS2D(dim, ssm_ratio, d_state)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()
        self.norm2 = nn.LayerNorm(dim)
        parts = OrderedDict(fc1=nn.Linear(dim, 4 * dim), act=nn.GELU(), fc2=nn.Linear(4 * dim, dim))
        self.mlp = nn.Sequential(parts)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, H, W, dim) to the same shape."""
        x = x + self.drop_path(self.op(self.norm(x)))
        x = x + self.drop_path(self.mlp(self.norm2(x)))
        return x


class SS2D(nn.Module):
    """The selective scan of a map in four directions, with projections around it.

    Args:
        dim: width of the input and output.
        ssm_ratio: width of the scan as a multiple of it.
        d_state: states of a channel, N.
    """

    no_weight_decay = frozenset({"A_logs", "Ds", "dt_projs_bias"})
    """Decays, gains and a bias, whatever their number of dimensions."""

    def __init__(self, dim: int, ssm_ratio: float, d_state: int) -> None:
        super().__init__()
        inner, directions = int(ssm_ratio * dim), len(FOUR)
        self.dt_rank, self.d_state = math.ceil(dim / 16), d_state
        self.in_proj = nn.Linear(dim, inner, bias=False)
        self.conv2d = nn.Conv2d(inner, inner, 3, padding=1, groups=inner, bias=False)
        self.x_proj_weight = nn.Parameter(torch.empty(directions, self.dt_rank + 2 * d_state, inner))
        self.dt_projs_weight = nn.Parameter(torch.empty(directions, inner, self.dt_rank))
        self.dt_projs_bias = nn.Parameter(torch.empty(directions, inner))
        self.A_logs = nn.Parameter(torch.empty(directions * inner, d_state))
        self.Ds = nn.Parameter(torch.empty(directions * inner))
        self.out_norm = nn.LayerNorm(inner)
        self.out_proj = nn.Linear(inner, dim, bias=False)
        self._init_scan()

    @torch.no_grad()
    def _init_scan(self) -> None:
        """Mamba's first values: A = -1..-N, time steps log-uniform in 0.001 to 0.1, D = 1; the projection is ours."""
        self.A_logs.copy_(torch.arange(1, self.d_state + 1).log().expand_as(self.A_logs))
        self.Ds.fill_(1.0)
        self.x_proj_weight.uniform_(-1, 1).mul_(self.x_proj_weight.shape[-1] ** -0.5)
        self.dt_projs_weight.uniform_(-1, 1).mul_(self.dt_rank**-0.5)
        step = self.dt_projs_bias.uniform_(math.log(1e-3), math.log(1e-1)).exp_()
        self.dt_projs_bias.copy_(step + torch.log(-torch.expm1(-step)))  # the inverse of softplus

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, H, W, dim) to the same shape."""
        x = self.conv2d(self.in_proj(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        x = F.silu(x)
        projected = F.linear(x, self.x_proj_weight.flatten(0, 1)).reshape(*x.shape[:3], len(FOUR), -1)
        steps, to_state, from_state = torch.split(
            projected, [self.dt_rank, self.d_state, self.d_state], dim=-1
        )
        rates = -self.A_logs.exp().view(len(FOUR), -1, self.d_state)
        gains = self.Ds.view(len(FOUR), -1)
        y = selective_scan_2d(
            x, steps, self.dt_projs_weight, self.dt_projs_bias, rates, to_state, from_state, gains
        )
        return self.out_proj(self.out_norm(y))  # type: ignore[no-any-return]


class Permute(nn.Module):
    """Change the order of dimensions; it has a place of its own in the numbering of the checkpoints' layers."""

    def __init__(self, *order: int) -> None:
        super().__init__()
        self.order = order

    def forward(self, x: Tensor) -> Tensor:
        """Return a view."""
        return x.permute(self.order)


def _stem(in_chans: int, dim: int) -> nn.Sequential:
    """Images (B, in_chans, H, W) to a map (B, H / 4, W / 4, dim), with overlapping patches."""
    return nn.Sequential(
        nn.Conv2d(in_chans, dim // 2, 3, stride=2, padding=1),
        Permute(0, 2, 3, 1),
        nn.LayerNorm(dim // 2),
        Permute(0, 3, 1, 2),
        nn.GELU(),
        nn.Conv2d(dim // 2, dim, 3, stride=2, padding=1),
        Permute(0, 2, 3, 1),
        nn.LayerNorm(dim),
    )


def _downsample(dim: int) -> nn.Sequential:
    """Maps (B, H, W, dim) to (B, H / 2, W / 2, 2 dim)."""
    return nn.Sequential(
        Permute(0, 3, 1, 2),
        nn.Conv2d(dim, 2 * dim, 3, stride=2, padding=1),
        Permute(0, 2, 3, 1),
        nn.LayerNorm(2 * dim),
    )


def _init(module: nn.Module) -> None:
    """Linear layers as in other pyramids of blocks: normal with σ = 0.02, cut at ±2; biases 0 [our choice]."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


_RENAMED = (
    (re.compile(r"^patch_embed\.proj\."), "patch_embed.0."),
    (re.compile(r"^patch_embed\.norm\."), "patch_embed.2."),
    (re.compile(r"^(layers\.\d+\.blocks\.\d+)\.ln_1\."), r"\1.norm."),
    (re.compile(r"^(layers\.\d+\.blocks\.\d+)\.self_attention\."), r"\1.op."),
    (re.compile(r"^(norm|head)\."), r"classifier.\1."),
)
"""Names in early checkpoints, and the present ones."""


def checkpoint_filter_fn(state_dict: dict[str, Tensor], model: VMamba) -> dict[str, Tensor]:
    """Turn the weights of a published checkpoint into those of a network.

    Early names become the present ones, and products with channels that are stored as 1x1 convolutions (o, i, 1, 1)
    become (o, i). What the network has no place for, such as the classifier of a network without classes, stays as
    it is, under the name it has in the file.

    Args:
        state_dict: the checkpoint's weights by name, out of their container ``model``.
        model: the network they are for.
    """
    own = model.state_dict()
    found = {}
    for key, value in state_dict.items():
        name = key
        for pattern, new in _RENAMED:
            name = pattern.sub(new, name)
        if name not in own:
            name = key
        elif value.ndim == 4 and value.shape[2:] == (1, 1) and own[name].ndim == 2:
            value = value.flatten(1)
        found[name] = value
    return found
