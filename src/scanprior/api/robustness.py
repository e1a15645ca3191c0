"""``drift`` and ``shift``: how a run stands changed images, and whether other images differ at all."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from scanprior.api.evaluation import Subject, choose_rows, open_subject
from scanprior.api.mask_results import measure_masks
from scanprior.api.models import load_encoder
from scanprior.api.prediction_tables import certain
from scanprior.api.settings import DataConfig
from scanprior.api.sources import Images, load
from scanprior.config import build, merge, parse_settings
from scanprior.data.drifts import DRIFTS, apply_drift, find_drift
from scanprior.data.fitting import Pixels
from scanprior.data.loader import evaluation_batches
from scanprior.data.store import ImageStore, Rows, Sums
from scanprior.data.transforms import Preprocessing
from scanprior.engine import Reporter
from scanprior.errors import DataError
from scanprior.evaluation import MaskScorer, Scorer, drift_rows, shift_score
from scanprior.files import replacing, write_text
from scanprior.run import Run
from scanprior.tasks.segment import Segmenter


class DriftedStore(ImageStore):
    """A store whose images come out under one synthetic drift; everything else is the store's.

    Args:
        store: the images.
        kind, severity, seed: as for ``apply_drift``; the position of an image is its row.
    """

    def __init__(self, store: ImageStore, kind: str, severity: int, seed: int) -> None:
        self.name, self.label_columns, self.fingerprint = store.name, store.label_columns, store.fingerprint
        self.size, self.channels, self.depth, self.fit = store.size, store.channels, store.depth, store.fit
        self.mean, self.std, self.audit = store.mean, store.std, store.audit
        self._store, self._drift = store, (kind, severity, seed)

    @property
    def frame(self) -> pd.DataFrame:
        """The table of the images."""
        return self._store.frame

    def __len__(self) -> int:
        return len(self._store)

    def read(self, rows: Rows) -> Pixels:
        """Return the changed images at ``rows`` (B,): (B, C, S, S) uint8 or uint16."""
        kind, severity, seed = self._drift
        pixels: Pixels = apply_drift(
            self._store.read(rows), kind, severity, seed=seed, positions=np.asarray(rows, dtype=np.int64)
        ).numpy()
        return pixels

    def sums(self, rows: Rows) -> Sums:
        """Return the sums of the images before the drift: what a network was told of them."""
        return self._store.sums(rows)


def drift(
    run: str | Path,
    *,
    kinds: Sequence[str] | None = None,
    data: str | Path | None = None,
    split: str | None = None,
    seed: int = 0,
    settings: Iterable[str] = (),
    reporter: Reporter | None = None,
) -> dict[str, Any]:
    """Measure a run on synthetically changed images: eight kinds of drift, at five severities.

    The images are changed as they are stored, before the network's own normalisation. What is measured and
    the operating thresholds are those of the run's evaluation.

    Args:
        run: a fine-tuned run.
        kinds: of ``scanprior.data.drifts.DRIFTS``; None = all.
        data, split, settings: as for ``evaluate``; default the run's own test images.
        seed: key of everything random in the drifts.
        reporter: shows progress.

    Returns:
        As written to ``drifts.json`` of the run (``drifts-NAME.json`` where data or split are given): ``rows`` with
        kind, severity (0 = unchanged), metric, class, value, low, high, and the paired ``difference`` from the
        unchanged images with its ``difference_low``, ``difference_high``, ``p``. The predictions are beside it as
        Parquet.

    Raises:
        ScanpriorError: as for ``evaluate``; an unknown kind.
    """
    reporter = reporter or Reporter()
    chosen = list(DRIFTS) if kinds is None else list(dict.fromkeys(kinds))
    for kind in chosen:
        find_drift(kind)
    subject = open_subject(run, data=data, split=split, label_map=None, settings=settings, reporter=reporter)
    tables = [_measured(subject, None).assign(kind="none", severity=0)]
    for number, kind in enumerate(chosen):
        for severity in range(1, len(DRIFTS[kind].values) + 1):
            drifted = partial(DriftedStore, kind=kind, severity=severity, seed=seed)
            tables.append(_measured(subject, drifted).assign(kind=kind, severity=severity))
            reporter.counted(number * 5 + severity, len(chosen) * 5, "drifts measured")
    together = pd.concat(tables, ignore_index=True)
    config = subject.config
    result = {
        "run": str(subject.run.path),
        "images": subject.name,
        "data": None if data is None else str(data),
        "seed": seed,
        "kinds": {kind: _described(kind) for kind in chosen},
        **drift_rows(
            together,
            lambda table: _scorer(subject, table),
            resamples=config.resamples,
            seed=config.seed,
            level=config.level,
        ),
    }
    place = subject.run.path / ("drifts" if data is None and split is None else f"drifts-{subject.name}")
    with replacing(place.with_name(place.name + ".parquet")) as part:
        together.to_parquet(part, index=False)
    write_text(place.with_name(place.name + ".json"), json.dumps(result, indent=1))
    return result


def _described(kind: str) -> dict[str, Any]:
    found = DRIFTS[kind]
    return {"description": found.description, "parameter": found.parameter, "values": list(found.values)}


def _scorer(subject: Subject, table: pd.DataFrame) -> Scorer | MaskScorer:
    model, positive = subject.model, subject.config.positive_class
    if isinstance(model, Segmenter):
        return MaskScorer(table, model.classes.names)
    return Scorer(table, model.classes, model.kind, subject.thresholds(model), positive, model.ordered)


def _measured(subject: Subject, change: Callable[[ImageStore], ImageStore] | None) -> pd.DataFrame:
    """Predict or, of masks, measure the images of a subject; one row each."""
    if not isinstance(subject.model, Segmenter):
        return certain(subject.predictions(subject.model, change), subject.model)
    masks = subject.images.masks
    assert masks is not None
    rows = subject.rows[masks.has[subject.rows]]
    if not len(rows):
        raise DataError(f"{subject.data}: no image of this split has a mask")
    store = None if change is None else change(subject.images.store)
    return measure_masks(subject.model, subject.images, masks, rows, subject.preprocessing, store=store)


def shift(
    run: str | Path,
    reference: str | Path,
    target: str | Path,
    *,
    reference_split: str | None = None,
    target_split: str | None = None,
    same_patients: bool = False,
    permutations: int = 1000,
    seed: int = 0,
    level: float = 0.05,
    out: str | Path | None = None,
    settings: Iterable[str] = (),
    reporter: Reporter | None = None,
) -> dict[str, Any]:
    """Test, without labels, whether images differ from a reference, as the encoder of a run sees them.

    Args:
        run: whose encoder gives the features; a pretrained or a fine-tuned one.
        reference: images of the kind the model was made for.
        target: the others, such as another hospital's.
        reference_split, target_split: which split of each, as for ``evaluate``; None = every image. Take ``held-out``
            of images that the encoder was trained on: they may look alike to it for that alone.
        same_patients: whether equal names of patients in both are the same people, who then change sides together.
        permutations, seed, level: as for ``evaluation.shift_score``.
        out: a JSON file to write.
        settings: ``data.*`` keys for both.
        reporter: shows progress.

    Returns:
        As ``evaluation.shift_score``, with ``run``, ``sources`` and ``identical_images`` (target images that are
        pixel for pixel in the reference).

    Raises:
        ScanpriorError: what cannot be read, or other channels than the run takes.
    """
    reporter = reporter or Reporter()
    opened = Run.open(run)
    encoder = load_encoder(opened)
    preprocessing = Preprocessing.model_validate(opened.card["preprocessing"])
    kept = opened.config()["data"]
    own = {n: kept[n] for n in ("size", "store_size", "depth", "fit", "workers")}
    config = build(
        DataConfig,
        merge(own, {"channels": preprocessing.channels}, parse_settings(settings).get("data", {})),
        {"exclude_leaks": False},
    )
    one = same_patients or Path(reference).resolve() == Path(target).resolve()
    features, patients, pixels = [], [], []
    for side, source, split in (("reference", reference, reference_split), ("target", target, target_split)):
        images = load(
            [str(source)], config, reporter, learn="nothing", divide=split is not None, training=False
        )
        rows, _ = choose_rows(images, split or "all", own=False)
        frame = images.frame.iloc[rows]
        features.append(_features(encoder, images, rows, preprocessing))
        names = frame.get("patient")
        patients.append(None if names is None else (names if one else f"{side}/" + names).tolist())
        pixels.append(frame["pixels"])
    result = shift_score(
        *features,
        reference_patients=patients[0],
        target_patients=patients[1],
        permutations=permutations,
        seed=seed,
        level=level,
    )
    result |= {
        "run": str(opened.path),
        "sources": {"reference": str(reference), "target": str(target)},
        "splits": {"reference": reference_split, "target": target_split},
        "identical_images": int(pixels[1].isin(set(pixels[0])).sum()),
    }
    if out is not None:
        Path(out).parent.mkdir(parents=True, exist_ok=True)
        write_text(Path(out), json.dumps(result, indent=1))
    return result


def _features(
    encoder: Any, images: Images, rows: Rows, preprocessing: Preprocessing, batch: int = 128
) -> NDArray[np.float64]:
    import torch

    with torch.no_grad():
        made = [
            encoder(part).pooled.double()
            for part in evaluation_batches(images.store, rows, preprocessing, batch)
        ]
    return np.asarray(torch.cat(made).numpy())
