"""Inits whose weights are not there: known before anything is trained, and never replaced by random ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from scanprior.api.settings import finetune_config
from scanprior.catalogue import listed
from scanprior.encoders import EncoderConfig
from scanprior.engine import Reporter
from scanprior.errors import ConfigError, WeightsError
from scanprior.run import RELEASED
from scanprior.studies.plan import steps_of
from scanprior.studies.recipe import Recipe


def without_absent(
    recipe: Recipe, finished: Callable[[str], bool], reporter: Reporter
) -> tuple[Recipe, list[dict[str, Any]]]:
    """Return the recipe without the inits that are absent and may be, and what is to be said of these.

    An init is absent where its ``encoder.weights`` or the run it starts from does not exist, or its
    ``encoder.pretrained`` weights are neither in the hub's cache on this machine nor can be fetched now. One all of
    whose trainings are finished needs no weights any more.

    Args:
        recipe: of the data sets that are given.
        finished: whether a step of a name is.
        reporter: told which are left out.

    Returns:
        The recipe, and a row for each: ``init``, ``file``, ``source`` (where it comes from), ``reason``.

    Raises:
        ConfigError: one is absent that must be there, or the baseline is.
    """
    absent = []
    for name, init in recipe.inits.items():
        row = _absent(recipe, name, finished)
        if row is None:
            continue
        row = {"init": name, **row}
        comes_from = f"; it comes from the {row['source']}" if row["source"] else ""
        if init.if_absent == "stop":
            raise ConfigError(
                f"inits.{name}: {row['reason']}{comes_from}; get it, or set if_absent: leave_out to do without the init"
            )
        if name == recipe.baseline:
            raise ConfigError(
                f"inits.{name}: {row['reason']}{comes_from}; it is the baseline, so nothing could be compared: get it, "
                "or name another baseline"
            )
        reporter.note(f"left out: {name}, because {row['reason']}{comes_from}")
        absent.append(row)
    if not absent:
        return recipe, []
    return recipe.without([], [row["init"] for row in absent]), absent


def _absent(recipe: Recipe, init: str, finished: Callable[[str], bool]) -> dict[str, Any] | None:
    """Return what of an init is not there; None where everything is, or nothing is needed any more."""
    steps = [step for step in steps_of(recipe) if step.facts.get("init") == init and step.kind != "ensemble"]
    if all(finished(step.name) for step in steps):
        return None
    start = recipe.inits[init].start
    if (
        recipe.inits[init].if_absent == "leave_out"
        and start is not None
        and start not in recipe.pretraining
        and not start.startswith(RELEASED)
        and not Path(start).expanduser().exists()
    ):
        return {"file": start, "source": "", "reason": f"{start} is not there"}
    seen = set()
    for step in steps:
        config = finetune_config(step.options)
        key = (config.encoder.model_dump_json(), config.data.size)
        if key in seen:
            continue
        seen.add(key)
        row = _lacking(config.encoder, config.data.size)
        if row is not None:
            return row
    return None


def _lacking(config: EncoderConfig, size: int) -> dict[str, Any] | None:
    entry = listed(config.name)
    source = entry.source if entry is not None else ""
    if config.weights is not None and not Path(config.weights).exists():
        return {"file": config.weights, "source": source, "reason": f"{config.weights} is not there"}
    if not config.pretrained:
        return None
    try:
        if entry is None:
            from scanprior.encoders import create_encoder

            create_encoder(config, size=size, channels=3)
        else:
            from scanprior.encoders.hub import fetch

            fetch(entry, config.revision, config.sha256)
    except WeightsError as error:
        file = config.name if entry is None else entry.file
        return {"file": file, "source": source or f"hub, by timm: {config.name}", "reason": str(error)}
    return None
