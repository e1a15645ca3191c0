"""``ensemble``: several fine-tuned classifiers as one run."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from scanprior.api.ensemble_results import setting_of
from scanprior.api.evaluation import evaluate_tables
from scanprior.api.models import load_classifier
from scanprior.api.prediction_tables import certain, labelled_only, predictions_table, recombined
from scanprior.api.predictor import Member, Predictor
from scanprior.api.settings import DataConfig, EnsembleConfig
from scanprior.api.sources import Images, add_forms, load
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
from scanprior.run import Run, describe

Rows = NDArray[np.int64]

LISTED = 10
"""Images that an error names; the rest are counted."""


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
    images = load(config.sources, config.data, reporter, learn="labels")
    histories = [_History.of(run) for run in members]
    val, test = _rows(images, histories, method, reporter)
    names = _names(members)
    loaded = [Member(*load_classifier(run), name) for run, name in zip(members, names, strict=True)]
    predictor = Predictor(loaded, Combination())
    add_forms(images, config.sources, config.data, predictor.further_forms, reporter)
    batch = config.evaluation.batch_size
    tables = [predictions_table(images, rows, predictor, batch) for rows in (val, test)]
    validated = certain(labelled_only(tables[0], predictor), predictor)
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
    _used(histories).to_parquet(run.path / "data.parquet", index=False)
    together = (recombined(tables[0], predictor), recombined(tables[1], predictor))
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
    for name in [*(set(sets) - {"evaluation", "data"}), *(f"data.{n}" for n in sets.get("data", {}))]:
        if name != "data.workers":
            raise ConfigError(
                f"{name}: an ensemble takes this from its members; set evaluation.* or data.workers"
            )
    fixed = {
        "members": [str(run.path) for run in members],
        "method": method,
        "sources": kept["sources"],
        "data": DataConfig.model_validate(kept["data"]).model_dump(mode="json"),
        "evaluation": kept.get("evaluation", {}),
    }
    return build(EnsembleConfig, merge(fixed, sets))


@dataclass(frozen=True)
class _History:
    """Which images a run was trained, selected and tested on, and what an error calls it."""

    path: Path
    table: pd.DataFrame

    @classmethod
    def of(cls, run: Run) -> _History:
        file = run.path / "data.parquet"
        if not file.exists():
            raise RunError(
                f"{run.path}: does not say which images it was trained on (it has no data.parquet)"
            )
        return cls(run.path, pd.read_parquet(file))

    def pixels(self, use: str) -> set[str]:
        """Return the digests of the images of a use: train, val or test."""
        return set(self.table.loc[self.table["used"] == use, "pixels"])

    def patients(self, use: str) -> set[tuple[str, str]]:
        """Return source and name of the patients of a use, where they are known."""
        if "patient" not in self.table or "source" not in self.table:
            return set()
        rows = self.table[(self.table["used"] == use) & self.table["patient"].notna()]
        return set(zip(rows["source"], rows["patient"], strict=True))


def _rows(
    images: Images, histories: Sequence[_History], method: str, reporter: Reporter
) -> tuple[Rows, Rows]:
    """Return the rows that all members validated on, and the test rows.

    Raises:
        DataError: a member was trained on an image to evaluate on, or a method lacks validation images.
    """
    val, test = images.rows("val"), images.rows("test")
    pixels = images.frame["pixels"]
    name, evaluated = ("test", test) if len(test) else ("validation", val)
    for history in histories:
        seen = evaluated[pixels.iloc[evaluated].isin(history.pixels("train")).to_numpy()]
        if len(seen):
            named = ", ".join(images.frame["image"].iloc[seen[:LISTED]])
            more = f" and {len(seen) - LISTED} more" if len(seen) > LISTED else ""
            raise DataError(
                f"{history.path}: was trained on {len(seen)} of the {len(evaluated)} {name} images of "
                f"{histories[0].path} ({named}{more}); combine runs of the same division of the data"
            )
    for history in histories:
        val = val[pixels.iloc[val].isin(history.pixels("val") - history.pixels("train")).to_numpy()]
    for text in notes_about(images, histories, evaluated):
        reporter.note(f"warning: {text}")
    if not len(val):
        if method in FITTED_METHODS:
            raise DataError(
                f"--method {method}: no validation image is common to the members, and it is fitted on them; "
                "use --method mean or geometric"
            )
        reporter.note(
            "no validation image is common to the members: thresholds are 0.5, no member is called best"
        )
    return val, test


def notes_about(images: Images, histories: Sequence[_History], evaluated: Rows) -> list[str]:
    """Return what makes the evaluation a little too good: patients and selected images of members in it."""
    said, frame = [], images.frame.iloc[evaluated]
    for history in histories:
        if "patient" in frame:
            pairs = list(zip(frame["source"], frame["patient"], strict=True))
            known = history.patients("train")
            patients = {pair for pair in pairs if pd.notna(pair[1]) and pair in known}
            if patients:
                said.append(
                    f"{len(patients)} patients of the evaluated images have other images among the training images of "
                    f"{history.path}"
                )
        chosen = int(frame["pixels"].isin(history.pixels("val")).sum())
        if chosen and not (frame["split"] == "val").any():
            said.append(f"{history.path} was selected on {chosen} of the evaluated images")
    return said


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
    histories: Sequence[_History],
    section: dict[str, Any],
    test: Rows,
) -> dict[str, Any]:
    labels = {run.card["data"].get("labels_used") for run in members}
    evaluated = test if len(test) else images.rows("val")
    notes = notes_about(images, histories, evaluated)
    notes += [f"{run.path}: {note}" for run in members for note in run.card.get("notes") or []]
    return describe(
        "classify",
        config.evaluation.seed,
        encoder={"name": f"ensemble of {len(members)}"},
        objective=None,
        task={"name": "ensemble", "kind": predictor.kind, "classes": predictor.classes, "settings": {}},
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


def _used(histories: Sequence[_History]) -> pd.DataFrame:
    """Return what all members together used each image for: trained on by one counts as trained on."""
    together = pd.concat([history.table for history in histories], ignore_index=True)
    rank = together["used"].map({"train": 0, "val": 1, "test": 2}).fillna(3)
    order = together.assign(rank=rank).sort_values("rank", kind="stable")
    keys = [name for name in ("source", "image", "pixels") if name in order]
    return order.drop_duplicates(keys).sort_index().drop(columns="rank").reset_index(drop=True)
