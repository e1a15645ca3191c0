"""A recipe: which encoders are compared, on which tasks, with how many labels, and where they are tested.

It is YAML. Names that the user chooses stand for data sets, pretrainings, inits (starting points) and
tasks; every training takes the ``settings`` of the recipe, over them those of its pretraining or task, and
over them those of its init.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from difflib import get_close_matches
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, Field, field_validator, model_validator

from scanprior.api.settings import DataConfig
from scanprior.config import Config, Tree, build, load_yaml, merge, parse_settings
from scanprior.data.drifts import DRIFTS
from scanprior.data.phantom import PhantomConfig
from scanprior.errors import ConfigError
from scanprior.evaluation import MASK_METRICS, METRICS
from scanprior.evaluation.combination import Method

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
"""Of a part of a recipe, and of the folder of its runs."""
_AS_SEEN = frozenset({"size", "store_size", "channels", "depth", "fit", "standardize", "workers"})
"""Keys of ``data`` that say how a network sees images, not which images there are."""

Labels = Annotated[int, Field(gt=0)] | Literal["all"]
Entry = TypeVar("Entry")


def _distinct(entries: list[Entry]) -> list[Entry]:
    for place, entry in enumerate(entries):
        if entry in entries[:place]:
            raise ValueError(f"{entry!r} is given twice; keep one of them")
    return entries


Once = AfterValidator(_distinct)
"""Of a list whose entries each stand for something of their own: two alike are a typing error."""


class DataSpec(Config):
    """One data set."""

    about: str = Field("", description="what it is, for the report")
    phantom: PhantomConfig | None = Field(
        None, description="make it of phantoms, instead of --data NAME=PATH"
    )
    settings: Tree = Field({}, description="data.* keys for reading it: label_columns, layout, label_map")
    keep: dict[str, list[Any]] = Field(
        {}, description="column: the values whose rows are kept, such as view: [PA, AP]"
    )


class PretrainingSpec(Config):
    """One pretraining, without labels."""

    data: Annotated[list[Name], Once] = Field(min_length=1, description="data sets that are pooled")
    objective: str = Field(description="gmml, sit, mae")
    start: Name | None = Field(None, description="another pretraining to go on from")
    settings: Tree = Field({}, description="over the settings of the recipe")


class InitSpec(Config):
    """One starting point of fine-tuning; without ``start``, what ``settings`` say of the encoder."""

    start: str | None = Field(
        None, description="a pretraining of this recipe, a run folder, or scanprior:NAME"
    )
    settings: Tree = Field({}, description="over the settings of recipe and task, such as engine.layer_decay")


class ElsewhereSpec(Config):
    """Another data set that the models of a task are tested on as they are."""

    data: Name
    map: dict[str, str] = Field({}, description="its labels: labels of the task")


Member = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*(\+[1-9][0-9]?)?$")]
"""``INIT``: its run. ``INIT+1``, ``INIT+2`` …: another training of it on the same labels, of another seed."""
AGAIN = 1000
"""What is added to the seed of a training for ``+1``: no training of ``seeds`` is ever taken for another one."""


def member_of(name: str) -> tuple[str, int]:
    """Return the init of a member of an ensemble, and which further training it is; 0 = the init's own run."""
    init, _, again = name.partition("+")
    return init, int(again or 0)


class EnsembleSpec(Config):
    """Runs of one seed and budget of a task that predict together; compared as if it were an init."""

    members: list[Member] = Field(
        min_length=2, description="inits; INIT+1: another training of it on the same labels"
    )
    method: Method = Field("mean", description="mean, geometric, calibrated or weighted")

    @field_validator("members")
    @classmethod
    def _once(cls, value: list[str]) -> list[str]:
        for place, member in enumerate(value):
            if member in value[:place]:
                init, again = member_of(member)
                raise ValueError(
                    f"{member!r} is given twice; for another training of the same init write {init}+{again + 1}"
                )
        return value


class TuneSpec(Config):
    """What is chosen on validation, for every init alike."""

    labels: Annotated[list[Labels], Once] = Field(
        min_length=1, description="budgets at which it is chosen; others take the nearest"
    )
    grid: dict[str, list[Any]] = Field(
        min_length=1, description="dotted key: values; every combination is tried"
    )
    seed: int = Field(100, description="of these runs")

    @field_validator("grid")
    @classmethod
    def _values(cls, value: dict[str, list[Any]]) -> dict[str, list[Any]]:
        for name, values in value.items():
            if not values:
                raise ValueError(f"{name}: give at least one value")
            try:
                _distinct(values)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None
        return value


class TaskSpec(Config):
    """One task that every init is fine-tuned for."""

    data: Name
    labels: Annotated[list[Labels], Once] = Field(
        ["all"], min_length=1, description="how many labelled training images"
    )
    settings: Tree = Field({}, description="over the settings of the recipe; task.name: segment for masks")
    metrics: Annotated[list[str], Once] = Field(
        min_length=1, description="of the tables, the first for the figures: auroc, dice, …"
    )
    inits: Annotated[list[Name], Field(min_length=1), Once] | None = Field(
        None, description="which, the baseline among them; empty = all"
    )
    tune: TuneSpec | None = Field(None, description="empty = nothing is chosen")
    ensembles: dict[Name, EnsembleSpec] = Field(
        {}, description="of members of the same seed and labels, as scanprior ensemble makes them"
    )
    elsewhere: dict[Name, ElsewhereSpec] = Field({}, description="drift: other data, as it is")
    drifts: Annotated[list[str], Once] = Field(
        [], description="synthetic drifts of the test images, at five severities"
    )
    subgroups: dict[str, list[float] | None] = Field({}, description="side column: edges of bands, or empty")

    @field_validator("subgroups")
    @classmethod
    def _rising(cls, value: dict[str, list[float] | None]) -> dict[str, list[float] | None]:
        for column, edges in value.items():
            if edges is not None and (not edges or edges != sorted(set(edges))):
                raise ValueError(f"{column}: the edges of bands must rise, found {edges}")
        return value

    @field_validator("drifts")
    @classmethod
    def _known(cls, value: list[str]) -> list[str]:
        for kind in value:
            if kind not in DRIFTS:
                near = get_close_matches(kind, DRIFTS, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"choose of {', '.join(DRIFTS)}"
                raise ValueError(f"there is no drift {kind!r}; {hint}")
        return value


class ShiftSpec(Config):
    """A label-free test whether images of one data set come from where those of another do."""

    encoder: Name = Field(description="an init with a start, whose encoder gives the features")
    reference: Name
    target: Name


class Recipe(Config):
    """A study to be."""

    name: Name
    title: str = Field("", description="heading of the report")
    question: str = Field("", description="what it is to answer, one sentence")
    data: dict[Name, DataSpec] = Field(min_length=1)
    settings: Tree = Field({}, description="of every training: data, encoder, augment, engine; evaluation")
    pretraining: dict[Name, PretrainingSpec] = Field({})
    inits: dict[Name, InitSpec] = Field(min_length=1)
    baseline: Name = Field("scratch", description="the init that the others are compared with")
    tasks: dict[Name, TaskSpec] = Field(min_length=1)
    seeds: Annotated[list[int], Once] = Field(
        [0, 1, 2, 3, 4], min_length=1, description="of training and of the draw of labels"
    )
    folds: int | None = Field(
        None,
        ge=2,
        description="cross-validation: all of it once for each part of the data as test images; metrics are means "
        "over the parts",
    )
    shift: dict[Name, ShiftSpec] = Field({})
    resamples: int = Field(2000, ge=100, description="of patients, for intervals")
    level: float = Field(0.95, gt=0.5, lt=1)

    @model_validator(mode="after")
    def _names_exist(self) -> Recipe:
        def check(place: str, name: str, known: Mapping[str, object], what: str) -> None:
            if name not in known:
                near = get_close_matches(name, known, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"known here: {', '.join(known) or 'none'}"
                raise ValueError(f"{place}: there is no {what} {name!r} in the recipe; {hint}")

        for name, pretraining in self.pretraining.items():
            for data in pretraining.data:
                check(f"pretraining.{name}.data", data, self.data, "data set")
            if pretraining.start is not None:
                check(f"pretraining.{name}.start", pretraining.start, self.pretraining, "pretraining")
        check("baseline", self.baseline, self.inits, "init")
        for name, task in self.tasks.items():
            check(f"tasks.{name}.data", task.data, self.data, "data set")
            for init in task.inits or ():
                check(f"tasks.{name}.inits", init, self.inits, "init")
            if task.inits is not None and self.baseline not in task.inits:
                raise ValueError(
                    f"tasks.{name}.inits: the baseline {self.baseline!r} is not among them, and nothing could be "
                    "compared with it; add it, or name another baseline"
                )
            for where, elsewhere in task.elsewhere.items():
                check(f"tasks.{name}.elsewhere.{where}.data", elsewhere.data, self.data, "data set")
                if elsewhere.data == task.data:
                    raise ValueError(
                        f"tasks.{name}.elsewhere.{where}.data: {task.data!r} is what the task is trained on; its "
                        "own test images are tested anyway"
                    )
                if where in ("test", "validation"):
                    raise ValueError(
                        f"tasks.{name}.elsewhere: {where!r} is the name of the task's own images"
                    )
        for name, shift in self.shift.items():
            check(f"shift.{name}.encoder", shift.encoder, self.inits, "init")
            check(f"shift.{name}.reference", shift.reference, self.data, "data set")
            check(f"shift.{name}.target", shift.target, self.data, "data set")
            if self.inits[shift.encoder].start is None:
                raise ValueError(
                    f"shift.{name}.encoder: {shift.encoder!r} has no start, so no encoder to look with"
                )
        self._no_cycle()
        self._one_division()
        self._known_metrics()
        self._ensembles_fit()
        self._folds_fit()
        return self

    def _one_division(self) -> None:
        """Refuse settings that would read or divide the same images otherwise in one run than in another."""
        parts = {
            f"{kind}.{n}": spec
            for kind in ("pretraining", "tasks", "inits")
            for n, spec in getattr(self, kind).items()
        }
        for place, spec in parts.items():
            for key in sorted((_keys_of(spec.settings) & set(DataConfig.model_fields)) - _AS_SEEN):
                raise ValueError(
                    f"{place}.settings.data.{key}: images are read and patients divided once for the whole study; give "
                    "data.split in the settings of the recipe, and how a data set is read in data.NAME.settings"
                )
        free = {*_AS_SEEN, "split", "exclude_leaks", "transductive"}
        for key in sorted((_keys_of(self.settings) & set(DataConfig.model_fields)) - free):
            raise ValueError(
                f"settings.data.{key}: say how a data set is read in data.NAME.settings, for each by itself"
            )

    def _known_metrics(self) -> None:
        for name, task in self.tasks.items():
            segments = merge(self.settings, task.settings).get("task", {}).get("name") == "segment"
            known = MASK_METRICS if segments else METRICS
            for metric in task.metrics:
                if metric not in known:
                    near = get_close_matches(metric, known, n=1)
                    hint = f"did you mean {near[0]!r}?" if near else f"choose of {', '.join(known)}"
                    raise ValueError(f"tasks.{name}.metrics: there is no {metric!r}; {hint}")

    def _ensembles_fit(self) -> None:
        again = False
        for task, spec in self.tasks.items():
            place, known = f"tasks.{task}.ensembles", self.inits_of(task)
            if (
                spec.ensembles
                and merge(self.settings, spec.settings).get("task", {}).get("name") == "segment"
            ):
                raise ValueError(f"{place}: the task is a segmentation; only classifiers can be combined")
            for name, ensemble in spec.ensembles.items():
                if name in self.inits:
                    raise ValueError(f"{place}.{name}: there is an init of this name; choose another")
                for member in ensemble.members:
                    init, number = member_of(member)
                    again = again or number > 0
                    if init not in known:
                        near = get_close_matches(init, known, n=1)
                        hint = f"did you mean {near[0]!r}?" if near else f"its inits are {', '.join(known)}"
                        raise ValueError(f"{place}.{name}.members: the task has no init {init!r}; {hint}")
        if again and len({seed % AGAIN for seed in self.seeds}) < len(self.seeds):
            raise ValueError(f"seeds: two differ by a multiple of {AGAIN}, which further trainings (+1) take")

    def _folds_fit(self) -> None:
        if self.folds is None:
            return
        split = self.settings.get("data", {}).get("split", {})
        if {"folds", "fold"} & set(split if isinstance(split, Mapping) else ()):
            raise ValueError("settings.data.split: folds and fold are set by the recipe's folds; remove them")
        if self.shift:
            raise ValueError("folds: shift compares whole data sets once; give it a recipe of its own")
        for name, task in self.tasks.items():
            if merge(self.settings, task.settings).get("task", {}).get("name") == "segment":
                raise ValueError(
                    f"folds: tasks.{name} is a segmentation, which cannot be averaged over folds"
                )
            for where, spec in task.elsewhere.items():
                if any(spec.data in pretraining.data for pretraining in self.pretraining.values()):
                    raise ValueError(
                        f"folds: tasks.{name}.elsewhere.{where}: a pretraining sees {spec.data}, so every fold would "
                        "be tested on other images of it"
                    )
            for key in ("drifts", "subgroups"):
                if getattr(task, key):
                    raise ValueError(
                        f"folds: tasks.{name}.{key} would rest on one fold's few images; give it a recipe without folds"
                    )

    def of_folds(self) -> list[Recipe]:
        """Return the recipe of each fold; none where there are no folds."""
        made = []
        for fold in range(1, (self.folds or 0) + 1):
            settings = merge(self.settings, {"data": {"split": {"folds": self.folds, "fold": fold}}})
            made.append(build(Recipe, {**self.model_dump(), "settings": settings, "folds": None}))
        return made

    def _no_cycle(self) -> None:
        for first in self.pretraining:
            chain, name = [first], self.pretraining[first].start
            while name is not None:
                if name in chain:
                    raise ValueError(
                        f"pretraining.{first}.start: goes round in a circle: {' <- '.join([*chain, name])}"
                    )
                chain.append(name)
                name = self.pretraining[name].start

    def inits_of(self, task: str) -> list[str]:
        """Return the names of the inits of a task, in the order of the recipe."""
        wanted = self.tasks[task].inits
        return [name for name in self.inits if wanted is None or name in wanted]

    def without(self, missing: Collection[str]) -> Recipe:
        """Return the recipe without what needs data sets that are not given.

        Raises:
            ConfigError: no task is left.
        """
        tree = self.model_dump()
        for name in missing:
            tree["data"].pop(name)
        for spec in tree["pretraining"].values():
            spec["data"] = [name for name in spec["data"] if name not in missing]
        while lost := [
            n for n, s in tree["pretraining"].items() if not s["data"] or s["start"] in self._lost(tree)
        ]:
            for name in lost:
                tree["pretraining"].pop(name)
        gone = self._lost(tree)
        tree["inits"] = {n: s for n, s in tree["inits"].items() if s["start"] not in gone}
        tree["tasks"] = {n: s for n, s in tree["tasks"].items() if s["data"] not in missing}
        for spec in tree["tasks"].values():
            spec["elsewhere"] = {n: s for n, s in spec["elsewhere"].items() if s["data"] not in missing}
            spec["inits"] = spec["inits"] and [name for name in spec["inits"] if name in tree["inits"]]
            spec["ensembles"] = {
                n: s
                for n, s in spec["ensembles"].items()
                if all(member_of(member)[0] in tree["inits"] for member in s["members"])
            }
        tree["shift"] = {
            n: s
            for n, s in tree["shift"].items()
            if s["encoder"] in tree["inits"] and not {s["reference"], s["target"]} & set(missing)
        }
        if not tree["tasks"]:
            wanted = ", ".join(dict.fromkeys(task.data for task in self.tasks.values()))
            raise ConfigError(f"{self.name}: no data for any task; give --data NAME=PATH for one of {wanted}")
        return build(Recipe, tree)

    def _lost(self, tree: Tree) -> set[str]:
        return set(self.pretraining) - set(tree["pretraining"])


def _keys_of(settings: Tree) -> set[str]:
    data = settings.get("data")
    return set(data) if isinstance(data, Mapping) else set()


def known_recipes() -> list[str]:
    """Return the names of the recipes that come with the package."""
    folder = files("scanprior.studies") / "recipes"
    return sorted(
        entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml")
    )


def read_recipe(source: str | Path, *, quick: bool = False, changes: Iterable[str] = ()) -> Recipe:
    """Read a recipe of the package by name, or of the user by path.

    Args:
        source: such as ``ss-cxr``, or ``my.yaml``.
        quick: take ``NAME-quick`` instead: the same parts, small, on phantoms.
        changes: keys of the recipe that are other here, ``seeds=[0,1]`` or ``settings.augment.preset=ultrasound``.

    Raises:
        ConfigError: there is no such recipe, or the first thing that is wrong in it.
    """
    known = known_recipes()
    name = f"{source}-quick" if quick else str(source)
    if name in known:
        path = Path(str(files("scanprior.studies") / "recipes" / f"{name}.yaml"))
    elif quick:
        quick_ones = [one.removesuffix("-quick") for one in known if one.endswith("-quick")]
        raise ConfigError(f"--quick: {source} has no quick form; these have: {', '.join(quick_ones)}")
    else:
        path = Path(source)
        if not path.suffix and not path.exists():
            near = get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"the package has {', '.join(known)}"
            raise ConfigError(f"{source}: there is no such recipe; {hint}, or name a YAML file")
    try:
        return build(Recipe, merge(load_yaml(path), parse_settings(changes)))
    except ConfigError as error:
        text = str(error)
        raise ConfigError(text if text.startswith(str(path)) else f"{path.name}: {text}") from None
