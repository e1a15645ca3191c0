"""Do maps follow what was learned? Compared with those of the same network with random weights."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from scanprior.api.evaluation import open_subject
from scanprior.api.explanation import Explainer, check_folder, read_all
from scanprior.api.mask_results import root_of
from scanprior.api.predictor import Predictor
from scanprior.api.references import image_references
from scanprior.data.fitting import unfit_maps
from scanprior.data.readers import ImageData
from scanprior.engine import Reporter
from scanprior.errors import DataError, RunError
from scanprior.files import replacing, write_text
from scanprior.reporting.overlays import saliency_overlay
from scanprior.run import EXPLANATIONS
from scanprior.saliency import AUTO, Randomised, likeness, randomised_maps

LOOKED_AT = 32
"""Images of a sanity check, evenly spaced among those given."""

_DRAWN = 4
"""Of them in the picture, all members' rows together."""

_SIDE, _GAP = 144, 4
"""Of an image in the picture, and between two, in pixels."""


def sanity_check(
    run: str | Path,
    paths: str | Path | Sequence[str | Path] | None = None,
    *,
    out: str | Path | None = None,
    method: str = AUTO,
    seed: int = 0,
    reporter: Reporter | None = None,
) -> dict[str, Any]:
    """Compare a run's maps with those of the same network with random weights (``scanprior.saliency``).

    Args:
        run: a fine-tuned classifier, or an ensemble, whose members are checked one by one.
        paths: files and folders, as for ``predict``; None = the run's own test images. Of many images 32, evenly
            spaced.
        out: folder for ``sanity.json`` and ``sanity.png`` (a few images: the trained network's map, then one a stage);
            None = ``explanations`` in the run, where the report finds them, if the images are its own, else none.
        method: as for ``explain``.
        seed: key of the random weights.
        reporter: shows progress.

    Returns:
        ``run``, ``data``, and ``members``: for each ``name``, ``method``, number of ``images``, ``seed``, and
        ``stages``, see ``scanprior.saliency.likeness``.

    Raises:
        ScanpriorError: as ``explain``, and where no image can be read.
    """
    reporter = reporter or Reporter()
    folder = Path(out) if out is not None else Path(run) / EXPLANATIONS if paths is None else None
    if folder is not None:
        check_folder(folder)
    explainer, images, data = _opened(run, paths, reporter)
    methods = explainer.chosen(method)
    members: list[dict[str, Any]] = []
    rows: list[list[Image.Image]] = []
    drawn = max(1, _DRAWN // len(methods))
    for number, (member, name) in enumerate(zip(explainer.predictor.members, methods, strict=True), start=1):
        made = randomised_maps(member.model, explainer.inputs(images, member), name, seed)
        said = {"name": member.name, "method": name, "images": len(images), "seed": seed}
        members.append({**said, "stages": likeness(made)})
        rows += [
            _drawn(images[row], row, made, member.preprocessing.fit) for row in _spaced(len(images), drawn)
        ]
        reporter.counted(number, len(methods), "networks checked")
    result = {"run": str(run), "data": data, "members": members}
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / "sanity.json", json.dumps(result, indent=1))
        with replacing(folder / "sanity.png") as part:
            _sheet(rows).save(part, "PNG", optimize=True)
    return result


def _opened(
    run: str | Path, paths: str | Path | Sequence[str | Path] | None, reporter: Reporter
) -> tuple[Explainer, list[ImageData], str]:
    """Return what explains, the images looked at, and what they are.

    Raises:
        DataError: none of them can be read.
    """
    if paths is not None:
        explainer, references = Explainer(run), image_references(paths)
        roots, data = None, f"{len(references):,} images given"
    else:
        subject = open_subject(run, data=None, split=None, label_map=None, settings=(), reporter=reporter)
        if not isinstance(subject.model, Predictor):
            raise RunError(f"{run}: this run is a segmenter, and a classifier is needed here")
        explainer = Explainer(subject.model)
        names = subject.images.frame["image"]
        references = [str(names.iloc[row]) for row in subject.rows]
        roots = [root_of(subject.images.store, int(row)) for row in subject.rows]
        data = f"the run's own, split {subject.split}"
    places = _spaced(len(references), LOOKED_AT)
    read, errors = read_all(
        [references[place] for place in places], None if roots is None else [roots[place] for place in places]
    )
    images = [image for image in read if image is not None]
    if not images:
        raise DataError(f"{references[0]}: {errors[0]}; the sanity check needs an image that can be read")
    return explainer, images, data


def _spaced(count: int, wanted: int) -> NDArray[np.int64]:
    places = np.linspace(0, count - 1, min(wanted, count)).round()
    return np.unique(places.astype(np.int64))


def _drawn(image: ImageData, row: int, made: Sequence[Randomised], fit: Any) -> list[Image.Image]:
    """Return the maps of an image laid over it, one a stage."""
    height, width = image.pixels.shape[:2]
    maps = np.stack([one.maps[row] for one in made])
    return [
        saliency_overlay(image.pixels, plane, 0.6, _SIDE)
        for plane in unfit_maps(maps, height=height, width=width, fit=fit)
    ]


def _sheet(rows: Sequence[Sequence[Image.Image]]) -> Image.Image:
    """Return pictures as one, each in the middle of its square."""
    step = _SIDE + _GAP
    sheet = Image.new("RGB", (max(map(len, rows)) * step - _GAP, len(rows) * step - _GAP), "black")
    for y, row in enumerate(rows):
        for x, picture in enumerate(row):
            at = x * step + (_SIDE - picture.width) // 2, y * step + (_SIDE - picture.height) // 2
            sheet.paste(picture, at)
    return sheet


def sanity_sentence(result: dict[str, Any]) -> str:
    """Return in a sentence whether maps follow what was learned."""
    parts = []
    for member in result["members"]:
        stages = ", ".join(
            f"{stage['stage']} {'n/a' if stage['spearman'] is None else format(stage['spearman'], '.2f')}"
            for stage in member["stages"]
        )
        name = f"{member['name']}, " if member["name"] else ""
        parts.append(f"{name}{member['method']}: {stages}")
    count = result["members"][0]["images"]
    return (
        f"rank correlation of the maps of {count} images with those after weights were made random, from the head "
        f"down ({'; '.join(parts)}): near 1 they do not show what was learned, near 0 they depend on it"
    )
