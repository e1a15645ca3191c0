"""Going on with a study whose recipe or tables are no longer the same: what is kept, and what is refused."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from scanprior.config import Tree, build, load_yaml
from scanprior.engine import Reporter
from scanprior.errors import ConfigError, RunError
from scanprior.files import write_text
from scanprior.run import Run
from scanprior.studies.plan import Step, pretraining_data, steps_of
from scanprior.studies.recipe import Recipe

_OF_REPORT = ("title", "question", "resamples", "level", "baseline_regime", "correction", "costs")
_TABLES = (".csv", ".tsv", ".xlsx", ".parquet")


def settle(folder: Path, recipe: Recipe, data: Mapping[str, str | Path], reporter: Reporter) -> list[str]:
    """Write what the study is into ``study.yaml``, or see that what is there belongs to it.

    A recipe that has changed goes on where all that it changes is still to be done: a finished run is that of
    the new recipe too. Data sets that change before anything was trained on them are read again.

    Args:
        folder: of the study; it exists.
        recipe: of the data sets that are given.
        data: name of a data set to its folder or table.
        reporter: says what is read again, and which table has changed.

    Returns:
        Sentences for the report: tables that have changed under finished runs.

    Raises:
        RunError: a finished or half-finished run is not that of the recipe.
    """
    places = {name: str(Path(path).resolve()) for name, path in data.items()}
    tables = {name: fingerprint_of_tables(Path(path)) for name, path in data.items()}
    tree: Tree = {"recipe": recipe.model_dump(mode="json"), "data": places, "tables": tables}
    file = folder / "study.yaml"
    before = load_yaml(file) if file.exists() else tree
    begun = _begun(folder)
    difference = next(_differences(_of_runs(before), _of_runs(tree)), None)
    kept = {name for name in begun if (folder / name / "state").exists() or _finished(folder, name)}
    if difference is not None:
        _same_where_begun(folder, before, recipe, places, kept, difference)
        for name in begun - kept:  # nothing of it is done, and its settings may be others now
            shutil.rmtree(folder / name)
    used = {data for step in steps_of(recipe) if step.name in kept for data in _data_of(step)}
    said = []
    for name in recipe.data:
        changed = before.get("tables", {}).get(name, tables.get(name)) != tables.get(name)
        if changed and name in used:
            said.append(
                f"{name}: a table in {places[name]} has changed since the study began; the study goes on with what it "
                f"read then (data/{name}.parquet), so that all runs are of the same images; choose another --out for "
                "the new table"
            )
            tree["tables"][name] = before["tables"][name]
        elif name not in used and (changed or _reading(before, name) != _reading(tree, name)):
            if (folder / "data" / f"{name}.parquet").exists():
                reporter.note(f"{name}: it has changed since the study began, and is read again")
            shutil.rmtree(folder / "data" / name, ignore_errors=True)
            for end in (".parquet", "-split.csv"):
                (folder / "data" / f"{name}{end}").unlink(missing_ok=True)
    for sentence in said:
        reporter.note(f"warning: {sentence}")
    write_text(file, yaml.safe_dump(tree, sort_keys=False, allow_unicode=True))
    return said


def fingerprint_of_tables(place: Path) -> str:
    """Return the first 16 hex digits of the SHA-256 of a table, or of the tables that lie in a folder."""
    digest = hashlib.sha256()
    inside = sorted(place.iterdir()) if place.is_dir() else [place]
    for file in inside:
        if file.is_file() and (file == place or file.suffix.lower() in _TABLES):
            digest.update(f"{file.name}\n".encode())
            with file.open("rb") as stream:
                while block := stream.read(1 << 20):
                    digest.update(block)
    return digest.hexdigest()[:16]


def _same_where_begun(
    folder: Path, before: Tree, recipe: Recipe, places: Mapping[str, str], kept: set[str], difference: Any
) -> None:
    """Refuse a recipe by which a run that is there would be another, or none."""
    if not kept:
        return
    place, old, new = difference
    refused = f"{folder}: holds a study of another recipe: {place} was {old!r} and is {new!r}"
    try:
        first = build(Recipe, before["recipe"])
    except ConfigError:
        raise RunError(f"{refused}; give the same recipe and data, or choose another --out") from None
    then, now = _made_of(first, before["data"]), _made_of(recipe, places)
    lost = sorted(name for name in kept if name not in now or then.get(name) != now[name])
    if not lost:
        return
    files = [str(folder / (f"{name}.json" if name.startswith("shift/") else name)) for name in lost]
    more = f" and {len(files) - 3} more, which are named once these are gone" if len(files) > 3 else ""
    done = "finished" if _finished(folder, lost[0]) else "half finished"
    raise RunError(
        f"{refused}, and {lost[0]} is {done} by the old one; give the same recipe and data, choose another --out, or, "
        f"to do without what is there, delete {', '.join(files[:3])}{more}"
    )


def _made_of(recipe: Recipe, places: Mapping[str, str]) -> dict[str, Any]:
    """Return, for every step, all that decides its result: its settings, data, and the steps before it."""
    seen = pretraining_data(recipe)
    made: dict[str, Any] = {}
    for step in steps_of(recipe):
        made[step.name] = {
            "step": asdict(step),
            "data": {
                name: (_spec(recipe.data[name].model_dump(mode="json")), places.get(name), name in seen)
                for name in _data_of(step)
            },
            "reading": recipe.settings.get("data", {}),
            "before": [made[name] for name in step.needs],
        }
    return made


def _data_of(step: Step) -> list[str]:
    return [*step.data, *(name for name, _ in step.elsewhere.values())]


def _begun(folder: Path) -> set[str]:
    """Return the names of the steps of which there is something in the folder."""
    found = {
        str(file.parent.relative_to(folder))
        for part in ("pretrained", "tuning", "runs")
        for file in (folder / part).rglob("config.yaml")
    }
    return found | {str(file.relative_to(folder).with_suffix("")) for file in folder.glob("shift/*.json")}


def _finished(folder: Path, name: str) -> bool:
    return name.startswith("shift/") or Run.finished(folder / name)


def _reading(tree: Tree, name: str) -> Any:
    """Return what decides how a data set is read and divided."""
    recipe = tree["recipe"]
    spec = recipe["data"].get(name)
    return spec and _spec(spec), tree["data"].get(name), recipe["settings"].get("data")


def _spec(spec: Tree) -> Tree:
    return {**spec, "about": None}


def _of_runs(tree: Tree) -> Tree:
    """Return what decides how the runs are made; the rest only says how they are summed up."""
    recipe = {key: value for key, value in tree["recipe"].items() if key not in _OF_REPORT}
    tasks = {
        name: {key: value for key, value in task.items() if key not in ("metrics", "subgroups")}
        for name, task in recipe["tasks"].items()
    }
    data = {name: _spec(spec) for name, spec in recipe["data"].items()}
    return {"recipe": {**recipe, "tasks": tasks, "data": data}, "data": tree["data"]}


def _differences(before: Any, now: Any, place: str = "") -> Iterator[tuple[str, Any, Any]]:
    if isinstance(before, dict) and isinstance(now, dict):
        for name in {**before, **now}:
            yield from _differences(
                before.get(name), now.get(name), f"{place}.{name}" if place else str(name)
            )
    elif before != now:
        yield place, before, now
