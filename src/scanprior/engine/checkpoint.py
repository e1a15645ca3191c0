"""Training state on disk: written whole or not at all, without pickle.

``state/step-00000200/`` holds ``module.safetensors`` (every parameter and buffer),
``optimizer.safetensors`` (AdamW's moments under the names of their parameters),
``average.safetensors`` (the weight average, if there is one) and ``state.json``. A checkpoint is
written beside its final name, flushed, and renamed; only then is the older one removed.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from scanprior.errors import RunError, TrainingError, WeightsError
from scanprior.files import replacing, write_text

_MOMENTS = ("exp_avg", "exp_avg_sq", "step")


@dataclass
class Progress:
    """Where a training run stands."""

    step: int = 0
    best_value: float | None = None
    best_step: int | None = None
    seconds: float = 0.0
    scaler: dict[str, Any] = field(default_factory=dict)


class Checkpoints:
    """The checkpoints of one run.

    Args:
        folder: the ``state`` folder of the run.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def latest(self) -> Path | None:
        """Return the newest complete checkpoint."""
        found = sorted(p for p in self.folder.glob("step-*") if p.suffix != ".part")
        return found[-1] if found else None

    def save(
        self,
        progress: Progress,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        average: dict[str, Tensor] | None,
    ) -> Path:
        """Write a checkpoint; the one before stays until this one is complete.

        Raises:
            TrainingError: it could not be written (a full disk); the one before is intact.
        """
        final = self.folder / f"step-{progress.step:08d}"
        part = final.with_suffix(".part")
        try:
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(parents=True)
            save_weights(module.state_dict(), part / "module.safetensors")
            save_weights(_moments(optimizer), part / "optimizer.safetensors")
            if average is not None:
                save_weights(average, part / "average.safetensors")
            write_text(part / "state.json", json.dumps(asdict(progress)))
            shutil.rmtree(final, ignore_errors=True)
            part.rename(final)
            _sync_folder(self.folder)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(part, ignore_errors=True)
            kept = self.latest()
            advice = (
                f"{kept} is intact; free some space and go on with --resume" if kept else "free some space"
            )
            raise TrainingError(
                f"{final}: the checkpoint could not be written ({error}); {advice}"
            ) from error
        for older in self.folder.glob("step-*"):
            if older.name < final.name:
                shutil.rmtree(older)
        return final

    def load(
        self, module: nn.Module, optimizer: torch.optim.Optimizer, average: dict[str, Tensor] | None
    ) -> Progress | None:
        """Put the newest checkpoint into the module, the optimiser and the average, in place.

        Returns:
            Where the run stands, or None where there is no checkpoint.

        Raises:
            RunError: the checkpoint belongs to another network or optimiser.
        """
        path = self.latest()
        if path is None:
            return None
        try:
            module.load_state_dict(load_weights(path / "module.safetensors"))
            _restore_moments(optimizer, load_weights(path / "optimizer.safetensors"))
            if average is not None:
                for name, tensor in load_weights(path / "average.safetensors").items():
                    average[name].copy_(tensor)
            return Progress(**json.loads((path / "state.json").read_text()))
        except (RuntimeError, KeyError, TypeError, ValueError, OSError, WeightsError) as error:
            reason = " ".join(str(error).split())[:200]
            raise RunError(
                f"{path}: this checkpoint does not fit the configured network ({reason})"
            ) from error


def _named_parameters(optimizer: torch.optim.Optimizer) -> list[tuple[str, Tensor]]:
    return [
        pair for group in optimizer.param_groups for pair in zip(group["names"], group["params"], strict=True)
    ]


def _moments(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    return {
        f"{name}/{moment}": optimizer.state[parameter][moment]
        for name, parameter in _named_parameters(optimizer)
        if parameter in optimizer.state
        for moment in _MOMENTS
    }


def _restore_moments(optimizer: torch.optim.Optimizer, saved: dict[str, Tensor]) -> None:
    for name, parameter in _named_parameters(optimizer):
        if f"{name}/step" in saved:
            state = {moment: saved.pop(f"{name}/{moment}") for moment in _MOMENTS}
            optimizer.state[parameter] = {
                moment: tensor if moment == "step" and tensor.ndim == 0 else tensor.to(parameter.device)
                for moment, tensor in state.items()
            }
    if saved:
        raise KeyError(f"the optimiser has no {next(iter(saved))}")


def save_weights(state: dict[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write tensors as safetensors, flushed to disk; tensors that share memory are written apart."""
    save_file(
        {name: tensor.detach().cpu().clone().contiguous() for name, tensor in state.items()}, path, metadata
    )
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def load_weights(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file.

    Raises:
        WeightsError: the file is missing or damaged.
    """
    try:
        return load_file(path)
    except FileNotFoundError:
        raise WeightsError(f"{path}: there is no such weights file") from None
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path}: not a readable safetensors file ({error})") from error


def replace_weights(state: dict[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write tensors beside ``path`` and rename, so that ``path`` is the old file or the whole new one.

    Raises:
        WeightsError: they cannot be written (a full disk).
    """
    try:
        with replacing(path) as part:
            save_weights(state, part, metadata)
    except (SafetensorError, OSError) as error:
        raise WeightsError(
            f"{path}: cannot be written ({error}); free some space on the disk and go on with --resume"
        ) from error


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
