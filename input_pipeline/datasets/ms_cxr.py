"""MS-CXR 0.1 and 1.1.0: phrases with boxes on images of MIMIC-CXR-JPG (physionet.org/content/ms-cxr)."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from input_pipeline import tables
from input_pipeline.errors import UserError
from input_pipeline.sections import clean_sentence
from input_pipeline.sources import ImageRow, ImagesOnly, Scan, is_relative, read_image

_COLUMNS = ["category_name", "label_text", "path", "dicom_id", "x", "y", "w", "h"]
_SPLITS = {"train": "train", "val": "validate", "validate": "validate", "test": "test", "": "test"}
_PATH = re.compile(r"(?:.*/)?p([0-9]{2,20})/s([0-9]{2,20})/[^/]+")

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class MsCxr(ImagesOnly):
    """MS-CXR as a source of records, one per image and phrase, with all boxes of the pair.

    The labels of a record are the finding of its phrase (1) and nothing about the others (NaN).

    Attributes:
      jpg: folder of MIMIC-CXR-JPG, to which the paths in the table are relative.
      boxes: the CSV file, one row per box; without a `split` column (release 0.1) everything is "test".
    """

    jpg: Path
    boxes: Path

    @property
    def name(self) -> str:
        """TFDS name of the data set."""
        return "ms_cxr"

    def label_names(self) -> tuple[str, ...]:
        """The findings of the table, in alphabetical order."""
        return tuple(sorted({values[0] for _, values in tables.read_table(self.boxes, _COLUMNS)}))

    def settings(self) -> Mapping[str, Any]:
        """Options that change the records: none."""
        return {}

    def scan(self) -> Scan:
        """Groups the boxes by image and phrase, spelled alike; one group is one input row.

        Raises:
          UserError: a column is missing, or a row has no finite box, an unknown split or a path out of the folder.
        """
        names = self.label_names()
        groups: dict[tuple[str, str], tuple[str, ImageRow]] = {}
        for number, values in tables.read_table(self.boxes, _COLUMNS, optional=["split"]):
            category, text, path, image, *box, split = values
            split, patient, study = _place(self.boxes, number, split, path)
            phrase = clean_sentence(text)
            group = image, phrase
            _, known = groups.get(group, ("", None))
            boxes = (*(known.boxes if known else ()), _box(self.boxes, number, box))
            category = known.category if known else category
            labels = tuple(1.0 if name == category else float("nan") for name in names)
            groups[group] = split, ImageRow(patient, study, image, path, "", labels, phrase, category, boxes)
        scan = Scan(inputs={"boxes": tables.file_hash(self.boxes)})
        for split, row in groups.values():
            if row.phrase:
                scan.keep(split, row)
            else:
                scan.drop(split, "no_text")
        for rows in scan.rows.values():
            rows.sort(key=lambda row: (row.patient, row.study, row.image, row.phrase))
        return scan

    def files(self, row: ImageRow) -> tuple[Path, ...]:
        """The image."""
        return (self.jpg / row.path,)

    def image(self, row: ImageRow) -> bytes:
        """The image file; raises Dropped("missing_image")."""
        return read_image(self.jpg, row.path)


def _place(table: Path, number: int, split: str, path: str) -> tuple[str, str, str]:
    """(split, patient, study) of a row."""
    if split not in _SPLITS:
        raise UserError(f"{table.name}: row {number} has an unknown split; expected train, val or test")
    if not is_relative(path):
        raise UserError(f"{table.name}: the path of row {number} leads out of the data folder; expected files/p10/...")
    place = _PATH.fullmatch(path)
    if place is None:
        raise UserError(f"{table.name}: the path of row {number} names no study; expected files/p10/p.../s.../....jpg")
    return _SPLITS[split], place[1], place[2]


def _box(table: Path, number: int, values: list[str]) -> Box:
    try:
        x, y, width, height = (float(value) for value in values)
    except ValueError:
        x = y = width = height = float("nan")
    if not all(abs(value) < 1e6 for value in (x, y, width, height)) or width <= 0 or height <= 0:
        raise UserError(f"{table.name}: row {number} has no box; expected numbers x, y, w, h with w and h above 0")
    return x, y, width, height
