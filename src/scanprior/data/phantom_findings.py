"""The findings of the phantom: consolidation, effusion, cardiomegaly and nodule, with their masks.

Whether a patient has a finding, where it is and about how large is the patient's; its extent on the
day is the image's. A finding only ever changes path lengths inside its own region.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from scanprior.data.phantom_anatomy import Anatomy
from scanprior.data.phantom_fields import Draws, Field, Flags, Plane, chord, edge

FINDINGS = ("consolidation", "effusion", "cardiomegaly", "nodule")


@dataclass(frozen=True)
class Opacities:
    """What findings do to the lungs.

    Attributes:
        filled: share of the air replaced by fluid or pus, (B, S, S) in [0, 1].
        bronchi: how far vessels turn into air-filled bronchi, (B, S, S) in [0, 1].
        solid: depth of extra soft tissue, (B, S, S).
    """

    filled: Field
    bronchi: Field
    solid: Field


def enlarge_heart(anatomy: Anatomy, present: Flags, patient: Draws, image: Draws) -> Anatomy:
    """Return the anatomy with the chosen hearts (B,) at a cardiothoracic ratio of 0.54 to 0.66."""
    ratio = patient.between("enlarged ratio", 0.55, 0.65) + image.between("enlarged ratio", -0.015, 0.015)
    heart = np.where(present[:, None, None], anatomy.width * ratio, anatomy.heart)
    return replace(anatomy, heart=heart)


def draw_place(a: Anatomy, draws: Draws, name: str) -> tuple[Field, Field, Field]:
    """Draw a place in a lung clear of heart and wall: x, y and the side (-1 the patient's right)."""
    side = np.where(draws.chance(f"{name} side", 0.5), 1, -1).astype(np.float32)[:, None, None]
    y = a.apex + 0.2 + (a.dome - 0.06 - a.apex - 0.2) * draws.between(f"{name} height", 0, 1)
    low = edge(y - a.heart_centre[1] + 0.9 * a.heart, 0.2)
    border = np.where(side > 0, a.heart * 2 * a.heart_side, a.heart * 2 * (1 - a.heart_side))
    inner = np.maximum(0.2, 0.19 + low * (border - 0.19))
    outer = np.maximum(a.half_width(y) - 0.09, inner + 0.02)
    x = side * (inner + (outer - inner) * draws.between(f"{name} reach", 0.15, 0.95))
    return x, y, side


def consolidation(a: Anatomy, plane: Plane, patient: Draws, image: Draws) -> Field:
    """Share of air filled (B, S, S) by a patchy, ill-defined opacity within one lung zone."""
    x, y, side = draw_place(a, patient, "consolidation")
    radius = patient.between("consolidation radius", 0.13, 0.26) * image.between(
        "consolidation extent", 0.85, 1.15
    )
    flat = patient.between("consolidation shape", 0.75, 1.3)
    warp = 0.45 * patient.texture("consolidation warp", 14, plane.size)
    distance = np.sqrt(((plane.x - x) / (radius * flat)) ** 2 + ((plane.y - y) / (radius / flat)) ** 2)
    blob = edge(1 - distance + 0.5 * warp, 0.9)
    patches = 0.8 + 0.2 * np.clip(patient.texture("consolidation patches", 32, plane.size), -2, 1)
    density = image.between("consolidation density", 0.5, 0.85)
    return density * blob * patches * (plane.x * side > 0)


def effusion(a: Anatomy, plane: Plane, patient: Draws, image: Draws) -> Field:
    """Share of air filled (B, S, S) by fluid that blunts one costophrenic angle, its meniscus up the wall."""
    side = np.where(patient.chance("effusion side", 0.5), 1, -1).astype(np.float32)[:, None, None]
    amount = patient.between("effusion amount", 0.54, 0.88) ** 2 + image.between(
        "effusion extent", -0.02, 0.04
    )
    across = np.clip(np.abs(plane.x) / a.half_width(plane.y), 0, 1)
    level = a.dome + 0.27 - amount
    meniscus = level + (0.06 + 0.42 * amount) * (1 - across**3)
    depth = edge(plane.y - meniscus, 0.05 + 0.15 * amount)
    return 0.92 * depth * (plane.x * side > 0)


def nodule(a: Anatomy, plane: Plane, patient: Draws, image: Draws) -> tuple[Field, Flags]:
    """Depth (B, S, S) of a small round mass, sharp or a little lobed, and its mask."""
    x, y, _ = draw_place(a, patient, "nodule")
    radius = patient.between("nodule radius", 0.048, 0.085) * image.between("nodule extent", 0.93, 1.07)
    angle = np.arctan2(plane.y - y, plane.x - x)
    lobes = 1 + 0.1 * np.cos(3 * angle + patient.between("nodule lobes", 0, 6.28))
    squared = ((plane.x - x) ** 2 + (plane.y - y) ** 2) / (radius * lobes) ** 2
    density = patient.between("nodule density", 1.4, 2.6)
    return 2 * radius * density * chord(squared), squared < 1


def add_findings(
    a: Anatomy, plane: Plane, present: dict[str, Flags], field: Field, patient: Draws, image: Draws
) -> tuple[Opacities, dict[str, Flags]]:
    """Fill the lungs of the images that have findings.

    Args:
        a: anatomy, hearts already enlarged.
        plane: the picture plane.
        present: name to (B,) booleans.
        field: where lung is seen, beside heart and mediastinum, (B, S, S) in [0, 1].
        patient: draws keyed by patient.
        image: draws keyed by image.

    Returns:
        The opacities, and the masks (B, S, S) of consolidation, effusion and nodule.
    """
    filled, bronchi, solid = np.zeros_like(field), np.zeros_like(field), np.zeros_like(field)
    masks = {name: np.zeros(field.shape, dtype=np.bool_) for name in ("consolidation", "effusion", "nodule")}
    rows = present["consolidation"]
    if rows.any():
        share = consolidation(a.rows(rows), plane.rows(rows), patient.rows(rows), image.rows(rows))
        filled[rows] = bronchi[rows] = share
        masks["consolidation"][rows] = (share > 0.2) & (field[rows] > 0.5)
    rows = present["effusion"]
    if rows.any():
        share = effusion(a.rows(rows), plane.rows(rows), patient.rows(rows), image.rows(rows))
        filled[rows] = 1 - (1 - filled[rows]) * (1 - share)
        masks["effusion"][rows] = (share > 0.25) & (field[rows] > 0.5)
    rows = present["nodule"]
    if rows.any():
        mass, inside = nodule(a.rows(rows), plane.rows(rows), patient.rows(rows), image.rows(rows))
        solid[rows] = mass
        masks["nodule"][rows] = inside
    return Opacities(filled, bronchi, solid), masks
