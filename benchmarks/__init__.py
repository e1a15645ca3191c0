"""Side-by-side measurements: what scanprior costs, against a bare loop or a peer doing the same work.

``python -m benchmarks`` runs them all, each against its reference in the same run, in turns (A B A B),
and prints every ratio with its target. One module a benchmark; each has ``run(settings) -> list[Row]``.
"""

from __future__ import annotations

NAMES = (
    "startup", "reading", "corruption", "drifts", "bootstrap", "surfaces", "mae_step", "guidance",
    "masked_convnext", "selective_scan", "features", "finetuning", "pretraining", "segmentation", "studies", "export",
    "predicting", "serving",
    "memory",
)  # fmt: skip
"""The benchmarks, in the order they run."""
