"""What fine-tuning does differently for every task."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from pydantic import BaseModel
from torch import nn

from scanprior.api.division import Learn
from scanprior.api.settings import FinetuneConfig
from scanprior.api.sources import Images
from scanprior.data.split import label_budget
from scanprior.data.transforms import Preprocessing
from scanprior.encoders import Encoder
from scanprior.engine import BatchSource, Reporter
from scanprior.errors import ConfigError, DataError
from scanprior.run import Run

Rows = NDArray[np.int64]


class Work(ABC):
    """One fine-tuning of a task: which images it uses, its network, its validation, its results.

    Attributes:
        kind: of the run's card.
        learns: what of the sources is learned from.
        metric: the validation metric that selects the step where the user names none.
        metrics: those that the user can name.
        settings: of the task, with what the images' table says and the user does not.
        train, val: rows of the store that are trained on, after the budget, and validated on.
        unused: split to how many of its images have nothing to learn from, or to be tested by.
        unused_for: what those lack, such as ``label``.
    """

    kind: ClassVar[str]
    learns: ClassVar[Learn]
    metric: ClassVar[str]
    metrics: ClassVar[tuple[str, ...]]
    settings: BaseModel
    train: Rows
    val: Rows
    unused: dict[str, int]
    unused_for: str

    def __init__(self, images: Images, config: FinetuneConfig) -> None:
        self.images, self.config = images, config
        chosen = config.selection.metric
        if chosen not in ("auto", "last", *self.metrics):
            raise ConfigError(
                f"selection.metric: {chosen!r} is not measured by task.name={self.kind}; choose one of "
                f"{', '.join(self.metrics)}, or last"
            )

    @abstractmethod
    def network(self, encoder: Encoder) -> nn.Module:
        """Return the encoder with what the task puts on it."""

    @abstractmethod
    def keep_features(
        self, encoder: Encoder, preprocessing: Preprocessing, device: torch.device, reporter: Reporter
    ) -> None:
        """Compute once, on a device, what a frozen encoder makes of the images, where the task can use it."""

    @abstractmethod
    def source(self, preprocessing: Preprocessing) -> BatchSource:
        """Return the training batches."""

    @abstractmethod
    def validate(self, module: nn.Module, preprocessing: Preprocessing) -> dict[str, float]:
        """Measure the network, in evaluation mode, on the validation images."""

    @abstractmethod
    def card(self) -> dict[str, Any]:
        """Return what the card says of the task beside its settings: kind, classes."""

    @abstractmethod
    def write_results(
        self, run: Run, module: nn.Module, preprocessing: Preprocessing, reporter: Reporter
    ) -> None:
        """Predict validation and test images, evaluate, and keep what says when not to rely on the run."""

    def selecting(self) -> str | None:
        """Return the validation metric whose best step is kept, greater is better; None = the last step."""
        chosen = self.config.selection.metric
        return {"auto": self.metric, "loss": "negative_loss", "last": None}.get(chosen, chosen)

    def divide(
        self, usable: NDArray[np.bool_], frame: pd.DataFrame, columns: list[str], what: str, lacking: str
    ) -> None:
        """Set ``train`` and ``val``: the usable rows of their splits, the budget applied.

        Args:
            usable: (N,) whether a row has what the task learns from.
            frame: (N rows) with the columns by which a budget is stratified, and patient.
            columns: their names.
            what: how an error calls an image that has it.
            lacking: what the others do not have.

        Raises:
            DataError: no such image in training, or in validation where a step is to be selected.
        """
        config = self.config
        names = ("train", "val", "test")
        self.unused = {name: int((~usable[self.images.rows(name)]).sum()) for name in names}
        self.unused_for = lacking
        train, val = (self.images.rows(name) for name in ("train", "val"))
        train, val = train[usable[train]], val[usable[val]]
        if not len(train):
            raise DataError(f"no {what} in the training split")
        if not len(val) and config.selection.metric != "last":
            raise DataError(
                f"no {what} in the validation split; give one in the split column, change data.split.fractions, "
                "or train without selection: --set selection.metric=last"
            )
        self.train, self.val = self._budget(train, frame, columns), val

    def unused_note(self) -> str | None:
        """Return a sentence on the images that are left out for want of what the task learns; None without any."""
        if not any(self.unused.values()):
            return None
        words = {"train": "training", "val": "validation", "test": "test"}
        counts = ", ".join(f"{count} {words[name]}" for name, count in self.unused.items())
        return f"images left out because they have no {self.unused_for}: {counts}"

    def _budget(self, train: Rows, frame: pd.DataFrame, columns: list[str]) -> Rows:
        labels = self.config.labels
        if labels.count is None and labels.fraction is None:
            return train
        chosen = label_budget(
            frame.iloc[train], columns, count=labels.count, fraction=labels.fraction, seed=labels.seed
        )
        return np.sort(train[chosen])
