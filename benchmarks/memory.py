"""Peak memory of ``prepare``, ``pretrain`` and ``predict`` with ten times the images.

Each runs as the command line does, in a process of its own; the number is the peak resident memory of
its largest process. The images are 224 px, so that ten times as many are some 200 MB of pixels more: a
program that held them would show it. ``pretrain`` takes the same number of steps both times, enough
for every image of the larger set, with a small network; ``predict`` writes a table of its probabilities.
"""

from __future__ import annotations

import sys
from pathlib import Path

from benchmarks.made_images import phantom_images, write_images
from benchmarks.measure import Row, Settings, Side, cost
from benchmarks.predicting import classifier

SIZE, BATCH = 224, 64


def run(settings: Settings) -> list[Row]:
    """Measure the commands with 1x and 10x images."""
    home = settings.folder / "memory"
    few = settings.of(400, 8)
    counts = (few, 10 * few)
    files = phantom_images(counts[1], SIZE)
    peaks: dict[str, list[float]] = {"prepare": [], "pretrain": [], "predict": []}
    model = home / "classifier"
    for count in counts:
        source, store = home / f"images-{count}", home / f"store-{count}"
        write_images(source, files[:count], ".jpg")
        peaks["prepare"].append(_peak(home, "prepare", str(source), "--out", str(store), "--size", str(SIZE)))
        peaks["pretrain"].append(_pretrain(home, store, -(-counts[1] // BATCH)))
        if not model.exists():
            classifier(model, source, "convnext_atto", 96)
            (source / "labels.csv").unlink()
        table = home / f"{store.name}.csv"
        peaks["predict"].append(_peak(home, "predict", str(model / "run"), str(source), "--out", str(table)))
    return [_row(command, found, counts) for command, found in peaks.items()]


def _pretrain(home: Path, store: Path, steps: int) -> float:
    small = ("encoder.patch_size=32", "encoder.depth=1", "objective.decoder_dim=32", "objective.decoder_depth=1",
             "objective.decoder_heads=2")  # fmt: skip
    changes = [word for setting in small for word in ("--set", setting)]
    return _peak(
        home, "pretrain", str(store), "--out", str(home / f"run-{store.name}"), "--objective", "mae",
        "--size", str(SIZE), "--steps", str(steps), "--batch-size", str(BATCH), *changes,
    )  # fmt: skip


def _peak(home: Path, *arguments: str) -> float:
    command = [sys.executable, "-m", "scanprior", *arguments]
    return cost(command, SCANPRIOR_CACHE=str(home / "cache")).peak_mb


def _row(command: str, peaks: list[float], counts: tuple[int, int]) -> Row:
    sides = [Side(f"{count:,} images", "MB", [peak]) for count, peak in zip(counts, peaks, strict=True)]
    more = (counts[1] - counts[0]) * SIZE**2 / 1e6
    return Row(
        f"{command}: peak memory, 10x images", peaks[1] / peaks[0], target=1.1, sense="<=",
        ours=sides[1], reference=sides[0], note=f"{more:,.0f} MB more pixels, one process each",
    )  # fmt: skip
