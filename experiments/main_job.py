"""The main job on real chest X-rays: few labels, with and without pretraining.

    python experiments/main_job.py tune  --data DATA --work RUNS
    python experiments/main_job.py run   --data DATA --work RUNS
    python experiments/main_job.py table --data DATA --work RUNS

``RUNS`` must hold the pretrained runs ``gmml`` and ``mae`` (docs/results/main-job.md has the commands).
Every initialisation is tuned alike, on validation AUROC: a grid of learning rates at 50 and at 500 labels,
then three times the steps with the best of them; and of every run the best of ten steps is kept. Nothing is
chosen on test images. A run that is there already is not repeated, so the script goes on where it was
stopped; ``--inits scratch mae`` does a part.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path

RESULTS = Path(__file__).resolve().parent.parent / "docs" / "results"
CONFIGURATION = RESULTS / "main-job"

TASKS = {"pneumonia": "kermany", "tuberculosis": "shenzhen"}
INITS = ("scratch", "gmml", "mae")
BUDGETS = (20, 50, 100, 500)
SEEDS = (0, 1, 2, 3, 4)
TUNING_SEED = 100
TUNED_AT = {20: 50, 50: 50, 100: 50, 500: 500}
RATES = (2e-4, 5e-4, 1.5e-3)
STEPS = (150, 450)


@dataclass(frozen=True)
class Job:
    """One fine-tuning run."""

    task: str
    init: str
    labels: int
    seed: int
    lr: float
    steps: int

    def folder(self, work: Path) -> Path:
        """Return the run's folder."""
        name = f"{self.task}-{self.init}-{self.labels}-seed{self.seed}-lr{self.lr:g}-steps{self.steps}"
        return work / "finetuned" / name

    def validated(self, work: Path) -> float:
        """Return the validation AUROC of the step that was kept."""
        card = json.loads((self.folder(work) / "model.json").read_text())
        return float(card["training"]["selected_value"])


def train(job: Job, data: Path, work: Path) -> str:
    """Fine-tune one run, unless it is there."""
    import torch

    from scanprior import api
    from scanprior.run import Run

    torch.set_num_threads(1)
    logging.getLogger("lightning_fabric").setLevel(logging.ERROR)
    out = job.folder(work)
    if not Run.finished(out):
        api.finetune(
            data / TASKS[job.task],
            out=out,
            parent=None if job.init == "scratch" else work / job.init,
            config=CONFIGURATION / "finetune.yaml",
            options={
                "labels.count": job.labels,
                "labels.seed": job.seed,
                "engine.seed": job.seed,
                "engine.lr": job.lr,
                "engine.steps": job.steps,
                "engine.layer_decay": 1.0 if job.init == "scratch" else 0.75,
            },
            overwrite=True,
        )
        for state in (out / "state").glob("*"):
            if state.is_file():
                state.unlink()
    if (
        job.task == "pneumonia"
        and job.seed != TUNING_SEED
        and not (out / "evaluations" / "nih.json").exists()
    ):
        _evaluate_elsewhere(out, data, work)
    return out.name


def _evaluate_elsewhere(out: Path, data: Path, work: Path) -> None:
    """Evaluate on the images of nih_half that no pretraining saw."""
    from scanprior import api

    api.evaluate(
        out, data=work / "nih-rest.csv", name="nih", label_map={"no_finding": "normal"},
        settings=[f"data.root={data / 'nih_half'}", "evaluation.resamples=200"],
    )  # fmt: skip


def write_rest_of_nih(data: Path, work: Path) -> None:
    """Write the table of the nih_half images that are in no pretraining."""
    import pandas as pd

    used = pd.read_parquet(work / "mae" / "data.parquet")
    seen = set(used.loc[used["source"] == "nih_half", "image"])
    table = pd.read_csv(data / "nih_half" / "labels.csv", dtype=str)
    table[~table["image"].isin(seen)].to_csv(work / "nih-rest.csv", index=False)


def rate_jobs(inits: Sequence[str] = INITS) -> list[Job]:
    """Return the grid of learning rates."""
    return [
        Job(task, init, labels, TUNING_SEED, lr, STEPS[0])
        for labels in sorted(set(TUNED_AT.values()))
        for task in TASKS
        for init in inits
        for lr in RATES
    ]


def steps_jobs(work: Path, inits: Sequence[str] = INITS) -> list[Job]:
    """Return the longer runs, each with the best learning rate of the grid."""
    return [replace(job, steps=STEPS[1]) for job in best_of(rate_jobs(inits), work).values()]


def best_of(jobs: Iterable[Job], work: Path) -> dict[tuple[str, str, int], Job]:
    """Return the job of the best validation AUROC by task, initialisation and labels."""
    best: dict[tuple[str, str, int], Job] = {}
    for job in jobs:
        place = (job.task, job.init, job.labels)
        if place not in best or job.validated(work) > best[place].validated(work):
            best[place] = job
    return best


def chosen(work: Path, inits: Sequence[str] = INITS) -> dict[tuple[str, str, int], Job]:
    """Return the job whose learning rate and steps are used, by task, initialisation and tuned budget."""
    return best_of([*rate_jobs(inits), *steps_jobs(work, inits)], work)


def final_jobs(work: Path, inits: Sequence[str] = INITS) -> list[Job]:
    """Return the runs of the table, seed by seed."""
    tuned = chosen(work, inits)
    return [
        replace(tuned[task, init, TUNED_AT[labels]], labels=labels, seed=seed)
        for seed in SEEDS
        for labels in BUDGETS
        for task in TASKS
        for init in inits
    ]


def run_all(jobs: list[Job], data: Path, work: Path, workers: int) -> None:
    """Train the jobs, two at a time on two cores."""
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        futures = [pool.submit(train, job, data, work) for job in jobs]
        for number, future in enumerate(futures, 1):
            logging.info("%d/%d %s", number, len(jobs), future.result())


def main() -> None:
    """Run a step."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("step", choices=("tune", "run", "table"))
    parser.add_argument("--data", type=Path, required=True, help="folder with kermany, shenzhen, nih_half")
    parser.add_argument("--work", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--inits", nargs="+", choices=INITS, default=list(INITS))
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    data, work = arguments.data.resolve(), arguments.work.resolve()
    inits = arguments.inits
    if arguments.step == "table":
        from main_job_table import write_table

        write_table(work, final_jobs(work), chosen(work), RESULTS)
        return
    write_rest_of_nih(data, work)
    if arguments.step == "tune":
        run_all(rate_jobs(inits), data, work, arguments.workers)
        run_all(steps_jobs(work, inits), data, work, arguments.workers)
    else:
        run_all(final_jobs(work, inits), data, work, arguments.workers)


if __name__ == "__main__":
    main()
