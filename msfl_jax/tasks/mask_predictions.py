"""Masks predicted for whole images, and the counts of pixels from which every Dice follows."""

import functools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Float32, UInt8, UInt32

from input_pipeline.mask_batches import evaluation_views
from input_pipeline.reading import SplitRecords
from input_pipeline.records import Record, short_key
from input_pipeline.streams import BatchSpec
from msfl_jax.metrics import count_overlap
from msfl_jax.model import Params
from msfl_jax.segmenter import Segmenter
from msfl_jax.tasks.grounding_protocol import to_pixels
from msfl_jax.tasks.mask_result import MaskPredictions
from msfl_jax.tasks.run import on_mesh, to_host

ROWS = 16  # images at a time
_THREADS = 4


def predict(segmenter: Segmenter, params: Params, source: SplitRecords, spec: BatchSpec) -> MaskPredictions:
    """Compares the predicted masks of all records with theirs, in pixels of the source images.

    Raises:
      DataError: an image, a mask or a shard is damaged.
    """
    found = [source[index] for index in range(len(source))]
    counts = []
    with ThreadPoolExecutor(_THREADS) as pool:
        for start in range(0, len(found), ROWS):
            part = found[start : start + ROWS]
            views, masks = evaluation_views(part, spec)
            predicted = predict_masks(segmenter, params, views, [mask.shape for mask in masks], fit=spec.fit, pool=pool)
            counts += list(pool.map(count_overlap, predicted, masks))
    return MaskPredictions(
        np.stack(counts),
        _keys(found, "patient_key"),
        _keys(found, "image_key"),
    )


def predict_masks(
    segmenter: Segmenter,
    params: Params,
    views: UInt8[np.ndarray, "n H W 1"],
    sizes: Sequence[tuple[int, ...]],
    *,
    fit: str,
    pool: ThreadPoolExecutor | None = None,
) -> list[Bool[np.ndarray, "_ _"]]:
    """Masks of whole images in pixels of their sources: the class with the larger logit, after both were enlarged bilinearly.

    Args:
      segmenter: static.
      params: its parameters, on one device or a mesh.
      views: at most `ROWS` evaluation views.
      sizes: (height, width) of each source image.
      fit: how the views were cut; what a view does not show is background.
      pool: threads for the enlargement.
    """
    margins = to_host(_margin(params, *on_mesh(params, views, rows=ROWS), segmenter=segmenter))[: len(views)]
    return list((pool.map if pool else map)(functools.partial(_mask_of, fit=fit), margins, sizes))


@functools.partial(jax.jit, static_argnames="segmenter")
def _margin(params: Params, image: UInt8[Array, "B H W 1"], *, segmenter: Segmenter) -> Float32[Array, "B H W"]:
    return segmenter.margin(params, image)


def _mask_of(margin: Float[np.ndarray, "H W"], size: tuple[int, ...], *, fit: str) -> Bool[np.ndarray, "_ _"]:
    return to_pixels(margin, (size[0], size[1]), fit=fit) > 0  # NaN, where the view shows nothing, is not


def _keys(found: Sequence[Record], name: str) -> UInt32[np.ndarray, "N"]:
    return np.asarray([short_key(getattr(record, name)) for record in found], np.uint32)
