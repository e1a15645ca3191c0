"""Where a vision transformer attends: attention rollout, and attention weighted by its gradient.

Both follow the attention matrices from the vector that is classified back to the patches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
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

Step = Callable[[Tensor, int], Tensor]
"""From relevance (B, Q) of what an attention layer, by its number, gives out to that (B, K) of what it takes in."""

_BYTES = 1 << 29
"""Attention matrices kept at a time for gradients; what is computed from them takes about three times that."""


def attention_rollout(model: Classifier, images: Tensor, classes: Tensor | None = None) -> Tensor:
    """Return attention rollout (Abnar and Zuidema 2020, arXiv 2005.00928, section 3).

    The mean over the heads of each layer, half of it, and half the identity for the residual connection, multiplied
    through the layers. No class plays a part in it: it says where information comes from, not what it is for.

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
    means = [matrix.mean(dim=1) for matrix in seen.matrices]

    def step(relevance: Tensor, layer: int) -> Tensor:
        given = torch.einsum("bq,bqk->bk", relevance, means[layer])
        return given if relevance.shape[1] != given.shape[1] else 0.5 * (given + relevance)

    return _finished(model, images, step, len(means), _even_reading(model, images))


def gradient_attention(model: Classifier, images: Tensor, classes: Tensor | None = None) -> Tensor:
    """Return attention weighted by its gradient, rolled out (Chefer et al. 2021, arXiv 2103.15679, equations 5 and 6).

    Of each layer the mean over the heads of attention times the score's gradient with respect to it, where that is
    above 0, is added to the identity, and multiplied through the layers. A head that averages tokens is taken for one
    more attention layer with equal weights [our extension: the paper has a class token].

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
    wanted = [*seen.matrices, seen.tokens]
    found = torch.autograd.grad(scores(logits, chosen).sum(), wanted, allow_unused=True)
    slopes = [
        torch.zeros_like(of) if slope is None else slope for of, slope in zip(wanted, found, strict=True)
    ]
    with torch.no_grad():
        weighted = [
            (matrix * slope).relu().mean(dim=1) for matrix, slope in zip(seen.matrices, slopes, strict=False)
        ]
        reading = _even_reading(model, images)
        if not _reads_class_token(_reader(model)):
            reading = (reading * (seen.tokens * slopes[-1]).sum(dim=2)).relu()

        def step(relevance: Tensor, layer: int) -> Tensor:
            given = torch.einsum("bq,bqk->bk", relevance, weighted[layer])
            return given if relevance.shape[1] != given.shape[1] else relevance + given

        return _finished(model, images, step, len(weighted), reading)


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
        tokens: (B, T, D) that the vector to classify is made of, normalised.
    """

    def __init__(self) -> None:
        super().__init__()
        self.matrices: list[Tensor] = []
        self.tokens = torch.empty(0)

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

    def keep(module: Any, given: Any, tokens: Tensor) -> None:
        seen.tokens = tokens

    reader = _reader(model)
    hook = reader.net.norm.register_forward_hook(keep) if reader is not None else None
    try:
        for layer in layers:
            layer.fused_attn = True  # type: ignore[assignment]
        with seen:
            yield seen
    finally:
        for layer, fused in zip(layers, before, strict=True):
            layer.fused_attn = fused
        if hook is not None:
            hook.remove()


def _reader(model: Classifier) -> VitEncoder | None:
    """Return the transformer whose tokens become the vector to classify."""
    of = model.pooling.vit if isinstance(model.pooling, TransformerPooling) else model.encoder
    return of if isinstance(of, VitEncoder) else None


def _reads_class_token(reader: VitEncoder | None) -> bool:
    assert reader is not None
    auto = reader.pool_mode == "auto" and getattr(reader.net, "global_pool", "") == "token"
    return reader.pool_mode == "cls" or auto


def _even_reading(model: Classifier, images: Tensor) -> Tensor:
    """Return relevance (B, T) of the tokens that are pooled: the class token's, or equal for all patches."""
    reader = _reader(model)
    assert reader is not None
    prefix, patches = reader.num_prefix_tokens, reader.grid**2
    reading = images.new_zeros(len(images), prefix + patches)
    if _reads_class_token(reader):
        reading[:, 0] = 1
    else:
        reading[:, prefix:] = 1 / patches
    return reading


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


def _finished(model: Classifier, images: Tensor, step: Step, layers: int, reading: Tensor) -> Tensor:
    """Follow relevance from the vector to classify back to the patches, and make maps of it.

    Args:
        model, images: what is explained.
        step: one layer back.
        layers: how many matrices there are, those of the pooling last.
        reading: (B, T) relevance of the tokens that are pooled, where no attention layer pools them.
    """
    encoder = model.encoder
    assert isinstance(encoder, VitEncoder)
    prefix, depth = encoder.num_prefix_tokens, encoder.depth
    one = images.new_ones(len(images), 1)
    if isinstance(model.pooling, TransformerPooling):
        relevance = reading
        for layer in reversed(range(depth, layers)):
            relevance = step(relevance, layer)
        relevance = F.pad(relevance[:, model.pooling.vit.num_prefix_tokens :], (prefix, 0))
    elif isinstance(model.pooling, AttentionPooling):
        relevance = F.pad(step(one, layers - 1), (prefix, 0))
    elif layers > depth:  # the encoder pools by attention, over all its tokens or its patches
        pooled = step(one, depth)
        relevance = F.pad(pooled, (prefix + encoder.grid**2 - pooled.shape[1], 0))
    else:
        relevance = reading
    for layer in reversed(range(depth)):
        relevance = step(relevance, layer)
    return normalised(from_tokens(relevance[:, prefix:], images.shape[-1]))


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
