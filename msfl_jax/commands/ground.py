"""`msfl ground`: where in one radiograph a model sees a phrase, or each sentence of a report, as an overlay and a table."""

import math
import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, UInt8

from input_pipeline import dicom
from input_pipeline.errors import UserError
from input_pipeline.images import decode_gray, resize_short_side
from input_pipeline.reading import open_split
from input_pipeline.records import Record
from input_pipeline.reports import MAX_REPORT_BYTES
from input_pipeline.sections import clean_sentence, report_sentences
from msfl_jax.results.figures import save_report_overlays
from msfl_jax.results.tables import format_table, number, with_caveats
from msfl_jax.tasks.grounding import phrase_maps
from msfl_jax.tasks.grounding_protocol import GroundingProtocol, known_protocol, scale_boxes
from msfl_jax.tasks.run import open_run, prepare_image

FRONTAL = ("", "PA", "AP", "AP AXIAL")
SHOWN_CHARACTERS = 60  # of a sentence in the table; the figure has all of it
DRAWN_SIDE = 1024  # pixels of the shorter side in the figure, at most
# Archived reports have a space before their headers and write them in capitals, by which sections are told; typed ones need not.
_TYPED_HEADER = re.compile(r"^[^\S\n]*(findings|impression):", re.IGNORECASE | re.MULTILINE)
_MIDLINE = 0.06  # share of the width that is called midline, on each side of the middle


class Peak(NamedTuple):
    """The hottest pixel of a map and its heat."""

    row: int
    column: int
    value: float


@dataclass(frozen=True)
class Subject:
    """What is drawn: an image, the sentences to look for, and the known boxes of each.

    Attributes:
      image: grey.
      sentences: in order; never printed but to the user who gave them.
      boxes: of each sentence, x, y, width and height in pixels of `image`.
      view: "PA", "LATERAL", ..., or "" where nothing says.
    """

    image: UInt8[np.ndarray, "H W"]
    sentences: tuple[str, ...]
    boxes: tuple[Float[np.ndarray, "_ 4"], ...]
    view: str = ""


def ground_report(
    workdir: Path,
    *,
    image: Path | None = None,
    phrase: str = "",
    report: Path | None = None,
    boxes: Sequence[str] = (),
    data: Path | None = None,
    split: str = "test",
    record: int = 0,
    out: Path = Path("ground.png"),
    protocol: str = "",
    sigma: float | None = None,
) -> str:
    """Draws one overlay per sentence into `out` and returns a table of where each is seen.

    Args:
      workdir: run directory.
      image: JPEG, PNG or DICOM file.
      phrase: one sentence; or `report`, a text file whose sentences are taken as those of training reports are.
      boxes: "x,y,w,h" in pixels of the image; with a report "2:x,y,w,h" for its second sentence.
      data, split, record: instead of an image, a record of a build by its number from 0: its sentences, or all phrases of its image with boxes.
      out: a PNG file.
      protocol: "" takes the run's own.
      sigma: smoothing in patches; None takes the run's own.

    Raises:
      UserError: the inputs do not fit together, or one cannot be read.
      DataError: the image is damaged.
    """
    subject = _subject(image, phrase, report, boxes, data, split, record)
    run = open_run(workdir)
    chosen = known_protocol(protocol or run.config.grounding.protocol)
    seen = subject.image if data is not None else prepare_image(run, subject.image)  # a build has prepared its images
    maps = phrase_maps(run, seen, subject.sentences, protocol=chosen, sigma=sigma)
    fit = run.config.data.fit
    # One at a time: thirty maps of a radiograph's 3,000 x 3,000 pixels are a gigabyte.
    peaks = [peak(chosen.heat(one, subject.image.shape, fit)) for one in maps]
    _draw(subject, maps, chosen, fit, out)
    table = ground_table(peaks, subject, chosen, run.step)
    return f"{with_caveats(table, run.caveats)}\n\noverlay  {out}"


def _draw(subject: Subject, maps: Float[np.ndarray, "S G G"], protocol: GroundingProtocol, fit: str, out: Path) -> None:
    image = subject.image
    shown = resize_short_side(image, DRAWN_SIDE) if min(image.shape) > DRAWN_SIDE else image
    boxes = [scale_boxes(one, image.shape, shown.shape) for one in subject.boxes]
    try:
        save_report_overlays(shown, protocol.heat(maps, shown.shape, fit), subject.sentences, out, boxes=boxes)
    except OSError as error:
        raise UserError(f"--out: cannot be written ({error.strerror}); expected a place for a PNG file") from None


def ground_table(peaks: Sequence[Peak], subject: Subject, protocol: GroundingProtocol, step: int) -> str:
    """One row per sentence: the hottest pixel, in which zone it lies, how hot it is, and the sentence itself."""
    rows = [
        {
            "": str(index),
            "peak x, y": f"{found.column}, {found.row}",
            "zone": zone(found, subject.image.shape, subject.view),
            "similarity": number(found.value),
            "in a box": _in_a_box(found, boxes),
            " ": textwrap.shorten(sentence, SHOWN_CHARACTERS, placeholder=" ..."),
        }
        for index, (found, sentence, boxes) in enumerate(
            zip(peaks, subject.sentences, subject.boxes, strict=True), start=1
        )
    ]
    known = any(len(boxes) for boxes in subject.boxes)
    columns = ["", "peak x, y", "zone", "similarity", *(["in a box"] if known else [])]
    lines = format_table(rows, columns).splitlines()
    texts = ["sentence", *(row[" "] for row in rows)]
    width = max(len(line) for line in lines)
    table = "\n".join(f"{line.ljust(width)}   {text}" for line, text in zip(lines, texts, strict=True))
    height, across = subject.image.shape
    kind = "cosine" if protocol.cosine else "raw product"
    title = f"grounding, protocol {protocol.name}, step {step}: image of {across:,} x {height:,} pixels; similarity is a {kind}"
    note = "zones are thirds of the image's height; left and right are the patient's, in a frontal view that is not mirrored"
    return f"{title}\n\n{table}\n\n{note}"


def peak(heatmap: Float[np.ndarray, "H W"]) -> Peak:
    """The hottest pixel; of several, the one nearest to their centre."""
    rows, columns = np.nonzero(heatmap == np.nanmax(heatmap))
    nearest = np.argmin(np.hypot(rows - rows.mean(), columns - columns.mean()))
    row, column = int(rows[nearest]), int(columns[nearest])
    return Peak(row, column, float(heatmap[row, column]))


def zone(found: Peak, size: tuple[int, ...], view: str = "") -> str:
    """`right upper`, `midline middle`, `left lower`: the patient's side and the third of the image's height; "-" in a view that is not frontal."""
    if view.upper() not in FRONTAL:
        return "-"
    height, width = size
    offset = (found.column + 0.5) / width - 0.5
    side = "midline" if abs(offset) <= _MIDLINE else "right" if offset < 0 else "left"
    return f"{side} {('upper', 'middle', 'lower')[int(3 * (found.row + 0.5) / height)]}"


def parse_boxes(texts: Sequence[str], sentences: int) -> tuple[Float[np.ndarray, "_ 4"], ...]:
    """Boxes of each sentence from "x,y,w,h" or "SENTENCE:x,y,w,h", sentences counted from 1.

    Raises:
      UserError: not four numbers, no area, or no such sentence; or none is named and there are several.
    """
    found: list[list[list[float]]] = [[] for _ in range(sentences)]
    for text in texts:
        name, _, numbers = text.rpartition(":")
        try:
            box = [float(value) for value in numbers.split(",")]
            sentence = int(name) if name else 1
        except ValueError:
            box, sentence = [], 0
        if len(box) != 4 or not all(map(math.isfinite, box)) or min(box[2:]) <= 0:
            raise UserError(
                f"--boxes: found '{text}'; expected x,y,w,h in pixels with w and h above 0, as 120,80,60,40, "
                "or 2:120,80,60,40 for the second sentence"
            )
        if not 1 <= sentence <= sentences or (not name and sentences > 1):
            raise UserError(f"--boxes: '{text}' is of no sentence; expected 1: to {sentences}: before the numbers")
        found[sentence - 1].append(box)
    return tuple(np.asarray(boxes, np.float32).reshape(-1, 4) for boxes in found)


def _subject(
    image: Path | None,
    phrase: str,
    report: Path | None,
    boxes: Sequence[str],
    data: Path | None,
    split: str,
    record: int,
) -> Subject:
    if data is not None:
        if image is not None or phrase or report is not None or boxes:
            raise UserError("found --data beside an image, a phrase, a report or boxes; the record has all of them")
        return _subject_of_record(data, split, record)
    if image is None or bool(phrase) == (report is not None):
        raise UserError('expected IMAGE "phrase", IMAGE --report FILE, or --data BUILD --record N; see --help')
    sentences = (clean_sentence(phrase),) if report is None else _sentences_of(report)
    content = _read(image, "IMAGE", "a JPEG, PNG or DICOM file")
    values: dict[str, Any] = dict(dicom.header_values(content)) if dicom.is_dicom(content) else {}
    return Subject(
        decode_gray(content), sentences, parse_boxes(boxes, len(sentences)), str(values.get("view_position", ""))
    )


def _subject_of_record(data: Path, split: str, number: int) -> Subject:
    records = open_split(data, split)
    if not 0 <= number < len(records):
        raise UserError(
            f"--record {number}: split '{split}' has {len(records):,} records; expected 0 to {len(records) - 1}"
        )
    one = records[number]
    group = _same_image(records, one) if len(one.boxes) else [one]
    image = decode_gray(one.image)
    pairs = [
        (sentence, scale_boxes(record.boxes, record.original_size, image.shape))
        for record in group
        for sentence in record.sentences
    ]
    if not pairs:
        raise UserError(f"--record {number}: it has no sentence; take another")
    return Subject(image, tuple(sentence for sentence, _ in pairs), tuple(boxes for _, boxes in pairs), one.view)


def _same_image(records: Sequence[Record] | Any, one: Record) -> list[Record]:
    """All phrases of a record's image."""
    return [record for record in records if record.image_key == one.image_key]


def _sentences_of(report: Path) -> tuple[str, ...]:
    text = _read(report, "--report", "a text file")[:MAX_REPORT_BYTES].decode("utf-8", errors="replace")
    sentences = tuple(report_sentences(_TYPED_HEADER.sub(lambda header: f" {header[1].upper()}:", text)))
    if not sentences:
        raise UserError("--report: no findings, impression or other sentence of two words in it; expected a report")
    return sentences


def _read(file: Path, name: str, expected: str) -> bytes:
    """The content of a file, which errors call by the name of its option: paths of radiographs hold identifiers."""
    try:
        return file.read_bytes()
    except OSError as error:
        raise UserError(f"{name}: cannot be read ({error.strerror}); expected {expected}") from None


def _in_a_box(found: Peak, boxes: Float[np.ndarray, "K 4"]) -> str:
    if not len(boxes):
        return ""
    x, y, width, height = boxes.T
    across, down = found.column + 0.5, found.row + 0.5
    inside = (x <= across) & (across < x + width) & (y <= down) & (down < y + height)
    return "yes" if inside.any() else "no"
