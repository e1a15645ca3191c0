"""``finetune`` and ``probe``: a classifier or a segmenter from few labels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from scanprior import keyed
from scanprior.api.classification import Classification
from scanprior.api.lineage import inherited_settings, parent_card, seen_in_pretraining
from scanprior.api.models import adaptation, encoder_card, resolve_precision, starting_encoder
from scanprior.api.segmentation import Segmentation
from scanprior.api.session import Session
from scanprior.api.settings import FinetuneConfig, finetune_config, user_layers
from scanprior.api.sources import KEPT_COLUMNS, Images
from scanprior.api.work import Work
from scanprior.config import merge
from scanprior.data.transforms import Preprocessing
from scanprior.encoders import Encoder, seed_drop_path
from scanprior.engine import Reporter, Training
from scanprior.engine.checkpoint import replace_weights
from scanprior.errors import ConfigError
from scanprior.files import replacing
from scanprior.run import Run, describe
from scanprior.tasks.classify import Classifier

WORKS: dict[str, type[Work]] = {"classify": Classification, "segment": Segmentation}


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
    """Fine-tune a network on the labels, or with ``task.name=segment`` the masks, of the sources; evaluate it.

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
    settled = plan_finetuning(
        sources, parent=parent, config=config, options=options, settings=settings, probe=probe
    )
    base = Run.open(settled.parent) if settled.parent is not None else None
    session = Session(settled, out, resume=resume, overwrite=overwrite, reporter=reporter)
    task = WORKS[settled.task.name]  # type: ignore[attr-defined]
    images = session.load(task.learns)
    if images is None:
        return Run.open(out)
    work = task(images, settled)
    if (note := work.unused_note()) is not None:
        session.reporter.note(note)
    preprocessing = preprocessing_of(settled, images, base)
    model = network_of(work, settled, preprocessing, session.fabric.device, session.reporter)
    training = None if probe else _training(model, work, session, preprocessing)
    session.create()
    encoder = model.encoder
    assert isinstance(encoder, Encoder)
    adapted = adaptation(encoder, model, settled.adapt)
    frozen = not any(parameter.requires_grad for parameter in encoder.parameters())
    if training is not None:
        result = training.run(resume=resume)
        encoder.merge_adapters()
    else:
        assert isinstance(work, Classification) and isinstance(model, Classifier)
        result = work.probe(model, preprocessing)
    with session.results() as run:
        if run is not None:
            run.card = _card(run, work, preprocessing, encoder, adapted, result, frozen)
            _write_weights(model.state_dict(), run)
            work.write_results(run, model, preprocessing, session.reporter)
            run.finish(run.card)
    return Run.open(out)


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
    fixed = {
        "sources": names,
        "parent": str(parent) if parent else None,
        "command": "probe" if probe else "finetune",
    }
    layers = [inherited_settings(parent), *given, fixed]
    start = merge(*layers).get("encoder", {})
    if not (parent or start.get("weights") or start.get("pretrained")):
        layers.insert(
            0, {"engine": {"layer_decay": None}}
        )  # nothing has been learned that a small rate could keep
    if probe:
        layers.append(
            {
                "task": {"name": "classify", "head": probe},
                "adapt": {"train": "none", "from_block": None, "lora": None},
                "augment": {"preset": "none"},
            }
        )
    settled = finetune_config(*layers)
    if getattr(settled.task, "head", None) == "knn" and not probe:
        raise ConfigError("task.head: 'knn' has no weights to train; use scanprior probe --method knn")
    if probe and getattr(settled.task, "loss", None) == "focal":
        raise ConfigError(
            "task.loss: 'focal' is for training; a probe fits logistic regression or takes neighbours, so leave it out"
        )
    if probe and (pooling := getattr(settled.task, "pooling", "encoder")) != "encoder":
        raise ConfigError(
            f"task.pooling: {pooling!r} has to be trained, and a probe trains nothing; use scanprior finetune with "
            "--set adapt.train=none"
        )
    settled.engine.precision = resolve_precision(settled.engine, settled.encoder.name)
    return settled


def probe(sources: str | Path | Sequence[str | Path], *, method: str = "linear", **arguments: Any) -> Run:
    """Fit a linear or nearest-neighbour classifier on frozen features; arguments as in ``finetune``."""
    return finetune(sources, probe=method, **arguments)


def preprocessing_of(config: FinetuneConfig, images: Images, base: Run | None) -> Preprocessing:
    """Return what a fine-tuning does to pixels: that of the run it starts from, or as its training images need it."""
    if base is None:
        return images.preprocessing(config.data, images.rows("train"))  # labels are not needed to be measured
    changed = {"size": config.data.size, "stored_size": images.store.size}
    return Preprocessing.model_validate({**base.card["preprocessing"], **changed})


def network_of(
    work: Work, config: FinetuneConfig, preprocessing: Preprocessing, device: torch.device, reporter: Reporter
) -> nn.Module:
    """Return the network that a fine-tuning begins with, what a frozen encoder makes of the images kept."""
    with keyed.seeded(keyed.key(config.engine.seed, "initial weights")):
        encoder = starting_encoder(config, preprocessing, reporter)
        seed_drop_path(encoder, config.engine.seed)
        work.keep_features(encoder, preprocessing, device, reporter)
        return work.network(encoder)


def _training(model: nn.Module, work: Work, session: Session, preprocessing: Preprocessing) -> Training:
    config = work.config
    source = work.source(preprocessing)
    selecting = work.selecting()
    validates = len(work.val) and selecting is not None
    return Training(
        model,
        source,
        config.engine,
        session.path,
        validate=(lambda module, step: work.validate(module, preprocessing)) if validates else None,
        validate_every=config.selection.every or max(1, config.engine.total_steps(len(source)) // 10),
        select=selecting,
        reporter=session.reporter,
        fabric=session.fabric,
    )


def _write_weights(state: dict[str, Tensor], run: Run) -> None:
    """Write the weights; those of an encoder that was not trained apart, so that runs can share them."""
    if run.encoder_weights != run.weights:
        encoder = {name: state.pop(name) for name in list(state) if name.startswith("encoder.")}
        replace_weights(encoder, run.encoder_weights)
    replace_weights(state, run.weights)


def _card(
    run: Run,
    work: Work,
    preprocessing: Preprocessing,
    encoder: Encoder,
    adapted: dict[str, Any],
    result: dict[str, Any],
    frozen: bool,
) -> dict[str, Any]:
    """Write which image was used for what; return the card."""
    images, config, frame = work.images, work.config, work.images.frame
    used = pd.Series(pd.NA, index=frame.index, dtype="object")
    used.iloc[work.train], used.iloc[work.val] = "train", "val"
    used[frame["split"] == "test"] = "test"
    keep = [name for name in KEPT_COLUMNS if name in frame]
    with replacing(run.path / "data.parquet") as part:
        frame[keep].assign(used=used).to_parquet(part, index=False)
    seen, notes = seen_in_pretraining(config.parent, frame)
    if (note := work.unused_note()) is not None:
        notes.append(note)
    return describe(
        work.kind,
        config.engine.seed,
        frozen=frozen,
        encoder=encoder_card(config.encoder, encoder),
        adapt=adapted,
        objective=None,
        task={
            "name": config.command,
            **work.card(),
            "settings": work.settings.model_dump(mode="json", exclude={"name"}),
        },
        preprocessing=preprocessing.model_dump(mode="json"),
        parent=parent_card(config.parent),
        data={
            "sources": images.sources,
            "split": images.split,
            "leakage": images.leakage,
            "labels_used": len(work.train),
            "validation_labels_used": len(work.val),
            "unused": {"lacking": work.unused_for, "images": work.unused},
            "transductive": seen > 0,
        },
        training=result,
        notes=notes,
    )
