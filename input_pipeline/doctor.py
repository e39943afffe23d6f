"""`msfl data doctor`: reads a data set as a build would, stops at nothing, and says everything that is wrong with it.

Tables are scanned leniently, every image is decoded, every report read, and pixels are compared. What is found is counted by reason, named by a keyed
hash, and comes with what to do about it.
"""

import dataclasses
import itertools
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from input_pipeline import images
from input_pipeline.checksums import ABSENT
from input_pipeline.commands import command_for
from input_pipeline.compact import Part
from input_pipeline.diagnoses import DIAGNOSES, Finding
from input_pipeline.errors import DataError, UserError
from input_pipeline.keys import Keyring, open_keyring
from input_pipeline.pool import run_tasks
from input_pipeline.prevalence import Prevalence, compare_prevalence
from input_pipeline.progress import Progress
from input_pipeline.quarantine import NOTES_NAME, QUARANTINE_NAME
from input_pipeline.shards import ShardTask, make_record
from input_pipeline.sources import NO_SPLIT, Dropped, ImageRow, Scan, Source

THRESHOLD = 0.005  # share of unusable rows above which a data set is refused
_ROWS_PER_TASK = 256
_SHORT_SIDE = 512  # as builds have it by default: a strip can be too long for one side and not for another
_QUALITY = 50  # nothing is stored
_SAME_LEVELS = 8  # apart at most: what JPEG adds to a constant
_SAME_SHARE = 0.99  # of the pixels, in an image that shows nothing to speak of
_SHARED_PATIENT = "patient_in_two_splits"


@dataclass(frozen=True)
class Report:
    """What the doctor found.

    Attributes:
      name: of the data set.
      input_rows: rows of its tables that could be read, kept or left out.
      looked_at: rows whose image and text were read; fewer than the rows kept where only a sample was asked for.
      records: rows that a build would turn into records, of those that were looked at.
      findings: first those that stop a build, then others that make rows unusable; of these the most frequent first.
      prevalence: of each label, beside the published one.
      unchecked: what no SHA256SUMS.txt vouches for; "" where it vouches for all, or where the release never had one.
      threshold: share of unusable rows above which `refused` is true.
    """

    name: str
    input_rows: int
    looked_at: int
    records: int
    findings: tuple[Finding, ...]
    prevalence: tuple[Prevalence, ...]
    unchecked: str
    threshold: float

    @property
    def counts(self) -> dict[str, int]:
        """How often each fault was found."""
        counts: Counter[str] = Counter()
        for finding in self.findings:
            counts[finding.code] += finding.count
        return dict(counts)

    @property
    def unusable(self) -> int:
        """Rows that were found unusable."""
        return sum(finding.count for finding in self.findings if finding.diagnosis.unusable)

    @property
    def unusable_share(self) -> float:
        """Share of unusable rows, each kind of fault as a share of what was looked at for it."""
        shares = (finding.count / max(1, finding.of) for finding in self.findings if finding.diagnosis.unusable)
        return sum(shares, 0.0)

    @property
    def refused(self) -> bool:
        """Whether more rows are unusable than the threshold allows."""
        return self.unusable_share > self.threshold

    def __str__(self) -> str:
        """Counts, one block per finding, and the prevalence of labels."""
        lines = [
            f"{self.name:<16}{self.input_rows:,} input rows, {self.looked_at:,} looked at, {self.records:,} would be records",
            f"{'unusable':<16}{self.unusable:,} ({self.unusable_share:.2%}; limit {self.threshold:.2%})",
        ]
        stopping = dict.fromkeys(finding.code for finding in self.findings if finding.stops)
        if stopping:
            lines.append(f"{'a build stops':<16}at {', '.join(stopping)}: correct these first")
        if self.unchecked:
            lines.append(f"{'not checked':<16}{self.unchecked}: damage that still decodes would not be found")
        if self.findings:
            files = f"{QUARANTINE_NAME} (stop, fault) and {NOTES_NAME} (note)"
            lines.append(f"{'each by its key':<16}in {files}; --reveal KEY prints the file behind a key")
        blocks = ["\n".join(lines), *map(str, self.findings), "\n".join(map(str, self.prevalence))]
        return "\n\n".join(block for block in blocks if block)


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
    scan = source.scan(lenient=True)
    looked = _look(source, _sampled(scan, sample), keyring, workers, progress)
    in_tables = [*_table_faults(scan, keyring)]
    in_files = [*_row_faults(looked), *_shared_pixels(looked)]
    _write_faults([*in_tables, *in_files], out)
    total = max(1, scan.input_rows + len(scan.problems))  # a row with a problem is mostly lost to the scan
    findings = [*_count(in_tables, total), *_count(in_files, len(looked)), *_count_dropped(scan, total)]
    findings = [dataclasses.replace(found, command=command_for(found.code, source, out)) for found in findings]
    findings.sort(key=lambda finding: (not finding.stops, not finding.diagnosis.unusable, -finding.count, finding.code))
    return Report(
        name=source.name,
        input_rows=scan.input_rows,
        looked_at=len(looked),
        records=sum(not check.reason for check in looked),
        findings=tuple(findings),
        prevalence=compare_prevalence(source.name, source.label_names(), scan.rows),
        unchecked=_unchecked(scan),
        threshold=threshold,
    )


def reveal(source: Source, out: Path, key: str) -> str | None:
    """What is behind a key of `quarantine.jsonl`, for the eyes of those who hold the data; None if there is nothing.

    That is the image file, of a patient's key the first one; of a row that a fault of its table cost, the table and the row's number.
    """
    if not (out / QUARANTINE_NAME).is_file():
        return None
    keyring, scan = open_keyring(out), source.scan(lenient=True)
    found = [p.message for p in scan.problems if p.identifier and keyring.key("image", p.identifier) == key]
    rows = (row for part in scan.rows.values() for row in part)
    named = (row for row in rows if key in (keyring.key("image", row.image), keyring.key("patient", row.patient)))
    found += [str(source.files(row)[0]) for row in itertools.islice(named, 1)]
    return "\n".join(found) or None


@dataclass(frozen=True)
class _Fault:
    """Attributes: `key` of an image, or of a patient; `same_as` of an equal image; `message` says more; `stops` as in `Finding`."""

    code: str
    key: str = ""
    message: str = ""
    stops: bool = False
    same_as: str = ""


@dataclass(frozen=True)
class _Check:
    """What reading one row gave: why it would be no record, if it would not, and the key of its pixels."""

    key: str
    split: str
    reason: str = ""
    message: str = ""
    stops: bool = False
    flags: tuple[str, ...] = ()
    pixels: str = ""


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
) -> list[_Check]:
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
        return [check for checks in run_tasks(_look_at, tasks, workers, progress) for check in checks] if tasks else []


def _look_at(task: _Task, advance: Callable[[int], None]) -> list[_Check]:
    checks = []
    for row in task.task.rows:
        checks.append(_check(task.task, task.split, row))
        advance(1)
    return checks


def _check(task: ShardTask, split: str, row: ImageRow) -> _Check:
    """Makes a record as a build would and keeps what the doctor asks for."""
    key = task.keyring.key("image", row.image)
    try:
        record, flags = make_record(task, row)
    except Dropped as dropped:
        message = _decoding_error(task, row) if dropped.reason == "bad_image" else ""
        return _Check(key, split, dropped.reason, message)
    except UserError as error:
        if error.code != "path_outside":  # pydicom is missing, for all rows alike
            raise
        return _Check(key, split, "path_outside", str(error), stops=True)
    flags = tuple(flag for flag in flags if flag != "stored_as_released")  # of no concern before a build
    if "blank_image" not in flags and _shows_nothing(record.image):
        flags = (*flags, "nearly_blank_image")
    return _Check(key, split, flags=flags, pixels=record.pixel_key)


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


def _table_faults(scan: Scan, keyring: Keyring) -> Iterator[_Fault]:
    """What the scan noted; patients in two splits are counted as patients, and not once more for their rows."""
    shared = _shared_patients(scan)
    refused = any(problem.code == _SHARED_PATIENT for problem in scan.problems)
    for patient in shared:
        yield _Fault(_SHARED_PATIENT, keyring.key("patient", patient), stops=refused)
    for problem in scan.problems:
        if problem.code != _SHARED_PATIENT or not shared:
            key = keyring.key("image", problem.identifier) if problem.identifier else ""
            yield _Fault(problem.code, key, problem.message, stops=True)
    if not scan.input_rows and not scan.problems:
        yield _Fault("no_rows", stops=True)


def _row_faults(looked: Iterable[_Check]) -> Iterator[_Fault]:
    for check in looked:
        if check.reason:
            yield _Fault(check.reason, check.key, check.message, check.stops)
        yield from (_Fault(flag, check.key) for flag in check.flags)


def _shared_pixels(looked: Iterable[_Check]) -> Iterator[_Fault]:
    """The same picture under several identifiers; blank ones are all alike."""
    groups: dict[str, dict[str, str]] = {}
    for check in looked:
        if check.pixels and "blank_image" not in check.flags:
            groups.setdefault(check.pixels, {})[check.key] = check.split
    for members in groups.values():
        code = "duplicate_pixels_across_splits" if len(set(members.values())) > 1 else "duplicate_pixels"
        first, *others = members
        yield from (_Fault(code, key, same_as=first) for key in others)


def _shared_patients(scan: Scan) -> list[str]:
    split_of: dict[str, str] = {}
    several = {
        row.patient
        for split, rows in scan.rows.items()
        for row in rows
        if split_of.setdefault(row.patient, split) != split
    }
    return sorted(several)


def _count(faults: Sequence[_Fault], total: int) -> list[Finding]:
    groups: dict[str, list[_Fault]] = {}
    for fault in faults:
        groups.setdefault(fault.code, []).append(fault)
    return [
        Finding(
            code=code,
            count=len(group),
            of=total,
            where=f"first {group[0].key}" if group[0].key else "",
            kinds=_kinds(fault.message for fault in group if fault.message),
            stops=any(fault.stops for fault in group),
            diagnosis=DIAGNOSES[code],
        )
        for code, group in groups.items()
    ]


def _kinds(messages: Iterable[str]) -> dict[str, int]:
    """The first message of each kind with the number of its kind, the most frequent first."""
    first: dict[str, str] = {}
    counts: Counter[str] = Counter()
    for message in messages:
        kind = re.sub(r"[0-9][0-9,]*", "", message)
        counts[first.setdefault(kind, message)] += 1
    return dict(counts.most_common())


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


def _write_faults(faults: Sequence[_Fault], out: Path) -> None:
    """One line per fault: the reason, a keyed hash, and for a row of a table the message that numbers it."""
    for name, unusable in ((QUARANTINE_NAME, True), (NOTES_NAME, False)):
        lines = [_line(fault) for fault in faults if DIAGNOSES[fault.code].unusable == unusable]
        draft = out / f"{name}.tmp"
        draft.write_text("".join(lines))
        os.replace(draft, out / name)


def _line(fault: _Fault) -> str:
    whose = "patient" if fault.code == _SHARED_PATIENT and not fault.message else "image"
    values = {"reason": fault.code, whose: fault.key, "same_as": fault.same_as, "message": fault.message}
    return json.dumps({name: value for name, value in values.items() if value}) + "\n"
