"""``export``: a run as a file that needs no scanprior, checked against it, with a model card beside it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from PIL import Image

from scanprior import __version__
from scanprior.api.export_check import (
    CheckImages,
    Parity,
    Probabilities,
    Sides,
    check_images,
    compare_sides,
    unresized,
)
from scanprior.api.export_words import Described, export_notes
from scanprior.api.models import built_anew, load_predictor, load_segmenter
from scanprior.api.prediction import check_place
from scanprior.api.predictor import Predictor
from scanprior.data.fitting import Pixels
from scanprior.data.inputs import to_input
from scanprior.data.preprocessing import Preprocessing, prepare_image
from scanprior.data.readers import ImageData
from scanprior.engine import Reporter
from scanprior.errors import ConfigError, DataError, RunError
from scanprior.exporting import (
    ClassifierGraph,
    Graph,
    SegmenterGraph,
    open_file,
    open_timm,
    refuse_unfit,
    require_packages,
    timm_form,
    write_file,
    write_timm,
)
from scanprior.files import write_text
from scanprior.reporting.model_card import RESEARCH_ONLY, model_card
from scanprior.reporting.weights_origin import known_licence
from scanprior.run import Run
from scanprior.tasks.classify import probabilities
from scanprior.tasks.segment import Segmenter

Format = Literal["onnx", "torchscript", "timm", "hf"]
ENDINGS = {"onnx": (".onnx",), "torchscript": (".pt", ".ts"), "timm": (), "hf": ()}
"""What the name of a file of each format ends with; none = it is a folder."""

_IN_GRAPH = "so that the file resizes them, and not Pillow, which rounds to whole numbers"
_BY_TIMM = "through timm's own preprocessing"


@dataclass(frozen=True)
class Exported:
    """What an export wrote.

    Attributes:
        path: the file or folder.
        card: the model card.
        parity: how far it agrees with the run.
    """

    path: Path
    card: Path
    parity: Parity


@dataclass(frozen=True)
class _Model:
    """A run's networks: as ``predict`` uses them, and as a graph."""

    run: Run
    graph: Graph
    predict: Callable[[Sequence[ImageData]], Probabilities]
    predictor: Predictor | None
    names: list[str]
    kind: str


def export(
    run: str | Path,
    *,
    format: Format,
    out: str | Path,
    images: str | Path | Sequence[str | Path] | None = None,
    reporter: Reporter | None = None,
) -> Exported:
    """Write a run as a file that other programs load, and compare the file with the run.

    Args:
        run: a fine-tuned classifier, an ensemble or a segmenter.
        format: ``onnx`` or ``torchscript``, a file that holds preprocessing, networks and combination; ``timm`` or
            ``hf``, a folder with one classifier's network that timm or transformers loads.
        out: the file (``.onnx``; ``.pt`` or ``.ts``) or a new folder.
        images: 8 files or more, or folders, to compare on; None = the run's own test or validation images where they
            are still there, else phantoms.
        reporter: is told what was compared.

    Returns:
        Where file and card are, and the largest differences.

    Raises:
        ScanpriorError: a format that the run has no form in, or a file that does not agree with the run; then
            nothing is left behind.
    """
    reporter = reporter or Reporter()
    target = Path(out)
    _check(format, target)
    opened = Run.open(run)
    model = _model(opened)
    chosen = check_images(opened, images)
    if format in ("onnx", "torchscript"):
        refuse_unfit(model.graph, format)
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.part")
    _remove(part)
    try:
        parity, described = _written(model, format, part, chosen)
        parity.refuse_large(str(target))
        notes = export_notes(described, target, parity)
        text = model_card(opened, notes)
        card = (part if described.folder else target).joinpath("README.md")
        if not described.folder:
            card = target.with_name(f"{target.name}.md")
        write_text(card, text)
        part.replace(target)
    except BaseException:
        _remove(part)
        raise
    for sentence in parity.sentences():
        reporter.note(sentence)
    return Exported(target, target / "README.md" if described.folder else card, parity)


def _check(format: str, target: Path) -> None:
    """See before the work that the format is known, its packages are there and its place is free.

    Raises:
        ConfigError: an unknown format, or packages that are missing.
        DataError: a place that does not fit.
    """
    if format not in get_args(Format):
        raise ConfigError(f"--format {format}: choose one of {', '.join(get_args(Format))}")
    require_packages(format)
    endings = ENDINGS[format]
    if endings and target.suffix not in endings:
        raise DataError(f"--out {target}: a file of this format ends with {' or '.join(endings)}")
    if endings and target.is_dir():
        raise DataError(f"--out {target}: a folder is here; name a file")
    if not endings and (target.is_file() or (target.is_dir() and any(target.iterdir()))):
        raise DataError(f"--out {target}: something is here already; name a new folder")
    check_place(target)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _model(run: Run) -> _Model:
    if run.card["kind"] == "segment":
        segmenter, preprocessing = load_segmenter(run)
        kind = segmenter.classes.kind
        names = [*(["background"] if kind == "multiclass" else []), *segmenter.classes.names]
        return _Model(
            run, SegmenterGraph(segmenter, preprocessing), _maps(segmenter, preprocessing), None, names, kind
        )
    predictor = load_predictor(run)
    members = [(member.model, member.preprocessing) for member in predictor.members]
    graph = ClassifierGraph(members, predictor.classes, predictor.combination)

    def predict(images: Sequence[ImageData]) -> Probabilities:
        fitted = [predictor.fitted(image) for image in images]
        pixels = {form: np.stack([each[form] for each in fitted]) for form in predictor.forms}
        return predictor.combined(predictor.of_members(pixels))

    return _Model(run, graph, predict, predictor, predictor.classes, predictor.kind)


def _maps(model: Segmenter, preprocessing: Preprocessing) -> Callable[[Sequence[ImageData]], Probabilities]:
    def predict(images: Sequence[ImageData]) -> Probabilities:
        pixels = np.stack([prepare_image(image, preprocessing) for image in images])
        (maps,) = model.predict([to_input(pixels, preprocessing)])
        return maps.numpy()

    return predict


def _written(model: _Model, format: Format, part: Path, images: CheckImages) -> tuple[Parity, Described]:
    """Write the file or folder, load it again, and compare."""
    licence = known_licence(model.run)
    if format == "timm" or format == "hf":
        return _folder(model, format, part, images, licence)
    metadata = _metadata(model, licence)
    graph = model.graph
    write_file(graph, part, format, metadata)
    opened = open_file(part, format)

    def in_torch(pixels: Pixels) -> Probabilities:
        with torch.no_grad():
            return graph(torch.from_numpy(pixels)).numpy()  # type: ignore[no-any-return]

    def raw(image: ImageData) -> Probabilities:
        return opened(unresized(image, graph.form)[None])

    sides = Sides(model.predict, opened, in_torch, raw, _IN_GRAPH)
    parity = compare_sides(sides, images, graph.form, len(graph.forms) == 1)
    return parity, Described(format, model.run, model.names, model.kind, graph.form, None)


def _folder(
    model: _Model, format: Literal["timm", "hf"], part: Path, images: CheckImages, licence: str | None
) -> tuple[Parity, Described]:
    run = model.run
    try:
        if model.predictor is None or run.is_ensemble:
            what = "a segmenter" if model.predictor is None else "an ensemble"
            raise RunError(f"the run is {what}, and it takes one classifier; use --format onnx")
        member = model.predictor.members[0]
        form = timm_form(member.model, member.preprocessing, built_anew(run))
    except RunError as error:
        raise RunError(f"{run.path}: cannot be written as --format {format}: {error}") from error
    part.mkdir()
    write_timm(form, member.model, member.preprocessing, part, licence)
    network, transform = open_timm(part, format)
    pre = member.preprocessing

    def computed(inputs: torch.Tensor) -> Probabilities:
        with torch.no_grad():
            return probabilities(network(inputs), member.model.kind).numpy()

    def raw(image: ImageData) -> Probabilities:
        return computed(transform(_picture(image, pre.channels))[None])

    def squares(pixels: Pixels) -> Probabilities:
        return computed(to_input(pixels, pre))

    parity = compare_sides(Sides(model.predict, squares, None, raw, _BY_TIMM), images, pre.form, True)
    return parity, Described(format, run, model.names, model.kind, pre.form, form)


def _picture(image: ImageData, channels: int) -> Image.Image:
    """Return a decoded image as the 8-bit picture that one opens with Pillow."""
    pixels = image.pixels if image.pixels.dtype == np.uint8 else (image.pixels // 257).astype(np.uint8)
    picture = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    return picture.convert("L" if channels == 1 else "RGB")


def _metadata(model: _Model, licence: str | None) -> Mapping[str, str]:
    """Return what a file says of itself."""
    form = model.graph.form
    run = model.run
    return {
        "classes": json.dumps(model.names),
        "kind": model.kind,
        "task": "segmentation" if model.predictor is None else "classification",
        "input": json.dumps({**form._asdict(), "forms": len(model.graph.forms)}),
        "encoder": str(run.card["encoder"].get("name")),
        "fingerprint": run.card_fingerprint() if run.is_ensemble else run.fingerprint(),
        "scanprior_version": __version__,
        "weights_licence": licence or "not known",
        "use": RESEARCH_ONLY,
    }
