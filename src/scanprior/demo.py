"""``demo``: the whole path on phantoms, in minutes.

Synthetic radiographs of two sites are written, checked, pretrained on without their labels, and
fine-tuned with few labels against the same network from scratch and against the encoder in the box;
all are evaluated on held-out patients of the first site and, untouched, on the second. The numbers
are real; the images are not.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pandas as pd

from scanprior import api
from scanprior.api.pointing_game import pointing_sentences
from scanprior.console import ConsoleReporter, clock
from scanprior.data.check_view import render
from scanprior.data.phantom import PhantomConfig, write_finding_table, write_phantoms
from scanprior.engine import Reporter
from scanprior.run import EXPLANATIONS, Run

LABELS = 150
PATIENTS = 1400

_NETWORK = {
    "data.size": 64,
    "data.store_size": 64,
    "data.standardize": "image",
    "encoder.name": "vit_tiny_patch16_224",
    "encoder.patch_size": 8,
    "encoder.depth": 4,
    "encoder.embed_dim": 128,
    "encoder.num_heads": 4,
}
# The published corruption with two of our own changes, which a short training on small images profits
# from: blocks aligned to patches, and targets of mean 0 and variance 1 in each patch.
_PRETRAINING = {
    **_NETWORK,
    "objective.align": "patch",
    "objective.target_norm": "patch",
    "objective.views": 1,
    "encoder.drop_path": 0.0,
    "engine.epochs": 30,
    "engine.batch_size": 32,
    "engine.lr": 2e-3,
    "engine.warmup_epochs": 1,
    "engine.weight_decay": 0.05,
    "engine.weight_decay_end": 0.05,
    "augment.preset": "chest_xray_mild",
}
_FINETUNING = {
    "labels.count": LABELS,
    "engine.steps": 200,
    "engine.batch_size": 32,
    "engine.lr": 1e-3,
    "encoder.drop_path": 0.0,
    "augment.preset": "chest_xray_mild",
    "data.label_columns": ["label"],
}


def run_demo(out: Path, seed: int = 0, reporter: Reporter | None = None) -> Path:
    """Run the demo; return the path of the report.

    Args:
        out: folder to write; an earlier demo there is replaced.
        seed: key of every random decision.
        reporter: shows progress.
    """
    begun = time.monotonic()
    reporter = reporter or ConsoleReporter()
    tell = reporter.note
    data = out / "phantoms"
    tell(f"1/6  drawing synthetic chest radiographs of {PATIENTS:,} made-up patients at two sites")
    sites = _draw(data, seed)
    tell(f"2/6  checking them: scanprior check {sites['a']}")
    audit = api.check(sites["a"], reporter=reporter)
    if isinstance(reporter, ConsoleReporter):
        reporter.out.print(render(audit, shown=3))
    options = {**_PRETRAINING, "engine.seed": seed}
    tell(f"3/6  pretraining without labels: scanprior pretrain {sites['a']} --objective gmml")
    base = api.pretrain(
        sites["a"],
        out=out / "pretrained",
        objective="gmml",
        options=options,
        overwrite=True,
        reporter=reporter,
    )
    tuning = {**_FINETUNING, "engine.seed": seed, "labels.seed": seed}
    tell(
        f"4/6  fine-tuning with {LABELS} labels: scanprior finetune {sites['a']} --from {base.path} --labels {LABELS}"
    )
    tuned = api.finetune(
        sites["a"], out=out / "finetuned", parent=base.path, options=tuning, overwrite=True, reporter=reporter
    )
    tell("     and the same network from scratch")
    scratch = api.finetune(
        sites["a"], out=out / "scratch", options={**_NETWORK, **tuning}, overwrite=True, reporter=reporter
    )
    tell(
        "     and the encoder in the box, a larger network that knows real radiographs: --from scanprior:cxr-tiny"
    )
    boxed = api.finetune(
        sites["a"],
        out=out / "boxed",
        parent="scanprior:cxr-tiny",
        options=tuning,
        overwrite=True,
        reporter=reporter,
    )
    tell(f"5/6  the other site, untouched: scanprior evaluate {tuned.path} --data {sites['b']}")
    for run in (tuned, scratch, boxed):
        api.evaluate(run.path, data=sites["b"], name="site-b", settings=["data.label_columns=[label]"])
    tell(f"6/6  where it looks (scanprior explain {tuned.path} --check), and the reports")
    api.sanity_check(tuned.path, reporter=reporter)
    shown = api.pointing(
        tuned.path,
        _findings(tuned, sites["a"]),
        out=tuned.path / EXPLANATIONS,
        split="all",
        classes=["abnormal"],
        reporter=reporter,
    )
    for said in pointing_sentences(shown):
        tell(f"     {said}")
    page = api.report(tuned.path)
    for run in (base, scratch, boxed):
        api.report(run.path)
    _summary({"pretrained here": tuned, "scanprior:cxr-tiny": boxed}, scratch, reporter)
    tell(f"done in {clock(time.monotonic() - begun)}; the report is {page}")
    tell("on your own data:")
    tell("  scanprior check    YOUR_FOLDER")
    tell("  scanprior pretrain YOUR_FOLDER --out runs/pre")
    tell("  scanprior finetune LABELS.csv --from runs/pre --labels 100 --out runs/ft")
    tell("  scanprior report   runs/ft")
    return page


def _findings(run: Run, site: Path) -> Path:
    """Return a table of the run's test images with a finding, and where it is."""
    used = pd.read_parquet(run.path / "data.parquet")
    tests = used.loc[used["used"] == "test", "image"]
    return write_finding_table(site, site.with_name(f"{site.name}-findings.csv"), tests)


def _draw(data: Path, seed: int) -> dict[str, Path]:
    made = {}
    for number, (site, patients) in enumerate((("a", PATIENTS), ("b", PATIENTS // 4))):
        config = PhantomConfig(patients=patients, size=96, sites=(site,), seed=2 * seed + number)
        made[site] = write_phantoms(data / f"site-{site}", config, workers=2, overwrite=True)
    return made


def _summary(runs: dict[str, Run], scratch: Run, reporter: Reporter) -> None:
    for evaluation, where in (("test", "same site"), ("site-b", "other site")):
        for name, run in runs.items():
            result = api.compare(run.path, scratch.path, evaluation=evaluation)
            row: dict[str, Any] = next(r for r in result["differences"] if r["metric"] == "auroc")
            spread = "" if row["low"] is None else f" [{row['low']:+.3f} to {row['high']:+.3f}]"
            reporter.note(
                f"AUROC with {LABELS} labels, {where}: {name} {row['first']:.3f}, from scratch {row['second']:.3f}, "
                f"difference {row['difference']:+.3f}{spread}"
            )
