"""Ranks of the right report for an image, and of the right image for a report, in blocks of bounded memory."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, Real

from msfl_jax.metrics.bootstrap import Statistic

TIE = 1e-6  # cosines that differ by less are as near: float32 is no more exact
_REPORTS_PER_BLOCK = 8192


class PairRanks(NamedTuple):
    """1 where nothing wrong is as near: for each image the rank of its report, for each report that of its nearest image."""

    of_report: Int[np.ndarray, "N"]
    of_image: Int[np.ndarray, "U"]


def rank_pairs(
    image: Real[np.ndarray, "N D"],
    report: Real[np.ndarray, "U D"],
    report_of_image: Int[np.ndarray, "N"],
    *,
    block: int = 1024,
) -> PairRanks:
    """Ranks by cosine, one more than the number of wrong candidates that are as near as the right one or nearer.

                report 0   report 1
      image 0    right      wrong      images 0 and 1 share a report: neither is ever counted against the other
      image 1    right      wrong
      image 2    wrong      right

    A model that gives all the same embedding has the last rank everywhere, not the first.

    Args:
      image: embeddings, of any norm.
      report: embeddings of distinct reports, each of which belongs to at least one image.
      report_of_image: row of `report` for each image.
      block: images at a time; a block holds `block` x 8192 similarities.
    """
    image, report = _unit(image), _unit(report)
    right = np.concatenate(
        [
            np.einsum("nd,nd->n", image[rows], report[report_of_image[rows]])
            for rows in _slices(len(image), _REPORTS_PER_BLOCK)
        ]
    )
    nearest = np.full(len(report), -np.inf, np.float32)
    np.maximum.at(nearest, report_of_image, right)
    ahead_of_report, ahead_of_image = np.zeros(len(image), np.int64), np.zeros(len(report), np.int64)
    for rows in _slices(len(image), block):
        for columns in _slices(len(report), _REPORTS_PER_BLOCK):
            similarity = image[rows] @ report[columns].T
            own = report_of_image[rows] - columns.start
            inside = np.flatnonzero((own >= 0) & (own < similarity.shape[1]))
            similarity[inside, own[inside]] = -np.inf  # the only right one in this row
            ahead_of_report[rows] += (similarity >= right[rows, None] - TIE).sum(axis=1)
            ahead_of_image[columns] += (similarity >= nearest[columns] - TIE).sum(axis=0)
    return PairRanks(1 + ahead_of_report, 1 + ahead_of_image)


def chance_of_recall(right: Int[np.ndarray, "N"], pool: int, k: int) -> Float[np.ndarray, "N"]:
    """Probability that a random order of `pool` candidates has one of the `right` ones among its first k: one minus a hypergeometric term."""
    missed = np.ones(len(right))
    for place in range(min(k, pool)):
        missed *= np.maximum(pool - right - place, 0) / (pool - place)
    return 1 - missed


def median_statistic(values: Real[np.ndarray, "N"]) -> Statistic:
    """The weighted median as a function of the weights: the smallest value that half of the weight does not exceed; nan without weight."""
    order = np.argsort(values, kind="stable")
    ordered = np.asarray(values, np.float64)[order]

    def statistic(weights: Float[np.ndarray, "N"]) -> float:
        reached = np.cumsum(weights[order])
        if not len(reached) or reached[-1] <= 0:
            return float("nan")
        return float(ordered[np.searchsorted(reached, reached[-1] / 2)])

    return statistic


def _slices(count: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, count)) for start in range(0, max(count, 1), size)]


def _unit(vectors: Real[np.ndarray, "N D"]) -> Float[np.ndarray, "N D"]:
    vectors = np.asarray(vectors, np.float32)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
