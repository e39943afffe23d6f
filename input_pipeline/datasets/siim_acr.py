"""SIIM-ACR Pneumothorax Segmentation: images with outlines of pneumothoraces (kaggle.com/c/siim-acr-pneumothorax-segmentation)."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Int64

from input_pipeline.datasets.image_files import find_images, image_of_name, note_strays
from input_pipeline.datasets.labelled import (
    Found,
    LabelledImages,
    contradicts,
    distribute,
    find_one_table,
    record_hash,
)
from input_pipeline.errors import DataError, UserError
from input_pipeline.sources import ImageRow, Scan, check_size, synthetic_setting

LABEL_NAMES = ("Pneumothorax",)
NO_RUNS = "-1"
# The second stage of the challenge gave labels to the test images of the first.
_FOLDERS = ("dicom-images-train", "dicom-images-test", "images", "")
_TABLES = ("*train-rle.csv", "stage_2_train.csv")
_SIDE = 1024  # of the released images, to which the codes belong
_DIGITS = 9  # a longer number cannot be a place in an image
_IMAGE = re.compile(r"[0-9A-Za-z][0-9A-Za-z._-]{0,99}")


@dataclass(frozen=True)
class SiimAcr(LabelledImages):
    """SIIM-ACR as a source of records, one per image with the union of its outlines as mask.

    Attributes:
      root: holds the table, and the images in `dicom-images-train` and `dicom-images-test` at any depth, in `images`, or beside the table.
      plan: of the splits; without one everything is "train". The published lists share images between splits.
      table: of the run-length codes; by default the only *train-rle.csv or stage_2_train.csv.
    """

    table: Path | None = None

    @property
    def name(self) -> str:
        """TFDS name of the data set."""
        return "siim_acr"

    def label_names(self) -> tuple[str, ...]:
        """Whether there is a pneumothorax."""
        return LABEL_NAMES

    def settings(self) -> Mapping[str, Any]:
        """Options that change the records."""
        return {**self.plan.settings(), **synthetic_setting(self.root)}

    def scan(self, *, lenient: bool = False) -> Scan:
        """Groups the codes by image; an image is one input row. Every code is checked.

        Raises:
          UserError: no table, or a row without an image name.
          DataError: a code is no outline, a row is there twice, the rows of an image disagree, or as in `distribute`.
        """
        scan = Scan(lenient=lenient)
        table = record_hash(scan, "codes", find_one_table(self.root, _TABLES, self.table))
        distribute(scan, self._found(scan, table), self.plan, image_of_name)
        return scan

    def mask(self, row: ImageRow, height: int, width: int) -> Bool[np.ndarray, "H W"]:
        """The union of the outlines, empty without pneumothorax; raises Dropped("wrong_size") for a resized image."""
        check_size(height, width, (_SIDE, _SIDE))
        mask = np.zeros((height, width), bool)
        for code in row.runs:
            mask |= decode_runs(code, height, width)
        return mask

    def _found(self, scan: Scan, table: Path) -> Iterator[Found]:
        paths, codes_of = find_images(self.root, _FOLDERS, scan), _codes(scan, table)
        trained = ((stem, path) for stem, path in paths.items() if path.startswith(f"{_FOLDERS[0]}/"))
        note_strays(scan, self.root, trained, codes_of)  # the first stage's table has no test images
        for image, codes in codes_of.items():
            path = paths.get(image, f"{_FOLDERS[0]}/{image}.dcm")
            row = ImageRow(image, image, image, path, "", (float(bool(codes)),), runs=codes)
            yield Found(row, "train")


def decode_runs(code: str, height: int, width: int) -> Bool[np.ndarray, "H W"]:
    """Decodes the challenge's relative run-length code.

    A code is pairs of a gap and a length: so many pixels from the end of the previous run (the first from the image's beginning), then so
    many pixels of the mask. Pixels are counted down the columns, the columns from left to right. "-1" is an empty mask.

    Raises:
      DataError: the code is not of whole numbers, has an odd count of them, a run without pixels, or leaves the image.
    """
    counts = _parse(code, height * width)
    counts = np.append(counts, height * width - counts.sum())
    return np.repeat(np.arange(len(counts)) % 2 == 1, counts).reshape(width, height).T


def encode_runs(mask: Bool[np.ndarray, "H W"]) -> str:
    """The code of a mask with the fewest runs; `decode_runs` gives the mask again."""
    edges = np.flatnonzero(np.diff(mask.T.reshape(-1), prepend=False, append=False))
    return " ".join(map(str, np.diff(edges, prepend=0))) or NO_RUNS


def _parse(code: str, pixels: int) -> Int64[np.ndarray, "n"]:
    """Gaps and lengths in turn."""
    words = [] if code.strip() == NO_RUNS else code.split()
    if not all(word.isascii() and word.isdecimal() and len(word) <= _DIGITS for word in words):
        raise DataError("the code has something other than whole numbers from 0; expected pairs of gap and length")
    if len(words) % 2 or not code.strip():
        raise DataError(f"the code has {len(words)} numbers; expected pairs of gap and length, or -1")
    counts = np.asarray([int(word) for word in words], np.int64)
    if (counts[1::2] == 0).any():
        raise DataError("the code has a run without pixels; expected lengths above 0")
    if counts.sum() > pixels:
        raise DataError(f"the code ends at pixel {counts.sum():,}; expected at most {pixels:,}, those of the image")
    return counts


def _codes(scan: Scan, table: Path) -> dict[str, tuple[str, ...]]:
    """The codes of each image, none for images without pneumothorax."""
    codes: dict[str, tuple[str, ...]] = {}
    for number, (image, code) in scan.read(table, ["ImageId", "EncodedPixels"]):
        with scan.row(image):
            if not _IMAGE.fullmatch(image):
                found = f"{table.name}: row {number} has an identifier that cannot name a file"
                raise UserError(found, code="bad_identifier")
            try:
                empty = not len(_parse(code, _SIDE * _SIDE))
            except DataError as error:
                raise DataError(f"{table.name}: row {number}: {error}", code="bad_runs") from None
            known = codes.get(image)
            if known is not None and (not known or empty or code in known):
                raise contradicts(scan, table, number, "ImageId", image)
            codes[image] = (*(known or ()), *(() if empty else (code,)))
    return codes
