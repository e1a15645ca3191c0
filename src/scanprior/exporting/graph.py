"""What is exported: a run's networks with their preprocessing before them and their combination after them.

Modules of fixed computation: images (B, C, H, W) of whole numbers in, probabilities out, for any B, H and W. They call
the code that ``predict`` calls wherever a graph can hold it, so that there is one definition of each step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scanprior.data.inputs import normalise, to_unit
from scanprior.data.preprocessing import Form, Preprocessing
from scanprior.errors import RunError
from scanprior.evaluation import Combination
from scanprior.evaluation.combination import LEAST
from scanprior.tasks.classify import Classifier, probabilities
from scanprior.tasks.heads import Kind
from scanprior.tasks.segment import Segmenter


class Graph(nn.Module):
    """Images to probabilities.

    Attributes:
        form: how ``predict`` stores the images of the run; of an ensemble with several forms, the largest side and
            the most channels of them.
        forms: the forms of all networks, each once.
    """

    form: Form
    forms: tuple[Form, ...]

    @property
    def dtype(self) -> torch.dtype:
        """Type of the pixels it takes."""
        return torch.uint16 if self.form.depth == 16 else torch.uint8

    def example(self, batch: int = 2) -> Tensor:
        """Return pixels (batch, C, H, W), neither square nor of the network's size, for tracing."""
        height, width = self.form.size + 9, self.form.size + 5
        draws = torch.Generator().manual_seed(0)
        shape = (batch, self.form.channels, height, width)
        return torch.randint(0, 2**self.form.depth, shape, generator=draws, dtype=torch.int32).to(self.dtype)


class Input(nn.Module):
    """Pixels (B, C, H, W) to the input of one network (B, channels, S, S) float32: ``to_input`` for any H and W."""

    def __init__(self, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.preprocessing = preprocessing

    def forward(self, images: Tensor) -> Tensor:
        """Return what ``predict`` makes of an image: the square that it stores, in whole numbers, and that resized.

        Both steps, as one alone is another filter. Images of the stored size pass the first, too: its weights are then
        1 and 0, and change nothing.
        """
        pre = self.preprocessing
        top = 2**pre.depth - 1
        stored = (_resized(to_unit(images, pre.channels), pre.form.size) * top).round() / top
        return normalise(stored if pre.size == pre.form.size else _resized(stored, pre.size), pre)


def _resized(images: Tensor, size: int) -> Tensor:
    return F.interpolate(images, (size, size), mode="bilinear", antialias=True)


class ClassifierGraph(Graph):
    """One classifier, or an ensemble of several.

    Args:
        members: the classifiers, each with its preprocessing.
        classes: names, in the order of the columns.
        combination: how the members' probabilities become one; None = there is one.

    Raises:
        RunError: members that need one image made square, or stored, in different ways.
    """

    def __init__(
        self,
        members: Sequence[tuple[Classifier, Preprocessing]],
        classes: Sequence[str],
        combination: Combination | None,
    ) -> None:
        super().__init__()
        self.forms = tuple(dict.fromkeys(pre.form for _, pre in members))
        self.form = _together(self.forms)
        self.inputs = nn.ModuleList(Input(pre) for _, pre in members)
        self.models = nn.ModuleList(model.eval() for model, _ in members)
        self.orders = [[model.classes.index(name) for name in classes] for model, _ in members]
        self.kind: Kind = members[0][0].kind
        self.combination = combination

    def forward(self, images: Tensor) -> Tensor:
        """Return probabilities (B, classes) float32 of pixels (B, C, H, W)."""
        logits = []
        for put_in, model, order in zip(self.inputs, self.models, self.orders, strict=True):
            assert isinstance(model, Classifier)
            made = model.logits(put_in(images)).float()
            logits.append(made if order == sorted(order) else made[:, order])
        if self.combination is None:
            return probabilities(logits[0], self.kind)
        return combined(logits, self.combination, self.kind)


class SegmenterGraph(Graph):
    """A segmenter with its preprocessing."""

    def __init__(self, model: Segmenter, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.form, self.forms = preprocessing.form, (preprocessing.form,)
        self.put_in, self.model = Input(preprocessing), model.eval()

    def forward(self, images: Tensor) -> Tensor:
        """Return probabilities (B, channels, S, S) float32 of pixels (B, C, H, W), S the network's size."""
        return self.model.probabilities(self.model.logits(self.put_in(images)))


def combined(logits: Sequence[Tensor], combination: Combination, kind: Kind) -> Tensor:
    """Return the probabilities (B, classes) of an ensemble, as ``evaluation.Combination`` does, from (B, classes) each.

    There the probabilities, in single precision, become logits again.
    """
    if combination.method == "geometric":
        mean = torch.stack([_limited(each, kind) for each in logits]).mean(0)
        return probabilities(mean, kind)
    if combination.temperatures is not None:
        pairs = zip(logits, combination.temperatures, strict=True)
        return torch.stack([probabilities(_limited(each, kind) / t, kind) for each, t in pairs]).mean(0)
    made = [probabilities(each, kind) for each in logits]
    weights = combination.weights or [1 / len(made)] * len(made)
    return torch.stack([weight * each for weight, each in zip(weights, made, strict=True)]).sum(0)


def _limited(logits: Tensor, kind: Kind) -> Tensor:
    """Return log-probabilities, of findings log-odds, no further from the middle than ``evaluation`` believes.

    A finding's probability near 1 is known to 2^-25, so its log-odds are those of the rounded probability there.
    """
    least = LEAST[kind]
    if kind == "multilabel":
        rounded = logits.sigmoid().double().clamp(least, 1 - least)
        return (rounded / (1 - rounded)).log()
    return logits.log_softmax(dim=1).clamp(min=math.log(least)).log_softmax(dim=1)


def _together(forms: Sequence[Form]) -> Form:
    """Return the form that an image is given in for all members."""
    first = forms[0]
    for what, name in (("fit", "are made square"), ("depth", "are stored")):
        found = dict.fromkeys(str(getattr(form, what)) for form in forms)
        if len(found) > 1:
            raise RunError(
                f"its members take images that {name} in different ways ({what} {', '.join(found)}), and a file takes "
                "one image; export the members one by one"
            )
    size, channels = max(form.size for form in forms), max(form.channels for form in forms)
    return Form(size, channels, first.depth, first.fit)
