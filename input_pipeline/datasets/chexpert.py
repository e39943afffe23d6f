"""CheXpert 1.0, full or small: images with fourteen labels that may be uncertain (stanfordmlgroup.github.io/competitions/chexpert)."""

import os
import re
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from input_pipeline import tables
from input_pipeline.checksums import ABSENT
from input_pipeline.compact import Names
from input_pipeline.datasets.image_files import image_files, note_strays
from input_pipeline.datasets.labelled import Found, LabelledImages, distribute, listed_twice, record_hash
from input_pipeline.errors import UserError
from input_pipeline.sources import SPLITS, ImageRow, Scan

LABEL_NAMES = (
    "No Finding",
    "Enlarged Cardiomediastinum",
    "Cardiomegaly",
    "Lung Opacity",
    "Lung Lesion",
    "Edema",
    "Consolidation",
    "Pneumonia",
    "Atelectasis",
    "Pneumothorax",
    "Pleural Effusion",
    "Pleural Other",
    "Fracture",
    "Support Devices",
)
# What GLoRIA, MGCA, MRM and MaCo make of uncertain labels; they use no others than the five of the competition.
_PUBLISHED = {"Atelectasis": 1.0, "Cardiomegaly": 0.0, "Consolidation": 0.0, "Edema": 1.0, "Pleural Effusion": 1.0}
_ROLES = ("train", "valid")  # of tables, and names of the folders of their images
_UNKNOWN = float("nan")
_UNCERTAIN = {"keep": -1.0, "ones": 1.0, "zeros": 0.0, "ignore": _UNKNOWN}
_BLANK = {"unknown": _UNKNOWN, "absent": 0.0}
_LABEL_VALUES = {"1.0": 1.0, "0.0": 0.0, "1": 1.0, "0": 0.0}
_UNCERTAIN_VALUES = frozenset({"-1.0", "-1"})
# The first folder is the release's name, which differs between the full and the small one.
_PATH = re.compile(
    r"(?:[^/]+/)?((train|valid|test)/(patient[0-9]{1,9})/(study[0-9]{1,4})/view[0-9]{1,4}_[a-z]{1,20})\.jpg"
)


@dataclass(frozen=True)
class Chexpert(LabelledImages):
    """CheXpert as a source of records, one per image.

    Attributes:
      root: the folder that holds `train`, `valid` and their tables, or the one around it.
      plan: of the splits; the official ones are the folders.
      views: "frontal", or "all" as the lists of MRM and MaCo have it.
      uncertain: what -1 becomes: "keep" leaves it, "ones", "zeros", "ignore" (NaN), or "published": 1 for atelectasis, edema and pleural
        effusion, 0 for cardiomegaly and consolidation, NaN for the others.
      blank: what a label that was not mentioned becomes: "unknown" (NaN), or "absent" (0) as published fine-tuning and AUCs have it.
      valid_as: the official split of the 234 images of `valid`: "test" as in published evaluations, or "validate".
    """

    views: str = "frontal"
    uncertain: str = "keep"
    blank: str = "unknown"
    valid_as: str = "test"

    @property
    def name(self) -> str:
        """TFDS name of the data set."""
        return "chexpert"

    def label_names(self) -> tuple[str, ...]:
        """The fourteen labels in the order of CheXpert's table."""
        return LABEL_NAMES

    def settings(self) -> Mapping[str, Any]:
        """Options that change the records."""
        options = {"views": self.views, "uncertain": self.uncertain, "blank": self.blank, "valid_as": self.valid_as}
        return {**options, **self.plan.settings()}

    def scan(self, *, lenient: bool = False) -> Scan:
        """Reads train.csv and, where there is one, valid.csv; every row is one input row.

        Raises:
          UserError: an unknown option, a missing table or column, or a value that CheXpert does not use.
          DataError: an image is listed twice, or as in `distribute`.
        """
        self._check_options()
        scan = Scan(lenient=lenient)
        distribute(scan, self._found(scan), self.plan, _image_of_name)
        return scan

    def train_table(self) -> Path:
        """Where train.csv is or should be."""
        home = self._home()
        return tables.find_table(home, "train.csv") or home / "train.csv"

    def _check_options(self) -> None:
        known = {
            "views": ("frontal", "all"),
            "uncertain": (*_UNCERTAIN, "published"),
            "blank": tuple(_BLANK),
            "valid_as": SPLITS[1:],
        }
        for name, values in known.items():
            if getattr(self, name) not in values:
                raise UserError(f"found {name} '{getattr(self, name)}'; expected one of {', '.join(values)}")

    def _found(self, scan: Scan) -> Iterator[Found]:
        home = self._home()
        below = home.relative_to(self.root).as_posix()
        split_of = {"train": "train", "valid": self.valid_as, "test": "test"}
        uncertain, blank, seen = self._uncertain(), _BLANK[self.blank], Names()
        for table in self._tables(scan, home):
            columns = ["Path", "Frontal/Lateral", "AP/PA", *LABEL_NAMES]
            for number, (path, side, view, *values) in scan.read(table, columns):
                with scan.row(_image_or(path)):
                    image, folder, patient, study = _place(table, number, path)
                    labels = _labels(table, number, values, uncertain, blank)
                    frontal = _is_frontal(table, number, side)
                    if not seen.put(image):
                        raise listed_twice(scan, table, number, "Path", image, _image_or)
                    file = f"{image}.jpg" if below == "." else f"{below}/{image}.jpg"
                    view = view.upper() if frontal else "LATERAL"
                    row = ImageRow(patient, f"{patient}/{study}", image, file, view, labels)
                    yield Found(row, split_of[folder], "" if frontal or self.views == "all" else "not_frontal")
        self._note_strays(scan, home, seen)

    def _note_strays(self, scan: Scan, home: Path, seen: Container[str]) -> None:
        """Images in the folders of tables that are there."""
        folders = [role for role in _ROLES if scan.lenient and scan.inputs[role] != ABSENT]
        files = (path for folder in folders for path in image_files(home, folder))
        note_strays(scan, home, ((os.path.splitext(path)[0], path) for path in files), seen)

    def _home(self) -> Path:
        """The folder that holds train.csv."""
        if tables.find_table(self.root, "train.csv"):
            return self.root
        inner = [path.parent for pattern in ("*/train.csv", "*/train.csv.gz") for path in self.root.glob(pattern)]
        if len(set(inner)) != 1:
            names = ", ".join(sorted({path.name for path in inner})) or "no train.csv"
            raise UserError(f"{self.root}: found {names}; expected the one folder of CheXpert that holds train.csv")
        return inner[0]

    def _tables(self, scan: Scan, home: Path) -> Iterator[Path]:
        for role in _ROLES:
            table = tables.find_table(home, f"{role}.csv") or home / f"{role}.csv"
            if record_hash(scan, role, table).is_file():
                yield table

    def _uncertain(self) -> tuple[float, ...]:
        """What -1 becomes, for each label."""
        if self.uncertain == "published":
            return tuple(_PUBLISHED.get(name, _UNKNOWN) for name in LABEL_NAMES)
        return (_UNCERTAIN[self.uncertain],) * len(LABEL_NAMES)


def _place(table: Path, number: int, path: str) -> tuple[str, str, str, str]:
    """(image, folder, patient, study) of a row."""
    match = _PATH.fullmatch(path)
    if match is None:
        expected = "CheXpert-v1.0-small/train/patient00001/study1/view1_frontal.jpg or the like"
        raise UserError(
            f"{table.name}: row {number} has a path that is none of CheXpert's; expected {expected}",
            code="bad_identifier",
        )
    return match[1], match[2], match[3], match[4]


def _image_or(path: str) -> str:
    """The image of a path, or the path itself where it is none of CheXpert's."""
    match = _PATH.fullmatch(path)
    return match[1] if match else path


def _image_of_name(name: str) -> str:
    """The image that a list names, whatever the release."""
    match = _PATH.fullmatch(name)
    if match is None:
        raise UserError("a list has a name that is none of CheXpert's; expected paths as in train.csv")
    return match[1]


def _is_frontal(table: Path, number: int, side: str) -> bool:
    if side not in ("Frontal", "Lateral"):
        raise UserError(f"{table.name}: row {number} is neither 'Frontal' nor 'Lateral'; expected CheXpert's own table")
    return side == "Frontal"


def _labels(
    table: Path, number: int, values: Sequence[str], uncertain: Sequence[float], blank: float
) -> tuple[float, ...]:
    labels = []
    for value, doubt in zip(values, uncertain, strict=True):
        label = blank if not value else doubt if value in _UNCERTAIN_VALUES else _LABEL_VALUES.get(value)
        if label is None:
            raise UserError(
                f"{table.name}: row {number} has a label that is none of 1, 0, -1 and blank", code="unknown_label"
            )
        labels.append(label)
    return tuple(labels)
