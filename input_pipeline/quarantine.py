"""Rows that `msfl data doctor` found unusable, or odd, left out of a build and counted under their reasons."""

import json
from array import array
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from input_pipeline import progress, tables
from input_pipeline.compact import Part
from input_pipeline.errors import UserError
from input_pipeline.keys import SALT_NAME, Keyring, open_keyring
from input_pipeline.sources import ImageRow, Scan

QUARANTINE_NAME = "quarantine.jsonl"  # what is unusable
NOTES_NAME = "notes.jsonl"  # what is odd and stays
# Faults of single rows of a table: a build can go on without these. Others are of a whole table, or leaks.
OF_ROWS = frozenset(
    {
        *("bad_row", "bad_identifier", "bad_box", "bad_runs", "duplicate_image"),
        *("path_outside", "tables_disagree", "unknown_label", "unknown_split"),
    }
)
# Rows that the doctor looks at and that this build leaves out by its options: all that the doctor named may be among them.
_CHOSEN = ("not_frontal", "not_lateral", "no_view", "grounding_image", "grounding_patient")


@dataclass
class _Told:
    """What a file of the doctor's tells: the first reason of each image, or of one row of it, and the faults of tables by their message."""

    reasons: dict[tuple[str, str], str] = field(default_factory=dict)  # by the keys of image and part
    messages: set[tuple[str, str]] = field(default_factory=set)

    def reason(self, keyring: Keyring, row: ImageRow) -> str | None:
        """Why a row is left out, if it is: by itself, or with its whole image."""
        image = keyring.key("image", row.image)
        part = keyring.key("part", row.part) if row.part else ""
        return self.reasons.get((image, part)) or self.reasons.get((image, ""))


def leave_out(scan: Scan, quarantine: Path, noted: Collection[str] = ()) -> None:
    """Takes rows out of a scan and counts them under their reasons; the hashes of the files become inputs of the build.

    Rows of tables that the scan could not read are counted in `Scan.table_faults`, provided that the doctor has named every one of them.

    Args:
      scan: of the data set that the doctor examined; lenient, so that wrong rows of its tables are there as problems.
      quarantine: the doctor's `quarantine.jsonl`; its folder has the salt of its keys.
      noted: reasons of `notes.jsonl`, beside it, whose rows are left out as well, such as "blank_image".

    Raises:
      UserError: a file is missing or none of the doctor's, `notes.jsonl` has no such reason, or none of the rows is of this data set.
      UserError, DataError: a problem of the tables is not named in the file, or is none of single rows.
    """
    if not (quarantine.parent / SALT_NAME).is_file():
        raise UserError(f"{quarantine}: no {SALT_NAME} beside it; expected the file in the doctor's folder, not a copy")
    told = _read(quarantine)
    _accept_problems(scan, told, quarantine)
    scan.inputs["quarantine"] = tables.file_hash(quarantine)
    if noted:
        notes = quarantine.parent / NOTES_NAME
        odd = _read(notes, only=noted).reasons
        if absent := sorted({*noted} - {*odd.values()}):
            raise UserError(f"{notes}: no row is noted for {', '.join(absent)}; expected reasons that the doctor gave")
        told.reasons = {**odd, **told.reasons}
        scan.inputs["notes"] = f"{', '.join(sorted(noted))} of {tables.file_hash(notes)}"
    found = _drop(scan, told, open_keyring(quarantine.parent))
    chosen = sum(reasons[name] for reasons in scan.dropped.values() for name in _CHOSEN)
    if len(told.reasons) > chosen and not found and not scan.table_faults:
        known = f"{quarantine}: none of its {len(told.reasons):,} images is among those of this build"
        raise UserError(f"{known}; expected the doctor's file of this data set; else build without it")


def _accept_problems(scan: Scan, told: _Told, quarantine: Path) -> None:
    """Counts what the tables have lost, or raises the first problem that the doctor's file does not cover."""
    for problem in scan.problems:
        if problem.code not in OF_ROWS:
            raise problem.kind(problem.message, code=problem.code)
        if (problem.code, problem.message) not in told.messages:
            raise problem.kind(f"{problem.message}; not in {quarantine}: run the doctor again", code=problem.code)
        scan.table_faults[problem.code] += 1


def _drop(scan: Scan, told: _Told, keyring: Keyring) -> int:
    """How many rows were left out."""
    found = 0
    for split, rows in scan.rows.items():
        places = array("I")
        for place, row in enumerate(progress.counted(rows, f"quarantine of {split}", "rows")):
            reason = told.reason(keyring, row)
            if reason is None:
                places.append(place)
            else:
                scan.drop(split, reason)
        found += len(rows) - len(places)
        scan.rows[split] = Part(rows, places)
    return found


def _read(file: Path, *, only: Collection[str] = ()) -> _Told:
    """What a file tells, of some reasons `only` where any are given."""
    told = _Told()
    try:
        with file.open(encoding="utf-8") as lines:
            for values in map(json.loads, lines):
                _add(told, values, only)
    except OSError as error:
        raise UserError(f"{file}: {error.strerror}; expected the file that `msfl data doctor` wrote") from None
    except (ValueError, KeyError, AttributeError):
        raise UserError(f"{file}: none of `msfl data doctor`'s files; expected one JSON object a line") from None
    return told


def _add(told: _Told, values: Any, only: Collection[str]) -> None:
    reason, message = str(values["reason"]), str(values.get("message", ""))
    if only and reason not in only:
        return
    if image := values.get("image"):
        told.reasons.setdefault((str(image), str(values.get("part", ""))), reason)
    if message:
        told.messages.add((reason, message))
