"""Evaluation metrics in NumPy, and their intervals."""

from msfl_jax.metrics.auc import auc, auc_statistic
from msfl_jax.metrics.bootstrap import Interval, Statistic, bootstrap, mean_statistic, paired_bootstrap
from msfl_jax.metrics.dice import COUNTS, DICE_VARIANTS, count_overlap, dice, dice_statistics
from msfl_jax.metrics.grounding import (
    contrast_to_noise,
    iou_at,
    mean_iou,
    normalise_heatmap,
    pointing_game,
    smoothing,
    upsample,
)

__all__ = [
    "COUNTS",
    "DICE_VARIANTS",
    "Interval",
    "Statistic",
    "auc",
    "auc_statistic",
    "bootstrap",
    "contrast_to_noise",
    "count_overlap",
    "dice",
    "dice_statistics",
    "iou_at",
    "mean_iou",
    "mean_statistic",
    "normalise_heatmap",
    "paired_bootstrap",
    "pointing_game",
    "smoothing",
    "upsample",
]
