"""The parts of a recipe: data sets, pretrainings, inits, tasks, ensembles, shifts."""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import (
    AfterValidator,
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from scanprior.config import Config, Tree
from scanprior.data.drifts import DRIFTS
from scanprior.data.phantom import PhantomConfig
from scanprior.evaluation.combination import Method

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
"""Of a part of a recipe, and of the folder of its runs."""

Labels = Annotated[int, Field(gt=0)] | Literal["all"]
Entry = TypeVar("Entry")


def _distinct(entries: list[Entry]) -> list[Entry]:
    for place, entry in enumerate(entries):
        if entry in entries[:place]:
            raise ValueError(f"{entry!r} is given twice; keep one of them")
    return entries


Once = AfterValidator(_distinct)
"""Of a list whose entries each stand for something of their own: two alike are a typing error."""


class Sparse(Config):
    """A part whose newer keys are written only where they are given, so that older studies stay what they were.

    The fingerprint of a recipe and its ``study.yaml`` are made of what is written.
    """

    newer: ClassVar[frozenset[str]] = frozenset()

    @model_serializer(mode="wrap")
    def _without_defaults(self, handler: SerializerFunctionWrapHandler) -> Tree:
        tree: Tree = handler(self)
        defaults = {
            name: type(self).model_fields[name].get_default(call_default_factory=True) for name in self.newer
        }
        return {
            name: value for name, value in tree.items() if name not in defaults or value != defaults[name]
        }


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


class InitSpec(Sparse):
    """One starting point of fine-tuning; without ``start``, what ``settings`` say of the encoder."""

    newer = frozenset({"if_absent", "random"})

    start: str | None = Field(
        None, description="a pretraining of this recipe, a run folder, or scanprior:NAME"
    )
    settings: Tree = Field({}, description="over the settings of recipe and task, such as engine.layer_decay")
    if_absent: Literal["stop", "leave_out"] = Field(
        "stop",
        description="its weights cannot be had: end the study before it begins, or do it without this init",
    )
    random: bool = Field(False, description="meant to have random weights; marked so wherever it is shown")

    @model_validator(mode="after")
    def _random_from_nothing(self) -> InitSpec:
        if self.random and self.start is not None:
            raise ValueError(
                f"random: an init that starts from {self.start!r} has no random weights; leave one out"
            )
        return self


class RegimeSpec(Config):
    """One way in which inits are fine-tuned."""

    settings: Tree = Field(
        {}, description="over those of recipe, task and init, such as adapt: {train: none}"
    )
    probe: Literal["linear", "knn"] | None = Field(
        None, description="no training: logistic regression, or neighbours, on the frozen encoder's features"
    )
    inits: Annotated[list[Name], Field(min_length=1), Once] | None = Field(
        None, description="which, the baseline among them; empty = all"
    )


@dataclass(frozen=True)
class Arm:
    """What is compared at a task: an init, in a regime where the recipe has some, or an ensemble.

    Attributes:
        init: its name, or that of the ensemble.
        regime: in which it is fine-tuned.
    """

    init: str
    regime: str | None = None

    @property
    def name(self) -> str:
        """Return ``INIT``, or ``INIT@REGIME``: also the name of the folder of its runs."""
        return self.init if self.regime is None else f"{self.init}@{self.regime}"


class ElsewhereSpec(Config):
    """Another data set that the models of a task are tested on as they are."""

    data: Name
    map: dict[str, str] = Field({}, description="its labels: labels of the task")


Member = Annotated[
    str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*(@[A-Za-z0-9][A-Za-z0-9_.-]*)?(\+[1-9][0-9]?)?$")
]
"""``INIT``, or ``INIT@REGIME`` where there are regimes: its run. ``INIT+1``, ``INIT@REGIME+2`` …: another training of
it on the same labels, of another seed."""
AGAIN = 1000
"""What is added to the seed of a training for ``+1``: no training of ``seeds`` is ever taken for another one."""


def member_of(name: str) -> tuple[str, int]:
    """Return the arm of a member of an ensemble, and which further training it is; 0 = the arm's own run."""
    arm, _, again = name.partition("+")
    return arm, int(again or 0)


class EnsembleSpec(Config):
    """Runs of one seed and budget of a task that predict together; compared as if it were an init."""

    members: list[Member] = Field(
        min_length=2, description="inits, or INIT@REGIME; INIT+1: another training of it on the same labels"
    )
    method: Method = Field("mean", description="mean, geometric, calibrated or weighted")

    @field_validator("members")
    @classmethod
    def _once(cls, value: list[str]) -> list[str]:
        for place, member in enumerate(value):
            if member in value[:place]:
                arm, again = member_of(member)
                raise ValueError(
                    f"{member!r} is given twice; for another training of the same init write {arm}+{again + 1}"
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


ArmName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*(@[A-Za-z0-9][A-Za-z0-9_.-]*)?$")]
"""``INIT``, or ``INIT@REGIME`` where there are regimes; or an ensemble's name."""


class TaskSpec(Sparse):
    """One task that every init is fine-tuned for."""

    newer = frozenset({"contrasts"})

    data: Name
    labels: Annotated[list[Labels], Once] = Field(
        ["all"], min_length=1, description="how many labelled training images"
    )
    settings: Tree = Field({}, description="over the settings of the recipe; task.name: segment for masks")
    metrics: Annotated[list[str], Once] = Field(
        min_length=1, description="of the tables, the first for the figures: auroc, quadratic_kappa, dice, …"
    )
    inits: Annotated[list[Name], Field(min_length=1), Once] | None = Field(
        None, description="which, the baseline among them; empty = all"
    )
    tune: TuneSpec | None = Field(None, description="empty = nothing is chosen")
    ensembles: dict[Name, EnsembleSpec] = Field(
        {}, description="of members of the same seed and labels, as scanprior ensemble makes them"
    )
    contrasts: Annotated[list[tuple[ArmName, ArmName]], Once] = Field(
        [],
        description="pairs of inits, INIT@REGIME or ensembles: the first minus the second, beside the baseline",
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
