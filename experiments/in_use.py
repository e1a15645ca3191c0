"""What a classifier in use says of images it was not made for, and where it looks: docs/results/in-use.md.

    python experiments/in_use.py --data DATA --weights efficientnet_lite0.pth --work RUNS

Trains three networks (radiographs of kermany, ultrasounds of busi, phantoms), predicts every set with ``predict``,
and measures: how well the outlier score tells other kinds of images, how many of its own it flags, how often the
conformal sets hold the truth on each set and at each site, whether the maps point at what was drawn or outlined,
and whether they change when the weights are made random.
A run that is there already is not repeated. Writes ``docs/results/in-use/results.json`` and prints the tables.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from scanprior import api
from scanprior.data.phantom import PhantomConfig, write_finding_table, write_phantoms
from scanprior.evaluation import delong
from scanprior.evaluation.conformal import prediction_sets
from scanprior.evaluation.conformal_sets import ConformalSets
from scanprior.evaluation.intervals import binomial_interval
from scanprior.evaluation.labels import groups_of
from scanprior.evaluation.set_coverage import coverage as set_coverage

RESULTS = Path(__file__).resolve().parent.parent / "docs" / "results" / "in-use"
LEVEL = 0.95

SHARED = {
    "encoder.name": "tf_efficientnet_lite0", "engine.steps": 400, "engine.batch_size": 32, "engine.lr": 1.5e-3,
    "engine.weight_decay": 0.05, "engine.layer_decay": 0.8, "engine.warmup_fraction": 0.1, "data.size": 128,
    "data.store_size": 144,
}  # fmt: skip
RUNS: dict[str, dict[str, Any]] = {
    "kermany": {"augment.preset": "chest_xray"},
    "busi": {
        "augment.preset": "ultrasound", "data.split.group": "near_duplicates",
        "data.split.fractions": [0.6, 0.2, 0.2],
    },
    "phantoms": {"augment.preset": "chest_xray_mild", "engine.steps": 600, "data.size": 96, "data.store_size": 96},
}  # fmt: skip
OTHERS = {
    "kermany": ("nih_half", "covid_cc", "busi", "ham10000"),
    "busi": ("kermany", "ham10000", "isic_masks"),
}
"""For each run the sets that it was not made for."""


def main() -> None:
    """Train, predict, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("data", "weights", "work"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    chosen = parser.parse_args()
    runs = {name: trained(name, chosen) for name in RUNS}
    found = {
        "outliers": [row for name in OTHERS for row in outliers(name, runs[name], chosen)],
        "coverage": coverage(runs, chosen.data),
        "coverage_of_thresholds": [thresholds_alone(name, runs[name]) for name in ("kermany", "busi")],
        "pointing": [
            *pointing("busi", runs["busi"]),
            *pointing("phantoms", runs["phantoms"], findings(runs, chosen)),
        ],
        "randomised": {name: api.sanity_check(run)["members"] for name, run in runs.items()},
        "predicted": predicted(runs["kermany"], chosen),
        "cards": {
            name: json.loads((path / "model.json").read_text())["trust"] for name, path in runs.items()
        },
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "results.json").write_text(json.dumps(found, indent=1) + "\n")
    show(found)


def trained(name: str, chosen: argparse.Namespace) -> Path:
    """Return a run, trained unless it is there."""
    out = Path(chosen.work) / name
    if (out / "model.json").is_file():
        return out
    options = {**SHARED, **RUNS[name], "encoder.weights": str(chosen.weights)}
    source = chosen.data / name
    if name == "phantoms":
        source = Path(chosen.work) / "drawn"
        if not source.exists():
            write_phantoms(source, PhantomConfig(patients=600, size=128, inverted=0))
    api.finetune(source, out=out, options=options, overwrite=True)
    return out


def outliers(name: str, run: Path, chosen: argparse.Namespace) -> list[dict[str, Any]]:
    """Return for the run's own test images and for every other set how many are flagged, and the AUROC of the score."""
    table = pd.read_parquet(run / "data.parquet")
    files = [str(chosen.data / name / image) for image in table.loc[table["used"] == "test", "image"]]
    own = api.predict(run, files)
    rows = [{"run": name, "images": f"{name}, own test", **_flagged(own), "auroc": None}]
    for other in OTHERS[name]:
        said = api.predict(run, chosen.data / other / "labels.csv")
        said = said[said["error"].isna()]
        score = np.concatenate([own["outlier_score"], said["outlier_score"]])
        truth = np.repeat([False, True], [len(own), len(said)])
        area = delong(truth, score)
        low, high = area.interval(LEVEL)
        rows.append(
            {"run": name, "images": other, **_flagged(said), "auroc": float(area.auroc[0]), "auroc_low": low,
             "auroc_high": high}
        )  # fmt: skip
    return rows


def _flagged(said: pd.DataFrame) -> dict[str, Any]:
    hits, count = int(said["outlier"].astype(bool).sum()), len(said)
    low, high = binomial_interval(hits, count, LEVEL)
    return {"n": count, "flagged": hits / count, "flagged_low": low, "flagged_high": high}


def coverage(runs: dict[str, Path], data: Path) -> list[dict[str, Any]]:
    """Return how often the conformal sets hold the truth: on the runs' own tests and at other hospitals."""
    own = {
        name: json.loads((runs[name] / "evaluations" / "test.json").read_text())
        for name in ("kermany", "busi")
    }
    nih = api.evaluate(
        runs["kermany"], data=data / "nih_half", split="all", label_map={"no_finding": "normal"}, name="nih"
    )
    covid = api.evaluate(
        runs["kermany"], data=data / "covid_cc" / "labels.csv", split="all", name="covid",
        label_map=dict.fromkeys(("covid19", "other_pneumonia", "ards"), "pneumonia") | {"no_finding": "normal"},
    )  # fmt: skip
    of_set = {
        "kermany, own test": own["kermany"], "nih_half": nih, "covid_cc": covid, "busi, own test": own["busi"],
    }  # fmt: skip
    return [{"images": name, **row} for name, result in of_set.items() for row in result["sets"]]


def thresholds_alone(name: str, run: Path) -> dict[str, Any]:
    """Return the coverage on the run's own test images where sets may be empty: that of the threshold itself.

    Sets of a run are never empty, so that a network which is right more often than wanted covers more than wanted.
    """
    card = json.loads((run / "model.json").read_text())
    names, (threshold,) = card["task"]["classes"], ConformalSets.of_card(card["trust"]["sets"]).found
    table = pd.read_parquet(run / "predictions.parquet")
    table = table[(table["split"] == "test") & table["error"].isna()]
    found = table[[f"prob:{each}" for each in names]].to_numpy(np.float64)
    labels = table["label"].map(names.index).to_numpy(np.int64)
    groups, unit = groups_of(table)
    measured = set_coverage(prediction_sets(found, threshold), labels, groups, unit=unit, level=LEVEL)
    return {"images": f"{name}, own test", **{key: measured[key] for key in measured if key != "classes"}}


def findings(runs: dict[str, Path], chosen: argparse.Namespace) -> Path:
    """Return a table of the phantoms' test images that have a finding, with where it is."""
    used = pd.read_parquet(runs["phantoms"] / "data.parquet")
    tests = used.loc[used["used"] == "test", "image"]
    return write_finding_table(chosen.work / "drawn", chosen.work / "findings.csv", tests)


def pointing(name: str, run: Path, data: Path | None = None) -> list[dict[str, Any]]:
    """Return how often the maps point into what was drawn or outlined, beside random maps."""
    made = []
    for method in ("gradcam", "layercam", "occlusion"):
        known: dict[str, Any] = {} if data is None else {"classes": ["abnormal"], "split": "all"}
        result = api.pointing(run, data, method=method, **known)
        made += [
            {
                "run": name,
                "n": result["n"],
                "patients": result["patients"],
                **row,
                "interval": row["method"],
                "method": method,
            }
            for row in result["metrics"]
        ]
    return made


def predicted(run: Path, chosen: argparse.Namespace) -> list[dict[str, Any]]:
    """Predict whole sets from their files; return how many were answered and flagged."""
    made = []
    for name in ("kermany", "nih_half", "covid_cc", "dicom"):
        table = api.predict(run, chosen.data / name, out=Path(chosen.work) / f"{name}.csv", features=None)
        good = table[table["error"].isna()]
        made.append(
            {"images": name, "n": len(table), "errors": int(table["error"].notna().sum()), **_flagged(good)}
        )
    return made


def show(found: dict[str, Any]) -> None:
    """Print the tables as Markdown."""
    print("\n| run | images | n | flagged | AUROC of the score |\n|---|---|---|---|---|")
    for row in found["outliers"]:
        area = "–" if row["auroc"] is None else _span(row, "auroc")
        print(f"| {row['run']} | {row['images']} | {row['n']:,} | {_span(row, 'flagged')} | {area} |")
    print("\n| images | of | n | coverage | classes in a set |\n|---|---|---|---|---|")
    for row in found["coverage"]:
        place = row["of"] if row["site"] is None else f"{row['of']}, {row['site']}"
        if row["coverage"] is None:
            continue
        span = f"{row['coverage']:.3f}" + (
            "" if row["low"] is None else f" [{row['low']:.3f}, {row['high']:.3f}]"
        )
        print(f"| {row['images']} | {place} | {row['n']:,} | {span} | {row['mean_size']:.2f} |")
    print("\n| images | n | coverage where sets may be empty | empty |\n|---|---|---|---|")
    for row in found["coverage_of_thresholds"]:
        span = f"{row['coverage']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"
        print(f"| {row['images']} | {row['n']:,} | {span} | {row['empty']:.3f} |")
    print("\n| run | method | metric | n | value | by chance | difference |\n|---|---|---|---|---|---|---|")
    for row in found["pointing"]:
        more = "–"
        if row["difference_low"] is not None:
            more = f"{row['difference']:+.3f} [{row['difference_low']:+.3f}, {row['difference_high']:+.3f}]"
        print(
            f"| {row['run']} | {row['method']} | {row['metric']} | {row['n']:,} | {row['value']:.3f} | "
            f"{row['chance']:.3f} | {more} |"
        )
    print(
        "\n| run | method | made random | rank correlation | structural similarity |\n|---|---|---|---|---|"
    )
    for name, (member,) in found["randomised"].items():
        for stage in member["stages"]:
            print(
                f"| {name} | {member['method']} | {stage['stage']} | {stage['spearman']:.2f} | {stage['ssim']:.2f} |"
            )
    print("\n| images | n | errors | flagged |\n|---|---|---|---|")
    for row in found["predicted"]:
        print(f"| {row['images']} | {row['n']:,} | {row['errors']} | {_span(row, 'flagged')} |")


def _span(row: dict[str, Any], name: str) -> str:
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    return f"{row[name]:.3f}" + (f" [{low:.3f}, {high:.3f}]" if np.isfinite([low, high]).all() else "")


if __name__ == "__main__":
    main()
