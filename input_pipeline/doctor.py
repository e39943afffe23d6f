"""`msfl data doctor`: reads a data set as a build would, stops at nothing, and says everything that is wrong with it.

Tables are scanned leniently, every image is decoded, whatever is wrong with its report, every report read, and pixels are compared. What is found is
counted by reason, named by a keyed hash, and comes with what to do about it.
"""

import contextlib
import dataclasses
import itertools
import json
import os
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import numpy as np

from input_pipeline import images
from input_pipeline.checksums import ABSENT
from input_pipeline.commands import command_for
from input_pipeline.compact import Members, Part
from input_pipeline.diagnoses import DIAGNOSES, Finding, Report
from input_pipeline.errors import DataError, UserError, written_to
from input_pipeline.keys import Keyring, open_keyring
from input_pipeline.manifest import dataset_name
from input_pipeline.pool import Advance, run_tasks
from input_pipeline.prevalence import compare_prevalence
from input_pipeline.progress import Progress, showing_counts
from input_pipeline.quarantine import NOTES_NAME, QUARANTINE_NAME
from input_pipeline.shards import ShardTask, record_of
from input_pipeline.sources import NO_SPLIT, Dropped, ImageRow, Scan, Sentences, Source
from input_pipeline.tally import Check, Fault, Looked, Tally

THRESHOLD = 0.005  # share of unusable rows above which a data set is refused
_ROWS_PER_TASK = 256
_SHORT_SIDE = 512  # as builds have it by default: a strip can be too long for one side and not for another
_QUALITY = 50  # nothing is stored
_SAME_LEVELS = 8  # apart at most: what JPEG adds to a constant
_SAME_SHARE = 0.99  # of the pixels, in an image that shows nothing to speak of
_SHARED_PATIENT = "patient_in_two_splits"
_AS_IT_SHOULD_BE = frozenset({"stored_as_released", "view_from_code"})  # flags of a build that are no oddities


def examine(
    source: Source,
    out: Path,
    *,
    workers: int = 2,
    sample: int = 0,
    threshold: float = THRESHOLD,
    progress: bool = True,
) -> Report:
    """Examines a data set and writes `quarantine.jsonl` and `notes.jsonl` to `out`.

    Args:
      source: the data set.
      out: folder of the two; it holds the salt of the keys, so that of a data root gives the keys of its builds.
      workers: processes.
      sample: how many rows of each split to look at, evenly spread; 0 is all.
      threshold: see `Report.refused`.
      progress: shows rate and remaining time on stderr.

    Raises:
      UserError, DataError: a table is missing or cannot be read as one.
    """
    keyring = open_keyring(out)
    with showing_counts(progress):
        scan = source.scan(lenient=True)
    in_tables, in_files, looked = Tally(), Tally(), Looked()
    # Closed where a fault cannot be written: the workers would go on to the last image.
    with contextlib.closing(_look(source, _sampled(scan, sample), keyring, workers, progress)) as checks:
        _write_faults(itertools.chain(in_tables.of(_table_faults(scan, keyring)), in_files.of(looked.at(checks))), out)
    total = max(1, scan.input_rows + len(scan.problems))  # a row with a problem is mostly lost to the scan
    findings = [*in_tables.findings(total), *in_files.findings(looked.rows), *_count_dropped(scan, total)]
    findings = [dataclasses.replace(found, command=command_for(found.code, source, out)) for found in findings]
    findings.sort(key=lambda finding: (not finding.stops, not finding.diagnosis.unusable, -finding.count, finding.code))
    return Report(
        name=source.name,
        input_rows=scan.input_rows,
        looked_at=looked.rows,
        records=looked.usable,
        findings=tuple(findings),
        prevalence=compare_prevalence(dataset_name(source.name, source.settings()), source.label_names(), scan.rows),
        unchecked=_unchecked(scan),
        threshold=threshold,
        repeated=looked.repeated,
    )


def reveal(source: Source, out: Path, key: str) -> str | None:
    """What is behind a key of `quarantine.jsonl`, for the eyes of those who hold the data; None if there is nothing.

    That is the image file, of a patient's key the first one; of a row that a fault of its table cost, the table and the row's number.
    """
    if not (out / QUARANTINE_NAME).is_file():
        return None
    keyring, scan = open_keyring(out), source.scan(lenient=True)
    found = [p.message for p in scan.problems if p.identifier and keyring.key("image", p.identifier) == key]
    found += [str(note.path) for note in scan.notes if keyring.key("image", note.identifier) == key]
    rows = (row for part in scan.rows.values() for row in part)
    named = (row for row in rows if key in (keyring.key("image", row.image), keyring.key("patient", row.patient)))
    found += [str(source.files(row)[0]) for row in itertools.islice(named, 1)]
    return "\n".join(found) or None


@dataclass(frozen=True)
class _Task:
    task: ShardTask
    split: str


def _sampled(scan: Scan, sample: int) -> Mapping[str, Sequence[ImageRow]]:
    """Evenly spread rows of each split."""
    if not sample:
        return scan.rows
    return {
        split: [rows[place * len(rows) // sample] for place in range(sample)] if sample < len(rows) else rows
        for split, rows in scan.rows.items()
    }


def _look(
    source: Source, rows: Mapping[str, Sequence[ImageRow]], keyring: Keyring, workers: int, shown: bool
) -> Generator[Check, None, None]:
    nowhere, how = Path(os.devnull), (_SHORT_SIDE, _QUALITY, False, {}, {})
    light = source.for_workers()
    tasks = [
        _Task(
            ShardTask(light, Part(part, range(i, min(i + _ROWS_PER_TASK, len(part)))), nowhere, nowhere, keyring, *how),
            split,
        )
        for split, part in rows.items()
        for i in range(0, len(part), _ROWS_PER_TASK)
    ]
    with Progress("examining", sum(len(task.task.rows) for task in tasks), "images", shown=shown) as progress:
        for checks in run_tasks(_look_at, tasks, workers, progress) if tasks else ():
            yield from checks


def _look_at(task: _Task, advance: Advance) -> list[Check]:
    checks = []
    for row in task.task.rows:
        checks.append(_check(task.task, task.split, row))
        advance(1)
    return checks


def _check(task: ShardTask, split: str, row: ImageRow) -> Check:
    """Makes a record as a build would, and looks at the image where its text is wanting as well; keeps what the doctor asks for."""
    faults: list[Fault] = []
    sentences, made = Sentences(()), None
    with _noting(faults, task, row):
        sentences = task.source.sentences(row)
    with _noting(faults, task, row):
        made = record_of(task, row, sentences)
    usable, (record, flags) = not faults, made or (None, ())
    flags = tuple(flag for flag in flags if flag not in _AS_IT_SHOULD_BE)
    if record is not None and "blank_image" not in flags and _shows_nothing(record.image):
        flags = (*flags, "nearly_blank_image")
    key, part = _keys(task.keyring, row)
    faults += [Fault(flag, key, part=part) for flag in flags]
    pixels = "" if record is None or "blank_image" in flags else record.pixel_key
    return Check(key, split, usable, tuple(faults), pixels)


@contextlib.contextmanager
def _noting(faults: list[Fault], task: ShardTask, row: ImageRow) -> Iterator[None]:
    """What makes a row unusable becomes a fault of it."""
    key, part = _keys(task.keyring, row)
    try:
        yield
    except Dropped as dropped:
        message = _decoding_error(task, row) if dropped.reason == "bad_image" else ""
        faults.append(Fault(dropped.reason, key, message, part=part))
    except UserError as error:
        if error.code != "path_outside":  # pydicom is missing, for all rows alike
            raise
        faults.append(Fault("path_outside", key, str(error), stops=True, part=part))


def _keys(keyring: Keyring, row: ImageRow) -> tuple[str, str]:
    """Of the image, and of its row where it has several."""
    return keyring.key("image", row.image), keyring.key("part", row.part) if row.part else ""


def _decoding_error(task: ShardTask, row: ImageRow) -> str:
    """What the decoder says of an image that cannot be used; its messages quote nothing of the file."""
    try:
        image = images.decode_gray(task.source.image(row))
        images.encode_jpeg(images.resize_short_side(image, task.short_side), task.quality)
    except DataError as error:
        return str(error)
    except Dropped:
        return "the file cannot be read"
    return ""


def _shows_nothing(jpeg: bytes) -> bool:
    """Whether nearly all pixels have nearly the same level."""
    levels = np.bincount(images.decode_gray(jpeg).reshape(-1), minlength=256)
    most = int(levels.argmax())
    same = levels[max(0, most - _SAME_LEVELS) : most + _SAME_LEVELS + 1]
    return bool(same.sum() > _SAME_SHARE * levels.sum())


def _table_faults(scan: Scan, keyring: Keyring) -> Iterator[Fault]:
    """What the scan noted; patients in two splits are counted as patients, and not once more for their rows."""
    shared = _shared_patients(scan)
    refused = any(problem.code == _SHARED_PATIENT for problem in scan.problems)
    for patient in shared:
        yield Fault(_SHARED_PATIENT, keyring.key("patient", patient), stops=refused)
    for problem in scan.problems:
        if problem.code != _SHARED_PATIENT or not shared:
            key = keyring.key("image", problem.identifier) if problem.identifier else ""
            part = keyring.key("part", problem.part) if problem.part else ""
            yield Fault(problem.code, key, problem.message, stops=True, part=part)
    yield from (Fault(note.code, keyring.key("image", note.identifier)) for note in scan.notes)
    if not scan.input_rows and not scan.problems:
        yield Fault("no_rows", stops=True)


def _shared_patients(scan: Scan) -> list[str]:
    patients = Members(tuple(scan.rows))
    for split, rows in scan.rows.items():
        for row in rows:
            patients.add(row.patient, split)
    return sorted(patients.shared())


def _count_dropped(scan: Scan, total: int) -> list[Finding]:
    """What the tables alone exclude; those rows have no file to look at."""
    counts = sum((Counter(reasons) for reasons in scan.dropped.values()), Counter())
    return [
        Finding(
            code=code,
            count=count,
            of=total,
            where=", ".join(
                "in no split" if split == NO_SPLIT else f"in {split}"
                for split, reasons in scan.dropped.items()
                if reasons[code]
            ),
            kinds={},
            stops=False,
            diagnosis=DIAGNOSES[code],
        )
        for code, count in counts.items()
    ]


def _unchecked(scan: Scan) -> str:
    if scan.inputs.get("checksums") == ABSENT:
        return "no SHA256SUMS.txt"
    unlisted = scan.inputs.get("unchecked")
    return f"{unlisted} are not in SHA256SUMS.txt" if unlisted else ""


def _write_faults(faults: Iterable[Fault], out: Path) -> None:
    """One line per fault: the reason, a keyed hash, and for a row of a table the message that numbers it."""
    names = {True: QUARANTINE_NAME, False: NOTES_NAME}  # by whether the row is unusable
    drafts = {unusable: out / f"{name}.tmp" for unusable, name in names.items()}
    with contextlib.ExitStack() as stack:
        with written_to(out):
            files = {unusable: stack.enter_context(_draft(path)) for unusable, path in drafts.items()}
        for fault in faults:
            with written_to(out):
                files[DIAGNOSES[fault.code].unusable].write(_line(fault))
        with written_to(out):
            for unusable, name in names.items():
                files[unusable].close()
                os.replace(drafts[unusable], out / name)


@contextlib.contextmanager
def _draft(path: Path) -> Iterator[TextIO]:
    """A new file, which is removed in the end unless it was moved into place."""
    file = path.open("w")
    try:
        yield file
    finally:
        with contextlib.suppress(OSError):  # a full disk, of which the error of the last write tells
            file.close()
        path.unlink(missing_ok=True)


def _line(fault: Fault) -> str:
    whose = "patient" if fault.code == _SHARED_PATIENT and not fault.message else "image"
    values = {"reason": fault.code, whose: fault.key, "part": fault.part, "same_as": fault.same_as}
    values["message"] = fault.message
    return json.dumps({name: value for name, value in values.items() if value}) + "\n"
