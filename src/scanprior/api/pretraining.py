"""``pretrain``: learn an encoder from images without labels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from scanprior import keyed, objectives
from scanprior.api.lineage import inherited_settings, parent_card
from scanprior.api.models import adaptation, encoder_card, resolve_precision, save_encoder, starting_encoder
from scanprior.api.probing import TrainingProbe
from scanprior.api.session import Session
from scanprior.api.settings import PretrainConfig, pretrain_config, user_layers
from scanprior.api.sources import KEPT_COLUMNS, Images
from scanprior.config import Tree, merge
from scanprior.data.loader import TrainingSource
from scanprior.data.transforms import Preprocessing
from scanprior.engine import Reporter, Training
from scanprior.errors import DataError
from scanprior.files import replacing
from scanprior.reporting.pictures import reconstruction_grid, save_png
from scanprior.run import Run, describe


def pretrain(
    sources: str | Path | Sequence[str | Path],
    *,
    out: str | Path,
    objective: str | None = None,
    parent: str | Path | None = None,
    config: Path | str | Mapping[str, Any] | None = None,
    options: Mapping[str, Any] | None = None,
    settings: Iterable[str] = (),
    resume: bool = False,
    overwrite: bool = False,
    reporter: Reporter | None = None,
) -> Run:
    """Pretrain an encoder on the training images of the sources.

    Args:
        sources: folders, tables, manifests or prepared stores; pooled.
        out: the run folder to write.
        objective: ``gmml``, ``sit``, ``mae`` (see ``scanprior objectives``); None = what ``config`` names,
            else ``gmml``.
        parent: a run to go on from (its encoder is the starting point); None = what ``config`` names, if any.
        config: a YAML file or a tree of settings.
        options: dotted keys over the file, such as ``{"engine.epochs": 50}``; None = not given.
        settings: ``key=value`` texts over those.
        resume: go on with a run that was stopped or killed; the result is bit-equal.
        overwrite: replace a run that is there.
        reporter: shows progress.

    Returns:
        The finished run.

    Raises:
        ScanpriorError: anything that the user can mend, in one sentence.
    """
    settled = plan_pretraining(
        sources, objective=objective, parent=parent, config=config, options=options, settings=settings
    )
    session = Session(settled, out, resume=resume, overwrite=overwrite, reporter=reporter)
    images = session.load("nothing")
    if images is None:
        return Run.open(out)
    rows = training_rows(images, settled.data.transductive)
    preprocessing = images.preprocessing(settled.data, rows)
    module = _module(settled, preprocessing, session.reporter)
    source = TrainingSource(
        images.store,
        rows,
        augmentation=settled.augment,
        preprocessing=preprocessing,
        seed=settled.engine.seed,
        views=module.views,
        donors=module.needs_donors,
    )
    every = settled.probe.every
    training = Training(
        module,
        source,
        settled.engine,
        session.path,
        validate=None
        if every is None
        else TrainingProbe(images, rows, settled.probe, preprocessing, settled.engine.seed),
        validate_every=None
        if every is None
        else max(1, round(every * settled.engine.steps_per_epoch(len(source)))),
        on_epoch=_Pictures(session.path / "pictures", source, settled, preprocessing),
        reporter=_HealthWatch(session.reporter),
        fabric=session.fabric,
    )
    session.create()
    adapted = adaptation(module.encoder, module, settled.adapt)
    result = training.run(resume=resume)
    module.exported_encoder().merge_adapters()
    with session.results() as run:
        if run is not None:
            _write(run, settled, module, preprocessing, images, rows, adapted, result)
    return Run.open(out)


def plan_pretraining(
    sources: str | Path | Sequence[str | Path],
    *,
    objective: str | None = None,
    parent: str | Path | None = None,
    config: Path | str | Mapping[str, Any] | None = None,
    options: Mapping[str, Any] | None = None,
    settings: Iterable[str] = (),
) -> PretrainConfig:
    """Return the complete configuration that ``pretrain`` would use; arguments as there."""
    names = [str(s) for s in ([sources] if isinstance(sources, (str, Path)) else sources)]
    given = user_layers(config, {"objective.name": objective, **(options or {})}, settings)
    parent = parent or merge(*given).get("parent")
    fixed = {"command": "pretrain", "sources": names, "parent": str(parent) if parent else None}
    name, layers = _objective_name(given)
    settled = pretrain_config(name, inherited_settings(parent), *layers, fixed)
    settled.engine.precision = resolve_precision(settled.engine, settled.encoder.name)
    return settled


def training_rows(images: Images, transductive: bool) -> NDArray[np.int64]:
    """Return the rows that pretraining may see: those of the training split, or all if asked.

    Raises:
        DataError: there are none.
    """
    rows = np.arange(len(images.frame), dtype=np.int64) if transductive else images.rows("train")
    if not len(rows):
        raise DataError("no training image in the sources: every image is of validation or test")
    return rows


def _objective_name(layers: list[Tree]) -> tuple[str, list[Tree]]:
    """Return the objective that the last layer which names one wants, and the layers without the name."""
    name, rest = "gmml", []
    for layer in layers:
        section = layer.get("objective") or {}
        section = section if isinstance(section, Mapping) else {"name": section}
        name = str(section.get("name", name))
        rest.append({**layer, "objective": {key: value for key, value in section.items() if key != "name"}})
    return name, rest


def _module(config: PretrainConfig, preprocessing: Preprocessing, reporter: Reporter) -> objectives.Objective:
    with keyed.seeded(keyed.key(config.engine.seed, "initial weights")):
        encoder = starting_encoder(config, preprocessing, reporter)
        method = objectives.get(config.objective.name)  # type: ignore[attr-defined]
        settings = method.Config.model_validate(config.objective.model_dump(exclude={"name"}))
        return method(encoder, settings, seed=config.engine.seed)


class _Pictures:
    """Writes input, corrupted and rebuilt images of the same eight samples during the run."""

    def __init__(
        self, folder: Path, source: TrainingSource, config: PretrainConfig, preprocessing: Preprocessing
    ) -> None:
        self.folder, self.source, self.preprocessing = folder, source, preprocessing
        total = config.engine.total_steps(len(source)) / config.engine.steps_per_epoch(len(source))
        self.every = max(1, round(total / config.pictures)) if config.pictures else None
        self.last = int(total)

    def __call__(self, module: nn.Module, epoch: int) -> None:
        if self.every is None or (epoch % self.every and epoch < self.last):
            return
        positions = np.arange(min(6, len(self.source)), dtype=np.int64)
        batch = self.source.batch(positions, positions)
        device = next(module.parameters()).device
        batch = {name: value.to(device) for name, value in batch.items()}
        was_training = module.training
        module.eval()
        with torch.no_grad():
            seen = module.preview(batch)  # type: ignore[operator]
        module.train(was_training)
        self.folder.mkdir(parents=True, exist_ok=True)
        picture = reconstruction_grid(
            seen["input"].cpu(), seen["corrupted"].cpu(), seen["rebuilt"].cpu(),
            self.preprocessing.mean, self.preprocessing.std,
        )  # fmt: skip
        save_png(picture, self.folder / f"epoch-{epoch:05d}.png")


class _HealthWatch(Reporter):
    """Passes everything on, and warns once when the embedding collapses."""

    THRESHOLD = 0.05

    def __init__(self, inner: Reporter) -> None:
        self.inner, self.warned = inner, False

    def step(self, row: dict[str, Any], total: int, seconds: float) -> None:
        self.inner.step(row, total, seconds)
        spread = row.get("embedding_std")
        if (
            spread is not None
            and spread < self.THRESHOLD
            and row["step"] > max(200, total // 5)
            and not self.warned
        ):
            self.warned = True
            self.inner.note(
                f"warning: the embedding is collapsing (spread {spread:.3f}, healthy is near 1): all images look "
                "alike to the encoder; lower engine.lr, lengthen the warm-up, or hide less"
            )

    def validation(self, step: int, values: dict[str, float], select: str | None) -> None:
        self.inner.validation(step, values, select)

    def note(self, text: str) -> None:
        self.inner.note(text)


def _write(
    run: Run,
    config: PretrainConfig,
    module: objectives.Objective,
    preprocessing: Preprocessing,
    images: Images,
    rows: NDArray[np.int64],
    adapted: dict[str, Any],
    result: dict[str, Any],
) -> None:
    save_encoder(module.exported_encoder(), run.weights)
    seen = images.frame.iloc[rows]
    keep = [name for name in KEPT_COLUMNS if name in seen]
    with replacing(run.path / "data.parquet") as part:
        seen[keep].assign(used="pretrain").to_parquet(part, index=False)
    card = describe(
        "pretrain",
        config.engine.seed,
        encoder=encoder_card(config.encoder, module.encoder),
        adapt=adapted,
        objective=config.objective.model_dump(mode="json"),
        task=None,
        preprocessing=preprocessing.model_dump(mode="json"),
        parent=parent_card(config.parent),
        data={
            "sources": images.sources,
            "split": images.split,
            "leakage": images.leakage,
            "labels_used": None,
            "images_used": len(rows),
            "transductive": config.data.transductive,
        },
        training=result,
        notes=[],
    )
    run.finish(card)
