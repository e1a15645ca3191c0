"""What a training run tells: ``metrics.jsonl`` always, a logger if asked, progress to the user."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Protocol, TextIO

from torch import Tensor

from scanprior.engine.settings import EngineConfig
from scanprior.errors import ConfigError
from scanprior.files import writing


class Reporter:
    """Receives the progress of a training; this one keeps silent."""

    def step(self, row: dict[str, Any], total: int, seconds: float) -> None:
        """Take a row of training metrics."""

    def validation(self, step: int, values: dict[str, float], select: str | None) -> None:
        """Take the metrics of a validation."""

    def preparing(self, done: int, total: int) -> None:
        """Take how many images were decoded."""

    def counted(self, done: int, total: int, what: str) -> None:
        """Take how many of something are done."""

    def evaluation(self, result: dict[str, Any]) -> None:
        """Take a finished evaluation."""

    def note(self, text: str) -> None:
        """Take a sentence for the user."""


class _Logger(Protocol):
    def __init__(self, folder: Path) -> None: ...

    def write(self, row: dict[str, Any]) -> None: ...

    def close(self) -> None: ...


class MetricsLog:
    """Rows of metrics, averaged between reports; rows after ``start`` of an earlier try are dropped.

    Attributes:
        once: scalars of the last step alone, reported as they are.

    Args:
        folder: the run folder.
        config: names the logger.
        start: the step this training begins or goes on at.
        writes: whether this process writes (only one does).
    """

    def __init__(self, folder: Path, config: EngineConfig, start: int, writes: bool) -> None:
        self.path, self.start, self.writes = folder / "metrics.jsonl", start, writes
        self._config, self._folder = config, folder
        self._file: TextIO | None = None
        self._loggers: list[_Logger] = []
        self._sums: dict[str, Tensor | float] = {}
        self.once: dict[str, Tensor] = {}
        self._steps, self._wait, self._seconds = 0, 0.0, 0.0

    def open(self) -> None:
        """Open the file, keeping the rows up to the starting step."""
        if not self.writes:
            return
        kept: list[str] = []
        if self.path.exists() and self.start:
            lines = self.path.read_text().splitlines()
            kept = [
                line for line in lines if _step_of(line) is not None and (_step_of(line) or 0) <= self.start
            ]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self.path.open("w")
        self._file.writelines(line + "\n" for line in kept)
        if self._config.logger != "none":
            self._loggers.append(_LOGGERS[self._config.logger](self._folder))

    def add(self, values: dict[str, Tensor], *, wait: float, seconds: float) -> None:
        """Count one step: its scalars, the seconds it waited for data and took in all."""
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
        self._steps, self._wait, self._seconds = self._steps + 1, self._wait + wait, self._seconds + seconds

    def row(self, batch_size: int) -> dict[str, float]:
        """Return the means since the last call, images per second and the share of time spent waiting."""
        row = {name: round(float(value) / self._steps, 6) for name, value in self._sums.items()}
        row |= {name: round(float(value), 6) for name, value in self.once.items()}
        row["images_per_second"] = round(self._steps * batch_size / self._seconds, 2)
        row["data_wait"] = round(self._wait / self._seconds, 4)
        self._sums, self._steps, self._wait, self._seconds = {}, 0, 0.0, 0.0
        return row

    def write(self, row: dict[str, Any]) -> None:
        """Write one row."""
        if self._file is not None:
            with writing(self.path):
                self._file.write(json.dumps(row) + "\n")
            for logger in self._loggers:
                logger.write(row)

    def flush(self) -> None:
        """Put what was written onto the disk."""
        if self._file is not None:
            with writing(self.path):
                self._file.flush()

    def close(self) -> None:
        """Close the file and the loggers."""
        if self._file is not None:
            self._file.close()
            self._file = None
        for logger in self._loggers:
            logger.close()


def _step_of(line: str) -> int | None:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return None  # the last line of a killed run may be cut


class _TensorBoard:
    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise ConfigError(
                "engine.logger=tensorboard needs: pip install 'scanprior[tensorboard]'"
            ) from None
        self._writer = SummaryWriter(str(folder / "tensorboard"))

    def write(self, row: dict[str, Any]) -> None:
        for name, value in row.items():
            if isinstance(value, (int, float)) and name != "step":
                self._writer.add_scalar(f"{row['split']}/{name}", value, row["step"])

    def close(self) -> None:
        self._writer.close()


class _WeightsAndBiases:
    def __init__(self, folder: Path) -> None:
        try:
            import wandb
        except ImportError:
            raise ConfigError("engine.logger=wandb needs: pip install 'scanprior[wandb]'") from None
        self._run = wandb.init(project="scanprior", name=folder.name, dir=str(folder))

    def write(self, row: dict[str, Any]) -> None:
        values = {
            f"{row['split']}/{name}": value for name, value in row.items() if name not in ("step", "split")
        }
        self._run.log(values, step=row["step"])

    def close(self) -> None:
        self._run.finish()


_LOGGERS: dict[str, type[_Logger]] = {"tensorboard": _TensorBoard, "wandb": _WeightsAndBiases}
