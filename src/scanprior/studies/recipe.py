"""A recipe: which encoders are compared, on which tasks, with how many labels, and where they are tested.

It is YAML. Names that the user chooses stand for data sets, pretrainings, inits (starting points), regimes
(ways of fine-tuning) and tasks; every training takes the ``settings`` of the recipe, over them those of its
pretraining or task, over them those of its init, and over them those of its regime.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from difflib import get_close_matches
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from scanprior.api.settings import DataConfig, layered
from scanprior.config import Tree, build, load_yaml, merge, parse_settings
from scanprior.errors import ConfigError
from scanprior.evaluation import MASK_METRICS, METRICS
from scanprior.studies.parts import (
    AGAIN,
    Arm,
    DataSpec,
    InitSpec,
    Name,
    Once,
    PretrainingSpec,
    RegimeSpec,
    ShiftSpec,
    Sparse,
    TaskSpec,
    member_of,
)

_AS_SEEN = frozenset({"size", "store_size", "channels", "depth", "fit", "standardize", "workers"})
"""Keys of ``data`` that say how a network sees images, not which images there are."""


class Recipe(Sparse):
    """A study to be."""

    newer = frozenset({"regimes", "baseline_regime", "correction", "costs"})

    name: Name
    title: str = Field("", description="heading of the report")
    question: str = Field("", description="what it is to answer, one sentence")
    data: dict[Name, DataSpec] = Field(min_length=1)
    settings: Tree = Field({}, description="of every training: data, encoder, augment, engine; evaluation")
    pretraining: dict[Name, PretrainingSpec] = Field({})
    inits: dict[Name, InitSpec] = Field(min_length=1)
    baseline: Name = Field("scratch", description="the init that the others are compared with")
    regimes: dict[Name, RegimeSpec] = Field(
        {},
        description="ways of fine-tuning; every init is fine-tuned in each, and compared with the baseline in it",
    )
    baseline_regime: Name | None = Field(
        None, description="the regime that the others are compared with, init by init; empty = none"
    )
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
    correction: Literal["holm", "none"] | None = Field(
        None, description="of p-values for the number of comparisons; empty = holm where there are regimes"
    )
    costs: bool = Field(False, description="measure what every training costs, after all of them")

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
        for name, regime in self.regimes.items():
            for init in regime.inits or ():
                check(f"regimes.{name}.inits", init, self.inits, "init")
        if self.baseline_regime is not None:
            check("baseline_regime", self.baseline_regime, self.regimes, "regime")
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
        self._regimes_fit()
        self._ensembles_fit()
        self._contrasts_fit()
        self._folds_fit()
        return self

    def _one_division(self) -> None:
        """Refuse settings that would read or divide the same images otherwise in one run than in another."""
        parts = {
            f"{kind}.{n}": spec
            for kind in ("pretraining", "tasks", "inits", "regimes")
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
            known = MASK_METRICS if self.segments(name) else METRICS
            for metric in task.metrics:
                if metric not in known:
                    near = get_close_matches(metric, known, n=1)
                    hint = f"did you mean {near[0]!r}?" if near else f"choose of {', '.join(known)}"
                    raise ValueError(f"tasks.{name}.metrics: there is no {metric!r}; {hint}")

    def _regimes_fit(self) -> None:
        for name, regime in self.regimes.items():
            if regime.inits is not None and self.baseline not in regime.inits:
                raise ValueError(
                    f"regimes.{name}.inits: the baseline {self.baseline!r} is not among them, and nothing could be "
                    "compared with it; add it, or name another baseline"
                )
            for task in self.tasks:
                if regime.probe is not None and self.segments(task):
                    raise ValueError(
                        f"regimes.{name}.probe: tasks.{task} is a segmentation, which has no probe; train it with "
                        "settings: {adapt: {train: none}}"
                    )
        for task in self.tasks:
            for arm in self.arms_of(task):
                encoder = self.settings_of(task, arm).get("encoder", {})
                given = next((key for key in ("weights", "pretrained") if encoder.get(key)), None)
                if self.inits[arm.init].random and given is not None:
                    raise ValueError(
                        f"inits.{arm.init}.random: its encoder.{given} is {encoder[given]!r}, so it has no random "
                        "weights; leave one out"
                    )

    def _ensembles_fit(self) -> None:
        again = False
        for task, spec in self.tasks.items():
            place, known = f"tasks.{task}.ensembles", [arm.name for arm in self.arms_of(task)]
            if spec.ensembles and self.segments(task):
                raise ValueError(f"{place}: the task is a segmentation; only classifiers can be combined")
            for name, ensemble in spec.ensembles.items():
                if name in self.inits:
                    raise ValueError(f"{place}.{name}: there is an init of this name; choose another")
                for member in ensemble.members:
                    arm, number = member_of(member)
                    again = again or number > 0
                    if arm not in known:
                        near = [one for one in known if one.startswith(f"{arm}@")]
                        near += get_close_matches(arm, known, n=1)
                        hint = f"did you mean {near[0]!r}?" if near else f"its inits are {', '.join(known)}"
                        raise ValueError(f"{place}.{name}.members: the task has no init {arm!r}; {hint}")
        if again and len({seed % AGAIN for seed in self.seeds}) < len(self.seeds):
            raise ValueError(f"seeds: two differ by a multiple of {AGAIN}, which further trainings (+1) take")

    def _contrasts_fit(self) -> None:
        for task, spec in self.tasks.items():
            known = [*(arm.name for arm in self.arms_of(task)), *spec.ensembles]
            for pair in spec.contrasts:
                for name in pair:
                    if name not in known:
                        near = get_close_matches(name, known, n=1)
                        hint = f"did you mean {near[0]!r}?" if near else f"the task has {', '.join(known)}"
                        raise ValueError(
                            f"tasks.{task}.contrasts: there is no init or ensemble {name!r}; {hint}"
                        )
                if pair[0] == pair[1]:
                    raise ValueError(f"tasks.{task}.contrasts: {pair[0]!r} is compared with itself")

    def _folds_fit(self) -> None:
        if self.folds is None:
            return
        split = self.settings.get("data", {}).get("split", {})
        if {"folds", "fold"} & set(split if isinstance(split, Mapping) else ()):
            raise ValueError("settings.data.split: folds and fold are set by the recipe's folds; remove them")
        if self.shift:
            raise ValueError("folds: shift compares whole data sets once; give it a recipe of its own")
        for name, task in self.tasks.items():
            if self.segments(name):
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

    def segments(self, task: str) -> bool:
        """Return whether a task is a segmentation."""
        settings = merge(self.settings, self.tasks[task].settings)
        return bool(settings.get("task", {}).get("name") == "segment")

    def inits_of(self, task: str) -> list[str]:
        """Return the names of the inits of a task, in the order of the recipe."""
        wanted = self.tasks[task].inits
        return [name for name in self.inits if wanted is None or name in wanted]

    def arms_of(self, task: str) -> list[Arm]:
        """Return what of a task is trained and compared: its inits, in every regime where there are some."""
        inits = self.inits_of(task)
        if not self.regimes:
            return [Arm(init) for init in inits]
        return [
            Arm(init, regime)
            for regime, spec in self.regimes.items()
            for init in inits
            if spec.inits is None or init in spec.inits
        ]

    def settings_of(self, task: str, arm: Arm) -> Tree:
        """Return the settings of the trainings of an arm, without seed and labels."""
        regime = {} if arm.regime is None else self.regimes[arm.regime].settings
        return layered(self.settings, self.tasks[task].settings, self.inits[arm.init].settings, regime)

    @property
    def corrects(self) -> bool:
        """Whether p-values are corrected for the number of comparisons."""
        return bool(self.regimes) if self.correction is None else self.correction == "holm"

    def without(self, missing: Collection[str], absent: Collection[str] = ()) -> Recipe:
        """Return the recipe without what needs data sets that are not given, or inits that are absent.

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
        tree["inits"] = {n: s for n, s in tree["inits"].items() if s["start"] not in gone and n not in absent}
        for spec in tree.get("regimes", {}).values():
            spec["inits"] = spec["inits"] and [name for name in spec["inits"] if name in tree["inits"]]
        tree["tasks"] = {n: s for n, s in tree["tasks"].items() if s["data"] not in missing}
        for spec in tree["tasks"].values():
            spec["elsewhere"] = {n: s for n, s in spec["elsewhere"].items() if s["data"] not in missing}
            spec["inits"] = spec["inits"] and [name for name in spec["inits"] if name in tree["inits"]]
            spec["ensembles"] = {
                n: s
                for n, s in spec["ensembles"].items()
                if all(member_of(member)[0].partition("@")[0] in tree["inits"] for member in s["members"])
            }
        for spec in tree["tasks"].values():
            known = {*tree["inits"], *spec["ensembles"]}
            spec["contrasts"] = [
                pair
                for pair in spec.get("contrasts", ())
                if {name.partition("@")[0] for name in pair} <= known
            ]
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
