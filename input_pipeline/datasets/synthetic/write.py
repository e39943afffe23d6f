"""Writes a synthetic study to disk in the layout of MIMIC-CXR-JPG, MS-CXR and SIIM, with any number of worker processes."""

import multiprocessing
import os
import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

import cv2

from input_pipeline.datasets.synthetic import tables
from input_pipeline.datasets.synthetic.anatomy import draw_lateral
from input_pipeline.datasets.synthetic.findings import Drawing, box_of, draw_frontal
from input_pipeline.datasets.synthetic.report import Report, write_report
from input_pipeline.datasets.synthetic.study import FINDINGS, SPLITS, Plan, Study, plan_studies
from input_pipeline.errors import UserError
from input_pipeline.sources import SYNTHETIC

JPEG_QUALITY = 95  # MIMIC-CXR-JPG's own
BOX_FILE = "MS_CXR_Local_Alignment_v1.1.0.csv"
RLE_FILE = "train-rle.csv"
REPORT_FOLDER = "mimic-cxr-reports"
_BOX_SPLITS = {"validate": "val", "test": "test"}  # MS-CXR's names for them
_CHUNK = 32
_SMALLEST = 32


@dataclass(frozen=True, slots=True)
class StudySummary:
    """What `synthesize` wrote: counts of studies, patients, images and boxes, studies per split and per finding."""

    directory: Path
    studies: int
    patients: int
    images: int
    boxes: int
    splits: dict[str, int]
    findings: dict[str, int]
    seconds: float


class Rows(NamedTuple):
    """Table rows of some studies, in the order of the studies."""

    split: list[tables.Row]
    metadata: list[tables.Row]
    labels: list[tables.Row]
    boxes: list[tables.Row]
    rle: list[tables.Row]
    images: list[str]
    findings: list[str]

    @classmethod
    def empty(cls) -> "Rows":
        """No rows yet."""
        return cls([], [], [], [], [], [], [])

    def extend(self, other: "Rows") -> None:
        """Appends the rows of later studies."""
        self.split.extend(other.split)
        self.metadata.extend(other.metadata)
        self.labels.extend(other.labels)
        self.boxes.extend(other.boxes)
        self.rle.extend(other.rle)
        self.images.extend(other.images)
        self.findings.extend(other.findings)


@dataclass
class _Progress:
    """One line on a terminal, rewritten as chunks finish; nothing elsewhere."""

    total: int
    shown: bool
    started: float = field(default_factory=time.monotonic)

    def update(self, done: int) -> None:
        if not self.shown:
            return
        left = (time.monotonic() - self.started) * (self.total - done) / done
        end = "\n" if done == self.total else ""
        print(
            f"\rsynthetic study     {done:,}/{self.total:,} studies, {left:.0f} s left ",
            end=end,
            file=sys.stderr,
            flush=True,
        )


def synthesize(
    directory: Path,
    *,
    studies: int,
    seed: int,
    size: int = 256,
    workers: int | None = None,
    validate: int | None = None,
    test: int | None = None,
    progress: bool = True,
) -> StudySummary:
    """Writes `studies` synthetic chest radiograph studies into a new folder, as PhysioNet ships MIMIC-CXR-JPG 2.0.0.

    The bytes are a function of (studies, seed, size, validate, test), not of the number of workers. Everything is first written
    beside `directory` and moved there when complete.

    Args:
      directory: does not exist yet or is empty.
      studies: in all splits together; 76 % train, 12 % validate, 12 % test, no patient in two of them.
      size: side of the square images in pixels.
      workers: processes; all processors by default, 1 works in this process. More than 1 starts processes by `spawn`.
      validate, test: studies in these splits instead of their share.
      progress: show a progress line when the terminal allows.

    Raises:
      UserError: a count or size out of range, or a directory that is not empty.
    """
    started = time.monotonic()
    plan = plan_studies(studies, seed, validate=validate, test=test)
    _check(directory, size, workers)
    directory = directory.absolute()
    partial_directory = directory.with_name(f".{directory.name}.partial")
    shutil.rmtree(partial_directory, ignore_errors=True)
    partial_directory.mkdir(parents=True)
    shown = _Progress(studies, progress and sys.stderr.isatty())
    rows = Rows.empty()
    for part in _run(plan, partial_directory, size, workers or os.cpu_count() or 1):
        rows.extend(part)
        shown.update(len(rows.labels))
    _write_tables(partial_directory, rows)
    partial_directory.rename(directory)
    return _summarise(directory, plan, rows, time.monotonic() - started)


def _check(directory: Path, size: int, workers: int | None) -> None:
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise UserError(f"{directory}: exists and is not an empty folder; give a new one or remove it")
    if size < _SMALLEST:
        raise UserError(f"size {size}: expected at least {_SMALLEST} pixels, below that findings vanish")
    if workers is not None and workers < 1:
        raise UserError(f"{workers} workers: expected at least 1")


def _run(plan: Plan, directory: Path, size: int, workers: int) -> Iterator[Rows]:
    total = sum(plan.counts)
    chunks = [range(start, min(start + _CHUNK, total)) for start in range(0, total, _CHUNK)]
    write = partial(_write_studies, plan, directory, size)
    if workers == 1 or len(chunks) == 1:
        yield from map(write, chunks)
        return
    # spawn, because forking a process that has started threads (JAX has) can deadlock
    with ProcessPoolExecutor(
        workers, mp_context=multiprocessing.get_context("spawn"), initializer=cv2.setNumThreads, initargs=(0,)
    ) as pool:
        yield from pool.map(write, chunks)


def _write_studies(plan: Plan, directory: Path, size: int, indices: Iterable[int]) -> Rows:
    rows = Rows.empty()
    for index in indices:
        _write_study(plan.study(index), directory, size, rows)
    return rows


def _write_study(study: Study, directory: Path, size: int, rows: Rows) -> None:
    report = write_report(study)
    drawing = draw_frontal(study, size)
    folder = f"files/p{str(study.subject_id)[:2]}/p{study.subject_id}"
    report_path = directory / REPORT_FOLDER / folder / f"s{study.study_id}.txt"
    report_path.parent.mkdir(parents=True, exist_ok=True)
    report_path.write_text(report.text, encoding="ascii", newline="\n")
    images = {study.view: drawing.image}
    if study.lateral:
        images["LATERAL"] = draw_lateral(study.generator("lateral"), study.patient, size)
    (directory / folder / f"s{study.study_id}").mkdir(parents=True, exist_ok=True)
    for view, image in images.items():
        path = f"{folder}/s{study.study_id}/{study.dicom_id(view)}.jpg"
        encoded = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1]
        (directory / path).write_bytes(encoded.tobytes())
        rows.images.append(path)
        rows.split.append(tables.split_row(study, view))
        rows.metadata.append(tables.metadata_row(study, view, size))
    rows.labels.append(tables.label_row(study, report))
    rows.boxes.extend(_box_rows(study, report, drawing, f"{folder}/s{study.study_id}/{study.dicom_id(study.view)}.jpg"))
    rows.rle.append((study.dicom_id(study.view), _pneumothorax_rle(study, drawing)))
    rows.findings.extend(finding.name for finding in study.findings)


def _box_rows(study: Study, report: Report, drawing: Drawing, path: str) -> Iterator[tables.Row]:
    """MS-CXR rows, one per box, of a study to validate or test: not of devices, unstated or unseen lesions."""
    if study.split not in _BOX_SPLITS:
        return
    height, width = drawing.image.shape
    for position, mask in drawing.masks:
        name, sentence = study.findings[position].name, report.stated[position]
        if name != "Support Devices" and sentence and mask.any():
            yield (
                name,
                sentence,
                path,
                study.dicom_id(study.view),
                *box_of(mask),
                width,
                height,
                _BOX_SPLITS[study.split],
            )


def _pneumothorax_rle(study: Study, drawing: Drawing) -> str:
    masks = [mask for position, mask in drawing.masks if study.findings[position].name == "Pneumothorax"]
    return tables.encode_rle(masks[0]) if masks else tables.NO_PIXELS


def _write_tables(directory: Path, rows: Rows) -> None:
    tables.write_table(directory / "mimic-cxr-2.0.0-split.csv.gz", tables.SPLIT_COLUMNS, rows.split)
    tables.write_table(directory / "mimic-cxr-2.0.0-metadata.csv.gz", tables.METADATA_COLUMNS, rows.metadata)
    tables.write_table(directory / "mimic-cxr-2.0.0-chexpert.csv.gz", tables.LABEL_COLUMNS, rows.labels)
    tables.write_table(directory / BOX_FILE, tables.BOX_COLUMNS, rows.boxes)
    tables.write_table(directory / RLE_FILE, tables.RLE_COLUMNS, rows.rle)
    (directory / "IMAGE_FILENAMES").write_text("".join(f"{path}\n" for path in rows.images))
    (directory / SYNTHETIC).write_text("Schematic images and generated reports: no patient is behind them.\n")


def _summarise(directory: Path, plan: Plan, rows: Rows, seconds: float) -> StudySummary:
    counts = Counter(rows.findings)
    return StudySummary(
        directory=directory,
        studies=len(rows.labels),
        patients=len(set(plan.patients.tolist())),
        images=len(rows.images),
        boxes=len(rows.boxes),
        splits=dict(zip(SPLITS, plan.counts, strict=True)),
        findings={name: counts[name] for name in FINDINGS},
        seconds=seconds,
    )
