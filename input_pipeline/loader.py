"""Batches from the records of a build: a function of (seed, step) alone, the same for any number of processes and workers.

The order of the stages makes it so: shuffle, repeat, randomness keyed by the position in the endless stream, this process's share of
the positions, batching, and only then workers (grain's MapDataset, https://google-grain.readthedocs.io).
"""

import functools
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import cv2
import grain
import numpy as np
from absl import flags

from input_pipeline.errors import UserError
from input_pipeline.reading import grounding_records, label_names, open_split, record_count, text_sentences
from input_pipeline.streams import (
    BatchSpec,
    PaddedRecords,
    Positions,
    ProcessRows,
    TrainingRecords,
    evaluation_row,
    report_permutation,
    training_row,
)
from input_pipeline.tokenizer import ReportTokenizer

__all__ = [
    "Batch",
    "BatchSpec",
    "Batches",
    "evaluation_batches",
    "grounding_records",
    "label_names",
    "record_count",
    "text_sentences",
    "train_batches",
]

Batch = dict[str, np.ndarray]

_ENDLESS = 2**32  # steps
_MOST_THREADS = 4  # of a process
_BUFFERED_BATCHES = 4  # grain's default is 500, counted in batches here


class Batches(Iterator[Batch]):
    """An iterator of batches with threads or workers behind it, which `close` ends; also a context manager."""

    def __init__(self, iterator: grain.DatasetIterator):
        """Takes over a grain iterator."""
        self._iterator = iterator

    def __next__(self) -> Batch:
        return next(self._iterator)

    def close(self) -> None:
        """Ends threads and workers."""
        self._iterator.close()

    def __enter__(self) -> "Batches":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def train_batches(
    directory: Path | str,
    spec: BatchSpec,
    *,
    batch_size: int,
    seed: int,
    split: str = "train",
    start_step: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    workers: int = 0,
    permute_reports: bool = False,
) -> Batches:
    """Endless training batches of this process, reshuffled each epoch.

    Row r of process p is row p * b + r of the global batch, b = `batch_size` / `process_count`; the global batch of a step is the same
    for any `process_count` and `workers`, augmentation included.

    Args:
      directory: a build.
      spec: sizes and augmentation.
      batch_size: of the global batch.
      seed: of order and augmentation, 0 to 2^32 - 1.
      split: of the build.
      start_step: the first step to give; any step takes the same time to reach.
      process_index: of this process.
      process_count: number of processes; divides `batch_size`.
      workers: loader processes beside this one; 0 reads in threads. Where a slow disk is waited for, more than there are processors.
      permute_reports: control: every image gets the report of another patient, the same one in every epoch.

    Returns:
      image uint8 [b, H, W, 1], token_ids int32 [b, T], sentence_ids int32 [b, T], study_key uint32 [b].

    Raises:
      UserError: no such build, split or tokenizer, or sizes that do not fit.
      DataError: a shard is damaged, or one patient has more than half of the reports to permute.
    """
    check_seed(seed, workers)
    positions = Positions.of_process(
        process_index, process_count, batch_size=batch_size, start_step=start_step, end_step=_ENDLESS
    )
    source = open_split(directory, split)
    reports = report_permutation([record.patient_key for record in source], seed) if permute_reports else None
    tokenizer = ReportTokenizer.load(spec.tokenizer)
    stream = grain.MapDataset.source(TrainingRecords(source, reports)).seed(seed).shuffle().repeat(None)
    stream = stream.random_map(functools.partial(training_row, spec=spec, tokenizer=tokenizer))
    return start_batches(ProcessRows(stream, positions), positions.local_size, workers)


def evaluation_batches(
    directory: Path | str,
    spec: BatchSpec,
    *,
    batch_size: int,
    split: str,
    process_index: int = 0,
    process_count: int = 1,
) -> Batches:
    """All records of a split once, in order, without augmentation; the same number of batches on every process.

    Returns:
      As `train_batches`, with labels float32 [b, L], valid bool [b], patient_key and image_key uint32 [b], original_size int32 [b, 2].
      Rows that only fill the last batch have valid False, NaN labels, a black image and a report without sentences.

    Raises:
      UserError, DataError: as `train_batches`.
    """
    source = open_split(directory, split)
    steps = -(-len(source) // max(1, batch_size))
    positions = Positions.of_process(process_index, process_count, batch_size=batch_size, start_step=0, end_step=steps)
    tokenizer = ReportTokenizer.load(spec.tokenizer)
    padded = PaddedRecords(source, steps * batch_size, len(label_names(directory)))
    stream = grain.MapDataset.source(padded)
    stream = stream.map(functools.partial(evaluation_row, spec=spec, tokenizer=tokenizer))
    return start_batches(ProcessRows(stream, positions), positions.local_size, workers=0)


def check_seed(seed: int, workers: int) -> None:
    """Raises a UserError where a seed or a number of workers is out of range."""
    if not 0 <= seed < 2**32 or workers < 0:
        raise UserError(f"seed is {seed} and workers {workers}; expected 0 to {2**32 - 1}, and 0 or more")


def start_batches(rows: grain.MapDataset, local_size: int, workers: int) -> Batches:
    """Batches the rows of this process, `local_size` at a time, and starts threads, in this process or in workers."""
    _prepare_process()
    if not flags.FLAGS.is_parsed():  # grain's workers read absl flags, which nobody parsed in a notebook or a test
        flags.FLAGS.mark_as_parsed()
    options = grain.ReadOptions(num_threads=_threads(workers), prefetch_buffer_size=_BUFFERED_BATCHES)
    batches = rows.batch(local_size).to_iter_dataset(options)
    if workers:
        processes = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2)
        batches = batches.mp_prefetch(processes, worker_init_fn=_prepare_worker)
    return Batches(iter(batches))


def _threads(workers: int) -> int:
    """Threads that read in each process, no more than it has processors: others would wait for the interpreter, and wake each other for it."""
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(_MOST_THREADS, processors // max(1, workers)))


def _prepare_process() -> None:
    """Threads of OpenCV and the tokenizer would compete with those that read."""
    cv2.setNumThreads(0)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def _prepare_worker(index: int, count: int) -> None:
    """A worker never takes an accelerator, even where unpickling has imported jax before this runs, and leaves the wish to stop to its parent.

    SLURM and a terminal signal every process of a run; the parent takes a few more steps before it stops, for which it needs its workers.
    """
    _prepare_process()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    os.environ["JAX_PLATFORMS"] = "cpu"
    if "jax" in sys.modules:
        sys.modules["jax"].config.update("jax_platforms", "cpu")
