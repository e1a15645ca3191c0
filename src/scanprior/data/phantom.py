"""Phantoms: procedural chest radiographs, made of formulas and seeded numbers, never of people.

They are the data of the demo and the tests. Anatomy and findings are drawn by patient; positioning,
exposure and the extent of findings by image. Every draw is keyed by (seed, purpose, patient or
image), so image i is the same whatever else is made, in whatever order, by however many workers.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field as Option

from scanprior.config import Config
from scanprior.data import phantom_anatomy as anatomy
from scanprior.data import phantom_devices as devices
from scanprior.data.phantom_anatomy import Anatomy
from scanprior.data.phantom_detector import BONE, SITES, SOFT_TISSUE, expose
from scanprior.data.phantom_fields import Draws, Field, Flags, Plane, chord, ellipse
from scanprior.data.phantom_findings import FINDINGS, add_findings, enlarge_heart
from scanprior.errors import DataError

MOST_IMAGES = 3  # of one patient; image position = patient * MOST_IMAGES + number
_FOLDERS = ("images", "masks", "findings")
_CHUNK_PIXELS = 16 * 128**2  # rendered together by write_phantoms: larger fields leave the processor's cache


class Prevalence(Config):
    """Share of patients with each finding, in [0, 1], independent of one another."""

    consolidation: float = Option(0.2, ge=0, le=1, description="patchy opacity with air bronchograms")
    effusion: float = Option(0.15, ge=0, le=1, description="fluid in one costophrenic angle")
    cardiomegaly: float = Option(0.15, ge=0, le=1, description="cardiothoracic ratio above 0.5")
    nodule: float = Option(0.12, ge=0, le=1, description="one small round mass")


class PhantomConfig(Config):
    """A collection of phantoms."""

    patients: int = Option(200, ge=1, description="number of patients")
    images_per_patient: int = Option(
        MOST_IMAGES, ge=1, le=MOST_IMAGES, description="each patient has 1 to this many images, drawn"
    )
    size: int = Option(128, ge=32, le=1024, description="height and width of the images in pixels")
    sites: tuple[Literal["a", "b"], ...] = Option(
        ("a", "b"), min_length=1, description="hospitals; a patient belongs to one of them"
    )
    prevalence: Prevalence = Option(
        default_factory=Prevalence, description="share of patients with each finding"
    )
    seed: int = Option(0, description="seed of every draw")
    label_noise: float = Option(0.0, ge=0, le=1, description="share of images labelled wrongly")
    inverted: float = Option(0.3, ge=0, le=1, description="share of site b's images stored inverted")
    device_confounding: float = Option(
        0.0, ge=0, le=1, description="site b: how surely leads mean disease; 0 = unrelated, 1 = always"
    )


@dataclass(frozen=True)
class Phantoms:
    """A batch of phantoms.

    Attributes:
        images: uint8, (B, 1, S, S).
        lungs: bool, (B, S, S); True where lung is seen beside heart and mediastinum.
        findings: name to bool (B, S, S); empty where the finding is absent.
        table: one row an image: image, patient, site, age, sex, view, label, one 0/1 column a finding, mask.
    """

    images: NDArray[np.uint8]
    lungs: Flags
    findings: dict[str, Flags]
    table: pd.DataFrame


def positions(config: PhantomConfig) -> NDArray[np.int64]:
    """Return the image positions (images,) int64 of the whole collection, patient by patient."""
    patients = np.arange(config.patients, dtype=np.int64)
    draws = Draws(config.seed, "patient", patients)
    counts = 1 + (draws.uniform("images")[:, 0] * config.images_per_patient).astype(np.int64)
    number = np.arange(MOST_IMAGES)
    return np.asarray((patients[:, None] * MOST_IMAGES + number)[number < counts[:, None]], dtype=np.int64)


def tabulate(config: PhantomConfig, places: NDArray[np.int64]) -> pd.DataFrame:
    """Return the label table of the images at ``places``; ``true:`` columns are findings before label noise.

    The label noise records an abnormal image as normal, and a normal one with a finding drawn at random.
    """
    places = np.asarray(places, dtype=np.int64)
    patient, image = _draws(config, places)
    erect = image.chance("erect", 0.8)
    site = np.asarray(config.sites)[(patient.uniform("site")[:, 0] * len(config.sites)).astype(np.int64)]
    names = [
        f"p{number:05d}-{index + 1}" for number, index in zip(*np.divmod(places, MOST_IMAGES), strict=True)
    ]
    truth = np.stack(
        [patient.chance(name, getattr(config.prevalence, name)) for name in FINDINGS], axis=1
    ).astype(np.int64)
    wrong = image.chance("label noise", config.label_noise)
    invented = np.eye(len(FINDINGS), dtype=np.int64)[
        (image.uniform("wrong finding")[:, 0] * len(FINDINGS)).astype(int)
    ]
    noisy = np.where(truth.any(axis=1, keepdims=True), 0, invented)
    recorded = np.where(wrong[:, None], noisy, truth)
    columns: dict[str, object] = {
        "image": [f"images/{name}.png" for name in names],
        "patient": [name.split("-")[0] for name in names],
        "site": site,
        "age": (20 + 70 * patient.uniform("age", 2).mean(axis=1)).astype(np.int64),
        "sex": np.where(patient.chance("female", 0.5), "F", "M"),
        "view": np.where(erect, "PA", "AP"),
        "label": np.where(recorded.any(axis=1), "abnormal", "normal"),
        **{name: recorded[:, index] for index, name in enumerate(FINDINGS)},
        "mask": [f"masks/{name}.png" for name in names],
        **{f"true:{name}": truth[:, index] for index, name in enumerate(FINDINGS)},
    }
    return pd.DataFrame(columns)


def render(config: PhantomConfig, places: NDArray[np.int64], *, findings: bool = True) -> Phantoms:
    """Render the images at ``places``, in that order.

    Args:
        config: the collection.
        places: int64, (B,), some of ``positions(config)``. Working memory is about 30 float32 planes an image,
            so render a large collection in parts.
        findings: False renders the same films of the same patients in health (the table stays as it is).
    """
    table = tabulate(config, places)
    patient, image = _draws(config, places)
    present = {name: table[f"true:{name}"].to_numpy(dtype=np.bool_) & findings for name in FINDINGS}
    ages = table["age"].to_numpy(dtype=np.float32)[:, None, None]
    body = anatomy.draw_anatomy(
        patient, image, ages, (table["sex"] == "F").to_numpy(), (table["view"] == "PA").to_numpy()
    )
    body = enlarge_heart(body, present["cardiomegaly"], patient, image)
    plane = _pose(config.size, image)
    absorbed, lungs, masks = _absorb(body, plane, present, patient, image)
    sites = [SITES[name] for name in table["site"]]
    sick = table["label"].to_numpy() == "abnormal"
    absorbed = absorbed + _devices(config, body, plane, image, table, sick)
    framed = np.asarray([site.framed_marker for site in sites])
    absorbed = absorbed + 4 * devices.marker(config.size, image, framed)
    inverted = image.chance("inverted", config.inverted) & np.asarray([site.inverted for site in sites])
    level = expose(absorbed, SOFT_TISSUE * 2 * body.depth, sites, image, inverted)
    pixels = np.rint(level * 255).astype(np.uint8)[:, None]
    return Phantoms(pixels, lungs, masks, table.loc[:, ~table.columns.str.startswith("true:")])


def _draws(config: PhantomConfig, places: NDArray[np.int64]) -> tuple[Draws, Draws]:
    places = np.asarray(places, dtype=np.int64)
    return Draws(config.seed, "patient", places // MOST_IMAGES), Draws(config.seed, "image", places)


def _pose(size: int, image: Draws) -> Plane:
    shift = (image.between("shift x", -0.05, 0.05), image.between("shift y", -0.06, 0.06))
    return Plane(size, image.between("scale", 1.0, 1.2), image.between("lean", -0.05, 0.05), shift)


def _absorb(
    body: Anatomy, plane: Plane, present: dict[str, Flags], patient: Draws, image: Draws
) -> tuple[Field, Flags, dict[str, Flags]]:
    """Return absorption (B, S, S), lung masks and finding masks."""
    heart = anatomy.heart_shadow(body, plane)
    middle = anatomy.mediastinum(body, plane)
    air, field = anatomy.lung_fields(body, plane)
    seen = field * (heart == 0) * (middle == 0)
    opacity, masks = add_findings(body, plane, present, seen, patient, image)
    masks["cardiomegaly"] = (heart > 0) & present["cardiomegaly"][:, None, None]
    masks = {name: masks[name] for name in FINDINGS}
    air = np.maximum(air - np.maximum(1.35 * body.depth * heart, middle), 0)
    mesh = (
        1 - 0.03 * patient.texture("mesh", 40, plane.size) - 0.03 * patient.texture("lobules", 14, plane.size)
    )
    taper = np.clip(air / (0.5 * body.depth), 0, 1) * np.clip(1 - 2.5 * heart, 0.12, 1)
    blood = anatomy.vessel_tree(body, plane, patient) * taper * (1 - 1.9 * opacity.bronchi)
    air = (
        0.8 * air * mesh * (1 - opacity.filled) + anatomy.airways(body, plane) + _stomach(body, plane, image)
    )
    fat = 1 + 0.025 * patient.texture("soft tissue", 8, plane.size)
    tissue = anatomy.trunk(body, plane) * fat + blood + opacity.solid * field
    bone = anatomy.skeleton(body, plane, patient.texture("bone", 48, plane.size))
    absorbed = SOFT_TISSUE * np.maximum(tissue - air, 0) + BONE * bone
    return absorbed.astype(np.float32), seen > 0.5, masks


def _stomach(body: Anatomy, plane: Plane, image: Draws) -> Field:
    """Depth of the gas bubble under the left diaphragm, in most images."""
    wide, flat = image.between("bubble width", 0.06, 0.16), image.between("bubble height", 0.04, 0.09)
    centre = (image.between("bubble x", 0.24, 0.4), body.dome + 0.09 + flat)
    there = image.chance("bubble", 0.6)[:, None, None]
    return 0.3 * chord(ellipse(plane, centre, (wide, flat))) * there


def _devices(
    config: PhantomConfig, body: Anatomy, plane: Plane, image: Draws, table: pd.DataFrame, sick: Flags
) -> Field:
    """Absorption of leads, lines and pacemakers; only leads at site b can be made to follow the label."""
    bedside = (table["view"] == "AP").to_numpy()
    worn = image.chance("leads", np.where(bedside, 0.5, 0.06))
    follows = (table["site"] == "b").to_numpy() & image.chance("confounded", config.device_confounding)
    chosen = {
        devices.leads: np.where(follows, sick, worn),
        devices.central_line: image.chance("line", np.where(bedside, 0.3, 0.04)),
        devices.pacemaker: image.chance("pacemaker", 0.05),
    }
    total = np.zeros_like(plane.x)
    for make, rows in chosen.items():
        if rows.any():
            total[rows] += make(body.rows(rows), plane.rows(rows), image.rows(rows))
    return total


_SOURCE = """# Synthetic chest radiographs (phantoms)

**These are not real images and show no real patient.** Every picture was computed from formulas and
seeded random numbers by `scanprior.data.phantom`. Names, ages, sexes, sites and findings are invented.
They are made to demonstrate and test software. Nothing measured on them says how well a model
works on patients; do not publish or use them as clinical images.

- {images} images of {patients} patients, {size} x {size} pixels, 8-bit grey
- `labels.csv`: one row an image; the findings are {findings}
- `masks/`: lung masks; `findings/`: masks of the findings present
- licence: as the program that made them

Made with: `{config}`
"""


def write_phantoms(out: Path, config: PhantomConfig, *, workers: int = 0, overwrite: bool = False) -> Path:
    """Write a collection as a folder of PNG files with a label table, and return the folder.

    ``SOURCE.md`` comes first; ``labels.csv`` comes last, so a folder that has it is complete.

    Args:
        out: a new or empty folder.
        config: the collection.
        workers: threads beside the caller's; the files do not depend on it.
        overwrite: whether phantoms that were drawn there before may go, finished or not.

    Raises:
        DataError: the folder holds something already, or cannot be written.
    """
    out = Path(out)
    if overwrite and _drawn_before(out):
        shutil.rmtree(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out}: not an empty folder; name a new one for the phantoms")
    places = positions(config)
    step = max(1, _CHUNK_PIXELS // config.size**2)
    chunks = [places[start : start + step] for start in range(0, len(places), step)]
    try:
        for name in _FOLDERS:
            (out / name).mkdir(parents=True, exist_ok=True)
        (out / "SOURCE.md").write_text(_describe(config, len(places)), encoding="utf-8")
        with ThreadPoolExecutor(max(workers, 1)) as pool:
            tables = list(pool.map(lambda chunk: _write(out, render(config, chunk)), chunks))
        pd.concat(tables, ignore_index=True).to_csv(out / "labels.csv", index=False)
    except OSError as error:
        raise DataError(
            f"{out}: the phantoms cannot be written ({error.strerror}); free or name another folder"
        ) from error
    return out


def write_finding_table(folder: Path, out: Path, images: Iterable[str] | None = None) -> Path:
    """Write a table of the images with a finding, whose ``mask`` is that of all their findings; return its path.

    Args:
        folder: of ``write_phantoms``; the masks are written to its ``findings``, one an image.
        out: the CSV file, in a folder that ``folder`` lies in.
        images: which of them, as in ``labels.csv``; None = all.
    """
    table = pd.read_csv(folder / "labels.csv").drop(columns="mask")
    if images is not None:
        table = table[table["image"].isin(set(images))]
    place, masks = folder.relative_to(out.parent), {}
    for image in table["image"]:
        parts = sorted((folder / "findings").glob(f"{Path(image).stem}-*.png"))
        if parts:
            whole = np.any([np.asarray(Image.open(part)) > 0 for part in parts], axis=0)
            masks[image] = str(place / "findings" / Path(image).name)
            Image.fromarray(whole).save(out.parent / masks[image])
    table = table[table["image"].isin(masks)]
    named = table.assign(
        image=[str(place / image) for image in table["image"]], mask=[masks[i] for i in table["image"]]
    )
    named.to_csv(out, index=False)
    return out


def _drawn_before(out: Path) -> bool:
    """Whether a folder holds phantoms, finished or not, and nothing else."""
    source = out / "SOURCE.md"
    ours = source.is_file() and source.read_bytes().startswith(_SOURCE.splitlines()[0].encode())
    return ours and {entry.name for entry in out.iterdir()} <= {*_FOLDERS, "SOURCE.md", "labels.csv"}


def _describe(config: PhantomConfig, images: int) -> str:
    return _SOURCE.format(
        images=images,
        patients=config.patients,
        size=config.size,
        findings=", ".join(FINDINGS),
        config=config.model_dump_json(),
    )


def _write(out: Path, made: Phantoms) -> pd.DataFrame:
    for row, (image, mask) in enumerate(zip(made.table["image"], made.table["mask"], strict=True)):
        Image.fromarray(made.images[row, 0]).save(out / image, compress_level=3)
        Image.fromarray(made.lungs[row]).save(out / mask)
        for finding, masks in made.findings.items():
            if masks[row].any():
                Image.fromarray(masks[row]).save(out / "findings" / f"{Path(image).stem}-{finding}.png")
    return made.table
