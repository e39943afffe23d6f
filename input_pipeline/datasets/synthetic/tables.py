"""Rows of the tables that PhysioNet and the SIIM challenge ship, and files whose bytes depend on nothing but their content."""

import csv
import gzip
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool

from input_pipeline.datasets.mimic_tables import LABEL_NAMES
from input_pipeline.datasets.synthetic.report import Report
from input_pipeline.datasets.synthetic.study import Study

SPLIT_COLUMNS = ("dicom_id", "study_id", "subject_id", "split")
METADATA_COLUMNS = (
    "dicom_id",
    "subject_id",
    "study_id",
    "PerformedProcedureStepDescription",
    "ViewPosition",
    "Rows",
    "Columns",
    "StudyDate",
    "StudyTime",
    "ProcedureCodeSequence_CodeMeaning",
    "ViewCodeSequence_CodeMeaning",
    "PatientOrientationCodeSequence_CodeMeaning",
)
LABEL_COLUMNS = ("subject_id", "study_id", *LABEL_NAMES)
BOX_COLUMNS = (
    "category_name",
    "label_text",
    "path",
    "dicom_id",
    "x",
    "y",
    "w",
    "h",
    "image_width",
    "image_height",
    "split",
)
RLE_COLUMNS = ("ImageId", " EncodedPixels")  # the challenge's own header has this space
NO_PIXELS = " -1"

_VIEW_CODES = {"PA": "postero-anterior", "AP": "antero-posterior", "LATERAL": "lateral"}
_PROCEDURES = {"PA": "CHEST (PA AND LAT)", "AP": "CHEST (PORTABLE AP)"}

Row = tuple[object, ...]


def split_row(study: Study, view: str) -> Row:
    """Row of mimic-cxr-2.0.0-split.csv for one image."""
    return study.dicom_id(view), study.study_id, study.subject_id, study.split


def metadata_row(study: Study, view: str, size: int) -> Row:
    """Row of mimic-cxr-2.0.0-metadata.csv for one size x size image; the codes follow the study's frontal view."""
    procedure = _PROCEDURES[study.view]
    posture = "Erect" if study.view == "PA" else "Recumbent"
    identity = (study.dicom_id(view), study.subject_id, study.study_id)
    return (*identity, procedure, view, size, size, study.date, study.time, procedure, _VIEW_CODES[view], posture)


def label_row(study: Study, report: Report) -> Row:
    """Row of mimic-cxr-2.0.0-chexpert.csv: 1.0 in the image, 0.0 denied by the report, blank not mentioned.

    Pneumonia is a Lung Opacity too. No Finding is 1.0 where none of the eight findings is present. A study whose report
    is unusable keeps the labels of its image, which the real labeller could not know.
    """
    present = {finding.name for finding in study.findings}
    values = dict.fromkeys(report.denied, "0.0") | dict.fromkeys(present, "1.0")
    if "Pneumonia" in present:
        values["Lung Opacity"] = "1.0"
    if not present:
        values["No Finding"] = "1.0"
    return (study.subject_id, study.study_id, *(values.get(label, "") for label in LABEL_NAMES))


def encode_rle(mask: Bool[np.ndarray, "H W"]) -> str:
    """SIIM's relative run lengths of a mask [H, W], with the leading space of train-rle.csv; " -1" for an empty mask.

    Pixels run down the columns; each start counts from the end of the run before it (SIIM-ACR Pneumothorax challenge).
    """
    flat = np.concatenate([[False], mask.T.ravel(), [False]])
    edges = np.flatnonzero(flat[1:] != flat[:-1])
    if not len(edges):
        return NO_PIXELS
    gaps_and_lengths = np.diff(edges, prepend=0)
    return " " + " ".join(map(str, gaps_and_lengths))


def write_table(path: Path, columns: Sequence[str], rows: Iterable[Row]) -> None:
    """Writes a CSV; a name ending in .gz is compressed without a time stamp, so equal rows give equal bytes."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    data = text.getvalue().encode()
    path.write_bytes(gzip.compress(data, compresslevel=6, mtime=0) if path.suffix == ".gz" else data)
