"""Evaluation metrics in NumPy, and their intervals."""

from msfl_jax.metrics.auc import auc, auc_statistic
from msfl_jax.metrics.bootstrap import Interval, Statistic, bootstrap, mean_statistic, paired_bootstrap
from msfl_jax.metrics.calibration import (
    ReliabilityCurve,
    calibration_error,
    calibration_statistic,
    reliability_curve,
)
from msfl_jax.metrics.dice import dice
from msfl_jax.metrics.grounding import (
    THRESHOLDS,
    contrast_to_noise,
    iou_at,
    mean_iou,
    normalise_heatmap,
    pointing_game,
    smoothing,
    upsample,
)

__all__ = [
    "THRESHOLDS",
    "Interval",
    "ReliabilityCurve",
    "Statistic",
    "auc",
    "auc_statistic",
    "bootstrap",
    "calibration_error",
    "calibration_statistic",
    "contrast_to_noise",
    "dice",
    "iou_at",
    "mean_iou",
    "mean_statistic",
    "normalise_heatmap",
    "paired_bootstrap",
    "pointing_game",
    "reliability_curve",
    "smoothing",
    "upsample",
]
