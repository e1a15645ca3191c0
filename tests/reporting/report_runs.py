"""Run folders with made-up numbers: random scores, drawn for testing the report; they measure nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score, roc_curve

GRID = np.linspace(0, 1, 101)
FINGERPRINT = "5f1c0de5a1b2c3d4"
BOOTSTRAP = "bootstrap over patients, 2000 resamples"


def round_list(values: np.ndarray) -> list[float | None]:
    return [None if not np.isfinite(v) else round(float(v), 5) for v in values]


def curves_of(truth: np.ndarray, score: np.ndarray) -> dict[str, dict[str, Any]]:
    fpr, tpr, _ = roc_curve(truth, score)
    tpr = np.interp(GRID, fpr, tpr)
    precision, recall, _ = precision_recall_curve(truth, score)
    precision = np.interp(GRID, recall[::-1], precision[::-1])
    bins = np.minimum((score * 10).astype(int), 9)
    count = np.bincount(bins, minlength=10)
    with np.errstate(invalid="ignore"):
        confidence = np.bincount(bins, score, 10) / count
        frequency = np.bincount(bins, truth, 10) / count
        half = 1.96 * np.sqrt(frequency * (1 - frequency) / count) + 0.02
    wide = 0.05 * np.sqrt(np.maximum(tpr * (1 - tpr), 0.01) / 0.25) + 0.01
    return {
        "roc": {
            "fpr": round_list(GRID),
            "tpr": round_list(tpr),
            "low": round_list(np.clip(tpr - wide, 0, 1)),
            "high": round_list(np.clip(tpr + wide, 0, 1)),
        },
        "pr": {
            "recall": round_list(GRID),
            "precision": round_list(precision),
            "low": round_list(np.clip(precision - 0.04, 0, 1)),
            "high": round_list(np.clip(precision + 0.04, 0, 1)),
            "prevalence": float(truth.mean()),
        },
        "reliability": {
            "confidence": round_list(confidence),
            "frequency": round_list(frequency),
            "count": count.tolist(),
            "low": round_list(np.clip(frequency - half, 0, 1)),
            "high": round_list(np.clip(frequency + half, 0, 1)),
        },
    }


def metric(
    name: str,
    klass: str,
    value: float | None,
    n: int,
    positives: int | None,
    *,
    how: str | None = BOOTSTRAP,
    half: float = 0.021,
    reason: str | None = None,
) -> dict[str, Any]:
    low = high = None
    if value is not None and how:
        low, high = max(value - half, 0.0), min(value + half * 0.8, 1.0)
    return {
        "metric": name,
        "class": klass,
        "value": value,
        "low": low,
        "high": high,
        "interval": how if value is not None else None,
        "n": n,
        "positives": positives,
        "reason": reason,
    }


def class_metrics(klass: str, truth: np.ndarray, score: np.ndarray, threshold: float) -> list[dict[str, Any]]:
    n, positives = len(truth), int(truth.sum())
    said = score >= threshold
    if positives == 0:
        reason = f"n/a because {klass} has no positive image in this set"
        names = ("auroc", "average_precision", "sensitivity", "f1")
        return [metric(m, klass, None, n, 0, reason=reason) for m in names] + [
            metric("specificity", klass, float((~said).mean()), n, 0)
        ]
    sensitivity = float(said[truth == 1].mean())
    specificity = float((~said[truth == 0]).mean())
    auroc = float(roc_auc_score(truth, score))
    return [
        metric("auroc", klass, auroc, n, positives),
        metric("auroc", klass, auroc, n, positives, how="DeLong", half=0.02),
        metric("average_precision", klass, float(average_precision_score(truth, score)), n, positives),
        metric("sensitivity", klass, sensitivity, n, positives),
        metric("specificity", klass, specificity, n, positives),
        metric("f1", klass, float(2 * (said & (truth == 1)).sum() / (said.sum() + positives)), n, positives),
        metric("brier", klass, float(np.mean((score - truth) ** 2)), n, positives, half=0.01),
        metric("ece", klass, 0.041, n, positives, half=0.012),
    ]


def scores(rng: np.random.Generator, truth: np.ndarray, strength: float) -> np.ndarray:
    return 1 / (1 + np.exp(-(rng.normal(0, 1.3, len(truth)) + strength * (truth - 0.5))))


def evaluation_of(
    name: str, table: pd.DataFrame, classes: list[str], task: str, **extra: Any
) -> dict[str, Any]:
    good = table[table["error"].isna()]
    metrics: list[dict[str, Any]] = []
    curves: dict[str, dict[str, Any]] = {"roc": {}, "pr": {}, "reliability": {}}
    thresholds: dict[str, Any] = {}
    positive = extra.get("positive_class")
    for klass in [positive] if positive else classes:
        truth = (
            (good["label"] == klass).to_numpy(float)
            if task == "multiclass"
            else good[f"label:{klass}"].to_numpy(float)
        )
        score = good[f"prob:{klass}"].to_numpy(float)
        known = np.isin(truth, (0, 1))
        truth, score = truth[known], score[known]
        if positive or task == "multilabel":
            thresholds[klass] = {"value": 0.47, "rule": "Youden", "chosen_on": "val"}
        metrics += class_metrics(klass, truth, score, 0.47)
        if truth.sum():
            for kind, curve in curves_of(truth, score).items():
                curves[kind][klass] = curve
    out: dict[str, Any] = {
        "name": name,
        "task": task,
        "classes": classes,
        "positive_class": None,
        "n": len(good),
        "patients": int(good["patient"].nunique()),
        "unit": "patient",
        "split": "test",
        "split_fingerprint": FINGERPRINT,
        "seed": 3,
        "thresholds": thresholds,
        "metrics": metrics,
        "curves": curves,
    }
    if not positive:
        values = [m["value"] for m in metrics if m["metric"] == "auroc" and m["interval"] == BOOTSTRAP]
        metrics.append(metric("auroc", "macro", float(np.mean(values)), len(good), None, half=0.015))
    if task == "multiclass":
        said = good[[f"prob:{c}" for c in classes]].to_numpy().argmax(1)
        true = np.array([classes.index(c) for c in good["label"]])
        counts = np.zeros((len(classes), len(classes)), int)
        np.add.at(counts, (true, said), 1)
        out["confusion"] = {"classes": classes, "counts": counts.tolist()}
        metrics.append(metric("accuracy", "all", float((said == true).mean()), len(good), None))
        metrics.append(
            metric(
                "balanced_accuracy", "macro", float(np.mean(np.diag(counts) / counts.sum(1))), len(good), None
            )
        )
        metrics.append(metric("kappa", "all", 0.742, len(good), None, half=0.05))
        metrics.append(metric("brier", "all", 0.112, len(good), None, how=None))
    return out | extra


def multiclass_table(rng: np.random.Generator, n: int, classes: list[str], strength: float) -> pd.DataFrame:
    share = np.linspace(2, 1, len(classes))
    true = rng.choice(len(classes), n, p=share / share.sum())
    logits = rng.normal(0, 1, (n, len(classes))) + strength * np.eye(len(classes))[true]
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    table = pd.DataFrame(
        {
            "image": [f"site-a/{i:05d}.png" for i in range(n)],
            "patient": [f"p{i // 2:04d}" for i in range(n)],
            "split": "test",
            "label": [classes[t] for t in true],
        }
    )
    for c, klass in enumerate(classes):
        table[f"prob:{klass}"] = p[:, c]
    table["error"] = pd.Series([None] * n, dtype=object)
    return table


def model_of(kind: str, classes: list[str], **extra: Any) -> dict[str, Any]:
    def counts(n: int) -> dict[str, Any]:
        return {"images": n, "patients": n // 2, "labels": {c: n // len(classes) for c in classes}}

    out: dict[str, Any] = {
        "format": 1,
        "kind": kind,
        "created": "2026-03-14T09:26:53Z",
        "scanprior_version": "0.1.0",
        "versions": {"python": "3.11.2", "torch": "2.14.1", "timm": "1.0.31", "numpy": "2.4.0"},
        "seed": 3,
        "encoder": {
            "name": "vit_tiny_patch16_224",
            "patch_size": 8,
            "depth": 6,
            "embed_dim": 192,
            "parameters": 2_716_032,
        },
        "objective": None,
        "task": {"name": "chest findings", "kind": "multiclass", "classes": classes},
        "preprocessing": {
            "size": 64,
            "channels": 1,
            "fit": "squash",
            "depth": 8,
            "mean": [0.4817],
            "std": [0.2366],
        },
        "parent": {"path": "runs/pre", "fingerprint": "c0ffee0123456789", "objective": "gmml"},
        "data": {
            "sources": [
                {
                    "name": "made-up",
                    "images": 5856,
                    "patients": 2790,
                    "fingerprint": "abad1dea00112233",
                    "layout": "folder per class",
                    "left_out": [
                        {"image": "train/broken 1.png", "reason": "truncated: 812 of 20,480 bytes"},
                        {"image": "train/<b>renamed</b>.png", "reason": "a text file, not an image"},
                    ],
                }
            ],
            "split": {
                "fingerprint": FINGERPRINT,
                "seed": 3,
                "group": "patient",
                "counts": {"train": counts(4200), "test": counts(624), "val": counts(1030)},
            },
            "leakage": {
                "checked": True,
                "leakage": False,
                "patients_across": 0,
                "exact_across": 0,
                "near_across": 0,
                "summary": "No patient and no duplicate is in two splits",
            },
            "labels_used": 100,
            "transductive": False,
        },
        "training": {
            "steps": 1500,
            "epochs": 60,
            "batch_size": 64,
            "seconds": 431.5,
            "images_per_second": 412.3,
            "precision": "bf16",
            "selected_step": 1100,
            "selected_by": "val auroc",
            "selected_value": 0.941,
        },
        "notes": ["All numbers in this folder are made up for a test."],
    }
    return out | extra


def write(folder: Path, model: dict[str, Any] | None, log: list[dict[str, Any]], *, config: str = "") -> Path:
    (folder / "evaluations").mkdir(parents=True)
    (folder / "pictures").mkdir()
    if model is not None:
        (folder / "model.json").write_text(json.dumps(model))
    if log:
        (folder / "metrics.jsonl").write_text("".join(json.dumps(e) + "\n" for e in log))
    text = "seed: 3\nencoder:\n  name: vit_tiny_patch16_224\n  patch_size: 8\n"
    text += "engine:\n  lr_per_256: 5.0e-4\n  epochs: 60\n"
    (folder / "config.yaml").write_text(config or text)
    return folder


def add_evaluation(folder: Path, evaluation: dict[str, Any], table: pd.DataFrame | None) -> None:
    path = folder / "evaluations" / f"{evaluation['name']}.json"
    path.write_text(json.dumps(evaluation))
    if table is not None:
        table.to_parquet(path.with_suffix(".parquet"))


def training_log(rng: np.random.Generator, steps: int, *, pretrain: bool = False) -> list[dict[str, Any]]:
    log: list[dict[str, Any]] = []
    for step in range(1, steps + 1):
        t = step / steps
        entry = {
            "step": step,
            "epoch": step * 60 // steps,
            "split": "train",
            "lr": 5e-4 * min(t * 10, 0.5 + 0.5 * np.cos(np.pi * t)),
            "loss": (0.42 if pretrain else 0.7) * np.exp(-2.2 * t) + 0.09 + rng.normal(0, 0.02),
            "images_per_second": 410 + rng.normal(0, 15),
            "data_wait": abs(rng.normal(0.02, 0.01)),
        }
        if pretrain:
            entry |= {
                "embedding_std": 0.9 - 0.25 * np.exp(-5 * t) + rng.normal(0, 0.01),
                "weight_decay": 0.04 + 0.36 * t,
            }
        log.append(entry)
        if not pretrain and step % (steps // 15) == 0:
            log.append(
                {
                    "step": step,
                    "epoch": step * 60 // steps,
                    "split": "val",
                    "loss": 0.62 * np.exp(-1.6 * t) + 0.21 + 0.06 * t * t,
                    "auroc": 0.72 + 0.22 * (1 - np.exp(-4 * t)),
                }
            )
    return log


def binary_run(folder: Path) -> Path:
    """Two evaluation sets; the second is another site without patients, with two unreadable images."""
    rng = np.random.default_rng(11)
    classes = ["normal", "pneumonia"]
    write(folder, model_of("classify", classes), training_log(rng, 1500))
    for name, n, strength, extra in (
        ("test", 624, 1.8, {}),
        (
            "other-hospital",
            441,
            0.8,
            {"split": None, "split_fingerprint": "0dd5171e0dd5171e", "patients": None, "unit": "image"},
        ),
    ):
        table = multiclass_table(rng, n, classes, strength)
        table["image"] = [f"{name}/{i:04d}.png" for i in range(n)]
        if name != "test":
            table.loc[[3, 7], "error"] = ["truncated PNG", "0 bytes"]
            table.loc[[3, 7], ["prob:normal", "prob:pneumonia"]] = np.nan
        add_evaluation(
            folder,
            evaluation_of(name, table, classes, "multiclass", positive_class="pneumonia", **extra),
            table,
        )
    return folder


def four_class_run(folder: Path) -> Path:
    rng = np.random.default_rng(12)
    classes = ["normal", "covid19", "other pneumonia", "ARDS"]
    model = model_of("classify", classes, parent=None)
    model["data"]["leakage"] = {
        "checked": True,
        "leakage": True,
        "patients_across": 4,
        "exact_across": 2,
        "near_across": 11,
        "summary": "4 patients are in train and test",
    }
    model["data"]["transductive"] = True
    write(folder, model, training_log(rng, 600))
    table = multiclass_table(rng, 313, classes, 1.5)
    add_evaluation(folder, evaluation_of("test", table, classes, "multiclass"), table)
    return folder


def multilabel_run(folder: Path) -> Path:
    """Fourteen findings; hernia has no positive, so its AUROC is n/a."""
    rng = np.random.default_rng(13)
    classes = [
        "atelectasis",
        "cardiomegaly",
        "consolidation",
        "edema",
        "effusion",
        "emphysema",
        "fibrosis",
        "hernia",
        "infiltration",
        "mass",
        "nodule",
        "pleural thickening",
        "pneumonia",
        "pneumothorax",
    ]
    model = model_of("classify", classes)
    model["task"]["kind"] = "multilabel"
    write(folder, model, training_log(rng, 900))
    n = 800
    table = pd.DataFrame(
        {
            "image": [f"study{i // 2}/image.dcm#{i % 2}" for i in range(n)],
            "patient": [f"p{i // 2:04d}" for i in range(n)],
            "split": "test",
        }
    )
    for c, klass in enumerate(classes):
        truth = (rng.random(n) < 0.02 + 0.02 * c).astype(float) if klass != "hernia" else np.zeros(n)
        table[f"prob:{klass}"] = scores(rng, truth, 1.2 + 0.15 * c)
        truth[rng.random(n) < 0.03] = np.nan
        truth[rng.random(n) < 0.02] = -1
        table[f"label:{klass}"] = truth
    table["error"] = pd.Series([None] * n, dtype=object)
    add_evaluation(folder, evaluation_of("test", table, classes, "multilabel"), table)
    return folder


def pretraining_run(folder: Path) -> Path:
    rng = np.random.default_rng(14)
    model = model_of(
        "pretrain",
        ["x"],
        task=None,
        parent=None,
        objective={"name": "gmml", "mask_ratio": 0.7, "block_size": [1, 4], "alien_ratio": 0.35, "views": 2},
    )
    del model["data"]["split"]
    model["data"]["labels_used"] = None
    model["data"]["sources"].append(
        {
            "name": "second",
            "images": 662,
            "patients": None,
            "fingerprint": "beef",
            "layout": "table",
            "left_out": 3,
        }
    )
    model["training"] = {
        "steps": 4000,
        "epochs": 50,
        "batch_size": 128,
        "seconds": 3720,
        "images_per_second": 412.3,
        "precision": "bf16",
    }
    write(folder, model, training_log(rng, 4000, pretrain=True))
    for epoch in (5, 9, 10, 50):
        pixels = rng.integers(0, 255, (120, 300), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "pictures" / f"epoch_{epoch}.png")
    return folder


def phantom_thumbnails(references: list[str]) -> list[np.ndarray | None]:
    """Soft blobs in place of images; every fifth is missing."""
    y, x = np.mgrid[-1:1:96j, -1:1:96j]
    out: list[np.ndarray | None] = []
    for i, reference in enumerate(references):
        tilt = (sum(reference.encode()) % 17) / 40
        lungs = np.exp(-(((x - 0.4) / 0.3) ** 2 + ((y + tilt) / 0.6) ** 2)) + np.exp(
            -(((x + 0.4) / 0.3) ** 2 + (y / 0.6) ** 2)
        )
        grey = np.clip(190 - 120 * lungs + 20 * np.sin(14 * y), 0, 255).astype(np.uint8)
        out.append(None if i % 5 == 4 else grey)
    return out


KINDS = {
    "binary": binary_run,
    "four": four_class_run,
    "multilabel": multilabel_run,
    "pretrain": pretraining_run,
}
