"""What an evaluation of an ensemble says of its members."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from scanprior.api.prediction_tables import Labelled, certain, thresholds_from, validation_predictions
from scanprior.api.predictor import Predictor
from scanprior.api.settings import EvaluationConfig
from scanprior.evaluation import Setting, evaluate_members, member_column
from scanprior.run import Run


def setting_of(names: Sequence[str], model: Labelled, config: EvaluationConfig) -> Setting:
    """Return what the members of an ensemble are evaluated with."""
    return Setting(
        members=list(names), classes=model.classes, task=model.kind, positive_class=config.positive_class,
        ordered=model.ordered, resamples=config.resamples, seed=config.seed, level=config.level,
    )  # fmt: skip


def members_section(
    run: Run,
    table: pd.DataFrame,
    model: Predictor,
    config: EvaluationConfig,
    thresholds: dict[str, Any] | None,
) -> dict[str, Any]:
    """Evaluate the members of an ensemble beside it, every one with thresholds of its own from validation.

    Args:
        run: the ensemble; its card names the best member, its predictions hold the validation images.
        table: what the ensemble and its members say of the images; uncertain labels are missing.
        model: the ensemble.
        config: how results are made.
        thresholds: of the ensemble.
    """
    assert model.combination is not None
    validation = validation_predictions(run, model)
    own = [
        thresholds_from(of_member(validation, number, model), model, config)
        for number in range(len(model.members))
    ]
    return evaluate_members(
        table,
        setting_of([member.name for member in model.members], model, config),
        model.combination,
        best=run.card["ensemble"]["best"],
        thresholds=thresholds,
        member_thresholds=own,
    )


def of_member(table: pd.DataFrame, number: int, model: Labelled) -> pd.DataFrame:
    """Return a table of an ensemble's predictions as the table of one member's."""
    own = {f"prob:{name}": table[member_column(number, name)] for name in model.classes}
    return certain(table.assign(**own), model)
