"""Do maps lie where a reader drew the finding?"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from scanprior.api.evaluation import Subject, open_subject, training_images_among
from scanprior.api.explanation import Explainer, check_folder
from scanprior.api.mask_results import root_of
from scanprior.api.predictor import Predictor
from scanprior.data.masks import mask_columns
from scanprior.data.readers import read_mask, read_reference
from scanprior.data.split import NEAR_DUPLICATES
from scanprior.engine import Reporter
from scanprior.errors import ConfigError, DataError, ImageReadError, RunError
from scanprior.evaluation import count_patients, evaluate_pointing, pointing_row
from scanprior.files import replacing, write_text
from scanprior.run import EXPLANATIONS
from scanprior.saliency import AUTO


@dataclass(frozen=True)
class _Case:
    """An image whose finding a reader has drawn."""

    row: int
    class_name: str
    mask: str


def pointing(
    run: str | Path,
    data: str | Path | None = None,
    *,
    out: str | Path | None = None,
    split: str | None = None,
    classes: Sequence[str] | None = None,
    mask: str | None = None,
    method: str = AUTO,
    tolerance: float = 0.0,
    label_map: Mapping[str, str] | None = None,
    settings: Iterable[str] = (),
    batch_size: int = 16,
    reporter: Reporter | None = None,
) -> dict[str, Any]:
    """Compare a run's maps with masks: the pointing game and the share of saliency inside, beside random saliency.

    An image takes part if its label is one of the classes (a finding: if it is there) and its mask is not empty; it
    is explained for that class, whatever was predicted, at its own size.

    Args:
        run: a fine-tuned classifier, or an ensemble.
        data: images with labels and masks; None = the run's own.
        out: folder for ``pointing.json`` and ``pointing.csv`` (one row an image and class); None = ``explanations`` in
            the run, where the report finds them, if the data are its own, else none.
        split: as for ``evaluate``.
        classes: classes to explain; None = all that masks are there for.
        mask: the column of the masks; None = ``mask``, or of a class NAME the column ``mask:NAME``.
        method: as for ``explain``.
        tolerance: pixels of the image by which the highest point may miss the mask.
        label_map: labels of the data: labels of the run.
        settings: ``evaluation.resamples=1000``, and so on.
        batch_size: images per forward pass.
        reporter: shows progress.

    Returns:
        ``metrics``, as ``scanprior.evaluation.evaluate_pointing`` returns them; ``n`` (images and classes),
        ``patients``, ``by_class`` (how many of each), ``silent`` (maps that are zero), ``errors`` and how it was made.

    Raises:
        ScanpriorError: as ``evaluate`` and ``explain``; no image of these classes has a mask.
    """
    reporter = reporter or Reporter()
    if tolerance < 0:
        raise ConfigError(f"--tolerance {tolerance:g}: give a number of pixels, at least 0")
    folder = Path(out) if out is not None else Path(run) / EXPLANATIONS if data is None else None
    if folder is not None:
        check_folder(folder)
    subject = open_subject(
        run, data=data, split=split, label_map=label_map, settings=settings, reporter=reporter
    )
    if not isinstance(subject.model, Predictor):
        raise RunError(f"{run}: this run is a segmenter, and a classifier is needed here")
    explainer = Explainer(subject.model)
    methods = explainer.chosen(method)
    wanted = [explainer.check_class(name) for name in classes or explainer.classes]
    training_images_among(subject.run, subject.images, subject.rows, reporter)
    for remark in explainer.remarks(method):
        reporter.note(remark)
    cases = _cases(subject, wanted, mask, named=classes is not None)
    table = _measured(subject, explainer, cases, method, tolerance, batch_size, reporter)
    good = table[table["error"].isna()].reset_index(drop=True)
    if not len(good):
        why = f" (of {len(table)} images {table['error'].iloc[0]})" if len(table) else ""
        raise DataError(
            f"{subject.data}, split {subject.split}: no mask that is not empty is there to point at{why}"
        )
    config = subject.config
    result = {
        "run": str(run),
        "data": subject.data,
        "split": subject.split,
        "methods": methods,
        "tolerance": tolerance,
        "n": len(good),
        "patients": count_patients(good),
        "by_class": {str(name): int(count) for name, count in good["class"].value_counts().items()},
        "silent": int(good["silent"].sum()),
        "errors": len(table) - len(good),
        "level": config.level,
        "metrics": evaluate_pointing(good, resamples=config.resamples, seed=config.seed, level=config.level),
    }
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / "pointing.json", json.dumps(result, indent=1))
        with replacing(folder / "pointing.csv") as part:
            table.to_csv(part, index=False)
    return result


def _cases(subject: Subject, classes: Sequence[str], mask: str | None, *, named: bool) -> list[_Case]:
    """Return the images of the classes that name a mask.

    Raises:
        DataError: there is no such column, or none of the images has a label of the classes and a mask.
    """
    model, frame = subject.model, subject.images.frame
    columns = mask_columns(frame)
    if mask is not None and mask not in columns:
        raise DataError(
            f"--mask {mask}: {subject.data} has no such column; it has {', '.join(columns) or 'no masks'}"
        )
    cases = []
    for name in classes:
        column = mask or (f"mask:{name}" if f"mask:{name}" in columns else "mask")
        if column not in columns:
            if named or not columns:
                hint = (
                    f"it has {', '.join(columns)}; name one with --mask"
                    if columns
                    else "name them in a column 'mask'"
                )
                raise DataError(f"{subject.data}: has no masks of {name}; {hint}")
            continue
        labels = frame["label"] == name if model.kind == "multiclass" else frame.get(name) == 1
        for row in subject.rows:
            if bool(np.asarray(labels)[row]) and pd.notna(frame[column].iloc[row]):
                cases.append(_Case(int(row), name, str(frame[column].iloc[row])))
    if not cases:
        raise DataError(
            f"{subject.data}, split {subject.split}: no image of {', '.join(classes)} has a mask; name another "
            "split or class"
        )
    return cases


def _measured(
    subject: Subject,
    explainer: Explainer,
    cases: Sequence[_Case],
    method: str,
    tolerance: float,
    batch_size: int,
    reporter: Reporter,
) -> pd.DataFrame:
    """Return one row a case with its scores; an image without a finding in its mask takes no part."""
    frame, rows = subject.images.frame, []
    for start in range(0, len(cases), batch_size):
        chunk = cases[start : start + batch_size]
        for name in dict.fromkeys(case.class_name for case in chunk):
            of_class = [case for case in chunk if case.class_name == name]
            read = [_read(subject, case) for case in of_class]
            good = [pair for pair in read if not isinstance(pair, str) and pair[1].any()]
            maps = iter(explainer.maps([image for image, _ in good], name, method))
            for case, found in zip(of_class, read, strict=True):
                row: dict[str, Any] = {"image": frame["image"].iloc[case.row], "class": name}
                for kept in ("patient", NEAR_DUPLICATES):
                    row |= {kept: frame[kept].iloc[case.row]} if kept in frame else {}
                if isinstance(found, str):
                    rows.append({**row, "error": found})
                elif found[1].any():
                    rows.append({**row, **pointing_row(next(maps), found[1], tolerance), "error": None})
        reporter.counted(start + len(chunk), len(cases), "images explained")
    return pd.DataFrame(rows, columns=None if rows else ["error"])


def _read(subject: Subject, case: _Case) -> tuple[Any, NDArray[np.bool_]] | str:
    """Return an image and its mask at its size, or why they cannot be read."""
    root = root_of(subject.images.store, case.row)
    try:
        image = read_reference(str(subject.images.frame["image"].iloc[case.row]), root)
        mask = read_mask(case.mask, root) > 0
    except ImageReadError as error:
        return error.reason
    height, width = image.pixels.shape[:2]
    if mask.shape != (height, width):  # masks at half the size of their images are common
        tall, wide = mask.shape
        if abs(tall * width - wide * height) > max(height, width):
            return f"the mask has {wide} x {tall} pixels and its image {width} x {height}"
        mask = np.asarray(Image.fromarray(mask).resize((width, height), Image.Resampling.NEAREST))
    return image, mask


def pointing_sentences(result: dict[str, Any]) -> list[str]:
    """Return what was found, one line a metric."""
    whose = "" if result["patients"] is None else f" of {result['patients']:,} patients"
    said = [f"{result['n']:,} images{whose} with a mask, {', '.join(dict.fromkeys(result['methods']))}"]
    for row in result["metrics"]:
        inside = f"{row['value']:.3f}{_interval(row['low'], row['high'], '.3f')}"
        over = f"{row['difference']:+.3f}{_interval(row['difference_low'], row['difference_high'], '+.3f')}"
        said.append(
            f"{row['metric'].replace('_', ' ')}: {inside}, random saliency {row['chance']:.3f}, difference {over}"
        )
    return said


def _interval(low: float | None, high: float | None, form: str) -> str:
    return "" if low is None or high is None else f" [{low:{form}} to {high:{form}}]"
