"""``ensemble``: several fine-tuned classifiers as one run."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scanprior.api.ensemble_results import setting_of
from scanprior.api.evaluation import evaluate_tables, keep_predictions
from scanprior.api.member_images import History, common_rows, notes_about, used_together
from scanprior.api.models import load_classifier
from scanprior.api.prediction_tables import certain, labelled_only, predictions_table, recombined
from scanprior.api.predictor import Member, Predictor
from scanprior.api.settings import DataConfig, EnsembleConfig
from scanprior.api.sources import Images, load
from scanprior.api.trust import assess, remember
from scanprior.config import build, merge, parse_settings
from scanprior.engine import Reporter
from scanprior.errors import ConfigError, DataError, RunError
from scanprior.evaluation import (
    COMBINATION_METHODS,
    FITTED_METHODS,
    Combination,
    best_member,
    member_probabilities,
    truth_matrix,
    validate_members,
)
from scanprior.evaluation.combination import TEMPERATURES
from scanprior.files import replacing
from scanprior.run import Run, describe

Rows = NDArray[np.int64]


def ensemble(
    runs: Sequence[str | Path],
    *,
    out: str | Path,
    method: str = "mean",
    settings: Iterable[str] = (),
    overwrite: bool = False,
    reporter: Reporter | None = None,
) -> Run:
    """Combine fine-tuned classifiers into a run that predicts as one, and evaluate it against them.

    The members stay where they are: the run names them, with checksums. They may differ in network, input size and
    preprocessing. Validation and test images are those of the first member.

    Args:
        runs: two or more fine-tuned classifiers of the same classes, matched by name.
        out: the run folder to write.
        method: ``mean`` of the probabilities (arXiv 2605.21970); ``geometric`` mean, of findings the mean of the
            log-odds; ``calibrated``: the mean after a temperature for each member; ``weighted`` mean. The last two
            are fitted to the least negative log-likelihood on the validation images that all members have in common.
        settings: ``evaluation.resamples=1000`` and so on; ``data.workers``.
        overwrite: whether to replace a run that is there.
        reporter: shows progress.

    Returns:
        The finished run, with ``predictions.parquet`` and ``evaluations/``; every evaluation of it has a section
        ``ensemble`` about the members.

    Raises:
        ScanpriorError: members that cannot be combined, or of which one was trained on images to evaluate on.
    """
    reporter = reporter or Reporter()
    if method not in COMBINATION_METHODS:
        raise ConfigError(f"--method {method}: choose one of {', '.join(COMBINATION_METHODS)}")
    members = _opened(runs, Path(out), reporter)
    config = _config(members, method, settings)
    Run.check(Path(out), config, resume=False, overwrite=overwrite)
    histories, names = [History.of(run) for run in members], _names(members)
    loaded = [Member(*load_classifier(run), name) for run, name in zip(members, names, strict=True)]
    predictor = Predictor(loaded, Combination())
    data = config.data.model_copy(update={"channels": predictor.preprocessing.channels})
    images = load(config.sources, data, reporter, learn="labels", forms=predictor.further_forms)
    val, test = common_rows(images, histories, method, reporter)
    batch = config.evaluation.batch_size
    validation = predictions_table(images, val, predictor, batch)
    validated = certain(labelled_only(validation, predictor), predictor)
    if config.method in FITTED_METHODS and not len(validated):
        raise DataError(f"--method {method}: no validation image that is common to the members has a label")
    if config.method in FITTED_METHODS:
        found = member_probabilities(validated, len(members), predictor.classes)
        truth = truth_matrix(validated, predictor.classes, predictor.kind)
        predictor.combination = Combination.fit(config.method, found, truth, predictor.kind)
    else:
        predictor.combination = Combination(config.method)
    scores = validate_members(validated, setting_of(names, predictor, config.evaluation))
    run = Run.create(Path(out), config, resume=False, overwrite=overwrite)
    own = [
        {**_member_card(member, name, run.path), "validation": score}
        for member, name, score in zip(members, names, scores, strict=True)
    ]
    section = {
        **predictor.combination.card(),
        "members": own,
        "best": best_member(scores),
        "validation_images": len(validated),
    }
    run.card = _card(config, predictor, images, members, histories, section, test)
    with replacing(run.path / "data.parquet") as part:
        used_together(histories).to_parquet(part, index=False)
    detector = remember(run, images, predictor, images.rows("train"), config.trust)
    tested = predictions_table(images, test, predictor, batch, detector)
    together = (recombined(validation, predictor), tested)
    keep_predictions(run, images, together)
    assess(run, predictor, config.trust)
    if evaluate_tables(run, images, together, predictor, config.evaluation, reporter) is None:
        reporter.note("no labelled validation or test image: the ensemble is not evaluated")
    run.finish(run.card)
    return Run.open(run.path)


def _opened(runs: Sequence[str | Path], out: Path, reporter: Reporter) -> list[Run]:
    """Open the members and refuse what cannot be combined."""
    if isinstance(runs, (str, Path)) or len(runs) < 2:
        raise ConfigError("an ensemble needs two runs or more; name them one after the other")
    members: list[Run] = []
    prints: dict[str, Path] = {}
    for name in runs:
        run = Run.open(name)
        if run.path.resolve() == out.resolve():
            raise ConfigError(f"--out {out}: this is one of the members; choose another folder")
        run.refuse_ensemble()
        if run.card["kind"] != "classify":
            raise RunError(
                f"{run.path}: this run is of kind {run.card['kind']!r}; only fine-tuned classifiers can be combined"
            )
        same = prints.setdefault(run.fingerprint(), run.path)
        if same is not run.path:
            what = (
                "is named twice" if same.resolve() == run.path.resolve() else f"holds the weights of {same}"
            )
            raise RunError(f"{run.path}: {what}; each member can be in an ensemble once")
        members.append(run)
    first = members[0]
    kind, classes = first.card["task"]["kind"], first.card["task"]["classes"]
    for run in members[1:]:
        task = run.card["task"]
        if task["kind"] != kind:
            raise RunError(f"{run.path}: its task is {task['kind']}, that of {first.path} is {kind}")
        if set(task["classes"]) != set(classes):
            raise RunError(
                f"{run.path}: has the classes {', '.join(task['classes'])}, {first.path} has {', '.join(classes)}"
            )
        if task["classes"] != classes:
            reporter.note(
                f"{run.path}: has the classes in another order ({', '.join(task['classes'])}); they are matched by name"
            )
    return members


def _config(members: Sequence[Run], method: str, settings: Iterable[str]) -> EnsembleConfig:
    """Return the configuration: sources, division and evaluation of the first member, and what the user sets."""
    kept, sets = members[0].config(), parse_settings(settings)
    others = [name for name in sets if name not in ("evaluation", "trust", "data")]
    for name in [*others, *(f"data.{n}" for n in sets.get("data", {}))]:
        if name != "data.workers":
            raise ConfigError(
                f"{name}: an ensemble takes this from its members; set evaluation.*, trust.* or data.workers"
            )
    fixed = {
        "members": [str(run.path) for run in members],
        "method": method,
        "sources": kept["sources"],
        "data": DataConfig.model_validate(kept["data"]).model_dump(mode="json"),
        "evaluation": kept.get("evaluation", {}),
        "trust": kept.get("trust", {}),
    }
    return build(EnsembleConfig, merge(fixed, sets))


def _names(members: Sequence[Run]) -> list[str]:
    """Return the names of the folders, or as much of their paths as makes each name the only one."""
    parts = [run.path.resolve().parts for run in members]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            break
    return names


def _member_card(run: Run, name: str, out: Path) -> dict[str, Any]:
    """Return what the card of an ensemble says of a member."""
    card = run.card
    return {
        "name": name,
        "path": _place(run.path, out),
        "fingerprint": run.fingerprint(),
        "card": run.card_fingerprint(),
        "encoder": card["encoder"].get("name"),
        "size": card["preprocessing"]["size"],
        "seed": card.get("seed"),
        "labels_used": card["data"].get("labels_used"),
        "parent": (card.get("parent") or {}).get("path"),
        "classes": card["task"]["classes"],
    }


def _place(member: Path, out: Path) -> str:
    """Return a path relative to the ensemble, so that both can be moved; absolute where they share no folder."""
    here, there = out.resolve(), member.resolve()
    shared = Path(os.path.commonpath([here, there]))
    return str(there) if shared == Path(here.anchor) else os.path.relpath(there, here)


def _card(
    config: EnsembleConfig,
    predictor: Predictor,
    images: Images,
    members: Sequence[Run],
    histories: Sequence[History],
    section: dict[str, Any],
    test: Rows,
) -> dict[str, Any]:
    labels = {run.card["data"].get("labels_used") for run in members}
    evaluated = test if len(test) else images.rows("val")
    notes = notes_about(images, histories, evaluated)
    if not len(test):
        fitted = f"{config.method} was fitted and " if config.method in FITTED_METHODS else ""
        notes.append(
            f"{fitted}the best member was chosen on the validation images that are evaluated, as there are no test "
            "images"
        )
    notes += _notes_on_temperatures(section)
    notes += [f"{run.path}: {note}" for run in members for note in run.card.get("notes") or []]
    return describe(
        "classify",
        config.evaluation.seed,
        encoder={"name": f"ensemble of {len(members)}"},
        objective=None,
        task={
            "name": "ensemble",
            "kind": predictor.kind,
            "classes": predictor.classes,
            "ordered": predictor.ordered,
            "settings": {},
        },
        preprocessing={},
        parent=None,
        ensemble=section,
        data={
            "sources": images.sources,
            "split": images.split,
            "leakage": images.leakage,
            "labels_used": labels.pop() if len(labels) == 1 else None,
            "transductive": any(run.card["data"].get("transductive") for run in members),
        },
        training={},
        notes=notes,
    )


def _notes_on_temperatures(section: dict[str, Any]) -> list[str]:
    """Name the members whose temperature is at an end of its range, and what that means."""
    said = {TEMPERATURES[0]: "it is right about every validation image, which more images would not show",
            TEMPERATURES[1]: "what it says has nothing to do with the validation images"}  # fmt: skip
    pairs = zip(section["members"], section["temperatures"] or [], strict=False)
    return [
        f"{member['name']}: its temperature is {temperature:g}, the end of the range: {said[end]}"
        for member, temperature in pairs
        for end in TEMPERATURES
        if np.isclose(temperature, end)
    ]
