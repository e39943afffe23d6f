"""Calibration: whether of the images that a score calls 70 % likely, 70 % are positive."""

from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Int, Real, Shaped

Binning = Literal["equal_width", "equal_mass"]

BINS = 15
"""As in Guo et al. 2017, arXiv 1706.04599."""


class ReliabilityCurve(NamedTuple):
    """One point per bin that holds anything: mean probability, share of positives, and how many samples."""

    predicted: Float[np.ndarray, "K"]
    observed: Float[np.ndarray, "K"]
    count: Int[np.ndarray, "K"]


def reliability_curve(
    probabilities: Real[np.ndarray, "N"],
    labels: Shaped[np.ndarray, "N"],
    *,
    bins: int = BINS,
    binning: Binning = "equal_width",
) -> ReliabilityCurve:
    """Shares of positives by probability, which is the diagonal for a calibrated score.

    Args:
      probabilities: in 0..1.
      labels: 1, 0, and NaN for unknown, which leaves the sample out.
      bins: at most this many.
      binning: "equal_width" cuts 0..1 into equal parts, "equal_mass" at quantiles of the known samples, so that each bin holds as many; equal
        probabilities are never parted. A bin holds its upper edge and not its lower one, as in scikit-learn's calibration_curve.

    Raises:
      ValueError: a known sample's probability is not in 0..1, its label is no 0 or 1, or there are no bins.
    """
    _, probabilities, positive, place = _binned(probabilities, labels, bins, binning)
    sums = [np.bincount(place, values, bins) for values in (np.ones(len(place)), probabilities, positive)]
    filled = sums[0] > 0
    count, predicted, observed = (values[filled] for values in sums)
    return ReliabilityCurve(predicted / count, observed / count, count.astype(int))


def calibration_error(
    probabilities: Real[np.ndarray, "N"],
    labels: Shaped[np.ndarray, "N"],
    *,
    bins: int = BINS,
    binning: Binning = "equal_width",
) -> float:
    """Expected calibration error: the mean distance of the reliability curve from the diagonal, each bin as heavy as it is full.

    Of the probability of one binary label, not of the confidence in the likelier class. Arguments and errors are those of `reliability_curve`.

    Returns:
      In 0..1; nan without a known sample.
    """
    return calibration_statistic(probabilities, labels, bins=bins, binning=binning)(np.ones(len(labels)))


def calibration_statistic(
    probabilities: Real[np.ndarray, "N"],
    labels: Shaped[np.ndarray, "N"],
    *,
    bins: int = BINS,
    binning: Binning = "equal_width",
) -> Callable[[Float[np.ndarray, "N"]], float]:
    """The calibration error as a function of the sample weights, in bins that stay as they are.

    Resampled samples lie further from the diagonal than the samples themselves, so a bootstrap interval leans to larger errors. Arguments and
    errors are those of `reliability_curve`.
    """
    known, probabilities, positive, place = _binned(probabilities, labels, bins, binning)
    distance = probabilities - positive

    def statistic(weights: Float[np.ndarray, "N"]) -> float:
        weights = weights[known]
        total = weights.sum()
        return float(np.abs(np.bincount(place, weights * distance, bins)).sum() / total) if total > 0 else float("nan")

    return statistic


def _binned(
    probabilities: Real[np.ndarray, "N"], labels: Shaped[np.ndarray, "N"], bins: int, binning: Binning
) -> tuple[np.ndarray, Float[np.ndarray, "M"], Float[np.ndarray, "M"], Int[np.ndarray, "M"]]:
    """Which samples are known; of those the probability, the label and the bin."""
    labels = np.asarray(labels, np.float64)
    known = ~np.isnan(labels)
    probabilities, positive = np.asarray(probabilities, np.float64)[known], labels[known]
    if bins < 1:
        raise ValueError(f"bins is {bins}; expected 1 or more")
    if not np.isin(positive, (0.0, 1.0)).all():
        raise ValueError("labels contain a value other than 0, 1 and NaN; map uncertain labels to one of these first")
    if not ((probabilities >= 0) & (probabilities <= 1)).all():
        raise ValueError("probabilities are not all in 0..1")
    shares = np.linspace(0, 1, bins + 1)[1:-1]
    by_mass = binning == "equal_mass" and len(probabilities)
    edges = np.percentile(probabilities, 100 * shares) if by_mass else shares  # rounded as scikit-learn does
    return known, probabilities, positive, np.searchsorted(edges, probabilities)
