"""``explain``: where a trained classifier, or an ensemble of them, looks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from scanprior.api.mask_prediction import file_names
from scanprior.api.models import load_predictor
from scanprior.api.prediction import check_place
from scanprior.api.predictor import Member, Predictor
from scanprior.api.references import image_references
from scanprior.data.fitting import Pixels, unfit_maps
from scanprior.data.paths import absolute_reference
from scanprior.data.readers import ImageData, read_reference
from scanprior.data.transforms import Form, to_input
from scanprior.encoders import PyramidEncoder
from scanprior.engine import Reporter
from scanprior.errors import ConfigError, DataError, ImageReadError
from scanprior.files import replacing, write_text
from scanprior.reporting.overlays import saliency_overlay
from scanprior.run import Run
from scanprior.saliency import AUTO, FEW_CELLS, METHODS, cells_along, check_method, choose_method

Map = NDArray[np.float32]

_COLUMNS = ("image", "predicted", "class", "prob", "overlay", "array", "error")


@dataclass(frozen=True)
class Explanation:
    """Where a classifier looks in an image, for one class.

    Attributes:
        predicted: the class predicted; None of findings, each of which is there or not.
        class_name: what is explained: the class wanted, or predicted; of findings the most probable one.
        probability: of it.
        saliency: (H, W) float32 in [0, 1], as large as the image.
    """

    predicted: str | None
    class_name: str
    probability: float
    saliency: Map


class Explainer:
    """A classifier, or an ensemble of them, loaded once to be explained on many images.

    Args:
        run: a fine-tuned run, or what predicts its classes.

    Attributes:
        predictor: what is explained.
        classes: names of its classes, in order.

    Raises:
        RunError: the run predicts no classes.
    """

    def __init__(self, run: str | Path | Run | Predictor) -> None:
        if isinstance(run, (str, Path)):
            run = Run.open(run)
        self.predictor = run if isinstance(run, Predictor) else load_predictor(run)
        self.classes = list(self.predictor.classes)
        self._chosen: dict[str, list[str]] = {}
        self._weights = self._shares()

    @cached_property
    def methods(self) -> list[str]:
        """Names of the methods that fit every member, ``auto`` first."""
        models = [member.model for member in self.predictor.members]
        return [AUTO, *(n for n, method in METHODS.items() if all(method.why_not(m) is None for m in models))]

    def chosen(self, method: str = AUTO) -> list[str]:
        """Return the name of the method for each member.

        Raises:
            ConfigError: there is no such method, or it does not fit a member.
        """
        if method not in self._chosen:  # to find out takes a forward pass
            check_method(method)
            self._chosen[method] = [self._choose(member, method) for member in self.predictor.members]
        return self._chosen[method]

    def _choose(self, member: Member, method: str) -> str:
        try:
            return choose_method(member.model, method)
        except ConfigError as error:
            raise ConfigError(f"{error} (member {member.name})" if member.name else str(error)) from None

    def remarks(self, method: str = AUTO) -> list[str]:
        """Return what to know of the maps of a method: which it is, and where they are coarse."""
        chosen = self.chosen(method)
        said = [f"method: {', '.join(dict.fromkeys(chosen))}"]
        for member, name in zip(self.predictor.members, chosen, strict=True):
            encoder = member.model.encoder
            if name != "gradcam" or not isinstance(encoder, PyramidEncoder):
                continue
            side = cells_along(encoder)
            if side is not None and side < FEW_CELLS:
                said.append(
                    f"gradcam of {member.name or 'this network'} has {side} x {side} cells at {encoder.size} px, too "
                    f"few to find small things; --method {self._finer(member)} is finer"
                )
        return said

    @staticmethod
    def _finer(member: Member) -> str:
        return "layercam" if METHODS["layercam"].why_not(member.model) is None else "occlusion"

    def check_class(self, name: str) -> str:
        """Return the name of a class.

        Raises:
            ConfigError: the run has no such class; names those it has.
        """
        if name not in self.classes:
            raise ConfigError(f"--class {name}: the run has no such class; it has {', '.join(self.classes)}")
        return name

    def maps(
        self, images: Sequence[ImageData], class_name: str | None = None, method: str = AUTO
    ) -> list[Map]:
        """Return where is looked in some images, at their own sizes.

        Args:
            images: decoded; all of them go through the network together.
            class_name: the class to explain; None = of each image the one predicted.
            method: a name of ``methods``.

        Returns:
            For each image (H, W) float32 in [0, 1], 0 where a crop has not looked. Of an ensemble the mean of its
            members' maps, each of them made with its own preprocessing and divided by its largest value; with fitted
            weights their weighted mean.

        Raises:
            ConfigError: there is no such class or method, or it does not fit.
        """
        return [explained[0].saliency for explained in self.explain(images, [class_name], method)]

    def explain(
        self, images: Sequence[ImageData], class_names: Sequence[str | None] = (None,), method: str = AUTO
    ) -> list[list[Explanation]]:
        """Return for each image one explanation a class; arguments and errors as for ``maps``."""
        methods = self.chosen(method)
        for name in class_names:
            if name is not None:
                self.check_class(name)
        if not images:
            return []
        pixels = self._fitted(images)
        predicted = self.predictor.combined(self.predictor.of_members(pixels))
        best = predicted.argmax(axis=1)
        made: list[list[Explanation]] = [[] for _ in images]
        for name in class_names:
            wanted = best if name is None else np.full(len(images), self.classes.index(name))
            maps = self._maps(images, pixels, wanted, methods)
            for row, place in enumerate(wanted):
                decided = self.classes[best[row]] if self.predictor.kind == "multiclass" else None
                probability = float(predicted[row, place])
                made[row].append(Explanation(decided, self.classes[place], probability, maps[row]))
        return made

    def inputs(self, images: Sequence[ImageData], member: Member) -> torch.Tensor:
        """Return images as the network of a member takes them: (B, C, S, S)."""
        return _input(self._fitted(images), member)

    def _fitted(self, images: Sequence[ImageData]) -> dict[Form, Pixels]:
        fitted = [self.predictor.fitted(image) for image in images]
        return {form: np.stack([each[form] for each in fitted]) for form in self.predictor.forms}

    def _maps(
        self,
        images: Sequence[ImageData],
        pixels: dict[Form, Pixels],
        wanted: NDArray[np.int64],
        methods: Sequence[str],
    ) -> list[Map]:
        """Return the maps of one class an image, at the images' sizes, the members' together."""
        sizes = [image.pixels.shape[:2] for image in images]
        whole = [np.zeros(size, np.float32) for size in sizes]
        for member, weight, name in zip(self.predictor.members, self._weights, methods, strict=True):
            if not weight:  # it has no part in what is predicted
                continue
            pre = member.preprocessing
            batch = _input(pixels, member)
            own = torch.tensor([member.model.classes.index(self.classes[place]) for place in wanted])
            found = METHODS[name].maps(member.model, batch, own).cpu().numpy()
            for row, (height, width) in enumerate(sizes):
                whole[row] += (
                    weight * unfit_maps(found[row : row + 1], height=height, width=width, fit=pre.fit)[0]
                )
        return [saliency.clip(0, 1) for saliency in whole]

    def _shares(self) -> list[float]:
        combination, count = self.predictor.combination, len(self.predictor.members)
        if combination is not None and combination.weights is not None:
            return [float(weight) for weight in combination.weights]
        return [1 / count] * count


def _input(pixels: dict[Form, Pixels], member: Member) -> torch.Tensor:
    made = to_input(torch.from_numpy(pixels[member.preprocessing.form]), member.preprocessing)
    return made.to(member.model.class_weights.device)


def explain(
    run: str | Path,
    paths: str | Path | Sequence[str | Path],
    *,
    out: str | Path,
    method: str = AUTO,
    classes: str | Sequence[str] | None = None,
    opacity: float = 0.5,
    arrays: bool = False,
    batch_size: int = 16,
    reporter: Reporter | None = None,
) -> pd.DataFrame:
    """Show where a run looks in raw images: one row an image and class, with an overlay, or the error.

    Args:
        run: a fine-tuned classifier, or an ensemble.
        paths: files and folders, as for ``predict``.
        out: folder to write: ``overlays/``, ``maps/``, ``explanations.csv`` and ``explanations.json`` (how it was
            made).
        method: ``auto``, ``gradcam``, ``layercam``, ``gradient_attention``, ``attention_rollout`` or ``occlusion``.
        classes: names of classes to explain in every image; None = the predicted one, of findings the most probable.
        opacity: of the highest value of a map, in [0, 1].
        arrays: whether to write the maps, float32 (H, W), as ``.npy`` too.
        batch_size: images per forward pass.
        reporter: shows progress.

    Returns:
        A table with ``image``, ``predicted``, ``class``, ``prob``, ``overlay`` and ``array`` (paths relative to
        ``out``) and ``error``.

    Raises:
        RunError: the run predicts no classes.
        ConfigError: there is no such class or method, the method does not fit, or an opacity outside [0, 1].
        DataError: a path that does not exist, no image found, or a place that cannot be written.
    """
    reporter, out = reporter or Reporter(), Path(out)
    if not 0 <= opacity <= 1:
        raise ConfigError(f"--opacity {opacity:g}: give a number from 0 to 1")
    check_folder(out)
    opened = Run.open(run)
    explainer = Explainer(opened)
    methods = explainer.chosen(method)
    given = [classes] if isinstance(classes, str) else list(classes or ())
    names: list[str | None] = [explainer.check_class(name) for name in dict.fromkeys(given)] or [None]
    references = image_references(paths)
    for remark in explainer.remarks(method):
        reporter.note(remark)
    files, rows = file_names(references), []
    for start in range(0, len(references), batch_size):
        chunk = references[start : start + batch_size]
        images, errors = read_all(chunk)
        explained = iter(explainer.explain([image for image in images if image is not None], names, method))
        for reference, image, error in zip(chunk, images, errors, strict=True):
            if image is None:
                rows.append({"image": reference, "error": error})
                continue
            for each in next(explained):
                stem = files[reference] if names == [None] else f"{files[reference]}-{_slug(each, explainer)}"
                rows.append(_saved(out, stem, reference, image, each, opacity, arrays))
        reporter.counted(start + len(chunk), len(references), "images explained")
    table = pd.DataFrame(rows).reindex(columns=list(_COLUMNS))
    _save_table(out, table, opened, methods, given, opacity)
    return table


def check_folder(out: Path) -> None:
    """See before the work that a folder can be written.

    Raises:
        DataError: a file is there, or it lies in one, or in a folder that cannot be written to.
    """
    if out.exists() and not out.is_dir():
        raise DataError(f"--out {out}: explanations need a folder, and a file is here")
    check_place(out)


def read_all(
    references: Sequence[str], roots: Sequence[Path] | None = None
) -> tuple[list[ImageData | None], list[str | None]]:
    """Read images; return each or None, and for each its error or None.

    Args:
        references: as ``read_reference`` takes them.
        roots: folders that they start at; None = the working folder.
    """
    images: list[ImageData | None] = []
    errors: list[str | None] = []
    for number, reference in enumerate(references):
        try:
            place = (absolute_reference(reference),) if roots is None else (reference, roots[number])
            images.append(read_reference(*place))
            errors.append(None)
        except ImageReadError as error:
            images.append(None)
            errors.append(error.reason)
    return images, errors


def _saved(
    out: Path,
    stem: str,
    reference: str,
    image: ImageData,
    explained: Explanation,
    opacity: float,
    arrays: bool,
) -> dict[str, Any]:
    """Write the overlay, and the array, of an explanation; return its row."""
    row = {
        "image": reference,
        "predicted": explained.predicted,
        "class": explained.class_name,
        "prob": explained.probability,
        "overlay": f"overlays/{stem}.png",
    }
    (out / "overlays").mkdir(parents=True, exist_ok=True)
    saliency_overlay(image.pixels, explained.saliency, opacity).save(out / "overlays" / f"{stem}.png")
    if arrays:
        row["array"] = f"maps/{stem}.npy"
        (out / "maps").mkdir(parents=True, exist_ok=True)
        np.save(out / "maps" / f"{stem}.npy", explained.saliency, allow_pickle=False)
    return row


def _slug(explained: Explanation, explainer: Explainer) -> str:
    """Return a class's name for a file: its number in front, as names that differ may not do so in letters alone."""
    letters = "".join(c if c.isalnum() else "-" for c in explained.class_name)
    return f"{explainer.classes.index(explained.class_name)}-{letters}"


def _save_table(
    out: Path, table: pd.DataFrame, run: Run, methods: Sequence[str], classes: Sequence[str], opacity: float
) -> None:
    out.mkdir(parents=True, exist_ok=True)
    said = {
        "run": str(run.path),
        "card": run.card_fingerprint(),
        "methods": list(methods),
        "classes": list(classes) or "predicted",
        "opacity": opacity,
    }
    write_text(out / "explanations.json", json.dumps(said, indent=1))
    with replacing(out / "explanations.csv") as part:
        table.to_csv(part, index=False)
