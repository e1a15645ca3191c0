"""Where the weights of a run began, through all stages behind it, and under which licence those were given."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scanprior.catalogue import all_listed, listed
from scanprior.errors import ScanpriorError
from scanprior.reporting.runfiles import part
from scanprior.run import RELEASED, Run


@dataclass(frozen=True)
class Origin:
    """First weights of a network.

    Attributes:
        what: in words, without paths.
        licence: as their authors give it; None = not known here.
    """

    what: str
    licence: str | None


def origins(run: Run) -> list[Origin]:
    """Return where the weights of a run began, each once; of an ensemble those of all members."""
    found = [origin for card in _stages(run) for origin in _origins(card)]
    return list(dict.fromkeys(found)) or [Origin("first values drawn at random", None)]


def known_licence(run: Run) -> str | None:
    """Return the licences of the first weights as one text; None where one of them is unknown, or there are none."""
    licences = [origin.licence for origin in origins(run)]
    if None in licences:
        return None
    return ", ".join(dict.fromkeys(filter(None, licences)))


def _stages(run: Run) -> Iterator[Mapping[str, Any]]:
    """Yield the cards of a run and of all runs behind it that are still there."""
    if run.is_ensemble:
        for place in run.members():
            yield from _stages(Run.open(place))
        return
    yield run.card
    parent = part(run.card, "parent").get("path")
    if not parent:
        return
    if str(parent).startswith(RELEASED):
        yield {"released": str(parent)}
        return
    try:
        yield from _stages(Run.open(Path(str(parent))))
    except ScanpriorError:
        yield {"gone": True}


def _origins(card: Mapping[str, Any]) -> Iterator[Origin]:
    if "released" in card:
        yield Origin(f"{card['released']}, which comes with scanprior", "Apache-2.0")
        return
    if "gone" in card:
        yield Origin("an earlier run that is not there any more", None)
        return
    encoder = part(card, "encoder")
    name = str(encoder.get("name"))
    entry = listed(name)
    if encoder.get("pretrained"):
        licence = entry.licence if entry is not None else _timms(name)
        yield Origin(f"published weights of {name}", licence)
    elif encoder.get("weights"):
        file = Path(str(encoder["weights"])).name
        named = [each for each in all_listed() if each.file == file and file != "model.safetensors"]
        if entry is not None and entry in named:
            named = [entry]
        licence = named[0].licence if len({each.licence for each in named}) == 1 else None
        yield Origin(f"a file of weights, {file}", licence)


def _timms(name: str) -> str | None:
    """Return the licence that timm names for weights of its own."""
    import timm

    config = timm.get_pretrained_cfg(name, allow_unregistered=True)
    return getattr(config, "license", None) or None
