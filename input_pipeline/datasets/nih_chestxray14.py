"""NIH ChestX-ray14: images with fourteen mined labels, and boxes of eight findings (nihcc.app.box.com/v/ChestXray-NIHCC).

Both tables are read by place where their headers mislead: "OriginalImage[Width,Height]" is one name but two fields.
"""

import dataclasses
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool

from input_pipeline import tables
from input_pipeline.compact import Names
from input_pipeline.datasets.image_files import find_images, note_strays
from input_pipeline.datasets.labelled import (
    Box,
    Found,
    LabelledImages,
    SplitPlan,
    distribute,
    find_one_table,
    listed_twice,
    parse_box,
    record_hash,
)
from input_pipeline.errors import DataError, UserError
from input_pipeline.sources import NO_SPLIT, ImageRow, Scan, check_size, part_of
from input_pipeline.splits import NIH_LABEL_NAMES, OFFICIAL_NIH, official_nih

LABEL_NAMES = NIH_LABEL_NAMES
_KNOWN = frozenset(LABEL_NAMES)
_NO_FINDING = "No Finding"
_OTHER_NAMES = {"Infiltrate": "Infiltration"}  # the table of boxes has the first, that of labels the second
_SIDE = 1024  # of the released images, to which the boxes belong
_IMAGE = re.compile(r"([0-9]{8})_[0-9]{3}\.png")


@dataclass(frozen=True)
class NihChestXray14(LabelledImages):
    """NIH ChestX-ray14 as a source of records, one per image; a label is 1 or 0, as nothing is said of doubt.

    Attributes:
      root: holds the tables, and the images in `images_001/images` to `images_012/images`, in `images`, or beside the tables.
      plan: of the splits; the official ones are train_val_list.txt ("train") and test_list.txt ("test").
      table: of the labels; by default the only Data_Entry_2017*.csv: the vintages 2017 and v2020 have different labels.
    """

    table: Path | None = None

    @property
    def name(self) -> str:
        """TFDS name of the data set."""
        return "nih_chestxray14"

    def label_names(self) -> tuple[str, ...]:
        """The fourteen labels in the order of the lists of MRM and MaCo."""
        return LABEL_NAMES

    def settings(self) -> Mapping[str, Any]:
        """Options that change the records."""
        return self.plan.settings()

    def scan(self, *, lenient: bool = False) -> Scan:
        """Reads the table of labels; every row is one input row.

        Raises:
          UserError: no table, or no official lists where they are needed, or a row that the release does not have.
          DataError: an image is listed twice, or as in `distribute`.
        """
        scan = Scan(lenient=lenient)
        table = record_hash(scan, "labels", find_one_table(self.root, ["Data_Entry_2017*.csv"], self.table))
        distribute(scan, self._found(scan, table), self._plan(scan), _file_name)
        return scan

    def _found(self, scan: Scan, table: Path) -> Iterator[Found]:
        paths, seen = _image_paths(self.root, scan), Names()
        columns = ["Image Index", "Finding Labels", "Patient ID", "View Position"]
        for number, (image, findings, patient, view) in scan.read(table, columns):
            with scan.row(image):
                owner = _patient(table, number, image)
                if not patient.isdecimal() or int(patient) != int(owner):
                    found = f"{table.name}: the patient of row {number} is not that of its image's name"
                    raise UserError(found, code="tables_disagree")
                labels = _labels(table, number, findings)
                if not seen.put(image):
                    raise listed_twice(scan, table, number, "Image Index", image)
                yield Found(_row(owner, image, paths, view=view.upper(), labels=labels), NO_SPLIT)
        note_strays(scan, self.root, paths.items(), seen, _image_of_stem)

    def _plan(self, scan: Scan) -> SplitPlan:
        """The plan, with the official lists where it has none of its own."""
        if self.plan.splits is not None:
            return self.plan
        for name in OFFICIAL_NIH.values():
            if not (self.root / name).is_file():
                raise UserError(f"{self.root}: no {name}; expected the official lists, or published ones (--lists DIR)")
            record_hash(scan, name, self.root / name)
        return dataclasses.replace(self.plan, splits=official_nih(self.root, refuse=scan.refuse))


@dataclass(frozen=True)
class NihBoxes(LabelledImages):
    """The boxes of NIH ChestX-ray14 as a source of records for grounding, one per image and finding, with all its boxes.

    The phrase of a record is the name of its finding; its labels are that finding (1) and nothing about the others (NaN).

    Attributes:
      root: as for `NihChestXray14`.
      plan: of the splits; without one everything is "test".
    """

    @property
    def name(self) -> str:
        """TFDS name of the data set."""
        return "nih_boxes"

    def label_names(self) -> tuple[str, ...]:
        """The fourteen labels, of which eight have boxes."""
        return LABEL_NAMES

    def settings(self) -> Mapping[str, Any]:
        """Options that change the records."""
        return self.plan.settings()

    def scan(self, *, lenient: bool = False) -> Scan:
        """Groups the boxes by image and finding; one group is one input row.

        Raises:
          UserError: no table, or a row without image, finding or box.
          DataError: a box is listed twice, or as in `distribute`.
        """
        scan = Scan(lenient=lenient)
        table = record_hash(scan, "boxes", find_one_table(self.root, ["BBox_List_2017*.csv"]))
        distribute(scan, self._found(scan, table), self.plan, _file_name)
        return scan

    def mask(self, row: ImageRow, height: int, width: int) -> Bool[np.ndarray, "H W"] | None:
        """None; raises Dropped("wrong_size") for an image of another size than the boxes were drawn on."""
        check_size(height, width, (_SIDE, _SIDE))
        return None

    def _found(self, scan: Scan, table: Path) -> Iterator[Found]:
        paths = _image_paths(self.root, scan)
        groups: dict[tuple[str, str], ImageRow] = {}
        first: dict[tuple[str, str, Box], int] = {}  # number of the row, by image, finding and box
        for number, (image, name, *values) in scan.counted(
            table, tables.read_fields(table, 6, refuse=scan.skip(table))
        ):
            finding = _OTHER_NAMES.get(name, name)
            with scan.row(image, part_of(image, _phrase(finding), finding)):
                known = groups.get((image, finding)) or _box_row(table, number, image, finding, paths)
                box = parse_box(f"{table.name}: row {number}", values)
                if (earlier := first.setdefault((image, finding, box), number)) != number:
                    found = f"{table.name}: the box of row {number} is listed twice, first in row {earlier}"
                    raise DataError(f"{found}; expected each box once", code="duplicate_image")
                groups[image, finding] = dataclasses.replace(known, boxes=(*known.boxes, box))
        yield from (Found(row, "test") for row in groups.values())


def _box_row(table: Path, number: int, image: str, finding: str, paths: Mapping[str, str]) -> ImageRow:
    """The row of an image and a finding, still without boxes."""
    owner = _patient(table, number, image)
    if finding not in _KNOWN:
        found = f"{table.name}: row {number} has an unknown finding"
        raise UserError(f"{found}; expected one of the fourteen labels", code="unknown_label")
    labels = tuple(1.0 if label == finding else float("nan") for label in LABEL_NAMES)
    return _row(owner, image, paths, labels=labels, phrase=_phrase(finding), category=finding)


def _phrase(finding: str) -> str:
    return finding.replace("_", " ")


def _row(patient: str, image: str, paths: Mapping[str, str], **values: Any) -> ImageRow:
    """A row; every image of NIH is a study of its own, as far as the tables say."""
    path = paths.get(image.removesuffix(".png"), f"images/{image}")
    return ImageRow(**{"patient": patient, "study": image, "image": image, "path": path, "view": "", **values})


def _patient(table: Path, number: int, image: str) -> str:
    match = _IMAGE.fullmatch(image)
    if match is None:
        raise UserError(
            f"{table.name}: row {number} has no image name; expected 8 digits, '_', 3 digits and '.png'",
            code="bad_identifier",
        )
    return match[1]


def _labels(table: Path, number: int, findings: str) -> tuple[float, ...]:
    names = findings.split("|")
    if names == [_NO_FINDING]:
        return (0.0,) * len(LABEL_NAMES)
    if not _KNOWN.issuperset(names) or len(set(names)) != len(names):
        raise UserError(
            f"{table.name}: row {number} has an unknown finding; expected the fourteen labels joined by '|'",
            code="unknown_label",
        )
    return tuple(float(name in names) for name in LABEL_NAMES)


def _file_name(name: str) -> str:
    """The image that a list names: its last part, should the list have folders."""
    return name.rpartition("/")[2]


def _image_of_stem(stem: str) -> str:
    """The image that a file shows, be it converted to another format or not."""
    return f"{stem}.png"


def _image_paths(root: Path, scan: Scan) -> Mapping[str, str]:
    archives = sorted(path.name for path in root.glob("images_[0-9]*") if path.is_dir())
    return find_images(root, [*archives, "images", ""], scan, _image_of_stem)
