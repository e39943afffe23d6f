"""Intervals of means over several seeds, from the predictions of all of them: patients are resampled once, for all seeds together.

The seeds of a run are scored on the same images. So the mean over seeds is taken within each image or phrase first, or for each resample, and then
patients are drawn: the interval says what other patients would change, and the spread over seeds, which is shown beside it, what other seeds would.
"""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float, Shaped

from input_pipeline.errors import UserError
from msfl_jax.metrics import Interval, Statistic, auc_statistic, bootstrap, mean_statistic, paired_bootstrap
from msfl_jax.results.own_results import Result
from msfl_jax.tasks.grounding_result import COLUMNS, PhraseScores
from msfl_jax.tasks.zero_shot_result import Predictions

SHUFFLED = "_shuffled_phrases"
REPLICATES = 2000


def pooled_interval(stack: Sequence[Result], metric: str, *, replicates: int | None = None) -> Interval | None:
    """The mean of a metric over the seeds of `stack`, with its interval.

    Args:
      stack: results that differ in their seed alone.
      metric: "mean_auc", "auc/<finding>", or one of a phrase as "cnr".
      replicates: of the bootstrap; None takes `REPLICATES`.

    Returns:
      None where predictions are missing or the seeds' are not of the same samples, or for another metric.
    """
    if (found := pooled_statistic(stack, metric)) is None:
        return None
    statistic, patients = found
    return bootstrap(statistic, patients, replicates=REPLICATES if replicates is None else replicates)


def pooled_gain(
    better: Sequence[Result], base: Sequence[Result], metric: str, *, replicates: int | None = None
) -> Interval | None:
    """By how much the mean over the seeds of `better` exceeds that of `base`, on the same resamples of patients; see `pooled_interval`."""
    first, second = pooled_statistic(better, metric), pooled_statistic(base, metric)
    if first is None or second is None or not np.array_equal(first[1], second[1]):
        return None
    replicates = REPLICATES if replicates is None else replicates
    return paired_bootstrap(first[0], second[0], first[1], replicates=replicates)


def pooled_statistic(stack: Sequence[Result], metric: str) -> tuple[Statistic, Shaped[np.ndarray, "N"]] | None:
    """The mean over seeds as a function of the samples' weights, and the patient of each sample."""
    pool = {"grounding": _of_phrases, "zero_shot": _of_images, "classification": _of_images}.get(stack[0].outcome.task)
    try:
        return pool(stack, metric) if pool else None
    except UserError:  # no predictions, or some of another kind
        return None


def mean_over_seeds(values: Sequence[Float[np.ndarray, "N"]]) -> Float[np.ndarray, "N"]:
    """Mean over seeds of each sample; undefined values are left out, and a sample without any is nan."""
    stacked = np.asarray(values, np.float64)
    known = ~np.isnan(stacked)
    count = known.sum(axis=0)
    total = np.where(known, stacked, 0.0).sum(axis=0)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _of_phrases(stack: Sequence[Result], metric: str) -> tuple[Statistic, Shaped[np.ndarray, "N"]] | None:
    name = metric.removesuffix(SHUFFLED)
    if name not in COLUMNS:
        return None
    scores = [PhraseScores.load(one.outcome.predictions(one.workdir)) for one in stack]
    first = scores[0]
    if not all(_equal(first, other, ("patient_key", "image_key", "phrase_key")) for other in scores):
        return None
    side = int(metric.endswith(SHUFFLED))
    values = mean_over_seeds([one.values[:, side, COLUMNS.index(name)] for one in scores])
    return mean_statistic(values), first.patient_key


def _of_images(stack: Sequence[Result], metric: str) -> tuple[Statistic, Shaped[np.ndarray, "N"]] | None:
    predictions = [Predictions.load(one.outcome.predictions(one.workdir)) for one in stack]
    first = predictions[0]
    wanted = first.findings if metric == "mean_auc" else (metric.removeprefix("auc/"),)
    same = all(
        _equal(first, other, ("patient_key", "truth")) and first.findings == other.findings for other in predictions
    )
    if not same or not set(wanted) <= set(first.findings):
        return None
    columns = [first.findings.index(name) for name in wanted if _has_both(first.truth[:, first.findings.index(name)])]
    statistics = [
        auc_statistic(one.scores[:, column].astype(np.float64), one.truth[:, column])
        for one in predictions
        for column in columns
    ]
    return _mean(statistics), first.patient_key


def _mean(statistics: Sequence[Statistic]) -> Statistic:
    return lambda weights: float(np.mean([one(weights) for one in statistics])) if statistics else float("nan")


def _has_both(truth: Float[np.ndarray, "N"]) -> bool:
    return bool((truth == 1).any() and (truth == 0).any())


def _equal(first: object, other: object, names: Sequence[str]) -> bool:
    read: Callable[[object, str], np.ndarray] = getattr
    return all(
        np.array_equal(read(first, name), read(other, name), equal_nan=read(first, name).dtype.kind == "f")
        for name in names
    )
