"""The complete configurations of the commands that train, and how their layers are put together."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, SerializeAsAny, create_model, field_validator, model_validator

from scanprior import objectives
from scanprior.config import Config, Tree, build, load_yaml, merge, nest, parse_settings
from scanprior.data.transforms import Augmentation, preset_names, presets
from scanprior.encoders import EncoderConfig, LoraConfig, Trained
from scanprior.engine import EngineConfig
from scanprior.errors import ConfigError
from scanprior.evaluation.combination import Method
from scanprior.tasks.classify import ClassifyConfig
from scanprior.tasks.segment import SegmentConfig


class SplitConfig(Config):
    """How images are divided where the source does not say it."""

    fractions: tuple[float, float, float] = Field((0.7, 0.15, 0.15), description="train, val, test")
    group: str = Field(
        "auto",
        description="what stays together: patient, cluster (of equal images), near_duplicates (patients and images "
        "that look the same; also the unit of intervals and label budgets), a column, none; auto = patient where known",
    )
    seed: int = Field(0, description="key of the split; the same for pretraining and fine-tuning")
    folds: int | None = Field(
        None, ge=2, description="test is one of so many equal parts in place of its fraction; give fold too"
    )
    fold: int | None = Field(None, ge=1, description="which of the folds is test, from 1")

    @field_validator("fractions")
    @classmethod
    def _whole(cls, value: tuple[float, float, float]) -> tuple[float, float, float]:
        if min(value) < 0 or abs(sum(value) - 1) > 1e-6:
            raise ValueError(f"the fractions must not be negative and must add up to 1, found {value}")
        return value

    @model_validator(mode="after")
    def _one_of_the_folds(self) -> SplitConfig:
        if (self.folds is None) != (self.fold is None):
            raise ValueError(
                f"give folds and fold, or neither, found folds={self.folds} and fold={self.fold}"
            )
        if self.folds is not None and self.fold is not None and self.fold > self.folds:
            raise ValueError(f"fold is 1 to {self.folds} of folds={self.folds}, found {self.fold}")
        return self

    @property
    def chosen_fold(self) -> tuple[int, int] | None:
        """The fold that is test and how many there are, or None."""
        return None if self.fold is None or self.folds is None else (self.fold, self.folds)


class DataConfig(Config):
    """Where images come from and in which form the network sees them."""

    size: int = Field(224, gt=7, description="side of the network's input in pixels")
    store_size: int | None = Field(
        None,
        gt=7,
        description="side of the stored images; larger than size gives sharper crops; empty = size",
    )
    channels: Literal[1, 3] | None = Field(None, description="empty = 1 if every image is grey, else 3")
    depth: Literal[8, 16] = Field(8, description="bits per stored pixel")
    fit: Literal["squash", "pad", "crop"] = Field("squash", description="how an image is made square")
    standardize: Literal["dataset", "image"] = Field(
        "dataset",
        description="subtract mean and divide by deviation: of the training images, or of each image",
    )
    layout: str = Field("auto", description="layout of the source, or auto")
    image_column: str | None = Field(None, description="column of a table that names the image")
    patient_column: str | None = Field(None, description="column of a table that names the patient")
    root: str | None = Field(None, description="folder that the image paths of a table start from")
    salt_file: str | None = Field(
        None,
        description="file with the secret that is mixed into hashed DICOM identifiers, for the same hashes on "
        "several machines; empty = one of this user, made on first use",
    )
    label_columns: list[str] | None = Field(None, description="column of the label, or of every finding")
    label_map: dict[str, str] = Field({}, description="label in the source: label to use instead")
    blank_findings: Literal["missing", "absent"] = Field(
        "missing",
        description="findings that a row with another one leaves empty: unknown, or absent (0), as a report that "
        "does not mention them is often taken",
    )
    exclude_leaks: bool = Field(
        True, description="leave out training images that equal a validation or test image pixel by pixel"
    )
    transductive: bool = Field(False, description="pretrain on validation and test images too (reported)")
    split: SplitConfig = Field(default_factory=lambda: SplitConfig.model_validate({}))
    workers: int = Field(2, ge=0, description="processes that decode images into the store")


class LabelsConfig(Config):
    """How many of the training labels are used; small budgets are nested in larger ones."""

    count: int | None = Field(None, gt=0, description="number of labelled training images")
    fraction: float | None = Field(None, gt=0, le=1, description="share of them")
    seed: int = Field(0, description="which ones")

    @model_validator(mode="after")
    def _one(self) -> LabelsConfig:
        if self.count is not None and self.fraction is not None:
            raise ValueError(
                f"set labels.count or labels.fraction, found both ({self.count}, {self.fraction})"
            )
        return self


class SelectionConfig(Config):
    """What is measured on the validation images while fine-tuning."""

    metric: Literal[
        "auto", "auroc", "average_precision", "accuracy", "balanced_accuracy", "macro_f1", "kappa",
        "quadratic_kappa", "dice", "loss", "last",
    ] = Field(
        "auto",
        description="the best step by this is kept; auto = auroc, or dice of masks; last = no selection",
    )  # fmt: skip
    every: int | None = Field(None, gt=0, description="steps between validations; empty = ten times in all")


class EvaluationConfig(Config):
    """How results and their intervals are made."""

    resamples: int = Field(2000, ge=100, description="bootstrap resamples of patients")
    level: float = Field(0.95, gt=0.5, lt=1, description="of the intervals")
    seed: int = Field(0, description="key of the resamples")
    threshold: float | Literal["youden"] = Field(
        "youden", description="chosen on validation: Youden's index, or a wanted sensitivity such as 0.9"
    )
    positive_class: str | None = Field(None, description="of two classes; empty = the one not called normal")
    batch_size: int = Field(128, gt=0, description="images per forward pass")


class TrustConfig(Config):
    """What a run keeps so that it can say when not to rely on it."""

    coverage: float = Field(
        0.9, gt=0, lt=1, description="wanted share of images whose conformal set holds their class"
    )
    sets: Literal["lac", "aps"] = Field(
        "lac", description="conformal score: one minus the class's probability, or adaptive (aps)"
    )
    false_alarms: float = Field(
        0.05,
        gt=0,
        lt=1,
        description="wanted share of images like the validation images that are called outliers",
    )
    reference_images: int = Field(
        2000,
        ge=0,
        description="training images whose features are kept, at most; 0 = no outliers, none similar",
    )
    thumbnails: bool = Field(True, description="keep a small picture of each, to be shown as a similar case")


class AugmentConfig(Augmentation):
    """Augmentation: a preset, and what differs from it."""

    preset: str = Field("chest_xray", description="the settings to start from")


class ProbeConfig(Config):
    """A cheap classifier on frozen features during pretraining, on labelled images of the training split."""

    every: float | None = Field(None, gt=0, description="epochs between probes; empty = none")
    method: Literal["knn", "linear"] = Field("knn", description="neighbours, or logistic regression in folds")
    images: int = Field(1000, ge=10, description="most labelled training images to probe with")
    source: str | None = Field(None, description="name of the source; empty = the first with labels")


class AdaptConfig(Config):
    """What of the encoder is changed."""

    train: Trained = Field(
        "all",
        description="weights of the encoder that are trained: all; norm, those of its normalisation layers; lora, "
        "low-rank adapters that become part of the weights in the end; none, the head or decoder alone",
    )
    keep_features: bool = Field(
        True,
        description="train=none, no augmentation, classes: encode every image once, and keep the features in the cache",
    )
    from_block: int | None = Field(
        None,
        ge=1,
        description="the first block (stage, in most networks with a pyramid) of which anything is trained, from 1; "
        "what comes before it stays as it is; empty = the whole network is trained",
    )
    lora: LoraConfig | None = Field(None, description="train=lora: the adapters; empty = the defaults")

    @model_validator(mode="after")
    def _fitting(self) -> AdaptConfig:
        if self.train == "none" and self.from_block is not None:
            raise ValueError(
                f"from_block: {self.from_block} says what is trained, and train: none trains nothing of the encoder; "
                "leave one of them out"
            )
        if self.train != "lora" and self.lora is not None:
            raise ValueError(f"lora: is for train: lora, found train: {self.train}; leave it out")
        if self.train == "lora" and self.lora is None:
            self.lora = LoraConfig.model_validate({})
        return self


class PretrainConfig(Config):
    """Everything about a pretraining run."""

    command: Literal["pretrain"] = "pretrain"
    sources: list[str] = Field([], description="folders, tables, manifests or stores")
    parent: str | None = Field(None, description="the run whose encoder is the starting point")
    data: DataConfig
    encoder: EncoderConfig
    adapt: AdaptConfig
    objective: SerializeAsAny[BaseModel]
    augment: AugmentConfig
    engine: EngineConfig
    pictures: int = Field(8, ge=0, description="pictures of reconstructions over the whole run")
    probe: ProbeConfig

    @field_validator("adapt")
    @classmethod
    def _something_learned(cls, value: AdaptConfig) -> AdaptConfig:
        if value.train == "none":
            raise ValueError("train: none would pretrain nothing of the encoder; use all, norm or lora")
        return value


class FinetuneConfig(Config):
    """Everything about a fine-tuning or probing run."""

    command: Literal["finetune", "probe"] = "finetune"
    sources: list[str] = Field([], description="folder, table, manifest or store with labels")
    parent: str | None = Field(None, description="the run whose encoder is the starting point")
    data: DataConfig
    encoder: EncoderConfig
    adapt: AdaptConfig
    labels: LabelsConfig
    task: SerializeAsAny[BaseModel]
    augment: AugmentConfig
    engine: EngineConfig
    selection: SelectionConfig
    evaluation: EvaluationConfig
    trust: TrustConfig


class EnsembleConfig(Config):
    """Everything about an ensemble of fine-tuned runs."""

    command: Literal["ensemble"] = "ensemble"
    members: list[str] = Field(description="the runs, as they were named")
    method: Method = Field("mean", description="how their probabilities become one")
    sources: list[str] = Field(description="of the first member: its validation and test images are taken")
    data: DataConfig
    evaluation: EvaluationConfig
    trust: TrustConfig


def pretrain_config(objective: str, *layers: Mapping[str, Any]) -> PretrainConfig:
    """Build the configuration of a pretraining run of an objective.

    Raises:
        ConfigError: an unknown objective, key or value.
    """
    method = objectives.get(objective)
    section = create_model(
        f"{method.__name__}Config",
        __base__=method.Config,
        name=(str, Field(objective, pattern=f"^{re.escape(objective)}$")),
    )
    whole = create_model("PretrainConfig", __base__=PretrainConfig, objective=(section, Field()))
    first = {"engine": {"epochs": 100}}
    return build(
        whole, _with_preset(layered(_sections(PretrainConfig), first, nest(method.defaults), *layers))
    )


def _sections(config: type[Config]) -> Tree:
    """Return the sections of a configuration, each empty: what has no default of its own."""
    return {name: {} for name, field in config.model_fields.items() if field.is_required()}


FINETUNE_DEFAULTS: Tree = {
    "engine": {
        "epochs": 50, "batch_size": 64, "lr": 5e-4, "weight_decay": 0.05, "layer_decay": 0.75,
        "warmup_fraction": 0.1, "min_lr": 1e-6,
    },
    "encoder": {"drop_path": 0.1},
    "augment": {"preset": "chest_xray"},
}  # fmt: skip
"""Our fine-tuning settings for a pretrained encoder, after DeiT's; from scratch there is no layer decay."""


TASKS: dict[str, type[Config]] = {"classify": ClassifyConfig, "segment": SegmentConfig}
"""Settings of every task that a run can be fine-tuned for."""


def finetune_config(*layers: Mapping[str, Any]) -> FinetuneConfig:
    """Build the configuration of a fine-tuning or probing run; the last layer that names a task decides.

    Raises:
        ConfigError: an unknown task or key, or a wrong value.
    """
    tree = _with_preset(layered(_sections(FinetuneConfig), FINETUNE_DEFAULTS, *layers))
    task = tree["task"].get("name", "classify")
    if task not in TASKS:
        raise ConfigError(f"task.name: {task!r} is not known; choose one of {', '.join(TASKS)}")
    section = create_model(
        TASKS[task].__name__, __base__=TASKS[task], name=(str, Field(task, pattern=f"^{re.escape(task)}$"))
    )
    return build(create_model("FinetuneConfig", __base__=FinetuneConfig, task=(section, Field())), tree)


def user_layers(
    config: Path | str | Mapping[str, Any] | None, options: Mapping[str, Any], sets: Iterable[str]
) -> list[Tree]:
    """Return the user's layers in order: a file or tree, then options (dotted, None = not given), then ``--set``."""
    first: Tree = {}
    if isinstance(config, Mapping):
        first = dict(config)
    elif config is not None:
        first = load_yaml(Path(config))
    given = nest({name: value for name, value in options.items() if value is not None})
    return [first, given, parse_settings(sets)]


_EITHER = (
    ("engine", "epochs", "steps"),
    ("engine", "lr", "lr_per_256"),
    ("engine", "warmup_epochs", "warmup_fraction"),
)


def layered(*layers: Mapping[str, Any]) -> Tree:
    """Merge settings; where a later layer sets one of two exclusive keys, the other's earlier value goes."""
    merged: Tree = {}
    for layer in layers:
        for section, *pair in _EITHER:
            given, below = layer.get(section), merged.get(section)
            if not isinstance(given, Mapping) or not isinstance(below, dict):
                continue
            for name, other in (pair, pair[::-1]):
                if given.get(name) is not None and given.get(other) is None:
                    below.pop(other, None)
        merged = merge(merged, layer)
    return merged


def _with_preset(tree: Tree) -> Tree:
    """Put the fields of the named augmentation preset beneath the user's own."""
    section = tree.get("augment", {})
    name = section.get("preset", AugmentConfig.model_fields["preset"].default)
    if name not in presets:
        raise ConfigError(f"augment.preset: {name!r} is not known; choose one of {', '.join(preset_names())}")
    return merge(tree, {"augment": merge(presets[name].model_dump(), {"preset": name}, section)})


Settings = Annotated[Iterable[str], "settings written as key=value"]
