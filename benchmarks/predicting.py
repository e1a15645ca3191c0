"""``predict`` from files, against its two halves alone: reading and decoding, and the network.

The halves have what ``predict`` has: the same reading processes and forms, the same network and images, the trust
columns too. The network alone takes whole batches of 64, every layer on all threads, as PyTorch does by itself;
``predict`` computes parts of 16 side by side, so it can be the quicker one. A prediction that lost nothing otherwise
would take as long as the slower half. All three in turns, images/s.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from statistics import median

from benchmarks.made_images import photographs
from benchmarks.measure import Row, Settings, Side, seconds
from scanprior import api
from scanprior.api.models import load_predictor
from scanprior.api.reading import default_workers, read_all, stacked
from scanprior.api.references import image_references
from scanprior.api.trust import Trust
from scanprior.run import Run

NETWORKS = {"tf_efficientnet_lite0": (128, 1024), "convnext_tiny": (224, 256)}
"""A quick network, beside which reading counts, and a slow one, with their sizes and how many images they predict."""

BATCH = 64


def run(settings: Settings) -> list[Row]:
    """Measure both networks."""
    networks = {"test_convnext.r160_in1k": (32, 24)} if settings.quick else NETWORKS
    rows = []
    for name, (size, count) in networks.items():
        folder, what = photographs(settings.folder / f"predicting-{count}", count)
        rows.append(_row(settings, folder, what, name, size))
    return rows


def classifier(folder: Path, images: Path, network: str, size: int) -> Run:
    """Fine-tune for a moment: a run with all that goes with one."""
    table = images / "labels.csv"
    files = [Path(reference).relative_to(images) for reference in image_references(images)[:400]]
    lines = [f"{path},{'ab'[n % 2]}" for n, path in enumerate(files)]
    table.write_text("\n".join(["image,label", *lines]) + "\n")
    options = {
        "encoder.name": network, "data.size": size, "engine.steps": 2, "engine.batch_size": 8,
        "evaluation.resamples": 100, "augment.preset": "none",
    }  # fmt: skip
    return api.finetune(table, out=folder / "run", options=options)


def _row(settings: Settings, images: Path, what: str, network: str, size: int) -> Row:
    run = classifier(settings.folder / f"predicting-{network}", images, network, size)
    references = image_references(images)
    model, trust = load_predictor(run), Trust.open(run)
    readings = list(read_all(references, model.forms, workers=default_workers()))
    batches = [
        stacked(readings[start : start + BATCH], model.forms) for start in range(0, len(readings), BATCH)
    ]

    def reading() -> None:
        for _ in read_all(references, model.forms, workers=default_workers()):
            pass

    def network_alone() -> None:
        for batch in batches:
            found = model.answers(batch)
            trust.columns(model.combined(found.members), found.descriptors)

    def whole() -> None:
        api.predict(run.path, references, batch_size=BATCH)

    sides: dict[str, Callable[[], None]] = {"predict": whole, "reading": reading, "network": network_alone}
    taken: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(settings.repeats + 1):
        for name, work in sides.items():
            spent = seconds(work)
            if number:  # the first round warms up
                taken[name].append(len(references) / spent)
    slower = min(("reading", "network"), key=lambda name: median(taken[name]))
    pairs = [a / b for a, b in zip(taken["predict"], taken[slower], strict=True)]
    return Row(
        f"predict {network}, {size} px, from files", median(pairs), target=0.9,
        ours=Side("predict", "images/s", taken["predict"]),
        reference=Side(f"{slower} alone, the slower half", "images/s", taken[slower]),
        spread=(min(pairs), max(pairs)), note=what,
        details={name: median(values) for name, values in taken.items()},
    )  # fmt: skip
