"""Batches of images with labels, without reports: for training classifiers on all or a fraction of a build, and for evaluating them.

The order of the rows is that of `loader.train_batches`: a function of (seed, step), the same for any number of processes and workers.
"""

import functools
import itertools
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, Literal

import grain
import numpy as np
from jaxtyping import Int64

from input_pipeline import images, records
from input_pipeline.errors import UserError
from input_pipeline.loader import Batches, check_seed, start_batches
from input_pipeline.manifest import read_manifest
from input_pipeline.patient_splits import nested_fractions
from input_pipeline.reading import SplitRecords, label_names, open_split
from input_pipeline.streams import BatchSpec, PaddedRecords, Positions, ProcessRows, training_image

TRAIN = "train"

Subsets = Literal["published", "drawn"]
"""Whether the list "train_<fraction>" of a build is taken where it has one, or passed over for what a seed draws."""


def view_spec(image_size: int, **options: object) -> BatchSpec:
    """A specification of views without reports; `options` are the other fields of a `BatchSpec`."""
    return BatchSpec(tokenizer="", image_size=image_size, max_tokens=0, max_sentences=0, **options)  # pyright: ignore[reportArgumentType]


def labelled_records(
    directory: Path | str, fraction: int, *, seed: int, subsets: Subsets = "published"
) -> SplitRecords:
    """The training records of a build, or a percentage of them.

    The subset is "train_<fraction>" where the build has a published list of that name (and `subsets` is not "drawn"), "train_<fraction>_seed<seed>"
    where it was drawn when the build was made, and else drawn here: whole patients, a smaller fraction inside every larger one of the same seed
    (`nested_fractions`). Patients are told by the order in which they first appear, as their keys depend on the salt of the build.

    Args:
      directory: a build.
      fraction: percentage, 1 to 100.
      seed: of fractions that are drawn.
      subsets: published lists need be neither nested nor different for each seed; "drawn" ones are both.

    Raises:
      UserError: no finished build, or no training split in it.
      DataError: a shard is missing or has another size than the manifest says.
    """
    if name := list_of(directory, fraction, seed=seed, subsets=subsets):
        return open_split(directory, name)
    whole = open_split(directory, TRAIN)
    return whole.at(_drawn(whole, fraction, seed))


def list_of(directory: Path | str, fraction: int, *, seed: int, subsets: Subsets = "published") -> str:
    """Name of the split or subset of a build that `labelled_records` takes; "" where it draws the records itself.

    Raises:
      UserError: no finished build.
    """
    if fraction == 100:
        return TRAIN
    names = read_manifest(directory).readable_splits()
    published = (f"{TRAIN}_{fraction}",) if subsets == "published" else ()
    known = (*published, f"{TRAIN}_{fraction}_seed{seed}")
    return next((name for name in known if name in names), "")


def describe_fractions(
    directory: Path | str, fractions: Collection[int], seeds: Collection[int], *, subsets: Subsets = "published"
) -> str:
    """What a learning curve over some percentages has to say of their records: which are published lists, and whether the smaller are in the larger.

    Those of one seed are, where all are drawn; published lists need not be. "" where there is nothing to say.

    Args:
      directory: a build.
      fractions: percentages.
      seeds: of what is drawn.
      subsets: as for `labelled_records`.

    Raises:
      UserError, DataError: as `labelled_records`.
    """
    parts = sorted(set(fractions) - {100})
    lists = read_manifest(directory).subsets if subsets == "published" else {}
    published = [f"{TRAIN}_{part}" for part in parts if f"{TRAIN}_{part}" in lists]
    same = f"{' and '.join(published)}: the build's own, the same for every seed" if published else ""
    for seed, (small, large) in itertools.product(seeds, itertools.pairwise(parts)):
        named = [list_of(directory, part, seed=seed, subsets=subsets) for part in (small, large)]
        if not any(named):
            continue  # drawn here: one inside the other
        names = [name or f"{part} % of seed {seed}" for name, part in zip(named, (small, large), strict=True)]
        inner, outer = (
            labelled_records(directory, part, seed=seed, subsets=subsets).indices for part in (small, large)
        )
        if missing := int((~np.isin(inner, outer)).sum()):
            apart = (
                f"not nested: {missing:,} of the {len(inner):,} images of {names[0]} are not among those of {names[1]}"
            )
            return "; ".join(filter(None, (apart, same)))
    nested = "nested: the images of each percentage are among those of every larger one" if len(parts) > 1 else ""
    return "; ".join(filter(None, (nested, same)))


def labelled_batches(
    source: SplitRecords,
    spec: BatchSpec,
    *,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    workers: int = 0,
) -> Batches:
    """Endless training batches of this process, reshuffled each epoch; an epoch may end within a batch.

    Args:
      source: records, as `labelled_records` gives them.
      spec: size and augmentation; nothing about reports is read.
      batch_size, seed, start_step, process_index, process_count, workers: as for `loader.train_batches`.

    Returns:
      image uint8 [b, H, W, 1], labels float32 [b, L]: 1 present, 0 absent, -1 uncertain, NaN not mentioned.

    Raises:
      UserError: sizes that do not fit, or no records.
      DataError: a shard is damaged.
    """
    positions = Positions.of_process(
        process_index, process_count, batch_size=batch_size, start_step=start_step, end_step=2**32
    )
    return endless_rows(source, functools.partial(labelled_row, spec=spec), positions, seed=seed, workers=workers)


def endless_rows(
    source: Any, row: Callable[..., dict[str, np.ndarray]], positions: Positions, *, seed: int, workers: int
) -> Batches:
    """Endless training batches at this process's positions, reshuffled each epoch.

    Args:
      source: records by index.
      row: makes a row of a batch from a record and a generator that depends on seed and position alone.
      positions: of this process.
      seed, workers: as for `loader.train_batches`.

    Raises:
      UserError: no records, or a seed or number of workers out of range.
    """
    check_seed(seed, workers)
    if not len(source):
        raise UserError("found no training records; expected at least one")
    stream = grain.MapDataset.source(source).seed(seed).shuffle().repeat(None).random_map(row)
    return start_batches(ProcessRows(stream, positions), positions.local_size, workers)


def labelled_evaluation_batches(
    directory: Path | str,
    spec: BatchSpec,
    *,
    batch_size: int,
    split: str,
    fraction: int = 100,
    seed: int = 0,
    subsets: Subsets = "published",
) -> Batches:
    """All records of a split once, in order, without augmentation; every process gets all of them.

    Args:
      directory: a build.
      spec: size and fit.
      batch_size: rows; those that only fill the last batch have valid False and NaN labels.
      split: of the build.
      fraction, seed, subsets: where `split` is "train", as for `labelled_records`.

    Returns:
      image uint8 [B, H, W, 1], labels float32 [B, L], valid bool [B], patient_key and image_key uint32 [B].

    Raises:
      UserError, DataError: as `labelled_records`.
    """
    share = functools.partial(labelled_records, directory, fraction, seed=seed, subsets=subsets)
    source = share() if split == TRAIN else open_split(directory, split)
    padded = PaddedRecords(source, -(-len(source) // batch_size) * batch_size, len(label_names(directory)))
    stream = grain.MapDataset.source(padded).map(functools.partial(labelled_evaluation_row, spec=spec))
    return start_batches(stream, batch_size, workers=0)


def labelled_row(record: records.Record, rng: np.random.Generator, *, spec: BatchSpec) -> dict[str, np.ndarray]:
    """One row of a training batch; `rng` depends on seed and position alone."""
    return {"image": training_image(record, rng, spec)[..., None], "labels": record.labels}


def labelled_evaluation_row(element: tuple[records.Record, bool], *, spec: BatchSpec) -> dict[str, np.ndarray]:
    """One row of an evaluation batch, from a record and whether it is one."""
    record, valid = element
    return {
        "image": images.evaluation_view(images.decode_gray(record.image), spec.image_size, spec.fit)[..., None],
        "labels": record.labels,
        "valid": np.asarray(valid),
        "patient_key": np.asarray(records.short_key(record.patient_key), np.uint32),
        "image_key": np.asarray(records.short_key(record.image_key), np.uint32),
    }


def _drawn(source: SplitRecords, fraction: int, seed: int) -> Int64[np.ndarray, "n"]:
    """Indices of a fraction of the records, in ascending order."""
    order: dict[str, str] = {}
    patients = [order.setdefault(record.patient_key, str(len(order))) for record in source]
    return nested_fractions(patients, (fraction / 100,), seed=seed)[fraction / 100]
