"""The tables of MIMIC-CXR-JPG 2.0.0 and 2.1.0, read by column name and held so that 377,110 images need hardly more memory than a few.

An image's name stands in up to five tables: it is kept once, on disk, and a table is a few columns of numbers beside it.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

from input_pipeline import progress, tables
from input_pipeline.compact import Column, Names
from input_pipeline.errors import DataError, UserError
from input_pipeline.scratch import Rows
from input_pipeline.sources import NO_SPLIT, SPLITS, Scan

LABEL_NAMES = (
    "Atelectasis",
    "Cardiomegaly",
    "Consolidation",
    "Edema",
    "Enlarged Cardiomediastinum",
    "Fracture",
    "Lung Lesion",
    "Lung Opacity",
    "No Finding",
    "Pleural Effusion",
    "Pleural Other",
    "Pneumonia",
    "Pneumothorax",
    "Support Devices",
)
UNKNOWN = (float("nan"),) * len(LABEL_NAMES)
_LABEL_VALUES = {"": float("nan"), "1.0": 1.0, "0.0": 0.0, "-1.0": -1.0, "1": 1.0, "0": 0.0, "-1": -1.0}
# The radiologists' table of release 2.1.0 has another name for one label.
_OTHER_NAMES = {"Lung Opacity": "Airspace Opacity"}
# Some 15,000 images have no ViewPosition; the coded view of most of them is spelled out in another column.
_VIEW_OF_MEANING = {
    "postero-anterior": "PA",
    "antero-posterior": "AP",
    "lateral": "LATERAL",
    "left lateral": "LL",
}
_NUMBER = re.compile(r"[0-9]{2,20}")
_IMAGE_NAME = re.compile(r"[0-9A-Za-z][0-9A-Za-z_-]{0,99}")


@dataclass(frozen=True)
class Index:
    """The identifiers in all tables of a release, each kept once."""

    images: Names = field(default_factory=Names)
    patients: Names = field(default_factory=Names)
    studies: Names = field(default_factory=Names)


class Labels(Mapping[str, tuple[float, ...]]):
    """Labels by study; some thousand patterns for 227,827 studies."""

    def __init__(self, studies: Names):
        self._studies, self._pattern_of = studies, Column("I")  # counted from 1
        self._numbers: dict[tuple[float, ...], int] = {}
        self._patterns: list[tuple[float, ...]] = []

    def add(self, study: str, labels: tuple[float, ...]) -> None:
        """Sets the labels of a study; equal objects are kept once."""
        if labels not in self._numbers:
            self._patterns.append(labels)
            self._numbers[labels] = len(self._patterns)
        self._pattern_of[self._studies.add(study)] = self._numbers[labels]

    def __getitem__(self, study: str) -> tuple[float, ...]:
        number = self._pattern_of[self._studies.find(study)]
        if not number:
            raise KeyError(study)
        return self._patterns[number - 1]

    def __iter__(self) -> Iterator[str]:
        return (self._studies[number] for number in self._pattern_of.numbers())

    def __len__(self) -> int:
        return len(self._pattern_of)


class Image(NamedTuple):
    """One row of the metadata; `flag` says what is odd about it."""

    name: str
    patient: str
    study: str
    view: str
    flag: str = ""


@runtime_checkable
class Splits(Protocol):
    """A split of the images, by whatever it is given."""

    def take(self, image: Image) -> str:
        """The split of an image, or `NO_SPLIT`; asked once per image."""
        ...

    def left(self) -> Iterator[tuple[str, str]]:
        """Images that were never asked for, with their splits."""
        ...


@dataclass
class OfficialSplits:
    """The split table of the release: patient and study, and split (a place in SPLITS, counted from 1), of each image."""

    index: Index
    owner_of: Rows = field(default_factory=lambda: Rows("II"))
    split_of: Column = field(default_factory=lambda: Column("B"))

    def take(self, image: Image) -> str:
        """The split of an image; raises DataError where the tables disagree on its study."""
        number = self.index.images.find(image.name)
        if not (split := self.split_of[number]):
            return NO_SPLIT
        self.split_of[number] = 0
        patient, study = self.index.patients.find(image.patient), self.index.studies.find(image.study)
        if self.owner_of[number] != (patient, study):
            raise DataError(
                "the split and metadata tables disagree on the study of an image; use tables of one release",
                code="tables_disagree",
            )
        return SPLITS[split - 1]

    def left(self) -> Iterator[tuple[str, str]]:
        """Images without metadata."""
        return _left(self.index, self.split_of)


@dataclass
class OwnSplits:
    """A split file of the user's: by image, or by patient."""

    index: Index
    by_image: bool
    of_image: Column = field(default_factory=lambda: Column("B"))
    of_patient: Column = field(default_factory=lambda: Column("B"))

    def take(self, image: Image) -> str:
        """The split of an image; raises DataError where its patient has an image in another split."""
        patient = self.index.patients.add(image.patient)
        split = self.of_patient[patient]
        if self.by_image:
            number = self.index.images.find(image.name)
            of_patient, split = split, self.of_image[number]
            if split:
                self.of_image[number] = 0
                self.of_patient[patient] = of_patient or split
            if split and of_patient not in (0, split):
                found = "the split file puts images of one patient into two splits; expected one per patient"
                raise DataError(found, code="patient_in_two_splits")
        return SPLITS[split - 1] if split else NO_SPLIT

    def left(self) -> Iterator[tuple[str, str]]:
        """Images without metadata; a patient without images is no row of the input."""
        return _left(self.index, self.of_image)


def _left(index: Index, split_of: Column) -> Iterator[tuple[str, str]]:
    return ((index.images[number], SPLITS[split_of[number] - 1]) for number in split_of.numbers())


def read_official_splits(path: Path, scan: Scan, index: Index) -> OfficialSplits:
    """Reads mimic-cxr-2.0.0-split.csv.

    Raises:
      UserError: a column is missing, or a value is none of those that MIMIC-CXR uses.
      DataError: an image is listed twice, or a patient is in two splits.
    """
    splits, split_of_patient = OfficialSplits(index), Column("B")
    columns = ["dicom_id", "subject_id", "study_id", "split"]
    for number, (image, patient, study, split) in scan.read(path, columns):
        with scan.row(image):
            _check_identifiers(path, number, image, patient, study)
            _check_split(path, number, split)
            if splits.split_of[index.images.find(image)]:
                raise _twice(scan, path, number, "dicom_id", image)
            own, whose, place = index.images.add(image), index.patients.add(patient), SPLITS.index(split) + 1
            known = split_of_patient[whose]
            split_of_patient[whose] = known or place
            if known not in (0, place):
                found = f"{path.name}: the patient of row {number} is in two splits; expected one per patient"
                scan.refuse(DataError(found, code="patient_in_two_splits"), image)
            splits.split_of[own], splits.owner_of[own] = place, (whose, index.studies.add(study))
    return splits


def read_own_splits(path: Path, scan: Scan, index: Index) -> OwnSplits:
    """Reads a CSV file of `dicom_id,split` or `subject_id,split`; with both, the image decides.

    Raises:
      UserError: neither column is there, or a split is none of train, validate and test.
      DataError: an image or patient is listed twice, or has two splits.
    """
    names = tables.column_names(path)
    key = next((name for name in ("dicom_id", "subject_id") if name in names), None)
    if key is None:
        raise UserError(f"{path.name}: no column dicom_id or subject_id; expected one of them beside 'split'")
    splits = OwnSplits(index, key == "dicom_id")
    names, found = (index.images, splits.of_image) if splits.by_image else (index.patients, splits.of_patient)
    for number, (name, split) in scan.read(path, [key, "split"]):
        with scan.row(name):
            _check_split(path, number, split)
            if not (_IMAGE_NAME if splits.by_image else _NUMBER).fullmatch(name):
                raise UserError(f"{path.name}: row {number} has no {key}; expected one as in the metadata table")
            own, place = names.add(name), SPLITS.index(split) + 1
            if found[own] not in (0, place):
                where = f"{path.name}: row {number} is listed before with another split"
                raise DataError(f"{where}; expected one split each", code="duplicate_image")
            found[own] = place
    return splits


def read_images(path: Path, scan: Scan, index: Index) -> Iterator[Image]:
    """Reads mimic-cxr-2.0.0-metadata.csv; a missing view is taken from the meaning of its code.

    Raises:
      UserError: a column is missing, or an identifier cannot name a file.
      DataError: an image is listed twice.
    """
    seen = Column("B")
    columns = ["dicom_id", "subject_id", "study_id", "ViewPosition"]
    optional = ["ViewCodeSequence_CodeMeaning"]
    for number, values in scan.read(path, columns, optional=optional):
        image, patient, study, view, meaning = values
        with scan.row(image):
            _check_identifiers(path, number, image, patient, study)
            own = index.images.add(image)
            if seen[own]:
                raise _twice(scan, path, number, "dicom_id", image)
            seen[own] = 1
            coded = "" if view else _VIEW_OF_MEANING.get(meaning.lower(), "")
            yield Image(image, patient, study, view.upper() or coded, "view_from_code" if coded else "")


def read_labels(path: Path, scan: Scan, index: Index) -> Labels:
    """Labels of each study, in the order of `LABEL_NAMES`, from CheXpert's, NegBio's or the radiologists' table.

    Raises:
      UserError: a label is missing, or a value is none of 1, 0, -1 and blank.
      DataError: a study is listed twice.
    """
    labels = Labels(index.studies)
    shared: dict[tuple[str, ...], tuple[float, ...]] = {}
    columns = ["study_id", *_label_columns(path)]
    for number, (study, *values) in scan.read(path, columns):
        with scan.row(study):
            if study in labels:
                raise _twice(scan, path, number, "study_id", study)
            pattern = tuple(values)
            if pattern not in shared:
                shared[pattern] = _label_values(path, number, pattern)
            labels.add(study, shared[pattern])
    return labels


def read_filenames(path: Path, scan: Scan, index: Index) -> Column:
    """Which images IMAGE_FILENAMES lists: 1 for their numbers in the index.

    Raises:
      UserError: a line is no path of an image.
      DataError: an image is listed twice.
    """
    listed = Column("B")
    with path.open(encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(progress.counted(lines, path.name, "lines"), 1):
            if not line.strip():
                continue
            file = line.strip().rpartition("/")[2]
            name = file.removesuffix(".jpg")
            with scan.row(name):
                if name == file or not _IMAGE_NAME.fullmatch(name):
                    raise UserError(f"{path.name}: line {number} is no image; expected files/p10/p.../s.../....jpg")
                own = index.images.add(name)
                if listed[own]:
                    found = f"{path.name}: the image of line {number} is listed twice; expected each image once"
                    raise DataError(found, code="duplicate_image")
                listed[own] = 1
    return listed


def _label_columns(path: Path) -> list[str]:
    names = tables.column_names(path)
    other = {name: other for name, other in _OTHER_NAMES.items() if name not in names and other in names}
    return [other.get(name, name) for name in LABEL_NAMES]


def _label_values(path: Path, number: int, pattern: tuple[str, ...]) -> tuple[float, ...]:
    try:
        return tuple(_LABEL_VALUES[value] for value in pattern)
    except KeyError:
        raise UserError(
            f"{path.name}: row {number} has a label that is none of 1, 0, -1 and blank", code="unknown_label"
        ) from None


def _check_split(path: Path, number: int, split: str) -> None:
    if split not in SPLITS:
        raise UserError(
            f"{path.name}: row {number} has an unknown split; expected one of {', '.join(SPLITS)}", code="unknown_split"
        )


def _check_identifiers(path: Path, number: int, image: str, patient: str, study: str) -> None:
    """Paths are built from identifiers, so they may hold nothing that leads elsewhere."""
    if not (_IMAGE_NAME.fullmatch(image) and _NUMBER.fullmatch(patient) and _NUMBER.fullmatch(study)):
        expected = "digits for subject_id and study_id, and letters, digits and dashes for dicom_id"
        raise UserError(
            f"{path.name}: row {number} has an identifier that cannot name a file; expected {expected}",
            code="bad_identifier",
        )


def _twice(scan: Scan, path: Path, number: int, column: str, value: str) -> DataError:
    """Names both rows; the first is looked up again, so that no row's number is kept for it. A lenient scan may meet many: it names one."""
    first = "" if scan.lenient else f", first in row {tables.first_row(path, column, value.__eq__)}"
    what = "image" if column == "dicom_id" else "study"
    return DataError(
        f"{path.name}: the {what} of row {number} is listed twice{first}; expected once", code="duplicate_image"
    )
