"""Area under the receiver operating characteristic, by ranks, with weights and ties."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Real, Shaped


def auc(
    scores: Real[np.ndarray, "N"], labels: Shaped[np.ndarray, "N"], weights: Real[np.ndarray, "N"] | None = None
) -> float:
    """Probability that a positive scores above a negative, ties counting half (the Mann-Whitney form of the AUC).

    Args:
      scores: higher means more likely positive.
      labels: 1 or True, 0 or False, and NaN for unknown, which leaves the sample out.
      weights: of each sample, not negative; None weighs all alike.

    Returns:
      In 0..1; nan when one class has no weight or a known sample's score is nan.

    Raises:
      ValueError: a label is none of 0, 1 and NaN.
    """
    return auc_statistic(scores, labels)(np.ones(len(scores)) if weights is None else weights)


def auc_statistic(
    scores: Real[np.ndarray, "N"], labels: Shaped[np.ndarray, "N"]
) -> Callable[[Real[np.ndarray, "N"]], float]:
    """The AUC as a function of the sample weights; sorts once, so that a bootstrap costs one pass per replicate.

    Args and errors are those of `auc`.
    """
    labels = np.asarray(labels, np.float64)
    known = ~np.isnan(labels)
    if not np.isin(labels[known], (0.0, 1.0)).all():
        raise ValueError("labels contain a value other than 0, 1 and NaN; map uncertain labels to one of these first")
    if np.isnan(scores[known]).any():
        return lambda weights: float("nan")
    order = np.flatnonzero(known)[np.argsort(scores[known], kind="stable")]
    positive = labels[order] == 1
    ordered = scores[order]
    starts = np.flatnonzero(np.concatenate([np.ones(min(1, len(ordered)), bool), ordered[1:] != ordered[:-1]]))

    def statistic(weights: Real[np.ndarray, "N"]) -> float:
        sorted_weights = np.asarray(weights, np.float64)[order]
        return _ranked_auc(sorted_weights * positive, sorted_weights * ~positive, starts)

    return statistic


def _ranked_auc(positives: Float[np.ndarray, "N"], negatives: Float[np.ndarray, "N"], starts: np.ndarray) -> float:
    """AUC from the weights of both classes in order of score, where `starts` begins each run of equal scores."""
    pairs = positives.sum() * negatives.sum()
    if pairs == 0:
        return float("nan")
    if len(starts) < len(positives):
        positives, negatives = np.add.reduceat(positives, starts), np.add.reduceat(negatives, starts)
    below = np.cumsum(negatives) - negatives
    return float(positives @ (below + negatives / 2) / pairs)
