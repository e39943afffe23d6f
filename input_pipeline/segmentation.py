"""Batches of images with masks, from builds of data sets with segmentations: the same for any number of processes, as in `loader`."""

import copy
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import cv2
import grain
import numpy as np
from jaxtyping import Bool, UInt8

from input_pipeline import augment, images, records
from input_pipeline.errors import DataError
from input_pipeline.loader import ENDLESS, Batches, start_batches
from input_pipeline.reading import SplitRecords, open_split
from input_pipeline.streams import Positions, ProcessRows

_HALF = 128  # a pixel belongs to a resized mask where more than half of it did


@dataclass(frozen=True)
class MaskSpec:
    """How a record with a mask becomes a row of a batch.

    Attributes:
      image_size: side of the square view, in pixels.
      fit: how a view is cut, see `images.view_rectangle`; "pad" keeps the aspect ratio and all of the image.
      scale: training only, range of the area shown, as for `augment.draw`, like those that follow.
      shift: largest displacement as a fraction of the side.
      aspect: range of a crop's width over its height.
      placement: where a crop lies in the evaluation view.
      zoom: range of the magnification.
      rotation: largest angle in degrees.
      flip: whether half of the images are mirrored.
    """

    image_size: int
    fit: Literal["crop", "pad", "squash"] = "pad"
    scale: tuple[float, float] = (1.0, 1.0)
    shift: float = 0.0
    aspect: tuple[float, float] = (1.0, 1.0)
    placement: augment.Placement = "centre"
    zoom: tuple[float, float] = (1.0, 1.0)
    rotation: float = 0.0
    flip: bool = False


def mask_batches(
    directory: Path | str,
    spec: MaskSpec,
    *,
    batch_size: int,
    seed: int,
    split: str = "train",
    start_step: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    workers: int = 0,
) -> Batches:
    """Endless training batches of this process, reshuffled each epoch; the arguments are those of `loader.train_batches`.

    Returns:
      image uint8 [b, H, W, 1], and mask bool [b, H, W] in the same view.

    Raises:
      UserError: no such build or split, or sizes that do not fit.
      DataError: a shard is damaged, or the build has no masks.
    """
    positions = Positions.of_process(
        process_index, process_count, batch_size=batch_size, start_step=start_step, end_step=ENDLESS
    )
    source = open_masks(directory, split)
    stream = grain.MapDataset.source(source).seed(seed).shuffle().repeat(None)
    stream = stream.random_map(functools.partial(mask_row, spec=spec))
    return start_batches(ProcessRows(stream, positions), positions.local_size, workers)


def open_masks(directory: Path | str, split: str) -> SplitRecords:
    """The records of a split of a build with masks.

    Raises:
      UserError, DataError: as `reading.open_split`; a DataError where the split has no records or no masks.
    """
    source = open_split(directory, split)
    if not len(source) or not source[0].mask:  # all records of a data set have one, or none: without disease it is empty
        found = "has no masks" if len(source) else "has no records"
        raise DataError(f"{directory}: split '{split}' {found}; expected a build of `msfl data build siim`")
    return source


def mask_row(record: records.Record, rng: np.random.Generator, *, spec: MaskSpec) -> dict[str, np.ndarray]:
    """One row of a training batch; `rng` depends on seed and position alone."""
    image = images.decode_gray(record.image)
    motion = {
        "scale": spec.scale,
        "shift": spec.shift,
        "aspect": spec.aspect,
        "placement": spec.placement,
        "zoom": spec.zoom,
        "rotation": spec.rotation,
        "flip": spec.flip,
        "fit": spec.fit,
    }
    twin = copy.deepcopy(rng)  # draws the same numbers again, so that both are moved alike
    view = images.training_view(image, spec.image_size, rng, **motion)
    mask = images.training_view(mask_like(record, image), spec.image_size, twin, **motion)
    return {"image": view[..., None], "mask": mask >= _HALF}


def evaluation_views(
    found: Sequence[records.Record], spec: MaskSpec
) -> tuple[UInt8[np.ndarray, "n H W 1"], list[Bool[np.ndarray, "h w"]]]:
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
    height, width = image.shape
    shrinks = mask.shape[0] >= height
    how = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return mask if mask.shape == image.shape else np.asarray(cv2.resize(mask, (width, height), interpolation=how))
