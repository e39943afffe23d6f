"""The tables of MIMIC-CXR-JPG 2.0.0 and 2.1.0, read by column name and held so that 377,110 images need little memory.

Identifiers are interned: an image's name stands in up to five collections at once, which hold the same string.
"""

import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import NamedTuple, Protocol, runtime_checkable

from input_pipeline import tables
from input_pipeline.errors import DataError, UserError
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

Labels = Mapping[str, tuple[float, ...]]


class Image(NamedTuple):
    """One row of the metadata."""

    name: str
    patient: str
    study: str
    view: str


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
    """The split table of the release: (patient, study, split) of each image."""

    places: dict[str, tuple[str, str, str]]

    def take(self, image: Image) -> str:
        """The split of an image; raises DataError where the tables disagree on its study."""
        known = self.places.pop(image.name, None)
        if known is None:
            return NO_SPLIT
        if known[:2] != (image.patient, image.study):
            raise DataError(
                "the split and metadata tables disagree on the study of an image; use tables of one release",
                code="tables_disagree",
            )
        return known[2]

    def left(self) -> Iterator[tuple[str, str]]:
        """Images without metadata."""
        return ((image, split) for image, (_, _, split) in self.places.items())


@dataclass
class OwnSplits:
    """A split file of the user's: by image, or by patient."""

    of_image: dict[str, str] = field(default_factory=dict)
    of_patient: dict[str, str] = field(default_factory=dict)

    def take(self, image: Image) -> str:
        """The split of an image; raises DataError where its patient has an image in another split."""
        if not self.of_image:
            return self.of_patient.get(image.patient, NO_SPLIT)
        split = self.of_image.pop(image.name, NO_SPLIT)
        if split != NO_SPLIT and self.of_patient.setdefault(image.patient, split) != split:
            found = "the split file puts images of one patient into two splits; expected one per patient"
            raise DataError(found, code="patient_in_two_splits")
        return split

    def left(self) -> Iterator[tuple[str, str]]:
        """Images without metadata; a patient without images is no row of the input."""
        return iter(self.of_image.items())


def read_official_splits(path: Path, scan: Scan) -> OfficialSplits:
    """Reads mimic-cxr-2.0.0-split.csv.

    Raises:
      UserError: a column is missing, or a value is none of those that MIMIC-CXR uses.
      DataError: an image is listed twice, or a patient is in two splits.
    """
    places: dict[str, tuple[str, str, str]] = {}
    split_of_patient: dict[str, str] = {}
    columns = ["dicom_id", "subject_id", "study_id", "split"]
    for number, (image, patient, study, split) in scan.read(path, columns):
        with scan.row(image):
            _check_identifiers(path, number, image, patient, study)
            _check_split(path, number, split)
            if image in places:
                raise _twice(scan, path, number, "dicom_id", image)
            if split_of_patient.setdefault(patient, split) != split:
                found = f"{path.name}: the patient of row {number} is in two splits; expected one per patient"
                scan.refuse(DataError(found, code="patient_in_two_splits"), image)
            places[sys.intern(image)] = (sys.intern(patient), sys.intern(study), sys.intern(split))
    return OfficialSplits(places)


def read_own_splits(path: Path, scan: Scan) -> OwnSplits:
    """Reads a CSV file of `dicom_id,split` or `subject_id,split`; with both, the image decides.

    Raises:
      UserError: neither column is there, or a split is none of train, validate and test.
      DataError: an image or patient is listed twice, or has two splits.
    """
    names = tables.column_names(path)
    key = next((name for name in ("dicom_id", "subject_id") if name in names), None)
    if key is None:
        raise UserError(f"{path.name}: no column dicom_id or subject_id; expected one of them beside 'split'")
    found: dict[str, str] = {}
    for number, (name, split) in scan.read(path, [key, "split"]):
        with scan.row(name):
            _check_split(path, number, split)
            if not (_IMAGE_NAME if key == "dicom_id" else _NUMBER).fullmatch(name):
                raise UserError(f"{path.name}: row {number} has no {key}; expected one as in the metadata table")
            if found.get(name, split) != split:
                where = f"{path.name}: row {number} is listed before with another split"
                raise DataError(f"{where}; expected one split each", code="duplicate_image")
            found[sys.intern(name)] = sys.intern(split)
    return OwnSplits(of_image=found) if key == "dicom_id" else OwnSplits(of_patient=found)


def read_images(path: Path, scan: Scan) -> Iterator[Image]:
    """Reads mimic-cxr-2.0.0-metadata.csv; a missing view is taken from the meaning of its code.

    Raises:
      UserError: a column is missing, or an identifier cannot name a file.
      DataError: an image is listed twice.
    """
    seen = set()
    columns = ["dicom_id", "subject_id", "study_id", "ViewPosition"]
    optional = ["ViewCodeSequence_CodeMeaning"]
    for number, values in scan.read(path, columns, optional=optional):
        image, patient, study, view, meaning = values
        with scan.row(image):
            _check_identifiers(path, number, image, patient, study)
            if image in seen:
                raise _twice(scan, path, number, "dicom_id", image)
            image = sys.intern(image)
            seen.add(image)
            view = view.upper() or _VIEW_OF_MEANING.get(meaning.lower(), "")
            yield Image(image, sys.intern(patient), sys.intern(study), sys.intern(view))


def read_labels(path: Path, scan: Scan) -> dict[str, tuple[float, ...]]:
    """Labels of each study, in the order of `LABEL_NAMES`, from CheXpert's, NegBio's or the radiologists' table.

    Raises:
      UserError: a label is missing, or a value is none of 1, 0, -1 and blank.
      DataError: a study is listed twice.
    """
    labels: dict[str, tuple[float, ...]] = {}
    shared: dict[tuple[str, ...], tuple[float, ...]] = {}  # some thousand patterns for 227,827 studies
    columns = ["study_id", *_label_columns(path)]
    for number, (study, *values) in scan.read(path, columns):
        with scan.row(study):
            if study in labels:
                raise _twice(scan, path, number, "study_id", study)
            pattern = tuple(values)
            if pattern not in shared:
                shared[pattern] = _label_values(path, number, pattern)
            labels[sys.intern(study)] = shared[pattern]
    return labels


def read_filenames(path: Path, scan: Scan) -> set[str]:
    """Names of the images that IMAGE_FILENAMES lists, without folder and ".jpg".

    Raises:
      UserError: a line is no path of an image.
      DataError: an image is listed twice.
    """
    names: set[str] = set()
    with path.open(encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            name = PurePosixPath(line.strip())
            with scan.row(name.stem):
                if name.suffix != ".jpg" or not _IMAGE_NAME.fullmatch(name.stem):
                    raise UserError(f"{path.name}: line {number} is no image; expected files/p10/p.../s.../....jpg")
                if name.stem in names:
                    found = f"{path.name}: the image of line {number} is listed twice; expected each image once"
                    raise DataError(found, code="duplicate_image")
                names.add(sys.intern(name.stem))
    return names


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
    first = "" if scan.lenient else f", first in row {_first_row(path, column, value)}"
    what = "image" if column == "dicom_id" else "study"
    return DataError(
        f"{path.name}: the {what} of row {number} is listed twice{first}; expected once", code="duplicate_image"
    )


def _first_row(path: Path, column: str, value: str) -> int:
    return next(row for row, (name,) in tables.read_table(path, [column]) if name == value)
