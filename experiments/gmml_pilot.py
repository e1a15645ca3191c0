"""What GMML needs at 64 px: short pretrainings of equal length, judged by a linear probe on held-out folds.

    python experiments/gmml_pilot.py --data DATA --work RUNS [--workers 2]

Every variant is trained on the images of the main job (docs/results/main-job) for the same number of
encoded images. Then a logistic regression on the frozen features of the labelled training and validation
images, in five folds of patients; AUROC of the held-out folds with intervals over patients, and paired
differences from the published setting. No test image takes part.
"""

from __future__ import annotations

import argparse
import json
import logging
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

RESULTS = Path(__file__).resolve().parent.parent / "docs" / "results" / "main-job"
SOURCES = ("kermany", "shenzhen", "nih_half")
PROBED = {"shenzhen": "tuberculosis", "kermany": "pneumonia"}
EPOCHS, SEED, RESAMPLES = 3.0, 0, 2000

_OURS = {"objective.align": "patch", "objective.target_norm": "patch"}
VARIANTS: dict[str, dict[str, Any]] = {
    "published": {},
    "blocks aligned to patches": {"objective.align": "patch"},
    "targets normalised by patch": {"objective.target_norm": "patch"},
    "both (ours)": _OURS,
    "ours, learning rate 3e-3": {**_OURS, "engine.lr": 3e-3},
    "ours, learning rate 7e-4": {**_OURS, "engine.lr": 7e-4},
    "ours, learning rate 3e-4": {**_OURS, "engine.lr": 3e-4},
    "ours, two views": {**_OURS, "objective.views": 2},
    "ours, up to 0.9 hidden": {**_OURS, "objective.max_replace": 0.9},
    "ours, no alien fill": {**_OURS, "objective.alien_replace": 0.0},
    "ours, 7e-4 and up to 0.9": {**_OURS, "objective.max_replace": 0.9, "engine.lr": 7e-4},
    "ours, 3e-4 and up to 0.9": {**_OURS, "objective.max_replace": 0.9, "engine.lr": 3e-4},
}
BASE = {
    "objective.views": 1, "objective.align": "pixel", "objective.target_norm": "none", "engine.lr": 1.5e-3,
    "engine.warmup_epochs": 1.0, "engine.seed": SEED, "pictures": 1,
}  # fmt: skip


def train(name: str, data: Path, work: Path) -> Path:
    """Pretrain a variant, unless it is there; return its run folder."""
    import torch

    from scanprior import api
    from scanprior.run import Run

    torch.set_num_threads(1)
    out = work / "pilot" / name.replace(" ", "-").replace(",", "")
    options = {**BASE, **VARIANTS[name]}
    # two views are two encoded images
    options["engine.epochs"] = EPOCHS / options["objective.views"]
    if not Run.finished(out):
        api.pretrain(
            [data / source for source in SOURCES], out=out, objective="gmml", config=RESULTS / "gmml.yaml",
            options=options, overwrite=True,
        )  # fmt: skip
    return out


def predictions(folder: Path | None, data: Path, source: str) -> pd.DataFrame:
    """Return held-out predictions of a linear probe on the features of a run; None = random weights."""
    import torch
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedGroupKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    from scanprior.api.models import load_encoder
    from scanprior.api.settings import pretrain_config
    from scanprior.api.sources import load
    from scanprior.config import load_yaml
    from scanprior.data.loader import evaluation_batches
    from scanprior.data.transforms import Preprocessing
    from scanprior.encoders import create_encoder
    from scanprior.engine import Reporter
    from scanprior.run import Run

    config = pretrain_config("gmml", load_yaml(RESULTS / "gmml.yaml"))
    images = load([data / source], config.data, Reporter(), learn="labels")
    rows = np.sort(np.concatenate([images.rows("train"), images.rows("val")]))
    if folder is None:
        preprocessing = images.preprocessing(config.data, images.rows("train"))
        torch.manual_seed(SEED)
        encoder = create_encoder(config.encoder, size=preprocessing.size, channels=1).eval()
    else:
        run = Run.open(folder)
        encoder, preprocessing = load_encoder(run), Preprocessing.model_validate(run.card["preprocessing"])
    with torch.no_grad():
        made = [encoder(batch).pooled for batch in evaluation_batches(images.store, rows, preprocessing, 256)]
    features = torch.cat(made).numpy()
    table = images.frame.iloc[rows].reset_index(drop=True)[["image", "patient", "label"]]
    classes = sorted(table["label"].unique())
    probability = np.zeros((len(table), len(classes)))
    folds = StratifiedGroupKFold(5, shuffle=True, random_state=SEED)
    for train_rows, held_out in folds.split(features, table["label"], table["patient"]):
        probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=2000))
        probe.fit(features[train_rows], table["label"].to_numpy()[train_rows])
        probability[held_out] = probe.predict_proba(features[held_out])
    for number, name in enumerate(classes):
        table[f"prob:{name}"] = probability[:, number]
    return table


def judge(tables: dict[str, pd.DataFrame]) -> list[dict[str, Any]]:
    """Return AUROC of every variant, and its paired difference from the published setting."""
    from scanprior.evaluation import Ranking, groups_of, percentile_interval, positive_of, resample_weights

    first = next(iter(tables.values()))
    groups = groups_of(first)[0]
    count = int(groups.max()) + 1
    positive = positive_of(sorted(first["label"].unique()), None)
    rankings = {
        name: Ranking(table["label"] == positive, table[f"prob:{positive}"]) for name, table in tables.items()
    }

    def values(weights: np.ndarray) -> dict[str, np.ndarray]:
        return {name: ranking.auroc(weights) for name, ranking in rankings.items()}

    whole = values(np.ones((1, len(groups))))
    blocks = [values(weights) for weights in resample_weights(groups, RESAMPLES, SEED)]
    drawn = {name: np.concatenate([block[name] for block in blocks]) for name in tables}
    rows = []
    for name in tables:
        row: dict[str, Any] = {
            "variant": name,
            "auroc": float(whole[name][0]),
            "images": len(groups),
            "patients": count,
        }
        row["low"], row["high"] = percentile_interval(drawn[name], count, 0.95)
        if name not in ("published", "random weights"):
            row["difference"] = float(whole[name][0] - whole["published"][0])
            spread = drawn[name] - drawn["published"]
            row["difference_low"], row["difference_high"] = percentile_interval(spread, count, 0.95)
        rows.append(row)
    return rows


def main() -> None:
    """Train what is missing, judge all, write pilot.json and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder with kermany, shenzhen, nih_half")
    parser.add_argument("--work", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    data, work = arguments.data.resolve(), arguments.work.resolve()
    with ProcessPoolExecutor(arguments.workers, mp_context=get_context("spawn")) as pool:
        futures = {name: pool.submit(train, name, data, work) for name in VARIANTS}
        folders: dict[str, Path | None] = {"random weights": None}
        for name, future in futures.items():
            folders[name] = future.result()
            logging.info("%s", folders[name])
    result: dict[str, Any] = {
        "epochs": EPOCHS,
        "seed": SEED,
        "variants": VARIANTS,
        "base": BASE,
        "probes": {},
    }
    for source, task in PROBED.items():
        tables = {name: predictions(folder, data, source) for name, folder in folders.items()}
        result["probes"][source] = judge(tables)
        print(f"\n| {source}, {task} | AUROC [95 %] | minus published |\n|---|---|---|")
        for row in result["probes"][source]:
            gain = ""
            if "difference" in row:
                gain = f"{row['difference']:+.3f} [{row['difference_low']:+.3f} to {row['difference_high']:+.3f}]"
            print(f"| {row['variant']} | {row['auroc']:.3f} [{row['low']:.3f}–{row['high']:.3f}] | {gain} |")
    (RESULTS / "pilot.json").write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
