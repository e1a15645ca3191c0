"""What the trainings of a study cost, as a table and against how good they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from scanprior.reporting.figures import Figure
from scanprior.reporting.formatting import duration, finite, number, plural
from scanprior.reporting.scatter import Point, scatter_chart, shape_swatch, size_text
from scanprior.reporting.study_arms import marked
from scanprior.reporting.study_tables import Row, Table
from scanprior.reporting.tables import metric_name


def cost_table(costs: Sequence[Row], results: Mapping[str, Any]) -> Table | None:
    """Return parameters, rates, memory and time of every task, init and regime; None where nothing was measured."""
    if not costs:
        return None
    regimes = any(row["regime"] is not None for row in costs)
    rows = []
    for row in costs:
        place = [
            row["task"],
            marked(row["init"], row["init"] in results.get("random", [])),
            *([row["regime"]] if regimes else []),
        ]
        if row.get("reason") is not None:
            rows.append([*place, str(row["reason"]), *["–"] * 5])
            continue
        rows.append(
            [
                *place,
                size_text(row["parameters"]),
                size_text(row["trained_parameters"]),
                _rate(row["images_per_second"]),
                _rate(row["encoded_per_second"]),
                _memory(row["peak_memory_mb"]),
                duration(row["seconds"]) if row["seconds"] is not None else "–",
            ]
        )
    header = [
        "Task", "Init", *(["Regime"] if regimes else []), "Parameters", "Trained", "Trains/s", "Encodes/s",
        "Peak memory", "Time",
    ]  # fmt: skip
    devices = ", ".join(sorted({row["device"] for row in costs if "device" in row}))
    batches = ", ".join(map(str, sorted({row["batch_size"] for row in costs if "batch_size" in row})))
    caption = (
        f"At the largest number of labels, on {devices or 'nothing'}. Trains: images a second, batch ({batches}) by "
        "median time of a few training steps, one training at a time in a process of its own on the whole machine, "
        "reading and augmenting included. Encodes: a frozen encoder without augmentation encodes every image once, and "
        "the head is trained on what is kept; a probe has no steps. Peak memory: of that process with its libraries, "
        "or what was allocated on the GPU. Time: of the training as it ran in the study, possibly beside others, "
        "validation included; mean over seeds."
    )
    return Table(caption, header, rows)


def _rate(value: object) -> str:
    exact = finite(value)
    return "–" if exact is None else f"{exact:,.0f}" if exact >= 100 else f"{exact:.3g}"


def _memory(megabytes: float) -> str:
    return f"{megabytes / 1000:.1f} GB" if megabytes >= 1000 else f"{megabytes:.0f} MB"


def cost_figures(costs: Sequence[Row], results: Mapping[str, Any]) -> list[Figure]:
    """Return quality against size, a chart a task: the first metric of its own test images, with most labels."""
    made = []
    sizes: dict[str, float] = {}
    for row in costs:  # adapters make an encoder a little larger: one size an init
        if row.get("encoder_parameters"):
            sizes[row["init"]] = min(sizes.get(row["init"], float("inf")), float(row["encoder_parameters"]))
    random = results.get("random", [])
    known = {marked(init, init in random): (place, init) for place, init in enumerate(sizes)}
    regimes = list(results.get("regimes", {})) or [None]
    for number_, (task, facts) in enumerate(results["tasks"].items()):
        rows = _measured(results, task, facts["metrics"][0])
        points = []
        for row in rows:
            if row["init"] in known and row.get("regime") in regimes:
                place, init = known[row["init"]]
                value, low, high = float(row["value"]), finite(row["low"]), finite(row["high"])
                shape = regimes.index(row.get("regime"))
                points.append(
                    Point(
                        init,
                        row.get("regime") or "",
                        sizes[init],
                        value,
                        low,
                        high,
                        place,
                        shape,
                        init in random,
                    )
                )
        if points:
            made.append(_figure(points, task, facts["metrics"][0], rows[0], f"cost{number_}"))
    return made


def _measured(results: Mapping[str, Any], task: str, metric: str) -> list[Row]:
    """Return the rows of a task's own test images with a value, of the first class, at the largest budget."""
    rows = [row for row in results["efficiency"] if row["task"] == task and row["metric"] == metric]
    rows = [
        row for row in rows if row["evaluation"] == rows[0]["evaluation"] and row["class"] == rows[0]["class"]
    ]
    most = max((row["labels_used"] for row in rows), default=0)
    return [row for row in rows if row["labels_used"] == most and finite(row["value"]) is not None]


def _figure(points: Sequence[Point], task: str, metric: str, row: Row, ident: str) -> Figure:
    said = "; ".join(f"{one.spoken} ({size_text(one.size)}): {number(one.value)}" for one in points)
    name = metric_name(metric)
    chart = scatter_chart(
        points, ident, title=f"{task}: {name} against parameters of the encoder", desc=said,
        x_label="parameters of the encoder",
    )  # fmt: skip
    shapes = {one.regime: one.shape for one in points if one.regime}
    legend = [(shape_swatch(shape), regime, "") for regime, shape in shapes.items()]
    if any(one.random for one in points):
        legend.append((shape_swatch(0, hollow=True), "hollow: random weights", ""))
    caption = (
        f"{name} with {plural(row['labels_used'], 'label')}; bars are intervals over {row['unit']}s and seeds. Points "
        "of nearly the same size stand side by side."
    )
    return Figure(f"{name}, {task}", caption, [chart], legend=legend)
