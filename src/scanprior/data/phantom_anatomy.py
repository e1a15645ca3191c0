"""The healthy chest of the phantom: what a ray from the front meets, as path lengths.

A rib is a plane curve on an egg-shaped cage, so one formula in the angle around the cage gives the
posterior and the anterior arcs, their crowding at the side wall and its brightness. Lungs are air
taken out of soft tissue; heart and mediastinum push air away, which is what makes their edges sharp.
Proportions (cardiothoracic ratio 0.39 to 0.485 on PA films, right dome higher, carina at the level of
the fourth to fifth vertebra) are those of ordinary frontal films; all numbers are our definition.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from scanprior.data.phantom_fields import Draws, Field, Flags, Plane, blur, chord, edge, ellipse, splat

_BLOOD = 3.2  # blood in a vessel = this x radius^1.6: more than round tubes hold, to show on a few pixels


@dataclass(frozen=True)
class Anatomy:
    """Numbers that make one chest, each (B, 1, 1) float32; lengths in half image widths."""

    apex: Field  # height of the lung apices
    width: Field  # half-width of the rib cage inside
    fat: Field  # thickness of the chest wall at the side
    depth: Field  # half-depth of the trunk
    dome: Field  # height of the right diaphragm; the left is a little lower
    heart: Field  # half-width of the heart
    heart_side: Field  # share of the heart left of the midline
    tilt: Field  # turn of the heart's long axis
    knob: Field  # radius of the aortic knob
    turn: Field  # rotation of the patient: front structures go +, spine goes -
    curve: Field  # scoliosis
    spacing: Field  # of ribs and vertebrae
    drop: Field  # descent of a rib from spine to sternum
    bone: Field  # bone density
    breast: Field  # 0 in men
    young: Field  # 1 at 20 years, 0 at 90
    erect: Flags  # PA view: scapulae turned out, deep breath

    def rows(self, chosen: Flags) -> Anatomy:
        """Return the anatomy of the chosen rows only."""
        return Anatomy(**{name: value[chosen] for name, value in vars(self).items()})

    def half_width(self, y: Field) -> Field:
        """Inner half-width of the cage at height y: an egg, its tip above the apices."""
        share = np.clip((y - self.apex + 0.07) / 0.9, 0, 1)
        return self.width * np.sqrt(1 - (1 - share) ** 3.2) + 1e-3

    def diaphragm(self, x: Field) -> Field:
        """Height of the diaphragm below the picture column x: two domes that fall to the side wall."""
        across = np.abs(x) / self.width
        outer, inner = np.maximum(across - 0.45, 0) / 0.55, np.maximum(0.45 - across, 0) / 0.45
        left = 0.055 * edge(x, 0.2)
        return self.dome + left + 0.25 * outer**2.4 + 0.05 * inner**2

    @property
    def heart_centre(self) -> tuple[Field, Field]:
        """Centre of the heart; it rests on the diaphragm."""
        across = (2 * self.heart_side - 1) * self.heart + 0.5 * self.turn
        return across, self.dome - 0.48 * self.heart - 0.01


def draw_anatomy(patient: Draws, image: Draws, ages: Field, female: Flags, erect: Flags) -> Anatomy:
    """Draw chests: the body from the patient's stream, breath and rotation from the image's.

    Args:
        patient: draws keyed by patient, (B,).
        image: draws keyed by image, (B,).
        ages: years, (B, 1, 1).
        female: (B,).
        erect: (B,), True for a PA film; an AP film is taken in bed, enlarges the heart and catches less breath.
    """
    woman, standing = female[:, None, None].astype(np.float32), erect[:, None, None].astype(np.float32)
    old = np.clip((ages - 20) / 70, 0, 1).astype(np.float32)
    width = patient.between("width", 0.59, 0.68) - 0.025 * woman
    ratio = patient.between("cardiothoracic ratio", 0.39, 0.46) + 0.025 * old
    breath = image.between("breath", -0.05, 0.05) + 0.06 * (1 - standing)
    return Anatomy(
        apex=patient.between("apex", -0.74, -0.64),
        width=width,
        fat=patient.between("fat", 0.07, 0.2),
        depth=patient.between("depth", 0.52, 0.66) + 0.03 * old,
        dome=patient.between("dome", 0.24, 0.36) + 0.04 * old - breath,
        heart=width * ratio * (1 + 0.05 * (1 - standing)),
        heart_side=patient.between("heart side", 0.66, 0.74),
        tilt=patient.between("heart tilt", 0.45, 0.8),
        knob=patient.between("knob", 0.06, 0.075) + 0.03 * old,
        turn=image.between("turn", -0.035, 0.035),
        curve=patient.between("curve", -0.03, 0.03),
        spacing=patient.between("spacing", 0.122, 0.138),
        drop=patient.between("drop", 0.52, 0.68),
        bone=patient.between("bone", 0.85, 1.15) * (1.1 - 0.3 * old),
        breast=woman * patient.between("breast", 0.1, 0.34),
        young=1 - old,
        erect=erect,
    )


def mediastinum(a: Anatomy, plane: Plane) -> Field:
    """Depth (B, S, S) of what stands between the lungs beside the heart: great vessels, knob, aorta."""
    x, y = plane.x - a.turn, plane.y
    low = np.clip((y - a.apex) / 0.75, 0, 1)
    right, left = 0.125 - 0.02 * low, 0.095 + 0.03 * low
    neck = 0.06 * np.clip(-0.1 - 3 * (y - a.apex), 0, 1)
    centre, half = (left - right) / 2, (left + right) / 2 + neck
    column = 0.85 * chord(((x - centre) / half) ** 2)
    top = a.apex + 0.33
    knob = 0.6 * chord(ellipse(plane, (a.turn + 0.045 + 0.4 * a.knob, top), (a.knob, 1.15 * a.knob)))
    artery = 0.55 * chord(ellipse(plane, (a.turn + 0.1, top + 0.2), (0.09, 0.12)))
    aorta = 0.12 * chord(((x - 0.075 - 0.3 * a.knob) / (0.7 * a.knob)) ** 2) * edge(y - top, 0.05)
    depth: Field = np.maximum(np.maximum(column, knob), artery) + aorta
    return depth


def heart_shadow(a: Anatomy, plane: Plane) -> Field:
    """Half depth of the heart (B, S, S) as a share of its largest, 0 outside.

    Ventricle and right atrium are ellipses; a column between them and the great vessels gives the
    left border its long slope from the pulmonary artery to the apex of the heart.
    """
    across, down = a.heart_centre
    long = a.heart / np.sqrt(np.cos(a.tilt) ** 2 + 0.55 * np.sin(a.tilt) ** 2)
    ventricle = ellipse(plane, (across, down), (long, 0.74 * long), a.tilt)
    low = (across - 0.4 * a.heart, down + 0.01)
    atrium = ellipse(plane, low, (0.6 * a.heart, 0.72 * a.heart))
    base, tip = a.apex + 0.45, down + 0.25 * a.heart
    share = np.clip((plane.y - base) / (tip - base), 0, 1)
    left = 0.1 + a.turn + (across + 0.96 * a.heart - 0.1 - a.turn) * share**1.25
    right = a.turn - 0.1 - 0.02 * share
    slope = chord(((plane.x - (left + right) / 2) / ((left - right) / 2)) ** 2)
    slope = slope * edge(plane.y - base, 0.15) * (plane.y < tip)
    return np.maximum(np.maximum(chord(ventricle), chord(atrium)), 0.85 * slope)


def lung_fields(a: Anatomy, plane: Plane) -> tuple[Field, Field]:
    """Return the depth of air in both lungs before the heart is put in, and where the lungs are (0 to 1)."""
    x, y = plane.x, plane.y
    half = a.half_width(y) - 0.012
    roof = a.apex + 1.1 * np.maximum(0.3 - np.abs(x - a.turn), 0) ** 2
    floor = a.diaphragm(x)
    soft = 1.5 * plane.pixel
    within = edge(half - np.abs(x), soft) * edge(y - roof, soft)
    above = edge(floor - y, soft)
    # Behind and below the dome a thin wedge of lung goes on: the posterior recess.
    recess = 0.22 * np.exp(-np.maximum(y - floor, 0) / 0.07)
    round_top = np.sqrt(np.clip((y - roof) / 0.3, 0, 1))
    near_dome = 0.6 + 0.4 * np.clip((floor - y) / 0.22, 0, 1)
    air = (
        1.55 * a.depth * chord(np.abs(x / half) ** 3) * round_top * (above * near_dome + (1 - above) * recess)
    )
    return air * within, within * above


def airways(a: Anatomy, plane: Plane) -> Field:
    """Depth of air (B, S, S) in trachea and main bronchi."""
    x, y = plane.x - a.turn - 0.3 * a.curve, plane.y
    carina = a.apex + 0.42
    wide = 0.036 + 0.004 * a.young
    tube = chord((x / wide) ** 2) * edge(carina - y, 0.04)
    below = np.maximum(y - carina, 0)
    fork = chord(((np.abs(x + 0.02) - 0.01 - 0.75 * below) / wide) ** 2)
    return 0.09 * tube + 0.06 * fork * edge(0.13 - below, 0.08) * edge(y - carina, 0.04)


def trunk(a: Anatomy, plane: Plane) -> Field:
    """Depth of the body (B, S, S): trunk, neck, shoulders, arms and breasts, rounded at the skin."""
    x, y = plane.x, plane.y
    across = np.abs(x)
    waist = a.width + a.fat + 0.05 * np.clip(y, -1, 1) * (a.fat / 0.1 - 1)
    outer = np.maximum(across - 0.17, 0)
    shoulder = a.apex - 0.16 + 0.24 * outer**1.2 + 1.6 * np.maximum(across - 0.86, 0) ** 2
    top = edge(y - shoulder, 0.03) * np.sqrt(np.clip((y - shoulder) / 0.35, 0, 1))
    chest = 2 * a.depth * chord((across / waist) ** 2) * top
    armpit = a.apex + 0.62 + 1.5 * (across - waist) - y
    girdle = 1.05 * a.depth * top * chord(np.clip(1 - armpit / 0.5, 0, 1) ** 2)
    neck = 0.5 * chord((x / 0.21) ** 2)
    body: Field = np.maximum(np.maximum(chest, girdle), neck) + breasts(a, plane)
    return body


def breasts(a: Anatomy, plane: Plane) -> Field:
    """Depth of the breasts (B, S, S): little above, most just before the lower fold."""
    if not a.breast.any():
        return np.zeros_like(plane.x)
    radius = 0.24 + 0.25 * a.breast
    centre = a.dome + 0.15 - 0.5 * radius
    across, down = (np.abs(plane.x) - 0.41) / radius, (plane.y - centre) / (1.1 * radius)
    return a.breast * np.sqrt(chord(across**2 + down**2)) * edge(down + 0.3, 1.5)


def skeleton(a: Anatomy, plane: Plane, grain: Field) -> Field:
    """Depth of bone (B, S, S); ``grain`` is unit noise that makes its density uneven."""
    parts = ribs(a, plane) + spine(a, plane) + clavicles(a, plane) + shoulder_blades(a, plane)
    return parts * a.bone * (1 + 0.12 * grain)


def ribs(a: Anatomy, plane: Plane) -> Field:
    """Depth of bone in twelve pairs of ribs, posterior and anterior arcs."""
    y = plane.y
    half = a.half_width(y)
    place = np.clip((plane.x - a.curve * np.cos(2 * y)) / half, -1, 1)
    cosine = np.sqrt(1 - place * place)
    inside = edge(half + 0.015 - np.abs(plane.x), 2 * plane.pixel)
    steep = np.minimum(0.5 * a.drop * np.abs(place) / (half * np.maximum(cosine, 0.12)), 2.0)
    stretch = np.sqrt(1 + steep * steep)
    slant = 1 / np.maximum(cosine, 0.5)
    total = np.zeros_like(y)
    for back in (True, False):
        fall = 0.5 * a.drop * (1 - cosine if back else 1 + 0.85 * cosine)
        rise = -0.05 * np.sin(np.minimum(np.abs(place) * 5, np.pi)) if back else 0.0
        phase = (y - a.apex - 0.02 - fall - rise) / a.spacing
        number = np.clip(np.rint(phase), 0, 11 if back else 9)
        wide = (0.024 if back else 0.03) * stretch * (1 + 0.2 * (number == 0).astype(np.float32))
        off = (phase - number) * a.spacing / wide
        shell = 0.6 + 0.4 * off * off + 0.22 * np.clip(off, -1, 1) ** 3  # the lower border is the denser one
        bone = edge(1 - np.abs(off), 1.5 * plane.pixel / wide) * shell * slant
        if not back:
            bony = edge(np.abs(place) - 0.42 - 0.035 * number, 0.12)
            bone = bone * (0.12 * (1 - a.young) + 0.8 * bony)
        total += (0.042 if back else 0.022) * bone
    below = 1 - 0.6 * edge(y - a.dome - 0.2, 0.3)
    return total * inside * below


def spine(a: Anatomy, plane: Plane) -> Field:
    """Depth of bone in the vertebral column: bodies, end plates, pedicles and spinous processes."""
    y = plane.y
    x = plane.x + a.turn - a.curve * np.cos(2 * y)
    wide = 0.078 + 0.02 * np.clip(y + 0.6, -0.3, 1.4)
    phase = (y - a.apex) / (a.spacing * 1.02)
    within = np.abs(phase - np.rint(phase)) * 2  # 0 in the middle of a body, 1 in the disc
    body = chord((x / (wide * (1 + 0.12 * (within - 0.5)))) ** 2)
    column = 0.5 + 0.5 * edge(0.8 - within, 0.2) + 0.3 * np.exp(-(((within - 0.74) / 0.1) ** 2))
    away = ((np.abs(x) - 0.62 * wide) / 0.022) ** 2 + ((within - 0.25) / 0.35) ** 2
    pedicle = np.exp(-((away - 1) ** 2) / 0.5)
    process = np.exp(-((x / 0.014) ** 2)) * np.exp(-(((within - 0.55) / 0.35) ** 2))
    arms = edge(wide + 0.055 - np.abs(x), 0.03) * edge(0.4 - within, 0.3)
    bone: Field = 0.044 * body * column + 0.018 * (pedicle + process) + 0.015 * arms
    return bone


def clavicles(a: Anatomy, plane: Plane) -> Field:
    """Depth of bone in both clavicles: flat S curves from the sternum to the shoulder."""
    x = plane.x - a.turn
    along = (np.abs(x) - 0.07) / 0.72
    lift = np.where(a.erect[:, None, None], 0.15, 0.2).astype(np.float32)
    path = a.apex + 0.27 - lift * np.sin(np.clip(along, 0, 1.1) * 1.5) + 0.035 * np.sin(along * 5.5)
    wide = 0.026 + 0.016 * np.exp(-((along / 0.12) ** 2))
    off = (plane.y - path) / wide
    ends = edge(along, 0.05) * edge(1 - along, 0.06)
    return 0.085 * edge(1 - np.abs(off), 2 * plane.pixel / wide) * (0.5 + 0.5 * off * off) * ends


def shoulder_blades(a: Anatomy, plane: Plane) -> Field:
    """Depth of bone in scapulae (over the lungs on AP films) and heads of the humeri."""
    across, y = np.abs(plane.x), plane.y
    out = np.where(a.erect[:, None, None], 0.06, -0.06).astype(np.float32)
    top, tip = a.apex + 0.1, a.apex + 0.72
    inner = a.width * 0.92 + out + 0.12 * ((y - top) / 0.62) - 0.02
    outer = a.width * 0.92 + out + 0.32 - 0.26 * ((y - top) / 0.62)
    tall = edge(y - top, 0.05) * edge(tip - y, 0.05)
    plate = edge(across - inner, 0.03) * edge(outer - across, 0.03) * tall
    border = np.exp(-(((across - inner) / 0.014) ** 2)) + np.exp(-(((across - outer) / 0.02) ** 2))
    ball = a.width + 0.28
    head = chord(((across - ball) / 0.11) ** 2 + ((y - a.apex - 0.17) / 0.12) ** 2)
    shaft = chord(((across - ball - 0.04 - 0.16 * (y - a.apex - 0.17)) / 0.065) ** 2) * edge(
        y - a.apex - 0.2, 0.1
    )
    return 0.022 * plate + 0.018 * border * tall + 0.08 * np.maximum(head, shaft)


def vessel_tree(a: Anatomy, plane: Plane, draws: Draws) -> Field:
    """Depth of blood (B, S, S) in the pulmonary vessels: three orders of branches from both hila."""
    batch, fan = len(a.apex), 13
    side = np.array([-1, 1], dtype=np.float32)[None, :, None]
    angle = np.linspace(-1.4, 1.45, fan, dtype=np.float32) + 0.14 * draws.normal("vessel angle", (2, fan))
    length = (0.44 + 0.14 * np.abs(np.sin(angle))) * (1 + 0.15 * draws.normal("vessel length", (2, fan)))
    x = np.broadcast_to(side * 0.135 + 0.5 * a.turn, angle.shape)
    y = a.apex + 0.55 + 0.03 * side + 0.1 * np.sin(angle)
    forks = np.array([0.6, -0.6], dtype=np.float32)
    total = np.zeros_like(plane.x)
    for order, (steps, thick, thin) in enumerate(((16, 0.015, 0.005), (10, 0.009, 0.004), (8, 0.006, 0.003))):
        bend = 0.12 * draws.normal(f"vessel bend {order}", (*angle.shape[1:], steps)).cumsum(axis=-1)
        heading = angle[..., None] + bend
        step = length[..., None] / steps
        facing = side.reshape(1, 2, *[1] * (heading.ndim - 2))
        path_x = x[..., None] + (facing * np.cos(heading) * step).cumsum(axis=-1)
        path_y = y[..., None] + (np.sin(heading) * step).cumsum(axis=-1)
        radius = np.linspace(thick, thin, steps, dtype=np.float32) * (0.9 + 0.25 * np.sin(heading))  # gravity
        wide = (thick + thin) / 2 / plane.pixel
        dots = [
            _between(each.reshape(batch, -1, steps), plane) for each in (path_x, path_y, radius**1.6 * step)
        ]
        column, row = plane.pixels(dots[0], dots[1])
        total += blur(splat(column, row, _BLOOD / plane.pixel**2 * dots[2] / _dots(plane), plane.size), wide)
        origin = np.array([steps // 4, (5 * steps) // 8])
        x, y = path_x[..., origin], path_y[..., origin]
        spread = draws.between(f"fork {order}", 0.7, 1.3).reshape(batch, *[1] * (x.ndim - 1))
        angle = heading[..., origin] + forks * spread
        length = np.broadcast_to(0.55 * length[..., None], angle.shape)
    return total


def _between(paths: Field, plane: Plane) -> Field:
    """Add points to paths (B, P, steps) until they are dense on the pixel grid; returns (B, points)."""
    share = np.linspace(0, 1, _dots(plane), endpoint=False, dtype=np.float32)
    first, second = paths[:, :, :-1, None], paths[:, :, 1:, None]
    return (first * (1 - share) + second * share).reshape(len(paths), -1)


def _dots(plane: Plane) -> int:
    return max(1, round(plane.size / 64))
