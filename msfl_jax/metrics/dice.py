"""Overlap of predicted and true masks: of one image, and of a test set in the four ways in which published numbers were taken.

The four differ by tens of points on data where most images have no disease, and papers rarely say which one they print:

  dice_per_image_with_empty     mean over all images; an empty mask predicted empty counts 1, predicted at all 0 (MaCo's and MRM's `medDice`)
  dice_positive_only            mean over the images with a mask
  dice_pooled_foreground        pixels of all images added up, then one Dice
  dice_pooled_with_background   likewise, averaged with the Dice of the background (mmsegmentation's `mDice`)

All follow from four counts per image, so that predictions of any size are kept as [N, 4].
"""

import numpy as np
from jaxtyping import Bool, Float, Int64, Integer, Real

from msfl_jax.metrics.bootstrap import Statistic, mean_statistic

DICE_VARIANTS = (
    "dice_per_image_with_empty",
    "dice_positive_only",
    "dice_pooled_foreground",
    "dice_pooled_with_background",
)
COUNTS = ("intersection", "predicted", "target", "pixels")
"""The columns of `count_overlap`."""


def dice(
    predicted: Bool[np.ndarray, "H W"] | Real[np.ndarray, "H W"],
    target: Bool[np.ndarray, "H W"] | Real[np.ndarray, "H W"],
    *,
    empty: float = 1.0,
) -> float:
    """Twice the common pixels over the pixels of both masks, of one image.

    Args:
      predicted: non-zero is foreground.
      target: non-zero is foreground.
      empty: the value when both masks are empty; nan leaves such images out of a nan-mean.

    Returns:
      In 0..1; 0 when exactly one mask is empty.
    """
    common, ours, theirs, _ = count_overlap(predicted, target).tolist()
    return 2.0 * common / (ours + theirs) if ours + theirs else empty


def count_overlap(
    predicted: Bool[np.ndarray, "H W"] | Real[np.ndarray, "H W"],
    target: Bool[np.ndarray, "H W"] | Real[np.ndarray, "H W"],
) -> Int64[np.ndarray, "4"]:
    """Common, predicted, true and all pixels of one image (see `COUNTS`); non-zero is foreground."""
    predicted, target = predicted != 0, target != 0
    counts = (predicted & target).sum(), predicted.sum(), target.sum(), target.size
    return np.asarray(counts, np.int64)


def dice_statistics(counts: Integer[np.ndarray, "N 4"]) -> dict[str, Statistic]:
    """The four variants as functions of the images' weights, by name (see `DICE_VARIANTS`).

    Args:
      counts: of each image, from `count_overlap`.

    Returns:
      Statistics for `bootstrap`; nan where no image has what a variant is about: any image, a mask, a pixel predicted or true.
    """
    values = counts.astype(np.float64)
    common, ours, theirs, pixels = values.T
    both = ours + theirs
    each = np.where(both > 0, 2 * common / np.maximum(both, 1), 1.0)
    background = pixels - ours - theirs + common

    def pooled(weights: Float[np.ndarray, "N"]) -> float:
        return _ratio(2 * (weights @ common), weights @ both)

    def with_background(weights: Float[np.ndarray, "N"]) -> float:
        return (pooled(weights) + _ratio(2 * (weights @ background), weights @ (2 * pixels - both))) / 2

    found = (mean_statistic(each), mean_statistic(np.where(theirs > 0, each, np.nan)), pooled, with_background)
    return dict(zip(DICE_VARIANTS, found, strict=True))


def _ratio(above: float, below: float) -> float:
    return float(above / below) if below > 0 else float("nan")
