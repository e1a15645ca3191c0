"""What the report says in words: verdict, alerts, warnings, the sentence to quote, and limits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from scanprior.reporting import tables
from scanprior.reporting.formatting import count, duration, finite, number, plural, scalar
from scanprior.reporting.runfiles import RunFiles, part

FEW_CASES = 10  # below this many positives or negatives an interval is called rough: our definition

Facts = list[tuple[str, str]]


def facts_of(values: Mapping[str, Any], names: Mapping[str, str] | None = None) -> Facts:
    """Return (label, text) of the known values; ``names`` picks, orders and renames."""
    chosen = names or {k: str(k).replace("_", " ").capitalize() for k in values}
    return [
        (label, count(values[k]) if k == "parameters" else scalar(values[k]))
        for k, label in chosen.items()
        if values.get(k) is not None
    ]


def chips(model: Mapping[str, Any]) -> Facts:
    """Return the few facts that stand under the headline."""
    encoder, objective = part(model, "encoder"), part(model, "objective")
    parent = part(model, "parent")
    labels = part(model, "data").get("labels_used")
    start = parent.get("objective") or ("a parent run" if parent else None)
    if isinstance(start, Mapping):
        start = start.get("name")
    chips = [
        ("Encoder", encoder.get("name")),
        ("Objective", objective.get("name")),
        ("Starts from", start),
        ("Labels used", None if labels is None else count(labels)),
        ("Seed", model.get("seed")),
        ("Made", model.get("created")),
    ]
    return [(k, str(v)) for k, v in chips if v is not None]


def verdict(run: RunFiles, evaluations: list[dict[str, Any]], kind: str) -> str:
    """Return the headline: the first evaluation's, else what training did."""
    if evaluations:
        return f"{tables.headline_text(evaluations[0])} {tables.evaluated_on(evaluations[0])}"
    losses = [
        v for e in run.log if e.get("split", "train") == "train" and (v := finite(e.get("loss"))) is not None
    ]
    course = f"training loss {losses[0]:.3g} → {losses[-1]:.3g}" if losses else "no loss was logged"
    sources = tables.sources_of(run.model)
    used = finite(part(run.model, "data").get("images_used"))
    images = used or sum(finite(s.get("images")) or 0 for s in sources)
    on = f" on {plural(images, 'image')}" if images else ""
    if kind == "pretrain":
        name = part(run.model, "objective").get("name") or "an objective that was not recorded"
        epochs = finite(part(run.model, "training").get("epochs"))
        span = "" if epochs is None else f" for {epochs:.4g} epoch{'' if epochs == 1 else 's'}"
        return f"Pretrained with {name}{on}{span}: {course}"
    return f"Not evaluated yet{on}: {course}"


def alerts(model: Mapping[str, Any], evaluations: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """Return (ok | warn | bad, text): the leakage result, and a missing evaluation."""
    leak = part(model, "data", "leakage")
    summary = str(leak.get("summary") or "")
    found = [
        ("Patients across splits", "patients_across"),
        ("exact duplicates across splits", "exact_across"),
        ("near-duplicates across splits", "near_across"),
    ]
    counts = ", ".join(f"{label}: {count(leak[k])}" for label, k in found if leak.get(k) is not None)
    detail = " ".join(
        filter(
            None,
            [summary if not summary or summary.endswith(".") else summary + ".", counts and f"({counts}.)"],
        )
    )
    if leak.get("leakage"):
        alerts = [("bad", f"Leakage between splits was found. {detail} The numbers below are too good.")]
    elif leak.get("near_across"):
        alerts = [("warn", f"Images that look the same stand in more than one split. {detail}")]
    elif leak.get("checked"):
        alerts = [("ok", f"No leakage between splits was found. {detail}".strip())]
    elif model:
        alerts = [("warn", f"Leakage between splits was not checked. {detail}".strip())]
    else:
        alerts = []
    if model.get("kind") == "classify" and not evaluations:
        alerts.append(("warn", "This run has not been evaluated: run scanprior evaluate on it."))
    return alerts


def data_facts(model: Mapping[str, Any]) -> Facts:
    """Return how the data were split and how many labels were used."""
    data, split = part(model, "data"), part(model, "data", "split")
    facts = [
        ("Split fingerprint", split.get("fingerprint")),
        ("Split seed", split.get("seed")),
        ("Kept together", split.get("group")),
        ("Test is fold", f"{split['fold']} of {split['folds']}" if split.get("folds") else None),
        ("Labels used for training", None if data.get("labels_used") is None else count(data["labels_used"])),
        ("Transductive", "yes" if data.get("transductive") else "no" if "transductive" in data else None),
    ]
    return [(k, scalar(v)) for k, v in facts if v is not None]


def training_facts(training: Mapping[str, Any]) -> Facts:
    """Return how long and how fast the training was, and which step was selected."""
    speed, selected = finite(training.get("images_per_second")), finite(training.get("selected_step"))
    facts = [
        (k.capitalize(), count(training[k]))
        for k in ("steps", "batch_size")
        if finite(training.get(k)) is not None
    ]
    facts = [(k.replace("_", " "), v) for k, v in facts]
    if finite(training.get("epochs")) is not None:
        facts.insert(1, ("Epochs", scalar(training["epochs"])))
    if training.get("precision"):
        facts.append(("Precision", str(training["precision"])))
    if finite(training.get("seconds")) is not None:
        facts.append(("Time", duration(training["seconds"])))
    if speed is not None:
        facts.append(("Images per second", f"{speed:,.0f}" if speed >= 10 else f"{speed:.2g}"))
    if selected is not None:
        value = training.get("selected_value")
        of = f" ({training.get('selected_by') or 'the last step'}" + (
            f" {number(value)})" if finite(value) is not None else ")"
        )
        facts.append(("Selected step", count(selected) + of))
    return facts


def adapt_facts(adapt: Mapping[str, Any]) -> Facts:
    """Return how many parameters were trained, of the encoder and of what stands on it."""
    facts = []
    for where in ("encoder", "head"):
        numbers = part(adapt, where)
        if finite(numbers.get("trained")) is not None:
            text = f"{count(numbers['trained'])} of {count(numbers.get('of'))}"
            facts.append((f"Parameters trained, {where}", text))
    if facts:
        begin = adapt.get("from_block")
        said = f"{adapt.get('train')}{'' if begin is None else f', from block {begin}'}"
        facts[0] = (facts[0][0], f"{facts[0][1]} ({said})")
    return facts


def warnings_about(evaluation: Mapping[str, Any], table: pd.DataFrame | None) -> list[str]:
    """Return what a careful reader would hold against this evaluation."""
    said = []
    split, name = evaluation.get("split"), evaluation.get("name")
    if split in ("train", "val"):
        said.append(
            f"This is the {split} split: the model was {'fitted' if split == 'train' else 'selected'} on it, "
            "so these numbers are too good."
        )
    unit = evaluation.get("unit")
    if unit not in (None, "patient") and evaluation.get("patients") is None:
        said.append(
            f"Patients are unknown here: intervals treat {unit}s as independent and are too narrow "
            "if a patient has several."
        )
    own = [
        k
        for k, t in (evaluation.get("thresholds") or {}).items()
        if isinstance(t, Mapping) and t.get("chosen_on") and t["chosen_on"] in (split, name)
    ]
    if own:
        said.append(
            f"Thresholds were chosen on this very set ({', '.join(own)}): sensitivity, specificity, F1 "
            "and accuracy are too good."
        )
    few: dict[str, float] = {}
    for m in tables.metric_entries(evaluation):
        n, positives = finite(m.get("n")), finite(m.get("positives"))
        if n is not None and positives is not None and m.get("class") not in tables.WHOLE_SET:
            fewest = min(positives, n - positives)
            if fewest < FEW_CASES:
                few[str(m.get("class"))] = fewest
    if few:
        listed = ", ".join(f"{k} ({count(v)})" for k, v in few.items())
        said.append(
            f"Fewer than {FEW_CASES} positive or negative images: {listed}. Their intervals are rough."
        )
    if table is not None and "error" in table.columns and (failed := int(table["error"].notna().sum())):
        said.append(
            f"{plural(failed, 'image')} could not be read and got no score; see the list of images left out."
        )
    return said


def quote(model: Mapping[str, Any], evaluations: list[dict[str, Any]]) -> str:
    """Return a sentence that carries the headline number together with its protocol."""
    entry = tables.headline(evaluations[0]) if evaluations else None
    if entry is None or finite(entry.get("value")) is None:
        return ""
    first = evaluations[0]
    parts = [
        f"interval: {entry['interval']}" if entry.get("interval") else "no interval",
        f"split fingerprint {first['split_fingerprint']}" if first.get("split_fingerprint") else "",
        f"seed {model['seed']}" if model.get("seed") is not None else "",
        f"{count(part(model, 'data')['labels_used'])} labels"
        if part(model, "data").get("labels_used") is not None
        else "",
        f"scanprior {model['scanprior_version']}" if model.get("scanprior_version") else "",
    ]
    return (
        f"{tables.headline_text(first, 3)} {tables.evaluated_on(first)}; "
        + "; ".join(filter(None, parts))
        + "."
    )


def limits(model: Mapping[str, Any], evaluations: list[dict[str, Any]], has_images: bool) -> list[str]:
    """Return what the numbers of this page do not say."""
    said = []
    if evaluations:
        said.append(
            "Intervals show the chance of having drawn these patients. They do not show the spread over "
            "training seeds, label errors, or another hospital’s images."
        )
        said.append(
            "Thresholds, and with them sensitivity and specificity, hold for the prevalence and the "
            "equipment of the set they were chosen on."
        )
        if len(evaluations) == 1:
            said.append("Only one set was evaluated: nothing here says how the model does at another site.")
    else:
        said.append(
            "A low pretraining loss is no proof of use: judge the encoder by fine-tuning and evaluation."
        )
    if part(model, "data").get("transductive"):
        said.append(
            "Test or validation images took part in pretraining (without labels); a new hospital’s will not have."
        )
    if has_images:
        said.append("This file holds medical images: share it as you would share them.")
    said.append("Public data sets have their own citation and licence: cite them, too.")
    return said
