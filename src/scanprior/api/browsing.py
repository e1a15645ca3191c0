"""``runs``: the runs and studies below a folder, as a list that can be filtered, sorted and ranked.

A list of thousands has to be quick: of a run its card and one evaluation are read, of an ensemble none of its
members, and nothing here imports the network libraries.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from scanprior.api.run_entries import KINDS, RunEntry, digest, run_entry, study_entry
from scanprior.errors import ConfigError, RunError

LOWER_IS_BETTER = frozenset({"brier", "ece", "log_loss", "hausdorff95", "surface_distance"})
"""As ``scanprior.evaluation`` has it, whose import takes longer than listing a thousand runs."""

FIELDS = tuple(
    field.name for field in fields(RunEntry) if field.name not in ("metrics", "best", "form", "prints")
)
"""What can be filtered by; sorted by, too, as can every metric."""

_OF_RUN = frozenset({"state", "pictures", "evaluations", "tensorboard"})
_OF_STUDY = frozenset({"data", "tables"})


def runs(
    folder: str | Path,
    *,
    sort: str = "path",
    descending: bool = False,
    kinds: Iterable[str] = (),
    filters: Iterable[str] = (),
    best: str | None = None,
    evaluation: str = "test",
    every: bool = False,
) -> list[RunEntry]:
    """List the runs and studies below a folder. Links are not followed.

    A run that is damaged or not finished has its entry, too.

    Args:
        folder: where to look; may be a run itself.
        sort: a field of ``RunEntry`` or a metric; entries without it come last.
        descending: whether the greatest comes first.
        kinds: of ``pretrain``, ``classify``, ``segment``, ``ensemble`` and ``study`` these alone.
        filters: ``key=value`` texts, the key a field of ``RunEntry``; ``*`` and ``?`` stand for any characters, and
            ``none`` for what is not known. Several of one key are alternatives.
        best: a metric; finished runs that have it come first, by test set (the one of most runs first) and
            from the best to the worst in each, where the first is marked.
        evaluation: the evaluation whose metrics are taken.
        every: whether to list the runs inside studies, too.

    Returns:
        One entry a run or study.

    Raises:
        RunError: there is no such folder.
        ConfigError: an unknown key, kind or metric.
    """
    root = Path(folder)
    if not root.is_dir():
        what = "is a file" if root.exists() else "there is no such folder"
        raise RunError(f"{root}: {what}; name the folder that the runs lie in")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", evaluation):
        raise ConfigError(f"--evaluation {evaluation}: this is no name of an evaluation, such as test")
    wanted = _kinds(kinds)
    keep = _conditions(filters)
    listed = [entry for entry in _entries(root, evaluation, every) if entry is not None]
    found = [entry for entry in _told_apart(listed) if (not wanted or entry.kind in wanted) and keep(entry)]
    metrics = list(dict.fromkeys(name for entry in found for name in entry.metrics))
    if found:
        _known(sort, "--sort", (*FIELDS, *metrics))
    found.sort(key=lambda entry: _natural(entry.path))
    found = _sorted(found, lambda entry: _value(entry, sort), descending)
    if best is None or not found:
        return found
    _known(best, "--best", metrics)
    return _ranked(found, best)


def notes_on(entries: Sequence[RunEntry], metric: str | None = None) -> list[str]:
    """Return what a reader of the list has to know to read it rightly.

    Args:
        entries: as ``runs`` returned them.
        metric: by which they are sorted or ranked, if by one.
    """
    notes = []
    levels = sorted({entry.level for entry in entries if entry.level is not None})
    if len(levels) > 1:
        notes.append(
            f"the intervals are of several levels: {', '.join(f'{100 * level:g} %' for level in levels)}"
        )
    if metric is None:
        return notes
    ranked = [entry for entry in entries if takes_part(entry, metric)]
    sets = list(dict.fromkeys(entry.test_set for entry in ranked))
    if len(sets) > 1:
        notes.append(
            f"these runs were evaluated on {len(sets)} different test sets (other images, labels or classes): values "
            f"of {metric} can be compared within one of them alone"
        )
    if any(test_set is None for test_set in sets):
        notes.append(
            "of test set ? the split is not known, so its runs may have been evaluated on different images"
        )
    for name in (name for name in sets if name is not None):
        forms = {entry.form for entry in ranked if entry.test_set == name and entry.form is not None}
        if len(forms) > 1:
            notes.append(
                f"in test set {letters(entries, metric)[name]} images are stored in {len(forms)} forms (sizes …): "
                "that they are the same images is known from their names, division and counts of labels alone"
            )
    if seen := [entry.path for entry in ranked if entry.transductive]:
        notes.append(f"held-out images were seen in the pretraining of {_listed(seen)}")
    if seen := [entry.path for entry in ranked if entry.training_images]:
        notes.append(f"training images are among the evaluated ones of {_listed(seen)}")
    runs = [entry for entry in entries if entry.kind != "study"]
    if without := len(runs) - len(ranked):
        notes.append(f"{without} of {len(runs)} runs have no {metric}, or are damaged, and take no part")
    return notes


def letters(entries: Iterable[RunEntry], metric: str) -> dict[str, str]:
    """Return a short name for every test set of a ranking by a metric, in the order of the list: A, B … Z, AA."""
    ranked = (entry.test_set for entry in entries if takes_part(entry, metric))
    sets = dict.fromkeys(test_set for test_set in ranked if test_set is not None)
    return {name: _letter(number) for number, name in enumerate(sets)}


def takes_part(entry: RunEntry, metric: str) -> bool:
    """Return whether a run is ranked by a metric: it is finished and has a value."""
    return entry.state == "finished" and entry.value(metric) is not None


def _letter(number: int) -> str:
    return (_letter(number // 26 - 1) if number >= 26 else "") + chr(ord("A") + number % 26)


@dataclass(frozen=True)
class _Folder:
    """A folder with something in it to list; ``error``: it cannot be read."""

    place: Path
    path: str
    files: frozenset[str] = frozenset()
    error: OSError | None = None

    @property
    def is_run(self) -> bool:
        return "model.json" in self.files or "config.yaml" in self.files

    @property
    def is_study(self) -> bool:
        return "study.yaml" in self.files


def _entries(root: Path, evaluation: str, every: bool) -> Iterator[RunEntry | None]:
    """Yield an entry for every run, study, and folder that cannot be read; None for what only looked like one."""
    study: _Folder | None = None
    steps = 0
    for folder in _folders(root):
        inside = study is not None and (study.path == "." or folder.path.startswith(f"{study.path}/"))
        if study is not None and not inside:
            yield study_entry(study.place, study.path, study.files, steps)
            study = None
        if folder.error is not None:
            reason = f"the folder cannot be read: {(folder.error.strerror or str(folder.error)).lower()}"
            yield RunEntry(folder.path, state="damaged", reason=reason)
        elif study is not None:
            steps += "model.json" in folder.files
            if folder.place.name == "shift":
                steps += sum(name.endswith(".json") for name in folder.files)
            if every and folder.is_run:
                yield run_entry(folder.place, folder.path, folder.files, evaluation)
        elif folder.is_study:
            study, steps = folder, 0
        elif folder.is_run:
            yield run_entry(folder.place, folder.path, folder.files, evaluation)
        elif "results.json" in folder.files:  # of a study that was copied without its runs
            yield study_entry(folder.place, folder.path, folder.files, None)
    if study is not None:
        yield study_entry(study.place, study.path, study.files, steps)


def _folders(root: Path) -> Iterator[_Folder]:
    """Yield the folder and all below it, each before what it holds; hidden ones and image stores are passed over."""
    left = [(root, ".")]
    while left:
        place, path = left.pop()
        files, folders = set(), []
        try:
            with os.scandir(place) as inside:
                for item in inside:
                    if item.is_dir(follow_symlinks=False):
                        folders.append(item.name)
                    else:
                        files.add(item.name)
        except FileNotFoundError:  # it was removed while the list was made
            continue
        except OSError as error:
            yield _Folder(place, path, error=error)
            continue
        if "store.json" in files:
            continue
        here = _Folder(place, path, frozenset(files))
        yield here
        passed = (_OF_RUN if here.is_run else frozenset()) | (_OF_STUDY if here.is_study else frozenset())
        for name in sorted(folders, reverse=True):
            if name not in passed and not name.startswith("."):
                below = name if path == "." else f"{path}/{name}"
                left.append((place / name, below))


def _kinds(kinds: Iterable[str]) -> set[str]:
    wanted = set(kinds)
    for kind in sorted(wanted - set(KINDS)):
        raise ConfigError(f"--kind {kind}: choose of {', '.join(KINDS)}")
    return wanted


def _conditions(filters: Iterable[str]) -> Callable[[RunEntry], bool]:
    """Return what tells whether an entry passes all filters.

    Raises:
        ConfigError: a filter of another form, or an unknown key.
    """
    wanted: dict[str, list[str]] = {}
    for text in filters:
        key, equals, value = text.partition("=")
        if not equals:
            raise ConfigError(f"--filter {text}: write it as key=value, for example encoder=vit_*")
        _known(key, "--filter", FIELDS)
        wanted.setdefault(key, []).append(value)

    def passes(entry: RunEntry) -> bool:
        return all(
            any(fnmatchcase(text, value) for text in _texts(getattr(entry, key)) for value in values)
            for key, values in wanted.items()
        )

    return passes


def _texts(value: object) -> list[str]:
    """Return what a filter compares with: every name of several, yes and no, and none for what is not known."""
    if isinstance(value, tuple):
        return [str(each) for each in value] or ["none"]
    if isinstance(value, bool):
        return ["yes", "true"] if value else ["no", "false"]
    return ["none" if value is None else str(value)]


def _known(name: str, option: str, names: Sequence[str]) -> None:
    if name in names:
        return
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    offered = f"there are {', '.join(names)}" if names else "no run here has a metric"
    advice = f"did you mean {near[0]!r}?" if near else offered
    raise ConfigError(f"{option} {name}: unknown here; {advice}")


def _value(entry: RunEntry, key: str) -> Any:
    """Return what an entry is sorted by; None where it has none."""
    if key not in FIELDS:
        return entry.value(key)
    value = getattr(entry, key)
    if isinstance(value, tuple):
        value = ", ".join(value) or None
    return _natural(value) if isinstance(value, str) else value


def _natural(text: str) -> list[tuple[int, int, str]]:
    """Return a key by which seed2 comes before seed10."""
    return [
        (0, int(part), "") if part.isdecimal() else (1, 0, part)
        for part in re.split(r"(\d{1,18})", text)
        if part
    ]


def _sorted(
    entries: Sequence[RunEntry], value: Callable[[RunEntry], Any], descending: bool
) -> list[RunEntry]:
    """Sort; equal ones keep their order, and those without a value come last."""
    known = [entry for entry in entries if value(entry) is not None]
    unknown = [entry for entry in entries if value(entry) is None]
    return sorted(known, key=value, reverse=descending) + unknown


def _ranked(entries: Sequence[RunEntry], metric: str) -> list[RunEntry]:
    """Put the runs of the largest test set first, the best first in each, and mark it; the others come last."""
    groups: dict[str | None, list[RunEntry]] = {}
    for entry in entries:
        if takes_part(entry, metric):
            groups.setdefault(entry.test_set, []).append(entry)
    made = []
    for test_set, group in sorted(groups.items(), key=lambda item: (item[0] is None, -len(item[1]))):
        ordered = _sorted(group, lambda entry: entry.value(metric), metric not in LOWER_IS_BETTER)
        top = ordered[0].value(metric) if test_set is not None else None
        made += [replace(entry, best=True) if entry.value(metric) == top else entry for entry in ordered]
    return made + [entry for entry in entries if not takes_part(entry, metric)]


def _told_apart(entries: Sequence[RunEntry]) -> list[RunEntry]:
    """Give evaluations of one division different test sets where the images themselves are not the same.

    The fingerprint of stored images also changes with the form they are stored in, so those of one form are
    compared: where two of these differ, the images or their labels do.
    """
    seen: dict[tuple[str | None, str | None], set[tuple[str, ...]]] = {}
    for entry in entries:
        if entry.prints and entry.form is not None:
            seen.setdefault((entry.test_set, entry.form), set()).add(entry.prints)
    differ = {test_set for (test_set, _), prints in seen.items() if len(prints) > 1}
    return [
        replace(entry, test_set=digest(" ".join((entry.test_set, *entry.prints))))
        if entry.test_set is not None and entry.test_set in differ
        else entry
        for entry in entries
    ]


def _listed(paths: Sequence[str]) -> str:
    more = f" and {len(paths) - 3} more" if len(paths) > 3 else ""
    return f"{', '.join(paths[:3])}{more}"
