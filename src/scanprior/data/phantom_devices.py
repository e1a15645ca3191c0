"""What lies on the phantom besides the body: side markers, leads, lines and pacemakers."""

from __future__ import annotations

import numpy as np

from scanprior.data.phantom_anatomy import Anatomy
from scanprior.data.phantom_fields import Draws, Field, Flags, Plane, bezier, blur, edge, picture_axes, splat

_LETTERS = {
    "R": ("11110", "10001", "10001", "11110", "10100", "10010", "10001"),
    "L": ("10000", "10000", "10000", "10000", "10000", "10000", "11111"),
}


def _glyphs() -> Field:
    rows = [[[int(cell) for cell in line] for line in _LETTERS[letter]] for letter in "RL"]
    return np.asarray(rows, dtype=np.float32)


def marker(size: int, draws: Draws, framed: Flags) -> Field:
    """Lead letter (B, S, S), 0 or 1: R at the patient's right or L at the left, in a frame at some sites.

    Args:
        size: pixels a side.
        draws: keyed by image.
        framed: (B,), True for a letter in a ring.
    """
    left = draws.chance("marker left", 0.4)
    towards = np.where(left, 1, -1).astype(np.float32)[:, None, None]
    tall = draws.between("marker size", 0.09, 0.13)
    across, down = picture_axes(size)
    u = across - towards * draws.between("marker x", 0.74, 0.84)
    v = down - draws.between("marker y", -0.85, -0.7)
    column, row = np.floor((u / tall * 1.2 + 0.5) * 5), np.floor((v / tall + 0.5) * 7)
    inside = (column >= 0) & (column < 5) & (row >= 0) & (row < 7)
    which = np.broadcast_to(left.astype(np.int64)[:, None, None], inside.shape)
    cell = (np.clip(row, 0, 6).astype(np.int64), np.clip(column, 0, 4).astype(np.int64))
    letter = _glyphs()[which, cell[0], cell[1]] * inside
    ring = np.abs(np.sqrt(u * u + v * v) - 0.85 * tall) < 1.1 / size
    return np.where(framed[:, None, None], np.maximum(letter, ring), letter)


def cable(plane: Plane, control: Field, mass: float, thick: float) -> Field:
    """Attenuation (B, S, S) of wires along cubic curves with control points (B, wires, 4, 2)."""
    points = bezier(control, 2 * plane.size)
    step = np.linalg.norm(np.diff(points, axis=2, append=points[:, :, -1:]), axis=-1)
    batch = len(points)
    column, row = plane.pixels(points[..., 0].reshape(batch, -1), points[..., 1].reshape(batch, -1))
    weight = (mass * thick * step / plane.pixel**2).reshape(batch, -1).astype(np.float32)
    return blur(splat(column, row, weight, plane.size), 0.4 * thick / plane.pixel)


def leads(a: Anatomy, plane: Plane, draws: Draws) -> Field:
    """Attenuation (B, S, S) of three electrodes on the chest and their wires."""
    batch = len(a.apex)
    home = np.array([[-0.5, -0.5], [0.5, -0.48], [0.52, 0.22]], dtype=np.float32)
    at = home + 0.06 * draws.normal("electrodes", (3, 2))
    total = np.zeros_like(plane.x)
    for electrode in range(3):
        away = np.hypot(plane.x - at[:, electrode, 0, None, None], plane.y - at[:, electrode, 1, None, None])
        total += 0.18 * edge(0.045 - away, 0.02) + 1.3 * edge(0.017 - away, 2 * plane.pixel)
    end = np.broadcast_to(np.array([0.2, 1.15], dtype=np.float32), at.shape) + 0.1 * draws.normal(
        "plug", (1, 2)
    )
    bend = 0.22 * draws.normal("wire bend", (3, 2, 2))
    control = np.stack(
        [at, at * 0.7 + 0.3 * end + bend[:, :, 0], at * 0.3 + 0.7 * end + bend[:, :, 1], end], axis=2
    )
    return total + cable(plane, control.reshape(batch, 3, 4, 2), 0.35, 0.012)


def central_line(a: Anatomy, plane: Plane, draws: Draws) -> Field:
    """Attenuation (B, S, S) of a catheter from the right clavicle to the upper vena cava."""
    jitter = 0.02 * draws.normal("line", (1, 4, 2))
    control = np.array([[[-0.42, 0.06], [-0.2, 0.06], [-0.1, 0.16], [-0.09, 0.6]]], dtype=np.float32) + jitter
    control[..., 1] += a.apex
    return cable(plane, control, 0.6, 0.016)


def pacemaker(a: Anatomy, plane: Plane, draws: Draws) -> Field:
    """Attenuation (B, S, S) of a generator below the left clavicle and its lead to the right ventricle."""
    x, y = draws.between("pacemaker x", 0.42, 0.52), a.apex + draws.between("pacemaker y", 0.22, 0.32)
    across, down = np.abs(plane.x - x) / 0.1, np.abs(plane.y - y) / 0.085
    box = 2.2 * edge(1 - (across**3 + down**3), 0.25)
    control = np.zeros((len(x), 2, 4, 2), dtype=np.float32)
    tip_x, tip_y = a.heart_centre[0] + 0.5 * a.heart, a.heart_centre[1] + 0.35 * a.heart
    first = ((x - 0.08, y - 0.07), (x - 0.25, y - 0.25), (-0.06 + 0 * x, y - 0.1), (-0.08 + 0 * x, y + 0.15))
    second = (
        (-0.08 + 0 * x, y + 0.15),
        (-0.1 + 0 * x, y + 0.4),
        (-0.1 + 0 * x, tip_y + 0.05),
        (tip_x, tip_y),
    )
    for wire, places in enumerate((first, second)):
        for place, (px, py) in enumerate(places):
            control[:, wire, place, 0], control[:, wire, place, 1] = px[:, 0, 0], py[:, 0, 0]
    return box + cable(plane, control, 1.4, 0.013)
