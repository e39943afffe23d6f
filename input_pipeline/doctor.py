"""`msfl data doctor`: reads a data set as a build would, stops at nothing, and says everything that is wrong with it.

Tables are scanned leniently, every image is decoded, every report read, and pixels are compared. What is found is counted by reason, named by a keyed
hash, and comes with what to do about it.
"""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from input_pipeline.diagnoses import DIAGNOSES, Diagnosis
from input_pipeline.keys import Keyring, open_keyring
from input_pipeline.pool import run_tasks
from input_pipeline.prevalence import Prevalence, compare_prevalence
from input_pipeline.progress import Progress
from input_pipeline.shards import ShardTask, make_record
from input_pipeline.sources import NO_SPLIT, Dropped, ImageRow, Scan, Source

QUARANTINE_NAME = "quarantine.jsonl"
THRESHOLD = 0.005  # share of unusable rows above which a data set is refused
_ROWS_PER_TASK = 256
_CHECKED_SIDE = 64  # images are stored nowhere, so they are shrunk to little


@dataclass(frozen=True)
class Finding:
    """One kind of fault: how often, at whom first, and what to do.

    Attributes:
      code: one word, the reason in `quarantine.jsonl` and in the counts of a build.
      count: rows, images or studies concerned.
      of: how many were looked at: a sample of the images, or all rows of the tables.
      first: keyed hash of the first of them, or the first message where it concerns a row of a table.
      diagnosis: whether it makes rows unusable, what is expected, and what to do.
    """

    code: str
    count: int
    of: int
    first: str
    diagnosis: Diagnosis


@dataclass(frozen=True)
class Report:
    """What the doctor found.

    Attributes:
      name: of the data set.
      input_rows: of its tables.
      records: rows that a build would turn into records, of those that were looked at.
      looked_at: rows whose image and text were read; fewer than the rows kept where only a sample was asked for.
      findings: the unusable first, then the most frequent.
      prevalence: of each label, beside the published one.
      threshold: share of unusable rows above which `refused` is true.
    """

    name: str
    input_rows: int
    records: int
    looked_at: int
    findings: tuple[Finding, ...]
    prevalence: tuple[Prevalence, ...]
    threshold: float

    @property
    def unusable(self) -> int:
        """Rows that were found unusable."""
        return sum(finding.count for finding in self.findings if finding.diagnosis.unusable)

    @property
    def unusable_share(self) -> float:
        """Share of unusable rows, each kind of fault as a share of what was looked at for it."""
        return sum(finding.count / max(1, finding.of) for finding in self.findings if finding.diagnosis.unusable)

    @property
    def refused(self) -> bool:
        """Whether more rows are unusable than the threshold allows."""
        return self.unusable_share > self.threshold

    def __str__(self) -> str:
        """Counts, one block per finding, and the prevalence of labels."""
        lines = [
            f"{self.name}  {self.input_rows:,} input rows, {self.looked_at:,} looked at, {self.records:,} would be records",
            f"unusable  {self.unusable:,} rows ({self.unusable_share:.2%}; limit {self.threshold:.2%})",
        ]
        for finding in self.findings:
            mark = "fault" if finding.diagnosis.unusable else "note"
            lines.append(f"{mark:<7}{finding.code:<28}{finding.count:>9,}   first: {finding.first}")
            lines.append(f"{'':7}expected {finding.diagnosis.expected}; to do: {finding.diagnosis.advice}")
        return "\n".join([*lines, *map(str, self.prevalence)])


def examine(
    source: Source,
    out: Path,
    *,
    workers: int = 2,
    sample: int = 0,
    threshold: float = THRESHOLD,
    progress: bool = True,
) -> Report:
    """Examines a data set and writes `quarantine.jsonl` to `out`.

    Args:
      source: the data set.
      out: folder of `quarantine.jsonl`; it holds the salt of the keys, so that of a data root gives the keys of its builds.
      workers: processes.
      sample: how many rows of each split to look at, evenly spread; 0 is all.
      threshold: see `Report.refused`.
      progress: shows rate and remaining time on stderr.

    Raises:
      UserError, DataError: a table is missing or cannot be read as one.
    """
    keyring = open_keyring(out)
    scan = source.scan(lenient=True)
    rows = _sampled(scan, sample)
    looked = _look(source, rows, keyring, workers, progress)
    in_tables = [*_table_faults(scan, keyring), *_shared_patients(scan, keyring)]
    in_files = [*_row_faults(looked), *_shared_pixels(looked)]
    _write_quarantine([*in_tables, *in_files], out)
    total = max(scan.input_rows, len(scan.problems))
    findings = [*_count(in_tables, total), *_count(in_files, len(looked)), *_count_dropped(scan, total)]
    findings.sort(key=lambda finding: (not finding.diagnosis.unusable, -finding.count, finding.code))
    return Report(
        name=source.name,
        input_rows=total,
        records=sum(not check.reason for check in looked),
        looked_at=len(looked),
        findings=tuple(findings),
        prevalence=compare_prevalence(source.name, source.label_names(), scan.rows),
        threshold=threshold,
    )


def find_path(source: Source, out: Path, key: str) -> Path | None:
    """The image file behind a key of `quarantine.jsonl`, for the eyes of those who hold the data; None if there is none."""
    keyring = open_keyring(out)
    for rows in source.scan(lenient=True).rows.values():
        for row in rows:
            if keyring.key("image", row.image) == key:
                return source.files(row)[0]
    return None


@dataclass(frozen=True)
class _Fault:
    code: str
    key: str = ""
    message: str = ""


@dataclass(frozen=True)
class _Check:
    """What reading one row gave: `reason` why it would be no record, or "", and the key of its pixels."""

    key: str
    split: str
    reason: str
    flags: tuple[str, ...] = ()
    pixels: str = ""


@dataclass(frozen=True)
class _Task:
    task: ShardTask
    split: str


def _sampled(scan: Scan, sample: int) -> dict[str, list[ImageRow]]:
    """Evenly spread rows of each split."""
    if not sample:
        return scan.rows
    return {split: rows[:: max(1, len(rows) // sample)][:sample] for split, rows in scan.rows.items()}


def _look(
    source: Source, rows: Mapping[str, Sequence[ImageRow]], keyring: Keyring, workers: int, shown: bool
) -> list[_Check]:
    nowhere, light = Path(os.devnull), source.for_workers()
    tasks = [
        _Task(
            ShardTask(
                light, tuple(part[i : i + _ROWS_PER_TASK]), nowhere, nowhere, keyring, _CHECKED_SIDE, 50, False, {}, {}
            ),
            split,
        )
        for split, part in rows.items()
        for i in range(0, len(part), _ROWS_PER_TASK)
    ]
    with Progress("examining", sum(len(task.task.rows) for task in tasks), "images", shown=shown) as progress:
        return [check for checks in run_tasks(_look_at, tasks, workers, progress) for check in checks] if tasks else []


def _look_at(task: _Task, advance: Callable[[int], None]) -> list[_Check]:
    """Makes every record of a task as a build would and keeps what the doctor asks for."""
    checks = []
    for row in task.task.rows:
        key = task.task.keyring.key("image", row.image)
        try:
            record, flags = make_record(task.task, row)
        except Dropped as dropped:
            checks.append(_Check(key, task.split, dropped.reason))
        else:
            checks.append(_Check(key, task.split, "", flags, record.pixel_key))
        advance(1)
    return checks


def _table_faults(scan: Scan, keyring: Keyring) -> Iterator[_Fault]:
    for problem in scan.problems:
        key = keyring.key("image", problem.identifier) if problem.identifier else ""
        yield _Fault(problem.code, key, problem.message)


def _row_faults(looked: Iterable[_Check]) -> Iterator[_Fault]:
    for check in looked:
        if check.reason:
            yield _Fault(check.reason, check.key)
        yield from (_Fault(flag, check.key) for flag in check.flags)


def _shared_pixels(looked: Iterable[_Check]) -> Iterator[_Fault]:
    """The same picture under several identifiers; blank ones are all alike."""
    groups: dict[str, dict[str, str]] = {}
    for check in looked:
        if check.pixels and "blank_image" not in check.flags:
            groups.setdefault(check.pixels, {})[check.key] = check.split
    for images in groups.values():
        code = "duplicate_pixels_across_splits" if len(set(images.values())) > 1 else "duplicate_pixels"
        yield from (_Fault(code, key) for key in list(images)[1:])


def _shared_patients(scan: Scan, keyring: Keyring) -> Iterator[_Fault]:
    split_of: dict[str, str] = {}
    several = {
        row.patient
        for split, rows in scan.rows.items()
        for row in rows
        if split_of.setdefault(row.patient, split) != split
    }
    yield from (_Fault("patient_in_two_splits", keyring.key("patient", patient)) for patient in sorted(several))


def _count(faults: Sequence[_Fault], total: int) -> list[Finding]:
    counts = Counter(fault.code for fault in faults)
    first: dict[str, str] = {}
    for fault in faults:
        first.setdefault(fault.code, fault.message or fault.key)
    return [Finding(code, count, total, first[code], DIAGNOSES[code]) for code, count in counts.items()]


def _count_dropped(scan: Scan, rows: int) -> list[Finding]:
    """What the tables alone exclude; those rows have no file to look at."""
    total = sum((Counter(reasons) for reasons in scan.dropped.values()), Counter())
    place = {reason: split for split, reasons in scan.dropped.items() for reason in reasons}
    return [
        Finding(
            code, count, rows, "in no split" if place[code] == NO_SPLIT else f"split {place[code]}", DIAGNOSES[code]
        )
        for code, count in total.items()
    ]


def _write_quarantine(faults: Iterable[_Fault], out: Path) -> None:
    """One line per fault that makes a row unusable: keyed hash and reason."""
    lines = [
        json.dumps({"image": fault.key or _digest(fault.message), "reason": fault.code}) + "\n"
        for fault in faults
        if DIAGNOSES[fault.code].unusable
    ]
    draft = out / f"{QUARANTINE_NAME}.tmp"
    draft.write_text("".join(lines))
    os.replace(draft, out / QUARANTINE_NAME)


def _digest(message: str) -> str:
    return hashlib.sha256(message.encode()).hexdigest()[:32]
