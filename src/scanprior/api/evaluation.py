"""``evaluate`` and ``compare``: how good a run is, with intervals."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from scanprior.api.division import Learn
from scanprior.api.ensemble_results import members_section
from scanprior.api.evaluation_files import Origin, check_name, evaluation_name, save_evaluation
from scanprior.api.mask_results import evaluate_stored_masks
from scanprior.api.models import load_predictor, load_segmenter
from scanprior.api.outlier_detection import OutlierDetector
from scanprior.api.prediction_tables import (
    certain,
    labelled_only,
    predictions_table,
    thresholds_from,
    validation_predictions,
    with_errors,
)
from scanprior.api.predictor import Predictor
from scanprior.api.settings import DataConfig, EvaluationConfig
from scanprior.api.sources import Images, load, renamed
from scanprior.config import build, merge, nest, parse_settings
from scanprior.data.store import ImageStore
from scanprior.data.transforms import Preprocessing
from scanprior.engine import Reporter
from scanprior.errors import DataError, RunError
from scanprior.evaluation import compare as compare_predictions
from scanprior.evaluation import compare_masks
from scanprior.evaluation import evaluate as evaluate_predictions
from scanprior.evaluation.conformal_sets import ConformalSets
from scanprior.evaluation.outliers import flagged_shares
from scanprior.files import replacing
from scanprior.run import Run
from scanprior.tasks.segment import Segmenter


def keep_predictions(run: Run, images: Images, tables: tuple[pd.DataFrame, pd.DataFrame]) -> None:
    """Write ``predictions.parquet``: what was predicted for validation and test images of a run's own data."""
    together = pd.concat([table for table in tables if len(table)] or tables, ignore_index=True)
    with replacing(run.path / "predictions.parquet") as part:
        with_errors(together, images).to_parquet(part, index=False)


def evaluate_tables(
    run: Run,
    images: Images,
    tables: tuple[pd.DataFrame, pd.DataFrame],
    model: Predictor,
    config: EvaluationConfig,
    reporter: Reporter,
) -> dict[str, Any] | None:
    """Evaluate the test images of a run's own data, by its predictions of validation and test images.

    Thresholds are chosen on validation. Where there is no test image, validation is evaluated, and
    named so.
    """
    val, test = (labelled_only(table, model) for table in tables)
    if not len(val) and not len(test):
        return None
    thresholds = thresholds_from(val, model, config)
    name, split, table = ("test", "test", test) if len(test) else ("validation", "val", val)
    fingerprint = str(images.split["fingerprint"])
    table = with_errors(table, images, split)
    return write_evaluation(run, name, table, model, config, thresholds, fingerprint, reporter)


def write_evaluation(
    run: Run,
    name: str,
    table: pd.DataFrame,
    model: Predictor,
    config: EvaluationConfig,
    thresholds: dict[str, Any] | None,
    fingerprint: str,
    reporter: Reporter,
    origin: Origin | None = None,
) -> dict[str, Any]:
    """Evaluate predictions and write ``evaluations/NAME.json`` and ``.parquet``.

    ``origin`` says whose images they are; None = the run's own.
    """
    table = certain(table, model)
    result = evaluate_predictions(
        table,
        classes=model.classes,
        task=model.kind,
        name=name,
        split_fingerprint=fingerprint,
        thresholds=thresholds,
        positive_class=config.positive_class,
        ordered=model.ordered,
        resamples=config.resamples,
        seed=config.seed,
        level=config.level,
    )
    result |= _limits_measured(run, table, model, config)
    if model.combination is not None:
        result["ensemble"] = members_section(run, table, model, config, thresholds)
    return save_evaluation(run, name, table, result, origin or Origin(), reporter)


def _limits_measured(
    run: Run, table: pd.DataFrame, model: Predictor, config: EvaluationConfig
) -> dict[str, Any]:
    """Return how often the run's conformal sets hold the truth, and how many images it calls outliers."""
    trust, made = run.card.get("trust") or {}, {}
    how: dict[str, Any] = {"level": config.level, "resamples": config.resamples, "seed": config.seed}
    if trust.get("sets"):
        made["sets"] = ConformalSets.of_card(trust["sets"]).measured(table, model.classes, **how)
    if "outlier" in table and trust["outliers"]["threshold"] is not None:
        made["outliers"] = flagged_shares(table, **how)
    return made


def evaluate(
    run: str | Path,
    *,
    data: str | Path | None = None,
    split: str | None = None,
    name: str | None = None,
    label_map: Mapping[str, str] | None = None,
    settings: Iterable[str] = (),
    reporter: Reporter | None = None,
) -> dict[str, Any]:
    """Evaluate a run on its own test images, or as it is on other data.

    Args:
        run: a fine-tuned run.
        data: other images with labels; None = the run's own sources.
        split: which split of the data, ``held-out`` for val and test together, ``all``; default test where there
            is one, else every image. Other data without a split are divided for it as the run's own are, so that
            ``held-out`` leaves out what a pretraining on them has seen.
        name: of the evaluation; default the name of the data and split.
        label_map: labels of the data: labels of the run.
        settings: ``evaluation.resamples=1000``, ``data.label_columns=[...]``, and so on.
        reporter: shows progress.

    Returns:
        The evaluation, as written to ``evaluations/NAME.json``.

    Raises:
        ScanpriorError: no labels in common, another number of channels, and so on.
    """
    reporter = reporter or Reporter()
    subject = open_subject(
        run, data=data, split=split, label_map=label_map, settings=settings, reporter=reporter
    )
    opened, model, images, rows = subject.run, subject.model, subject.images, subject.rows
    chosen = name or subject.name
    origin = Origin(None if data is None else _place(data), dict(label_map or {}))
    check_name(opened, chosen, origin, subject.split)
    origin = replace(origin, training_images=training_images_among(opened, images, rows, reporter))
    if isinstance(model, Segmenter):
        return evaluate_stored_masks(
            opened, model, subject.preprocessing, images, rows, chosen, subject.config, reporter, origin
        )
    table = subject.predictions(model, detector=OutlierDetector.open(opened))
    labelled = with_errors(table, images, None if subject.split == "all" else subject.split)
    thresholds = subject.thresholds(model)
    return write_evaluation(
        opened,
        chosen,
        labelled,
        model,
        subject.config,
        thresholds,
        str(images.split["fingerprint"]),
        reporter,
        origin,
    )


def _place(data: str | Path) -> str:
    """Return where data are, whatever the folder it is said from."""
    path = Path(data).expanduser()
    return str(path.resolve()) if path.exists() else str(data)


@dataclass
class Subject:
    """A fine-tuned run and the images it is to be looked at on.

    Attributes:
        run, model, preprocessing: the run and what it holds; of an ensemble, what its first member expects.
        images: all images of the data.
        rows: those of the split.
        split: train, val, test, held-out or all.
        name: of an evaluation of them.
        data: what the user calls the data.
        config: how results are made.
    """

    run: Run
    model: Predictor | Segmenter
    preprocessing: Preprocessing
    images: Images
    rows: NDArray[np.int64]
    split: str
    name: str
    data: str
    config: EvaluationConfig

    def predictions(
        self,
        model: Predictor,
        change: Callable[[ImageStore], ImageStore] | None = None,
        detector: OutlierDetector | None = None,
    ) -> pd.DataFrame:
        """Predict the images that have a label; ``change`` gives the store of the same images, changed.

        With a detector it is also said which are outliers.

        Raises:
            DataError: there is none, or a label is no class of the run.
        """
        images = self.images if change is None else self.images.changed(change)
        table = predictions_table(images, self.rows, model, self.config.batch_size, detector)
        _check_labels(table, model, self.data)
        return labelled_only(table, model)

    def thresholds(self, model: Predictor) -> dict[str, Any] | None:
        """Return the operating thresholds that the run chose on its validation images."""
        return thresholds_from(validation_predictions(self.run, model), model, self.config)


def open_subject(
    run: str | Path,
    *,
    data: str | Path | None,
    split: str | None,
    label_map: Mapping[str, str] | None,
    settings: Iterable[str],
    reporter: Reporter,
) -> Subject:
    """Open a fine-tuned run and images for it; arguments as for ``evaluate``."""
    opened = Run.open(run)
    segments = opened.card["kind"] == "segment"
    kept = opened.config()
    sets = parse_settings(settings)
    config = build(EvaluationConfig, kept.get("evaluation", {}), sets.get("evaluation", {}))
    model: Predictor | Segmenter
    if segments:
        model, preprocessing = load_segmenter(opened)
    else:
        model = load_predictor(opened)
        preprocessing = model.preprocessing
    if data is None:
        sources, layers = kept["sources"], [kept["data"]]
    else:
        own = {n: kept["data"][n] for n in ("size", "store_size", "depth", "fit", "split", "workers")}
        own["channels"] = preprocessing.channels
        sources, layers = [str(data)], [own]
    data_config = build(DataConfig, merge(*layers, sets.get("data", {})), nest({"exclude_leaks": False}))
    learn: Learn = "masks" if segments else "labels"
    divide = data is None or split in ("train", "val", "test", "held-out")
    forms = model.further_forms if isinstance(model, Predictor) else []
    if forms:  # of the member that the settings are of
        data_config = data_config.model_copy(update={"channels": preprocessing.channels})
    images = load(sources, data_config, reporter, learn=learn, divide=divide, training=False, forms=forms)
    if label_map:  # after the division, which is then the one that a training on these data makes
        images.frame = images.frame.assign(label=renamed(images.frame, label_map, str(data)))
    rows, said = choose_rows(images, split, own=data is None)
    name = said if data is None else evaluation_name(data, said)
    what = str(data or "the run's own data")
    return Subject(opened, model, preprocessing, images, rows, said, name, what, config)


def choose_rows(images: Images, split: str | None, *, own: bool) -> tuple[NDArray[np.int64], str]:
    """Return the rows of a split, and its name.

    Args:
        images: divided, where the split needs it.
        split: train, val, test, held-out (val and test) or all; None = test where there is one.
        own: whether the images are those of a run, of which else val is taken.

    Raises:
        DataError: the split is empty.
    """
    if split is None:
        split = "test" if (images.frame["split"] == "test").any() else ("val" if own else "all")
    if split == "all":
        rows = np.arange(len(images.frame), dtype=np.int64)
    elif split == "held-out":
        rows = np.sort(np.concatenate([images.rows("val"), images.rows("test")]))
    else:
        rows = images.rows(split)
    if not len(rows):
        found = ", ".join(sorted(images.frame["split"].dropna().unique())) or "none"
        raise DataError(f"--split {split}: no image is in it; the splits of this data are: {found}")
    return rows, split


def _check_labels(table: pd.DataFrame, model: Predictor, data: str) -> None:
    if model.kind != "multiclass":
        if table[[f"label:{name}" for name in model.classes]].isna().all(axis=None):
            raise DataError(f"{data}: has none of the findings of the run ({', '.join(model.classes)})")
        return
    present = set(table["label"].dropna())
    unknown = sorted(present - set(model.classes))
    if unknown:
        raise DataError(
            f"{data}: label {unknown[0]!r} (as it is, or as --map renames it) is not one of the run's classes; "
            f"write --map THEIRS=OURS for each such label, OURS one of {', '.join(model.classes)}"
        )
    if not present:
        raise DataError(f"{data}: no image of this split has a label")


def training_images_among(run: Run, images: Images, rows: NDArray[np.int64], reporter: Reporter) -> int:
    """Count the images that the run was trained on, and warn of them."""
    table = run.path / "data.parquet"
    if table.exists():
        used = pd.read_parquet(table, columns=["pixels", "used"])
        known = set(used.loc[used["used"] == "train", "pixels"])
        seen = int(images.frame.iloc[rows]["pixels"].isin(known).sum())
        if seen:
            reporter.note(f"warning: {seen} of these images are training images of the run, pixel by pixel")
        return seen
    return 0


def compare(
    first: str | Path,
    second: str | Path,
    *,
    evaluation: str | None = None,
    resamples: int = 2000,
    seed: int = 0,
) -> dict[str, Any]:
    """Compare two runs on the same images: paired differences, intervals and p-values.

    Args:
        first, second: fine-tuned runs of the same task.
        evaluation: which evaluation of both; default the test images.
        resamples: bootstrap resamples of patients.
        seed: key of the resamples.

    Raises:
        ScanpriorError: the runs have no evaluation in common, or their images or labels differ.
    """
    runs = [Run.open(first), Run.open(second)]
    name = evaluation or _common_evaluation(runs)
    tables, results = [], []
    for run in runs:
        file = run.path / "evaluations" / f"{name}.parquet"
        if not file.exists():
            raise RunError(
                f"{run.path}: has no evaluation {name!r}; make it with scanprior evaluate {run.path}"
            )
        tables.append(pd.read_parquet(file))
        results.append(json.loads(file.with_suffix(".json").read_text()))
    kinds = [run.card["kind"] for run in runs]
    if kinds[0] != kinds[1]:
        raise RunError(
            f"{first} is a run of kind {kinds[0]} and {second} of kind {kinds[1]}; compare like with like"
        )
    classes = [run.card["task"]["classes"] for run in runs]
    if classes[0] != classes[1]:
        raise RunError(
            f"{second}: has the classes {', '.join(classes[1])}, {first} has {', '.join(classes[0])}"
        )
    if runs[0].card["kind"] == "segment":
        return compare_masks(
            tables[0], tables[1], classes=classes[0], names=(str(first), str(second)), resamples=resamples,
            seed=seed,
        )  # fmt: skip
    return compare_predictions(
        tables[0], tables[1], classes=classes[0], task=runs[0].card["task"]["kind"],
        names=(str(first), str(second)), thresholds=(results[0]["thresholds"], results[1]["thresholds"]),
        positive_class=results[0]["positive_class"], ordered=runs[0].card["task"].get("ordered"),
        resamples=resamples, seed=seed,
    )  # fmt: skip


def _common_evaluation(runs: list[Run]) -> str:
    first, second = ({file.stem for file in (run.path / "evaluations").glob("*.json")} for run in runs)
    for name in ("test", "validation", *sorted(first & second)):
        if name in first & second:
            return name
    raise RunError(
        f"{runs[0].path} and {runs[1].path} have no evaluation in common; run scanprior evaluate on both"
    )
