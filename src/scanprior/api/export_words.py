"""What the model card of an exported file says of loading it."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from scanprior import __version__
from scanprior.api.export_check import Parity
from scanprior.data.preprocessing import Form
from scanprior.exporting import TimmForm
from scanprior.reporting.model_card import ExportNotes
from scanprior.run import Run

_LOADING = {
    "onnx": """import numpy as np, onnxruntime

session = onnxruntime.InferenceSession("{name}")
probabilities = session.run(None, {{"images": images}})[0]  # images: {dtype} (B, {channels}, H, W)""",
    "torchscript": """import torch

probabilities = torch.jit.load("{name}")(images)  # images: torch.{dtype} (B, {channels}, H, W)""",
    "timm": """import timm

model = timm.create_model("local-dir:{name}", pretrained=True).eval()""",
    "hf": """from transformers import AutoModelForImageClassification

model = AutoModelForImageClassification.from_pretrained("{name}").eval()""",
}
_WRITERS = {
    "onnx": ("torch", "onnx", "onnxscript", "onnxruntime"),
    "torchscript": ("torch",),
    "timm": ("torch", "timm"),
    "hf": ("torch", "timm", "transformers"),
}
_SQUARE = {
    "squash": "An image of any height and width is squashed to the square, as in training.",
    "pad": "Make an image square yourself before, as in training: centred on black.",
    "crop": "Make an image square yourself before, as in training: its central square.",
}


@dataclass(frozen=True)
class Described:
    """An exported file: its format, the run, its classes, the form of its images, and of a folder the network."""

    format: str
    run: Run
    classes: list[str]
    kind: str
    form: Form
    timm: TimmForm | None

    @property
    def folder(self) -> bool:
        """Whether it is a folder."""
        return self.timm is not None


def export_notes(described: Described, target: Path, parity: Parity) -> ExportNotes:
    """Return what the card of a file says beyond that of its run."""
    form, name = described.form, target.name
    dtype = "uint16" if form.depth == 16 else "uint8"
    code = _LOADING[described.format].format(name=name, dtype=dtype, channels=form.channels)
    loading = _of_folder(described) if described.timm is not None else _of_file(described, dtype)
    first, *rest = parity.sentences()
    versions = {"scanprior": __version__, **_versions(described.format)}
    return ExportNotes(name, code, loading, [first, *rest], versions, _metadata(described))


def _of_file(described: Described, dtype: str) -> list[str]:
    form = described.form
    square = f"(B, {form.channels}, {form.size}, {form.size})"
    whole = {"multiclass": "1 together for an image", "multilabel": "every finding by itself"}
    names = ", ".join(described.classes)
    out = f"`probabilities` (B, {len(described.classes)}), {whole.get(described.kind, '')}: {names}."
    if described.run.card["kind"] == "segment":
        side = described.run.card["preprocessing"]["size"]
        out = f"`probabilities` (B, {len(described.classes)}, {side}, {side}) of every pixel for: {names}."
    return [
        f"In: `images`, {dtype} over the full range, (batch, {form.channels}, height, width), all three of any size; "
        f"`scanprior predict` stores {square}.",
        f"Out: {out}",
        _SQUARE[form.fit],
        "Scaling, resizing and standardisation are inside; reading a file (DICOM windows, orientation) is not.",
    ]


def _of_folder(described: Described) -> list[str]:
    assert described.timm is not None
    kind = "softmax" if described.kind == "multiclass" else "sigmoid"
    said = [
        f"Out: logits (B, {len(described.classes)}) of {', '.join(described.classes)}; probabilities by {kind}.",
        "Its preprocessing is `timm.data.create_transform(**timm.data.resolve_model_data_config(model))`, with "
        "`AutoImageProcessor` of transformers the same.",
    ]
    if described.form.channels == 1:
        said.append('It takes grey pictures: `PIL.Image.open(FILE).convert("L")`.')
    if described.form.fit == "pad":
        said.append(
            "timm pads with the mean colour and training padded with black: pad images yourself before."
        )
    if described.timm.rewritten:
        said.append(
            f"The architecture is {described.timm.architecture} with its dimensions set and its rotary positions and "
            "gates off, which computes what the run's vision transformer computes: timm's plain one has no norm "
            "before its classifier, and the run has."
        )
    return said


def _metadata(described: Described) -> str:
    if described.timm is None:
        return ""
    library = "timm" if described.format == "timm" else "transformers"
    return (
        f"library_name: {library}\npipeline_tag: image-classification\ntags:\n- medical-imaging\n- scanprior"
    )


def _versions(format: str) -> dict[str, str]:
    found = {}
    for package in _WRITERS[format]:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
