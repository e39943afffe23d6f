"""RSNA Pneumonia Detection Challenge, stage 2: images with boxes of lung opacities that suggest pneumonia.

Challenge: kaggle.com/c/rsna-pneumonia-detection-challenge. Its `patientId` is an identifier of the image: the images come from NIH
ChestX-ray14, whose patients are not told, so nothing here can keep a patient in one split.
"""

import dataclasses
import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool

from input_pipeline.datasets.image_files import find_images, image_of_name, note_strays
from input_pipeline.datasets.labelled import (
    Box,
    Found,
    LabelledImages,
    contradicts,
    distribute,
    find_one_table,
    parse_box,
    record_hash,
)
from input_pipeline.errors import DataError, UserError
from input_pipeline.sources import ImageRow, Scan, check_size

LABEL_NAMES = ("Pneumonia",)
DETAILED_LABELS = ("Normal", "No Lung Opacity / Not Normal")
_FOLDERS = ("stage_2_train_images", "stage_2_test_images")
_SIDE = 1024  # of the released images, to which the boxes belong
_OPACITY = "Lung Opacity"
_BLANK = frozenset({"", "nan"})
_UNKNOWN = float("nan")
_IMAGE = re.compile(r"[0-9A-Za-z][0-9A-Za-z.-]{0,99}")


@dataclass(frozen=True)
class RsnaPneumonia(LabelledImages):
    """RSNA Pneumonia as a source of records, one per image with all its boxes.

    A record with boxes has "Pneumonia" as category and as its one sentence, which is a prompt for grounding and no report.

    Attributes:
      root: holds `stage_2_train_images`, `stage_2_test_images` and the tables.
      plan: of the splits; without one, `stage_2_train_images` are "train" and `listed` are "test".
      listed: labels (1 or 0) of images of `stage_2_test_images`, which stand in no table of the challenge but in published lists.
      detailed: adds the labels of stage_2_detailed_class_info.csv that tell healthy images from otherwise abnormal ones.
    """

    listed: Mapping[str, float] = field(default_factory=dict)
    detailed: bool = False

    @property
    def name(self) -> str:
        """TFDS name of the data set."""
        return "rsna_pneumonia"

    def label_names(self) -> tuple[str, ...]:
        """The label of the challenge, and with `detailed` those of its classes without opacity."""
        return (*LABEL_NAMES, *(DETAILED_LABELS if self.detailed else ()))

    def for_workers(self) -> Any:
        """Without the names of the plan and the list."""
        return dataclasses.replace(super().for_workers(), listed={})

    def settings(self) -> Mapping[str, Any]:
        """Options that change the records."""
        return {"detailed": self.detailed, "listed": len(self.listed), **self.plan.settings()}

    def scan(self, *, lenient: bool = False) -> Scan:
        """Groups the boxes by image; an image is one input row.

        Raises:
          UserError: no table, or a row that the release does not have.
          DataError: a row is there twice, the rows of an image disagree, or as in `distribute`.
        """
        scan = Scan(lenient=lenient)
        table = record_hash(scan, "labels", find_one_table(self.root, ["stage_2_train_labels.csv"]))
        boxes = _boxes(scan, table)
        details = self._details(scan, boxes)
        if self.listed:
            lines = sorted(f"{name} {label}" for name, label in self.listed.items())
            scan.inputs["listed"] = hashlib.sha256("\n".join(lines).encode()).hexdigest()
        distribute(scan, self._found(scan, boxes, details), self.plan, image_of_name)
        return scan

    def mask(self, row: ImageRow, height: int, width: int) -> Bool[np.ndarray, "H W"] | None:
        """None; raises Dropped("wrong_size") for an image of another size than its boxes were drawn on."""
        if row.boxes:
            check_size(height, width, (_SIDE, _SIDE))
        return None

    def _found(
        self, scan: Scan, boxes: Mapping[str, tuple[Box, ...]], details: Mapping[str, tuple[float, ...]]
    ) -> Iterator[Found]:
        paths = [find_images(self.root, [folder], scan) for folder in _FOLDERS]
        note_strays(scan, self.root, paths[0].items(), boxes)  # the challenge's own test images stand in no table
        for image, own in boxes.items():
            path = paths[0].get(image, f"{_FOLDERS[0]}/{image}.dcm")
            phrase = LABEL_NAMES[0] if own else ""
            labels = (float(bool(own)), *details.get(image, ()))
            yield Found(ImageRow(image, image, image, path, "", labels, phrase, phrase, own), "train")
        for image, label in self._listed(boxes).items():
            path = paths[1].get(image, f"{_FOLDERS[1]}/{image}.dcm")
            labels = (label, *((_UNKNOWN,) * len(DETAILED_LABELS) if self.detailed else ()))
            yield Found(ImageRow(image, image, image, path, "", labels), "test")

    def _listed(self, known: Mapping[str, Any]) -> dict[str, float]:
        listed = {image_of_name(name): float(label) for name, label in self.listed.items()}
        if not all(label in (0.0, 1.0) and _IMAGE.fullmatch(image) for image, label in listed.items()):
            raise UserError("a listed image has no name, or a label other than 0 and 1")
        both = sum(image in known for image in listed)
        if both or len(listed) != len(self.listed):
            raise DataError(
                f"{both or len(self.listed) - len(listed):,} listed images are listed twice or in the table"
            )
        return listed

    def _details(self, scan: Scan, boxes: Mapping[str, tuple[Box, ...]]) -> dict[str, tuple[float, ...]]:
        """The labels of `DETAILED_LABELS` for each image; the table has a row per box."""
        if not self.detailed:
            return {}
        table = record_hash(scan, "classes", find_one_table(self.root, ["stage_2_detailed_class_info.csv"]))
        details: dict[str, tuple[float, ...]] = {}
        for number, (image, name) in scan.read(table, ["patientId", "class"]):
            if name != _OPACITY and name not in DETAILED_LABELS:
                raise UserError(
                    f"{table.name}: row {number} has an unknown class; expected one of the challenge's three"
                )
            labels = tuple(float(name == label) for label in DETAILED_LABELS)
            if bool(boxes.get(image)) != (name == _OPACITY) or details.setdefault(image, labels) != labels:
                raise DataError(f"{table.name}: row {number} disagrees with another row or with the boxes")
        if boxes.keys() - details.keys():
            raise DataError(
                f"{table.name}: {len(boxes.keys() - details.keys()):,} images have no class; fetch it again"
            )
        return details


def _boxes(scan: Scan, table: Path) -> dict[str, tuple[Box, ...]]:
    """The boxes of each image, none for images without pneumonia."""
    boxes: dict[str, tuple[Box, ...]] = {}
    columns = ["patientId", "Target", "x", "y", "width", "height"]
    for number, (image, target, *values) in scan.read(table, columns):
        with scan.row(image):
            if not _IMAGE.fullmatch(image):
                found = f"{table.name}: row {number} has an identifier that cannot name a file"
                raise UserError(found, code="bad_identifier")
            own = _own_boxes(table, number, target, values)
            known = boxes.get(image)
            if known is not None and (not known or not own or own[0] in known):
                raise contradicts(scan, table, number, "patientId", image)
            boxes[image] = (*(known or ()), *own)
    return boxes


def _own_boxes(table: Path, number: int, target: str, values: list[str]) -> tuple[Box, ...]:
    if target not in ("0", "1"):
        raise UserError(f"{table.name}: row {number} has a Target that is neither 0 nor 1", code="unknown_label")
    if target == "1":
        return (parse_box(f"{table.name}: row {number}", values),)
    if not all(value.lower() in _BLANK for value in values):
        raise UserError(f"{table.name}: row {number} has Target 0 and a box; expected no box")
    return ()
