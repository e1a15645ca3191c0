"""ConvNeXt on a part of an image: what is hidden changes nothing of what is seen.

A convolution carries what it sees into hidden places and back, so that the shape of a mask leaks and
spreads from layer to layer. Here hidden cells are zero after the stem, after every downsampling and after
every block, as in the sparse convolutions of FCMAE (Woo et al. 2023, arXiv 2301.00808) and SparK (Tian et
al. 2023, arXiv 2301.03580). There are two equal ways: ``dense`` works on all cells and sets hidden ones
to zero, ``gathered`` gives the visible cells alone to norm and MLP, which is most of the work.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from timm.layers.norm import LayerNorm2d
from timm.models.convnext import ConvNeXt
from torch import Tensor, nn
from torch.nn import functional as F

from scanprior.encoders.base import Encoder
from scanprior.encoders.timm_encoder import ConvEncoder
from scanprior.errors import ConfigError


@dataclass(frozen=True)
class _Cells:
    """Which cells of a map of some resolution are visible.

    Attributes:
        shown: (B, 1, h, w), 1 = visible, 0 = hidden.
        rows: int64 (K,), visible cells in (B, h, w) order.
        sample: int64 (K,), the image of each.
    """

    shown: Tensor
    rows: Tensor
    sample: Tensor


class MaskedConvNext(nn.Module):
    """Runs the ConvNeXt or ConvNeXt-V2 of an encoder on the visible units of images.

    It holds no weights of its own.

    Args:
        encoder: whose network is timm's ``ConvNeXt`` with a patch stem, any size, also with 1x1-convolution MLPs.
        unit: side of a mask unit in pixels. Where it is less than the network's stride, a cell counts as
            visible if any unit in it is; its hidden units enter it as zeros.

    Raises:
        ConfigError: another network, or a unit that does not fit it.
    """

    def __init__(self, encoder: Encoder, unit: int) -> None:
        super().__init__()
        net: Any = getattr(encoder, "net", None)
        if not isinstance(encoder, ConvEncoder) or type(net) is not ConvNeXt:  # a subclass may differ
            raise ConfigError(
                f"encoder.name: masked convolutions need a ConvNeXt and {encoder.name} is a {type(net).__name__}; "
                "use for example convnextv2_atto or convnext_tiny"
            )
        body: Any = net
        if len(body.stem) != 2:
            raise ConfigError(
                f"encoder.name: the stem of {encoder.name} overlaps mask units; use a ConvNeXt with a patch stem"
            )
        self.strides = [int(info["reduction"]) for info in body.feature_info]
        self.stem_stride = int(body.stem[0].stride[0])
        self._check(encoder, unit)
        self.unit = unit
        self._net: tuple[Any] = (net,)  # in a tuple, so that its weights are not registered a second time

    def _check(self, encoder: Encoder, unit: int) -> None:
        last = self.strides[-1]
        if unit % self.stem_stride or not (unit % last == 0 or last % unit == 0):
            fits = [2**n * self.stem_stride for n in range(8) if last % (2**n * self.stem_stride) == 0]
            raise ConfigError(
                f"objective.unit: mask units of {unit} px do not fit the cells of {encoder.name};"
                f" use {', '.join(map(str, fits))} or a multiple of {last}"
            )
        if encoder.size % max(unit, last):
            raise ConfigError(
                f"size {encoder.size} is not divisible by {max(unit, last)}, the stride of {encoder.name} or the mask"
                f" unit; use size {max(1, encoder.size // max(unit, last)) * max(unit, last)}"
            )

    def forward(self, images: Tensor, hidden: Tensor, *, gathered: bool) -> list[Tensor]:
        """Return the maps after every stage, (B, C_i, H / stride_i, W / stride_i); hidden cells are zero.

        Args:
            images: (B, C, H, W); what stands in hidden units changes nothing.
            hidden: bool (B, H / unit, W / unit), True = hidden.
            gathered: whether norm and MLP of the blocks work on visible cells alone. Equal but for rounding.
        """
        net = self._net[0]
        cells = self._cells(hidden, 1)
        x = images * cells.shown.to(images.dtype)
        x = net.stem(x.contiguous(memory_format=torch.channels_last))
        before = self._cells(hidden, self.stem_stride)
        x = x * before.shown.to(x.dtype)
        maps = []
        for stage, stride in zip(net.stages, self.strides, strict=True):
            cells = before if stride == self.stem_stride else self._cells(hidden, stride)
            x = _downsample(stage.downsample, x, before, cells)
            for block in stage.blocks:
                x = _gathered_block(block, x, cells) if gathered else _dense_block(block, x, cells)
            maps.append(x)
            before = cells
        final = net.norm_pre(maps[-1])
        maps[-1] = final * before.shown.to(final.dtype)
        return maps

    def shown(self, hidden: Tensor, stride: int) -> Tensor:
        """Return which cells of a stride are visible, as 1 or 0: float (B, 1, H / stride, W / stride)."""
        if self.unit % stride == 0:
            each = self.unit // stride
            return (~hidden).repeat_interleave(each, 1).repeat_interleave(each, 2)[:, None].float()
        return F.max_pool2d((~hidden)[:, None].float(), stride // self.unit)

    def _cells(self, hidden: Tensor, stride: int) -> _Cells:
        shown = self.shown(hidden, stride)
        rows = shown.flatten().nonzero()[:, 0]
        return _Cells(shown, rows, rows // shown[0].numel())


def _downsample(layers: Any, x: Tensor, before: _Cells, cells: _Cells) -> Tensor:
    if isinstance(layers, nn.Identity):
        return x
    normal: Tensor = layers[0](x)
    made: Tensor = layers[1](normal * before.shown.to(normal.dtype))
    return made * cells.shown.to(made.dtype)


def _dense_block(block: Any, x: Tensor, cells: _Cells) -> Tensor:
    """A block over all cells, hidden ones set to zero; response norms see visible cells alone."""
    branch = block.conv_dw(x)
    if not block.use_conv_mlp:
        branch = branch.permute(0, 2, 3, 1)
    branch = _mlp_of(block, block.norm(branch), cells)
    if not block.use_conv_mlp:
        branch = branch.permute(0, 3, 1, 2)
    if block.gamma is not None:
        branch = branch * block.gamma.reshape(1, -1, 1, 1)
    made: Tensor = block.drop_path(branch * cells.shown.to(branch.dtype)) + x
    return made


def _mlp_of(block: Any, x: Tensor, cells: _Cells) -> Tensor:
    mlp = block.mlp
    if not hasattr(mlp, "grn"):
        made: Tensor = mlp(x)
        return made
    x = mlp.act(mlp.fc1(x))
    shown = cells.shown if block.use_conv_mlp else cells.shown.permute(0, 2, 3, 1)
    made = mlp.fc2(mlp.grn(x * shown.to(x.dtype)))
    return made


def _gathered_block(block: Any, x: Tensor, cells: _Cells) -> Tensor:
    """A block whose norm and MLP see the visible cells alone, as rows (K, C)."""
    spread = block.conv_dw(x).permute(0, 2, 3, 1)
    rows = spread.reshape(-1, spread.shape[3]).index_select(0, cells.rows)
    rows = block.norm(rows[:, :, None, None]).flatten(1) if _is_2d(block.norm) else block.norm(rows)
    mlp = block.mlp
    rows = mlp.act(_linear(mlp.fc1, rows))
    if hasattr(mlp, "grn"):
        rows = _response_norm(mlp.grn, rows, cells, len(x))
    rows = _linear(mlp.fc2, rows)
    if block.gamma is not None:
        rows = rows * block.gamma
    flat = rows.new_zeros(len(x) * spread.shape[1] * spread.shape[2], rows.shape[1])
    branch = flat.index_copy(0, cells.rows, rows).view(*spread.shape[:3], -1).permute(0, 3, 1, 2)
    made: Tensor = block.drop_path(branch) + x
    return made


def _is_2d(norm: nn.Module) -> bool:
    """Whether a norm takes channels at the second place: LayerNorm2d and its relatives."""
    return isinstance(norm, LayerNorm2d) or type(norm).__name__.endswith("2d")


def _linear(layer: Any, rows: Tensor) -> Tensor:
    """Apply a linear layer or a 1x1 convolution to rows (K, C)."""
    return F.linear(rows, layer.weight.flatten(1), layer.bias)


def _response_norm(grn: Any, rows: Tensor, cells: _Cells, batch: int) -> Tensor:
    """timm's GlobalResponseNorm over the visible cells of each image."""
    squares = rows.new_zeros(batch, rows.shape[1], dtype=torch.float32)
    length = squares.index_add(0, cells.sample, rows.float().square()).clamp(min=1e-24).sqrt()
    relative = (length / (length.mean(1, keepdim=True) + grn.eps)).to(rows.dtype)
    made: Tensor = rows + torch.addcmul(grn.bias, grn.weight, rows * relative.index_select(0, cells.sample))
    return made
