"""Where a vision transformer attends: attention rollout, and attention weighted by its gradient.

Both follow the attention matrices from the vector that is classified back to the patches.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from scanprior.encoders import VitEncoder
from scanprior.errors import ConfigError
from scanprior.saliency.base import classes_of, from_tokens, normalised, scores, undisturbed
from scanprior.tasks.classify import Classifier
from scanprior.tasks.pooling import AttentionPooling, TransformerPooling

_BYTES = 1 << 29
"""Attention matrices kept at a time for gradients; what is computed from them takes about three times that."""


def attention_rollout(model: Classifier, images: Tensor, classes: Tensor | None = None) -> Tensor:
    """Return attention rollout (Abnar and Zuidema 2020, arXiv 2005.00928, section 3).

    The mean over the heads of each layer, half of it, and half the identity for the residual connection, multiplied
    through the layers. No class plays a part in it: it says where information comes from, not what it is for. Heads
    that average tokens as in ``gradient_attention``.

    Args:
        model: a classifier over a plain vision transformer.
        images: (B, C, S, S), normalised.
        classes: (B,) ignored.

    Returns:
        (B, S, S) float32 in [0, 1].

    Raises:
        ConfigError: the encoder's attention cannot be read.
    """
    with undisturbed(model), torch.no_grad(), _reading(model) as seen:
        model.logits(images)
    _check(model, seen.matrices)
    return _map_of(model, images, [0.5 * matrix.mean(dim=1) for matrix in seen.matrices], residual=0.5)


def gradient_attention(model: Classifier, images: Tensor, classes: Tensor | None = None) -> Tensor:
    """Return attention weighted by its gradient, rolled out (Chefer et al. 2021, arXiv 2103.15679, equations 5 and 6).

    Of each layer the mean over the heads of attention times the score's gradient with respect to it, where that is
    above 0, is added to the identity, and multiplied through the layers. A head that averages tokens is taken for one
    more attention layer with equal weights; what then reaches the patches by residual connections alone is the same for
    all of them, and left out, as it is with a class token [our extension: the paper has one].

    Args:
        model: a classifier over a plain vision transformer.
        images: (B, C, S, S), normalised.
        classes: (B,) int64; None = the predicted ones.

    Returns:
        (B, S, S) float32 in [0, 1].

    Raises:
        ConfigError: the encoder's attention cannot be read.
    """
    with undisturbed(model):
        chosen = classes_of(model, images, classes)
        made = []
        rows = max(1, _BYTES // _bytes_of(model, images))
        for start in range(0, len(images), rows):
            made.append(
                _gradient_attention(model, images[start : start + rows], chosen[start : start + rows])
            )
    return torch.cat(made)


def _gradient_attention(model: Classifier, images: Tensor, chosen: Tensor) -> Tensor:
    leaf = images.detach().clone().requires_grad_()  # the graph must not depend on which weights are trained
    with _reading(model) as seen:
        logits = model.logits(leaf)
    _check(model, seen.matrices)
    found = torch.autograd.grad(scores(logits, chosen).sum(), seen.matrices, allow_unused=True)
    with torch.no_grad():
        weighted = [
            torch.zeros_like(matrix[:, 0]) if slope is None else (matrix * slope).relu().mean(dim=1)
            for matrix, slope in zip(seen.matrices, found, strict=True)
        ]
        return _map_of(model, images, weighted, residual=1.0)


def why_unreadable(model: Classifier) -> str | None:
    """Return why the attention of a classifier's encoder cannot be read; None where it can.

    An image of zeros is looked at: whether there is one matrix a block, between all tokens, is only known then.
    """
    encoder = model.encoder
    if not isinstance(encoder, VitEncoder):
        return f"{encoder.name} is no plain vision transformer"
    weight = next(encoder.parameters())
    image = weight.new_zeros(1, encoder.channels, encoder.size, encoder.size)
    with undisturbed(model), torch.no_grad(), _reading(model) as seen:
        model.logits(image)
    try:
        _check(model, seen.matrices)
    except ConfigError as error:
        return str(error)
    return None


class _Seen(TorchFunctionMode):
    """Answers calls of the fused attention kernel in steps, and keeps the matrices (B, heads, Q, K) in their order.

    Attributes:
        matrices: one a layer.
    """

    def __init__(self) -> None:
        super().__init__()
        self.matrices: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention:
            return self._attend(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,  # 0: the model is in evaluation mode
        is_causal: bool = False,
        scale: float | None = None,
        **further: Any,
    ) -> Tensor:
        logits = query @ key.transpose(-2, -1) * (query.shape[-1] ** -0.5 if scale is None else scale)
        if is_causal:
            attn_mask = torch.ones(logits.shape[-2:], dtype=torch.bool, device=logits.device).tril()
        if attn_mask is not None:
            barred = attn_mask.dtype == torch.bool
            logits = logits.masked_fill(~attn_mask, -torch.inf) if barred else logits + attn_mask
        matrix = logits.softmax(dim=-1)
        self.matrices.append(matrix)
        return matrix @ value


@contextmanager
def _reading(model: Classifier) -> Iterator[_Seen]:
    """Let every attention layer of the model call the fused kernel, whose calls are then answered here."""
    layers = [module for module in model.modules() if hasattr(module, "fused_attn")]
    before = [layer.fused_attn for layer in layers]
    seen = _Seen()
    try:
        for layer in layers:
            layer.fused_attn = True  # type: ignore[assignment]
        with seen:
            yield seen
    finally:
        for layer, fused in zip(layers, before, strict=True):
            layer.fused_attn = fused


def _check(model: Classifier, matrices: Sequence[Tensor]) -> None:
    """Refuse attention that is not one matrix a block between all tokens, with what the pooling adds.

    Raises:
        ConfigError: what was found.
    """
    encoder = model.encoder
    readable = isinstance(encoder, VitEncoder) and len(matrices) >= encoder.depth
    if isinstance(encoder, VitEncoder) and readable:
        tokens = encoder.num_prefix_tokens + encoder.grid**2
        readable = all(matrix.shape[-2:] == (tokens, tokens) for matrix in matrices[: encoder.depth])
        readable = readable and len(matrices) - encoder.depth in _further(model)
    if not readable:
        raise ConfigError(f"the attention of {encoder.name} is not one matrix a block between all its tokens")


def _further(model: Classifier) -> tuple[int, ...]:
    """Return how many attention matrices may come after those of the encoder's blocks."""
    if isinstance(model.pooling, TransformerPooling):
        return (model.pooling.vit.depth,)
    if isinstance(model.pooling, AttentionPooling):
        return 1, 2  # 2: of an encoder that pools by attention itself, which is then not looked at
    return 0, 1


def _map_of(model: Classifier, images: Tensor, layers: Sequence[Tensor], residual: float) -> Tensor:
    """Follow relevance from the vector to classify back to the patches, and make maps of it.

    Args:
        model, images: what is explained.
        layers: (B, Q, K) of each attention layer, those of the pooling last: how much of the relevance of what it
            gives out goes to what it takes in.
        residual: how much stays where it is, in layers between the same tokens.
    """
    encoder = model.encoder
    assert isinstance(encoder, VitEncoder)
    prefix, depth = encoder.num_prefix_tokens, encoder.depth
    one = images.new_ones(len(images), 1)
    if isinstance(model.pooling, TransformerPooling):
        read = _Relevance.read(model.pooling.vit, images)
        for layer in reversed(layers[depth:]):
            read = read.before(layer, residual)
        relevance = read.behind(model.pooling.vit.num_prefix_tokens, prefix)
    elif isinstance(model.pooling, AttentionPooling):
        relevance = _Relevance.attended(F.pad(_through(one, layers[-1]), (prefix, 0)))
    elif len(layers) > depth:  # the encoder pools by attention, over all its tokens or its patches
        pooled = _through(one, layers[depth])
        relevance = _Relevance.attended(F.pad(pooled, (prefix + encoder.grid**2 - pooled.shape[1], 0)))
    else:
        relevance = _Relevance.read(encoder, images)
    for layer in reversed(layers[:depth]):
        relevance = relevance.before(layer, residual)
    return normalised(from_tokens(relevance.moved[:, prefix:], images.shape[-1]))


def _through(relevance: Tensor, layer: Tensor) -> Tensor:
    """Return relevance (B, K) of what a layer takes in, from that (B, Q) of what it gives out."""
    return torch.einsum("bq,bqk->bk", relevance, layer)


@dataclass(frozen=True)
class _Relevance:
    """Relevance of tokens, apart from what an average over the patches leaves with each of them, whatever is seen.

    Attributes:
        moved: (B, T), by attention, or the class token's.
        unmoved: (B, T), of an average, by residual connections alone; held apart, as it may be many times as large.
    """

    moved: Tensor
    unmoved: Tensor

    @classmethod
    def attended(cls, moved: Tensor) -> _Relevance:
        """Return that of tokens which nothing averages."""
        return cls(moved, torch.zeros_like(moved))

    @classmethod
    def read(cls, reader: VitEncoder, images: Tensor) -> _Relevance:
        """Return that of the tokens which a transformer's vector is made of: the class token, or all patches."""
        prefix, patches = reader.num_prefix_tokens, reader.grid**2
        automatic = reader.pool_mode == "auto" and getattr(reader.net, "global_pool", "") == "token"
        none = images.new_zeros(len(images), prefix + patches)
        relevance = none.clone()
        if reader.pool_mode == "cls" or automatic:
            relevance[:, 0] = 1
            return cls.attended(relevance)
        relevance[:, prefix:] = 1 / patches
        return cls(none, relevance)

    def before(self, layer: Tensor, residual: float) -> _Relevance:
        """Return what it was before an attention layer (B, T, T) beside a residual connection."""
        given = _through(self.moved + self.unmoved, layer)
        return _Relevance(residual * self.moved + given, residual * self.unmoved)

    def behind(self, before: int, prefix: int) -> _Relevance:
        """Return that of the patches, with other tokens before them that have none."""
        return _Relevance(*(F.pad(part[:, before:], (prefix, 0)) for part in (self.moved, self.unmoved)))


def _bytes_of(model: Classifier, images: Tensor) -> int:
    """Return the bytes of the attention matrices of one image, all layers."""
    encoder = model.encoder
    if not isinstance(encoder, VitEncoder):
        raise ConfigError(
            f"the attention of {encoder.name} cannot be read: it is no plain vision transformer"
        )
    tokens = encoder.num_prefix_tokens + encoder.grid**2
    heads = max((int(getattr(part, "num_heads", 1)) for part in encoder.modules()), default=1)
    return encoder.depth * heads * tokens**2 * images.element_size()
