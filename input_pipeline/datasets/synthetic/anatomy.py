"""The phantom: a schematic frontal or lateral chest radiograph drawn in canonical coordinates.

Canonical coordinates run from -1 to 1 over the image, u to the right and v downwards. A radiograph shows the patient's left on the image's
right, so a side is a sign of u: +1 is the patient's left. Everything is a clipped ramp or a product of ramps: no exponentials, no loops.
"""

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
from jaxtyping import Float32

Plane = Float32[np.ndarray, "H W"]

LEFT, RIGHT = 1, -1
LUNG_CONTRAST = 0.44  # what a lung full of air takes away from soft tissue
VESSEL_CONTRAST = 0.34
LARGEST_HEART = 1.62  # beyond this a heart would leave no left lung
AP_HEART_SCALE = 1.12  # an antero-posterior view magnifies the heart


@dataclass(frozen=True, slots=True)
class Patient:
    """What stays the same over all studies of a patient; widths and heights are factors near 1."""

    sex: str
    age: int
    width: float
    height: float
    heart: float
    rib_phase: float
    rib_spacing: float
    rib_amplitude: float


@dataclass(frozen=True, slots=True)
class Anatomy:
    """Where things lie in one image: canonical coordinates and soft memberships in [0, 1], each [H, W].

    `air` holds each side's lung without what the heart and mediastinum cover, `field` the lung including what shows faintly through
    the heart, `depth` each side's distance above the diaphragm in v.
    """

    u: Plane
    v: Plane
    body: Plane
    heart: Plane
    air: dict[int, Plane]
    field: dict[int, Plane]
    depth: dict[int, Plane]
    vessels: Plane
    patient: Patient

    @property
    def lungs(self) -> Plane:
        """Both lungs' air, [H, W] in [0, 1]."""
        return self.air[LEFT] + self.air[RIGHT]


def ramp(distance: Plane, softness: float) -> Plane:
    """Soft membership of `distance > 0`: 0 below -softness, 1 above +softness, linear between. [H, W] in, [H, W] out."""
    return np.clip(distance * np.float32(0.5 / softness) + np.float32(0.5), 0, 1)


def smooth_field(rng: np.random.Generator, cells: int, size: int) -> Plane:
    """Standard normal noise on a cells x cells grid, cubically enlarged to [size, size]."""
    small = rng.standard_normal((cells, cells), dtype=np.float32)
    return cv2.resize(small, (size, size), interpolation=cv2.INTER_CUBIC)


@lru_cache(maxsize=4)
def _grid(size: int) -> tuple[Plane, Plane]:
    axis = ((np.arange(size, dtype=np.float32) + 0.5) * (2 / size) - 1).astype(np.float32)
    u, v = np.meshgrid(axis, axis)
    return u, v


def pose(rng: np.random.Generator, size: int) -> tuple[Plane, Plane]:
    """Canonical coordinates u, v of every pixel, each [size, size]: a small rotation, scale, shift and a smooth warp."""
    angle = np.deg2rad(rng.normal(0, 2))
    scale = 1 / rng.uniform(0.95, 1.06)
    shift_u, shift_v = rng.uniform(-0.03, 0.03, 2)
    cos, sin = np.float32(np.cos(angle) * scale), np.float32(np.sin(angle) * scale)
    x, y = _grid(size)
    u = cos * x + sin * y + (np.float32(shift_u) + np.float32(0.012) * smooth_field(rng, 4, size))
    v = cos * y - sin * x + (np.float32(shift_v) + np.float32(0.012) * smooth_field(rng, 4, size))
    return u, v


def lung_outline(u: Plane, v: Plane, patient: Patient, side: int, shrink: float = 0.0) -> Plane:
    """Superellipse of one lung, flat at the sides and round at the apex: positive inside, 0 on the border, [H, W].

    The centre tilts outwards towards the base. `shrink` (fraction) lets the lung fall back towards the mediastinum, as in pneumothorax.
    """
    half_width = 0.335 * patient.width
    centre = side * ((0.415 + 0.13 * v) * patient.width - shrink * half_width * 0.8)
    across = (u - centre) * np.float32(1 / (half_width * (1 - shrink)))
    along = (v - np.float32(0.16 + 0.1 * shrink)) * np.float32(1 / (0.98 * patient.height * (1 - 0.5 * shrink)))
    across = across * across
    return 1 - across * across - along * along


def _dome(u: Plane, patient: Patient, side: int, inspiration: float) -> Plane:
    """Height v of one hemidiaphragm over u: highest in the middle of the lung, falling to the costophrenic angle."""
    top = (0.43 if side == RIGHT else 0.48) * patient.height + inspiration
    offset = side * u - np.float32(0.36 * patient.width)
    return top + np.float32(1.55) * offset * offset


def _heart(u: Plane, v: Plane, scale: float) -> Plane:
    """Tilted ellipse of the heart; grows to the patient's left and downwards more than to the right, as hearts do."""
    du = u - np.float32(0.10 + 0.10 * (scale - 1))
    dv = v - np.float32(0.24 - 0.04 * (scale - 1))
    along = (du * np.float32(0.91) + dv * np.float32(0.42)) * np.float32(1 / (0.36 * scale))
    across = (dv * np.float32(0.91) - du * np.float32(0.42)) * np.float32(1 / (0.27 * scale))
    return ramp(1 - along * along - across * across, 0.10)


def _mediastinum(u: Plane, v: Plane, patient: Patient) -> Plane:
    """Vertical band of the great vessels with the aortic knob on the patient's left."""
    band = ramp(np.float32(0.125 * patient.width) - np.abs(u - np.float32(0.01)), 0.03)
    knob_u, knob_v = u - np.float32(0.12), v + np.float32(0.33)
    return np.maximum(band, ramp(1 - (knob_u * knob_u + knob_v * knob_v) * np.float32(1 / 0.011), 0.25))


def _vessels(rng: np.random.Generator, u: Plane, v: Plane) -> Plane:
    """Strands that radiate from the hila and fade with the distance, over a fine mesh; [H, W] in about [0, 0.5]."""
    size = u.shape[0]
    distance, angle = cv2.cartToPolar(np.abs(u) - np.float32(0.16), v - np.float32(0.0))
    near = np.clip(1.1 - np.float32(1.25) * distance, 0.1, 1)
    turns = angle * np.float32(2.2) + np.float32(0.7) * smooth_field(rng, 7, size)
    strands = np.clip(0.5 - np.float32(2.4) * np.abs(turns - np.rint(turns)), 0, 0.5)
    mesh = np.clip(0.3 - np.abs(smooth_field(rng, 36, size)) * np.float32(0.8), 0, 0.3)
    return near * (np.float32(0.75) * strands + np.float32(0.6) * mesh)


def frontal_anatomy(rng: np.random.Generator, patient: Patient, *, view: str, heart_scale: float, size: int) -> Anatomy:
    """Lays out one frontal view ("PA" or "AP") of a patient; `heart_scale` above 1 is cardiomegaly. Fields are [size, size]."""
    u, v = pose(rng, size)
    inspiration = rng.uniform(-0.04, 0.04)
    vessels = _vessels(rng, u, v)
    heart = _heart(u, v, min(patient.heart * heart_scale * (AP_HEART_SCALE if view == "AP" else 1.0), LARGEST_HEART))
    mediastinum = _mediastinum(u, v, patient)
    air, field, depth = {}, {}, {}
    for side in (LEFT, RIGHT):
        depth[side] = _dome(u, patient, side, inspiration) - v
        own_side = ramp(side * u, 0.02)
        lung = ramp(lung_outline(u, v, patient, side), 0.12) * ramp(depth[side], 0.02) * own_side
        air[side] = lung * (1 - np.maximum(heart, mediastinum) * np.float32(0.94))
        field[side] = lung * (1 - np.maximum(heart * np.float32(0.55), mediastinum))
    return Anatomy(u, v, _body(u, v, patient), heart, air, field, depth, vessels, patient)


def _body(u: Plane, v: Plane, patient: Patient) -> Plane:
    """Trunk with sloping shoulders and the beginning of neck and arms."""
    bow = np.abs(u)
    half_width = np.float32(0.90 * patient.width) + np.float32(0.30) * np.clip(np.float32(-0.30) - v, 0, 1)
    shoulder = v - (
        np.float32(-1.20) + np.float32(0.75) * np.clip(bow - np.float32(0.12), 0, 0.45) + np.float32(0.18) * bow
    )
    return ramp(np.minimum(half_width - bow, shoulder), 0.03)


def _ribs(a: Anatomy) -> Plane:
    """Posterior ribs as one periodic function of a bent height, and fainter anterior ribs bent the other way."""
    p = a.patient
    bow = np.abs(a.u)
    height = (a.v + np.float32(0.20) * bow - np.float32(0.62) * bow * bow) * np.float32(1 / p.rib_spacing) + np.float32(
        p.rib_phase
    )
    front = (a.v + np.float32(0.55) * bow) * np.float32(0.8 / p.rib_spacing) + np.float32(p.rib_phase)
    posterior = np.clip(1.5 - np.float32(6) * np.abs(height - np.rint(height)), 0, 1)
    anterior = np.clip(1.3 - np.float32(6) * np.abs(front - np.rint(front)), 0, 1) * ramp(bow - np.float32(0.38), 0.10)
    cage = (
        ramp(np.float32(0.84 * p.width) - bow, 0.04)
        * ramp(np.float32(0.55) - a.v, 0.15)
        * (1 - np.float32(0.6) * a.heart)
    )
    return np.float32(p.rib_amplitude) * cage * (posterior + np.float32(0.35) * anterior)


def _clavicles(u: Plane, v: Plane) -> Plane:
    bow = np.abs(u)
    line = v + np.float32(0.56) + np.float32(0.42) * bow - np.float32(0.30) * bow * bow
    return np.float32(0.12) * ramp(np.float32(0.030) - np.abs(line), 0.012) * ramp(bow - np.float32(0.07), 0.02)


def _spine(u: Plane, v: Plane) -> Plane:
    """Vertebral column with periodic discs, and the darker trachea above."""
    discs = v * np.float32(1 / 0.13)
    column = ramp(np.float32(0.085) - np.abs(u), 0.02)
    trachea = ramp(np.float32(0.042) - np.abs(u - np.float32(0.005)), 0.015) * ramp(-v - np.float32(0.28), 0.05)
    return column * (np.float32(0.04) + np.float32(0.10) * np.abs(discs - np.rint(discs))) - np.float32(0.12) * trachea


def _abdomen(a: Anatomy) -> Plane:
    """Brighter tissue under the diaphragm with the gastric bubble below the left dome, and breast shadows of women."""
    below = ramp(-np.where(a.u > 0, a.depth[LEFT], a.depth[RIGHT]), 0.03)
    du, dv = (a.u - np.float32(0.42)) * np.float32(1 / 0.13), (a.v - np.float32(0.70)) * np.float32(1 / 0.09)
    plane = np.float32(0.05) * below - np.float32(0.17) * ramp(1 - du * du - dv * dv, 0.6) * below
    if a.patient.sex == "F":
        du, dv = (
            (np.abs(a.u) - np.float32(0.45)) * np.float32(1 / 0.32),
            (a.v - np.float32(0.28)) * np.float32(1 / 0.28),
        )
        plane = plane + np.float32(0.05) * ramp(1 - du * du - dv * dv, 0.35)
    return plane


def frontal_tissue(a: Anatomy) -> Plane:
    """Brightness of the healthy chest before findings and exposure, [H, W], mostly within [0, 1]."""
    soft = (np.float32(0.69) - np.float32(0.09) * a.u * a.u) * a.body + np.float32(0.05)
    lungs = a.lungs * (np.float32(-LUNG_CONTRAST) + np.float32(VESSEL_CONTRAST) * a.vessels)
    return (
        soft
        + lungs
        + np.float32(0.05) * a.heart
        + (_ribs(a) + _clavicles(a.u, a.v) + _spine(a.u, a.v) + _abdomen(a)) * a.body
    )


def expose(rng: np.random.Generator, tissue: Plane, *, marker_side: int = LEFT) -> np.ndarray:
    """Turns tissue brightness [H, W] into a uint8 image: uneven gain, noise, gamma and a side marker."""
    size = tissue.shape[0]
    gain = 1 + np.float32(0.05) * smooth_field(rng, 4, size)
    noise = rng.standard_normal((size, size), dtype=np.float32)
    table = _gamma_table(rng.uniform(0.85, 1.2))
    levels = np.clip((tissue * gain + np.float32(0.018) * noise) * 255, 0, 255).astype(np.uint8)
    image = cv2.LUT(levels, table)
    _mark(image, marker_side, rng)
    return image


def _gamma_table(gamma: float) -> np.ndarray:
    return (255 * (np.arange(256) / 255) ** gamma + 0.5).astype(np.uint8)


def _mark(image: np.ndarray, side: int, rng: np.random.Generator) -> None:
    """Writes the technician's "L" marker into an upper corner, in place."""
    size = image.shape[0]
    column = int(size * (0.90 if side == LEFT else 0.04))
    row = int(size * rng.uniform(0.08, 0.16))
    cv2.putText(
        image,
        "L" if side == LEFT else "R",
        (column, row),
        cv2.FONT_HERSHEY_SIMPLEX,
        size / 512,
        235,
        max(1, size // 200),
    )


def draw_lateral(rng: np.random.Generator, patient: Patient, size: int) -> np.ndarray:
    """A much simpler lateral view, uint8 [size, size]: body, one lung field, heart, spine, ribs; no findings are drawn in it."""
    u, v = pose(rng, size)
    body = ramp(1 - (u / np.float32(0.80)) ** 4 - ((v - np.float32(0.5)) / np.float32(1.35)) ** 4, 0.10)
    dome = np.float32(0.42) + np.float32(0.30) * (u + np.float32(0.2)) ** 2
    lung = ramp(
        1 - (u / np.float32(0.58 * patient.width)) ** 4 - ((v + np.float32(0.1)) / np.float32(0.75)) ** 4, 0.12
    ) * ramp(dome - v, 0.02)
    du, dv = (u + np.float32(0.22)) / np.float32(0.30 * patient.heart), (v - np.float32(0.22)) / np.float32(0.27)
    heart = ramp(1 - du * du - dv * dv, 0.12)
    discs = v * np.float32(1 / 0.13)
    spine = ramp(np.float32(0.09) - np.abs(u - np.float32(0.48) + np.float32(0.12) * v * v), 0.02)
    height = (v + np.float32(0.35) * u) * np.float32(1 / patient.rib_spacing) + np.float32(patient.rib_phase)
    ribs = np.clip(1.4 - np.float32(5) * np.abs(height - np.rint(height)), 0, 1) * lung
    tissue = (
        np.float32(0.62) * body + np.float32(0.05) - np.float32(LUNG_CONTRAST) * lung * (1 - np.float32(0.8) * heart)
    )
    tissue = (
        tissue
        + spine * (np.float32(0.06) + np.float32(0.14) * np.abs(discs - np.rint(discs)))
        + np.float32(0.05) * ribs
    )
    return expose(rng, tissue)
