"""Which patients and images of MIMIC-CXR MS-CXR measures grounding on: training on them would make its numbers worthless."""

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from input_pipeline import tables
from input_pipeline.errors import UserError

_PLACE = re.compile(r"(?:.*/)?p([0-9]{2,20})/s[0-9]{2,20}/([^/]+)\.[A-Za-z]+")
_PATTERN = "MS_CXR_Local_Alignment*"


class Grounding(NamedTuple):
    """Identifiers of the patients and of the images in box files."""

    patients: frozenset[str]
    images: frozenset[str]


def find_boxes(folder: Path) -> tuple[Path, ...]:
    """MS-CXR's box files in a folder, CSV and JSON, of any release."""
    return tuple(sorted(path for path in folder.glob(_PATTERN) if path.suffix in (".csv", ".json")))


def read_grounding(files: Iterable[Path]) -> Grounding:
    """Patients and images of box files, from the paths of their images.

    Raises:
      UserError: a file is missing or no box file of MS-CXR, or a row's path names no patient.
    """
    places = []
    for file in files:
        for number, path in _json_paths(file) if file.suffix == ".json" else _csv_paths(file):
            place = _PLACE.fullmatch(path)
            if place is None:
                raise UserError(
                    f"{file.name}: row {number} names no patient; expected a path files/p10/p.../s.../....jpg"
                )
            places.append((place[1], place[2]))
    return Grounding(frozenset(patient for patient, _ in places), frozenset(image for _, image in places))


def _csv_paths(file: Path) -> Iterator[tuple[int, str]]:
    return ((number, path) for number, (path,) in tables.read_table(file, ["path"]))


def _json_paths(file: Path) -> Iterator[tuple[int, str]]:
    """Paths of the images of a COCO file."""
    try:
        images = json.loads(file.read_text(encoding="utf-8"))["images"]
        paths = [image.get("path") or image["file_name"] for image in images]
        if not all(isinstance(path, str) for path in paths):
            raise ValueError
    except FileNotFoundError:
        raise UserError(f"{file.name}: no such file in {file.parent}; expected MS-CXR's boxes") from None
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        raise UserError(f"{file.name}: not MS-CXR's boxes; expected JSON with 'images', each with a 'path'") from None
    return enumerate(paths, 1)
