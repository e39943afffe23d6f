"""Batches of images with masks, from builds of data sets with segmentations: the same for any number of processes, as in `loader`."""

import copy
import functools
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Bool, UInt8

from input_pipeline import images, records
from input_pipeline.errors import DataError
from input_pipeline.labelled_batches import endless_rows
from input_pipeline.loader import Batches
from input_pipeline.reading import SplitRecords
from input_pipeline.streams import BatchSpec, Positions, random_view

_HALF = 128  # a pixel belongs to a resized mask where half of it did


class Balanced:
    """Records of which as many show disease as show none, as GLoRIA and MGCA train: each of the rarer kind comes several times in an epoch."""

    def __init__(self, source: SplitRecords):
        """Reads every mask once; where one kind is missing, the records stay as they are."""
        self._source = source
        diseased = np.asarray([bool(images.decode_mask(record.mask).any()) for record in source])
        kinds = [np.flatnonzero(diseased), np.flatnonzero(~diseased)]
        most = max(map(len, kinds))
        self._order = np.concatenate([np.resize(kind, most) for kind in kinds if len(kind)])

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, index: int) -> records.Record:
        return self._source[int(self._order[index])]


def mask_batches(
    source: SplitRecords | Balanced,
    spec: BatchSpec,
    *,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    workers: int = 0,
) -> Batches:
    """Endless training batches of this process, reshuffled each epoch.

    Args:
      source: records with masks (see `require_masks`).
      spec: size and augmentation; nothing about reports is read.
      batch_size, seed, start_step, process_index, process_count, workers: as for `loader.train_batches`.

    Returns:
      image uint8 [b, H, W, 1], and mask bool [b, H, W] of the same view.

    Raises:
      UserError: sizes that do not fit.
      DataError: a shard is damaged, or a record has no mask.
    """
    positions = Positions.of_process(
        process_index, process_count, batch_size=batch_size, start_step=start_step, end_step=2**32
    )
    return endless_rows(source, functools.partial(mask_row, spec=spec), positions, seed=seed, workers=workers)


def require_masks(source: SplitRecords, directory: Path | str, split: str) -> SplitRecords:
    """The records as they are.

    All records of a data set have a mask, or none has: without disease it is there and empty.

    Raises:
      DataError: they have no masks.
    """
    if not len(source) or not source[0].mask:
        found = "has no masks" if len(source) else "has no records"
        raise DataError(f"{directory}: split '{split}' {found}; expected a build of `msfl data build siim`")
    return source


def require_disease(source: SplitRecords, directory: Path | str, split: str) -> SplitRecords:
    """The records as they are; reads masks until one shows disease.

    Raises:
      DataError: none does, so that the Dice of a prediction says nothing about it.
    """
    if not any(images.decode_mask(record.mask).any() for record in source):
        raise DataError(
            f"{directory}: split '{split}' holds {len(source):,} images, none with disease, so no checkpoint can be chosen by its Dice; "
            "expected some: build with a larger --validation, or with other lists"
        )
    return source


def mask_row(record: records.Record, rng: np.random.Generator, *, spec: BatchSpec) -> dict[str, np.ndarray]:
    """One row of a training batch; `rng` depends on seed and position alone."""
    image = images.decode_gray(record.image)
    twin = copy.deepcopy(rng)  # draws the same numbers again, so that both are moved alike
    view, mask = random_view(image, rng, spec), random_view(mask_like(record, image), twin, spec)
    return {"image": view[..., None], "mask": mask >= _HALF}


def evaluation_views(
    found: Sequence[records.Record], spec: BatchSpec
) -> tuple[UInt8[np.ndarray, "n H W 1"], list[Bool[np.ndarray, "_ _"]]]:
    """Views of some records, without augmentation, and their masks in pixels of the source images.

    Raises:
      DataError: an image or a mask is damaged.
    """
    views = [images.evaluation_view(images.decode_gray(record.image), spec.image_size, spec.fit) for record in found]
    return np.stack(views)[..., None], [images.decode_mask(record.mask) for record in found]


def mask_like(record: records.Record, image: UInt8[np.ndarray, "H W"]) -> UInt8[np.ndarray, "H W"]:
    """The record's mask as grey levels in the pixels of its stored image: 255 inside, in between where a pixel is cut.

    Then whatever cuts and turns the image does exactly the same to the mask.
    """
    mask = images.decode_mask(record.mask).astype(np.uint8) * np.uint8(255)
    if mask.shape == image.shape:
        return mask
    how = cv2.INTER_AREA if mask.shape[0] > image.shape[0] else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(mask, image.shape[::-1], interpolation=how))
