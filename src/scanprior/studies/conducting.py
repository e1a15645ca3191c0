"""``study``: a recipe from its data sets to one report."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd

from scanprior.api.division import Learn
from scanprior.api.settings import DataConfig
from scanprior.api.sources import load, read_manifest
from scanprior.config import build, merge
from scanprior.data.folder_lock import locked
from scanprior.data.manifest import Manifest, describe
from scanprior.data.phantom import write_phantoms
from scanprior.engine import Reporter
from scanprior.errors import ConfigError, DataError, RunError
from scanprior.files import replacing, write_text, writing
from scanprior.reporting.study_markdown import study_markdown
from scanprior.reporting.study_page import gather, write_study_report
from scanprior.run import Run
from scanprior.studies.absence import without_absent
from scanprior.studies.checks import check_budgets, check_columns, check_settings, check_starts
from scanprior.studies.costs import measure_costs
from scanprior.studies.execution import Execution
from scanprior.studies.parts import DataSpec
from scanprior.studies.plan import Step, pretraining_data, steps_of, training_data
from scanprior.studies.pool import Pool
from scanprior.studies.recipe import Recipe, read_recipe
from scanprior.studies.resuming import settle
from scanprior.studies.summary import Part, summarise

_TABLES = ("efficiency", "contrasts", "ensembles", "regime_gains", "drift", "synthetic", "subgroups", "gaps")


def study(
    recipe: str | Path,
    *,
    out: str | Path,
    data: Mapping[str, str | Path] | None = None,
    workers: int | None = None,
    quick: bool = False,
    changes: Iterable[str] = (),
    reporter: Reporter | None = None,
) -> dict[str, Any]:
    """Run a recipe: every training and measurement it names, then the results and a report.

    What is finished in ``out`` is not done again, so a study that was killed goes on by the same call. A run
    that fails ends no other; it is named in the results, and tried again by the next call.

    Args:
        recipe: name of a recipe of the package, such as ``ss-cxr``, or a YAML file.
        out: the folder of the study.
        data: data set of the recipe to folder or table; what needs one that is not given is left out, and said.
        workers: processes; None = one a core.
        quick: the recipe's small form, on phantoms.
        changes: keys of the recipe that are other here, such as ``settings.augment.preset=ultrasound``.
        reporter: shows progress.

    Returns:
        As written to ``results.json``; ``report.html`` shows it, with the costs of ``costs.json`` where the recipe
        asks for them.

    Raises:
        ScanpriorError: a recipe or data that cannot be used; another recipe's study in ``out``; no run that
            succeeded.
    """
    reporter, folder = reporter or Reporter(), Path(out)
    wanted = with_data(read_recipe(recipe, quick=quick, changes=changes), data or {}, reporter)
    check_settings(wanted)
    count = workers if workers is not None else os.cpu_count() or 1
    if count < 1:
        raise ConfigError(f"workers={count}: a study needs at least one process")
    _check_folder(folder)
    places = [folder / f"fold{fold}" for fold in range(1, (wanted.folds or 0) + 1)] or [folder]
    wanted, absent = without_absent(
        wanted, lambda step: all(Run.finished(place / step) for place in places), reporter
    )
    check_starts(wanted)
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        if wanted.folds:
            settle(folder, wanted, data or {}, reporter)
        parts, changed = [], []
        for number, (place, part) in enumerate(zip(places, wanted.of_folds() or [wanted], strict=True), 1):
            fold = number if wanted.folds else 0
            place.mkdir(exist_ok=True)
            if fold:
                reporter.note(f"fold {fold} of {wanted.folds}")
            changed += settle(place, part, data or {}, reporter)
            parts.append(_conducted(place, part, data or {}, count, fold, reporter))
        reporter.note("gathering the results")
        results: dict[str, Any] = summarise(wanted, parts, absent)
        results["warnings"] += list(dict.fromkeys(changed))
        costs = measure_costs(folder, parts[0], reporter) if wanted.costs else []
        _write(results, costs, folder)
    return results


def _conducted(
    folder: Path, recipe: Recipe, data: Mapping[str, str | Path], workers: int, fold: int, reporter: Reporter
) -> Part:
    """Do all steps of a study, or of one of its folds."""
    manifests = {
        name: _indexed(folder, name, spec, recipe, data.get(name), reporter)
        for name, spec in recipe.data.items()
    }
    check_columns(recipe, manifests)
    sources = {
        name: _prepared(folder, name, manifest, recipe, reporter) for name, manifest in manifests.items()
    }
    return Part(recipe, folder, sources, _run(recipe, folder, workers, reporter), fold)


def _write(results: Mapping[str, Any], costs: Sequence[Mapping[str, Any]], folder: Path) -> None:
    """Write results.json, its tables, and the report, which shows the costs too."""
    write_text(folder / "results.json", json.dumps(results, indent=1))
    tables = folder / "tables"
    tables.mkdir(exist_ok=True)
    lists = {name: results.get(name, []) for name in _TABLES}
    lists |= {"ranks": results.get("ranks", {}).get("rows", []), "costs": costs}
    for name, given in lists.items():
        rows = [
            {
                key: json.dumps(value) if isinstance(value, (dict, list)) else value
                for key, value in row.items()
            }
            for row in given
        ]
        if rows:
            with replacing(tables / f"{name}.csv") as part:
                pd.DataFrame(rows).to_csv(part, index=False)
    page = gather(results, costs)
    write_study_report(page, folder / "report.html")
    write_text(folder / "report.md", study_markdown(page))


def with_data(recipe: Recipe, data: Mapping[str, str | Path], reporter: Reporter) -> Recipe:
    """Return the recipe for the data sets that are given."""
    for name in data:
        if name not in recipe.data:
            raise ConfigError(
                f"--data {name}=…: the recipe has no such data set; its data sets are {', '.join(recipe.data)}"
            )
        if recipe.data[name].phantom is not None:
            raise ConfigError(f"--data {name}=…: the recipe makes this data set itself, of phantoms")
    missing = [name for name, spec in recipe.data.items() if name not in data and spec.phantom is None]
    if not missing:
        return recipe
    reporter.note(f"left out, for want of --data NAME=PATH: {', '.join(missing)} and what needs them")
    return recipe.without(missing)


def _check_folder(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise RunError(f"{folder}: a file is here; name a folder for the study")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / "study.yaml").exists():
        raise RunError(f"{folder}: the folder is not empty and holds no study; choose another --out")


def _indexed(
    folder: Path, name: str, spec: DataSpec, recipe: Recipe, path: str | Path | None, reporter: Reporter
) -> Manifest:
    """Index a data set and choose its rows, once for all runs."""
    file = folder / "data" / f"{name}.parquet"
    if not file.exists():
        config = build(DataConfig, merge(recipe.settings.get("data", {}), spec.settings))
        if spec.phantom is not None:
            place = folder / "data" / name
            if not (place / "labels.csv").exists():  # it was killed while it drew
                shutil.rmtree(place, ignore_errors=True)
            reporter.note(f"drawing phantoms: {name}")
            path = place if place.exists() else write_phantoms(place, spec.phantom, workers=config.workers)
        assert path is not None
        manifest = _kept(read_manifest(path, config), name, spec)
        reporter.note(f"{name}: {describe(manifest)}")
        manifest.save(file)
    return Manifest.load(file, allow_outside=True)


def _prepared(
    folder: Path, name: str, manifest: Manifest, recipe: Recipe, reporter: Reporter
) -> dict[str, Any]:
    """Decode and divide a data set, once for all runs; return what the results say of it.

    The division is a function of the manifest and of ``data.split``, so every run makes the same; it is
    written down beside the manifest.
    """
    learned = name in training_data(recipe)
    learn: Learn = "labels" if manifest.label_columns else "nothing"
    if name in _masked(recipe):
        learn = "masks"
    options = build(DataConfig, recipe.settings.get("data", {}))
    images = load([folder / "data" / f"{name}.parquet"], options, reporter, learn=learn, divide=learned)
    with replacing(folder / "data" / f"{name}-split.csv") as part:
        images.frame[["image", "split"]].to_csv(part, index=False)
    check_budgets(recipe, name, images)
    spec = recipe.data[name]
    return {
        "about": spec.about,
        "phantom": spec.phantom is not None,
        "images": len(images.frame),
        "patients": int(images.frame["patient"].nunique()) if "patient" in images.frame else None,
        "fingerprint": manifest.fingerprint(),
        "split": images.split if learned else None,
        "left_out": len(images.store.audit["left_out"]),
    }


def _masked(recipe: Recipe) -> set[str]:
    """Return the names of the data sets whose masks are used."""
    tasks = [task for name, task in recipe.tasks.items() if recipe.segments(name)]
    return {
        name for task in tasks for name in (task.data, *(where.data for where in task.elsewhere.values()))
    }


def _kept(manifest: Manifest, name: str, spec: DataSpec) -> Manifest:
    """Return the rows that the recipe keeps, under its name for them."""
    frame = manifest.frame
    for column, values in spec.keep.items():
        if column not in frame:
            raise DataError(
                f"data.{name}.keep: there is no column {column!r}; the columns are {', '.join(frame.columns)}"
            )
        frame = frame[frame[column].astype(str).isin([str(value) for value in values])]
        if not len(frame):
            raise DataError(f"data.{name}.keep: no image has {column} in {', '.join(map(str, values))}")
    return Manifest(frame, manifest.root, manifest.label_columns, name, manifest.layout, manifest.found)


def _run(recipe: Recipe, folder: Path, workers: int, reporter: Reporter) -> dict[str, str]:
    """Do every step that is left; return those that failed, and why."""
    steps = steps_of(recipe)
    execution = Execution(folder, frozenset(pretraining_data(recipe)))
    done = {step.name for step in steps if execution.done(step)}
    left = len(steps) - len(done)
    reporter.note(f"{len(steps)} steps, {len(done)} done before, {workers} at a time")
    failed: dict[str, str] = {}
    threads = max(1, (os.cpu_count() or 1) // workers)
    pool: Pool[Step] = Pool(execution, min(workers, max(left, 1)), threads)
    for number, outcome in enumerate(pool.run(steps, done), 1):
        log = folder / "steps.jsonl"
        with writing(log), log.open("a") as stream:
            stream.write(json.dumps(asdict(outcome)) + "\n")
        if outcome.error is None:
            reporter.note(f"{number}/{left}  {outcome.name}")
        else:
            failed[outcome.name] = outcome.error
            reporter.note(f"{number}/{left}  {outcome.name} failed: {outcome.error}")
    if failed and not any(step.kind == "finetune" and step.name not in failed for step in steps):
        name, why = next(iter(failed.items()))
        raise RunError(f"{folder}: no fine-tuning succeeded; the first that failed, {name}: {why}")
    return failed
