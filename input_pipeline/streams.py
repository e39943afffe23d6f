"""Stages of the loader with random access: records, rows of one process, and one record as a row of a batch."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import grain
import numpy as np
from jaxtyping import Int64, UInt8

from input_pipeline import augment, images, records
from input_pipeline.errors import DataError, UserError
from input_pipeline.reading import Pair, SplitRecords
from input_pipeline.tokenizer import ReportTokenizer

_NO_KEY = "0" * 32


@dataclass(frozen=True)
class BatchSpec:
    """How a record becomes a row of a batch.

    Attributes:
      tokenizer: folder of the tokenizer.
      image_size: side of the square view, in pixels.
      max_tokens: T.
      max_sentences: largest number of sentences kept.
      fit: how a view is cut, see `images.view_rectangle`.
      scale: training only, range of the area shown, as a fraction of the evaluation view.
      shift: training only, largest displacement as a fraction of the side.
      subset_probability: training only, how often a report is replaced by a shuffled random subset of its sentences.
      aspect: training only, as for `augment.draw`, like the four that follow.
      placement: where a crop lies in the evaluation view.
      zoom: range of the magnification.
      rotation: largest angle in degrees.
      flip: whether half of the images are mirrored, though reports say left and right.
    """

    tokenizer: str
    image_size: int
    max_tokens: int
    max_sentences: int
    fit: Literal["crop", "pad", "squash"] = "crop"
    scale: tuple[float, float] = (1.0, 1.0)
    shift: float = 0.0
    subset_probability: float = 0.0
    aspect: tuple[float, float] = (1.0, 1.0)
    placement: augment.Placement = "centre"
    zoom: tuple[float, float] = (1.0, 1.0)
    rotation: float = 0.0
    flip: bool = False


@dataclass(frozen=True)
class Positions:
    """Which positions of the global stream are those of one process: a contiguous block of each global batch.

    Attributes:
      batch_size: of the global batch, B.
      local_size: rows of this process per step, b.
      first: its first row in the global batch, p * b.
      start_step: the first step.
      steps: how many steps.
    """

    batch_size: int
    local_size: int
    first: int
    start_step: int
    steps: int

    @classmethod
    def of_process(cls, index: int, count: int, *, batch_size: int, start_step: int, end_step: int) -> "Positions":
        """The block of process `index` of `count`.

        Raises:
          UserError: the processes cannot share the batch equally, or the index or step is out of range.
        """
        if batch_size < 1 or count < 1 or batch_size % count:
            raise UserError(f"batch_size is {batch_size} for {count} processes; expected a multiple of {count}")
        if not 0 <= index < count or not 0 <= start_step <= end_step:
            raise UserError(
                f"process {index} of {count} at step {start_step}; expected 0 to {count - 1}, and a step >= 0"
            )
        local_size = batch_size // count
        return cls(batch_size, local_size, index * local_size, start_step, end_step - start_step)

    def __len__(self) -> int:
        return self.steps * self.local_size

    def __getitem__(self, index: int) -> int:
        """Position of this process's `index`-th row: step * B + p * b + r."""
        step, row = divmod(index, self.local_size)
        return (self.start_step + step) * self.batch_size + self.first + row


class ProcessRows(grain.MapDataset):
    """The rows of one process; slicing `[p::n]` would give the same rows in another order."""

    _MUTATES_ELEMENT_SPEC = False

    def __init__(self, parent: grain.MapDataset, positions: Positions):
        """Reads `parent` at `positions`."""
        super().__init__(parent)
        self._positions = positions

    def __len__(self) -> int:
        return len(self._positions)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return self.slice(index)
        return self._parent[self._positions[index]]


class TrainingRecords:
    """Images and reports by index, each image with the report of record `reports[index]` instead of its own if given."""

    def __init__(self, source: SplitRecords, reports: Int64[np.ndarray, "N"] | None):
        self._source, self._reports = source, reports

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Pair:
        pair = self._source.pair(index)
        if self._reports is None:
            return pair
        return pair._replace(sentences=self._source.pair(int(self._reports[index])).sentences)


class PaddedRecords:
    """Pairs of record and True by index, then empty records and False up to `length`."""

    def __init__(self, source: SplitRecords, length: int, label_count: int):
        self._source, self._length = source, length
        labels = np.full(label_count, np.nan, np.float32)
        black = images.encode_jpeg(np.zeros((8, 8), np.uint8))
        no_boxes = np.zeros((0, 4), np.float32)
        self._empty = records.Record(black, (8, 8), (), labels, "", _NO_KEY, _NO_KEY, _NO_KEY, no_boxes, "")

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> tuple[records.Record, bool]:
        if index < len(self._source):
            return self._source[index], True
        return self._empty, False


def training_row(
    pair: Pair, rng: np.random.Generator, *, spec: BatchSpec, tokenizer: ReportTokenizer
) -> dict[str, np.ndarray]:
    """One row of a training batch; `rng` depends on seed and position alone."""
    view = training_image(pair, rng, spec)
    sentences = _subset(pair.sentences, rng) if rng.random() < spec.subset_probability else pair.sentences
    return _row(view, sentences, pair.sentences, spec, tokenizer)


def training_image(
    record: records.Record | Pair, rng: np.random.Generator, spec: BatchSpec
) -> UInt8[np.ndarray, "size size"]:
    """A random view of a record's image as `spec` has it."""
    return random_view(images.decode_gray(record.image), rng, spec)


def random_view(
    image: UInt8[np.ndarray, "H W"], rng: np.random.Generator, spec: BatchSpec
) -> UInt8[np.ndarray, "size size"]:
    """A random view as `spec` has it: images of one size are cut alike by generators in the same state."""
    return images.training_view(
        image,
        spec.image_size,
        rng,
        scale=spec.scale,
        shift=spec.shift,
        fit=spec.fit,
        aspect=spec.aspect,
        placement=spec.placement,
        zoom=spec.zoom,
        rotation=spec.rotation,
        flip=spec.flip,
    )


def evaluation_row(
    element: tuple[records.Record, bool], *, spec: BatchSpec, tokenizer: ReportTokenizer
) -> dict[str, np.ndarray]:
    """One row of an evaluation batch, from a record and whether it is one."""
    record, valid = element
    view = images.evaluation_view(images.decode_gray(record.image), spec.image_size, spec.fit)
    return _row(view, record.sentences, record.sentences, spec, tokenizer) | {
        "labels": record.labels,
        "valid": np.asarray(valid),
        "patient_key": np.asarray(records.short_key(record.patient_key), np.uint32),
        "image_key": np.asarray(records.short_key(record.image_key), np.uint32),
        "original_size": np.asarray(record.original_size, np.int32),
    }


def text_key(sentences: Sequence[str]) -> int:
    """32-bit hash of a report's text, ignoring case and white space: equal for equal reports."""
    text = " ".join(" ".join(sentences).casefold().split())
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "big")


def report_permutation(patients: Sequence[str], seed: int) -> Int64[np.ndarray, "N"]:
    """A permutation that gives no record a report of its own patient.

    Patients are put in random order with their records side by side; each record takes the report that lies as many places further
    on as the largest patient has records, around the end: always another patient's while no patient has more than half of all.

    Args:
      patients: key of each record's patient.
      seed: of the order.

    Raises:
      DataError: one patient has more than half of the records.
    """
    rng = np.random.default_rng(seed)
    _, first, groups, sizes = np.unique(
        np.asarray(patients), return_index=True, return_inverse=True, return_counts=True
    )
    # Numbered as they first appear, not by their keys: keys are hashed with a salt that differs from build to build.
    groups = np.argsort(np.argsort(first))[groups]
    largest = int(sizes.max())
    if 2 * largest > len(groups):
        raise DataError(f"one patient has {largest} of {len(groups)} records; permuting reports needs at most half")
    order = np.lexsort((rng.random(len(groups)), rng.permutation(len(sizes))[groups]))
    permutation = np.empty(len(groups), np.int64)
    permutation[order] = np.roll(order, -largest)
    return permutation


def _subset(sentences: tuple[str, ...], rng: np.random.Generator) -> tuple[str, ...]:
    if not sentences:  # images without reports
        return ()
    count = rng.integers(1, len(sentences), endpoint=True)
    return tuple(sentences[index] for index in rng.permutation(len(sentences))[:count])


def _row(
    view: np.ndarray, sentences: Sequence[str], report: Sequence[str], spec: BatchSpec, tokenizer: ReportTokenizer
) -> dict[str, np.ndarray]:
    """What training and evaluation share; the study key is that of the whole report, whatever subset is shown."""
    token_ids, sentence_ids = tokenizer.encode_report(
        sentences, max_tokens=spec.max_tokens, max_sentences=spec.max_sentences
    )
    return {
        "image": view[..., None],
        "token_ids": token_ids,
        "sentence_ids": sentence_ids,
        "study_key": np.asarray(text_key(report), np.uint32),
    }
