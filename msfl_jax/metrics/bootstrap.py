"""Confidence intervals by resampling patients, for any statistic of weighted samples."""

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Real, Shaped

Statistic = Callable[[Float[np.ndarray, "N"]], float]
"""A number from one weight per sample: all ones for the value itself, else how often the sample's patient was drawn.

A statistic may return nan where it is undefined, as an AUC without positives; such replicates are ignored.
"""


class Interval(NamedTuple):
    """A value with the limits of its confidence interval, in the units of the statistic."""

    value: float
    low: float
    high: float


def bootstrap(
    statistic: Statistic,
    patients: Shaped[np.ndarray, "N"],
    *,
    replicates: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Percentile interval of `statistic` over resamples of patients with replacement.

    All samples of a patient are drawn together, as they are not independent.

    Args:
      statistic: maps sample weights [N] to a number; see `Statistic`, `auc_statistic` and `mean_statistic`.
      patients: the patient of each sample, any comparable values.
      replicates: number of resamples.
      level: share of the replicates inside the interval.
      seed: the same seed and patients give the same resamples, whatever the statistic.

    Returns:
      The statistic of the samples as they are, and its limits; these are nan when no replicate is defined.
    """
    return bootstrap_all({"": statistic}, patients, replicates=replicates, level=level, seed=seed)[""]


def bootstrap_all(
    statistics: Mapping[str, Statistic],
    patients: Shaped[np.ndarray, "N"],
    *,
    replicates: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, Interval]:
    """`bootstrap` of many statistics at once: the same intervals, with each resample drawn once for all of them."""
    values = [[one(weights) for one in statistics.values()] for weights in _resamples(patients, replicates, seed)]
    columns = np.asarray(values, np.float64).reshape(len(values), len(statistics)).T
    whole = np.ones(len(patients))
    return {
        name: Interval(float(one(whole)), *_limits(column, level))
        for (name, one), column in zip(statistics.items(), columns, strict=True)
    }


def paired_bootstrap(
    statistic_a: Statistic,
    statistic_b: Statistic,
    patients: Shaped[np.ndarray, "N"],
    *,
    replicates: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Percentile interval of `statistic_a` minus `statistic_b`, both taken on the same resamples of patients.

    Arguments are those of `bootstrap`. An interval that leaves out 0 is evidence of a difference.
    """
    return bootstrap(
        difference_statistic(statistic_a, statistic_b),
        patients,
        replicates=replicates,
        level=level,
        seed=seed,
    )


def difference_statistic(statistic_a: Statistic, statistic_b: Statistic) -> Statistic:
    """`statistic_a` minus `statistic_b`, both of the same weights."""
    return lambda weights: statistic_a(weights) - statistic_b(weights)


def mean_statistic(values: Real[np.ndarray, "N"]) -> Statistic:
    """The weighted mean of `values` as a function of the weights; nan values are left out, and none at all gives nan."""
    values = np.asarray(values, np.float64)
    known = ~np.isnan(values)
    filled = np.where(known, values, 0.0)

    def statistic(weights: Float[np.ndarray, "N"]) -> float:
        total = weights @ known
        return float(weights @ filled / total) if total > 0 else float("nan")

    return statistic


def _limits(values: Float[np.ndarray, "R"], level: float) -> tuple[float, float]:
    """Percentiles of the defined replicates; nan where there is none."""
    defined = values[~np.isnan(values)]
    tail = (1 - level) / 2
    low, high = np.quantile(defined, [tail, 1 - tail]) if len(defined) else (np.nan, np.nan)
    return float(low), float(high)


def _resamples(patients: Shaped[np.ndarray, "N"], replicates: int, seed: int) -> Iterator[Float[np.ndarray, "N"]]:
    """Sample weights of each replicate: how often the sample's patient was drawn."""
    unique, first, patient_of_sample = np.unique(patients, return_index=True, return_inverse=True)
    # Numbered as they first appear, not by their keys: keys are hashed with a salt, and intervals must not depend on it.
    patient_of_sample = np.argsort(np.argsort(first))[patient_of_sample]
    rng = np.random.default_rng(seed)
    for _ in range(replicates):
        drawn = rng.integers(0, len(unique), size=len(unique))
        yield np.bincount(drawn, minlength=len(unique)).astype(np.float64)[patient_of_sample]
