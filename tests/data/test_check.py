"""The check finds everything that was planted, and nothing that was not."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from scipy.ndimage import gaussian_filter

from scanprior.data.check import check
from scanprior.data.check_view import render
from scanprior.data.duplicates import clusters, near_pairs
from scanprior.data.manifest import Manifest
from scanprior.data.measure import measure, perceptual, pixel_digest


def scene(seed: int, size: int = 64) -> NDArray[np.uint8]:
    """A smooth structure over a shape that all scenes share, as radiographs share the thorax."""
    noise = np.random.default_rng(seed).normal(size=(size, size))
    y, x = np.mgrid[0:size, 0:size] / size - 0.5
    shared = np.exp(-((np.abs(x) - 0.22) ** 2 / 0.02 + y**2 / 0.08))
    own = gaussian_filter(noise, size / 24)
    return np.uint8(np.clip(120 + 90 * (shared - 0.5) + 20 * own / own.std(), 4, 250))


class Planted:
    """A folder of images with a table, to which doubles and faults are added by name."""

    def __init__(self, root: Path, count: int = 40) -> None:
        self.root = root
        self.rows: list[dict[str, object]] = []
        for number in range(count):
            split = ("train", "train", "val", "test")[number % 4]
            self.add(
                f"{number:03d}.png", scene(number), patient=f"p{number}", split=split, label="ab"[number % 2]
            )

    def add(self, name: str, pixels: NDArray[np.generic] | bytes, **row: object) -> None:
        if isinstance(pixels, bytes):
            (self.root / name).write_bytes(pixels)
        else:
            options = {"quality": 45} if name.endswith(".jpg") else {}
            Image.fromarray(pixels).save(self.root / name, **options)
        self.rows.append({"image": name, **row})

    def manifest(self) -> Manifest:
        return Manifest(pd.DataFrame(self.rows), self.root, ["label"], "planted", "table", "planted images")


@pytest.fixture
def planted(tmp_path: Path) -> Planted:
    return Planted(tmp_path)


def test_a_clean_set_is_clean(planted: Planted) -> None:
    audit = check(planted.manifest(), workers=0)
    assert not audit.leakage and not audit.problems
    assert not audit.exact and not audit.near and len(set(audit.clusters)) == 40
    assert audit.summary["splits"] == {"train": 20, "val": 10, "test": 10} and audit.summary["patients"] == 40


def test_images_without_a_patient_are_counted(planted: Planted) -> None:
    planted.rows[3]["patient"] = None
    planted.rows[7].pop("patient")
    (problem,) = check(planted.manifest(), workers=0).problems
    assert problem.kind == "without_patient" and problem.count == 2
    assert problem.message.startswith("2 of 40 images have no patient")
    for row in planted.rows:
        row.pop("patient", None)
    (problem,) = check(planted.manifest(), workers=0).problems
    assert problem.count == 40 and problem.message.startswith("no image has a patient")


def test_equal_pixels_are_found_in_any_format(planted: Planted) -> None:
    pixels = scene(0)
    planted.add("copy.bmp", pixels, patient="p0", split="train", label="a")
    planted.add("copy.tif", pixels, patient="p0", split="train", label="a")
    planted.add("deep.png", pixels.astype(np.uint16) * 257, patient="p0", split="train", label="a")
    planted.add("rgb.png", np.repeat(pixels[..., None], 3, axis=2), patient="p0", split="train", label="a")
    audit = check(planted.manifest(), workers=0)
    assert [group["images"] for group in audit.exact] == [
        ["000.png", "copy.bmp", "copy.tif", "deep.png", "rgb.png"]
    ]
    assert not audit.near and not audit.leakage
    assert audit.clusters.tolist() == [*range(40), 0, 0, 0, 0]


def recompressed(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=40)
    return np.asarray(Image.open(file))


COPIES: dict[str, Callable[[NDArray[np.uint8]], NDArray[np.uint8]]] = {
    "recompressed": recompressed,
    "resized": lambda pixels: np.asarray(Image.fromarray(pixels).resize((54, 58), Image.Resampling.BICUBIC)),
    "enlarged": lambda pixels: np.asarray(
        Image.fromarray(pixels).resize((150, 150), Image.Resampling.BILINEAR)
    ),
    "brighter": lambda pixels: np.uint8(np.clip(pixels * 1.1 + 15.0, 0, 255)),
    "gamma": lambda pixels: np.uint8(255 * (pixels / 255) ** 0.8),
    "inverted": lambda pixels: 255 - pixels,
    "noisy": lambda pixels: np.uint8(
        np.clip(pixels + np.random.default_rng(0).normal(0, 3, pixels.shape), 0, 255)
    ),
}


@pytest.mark.parametrize("kind", COPIES)
def test_every_planted_near_copy_is_found(planted: Planted, kind: str) -> None:
    for number in range(8):
        planted.add(
            f"copy{number}.png", COPIES[kind](scene(number)), patient=f"q{number}", split="test", label="b"
        )
    audit = check(planted.manifest(), workers=0)
    found = {tuple(pair["images"]) for pair in audit.near}
    assert found == {(f"{number:03d}.png", f"copy{number}.png") for number in range(8)}
    assert all(pair["inverted"] == (kind == "inverted") for pair in audit.near)
    # Originals 3 and 7 are in test; 0, 2, 4 and 6 are labelled "a".
    assert sum(pair["across_splits"] for pair in audit.near) == 6
    assert sum(pair["conflicting_labels"] for pair in audit.near) == 4
    assert all(pair["several_patients"] for pair in audit.near)
    assert not audit.leakage, "that they are the same is a judgement"
    assert {problem.kind for problem in audit.problems} >= {"near_across_splits", "near_conflicting_labels"}
    assert audit.clusters[40:].tolist() == list(range(8))
    assert check(planted.manifest(), workers=0, near=False).near == []


def test_planted_leakage_is_found(planted: Planted) -> None:
    planted.add("double.bmp", scene(0), patient="other", split="test", label="b")
    for number in (2, 9):
        planted.add(
            f"second{number}.png", scene(100 + number), patient=f"p{number}", split="train", label="a"
        )
    audit = check(planted.manifest(), workers=0)
    assert audit.leakage
    assert audit.patients_in_splits == [{"patient": "p2", "splits": {"train": 1, "val": 1}}]
    assert [group["across_splits"] for group in audit.exact] == [True]
    kinds = {problem.kind: problem.severity for problem in audit.problems}
    assert kinds["patients_in_splits"] == kinds["exact_across_splits"] == "leakage"
    assert kinds["exact_conflicting_labels"] == kinds["exact_several_patients"] == "warning"
    assert audit.problems[0].severity == "leakage"


def test_either_kind_of_leakage_counts(tmp_path: Path) -> None:
    for name, patient, pixels in (("patient", "p0", scene(50)), ("image", "new", scene(0))):
        root = tmp_path / name
        root.mkdir()
        planted = Planted(root, 8)
        planted.add("x.png", pixels, patient=patient, split="test", label="a")
        assert check(planted.manifest(), workers=0).leakage
        planted.rows[-1]["split"] = "train"
        assert not check(planted.manifest(), workers=0).leakage


def test_broken_and_odd_images_are_named(planted: Planted) -> None:
    whole = (planted.root / "000.png").read_bytes()
    row = {"patient": None, "split": "train", "label": "a"}
    planted.add("truncated.png", whole[: len(whole) // 2], **row)
    planted.add("empty.png", b"", **row)
    planted.add("text.png", b"no picture", **row)
    planted.rows.append({"image": "missing.png", **row})
    planted.add("black.png", np.zeros((64, 64), np.uint8), **row)
    planted.add("grey.png", np.full((64, 64), 9000, np.uint16), **row)
    planted.add(
        "dim.png",
        np.random.default_rng(0).integers(60, 62, (64, 64)).astype(np.uint8) + np.eye(64, dtype=np.uint8),
        **row,
    )
    planted.add("mask.png", np.uint8(255 * (scene(7) > 120)), **row)
    planted.add("twelve.png", scene(60).astype(np.uint16) * 16, **row)
    planted.add("dark.png", scene(61).astype(np.uint16), **row)
    planted.add("tiny.png", scene(62)[:12, :12], **row)
    audit = check(planted.manifest(), workers=0)
    assert [entry["image"] for entry in audit.unreadable] == [
        "truncated.png",
        "empty.png",
        "text.png",
        "missing.png",
    ]
    assert all(entry["reason"] and "planted" not in entry["reason"] for entry in audit.unreadable)
    assert [entry["image"] for entry in audit.blank] == ["black.png", "grey.png", "dim.png"]
    assert {entry["image"]: entry["severity"] for entry in audit.depth} == {
        "mask.png": "warning", "twelve.png": "note", "dark.png": "warning",
    }  # fmt: skip
    assert [entry["image"] for entry in audit.sizes] == ["tiny.png"]
    assert not audit.exact and not audit.near, "blank and broken images are nobody's doubles"
    assert audit.summary["readable"] == len(planted.rows) - 4
    assert not audit.leakage


def test_workers_do_not_matter_and_the_json_is_complete(tmp_path: Path) -> None:
    planted = Planted(tmp_path, 260)
    planted.add("copy.jpg", scene(5), patient="x", split="val", label="b")
    planted.add("same.bmp", scene(6), patient="y", split="test", label="b")
    planted.add("text.png", b"no picture", patient="z", split="test", label="b")
    calls: list[tuple[int, int]] = []
    inline = check(planted.manifest(), workers=0)
    spread = check(planted.manifest(), workers=1, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(done, 263) for done in range(1, 264)]
    text = json.dumps(inline.to_dict(), allow_nan=False)
    assert text == json.dumps(spread.to_dict(), allow_nan=False)
    back = json.loads(text)
    assert (
        back["leakage"] is True
        and len(back["clusters"]) == 263
        and back["near"][0]["images"] == ["005.png", "copy.jpg"]
    )
    console = Console(width=100, file=io.StringIO(), record=True)
    console.print(render(inline))
    shown = console.export_text()
    for words in ("text.png", "copy.jpg", "same.bmp", "Leakage: yes", "planted images"):
        assert words in shown


def test_label_table_counts_by_split(tmp_path: Path) -> None:
    Image.fromarray(scene(0)).save(tmp_path / "a.png")
    frame = pd.DataFrame(
        {
            "image": ["a.png"] * 5,
            "patient": ["1", "1", "2", "3", "3"],
            "split": ["train", "train", "val", None, "test"],
            "Edema": [1, 1, 0, -1, np.nan],
            "Mass": [0.0, 0.0, 0.0, 0.0, 0.0],
        }
    )
    audit = check(Manifest(frame, tmp_path, ["Edema", "Mass"], "findings"), workers=0)
    entries = {(entry["label"], entry["split"]): entry for entry in audit.labels}
    assert [split for label, split in entries if label == "Edema"] == ["all", "train", "val", "test", "none"]
    assert entries["Edema", "all"] == {
        "label": "Edema", "split": "all", "images": 2, "patients": 1, "negative": 1, "uncertain": 1, "missing": 1,
    }  # fmt: skip
    assert entries["Edema", "train"]["images"] == 2 and entries["Edema", "none"]["uncertain"] == 1
    kinds = {problem.kind for problem in audit.problems}
    assert {"single_patient", "never_present", "uncertain_labels", "missing_labels"} <= kinds
    assert audit.exact[0]["conflicting_labels"], "present and absent conflict; uncertain and missing do not"


def test_near_search_equals_comparing_all_pairs() -> None:
    random = np.random.default_rng(3)
    looks = []
    for number in range(300):
        pixels = scene(number % 90).astype(np.float64)
        pixels += gaussian_filter(random.normal(size=pixels.shape), 2) * random.choice([0, 10, 30, 60])
        look = perceptual(
            np.uint8(np.clip(pixels if random.random() < 0.8 else 255 - pixels, 0, 255))[..., None]
        )
        assert look is not None
        looks.append(look)
    hashes = np.stack([look[0] for look in looks])
    thumbnails = np.stack([look[1].ravel() for look in looks])
    found = near_pairs(hashes, thumbnails, distance=40, correlation=0.95)
    bits = np.unpackbits(hashes, axis=1)
    expected = []
    for first in range(300):
        for second in range(first + 1, 300):
            correlation = np.corrcoef(thumbnails[first], thumbnails[second])[0, 1]
            differing = int((bits[first] != bits[second]).sum())
            distance = differing if correlation > 0 else 255 - differing
            if distance <= 40 and abs(correlation) >= 0.95:
                expected.append((first, second, distance, correlation < 0))
    assert len(expected) > 50 and any(pair[3] for pair in expected)
    got = zip(found.first, found.second, found.distance, found.inverted, strict=True)
    assert [tuple(map(int, pair)) for pair in got] == [tuple(map(int, pair)) for pair in expected]


def test_clusters_join_what_is_connected() -> None:
    groups = [np.array([1, 4, 6]), np.array([2, 3])]
    assert clusters(8, groups).tolist() == [0, 1, 2, 2, 1, 5, 1, 7]
    assert clusters(3, []).tolist() == [0, 1, 2]


def test_digest_sees_shape_and_values() -> None:
    pixels = scene(1)[..., None]
    assert pixel_digest(pixels) == pixel_digest(pixels.astype(np.uint16) * 257)
    assert pixel_digest(pixels) != pixel_digest(pixels.reshape(32, 128, 1))
    changed = pixels.copy()
    changed[5, 5] ^= 1
    assert pixel_digest(pixels) != pixel_digest(changed)


def test_measure_reports_what_is_in_the_file(tmp_path: Path) -> None:
    pixels = scene(2)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    one = measure("a.png", tmp_path)
    assert (one.rows, one.columns, one.channels, one.dtype, one.source_bits) == (64, 64, 1, "uint8", 8)
    assert one.levels == len(np.unique(pixels)) and one.used_bits == int(pixels.max()).bit_length()
    assert len(one.hash) == 32 and len(one.thumbnail) == 256 and not one.blank
