"""A classifier as a folder that timm and transformers load: ``config.json`` and ``model.safetensors``.

The head of a run normalises the pooled features without weights before its linear layer; timm's own classifiers do
not, so a run with that head fits a network of timm's in one case: a plain vision transformer, which timm can build as
its ``Eva`` with a norm after the blocks and a second one before the classifier. With ``task.normalise=false`` the head
is timm's, and the network keeps its own architecture.
"""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import timm
import torch
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from scanprior.catalogue import listed, network_of
from scanprior.data.preprocessing import Preprocessing
from scanprior.encoders import ConvEncoder, EncoderConfig, VitEncoder
from scanprior.engine.checkpoint import replace_weights
from scanprior.errors import RunError
from scanprior.exporting.plain_vit import as_eva
from scanprior.tasks.classify import Classifier
from scanprior.tasks.heads import LinearHead, OrdinalHead
from scanprior.tasks.pooling import EncoderPooling

_CLOSE = 1e-3
"""Largest difference of logits, as part of the largest, between two networks that are called the same."""
_LEAST_STD = 1e-3  # as data.preprocessing divides by


@dataclass(frozen=True)
class TimmForm:
    """A classifier in timm's words.

    Attributes:
        architecture: name of the network.
        arguments: what ``timm.create_model`` is given beside it.
        state: the weights under timm's names, classifier included.
        rewritten: whether the network is built of another class than the run's.
    """

    architecture: str
    arguments: dict[str, Any]
    state: dict[str, Tensor]
    rewritten: bool

    def build(self, classes: int) -> nn.Module:
        """Return the network with its weights, in evaluation mode.

        Raises:
            RunError: the weights are not of this network.
        """
        net: nn.Module = timm.create_model(self.architecture, num_classes=classes, **self.arguments)
        try:
            net.load_state_dict(self.state)
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:150]
            raise RunError(f"timm's {self.architecture} has other weights than the run ({reason})") from error
        return net.eval()


def timm_form(model: Classifier, preprocessing: Preprocessing, config: EncoderConfig) -> TimmForm:
    """Return a classifier in timm's words, its logits compared with the run's own.

    Args:
        model: of the run.
        preprocessing: of the run.
        config: the settings of its encoder.

    Raises:
        RunError: timm has no such classifier; with the reason.
    """
    _refuse(model, preprocessing, config)
    encoder: Any = model.encoder
    assert isinstance(model.head, LinearHead)
    if isinstance(model.head.norm, nn.Identity):
        form = _own_architecture(model, config)
    elif type(encoder.net) is VisionTransformer and all(type(b) is Block for b in encoder.net.blocks):
        form = TimmForm(*as_eva(encoder, model.head), rewritten=True)
    else:
        raise RunError(
            f"the run's head normalises the features before its linear layer, and timm's {network_of(config.name)} "
            "cannot; fine-tune with --set task.normalise=false for a head that it has, or use --format onnx"
        )
    _compare(form, model, preprocessing)
    return form


def write_timm(
    form: TimmForm, model: Classifier, preprocessing: Preprocessing, folder: Path, licence: str | None
) -> None:
    """Write ``config.json`` and ``model.safetensors`` into a folder that is there.

    Args:
        form: the classifier in timm's words.
        model: of the run; names the classes.
        preprocessing: of the run.
        folder: to write into.
        licence: of the weights it began with, where known.
    """
    net: Any = form.build(len(model.classes))
    pre = preprocessing
    modes = {"squash": "squash", "pad": "border", "crop": "center"}
    weights = {
        "input_size": [pre.channels, pre.size, pre.size],
        "fixed_input_size": hasattr(net, "patch_embed"),
        "interpolation": "bilinear",
        "crop_pct": 1.0,
        "crop_mode": modes[pre.fit],
        "mean": pre.mean,
        "std": [max(value, _LEAST_STD) for value in pre.std],
        "num_classes": len(model.classes),
        "pool_size": None,
        "first_conv": net.pretrained_cfg.get("first_conv"),
        "classifier": net.pretrained_cfg.get("classifier"),
        "custom_load": False,
        **({"license": licence} if licence else {}),
    }
    config = {
        "architecture": form.architecture,
        "num_classes": len(model.classes),
        "num_features": net.num_features,
        "label_names": model.classes,
        "model_args": form.arguments,
        "pretrained_cfg": weights,
        "model_type": "timm_wrapper",
        "architectures": ["TimmWrapperForImageClassification"],
        "problem_type": f"{'single' if model.kind == 'multiclass' else 'multi'}_label_classification",
        "id2label": {str(number): name for number, name in enumerate(model.classes)},
        "label2id": {name: number for number, name in enumerate(model.classes)},
    }
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    replace_weights(form.state, folder / "model.safetensors")


Transform = Callable[[Any], Tensor]
"""A picture of Pillow's to the network's input (C, S, S)."""


def open_timm(folder: Path, kind: Literal["timm", "hf"]) -> tuple[Callable[[Tensor], Tensor], Transform]:
    """Load a folder as others do; return its network, inputs to logits, and its own preprocessing."""
    if kind == "timm":
        net: Any = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
        data: Any = timm.data
        return net, data.create_transform(**data.resolve_model_data_config(net), is_training=False)
    transformers: Any = import_module("transformers")
    talk = transformers.utils.logging.get_verbosity()
    transformers.utils.logging.set_verbosity_error()
    with contextlib.redirect_stderr(io.StringIO()):  # its progress bar
        model: Any = transformers.AutoModelForImageClassification.from_pretrained(str(folder)).eval()
        processor: Any = transformers.AutoImageProcessor.from_pretrained(str(folder))
    transformers.utils.logging.set_verbosity(talk)

    def transform(picture: Any) -> Tensor:
        return processor(picture)["pixel_values"][0]  # type: ignore[no-any-return]

    return (lambda inputs: model(pixel_values=inputs).logits), transform


def _refuse(model: Classifier, preprocessing: Preprocessing, config: EncoderConfig) -> None:
    entry, task = listed(config.name), model.config
    reason = None
    if not isinstance(model.head, LinearHead) or isinstance(model.head, OrdinalHead):
        reason = f"the head is {task.head}, and timm's classifiers are one linear layer"
    elif not isinstance(model.pooling, EncoderPooling):
        reason = f"the head stands on pooling={task.pooling}, which timm's networks do not have"
    elif (entry is not None and entry.provider != "timm") or not isinstance(
        model.encoder, (VitEncoder, ConvEncoder)
    ):
        reason = f"{config.name} is no network of timm's"
    elif preprocessing.standardize == "image":
        reason = "the run standardises each image by itself, and timm knows one mean and std for all"
    elif preprocessing.depth == 16:
        reason = "the run takes images of 16 bits, and timm's preprocessing reads 8"
    if reason is not None:
        raise RunError(f"{reason}; use --format onnx")


def _own_architecture(model: Classifier, config: EncoderConfig) -> TimmForm:
    """Return a classifier whose head is timm's own as the network that it is."""
    encoder: Any = model.encoder
    arguments: dict[str, Any] = {"in_chans": encoder.channels, **config.overrides()}
    if config.output_block is not None:
        arguments["depth"] = encoder.depth
    if config.pool != "auto":
        arguments["global_pool"] = {"cls": "token", "mean": "avg"}[config.pool]
        if isinstance(encoder.net, VisionTransformer):
            arguments["fc_norm"] = isinstance(encoder.net.norm, nn.Identity)
    architecture = network_of(config.name)
    try:
        net: Any = timm.create_model(
            architecture, num_classes=len(model.classes), img_size=encoder.size, **arguments
        )
        arguments["img_size"] = encoder.size
    except TypeError:  # convolutional networks take any size and no such argument
        net = timm.create_model(architecture, num_classes=len(model.classes), **arguments)
    name = net.pretrained_cfg.get("classifier")
    if not isinstance(name, str):
        raise RunError(f"timm's {architecture} has several classifiers; use --format onnx")
    assert isinstance(model.head, LinearHead)
    linear = model.head.linear
    head = {f"{name}.weight": linear.weight, f"{name}.bias": linear.bias}
    unused = set(encoder.net.state_dict()) - set(net.state_dict())
    state = {key: value for key, value in encoder.net.state_dict().items() if key not in unused}
    made = {key: value.detach().clone() for key, value in {**state, **head}.items()}
    return TimmForm(architecture, arguments, made, rewritten=False)


@torch.no_grad()
def _compare(form: TimmForm, model: Classifier, preprocessing: Preprocessing) -> None:
    """See on noise that both are one function, which pools and norms decide that have no weights of their own."""
    pre = preprocessing
    images = torch.randn(2, pre.channels, pre.size, pre.size, generator=torch.Generator().manual_seed(0))
    ours, theirs = model.eval().logits(images), form.build(len(model.classes))(images)
    if (ours - theirs).abs().max() > _CLOSE * ours.abs().max().clamp(min=1e-3):
        raise RunError(
            f"timm's {form.architecture} pools its features in another way than the run does; use --format onnx"
        )
