"""The eight findings: each lesion adds brightness to the healthy chest and knows exactly which pixels are its own."""

from dataclasses import dataclass, replace

import cv2
import numpy as np
from jaxtyping import Bool, Float32, UInt8

from input_pipeline.datasets.synthetic.anatomy import (
    LEFT,
    LUNG_CONTRAST,
    VESSEL_CONTRAST,
    Anatomy,
    expose,
    frontal_anatomy,
    frontal_tissue,
    lung_outline,
    ramp,
    smooth_field,
)
from input_pipeline.datasets.synthetic.study import Finding, Lesion, Study

Plane = Float32[np.ndarray, "H W"]
Mask = Bool[np.ndarray, "H W"]

HEART_SCALE = (1.24, 1.37, 1.50)
DENSITY = (0.20, 0.29, 0.38)  # of pneumonia; the air it replaces is worth LUNG_CONTRAST
HAZE = (0.20, 0.27, 0.34)
FLUID_HEIGHT = (0.20, 0.36, 0.60)  # above the costophrenic angle
FAINTEST = (
    0.35  # of a focal lesion's brightness: its pixels above this are its mask, also where it shines through the heart
)
COLLAPSE = (0.15, 0.25, 0.38)


@dataclass(frozen=True, slots=True)
class Drawing:
    """A frontal image, uint8 [H, W], with one exact mask per lesion as (finding's position in the study, mask [H, W])."""

    image: UInt8[np.ndarray, "H W"]
    masks: list[tuple[int, Mask]]


def draw_frontal(study: Study, size: int = 256, *, findings: tuple[Finding, ...] | None = None) -> Drawing:
    """Draws the study's frontal view at size x size pixels.

    `findings` replaces the study's own (the same patient, pose and noise with other findings: for a picture with and without).
    """
    findings = study.findings if findings is None else findings
    rng = study.generator("frontal")
    grades = [finding.grade for finding in findings if finding.name == "Cardiomegaly"]
    heart_scale = HEART_SCALE[grades[0]] if grades else 1.0
    anatomy = frontal_anatomy(rng, study.patient, view=study.view, heart_scale=heart_scale, size=size)
    tissue = frontal_tissue(anatomy)
    masks = []
    for position, finding in enumerate(findings):
        for lesion in finding.lesions:
            brightness, mask = _draw_lesion(anatomy, finding, lesion)
            masks.append((position, mask))
            if brightness is not None:
                tissue += brightness
    return Drawing(expose(rng, tissue), masks)


def box_of(mask: Mask) -> tuple[int, int, int, int]:
    """Smallest box around a mask [H, W] as x, y, width, height in pixels. Raises ValueError for an empty mask."""
    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    if not len(columns):
        raise ValueError("an empty mask has no box")
    x, y = int(columns[0]), int(rows[0])
    return x, y, int(columns[-1]) + 1 - x, int(rows[-1]) + 1 - y


def _draw_lesion(a: Anatomy, finding: Finding, lesion: Lesion) -> tuple[Plane | None, Mask]:
    if finding.name == "Support Devices":
        return _device(a, finding.kind, lesion)
    brightness, mask = _LESIONS[finding.name](a, lesion)
    if finding.name in _PLACED and mask.sum() < _VISIBLE * mask.size and lesion.v > -0.5:
        # Hidden below the dome of a high diaphragm: a report would not mention it, so it is drawn a little higher.
        return _draw_lesion(a, finding, replace(lesion, v=lesion.v - 0.1))
    return brightness, mask


_PLACED = ("Pneumonia", "Atelectasis", "Lung Lesion")  # drawn around the lesion's own u and v
_VISIBLE = 0.0005  # of the image: 33 pixels of 256 x 256


def _pneumonia(a: Anatomy, lesion: Lesion) -> tuple[Plane, Mask]:
    """Mottled opacity with an irregular border."""
    rng = np.random.default_rng(lesion.seed)
    size = a.u.shape[0]
    du, dv = (a.u - np.float32(lesion.u)), (a.v - np.float32(lesion.v)) * np.float32(0.85)
    distance = (du * du + dv * dv) * np.float32(1 / lesion.radius**2)
    profile = np.clip(1.5 - np.float32(1.2) * distance * (1 + np.float32(0.25) * smooth_field(rng, 12, size)), 0, 1)
    profile *= a.field[lesion.side]
    mottle = 0.92 + np.float32(0.13) * smooth_field(rng, 28, size)
    return np.float32(DENSITY[lesion.grade]) * profile * mottle, profile > FAINTEST


def _effusion(a: Anatomy, lesion: Lesion) -> tuple[Plane, Mask]:
    """Fluid that fills the costophrenic angle up to a meniscus rising along the chest wall."""
    height = FLUID_HEIGHT[lesion.grade] + (lesion.radius - 0.2) * 0.6
    wall = np.clip((lesion.side * a.u - np.float32(0.42)) * np.float32(1 / 0.33), 0, 1)
    surface = np.float32(0.62 - height) - np.float32(0.14) * wall * wall
    fluid = ramp(a.v - surface, 0.03) * a.air[lesion.side]
    return fluid * (np.float32(LUNG_CONTRAST * 0.92) - np.float32(VESSEL_CONTRAST) * a.vessels), fluid > 0.5


def _pneumothorax(a: Anatomy, lesion: Lesion) -> tuple[Plane, Mask]:
    """Black air without vessels between the chest wall and the bright pleural line of a lung fallen back."""
    shrink = COLLAPSE[lesion.grade] * (0.8 + 2 * (lesion.radius - 0.15))
    border = lung_outline(a.u, a.v, a.patient, lesion.side, shrink=shrink)
    cavity = a.air[lesion.side] * ramp(np.float32(0.30) - a.v, 0.05)
    free = ramp(-border, 0.10) * cavity
    line = np.clip(1.4 - np.abs(border) * np.float32(1 / 0.10), 0, 1) * cavity
    return np.float32(0.26) * line - free * (np.float32(0.12) + np.float32(VESSEL_CONTRAST) * a.vessels), free > 0.5


def _cardiomegaly(a: Anatomy, lesion: Lesion) -> tuple[None, Mask]:
    """The heart itself: it was already drawn larger with the anatomy."""
    return None, (a.heart * ramp(a.depth[LEFT] + np.float32(0.04), 0.02)) > 0.5


def _edema(a: Anatomy, lesion: Lesion) -> tuple[Plane, Mask]:
    """Streaky haze spreading from one hilum."""
    rng = np.random.default_rng(lesion.seed)
    du = (a.u - np.float32(lesion.side * 0.34)) * np.float32(1 / 0.32)
    dv = (a.v - np.float32(0.02)) * np.float32(1 / 0.46)
    profile = np.clip(1.35 - np.float32(1.3) * (du * du + dv * dv), 0, 1) * a.air[lesion.side]
    streaks = 0.95 + np.float32(0.22) * smooth_field(rng, 40, a.u.shape[0])
    return np.float32(HAZE[lesion.grade]) * profile * streaks, profile > 0.4


def _atelectasis(a: Anatomy, lesion: Lesion) -> tuple[Plane, Mask]:
    """One to three tilted plates, more with the grade."""
    tilt = np.float32(lesion.side * (lesion.angle + 0.1))
    du, dv = a.u - np.float32(lesion.u - lesion.side * 0.04), a.v - np.float32(lesion.v + 0.02)
    across = dv + tilt * du - np.float32(0.35) * du * du
    length = ramp(np.float32(lesion.radius + 0.02) - np.abs(du), 0.04)
    thickness = 0.024 + 0.004 * lesion.grade
    plates = np.zeros_like(du)
    for plate in range(lesion.grade + 1):
        offset = np.float32(0.115 * (plate - lesion.grade / 2))
        plates = np.maximum(plates, ramp(np.float32(thickness) - np.abs(across - offset), 0.012))
    plates *= length * a.field[lesion.side]
    return np.float32(0.36) * plates, plates > FAINTEST


def _nodule(a: Anatomy, lesion: Lesion) -> tuple[Plane, Mask]:
    """A round, dense, sharply bordered lesion."""
    du, dv = a.u - np.float32(lesion.u), a.v - np.float32(lesion.v)
    disc = ramp(1 - (du * du + dv * dv) * np.float32(1 / lesion.radius**2), 0.30) * a.field[lesion.side]
    return np.float32(0.38) * disc, disc > FAINTEST


_LESIONS = {
    "Pneumonia": _pneumonia,
    "Pleural Effusion": _effusion,
    "Pneumothorax": _pneumothorax,
    "Cardiomegaly": _cardiomegaly,
    "Edema": _edema,
    "Atelectasis": _atelectasis,
    "Lung Lesion": _nodule,
}


def _device(a: Anatomy, kind: str, lesion: Lesion) -> tuple[Plane, Mask]:
    """Metal and plastic, drawn as lines in pixels: their course is given in canonical coordinates without the image's warp."""
    size = a.u.shape[0]
    canvas = np.zeros((size, size), np.uint8)
    width = max(1, round(size / 256 * 3))
    for course, closed, weight in _DEVICE_COURSES[kind](lesion):
        points = np.rint((np.asarray(course) + 1) * (size / 2) - 0.5).astype(np.int32)
        if closed:
            cv2.fillPoly(canvas, [points], 255, cv2.LINE_AA)
        else:
            cv2.polylines(canvas, [points], False, 255, max(1, round(width * weight)), cv2.LINE_AA)
    opacity = canvas.astype(np.float32) * np.float32(1 / 255)
    return np.float32(0.34) * opacity, canvas > 127


Course = tuple[list[tuple[float, float]], bool, float]


def _endotracheal_tube(lesion: Lesion) -> list[Course]:
    end = -0.30 + 0.3 * lesion.angle
    return [([(0.02, -1.0), (0.005, -0.7), (0.0, end)], False, 1.6)]


def _pacemaker(lesion: Lesion) -> list[Course]:
    s, v = lesion.side, -0.52 + 0.1 * lesion.angle
    corners = [(-0.11, -0.07), (0.09, -0.09), (0.12, 0.05), (-0.08, 0.08)]
    can = [(s * (0.62 + x), v + y) for x, y in corners]
    lead = [(s * 0.53, v), (s * 0.30, v - 0.10), (-0.07, -0.40), (-0.09, 0.05), (0.06, 0.34), (0.26, 0.40)]
    return [(can, True, 1.0), (lead, False, 0.8)]


def _picc_line(lesion: Lesion) -> list[Course]:
    s = lesion.side
    course = [
        (s * 0.98, -0.30),
        (s * 0.80, -0.46),
        (s * 0.50, -0.60),
        (s * 0.20, -0.54),
        (-0.06, -0.40),
        (-0.08, -0.02 + 0.2 * lesion.angle),
    ]
    return [(course, False, 0.8)]


def _chest_tube(lesion: Lesion) -> list[Course]:
    s, v = lesion.side, 0.2 * lesion.angle
    return [([(s * 0.98, 0.40 + v), (s * 0.70, 0.22 + v), (s * 0.50, -0.15 + v), (s * 0.38, -0.50)], False, 1.6)]


def _sternotomy_wires(lesion: Lesion) -> list[Course]:
    shift = 0.05 * lesion.angle
    centres = [(shift, -0.40 + 0.15 * wire) for wire in range(5)]
    loop = [(-0.055, -0.02), (0.055, 0.02), (0.055, -0.02), (-0.055, 0.02), (-0.055, -0.02)]
    return [([(u + x, v + y) for x, y in loop], False, 0.7) for u, v in centres]


_DEVICE_COURSES = {
    "endotracheal tube": _endotracheal_tube,
    "pacemaker": _pacemaker,
    "picc line": _picc_line,
    "chest tube": _chest_tube,
    "sternotomy wires": _sternotomy_wires,
}
