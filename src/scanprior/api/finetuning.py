"""``finetune`` and ``probe``: a classifier from few labels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from lightning_fabric import Fabric
from numpy.typing import NDArray
from torch import Tensor, nn

from scanprior import keyed
from scanprior.api.evaluation import evaluate_splits
from scanprior.api.models import load_parent, parent_card, resolve_precision
from scanprior.api.settings import FinetuneConfig, finetune_config, user_layers
from scanprior.api.sources import Images, load
from scanprior.config import merge
from scanprior.data.loader import TrainingSource, evaluation_batches
from scanprior.data.manifest import Manifest
from scanprior.data.split import label_budget
from scanprior.data.transforms import Preprocessing
from scanprior.encoders import create_encoder, load_weights, seed_drop_path
from scanprior.engine import Reporter, Training, first_alone, launch
from scanprior.engine.checkpoint import replace_weights
from scanprior.errors import ConfigError, DataError, ScanpriorError
from scanprior.evaluation import auroc, average_precision
from scanprior.run import Run, describe
from scanprior.tasks.classify import (
    Classifier,
    Kind,
    balance_weights,
    resolve_uncertain,
    sampling_weights,
)
from scanprior.tasks.probe import fit_linear_probe, fit_neighbours


@dataclass
class Labelled:
    """The labels of a fine-tuning run.

    Attributes:
        kind: multi-class or multi-label.
        classes: names in the order of the logits.
        train: rows of the store that are trained on, after the budget.
        val: rows of the labelled validation images.
        targets: (N,) class numbers or (N, findings) values, for every row of the store.
    """

    kind: Kind
    classes: list[str]
    train: NDArray[np.int64]
    val: NDArray[np.int64]
    targets: NDArray[np.float64]


def finetune(
    sources: str | Path | Sequence[str | Path],
    *,
    out: str | Path,
    parent: str | Path | None = None,
    config: Path | str | Mapping[str, Any] | None = None,
    options: Mapping[str, Any] | None = None,
    settings: Iterable[str] = (),
    resume: bool = False,
    overwrite: bool = False,
    probe: str | None = None,
    reporter: Reporter | None = None,
) -> Run:
    """Fine-tune a classifier on the labels of the sources, and evaluate it.

    Args:
        sources: folder, table, manifest or store with labels; several are pooled.
        out: the run folder to write.
        parent: the run whose encoder is the starting point; None = ``encoder`` from scratch.
        config, options, settings, resume, overwrite, reporter: as in ``pretrain``.
        probe: None = train the network; ``linear`` or ``knn`` = keep the encoder as it is.

    Returns:
        The finished run, with ``predictions.parquet`` and ``evaluations/``.

    Raises:
        ScanpriorError: anything that the user can mend, in one sentence.
    """
    reporter = reporter or Reporter()
    settled = plan_finetuning(
        sources, parent=parent, config=config, options=options, settings=settings, probe=probe
    )
    base = Run.open(settled.parent) if settled.parent is not None else None
    fabric, path = launch(settled.engine), Path(out)
    reporter = reporter if fabric.is_global_zero else Reporter()
    with first_alone(fabric):
        if fabric.is_global_zero:
            Run.check(path, settled, resume=resume, overwrite=overwrite)
        if resume and Run.finished(path):
            reporter.note(f"{path}: finished already")
            return Run.open(path)
        images = load(settled.sources, settled.data, reporter, need_labels=True)
    labelled = read_labels(images, settled)
    preprocessing = _preprocessing(settled, images, base)
    model = _model(settled, preprocessing, labelled, base)
    training = (
        None if probe else _training(model, settled, preprocessing, images, labelled, path, reporter, fabric)
    )
    with first_alone(
        fabric
    ):  # after all that can be wrong: what was there is not replaced for a typing error
        run = (
            Run.create(path, settled, resume=resume, overwrite=overwrite)
            if fabric.is_global_zero
            else Run(path, {})
        )
    if training is None:
        result = _probe(model, settled, preprocessing, images, labelled)
    else:
        result = training.run(resume=resume)
    with first_alone(fabric):
        if fabric.is_global_zero:
            replace_weights(model.state_dict(), run.weights)
            run.card = _card(run, settled, model, preprocessing, images, labelled, result)
            evaluate_splits(run, images, model, preprocessing, settled.evaluation, reporter)
            run.finish(run.card)
    return Run.open(path)


def plan_finetuning(
    sources: str | Path | Sequence[str | Path],
    *,
    parent: str | Path | None = None,
    config: Path | str | Mapping[str, Any] | None = None,
    options: Mapping[str, Any] | None = None,
    settings: Iterable[str] = (),
    probe: str | None = None,
) -> FinetuneConfig:
    """Return the complete configuration that ``finetune`` would use; arguments as there."""
    names = [str(s) for s in ([sources] if isinstance(sources, (str, Path)) else sources)]
    given = user_layers(config, options or {}, settings)
    parent = parent or merge(*given).get("parent")
    _, inherited = load_parent(parent)
    fixed = {
        "sources": names,
        "parent": str(parent) if parent else None,
        "command": "probe" if probe else "finetune",
    }
    layers = [inherited, *given, fixed]
    start = merge(*layers).get("encoder", {})
    if not (parent or start.get("weights") or start.get("pretrained")):
        layers.insert(
            0, {"engine": {"layer_decay": None}}
        )  # nothing has been learned that a small rate could keep
    if probe:
        layers.append({"task": {"head": probe, "freeze": True}, "augment": {"preset": "none"}})
    settled = finetune_config(*layers)
    if settled.task.head == "knn" and not probe:
        raise ConfigError("task.head: 'knn' has no weights to train; use scanprior probe --method knn")
    settled.engine.precision = resolve_precision(settled.engine, settled.encoder.name)
    return settled


def probe(sources: str | Path | Sequence[str | Path], *, method: str = "linear", **arguments: Any) -> Run:
    """Fit a linear or nearest-neighbour classifier on frozen features; arguments as in ``finetune``."""
    return finetune(sources, probe=method, **arguments)


def read_labels(images: Images, config: FinetuneConfig) -> Labelled:
    """Turn the label columns into targets, apply the policy and the budget.

    Raises:
        DataError: no labels, fewer than two classes, no labelled training or validation image.
    """
    frame, columns = images.frame, images.store.label_columns
    if not columns:
        raise DataError("the sources hold no labels; give a table with a label column, or class folders")
    kind: Kind = "multiclass" if columns == ["label"] else "multilabel"
    targets: NDArray[np.float64]
    known: NDArray[np.bool_]
    if kind == "multiclass":
        classes = Manifest(frame[frame["split"] == "train"], Path(), columns).classes
        if len(classes) < 2:
            raise DataError(
                f"the training images have {len(classes)} class ({', '.join(classes)}); two are needed"
            )
        numbers = {name: number for number, name in enumerate(classes)}
        targets = np.asarray(frame["label"].map(numbers), dtype=np.float64)
        known = ~np.isnan(targets)
    else:
        classes = columns
        values = frame[columns].to_numpy(np.float64)
        draws = keyed.uniform(
            keyed.key(config.engine.seed, "uncertain"), frame["row"].to_numpy(), len(columns)
        )
        targets = resolve_uncertain(values, config.task, draws)
        known = np.asarray((~np.isnan(targets)).any(axis=1))
    train, val = (images.rows(name) for name in ("train", "val"))
    train, val = train[known[train]], val[known[val]]
    if not len(train):
        raise DataError("no labelled image in the training split")
    if not len(val) and config.selection.metric != "last":
        raise DataError(
            "no labelled image in the validation split; give one in the split column, change data.split.fractions, "
            "or train without selection: --set selection.metric=last"
        )
    if config.labels.count is not None or config.labels.fraction is not None:
        chosen = label_budget(
            frame.iloc[train], columns, count=config.labels.count, fraction=config.labels.fraction,
            seed=config.labels.seed,
        )  # fmt: skip
        train = np.sort(train[chosen])
    return Labelled(kind, classes, train, val, targets)


def _preprocessing(config: FinetuneConfig, images: Images, base: Run | None) -> Preprocessing:
    if base is not None:
        changed = {"size": config.data.size, "stored_size": images.store.size}
        return Preprocessing.model_validate({**base.card["preprocessing"], **changed})
    mean, std = images.store.statistics(images.rows("train"))  # labels are not needed to be measured
    data = config.data
    return Preprocessing(
        size=data.size, channels=images.store.channels, depth=data.depth, fit=data.fit, stored_size=images.store.size,
        mean=mean, std=std,
        standardize=data.standardize,
    )  # fmt: skip


def _model(
    config: FinetuneConfig, preprocessing: Preprocessing, labelled: Labelled, base: Run | None
) -> Classifier:
    classes, train = labelled.classes, labelled.targets[labelled.train]
    weights = balance_weights(train, labelled.kind, len(classes)) if config.task.balance == "loss" else None
    with keyed.seeded(keyed.key(config.engine.seed, "initial weights")):
        encoder = create_encoder(config.encoder, size=preprocessing.size, channels=preprocessing.channels)
        if base is not None:
            load_weights(encoder, base.weights)
        seed_drop_path(encoder, config.engine.seed)
        return Classifier(
            encoder, classes, labelled.kind, config.task, weights, len(train), config.engine.seed
        )


def _training(
    model: Classifier,
    config: FinetuneConfig,
    preprocessing: Preprocessing,
    images: Images,
    labelled: Labelled,
    path: Path,
    reporter: Reporter,
    fabric: Fabric,
) -> Training:
    targets = labelled.targets[labelled.train]
    balanced = config.task.balance == "sampling"
    tensor = torch.from_numpy(targets)
    source = TrainingSource(
        images.store,
        labelled.train,
        augmentation=config.augment,
        preprocessing=preprocessing,
        seed=config.engine.seed,
        targets=tensor.long() if labelled.kind == "multiclass" else tensor.float(),
        weights=sampling_weights(targets, labelled.kind, len(labelled.classes)) if balanced else None,
    )
    total = config.engine.total_steps(len(source))
    selection = config.selection
    validation = _Validation(images, labelled, preprocessing, config.evaluation.batch_size)
    return Training(
        model,
        source,
        config.engine,
        path,
        validate=validation if len(labelled.val) and selection.metric != "last" else None,
        validate_every=selection.every or max(1, total // 10),
        select={"loss": "negative_loss"}.get(selection.metric, selection.metric)
        if selection.metric != "last"
        else None,
        reporter=reporter,
        fabric=fabric,
    )


class _Validation:
    """Measures a classifier on the validation images."""

    def __init__(
        self, images: Images, labelled: Labelled, preprocessing: Preprocessing, batch_size: int
    ) -> None:
        self.images, self.labelled = images, labelled
        self.preprocessing, self.batch_size = preprocessing, batch_size

    def __call__(self, module: nn.Module, step: int) -> dict[str, float]:
        assert isinstance(module, Classifier)
        rows = self.labelled.val
        found = module.predict(
            evaluation_batches(self.images.store, rows, self.preprocessing, self.batch_size)
        )
        return measure(found.astype(np.float64), self.labelled.targets[rows], self.labelled.kind)


def measure(found: NDArray[np.float64], targets: NDArray[np.float64], kind: Kind) -> dict[str, float]:
    """Return loss, its negative, macro AUROC and average precision, accuracy; NaN where undefined."""
    if kind == "multiclass":
        truth = np.eye(found.shape[1])[targets.astype(np.int64)]
        loss = float(-np.log(np.clip((found * truth).sum(1), 1e-7, 1)).mean())
        accuracy = float((found.argmax(1) == targets).mean())
    else:
        truth, known = targets, ~np.isnan(targets)
        right = np.where(targets > 0.5, found, 1 - found)[known]
        loss, accuracy = float(-np.log(np.clip(right, 1e-7, 1)).mean()), float((right > 0.5).mean())
    areas, precisions = [], []
    for column in range(found.shape[1]):
        known_rows = ~np.isnan(truth[:, column])
        binary = truth[known_rows, column] > 0.5
        if 0 < binary.sum() < len(binary):
            areas.append(auroc(binary, found[known_rows, column]))
            precisions.append(average_precision(binary, found[known_rows, column]))
    return {
        "loss": round(loss, 6),
        "negative_loss": -round(loss, 6),
        "auroc": round(float(np.mean(areas)), 6) if areas else float("nan"),
        "average_precision": round(float(np.mean(precisions)), 6) if precisions else float("nan"),
        "accuracy": round(accuracy, 6),
    }


def _probe(
    model: Classifier,
    config: FinetuneConfig,
    preprocessing: Preprocessing,
    images: Images,
    labelled: Labelled,
) -> dict[str, Any]:
    def features(rows: NDArray[np.int64]) -> Tensor:
        batches = evaluation_batches(images.store, rows, preprocessing, config.evaluation.batch_size)
        with torch.no_grad():
            made = [model.encoder(batch).pooled.float() for batch in batches]
        return torch.cat(made) if made else torch.zeros(0, model.encoder.dim)

    model.eval()
    train, targets = features(labelled.train), labelled.targets[labelled.train]
    if config.task.head == "knn":
        return fit_neighbours(model, train, targets)
    return fit_linear_probe(
        model, train, targets, features(labelled.val), labelled.targets[labelled.val], measure
    )


def _card(
    run: Run,
    config: FinetuneConfig,
    model: Classifier,
    preprocessing: Preprocessing,
    images: Images,
    labelled: Labelled,
    result: dict[str, Any],
) -> dict[str, Any]:
    """Write which image was used for what; return the card."""
    frame = images.frame
    used = pd.Series(pd.NA, index=frame.index, dtype="object")
    used.iloc[labelled.train], used.iloc[labelled.val] = "train", "val"
    used[frame["split"] == "test"] = "test"
    keep = [name for name in ("image", "patient", "source", "split", "pixels") if name in frame]
    frame[keep].assign(used=used).to_parquet(run.path / "data.parquet", index=False)
    seen, notes = _seen_in_pretraining(config.parent, frame)
    return describe(
        "classify",
        config.engine.seed,
        encoder=config.encoder.model_dump(mode="json"),
        objective=None,
        task={
            "name": config.command,
            "kind": labelled.kind,
            "classes": labelled.classes,
            "settings": config.task.model_dump(mode="json"),
        },
        preprocessing=preprocessing.model_dump(mode="json"),
        parent=parent_card(config.parent),
        data={
            "sources": images.sources,
            "split": images.split,
            "leakage": images.leakage,
            "labels_used": len(labelled.train),
            "validation_labels_used": len(labelled.val),
            "transductive": seen > 0,
        },
        training=result,
        notes=notes,
    )


def _seen_in_pretraining(parent: str | None, frame: pd.DataFrame) -> tuple[int, list[str]]:
    """Count the test images that the pretraining saw, through all its stages."""
    held_out = frame[frame["split"].isin(["val", "test"])]
    seen: set[str] = set()
    while parent is not None:
        table = Path(parent) / "data.parquet"
        if not table.exists():
            break
        rows = pd.read_parquet(table)
        seen |= set(rows.loc[rows["used"].isin(["pretrain", "train"]), "pixels"])
        try:
            before = Run.open(parent).card.get("parent")
        except ScanpriorError:
            break
        parent = before["path"] if before else None
    both = int(held_out["pixels"].isin(seen).sum())
    if not both:
        return 0, []
    test = int(held_out.loc[held_out["split"] == "test", "pixels"].isin(seen).sum())
    return both, [
        f"transductive: the pretraining saw {test} of the test images and {both - test} of the validation images "
        "(without their labels)"
    ]
