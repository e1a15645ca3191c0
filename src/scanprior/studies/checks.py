"""What is seen of a study before anything is trained: settings, starting points, columns, labels, budgets."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path

from scanprior.api.settings import DataConfig, finetune_config, pretrain_config
from scanprior.api.sources import Images
from scanprior.config import build, merge
from scanprior.data.manifest import Manifest
from scanprior.data.split import label_budget
from scanprior.errors import ConfigError, DataError, RunError, SplitError
from scanprior.evaluation import are_rising, why_not
from scanprior.evaluation.bands import groups_by
from scanprior.run import RELEASED, Run
from scanprior.studies.parts import ElsewhereSpec
from scanprior.studies.plan import steps_of
from scanprior.studies.recipe import Recipe


def check_settings(recipe: Recipe) -> None:
    """Build the configuration of every data set and training, so that a typing error ends no study half-way.

    Raises:
        ConfigError: the first that is wrong, and of which data set or step.
    """
    for name, spec in recipe.data.items():
        try:
            build(DataConfig, merge(recipe.settings.get("data", {}), spec.settings))
        except ConfigError as error:
            raise ConfigError(f"data.{name}.settings: {error}") from None
    for step in steps_of(recipe):
        try:
            if step.kind == "pretrain":
                pretrain_config(str(step.objective), step.options)
            elif step.kind != "shift":
                # What else a probe cannot have is seen by the plan of its run, which reads its parent.
                finetune_config(step.options, {"task": {"head": step.probe}} if step.probe else {})
        except ConfigError as error:
            raise ConfigError(f"{step.name}: {error}") from None


def check_starts(recipe: Recipe) -> None:
    """See that every init starts from something that is there.

    Raises:
        ConfigError: a start that is neither a pretraining of the recipe nor a finished run.
    """
    for name, init in recipe.inits.items():
        start = init.start
        if start is None or start in recipe.pretraining:
            continue
        place = f"inits.{name}.start"
        released = start.startswith(RELEASED)
        if not released and not Path(start).expanduser().exists():
            near = get_close_matches(start, recipe.pretraining, n=1)
            known = ", ".join(recipe.pretraining) or "none"
            hint = f"did you mean {near[0]!r}?" if near else f"the pretrainings are: {known}"
            raise ConfigError(
                f"{place}: {start!r} is neither a pretraining of the recipe nor the folder of a run; {hint}"
            )
        try:
            Run.open(start if released else Path(start).expanduser())
        except RunError as error:
            raise ConfigError(f"{place}: {error}") from None


def check_columns(recipe: Recipe, manifests: Mapping[str, Manifest]) -> None:
    """See that the data have what the tasks name: columns of subgroups, metrics, labels that can be renamed.

    Raises:
        DataError: they have not.
    """
    for name, task in recipe.tasks.items():
        own = manifests[task.data]
        for column in task.subgroups:
            if column not in own.frame:
                raise DataError(
                    f"tasks.{name}.subgroups: {task.data} has no column {column!r}; its columns are "
                    f"{', '.join(map(str, own.frame.columns))}"
                )
        _check_metrics(recipe, name, own)
        for data in dict.fromkeys([task.data, *(spec.data for spec in task.elsewhere.values())]):
            _check_groups(f"tasks.{name}.subgroups", data, manifests[data], task.subgroups)
        for where, spec in task.elsewhere.items():
            place, other = f"tasks.{name}.elsewhere.{where}", manifests[spec.data]
            if recipe.segments(name) or own.task != "multiclass":
                if spec.map:
                    raise DataError(
                        f"{place}.map: it renames the values of one label column, and {name} learns none"
                    )
            else:
                _check_labels(place, task.data, own, spec, other)


def _check_metrics(recipe: Recipe, name: str, manifest: Manifest) -> None:
    if recipe.segments(name) or manifest.task is None:
        return
    task = recipe.tasks[name]
    layers = [recipe.settings_of(name, arm) for arm in recipe.arms_of(name)]
    ordered = are_rising(manifest.classes) or any(layer.get("task", {}).get("classes") for layer in layers)
    for metric in task.metrics:
        reason = why_not(metric, manifest.task, manifest.classes, ordered)
        if reason is not None:
            raise DataError(f"tasks.{name}.metrics: {metric!r} cannot be had of {task.data}; {reason}")


def _check_groups(
    place: str, data: str, manifest: Manifest, subgroups: Mapping[str, list[float] | None]
) -> None:
    for column, edges in subgroups.items():
        if column not in manifest.frame:
            continue
        try:
            groups_by(manifest.frame, column, edges)
        except DataError as error:
            raise DataError(
                f"{place}.{column}: {data}: {error}; leave the edges empty to take its values as the groups"
            ) from None


def _check_labels(place: str, data: str, own: Manifest, spec: ElsewhereSpec, other: Manifest) -> None:
    if other.task != "multiclass":
        raise DataError(f"{place}: {spec.data} has no labels of one column, as {data} has")
    for theirs, ours in spec.map.items():
        if theirs not in other.classes:
            raise DataError(
                f"{place}.map: {spec.data} has no label {theirs!r}; its labels are {', '.join(other.classes)}"
            )
        if ours not in own.classes:
            raise DataError(
                f"{place}.map.{theirs}: {data} has no label {ours!r}; its labels are {', '.join(own.classes)}"
            )
    unknown = sorted({spec.map.get(label, label) for label in other.classes} - set(own.classes))
    if unknown:
        raise DataError(
            f"{place}: {spec.data} has the label {unknown[0]!r}, which is none of {', '.join(own.classes)}; "
            f"name it in map, or leave its rows out with data.{spec.data}.keep"
        )


def check_budgets(recipe: Recipe, data: str, images: Images) -> None:
    """See that the tasks of a data set have as many training images as they are to use.

    Raises:
        DataError: one has not, and how many there are.
    """
    for name, task in recipe.tasks.items():
        if task.data != data:
            continue
        frame, columns = images.frame[images.frame["split"] == "train"], images.store.label_columns
        if recipe.segments(name):
            assert images.masks is not None
            frame = frame[images.masks.has[frame["row"]]]
            if not columns:
                frame, columns = frame.assign(label="mask"), ["label"]
        if not columns:
            raise DataError(
                f"tasks.{name}: {data} has no labels; name their column in data.{data}.settings.label_columns"
            )
        tuned = task.tune.labels if task.tune is not None else []
        for place, budgets in (("labels", task.labels), ("tune.labels", tuned)):
            for budget in budgets:
                if budget == "all":
                    continue
                try:
                    label_budget(frame, columns, count=budget)
                except SplitError as error:
                    raise DataError(f"tasks.{name}.{place}: {data}: {error}") from None
