"""MIMIC-CXR-JPG 2.0.0 and 2.1.0 with the reports of MIMIC-CXR: images, official split, views, CheXpert labels, sentences.

Layout and tables: physionet.org/content/mimic-cxr-jpg/2.1.0 (the tables keep "2.0.0" in their names in both releases).
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from input_pipeline import tables
from input_pipeline.datasets import ms_cxr
from input_pipeline.errors import DataError, UserError
from input_pipeline.reports import open_reports
from input_pipeline.sections import report_sentences
from input_pipeline.sources import NO_SPLIT, SPLITS, Dropped, ImageRow, ImagesOnly, Scan, Sentences, read_image

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
_UNKNOWN = (float("nan"),) * len(LABEL_NAMES)
_LABEL_VALUES = {"": float("nan"), "1.0": 1.0, "0.0": 0.0, "-1.0": -1.0, "1": 1.0, "0": 0.0, "-1": -1.0}
_FRONTAL_VIEWS = frozenset({"PA", "AP"})
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
class MimicCxr(ImagesOnly):
    """MIMIC-CXR-JPG as a source of records, one per image.

    Attributes:
      jpg: folder that holds `files` and the tables.
      reports: folder or zip file of the reports.
      views: "frontal" keeps PA and AP, "all" every image.
      policy: sections whose sentences are kept, in this order.
      fallback: section that is read where none of them has text.
      exclude: an MS-CXR box file; its patients are left out of the train split ("grounding_patient" in the counts).
    """

    jpg: Path
    reports: Path
    views: str = "frontal"
    policy: tuple[str, ...] = ("findings", "impression")
    fallback: str | None = "last_paragraph"
    exclude: Path | None = None

    @property
    def name(self) -> str:
        """TFDS name of the data set."""
        return "mimic_cxr"

    def label_names(self) -> tuple[str, ...]:
        """The fourteen CheXpert labels, in the order of MIMIC-CXR's table, which is not CheXpert's own."""
        return LABEL_NAMES

    def settings(self) -> Mapping[str, Any]:
        """Options that change the records."""
        return {"views": self.views, "policy": list(self.policy), "fallback": self.fallback}

    def scan(self) -> Scan:
        """Joins the tables on `dicom_id`; every image of either table is one input row.

        Raises:
          UserError: a table or column is missing, or a value is none of those that MIMIC-CXR uses.
          DataError: an image is listed twice, the tables disagree, or a patient is in two splits.
        """
        if self.views not in ("frontal", "all"):
            raise UserError(f"found views '{self.views}'; expected 'frontal' or 'all'")
        open_reports(self.reports)
        scan = Scan(inputs={"reports": _reports_hash(self.reports)})
        splits = self._splits(scan)
        labels = self._labels(scan)
        excluded = self._excluded(scan)
        for image, (patient, study, view) in self._metadata(scan):
            split = _split_of(splits, image, patient, study)
            reason = "no_split" if split == NO_SPLIT else self._reason(split, view, patient, excluded)
            if reason:
                scan.drop(split, reason)
                continue
            path = f"files/p{patient[:2]}/p{patient}/s{study}/{image}.jpg"
            scan.keep(split, ImageRow(patient, study, image, path, view, labels.get(study, _UNKNOWN)))
        for _, _, split in splits.values():
            scan.drop(split, "no_metadata")
        for rows in scan.rows.values():
            rows.sort(key=lambda row: (row.patient, row.study, row.image))
        return scan

    def files(self, row: ImageRow) -> tuple[Path, ...]:
        """The image, and the file that holds the report."""
        return self.jpg / row.path, open_reports(self.reports).file(row.patient, row.study)

    def sentences(self, row: ImageRow) -> Sentences:
        """Sentences of the study's report; raises Dropped("no_report" or "no_text")."""
        report = open_reports(self.reports).read(row.patient, row.study)
        texts = report_sentences(report.text, policy=self.policy, fallback=self.fallback)
        if not texts:
            raise Dropped("no_text")
        flags = {"truncated_report": report.truncated, "replaced_characters": report.replaced}
        return Sentences(tuple(texts), tuple(name for name, raised in flags.items() if raised))

    def image(self, row: ImageRow) -> bytes:
        """The image file; raises Dropped("missing_image")."""
        return read_image(self.jpg, row.path)

    def _splits(self, scan: Scan) -> dict[str, tuple[str, str, str]]:
        """(patient, study, split) of each image."""
        path = self._table(scan, "split")
        splits: dict[str, tuple[str, str, str]] = {}
        split_of_patient: dict[str, str] = {}
        for number, values in tables.read_table(path, ["dicom_id", "subject_id", "study_id", "split"]):
            image, patient, study, split = values
            _check_identifiers(path, number, image, patient, study)
            if split not in SPLITS:
                raise UserError(f"{path.name}: row {number} has an unknown split; expected one of {', '.join(SPLITS)}")
            if image in splits:
                raise DataError(f"{path.name}: the image of row {number} is listed twice; expected each image once")
            if split_of_patient.setdefault(patient, split) != split:
                raise DataError(f"{path.name}: the patient of row {number} is in two splits; expected one per patient")
            splits[image] = (patient, study, split)
        return splits

    def _metadata(self, scan: Scan) -> Iterator[tuple[str, tuple[str, str, str]]]:
        """Yields each image with its (patient, study, view)."""
        path = self._table(scan, "metadata")
        columns = ["dicom_id", "subject_id", "study_id", "ViewPosition"]
        seen = set()
        for number, values in tables.read_table(path, columns, optional=["ViewCodeSequence_CodeMeaning"]):
            image, patient, study, view, meaning = values
            _check_identifiers(path, number, image, patient, study)
            if image in seen:
                raise DataError(f"{path.name}: the image of row {number} is listed twice; expected each image once")
            seen.add(image)
            yield image, (patient, study, view.upper() or _VIEW_OF_MEANING.get(meaning.lower(), ""))

    def _labels(self, scan: Scan) -> dict[str, tuple[float, ...]]:
        """Labels of each study; empty where there is no CheXpert table."""
        path = tables.find_table(self.jpg, "mimic-cxr-*-chexpert.csv")
        if path is None:
            scan.inputs["chexpert"] = "absent"
            return {}
        scan.inputs["chexpert"] = tables.file_hash(path)
        labels = {}
        for number, (study, *values) in tables.read_table(path, ["study_id", *LABEL_NAMES]):
            try:
                labels[study] = tuple(_LABEL_VALUES[value] for value in values)
            except KeyError:
                raise UserError(f"{path.name}: row {number} has a label that is none of 1, 0, -1 and blank") from None
        return labels

    def _excluded(self, scan: Scan) -> frozenset[str]:
        if self.exclude is None:
            return frozenset()
        scan.inputs["exclude"] = tables.file_hash(self.exclude)
        return ms_cxr.patients(self.exclude)

    def _reason(self, split: str, view: str, patient: str, excluded: frozenset[str]) -> str:
        """Why a row with a split is left out, or an empty string."""
        if self.views == "frontal" and view not in _FRONTAL_VIEWS:
            return "not_frontal"
        return "grounding_patient" if split == "train" and patient in excluded else ""

    def _table(self, scan: Scan, role: str) -> Path:
        path = tables.find_table(self.jpg, f"mimic-cxr-*-{role}.csv")
        if path is None:
            expected = f"mimic-cxr-2.0.0-{role}.csv.gz"
            raise UserError(f"{self.jpg}: no {role} table; expected {expected}. Is this the root of MIMIC-CXR-JPG?")
        scan.inputs[role] = tables.file_hash(path)
        return path


def _split_of(splits: dict[str, tuple[str, str, str]], image: str, patient: str, study: str) -> str:
    """Takes an image out of the split table; what stays there at the end has no metadata."""
    known = splits.pop(image, None)
    if known is None:
        return NO_SPLIT
    if known[:2] != (patient, study):
        raise DataError("the split and metadata tables disagree on the study of an image; use tables of one release")
    return known[2]


def _check_identifiers(path: Path, number: int, image: str, patient: str, study: str) -> None:
    """Paths are built from identifiers, so they may hold nothing that leads elsewhere."""
    if not (_IMAGE_NAME.fullmatch(image) and _NUMBER.fullmatch(patient) and _NUMBER.fullmatch(study)):
        expected = "digits for subject_id and study_id, and letters, digits and dashes for dicom_id"
        raise UserError(f"{path.name}: row {number} has an identifier that cannot name a file; expected {expected}")


def _reports_hash(path: Path) -> str:
    """A tree of 227,835 files is not hashed; each shard compares the sizes and times of its own."""
    return tables.file_hash(path) if path.is_file() else "not hashed"
