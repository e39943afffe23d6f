"""Rows that `msfl data doctor` found unusable, or odd, left out of a build and counted under their reasons."""

import json
from array import array
from collections.abc import Collection
from pathlib import Path

from input_pipeline import tables
from input_pipeline.compact import Part
from input_pipeline.errors import UserError
from input_pipeline.keys import SALT_NAME, open_keyring
from input_pipeline.sources import Scan

QUARANTINE_NAME = "quarantine.jsonl"  # what is unusable
NOTES_NAME = "notes.jsonl"  # what is odd and stays


def leave_out(scan: Scan, quarantine: Path, noted: Collection[str] = ()) -> None:
    """Takes rows out of a scan and counts them under their reasons; the hashes of the files become inputs of the build.

    Args:
      scan: of the data set that the doctor examined.
      quarantine: the doctor's `quarantine.jsonl`; its folder has the salt of its keys.
      noted: reasons of `notes.jsonl`, beside it, whose rows are left out as well, such as "blank_image".

    Raises:
      UserError: a file is missing or none of the doctor's, `notes.jsonl` has no such reason, or none of the rows is of this data set.
    """
    if not (quarantine.parent / SALT_NAME).is_file():
        raise UserError(f"{quarantine}: no {SALT_NAME} beside it; expected the file in the doctor's folder, not a copy")
    named = _reasons(quarantine)
    scan.inputs["quarantine"] = tables.file_hash(quarantine)
    if noted:
        notes = quarantine.parent / NOTES_NAME
        odd = {key: reason for key, reason in _reasons(notes).items() if reason in noted}
        if absent := sorted({*noted} - {*odd.values()}):
            raise UserError(f"{notes}: no row is noted for {', '.join(absent)}; expected reasons that the doctor gave")
        named = {**odd, **named}
        scan.inputs["notes"] = f"{', '.join(sorted(noted))} of {tables.file_hash(notes)}"
    keyring, found = open_keyring(quarantine.parent), 0
    for split, rows in scan.rows.items():
        places = array("I")
        for place, row in enumerate(rows):
            reason = named.get(keyring.key("image", row.image))
            if reason is None:
                places.append(place)
            else:
                scan.drop(split, reason)
        found += len(rows) - len(places)
        scan.rows[split] = Part(rows, places)
    if named and not found:
        known = f"{quarantine}: none of its {len(named):,} images is among those of this build"
        raise UserError(f"{known}; expected the doctor's file of this data set; else build without it")


def _reasons(file: Path) -> dict[str, str]:
    """The first reason of each image by its key."""
    named: dict[str, str] = {}
    try:
        for line in file.read_text(encoding="utf-8").splitlines():
            values = json.loads(line)
            if image := values.get("image"):
                named.setdefault(str(image), str(values["reason"]))
    except OSError as error:
        raise UserError(f"{file}: {error.strerror}; expected the file that `msfl data doctor` wrote") from None
    except (ValueError, KeyError, AttributeError):
        raise UserError(f"{file}: none of `msfl data doctor`'s files; expected one JSON object a line") from None
    return named
