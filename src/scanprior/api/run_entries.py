"""What one folder of a list of runs is: read from its card and one evaluation, and never an exception."""

from __future__ import annotations

import hashlib
import json
import math
import os
import stat
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from scanprior.config import load_yaml
from scanprior.errors import ScanpriorError
from scanprior.run import Run

KINDS = ("pretrain", "classify", "segment", "ensemble", "study")
STATES = ("finished", "unfinished", "damaged")


@dataclass(frozen=True)
class Metric:
    """A metric of an evaluation, of all classes together.

    Attributes:
        value: None where it has none.
        low, high: interval at the level of the evaluation; None where there is none.
        of: what it is of: ``macro``, ``all``, or the one class that has it.
        n: images that took part.
        reason: why there is no value or no interval.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    of: str | None = None
    n: int | None = None
    reason: str | None = None


@dataclass(frozen=True)
class RunEntry:
    """A run or a study, as a list shows it. What is not known is None.

    Attributes:
        path: from the folder that is listed; ``.`` is that folder itself.
        kind: one of ``KINDS``; of an unfinished run as its configuration says.
        state: one of ``STATES``.
        reason: why it is damaged, or what a study lacks.
        encoder: name of the network.
        objective: of a pretraining.
        task: ``multiclass``, ``multilabel`` or ``segmentation``, and by what if not fine-tuning; name of a study.
        data: names of the data sets.
        labels: labelled training images that were used.
        size: side of the network's input in pixels.
        seed: key of its random decisions.
        created: when it was finished, ISO 8601 in UTC.
        parent: the run it started from, as it was named.
        evaluation: name of the evaluation that the metrics are of; None where there is none.
        metrics: name to metric.
        level: of the intervals, such as 0.95.
        test_set: 12 hex digits, equal where the same images with the same labels and classes were evaluated.
        form: side, channels, bits and fit of the stored images; ``prints``: their fingerprints, which are comparable
            in one form alone.
        transductive: whether held-out images were seen in pretraining.
        training_images: how many of the evaluated images the run was trained on.
        report: whether there is a ``report.html``.
        steps: of a study, how many are done.
        best: whether it is the best one on its test set, by the metric that was asked for.
    """

    path: str
    kind: str | None = None
    state: str = "finished"
    reason: str | None = None
    encoder: str | None = None
    objective: str | None = None
    task: str | None = None
    data: tuple[str, ...] = ()
    labels: int | None = None
    size: int | None = None
    seed: int | None = None
    created: str | None = None
    parent: str | None = None
    evaluation: str | None = None
    metrics: Mapping[str, Metric] = field(default_factory=dict)
    level: float | None = None
    test_set: str | None = None
    form: str | None = None
    prints: tuple[str, ...] = ()
    transductive: bool = False
    training_images: int = 0
    report: bool = False
    steps: int | None = None
    best: bool = False

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {**asdict(self), "data": list(self.data), "prints": list(self.prints)}

    def value(self, metric: str) -> float | None:
        """Return the value of a metric; None where it has none."""
        found = self.metrics.get(metric)
        return None if found is None else found.value


def run_entry(folder: Path, path: str, files: Collection[str], evaluation: str) -> RunEntry | None:
    """Read the entry of a folder that has a ``model.json`` or a ``config.yaml``; None where it is of no run.

    Args:
        folder: of the run.
        path: as the list names it.
        files: names of what lies in it.
        evaluation: whose metrics are taken, such as ``test``.
    """
    report = "report.html" in files
    if "model.json" not in files:
        lines = _lines(folder / "config.yaml")
        if not any(line.startswith("command: ") for line in lines):
            return None  # other programs call their files so, too
        return RunEntry(path, _kind_of_config(lines), "unfinished", report=report)
    try:
        card = _card(folder)
    except (ScanpriorError, OSError, RecursionError) as error:
        return RunEntry(path, None, "damaged", _reason(error, folder), report=report)
    said = _of_card(card)
    broken = None
    if "ensemble" not in card:
        lacking = [file.name for file in Run(folder, card).weight_files if file.name not in files]
        broken = f"{lacking[0]} is missing" if lacking else None
    file = folder / "evaluations" / f"{evaluation}.json"
    try:
        found = _of_evaluation(_object(file), card)
    except (FileNotFoundError, NotADirectoryError):
        found = {}
    except (ValueError, OSError, RecursionError) as error:
        found, broken = {}, f"evaluations/{file.name}: not readable ({_reason(error, folder)})"
    state = "finished" if broken is None else "damaged"
    return RunEntry(path, state=state, reason=broken, report=report, **said, **found)


def study_entry(folder: Path, path: str, files: Collection[str], steps: int | None) -> RunEntry | None:
    """Read the entry of a folder that has a ``study.yaml`` or ``results.json``; None where it is of no study.

    Args:
        folder: of the study.
        path: as the list names it.
        files: names of what lies in it.
        steps: how many of its steps are done; None = its runs are elsewhere.
    """
    report, begun = "report.html" in files, "study.yaml" in files
    try:
        if "results.json" in files:
            tree: Mapping[str, Any] = _object(folder / "results.json")
            if not begun and not {"efficiency", "data", "name"} <= tree.keys():
                return None
            failed = len(_part(tree, "failed"))
            reason = None if not failed else f"{failed} step{'s' if failed > 1 else ''} failed"
            state = "unfinished" if failed else "finished"
        else:
            _check_plain(folder / "study.yaml")
            tree, state, reason = _part(load_yaml(folder / "study.yaml"), "recipe"), "unfinished", None
    except (ScanpriorError, ValueError, OSError, RecursionError) as error:
        reason = _reason(error, folder)
        return RunEntry(path, "study", "damaged", reason, report=report, steps=steps) if begun else None
    data = tuple(map(str, _part(tree, "data")))
    return RunEntry(
        path, "study", state, reason, task=_text(tree.get("name")), data=data, report=report, steps=steps
    )


def _card(folder: Path) -> dict[str, Any]:
    """Return the card of a run; errors as of ``Run.open`` and ``_check_plain``."""
    _check_plain(folder / "model.json")
    return Run.open(folder).card


def _of_card(card: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields that a card holds; parts of another form than expected are passed over."""
    data, task, preprocessing = (_part(card, name) for name in ("data", "task", "preprocessing"))
    section = _part(card, "ensemble")
    kind, found = card.get("kind"), _text(task.get("kind"))
    if "ensemble" in card:
        kind = "ensemble"
        found = f"{found}, {_text(section.get('method'))} of {len(_list(section, 'members'))}"
    elif kind == "segment":
        found = "segmentation"
    elif task.get("name") == "probe":
        found = f"{found}, {_text(_part(task, 'settings').get('head'))} probe"
    sources = [source for source in _list(data, "sources") if isinstance(source, Mapping)]
    form = [preprocessing.get(name) for name in ("stored_size", "channels", "depth", "fit")]
    return {
        "kind": _text(kind),
        "encoder": _text(_part(card, "encoder").get("name")),
        "objective": _text(_part(card, "objective").get("name")),
        "task": found,
        "data": tuple(str(source.get("name")) for source in sources),
        "labels": _whole(data.get("labels_used")),
        "size": _whole(preprocessing.get("size")),
        "seed": _whole(card.get("seed")),
        "created": _text(card.get("created")),
        "parent": _text(_part(card, "parent").get("path")),
        "form": None if None in form else " ".join(map(str, form)),
        "transductive": data.get("transductive") is True,
    }


def _of_evaluation(found: Mapping[str, Any], card: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields that an evaluation holds."""
    rows = [row for row in _list(found, "metrics") if isinstance(row, Mapping)]
    own = found.get("data") is None
    sources = _list(_part(card, "data"), "sources")
    prints = (str(source.get("fingerprint")) for source in sources if isinstance(source, Mapping))
    return {
        "evaluation": _text(found.get("name")),
        "metrics": _metrics(rows),
        "level": _number(found.get("level")),
        "test_set": _test_set(found, rows),
        "prints": tuple(prints) if own else (),  # a card knows the images of its own sources alone
        "training_images": _whole(found.get("training_images")) or 0,
    }


def _metrics(rows: list[Mapping[str, Any]]) -> dict[str, Metric]:
    """Return one metric a name: of ``macro`` or ``all``, else of the one class that has it.

    A second row of a class, which is DeLong's of AUROC, is passed over: its interval is of a class, not of a mean.
    """
    named: dict[str, dict[str, Mapping[str, Any]]] = {}
    for row in rows:
        named.setdefault(str(row.get("metric")), {}).setdefault(str(row.get("class")), row)
    made = {}
    for name, classes in named.items():
        of: str | None = next((each for each in ("macro", "all") if each in classes), None)
        if of is None and len(classes) == 1:
            (of,) = classes
        if of is not None:
            row = classes[of]
            made[name] = Metric(
                _number(row.get("value")), _number(row.get("low")), _number(row.get("high")), of,
                _whole(row.get("n")), _text(row.get("reason")),
            )  # fmt: skip
    return made


def _test_set(found: Mapping[str, Any], rows: list[Mapping[str, Any]]) -> str | None:
    """Return a name for the images, labels and classes of an evaluation; None where its split is not known."""
    if not found.get("split_fingerprint"):
        return None
    counted = {
        f"{row.get('class')}: {row.get('positives')} of {row.get('n')}"
        for row in rows
        if row.get("metric") == "auroc"
    }
    told = [
        *(found.get(name) for name in ("split_fingerprint", "split", "task", "n", "patients", "positive_class")),
        sorted(map(str, _list(found, "classes"))),
        sorted(counted),
    ]  # fmt: skip
    return digest(json.dumps(told))


def digest(text: str) -> str:
    """Return the first 12 hex digits of the SHA-256 of a text."""
    return hashlib.sha256(text.encode(errors="backslashreplace")).hexdigest()[:12]


def _lines(file: Path) -> list[str]:
    try:
        _check_plain(file)
        return file.read_text(errors="replace").splitlines()
    except OSError:
        return []


def _kind_of_config(lines: list[str]) -> str | None:
    """Return the kind of an unfinished run from the command in its configuration, and the name of the task.

    The lines are those that ``dump_yaml`` writes; reading all of the YAML takes far longer.
    """
    command = next(line.partition(": ")[2] for line in lines if line.startswith("command: "))
    if command in ("pretrain", "ensemble"):
        return command
    if command == "probe":
        return "classify"
    if command != "finetune" or "task:" not in lines:
        return None
    names = (line for line in lines[lines.index("task:") + 1 :] if line.startswith("  name: "))
    kind = next(names, "").partition(": ")[2]
    return kind if kind in KINDS else None


def _object(file: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        ValueError: it is none.
        OSError: it cannot be read, or is no plain file.
    """
    _check_plain(file)
    found = json.loads(file.read_text())
    if not isinstance(found, dict):
        raise ValueError(f"it holds a {type(found).__name__}")
    return found


def _check_plain(file: Path) -> None:
    """Refuse a link, which is never followed, and a pipe, which would be waited for.

    Raises:
        OSError: it is one, or is not there.
    """
    if not stat.S_ISREG(file.lstat().st_mode):
        raise OSError(f"{file.name} is a link or no file")


def _reason(error: BaseException, folder: Path) -> str:
    """Return what is wrong in a few words, without the path that the list shows anyway."""
    if isinstance(error, RecursionError):
        return "nested too deeply"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return str(error).removeprefix(f"{folder}{os.sep}").removeprefix(f"{folder}: ")


def _part(tree: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = tree.get(name)
    return found if isinstance(found, Mapping) else {}


def _list(tree: Mapping[str, Any], name: str) -> list[Any]:
    found = tree.get(name)
    return found if isinstance(found, list) else []


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:  # a whole number beyond the floats
        return None


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None
