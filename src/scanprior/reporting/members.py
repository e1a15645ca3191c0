"""What the report says of an ensemble: its members, what it gains over them, how alike and calibrated they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from scanprior.evaluation.ensembles import CALIBRATION
from scanprior.reporting.formatting import count, finite, interval, level_of, number
from scanprior.reporting.runfiles import part
from scanprior.reporting.study_tables import Table, signed, span
from scanprior.reporting.tables import Evaluation, combination_name, headline, metric_name

Row = Mapping[str, Any]


def ensemble_facts(model: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return what the card says of how an ensemble was made; [] for another run."""
    found = part(model, "ensemble")
    if not found:
        return []
    fitted = found.get("temperatures") or found.get("weights")
    images = count(found.get("validation_images"))
    best, members = found.get("best"), found.get("members") or []
    facts = [("Method", combination_name(str(found.get("method")))),
             ("Members", count(len(members)))]  # fmt: skip
    facts.append(("Validation images in common", images))
    if fitted:
        facts.append(("Fitted by", f"negative log-likelihood on these {images} images"))
    if isinstance(best, int) and best < len(members):
        facts.append(("Best member on validation", str(members[best].get("name"))))
    return facts


def members_table(model: Mapping[str, Any]) -> Table | None:
    """Return the members of an ensemble, as its card names them; None for another run."""
    found = part(model, "ensemble")
    if not found:
        return None
    values = found.get("temperatures") or found.get("weights")
    rows = []
    for place, member in enumerate(found.get("members") or []):
        validation = part(member, "validation")
        row = [
            str(member.get("name")),
            str(member.get("encoder") or "–"),
            f"{member.get('size')} px",
            count(member.get("labels_used")),
            number(validation.get("auroc")),
            number(validation.get("log_loss")),
            *([number(values[place])] if values else []),
            str(member.get("path")),
            str(member.get("fingerprint")),
        ]
        rows.append(row)
    own = ["Temperature" if found.get("temperatures") else "Weight"] if values else []
    header = [
        "Member",
        "Encoder",
        "Input",
        "Labels",
        "Validation AUROC",
        "Validation log loss",
        *own,
        "Run",
        "Checksum",
    ]
    return Table("Paths start at the folder of the ensemble.", header, rows)


def member_tables(evaluation: Evaluation) -> list[Table]:
    """Return the tables about the members in one evaluation of an ensemble; [] for another run's."""
    found = part(evaluation, "ensemble")
    if not found:
        return []
    return [
        _scores(evaluation, found),
        *_differences(evaluation, found),
        _calibration(found),
        _agreement(found),
    ]


def _keys(evaluation: Evaluation) -> list[tuple[str, str]]:
    """Return the metrics that are shown of each member: the headline, and those of the whole set."""
    first = headline(evaluation) or {}
    klass = str(first.get("class"))
    whole = "macro" if klass == "macro" else "all"
    wanted = [(str(first.get("metric")), klass), ("average_precision", klass), ("balanced_accuracy", "all"),
              ("quadratic_kappa", "all"), ("accuracy", "all"), ("brier", whole), ("ece", whole)]  # fmt: skip
    if evaluation.get("task") == "multiclass":
        wanted = [(m, "all") if m in ("brier", "ece") else (m, k) for m, k in wanted]
    there = {(row.get("metric"), row.get("class")) for row in evaluation.get("metrics") or []}
    return [key for key in dict.fromkeys(wanted) if key in there]


def _found(rows: Sequence[Row], key: tuple[str, str]) -> Row:
    """Return the bootstrap row of a metric, {} where there is none."""
    return next((row for row in rows if (row.get("metric"), row.get("class")) == key), {})


def _cell(row: Row | None) -> str:
    if not row:
        return "–"
    return f"{number(row.get('value'))} {interval(row.get('low'), row.get('high'))}".strip()


def _scores(evaluation: Evaluation, found: Mapping[str, Any]) -> Table:
    keys = [key for key in _keys(evaluation) if key[0] not in CALIBRATION]  # which has a table of its own
    rows = [
        [_named(str(member["name"]), found), *(_cell(_found(member["metrics"], key)) for key in keys)]
        for member in found["members"]
    ]
    rows.append(["ensemble", *(_cell(_found(evaluation["metrics"], key)) for key in keys)])
    return Table(
        f"Members and ensemble on the same images, with {level_of(evaluation)} intervals.",
        ["", *_titles(keys)],
        rows,
    )


def _named(name: str, found: Mapping[str, Any]) -> str:
    return f"{name} (best on validation)" if name == found.get("best_member") else name


def _titles(keys: Sequence[tuple[str, str]]) -> list[str]:
    return [
        metric_name(metric) if klass == "all" else f"{metric_name(metric)}, {klass}" for metric, klass in keys
    ]


def _differences(evaluation: Evaluation, found: Mapping[str, Any]) -> list[Table]:
    keys, made = _keys(evaluation), []
    for difference in found["differences"]:
        against = str(difference["against"])
        name = f" ({difference['member']})" if difference.get("member") else ""
        unit = evaluation.get("unit") or "patient"
        caption = (
            f"Ensemble minus the {against}{name}, paired by {unit}, with {level_of(evaluation)} intervals."
        )
        if difference.get("reason"):
            made.append(Table(f"Ensemble minus the {against}: n/a, {difference['reason']}.", [], []))
            continue
        rows = []
        for key, title in zip(keys, _titles(keys), strict=True):
            row = _found(difference["rows"], key)
            reach = span(row.get("low"), row.get("high")) or str(row.get("reason") or "")
            p = finite(row.get("p"))
            rows.append([title, signed(row.get("difference")), reach, "n/a" if p is None else f"{p:.3g}"])
        made.append(Table(caption, ["Metric", "Difference", f"{level_of(evaluation)} interval", "p"], rows))
    return made


def _calibration(found: Mapping[str, Any]) -> Table:
    rows = []
    for row in found["calibration"]:
        before, after = row.get("before") or {}, row.get("after") or {}
        temperature = "–" if row.get("temperature") is None else number(row["temperature"])
        cells = [_cell(side.get(metric)) for metric in ("ece", "brier") for side in (before, after)]
        rows.append([str(row["name"]), temperature, *cells])
    caption = (
        "Calibration before and after. Of a member: without and with its temperature. Of the ensemble: the plain mean "
        "of the members, and what the method makes of them."
    )
    header = ["", "Temperature", "ECE before", "ECE after", "Brier score before", "Brier score after"]
    return Table(caption, header, rows)


def _agreement(found: Mapping[str, Any]) -> Table:
    agreement = found["agreement"]
    rows = [
        [f"{row['first']} and {row['second']}", number(row["agreement"]), number(row["error_correlation"])]
        for row in agreement["pairs"]
    ]
    mean = agreement["mean"]
    rows.append(["mean of the pairs", _cell(mean["agreement"]), _cell(mean["error_correlation"])])
    caption = (
        "Agreement: share of the images that two members call the same. Error correlation: of 1 minus the probability "
        "of what is true. Members that err alike gain little from each other."
    )
    return Table(caption, ["Members", "Agreement", "Error correlation"], rows)
