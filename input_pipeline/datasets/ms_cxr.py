"""MS-CXR 0.1 and 1.1.0: phrases with boxes on images of MIMIC-CXR-JPG (physionet.org/content/ms-cxr)."""

import dataclasses
import json
import operator
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool

from input_pipeline import checksums, tables
from input_pipeline.datasets.labelled import parse_box
from input_pipeline.errors import DataError, MsflError, UserError
from input_pipeline.sections import clean_sentence
from input_pipeline.sources import (
    ImageRow,
    ImagesOnly,
    Scan,
    check_size,
    is_relative,
    part_of,
    read_image,
    synthetic_setting,
)

# The eight findings of both releases (Boecking et al., 2022, table 1), and one that only the synthetic study has: Lung Lesion.
CATEGORIES = (
    "Atelectasis",
    "Cardiomegaly",
    "Consolidation",
    "Edema",
    "Lung Lesion",
    "Lung Opacity",
    "Pleural Effusion",
    "Pneumonia",
    "Pneumothorax",
)
_COLUMNS = ["category_name", "label_text", "path", "dicom_id", "x", "y", "w", "h"]
_OPTIONAL = ["split", "image_width", "image_height"]  # release 0.1 has no split
_SPLITS = {"train": "train", "val": "validate", "validate": "validate", "test": "test", "": "test"}
_PATH = re.compile(r"(?:.*/)?p([0-9]{2,20})/s([0-9]{2,20})/([^/]+)\.[A-Za-z]+")
_RELEASES = "MS_CXR_Local_Alignment_v*"
_NO_SIZE = (0, 0)


@dataclass(frozen=True, slots=True)
class SizedRow(ImageRow):
    """A row that knows the (height, width) of the image that its boxes were drawn on; (0, 0) where nothing says so."""

    size: tuple[int, int] = _NO_SIZE


class _Annotation(NamedTuple):
    """One box, as the file writes it; `row` is "row 2" of a CSV file or "annotation 1" of a JSON file."""

    file: str
    row: str
    category: str
    text: str
    path: str
    image: str
    box: list[str]
    split: str
    width: str
    height: str


@dataclass(frozen=True)
class MsCxr(ImagesOnly):
    """MS-CXR as a source of records, one per image, phrase and finding, with all boxes of the three.

    The labels of a record are the finding of its phrase (1) and nothing about the others (NaN).

    Attributes:
      jpg: folder of MIMIC-CXR-JPG, to which the paths in the file are relative.
      boxes: the CSV or JSON (COCO) file of the release, or the folder that holds it; without `split` (release 0.1) everything is "test".
    """

    jpg: Path
    boxes: Path

    @property
    def name(self) -> str:
        """TFDS name of the data set."""
        return "ms_cxr"

    def label_names(self) -> tuple[str, ...]:
        """The findings of the file, in alphabetical order."""
        found = {annotation.category for annotation in _read(self.boxes, _pass_over)}
        return tuple(name for name in CATEGORIES if name in found)

    def settings(self) -> Mapping[str, Any]:
        """Options that change the records: none, but whether they are of a synthetic study."""
        return synthetic_setting(self.jpg)

    def scan(self, *, lenient: bool = False) -> Scan:
        """Groups the boxes by image, phrase (spelled alike) and finding; one group is one input row.

        Raises:
          UserError: a column is missing, or a row has no finite box, an unknown finding or split, or a path out of the folder.
          DataError: boxes of one group disagree on the split or the size of the image.
        """
        scan = Scan(lenient=lenient)
        inputs = checksums.Inputs.open(self.jpg, scan.refuse)
        scan.inputs = {"boxes": tables.file_hash(_file(self.boxes)), **inputs.hashes}
        names = self.label_names()
        groups: dict[tuple[str, str, str], tuple[str, SizedRow]] = {}
        file = _file(self.boxes)
        for annotation in scan.counted(file, _read(self.boxes, scan.skip(file))):
            phrase = clean_sentence(annotation.text)
            with scan.row(annotation.image, part_of(annotation.image, phrase, annotation.category)):
                split, row = _row(annotation, names, inputs.image(annotation.image))
                group = row.image, row.phrase, row.category
                known_split, known = groups.get(group, (split, row))
                if (known_split, known.size) != (split, row.size):
                    where = f"{annotation.file}: {annotation.row}"
                    found = f"{where} disagrees with another box of its phrase on split or image size"
                    raise DataError(found, code="tables_disagree")
                boxes = (*known.boxes, *row.boxes) if group in groups else row.boxes
                groups[group] = split, dataclasses.replace(known, boxes=boxes)
        for split, row in groups.values():
            if row.phrase:
                scan.keep(split, row)
            else:
                scan.drop(split, "no_text")
        for split, rows in scan.rows.items():
            key = operator.attrgetter("patient", "study", "image", "phrase", "category")
            scan.rows[split] = sorted(rows, key=key)
        return scan

    def files(self, row: ImageRow) -> tuple[Path, ...]:
        """The image."""
        return (self.jpg / row.path,)

    def image(self, row: ImageRow) -> bytes:
        """The image file; raises Dropped("missing_image")."""
        return read_image(self.jpg, row.path)

    def mask(self, row: ImageRow, height: int, width: int) -> Bool[np.ndarray, "H W"] | None:
        """None; raises Dropped("wrong_size") for an image of another size than the file says, such as a resized copy."""
        if isinstance(row, SizedRow) and row.size != _NO_SIZE:
            check_size(height, width, row.size)
        return None


def _file(boxes: Path) -> Path:
    """The file itself, or that of the release in a folder; its CSV and JSON say the same."""
    if not boxes.is_dir():
        return boxes
    for suffix in (".csv", ".csv.gz", ".json"):
        found = sorted(boxes.glob(_RELEASES + suffix))
        if len(found) == 1:
            return found[0]
    raise UserError(f"{boxes}: expected one file {_RELEASES}.csv or .json; name the file")


def _pass_over(error: MsflError) -> None:
    """Rows that are wrong are refused where they are made into records, not where the names of findings are collected."""


def _read(boxes: Path, refuse: tables.Refuse) -> Iterator[_Annotation]:
    file = _file(boxes)
    if file.suffix == ".json":
        return _read_json(file, refuse)
    return _read_csv(file, refuse)


def _read_csv(table: Path, refuse: tables.Refuse) -> Iterator[_Annotation]:
    for number, values in tables.read_table(table, _COLUMNS, optional=_OPTIONAL, refuse=refuse):
        category, text, path, image, x, y, width, height, *others = values
        yield _Annotation(table.name, f"row {number}", category, text, path, image, [x, y, width, height], *others)


def _read_json(file: Path, refuse: tables.Refuse) -> Iterator[_Annotation]:
    """COCO: annotations refer to images and categories by their `id`; annotations are numbered from 1 in messages."""
    content = _load(file)
    try:
        categories = {item["id"]: _text(item["name"]) for item in content["categories"]}
        images = {item["id"]: item for item in content["images"]}
        annotations = list(content["annotations"])
    except (KeyError, TypeError, UnicodeEncodeError):
        expected = "lists 'images', 'annotations' and 'categories' of objects with an 'id'"
        raise UserError(f"{file.name}: not in COCO's form; expected {expected}") from None
    for row, item in ((f"annotation {number}", item) for number, item in enumerate(annotations, start=1)):
        try:
            image, category = images[item["image_id"]], categories[item["category_id"]]
            text, box = _text(item["label_text"]).strip(), [str(value) for value in list(item["bbox"])]
            path, size = _text(image.get("path") or image["file_name"]), [image.get("width"), image.get("height")]
            split = _text(item.get("split") or image.get("split") or "")
            sizes = ["" if value is None else str(value) for value in size]
            if isinstance(item["bbox"], str):
                raise TypeError
            yield _Annotation(file.name, row, category, text, path, PurePosixPath(path).stem, box, split, *sizes)
        except (KeyError, TypeError, AttributeError, UnicodeEncodeError):
            expected = "a known image and category, a text and a box"
            refuse(UserError(f"{file.name}: {row} is not complete; expected {expected}; fetch it again"))


def _text(value: object) -> str:
    """A string of JSON that can be written as UTF-8: JSON can spell half a character; raises TypeError or UnicodeEncodeError."""
    if not isinstance(value, str):
        raise TypeError
    value.encode()
    return value


def _load(file: Path) -> Any:
    try:
        return json.loads(file.read_bytes())
    except OSError:
        raise UserError(f"{file.name}: no such file in {file.parent}; expected MS-CXR's boxes") from None
    except (ValueError, RecursionError):
        raise UserError(f"{file.name}: not a JSON file; fetch it again") from None


def _row(annotation: _Annotation, names: tuple[str, ...], sha256: str) -> tuple[str, SizedRow]:
    """The split of an annotation, and its row with its own box alone."""
    file, number, category, text, path, image, box, split, width, height = annotation
    where = f"{file}: {number}"
    if split not in _SPLITS:
        raise UserError(f"{where} has an unknown split; expected train, val or test", code="unknown_split")
    if category not in CATEGORIES:
        close = tables.nearest(category, CATEGORIES)
        found = f"{where} has an unknown finding{close}"
        raise UserError(f"{found}; expected one of {', '.join(CATEGORIES)}", code="unknown_label")
    patient, study = _place(file, number, path, image)
    labels = tuple(1.0 if name == category else float("nan") for name in names)
    boxes = (parse_box(where, box),)
    phrase, size = clean_sentence(text), _size(where, height, width)
    row = SizedRow(patient, study, image, path, "", labels, phrase, category, boxes, sha256=sha256, size=size)
    return _SPLITS[split], row


def _place(file: str, row: str, path: str, image: str) -> tuple[str, str]:
    """(patient, study) of a path."""
    if not is_relative(path):
        raise UserError(
            f"{file}: the path of {row} leads out of the data folder; expected files/p10/...", code="path_outside"
        )
    place = _PATH.fullmatch(path)
    if place is None:
        raise UserError(f"{file}: the path of {row} names no study; expected files/p10/p.../s.../....jpg")
    if place[3] != image:
        raise UserError(f"{file}: {row} has the path of another image than its dicom_id", code="tables_disagree")
    return place[1], place[2]


def _size(where: str, height: str, width: str) -> tuple[int, int]:
    if not height and not width:
        return _NO_SIZE
    try:
        size = round(float(height)), round(float(width))
    except (ValueError, OverflowError):
        size = _NO_SIZE
    if min(size) <= 0:
        raise UserError(f"{where} has no image size; expected whole numbers above 0, or no size at all")
    return size
