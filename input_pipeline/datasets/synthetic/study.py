"""Who is examined and what is found: patients, studies and findings sampled from (seed, index), before anything is drawn or written."""

import hashlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Int64

from input_pipeline.datasets.synthetic.anatomy import LEFT, RIGHT, Patient
from input_pipeline.errors import UserError

SPLITS = ("train", "validate", "test")
SHARES = (0.76, 0.12, 0.12)
FINDINGS = (
    "Pneumonia",
    "Pleural Effusion",
    "Pneumothorax",
    "Cardiomegaly",
    "Edema",
    "Atelectasis",
    "Lung Lesion",
    "Support Devices",
)
PREVALENCE = dict(zip(FINDINGS, (0.20, 0.16, 0.10, 0.16, 0.08, 0.14, 0.09, 0.17), strict=True))
HEALTHY_SHARE = 0.21  # studies forced to be healthy, so that 38 % of all have no finding at the prevalences above
LATERAL_SHARE = 0.15
ZONES = ("upper", "middle", "lower")
DEVICES = ("endotracheal tube", "pacemaker", "picc line", "chest tube", "sternotomy wires")

_IDENTIFIERS = 10_000_000  # subjects are p1xxxxxxx and studies s5xxxxxxx
_SPREAD = 6_180_339  # coprime to the number of identifiers: neighbours land in different folders, none collide
_STREAMS = {"plan": 0, "patient": 1, "study": 2, "report": 3, "frontal": 4, "lateral": 5}


@dataclass(frozen=True, slots=True)
class Lesion:
    """One drawn instance of a finding; u, v and radius in canonical coordinates, angle in radians, grade 0 to 2."""

    side: int
    grade: int
    u: float
    v: float
    radius: float
    angle: float
    seed: int


@dataclass(frozen=True, slots=True)
class Finding:
    """A finding of a study as a report states it: one side (0 = both), zone and grade for all its lesions."""

    name: str
    grade: int
    side: int
    zone: str
    kind: str
    lesions: tuple[Lesion, ...]


@dataclass(frozen=True, slots=True)
class Study:
    """Everything about one study that is not text or pixels. Dates are yyyymmdd, times hhmmss.mmm as numbers, as in MIMIC's tables."""

    index: int
    seed: int
    split: str
    subject_id: int
    study_id: int
    patient: Patient
    view: str
    lateral: bool
    date: int
    time: float
    findings: tuple[Finding, ...]

    def generator(self, stream: str) -> np.random.Generator:
        """Random numbers of one purpose ("report", "frontal" or "lateral"), the same whatever else was drawn."""
        return _generator(self.seed, stream, self.index)

    def dicom_id(self, view: str) -> str:
        """Image name of a view: 40 hex digits in five groups of eight."""
        digits = hashlib.blake2b(f"{self.seed}/{self.index}/{view}".encode(), digest_size=20).hexdigest()
        return "-".join(digits[start : start + 8] for start in range(0, 40, 8))


def _generator(seed: int, stream: str, index: int) -> np.random.Generator:
    return np.random.default_rng([seed, _STREAMS[stream], index])


@dataclass(frozen=True)
class Plan:
    """Which study belongs to which patient and split. Studies are numbered train first, then validate, then test."""

    seed: int
    counts: tuple[int, int, int]

    @cached_property
    def patients(self) -> Int64[np.ndarray, "N"]:
        """Patient number of every study; patients never cross a split. [N]."""
        rng = _generator(self.seed, "plan", 0)
        owners, first = [], 0
        for count in self.counts:
            visits = np.minimum(rng.geometric(0.38, size=max(count, 1)), 10)  # 2.6 studies per patient
            owner = first + np.repeat(np.arange(len(visits)), visits)[:count]
            owners.append(owner)
            first = int(owner[-1]) + 1 if count else first
        return np.concatenate(owners).astype(np.int64)

    def split(self, index: int) -> str:
        """Split name of study `index`."""
        ends = np.cumsum(self.counts)
        return SPLITS[int(np.searchsorted(ends, index, side="right"))]

    def study(self, index: int) -> Study:
        """Samples study `index`: patient, view, date and findings; a function of (seed, index, counts) alone."""
        number = int(self.patients[index])
        visit = index - int(np.searchsorted(self.patients, number))
        owner = _generator(self.seed, "patient", number)
        patient, day = _sample_patient(owner), int(owner.integers(0, 25_000))
        rng = _generator(self.seed, "study", index)
        return Study(
            index=index,
            seed=self.seed,
            split=self.split(index),
            subject_id=_identifier(1, number, self.seed),
            study_id=_identifier(5, index, self.seed),
            patient=patient,
            view="AP" if rng.random() < 0.4 else "PA",
            lateral=bool(rng.random() < LATERAL_SHARE),
            date=_date(day + 90 * visit + int(rng.integers(0, 90))),
            time=_time(rng),
            findings=_sample_findings(rng),
        )


def plan_studies(studies: int, seed: int, *, validate: int | None = None, test: int | None = None) -> Plan:
    """Divides `studies` into train, validate and test (76/12/12 % unless the counts of the last two are given).

    Raises:
      UserError: a count is negative or nothing is left for training.
    """
    validate = round(SHARES[1] * studies) if validate is None else validate
    test = round(SHARES[2] * studies) if test is None else test
    if seed < 0:
        raise UserError(f"seed {seed}: expected 0 or more")
    if validate < 0 or test < 0 or studies - validate - test < 1:
        raise UserError(
            f"{studies} studies with {validate} to validate and {test} to test: expected counts of 0 or more that leave at "
            "least 1 to train; ask for more studies or smaller splits"
        )
    return Plan(seed, (studies - validate - test, validate, test))


def _identifier(digit: int, number: int, seed: int) -> int:
    return digit * _IDENTIFIERS + (number * _SPREAD + seed * 7_919) % _IDENTIFIERS


def _date(day: int) -> int:
    shifted = np.datetime64("2110-01-01") + day  # MIMIC shifts dates into the 22nd century
    return int(str(shifted).replace("-", ""))


def _time(rng: np.random.Generator) -> float:
    hours, minutes, milliseconds = rng.integers(0, (24, 60, 60_000))
    return round(int(hours) * 10_000 + int(minutes) * 100 + int(milliseconds) / 1000, 3)


def _sample_patient(rng: np.random.Generator) -> Patient:
    return Patient(
        sex="F" if rng.random() < 0.5 else "M",
        age=int(rng.integers(18, 90)),
        width=rng.uniform(0.93, 1.05),
        height=rng.uniform(0.95, 1.05),
        heart=rng.uniform(0.92, 1.05),
        rib_phase=rng.uniform(0, 1),
        rib_spacing=rng.uniform(0.17, 0.21),
        rib_amplitude=rng.uniform(0.055, 0.095),
    )


def _sample_findings(rng: np.random.Generator) -> tuple[Finding, ...]:
    if rng.random() < HEALTHY_SHARE:
        return ()
    present = [name for name in FINDINGS if rng.random() < PREVALENCE[name] / (1 - HEALTHY_SHARE)]
    return tuple(_sample_finding(rng, name) for name in present)


def _sample_finding(rng: np.random.Generator, name: str) -> Finding:
    grade = int(rng.integers(3))
    side = LEFT if rng.random() < 0.5 else RIGHT
    kind = str(rng.choice(DEVICES)) if name == "Support Devices" else ""
    zone = ZONES[int(rng.integers(3))]
    if name == "Atelectasis":
        zone = "middle" if rng.random() < 0.25 else "lower"
    both = name in ("Cardiomegaly", "Edema") or kind in ("endotracheal tube", "sternotomy wires")
    if name in ("Pneumonia", "Pleural Effusion", "Atelectasis"):
        both = rng.random() < 0.15
    sides = (LEFT, RIGHT) if both else (side,)
    if name in ("Cardiomegaly", "Support Devices"):
        sides = sides[:1]  # one instance, whatever the side
    lesions = tuple(_sample_lesion(rng, name, lesion_side, grade, zone) for lesion_side in sides)
    return Finding(name, grade, 0 if both else side, zone, kind, lesions)


def _sample_lesion(rng: np.random.Generator, name: str, side: int, grade: int, zone: str) -> Lesion:
    """Places one lesion inside its lung zone; zones lie where a lung seen from the front has its thirds."""
    centre = {"upper": -0.42, "middle": -0.05, "lower": 0.28}[zone]
    outwards = {"upper": 0.42, "middle": 0.47, "lower": 0.53}[zone]
    radius = rng.uniform(0.05, 0.10) if name == "Lung Lesion" else rng.uniform(0.15, 0.25)
    return Lesion(
        side=side,
        grade=grade,
        u=side * (outwards + rng.uniform(-0.06, 0.07)),
        v=centre + rng.uniform(-0.07, 0.07),
        radius=radius,
        angle=rng.uniform(-0.3, 0.3),
        seed=int(rng.integers(2**31)),
    )
