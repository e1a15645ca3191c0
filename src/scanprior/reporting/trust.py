"""What the report and the card say of a run's own limits: calibration, conformal sets, images unlike the training's."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from scanprior.reporting.formatting import count, finite, interval, level_of, number, plural
from scanprior.reporting.runfiles import part
from scanprior.reporting.study_tables import Table

_METHODS = {"lac": "least ambiguous sets", "aps": "adaptive sets"}


def trust_facts(model: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return what the card says of what was fitted after the training; [] of a run without it."""
    return [*_temperature(model), *_sets(model), *_outliers(model)]


def trust_notes(model: Mapping[str, Any]) -> list[str]:
    """Return why something of it could not be fitted."""
    return [str(note) for note in part(model, "trust").get("notes") or []]


def sets_table(evaluation: Mapping[str, Any]) -> Table | None:
    """Return how often the conformal sets of an evaluation hold the truth; None where it was not measured."""
    rows = _rows(evaluation, "sets")
    if not rows:
        return None
    sites = any(row.get("site") is not None for row in rows)
    header = ["Images", *(["Site"] if sites else []), "n", "Coverage", f"{level_of(evaluation)} interval",
              "Classes in a set", "Sets of one class"]  # fmt: skip
    made = [
        [
            str(row.get("of")),
            *([str(row.get("site") or "all")] if sites else []),
            count(row.get("n")),
            number(row.get("coverage")) if row.get("coverage") is not None else str(row.get("reason")),
            _bounds(row),
            number(row.get("mean_size"), 2),
            number(row.get("singletons"), 2),
        ]
        for row in rows
    ]
    caption = (
        "How often a set held the truth. The wanted coverage is that of each finding; its two classes are absent and "
        "present."
        if evaluation.get("task") == "multilabel"
        else "How often a set held the truth. The wanted coverage is that of all images together, not of each class."
    )
    return Table(caption, header, made)


def outliers_table(evaluation: Mapping[str, Any]) -> Table | None:
    """Return which share of the images of each site is called an outlier; None without several sites."""
    rows = _rows(evaluation, "outliers")
    if len(rows) < 2:
        return None
    made = [
        [str(row.get("site") or "all"), count(row.get("n")), number(row.get("share")), _bounds(row)]
        for row in rows
    ]
    header = ["Site", "n", "Called outliers", f"{level_of(evaluation)} interval"]
    return Table("Share of images called outliers.", header, made)


def measured_table(model: Mapping[str, Any], evaluations: Sequence[Mapping[str, Any]]) -> Table | None:
    """Return what was measured of it on every evaluated set, beside what is wanted; None where nothing was."""
    known = [e for e in evaluations if _rows(e, "sets") or _rows(e, "outliers")]
    if not known:
        return None
    levels = " or ".join(dict.fromkeys(level_of(evaluation) for evaluation in known))
    header = ["Evaluated images", "n"]
    columns: list[Callable[[Mapping[str, Any]], str]] = [_marked, _images]
    if any(_rows(evaluation, "sets") for evaluation in known):
        header += [f"Coverage ({_wanted(model)} wanted)", f"{levels} interval", "Classes in a set"]
        columns += [_coverage, _coverage_bounds, _mean_size]
    if any(_rows(evaluation, "outliers") for evaluation in known):
        header += ["Called outliers", f"{levels} interval"]
        columns += [_share, _share_bounds]
    made = [[column(evaluation) for column in columns] for evaluation in known]
    caption = "What was measured of it, beside what is wanted."
    if any(_flattered(evaluation) for evaluation in known):
        caption += " *: holds images that it was fitted to, or the network trained on."
    return Table(caption, header, made)


def measured_sentences(model: Mapping[str, Any], evaluations: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield the same as sentences, for a card."""
    for evaluation in evaluations:
        said = []
        if _rows(evaluation, "sets"):
            held = " ".join(filter(None, (_coverage(evaluation), _coverage_bounds(evaluation))))
            size = _mean_size(evaluation)
            said.append(
                f"conformal sets held the truth of {held} ({_wanted(model)} wanted), classes in a set: {size}"
            )
        if _rows(evaluation, "outliers"):
            said.append(f"called outliers: {_share(evaluation)} {_share_bounds(evaluation)}")
        if said:
            flattered = (
                " (holds images that it was fitted to, or trained on)" if _flattered(evaluation) else ""
            )
            yield f"{_name(evaluation)}{flattered}: {'; '.join(said)}."


def trust_warnings(model: Mapping[str, Any], evaluations: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield on which sets it does not hold: the whole interval lies on the wrong side of what is wanted."""
    wanted, alarms = _level(model), finite(part(model, "trust", "outliers").get("false_alarms"))
    for evaluation in evaluations:
        for row in _whole(evaluation):
            high = finite(row.get("high"))
            if wanted is not None and high is not None and high < wanted:
                of = "" if row.get("of") == "all" else f" of {row.get('of')}"
                yield (
                    f"{_name(evaluation)}: sets{of} held the truth less often than wanted, "
                    f"{number(row.get('coverage'))} {_bounds(row)} against {wanted:.0%}: do not rely on them there."
                )
        for row in _rows(evaluation, "outliers")[:1]:
            low = finite(row.get("low"))
            if alarms is not None and low is not None and low > alarms:
                yield (
                    f"{_name(evaluation)}: a share of {number(row.get('share'))} {_bounds(row)} of the images "
                    f"is called outliers, more than the {alarms:.0%} allowed of images like the validation's."
                )


def trust_sentences(model: Mapping[str, Any]) -> Iterator[str]:
    """Yield the same as sentences, for a card and for the terminal."""
    facts = trust_facts(model)
    if facts:
        yield "; ".join(f"{name[0].lower()}{name[1:]}: {value}" for name, value in facts) + "."
    yield from (f"{note[0].upper()}{note[1:]}." for note in trust_notes(model))


def _temperature(model: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    found = part(model, "trust", "temperature")
    if not found:
        return
    before, after = (found.get("log_loss") or [None, None])[:2]
    fitted = f"on the {plural(found.get('images'), 'validation image')} it was fitted to"
    yield (
        "Temperature",
        f"{number(found.get('value'), 2)} (log loss {number(before)} to {number(after)}, {fitted})",
    )


def _sets(model: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    thresholds = part(model, "trust", "sets").get("thresholds") or []
    if not thresholds:
        return
    first = thresholds[0]
    method = _METHODS.get(str(first.get("method")), str(first.get("method")))
    yield "Conformal sets", f"{_wanted(model)} are to hold the truth; {method}"


def _outliers(model: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    found = part(model, "trust", "outliers")
    if not found:
        return
    threshold, alarms = finite(found.get("threshold")), finite(found.get("false_alarms"))
    kept = plural(found.get("reference_images"), "training image")
    if threshold is None or alarms is None:
        yield "Outliers", f"scored against {kept}; none is flagged"
        return
    looked = plural(found.get("validation_images"), "validation image")
    yield (
        "Outliers",
        f"flagged above a score of {threshold:.2f}, as at most {alarms:.0%} of {looked} are (1 is the mean of {kept})",
    )


def _level(model: Mapping[str, Any]) -> float | None:
    thresholds = part(model, "trust", "sets").get("thresholds") or [{}]
    return finite(thresholds[0].get("level"))


def _wanted(model: Mapping[str, Any]) -> str:
    level = _level(model)
    return "n/a" if level is None else f"{level:.0%}"


def _name(evaluation: Mapping[str, Any]) -> str:
    return str(evaluation.get("name") or "unnamed set")


def _flattered(evaluation: Mapping[str, Any]) -> bool:
    """Return whether some of the images had a part in the run: its own that are not all test images, or known ones."""
    own = evaluation.get("data") is None and evaluation.get("split") != "test"
    return own or bool(finite(evaluation.get("training_images")))


def _marked(evaluation: Mapping[str, Any]) -> str:
    return f"{_name(evaluation)}{' *' if _flattered(evaluation) else ''}"


def _images(evaluation: Mapping[str, Any]) -> str:
    return count(evaluation.get("n"))


def _rows(evaluation: Mapping[str, Any], section: str) -> list[Mapping[str, Any]]:
    return [row for row in evaluation.get(section) or [] if isinstance(row, Mapping)]


def _whole(evaluation: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the rows of which the wanted coverage is so: all images of classes, or each finding."""
    rows = [row for row in _rows(evaluation, "sets") if row.get("site") is None]
    return [row for row in rows if row.get("of") == "all"] or rows


def _bounds(row: Mapping[str, Any]) -> str:
    return interval(row.get("low"), row.get("high")) or str(row.get("reason") or "n/a")


def _coverage(evaluation: Mapping[str, Any]) -> str:
    """Write the coverage of all images; of findings the lowest and the highest, with their names."""
    rows = _whole(evaluation)
    if len(rows) == 1:
        return number(rows[0].get("coverage"))
    known = sorted(
        (value, str(row.get("of"))) for row in rows if (value := finite(row.get("coverage"))) is not None
    )
    if not known:
        return "n/a"
    return " to ".join(f"{number(value)} ({name})" for value, name in (known[0], known[-1]))


def _coverage_bounds(evaluation: Mapping[str, Any]) -> str:
    rows = _whole(evaluation)
    return _bounds(rows[0]) if len(rows) == 1 else ("by finding" if rows else "n/a")


def _mean_size(evaluation: Mapping[str, Any]) -> str:
    known = [size for row in _whole(evaluation) if (size := finite(row.get("mean_size"))) is not None]
    return (
        " to ".join(dict.fromkeys(number(size, 2) for size in (min(known), max(known)))) if known else "n/a"
    )


def _share(evaluation: Mapping[str, Any]) -> str:
    return number((_rows(evaluation, "outliers") or [{}])[0].get("share"))


def _share_bounds(evaluation: Mapping[str, Any]) -> str:
    return _bounds((_rows(evaluation, "outliers") or [{}])[0])
