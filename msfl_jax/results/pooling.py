"""Intervals of means over several seeds, from the predictions of all of them: patients are resampled once, for all seeds together.

The seeds of a run are scored on the same images. So the mean over seeds is taken within each image or phrase first, or for each resample, and then
patients are drawn: the interval says what other patients would change, and the spread over seeds, which is shown beside it, what other seeds would.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Shaped

from input_pipeline.errors import UserError
from msfl_jax.metrics import (
    DICE_VARIANTS,
    Interval,
    Statistic,
    auc_statistic,
    bootstrap,
    dice_statistics,
    paired_bootstrap,
)
from msfl_jax.results.own_results import Result
from msfl_jax.tasks.finding_result import Predictions, mean_of
from msfl_jax.tasks.grounding_result import PhraseScores, statistics_of
from msfl_jax.tasks.mask_result import MaskPredictions

REPLICATES = 2000


def pooled_interval(stack: Sequence[Result], metric: str, *, replicates: int | None = None) -> Interval | None:
    """The mean of a metric over the seeds of `stack`, with its interval.

    Args:
      stack: results that differ in their seed alone.
      metric: "mean_auc", "auc/<finding>", one of phrases as "cnr", "category/cnr" or "Pneumonia/cnr", or a Dice.
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
    """By how much the mean over the seeds of `better` exceeds that of `base`, on the same resamples of patients; see `pooled_interval`.

    Where a phrase has no value in the mean of one of the two, it counts in neither. None, too, where they are of different samples, or are means
    over different findings.
    """
    first, second = _pooled(better, metric), _pooled(base, metric)
    if first is None or second is None:
        return None
    both = first.samples.keys() & second.samples.keys()  # files of older versions do not name their images
    if not all(_same(first.samples[name], second.samples[name]) for name in both):
        return None
    one, other = first.statistic, second.statistic
    if first.phrases is not None and second.phrases is not None:
        missing = np.isnan(first.phrases.values) | np.isnan(second.phrases.values)
        one, other = (
            statistics_of(dataclasses.replace(side, values=np.where(missing, np.nan, side.values)))[metric]
            for side in (first.phrases, second.phrases)
        )
    replicates = REPLICATES if replicates is None else replicates
    return paired_bootstrap(one, other, first.patients, replicates=replicates)


def pooled_statistic(stack: Sequence[Result], metric: str) -> tuple[Statistic, Shaped[np.ndarray, "N"]] | None:
    """The mean over seeds as a function of the samples' weights, and the patient of each sample."""
    found = _pooled(stack, metric)
    return None if found is None else (found.statistic, found.patients)


class _Pooled(NamedTuple):
    """A mean over seeds, the arrays that tell its samples, and, of grounding, the scores of phrases that are means over seeds."""

    statistic: Statistic
    patients: Shaped[np.ndarray, "N"]
    samples: dict[str, Shaped[np.ndarray, "N *d"]]
    phrases: PhraseScores | None = None


def _pooled(stack: Sequence[Result], metric: str) -> _Pooled | None:
    pool = _POOLS.get(stack[0].outcome.task)
    try:
        return pool(stack, metric) if pool else None
    except UserError:  # no predictions, or some of another kind
        return None


def mean_over_seeds(values: Sequence[Float[np.ndarray, "N *m"]]) -> Float[np.ndarray, "N *m"]:
    """Mean over seeds of each value of each sample; undefined values are left out, and a sample without any is nan."""
    stacked = np.asarray(values, np.float64)
    known = ~np.isnan(stacked)
    count = known.sum(axis=0)
    total = np.where(known, stacked, 0.0).sum(axis=0)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _of_phrases(stack: Sequence[Result], metric: str) -> _Pooled | None:
    scores = [PhraseScores.load(one.outcome.predictions(one.workdir)) for one in stack]
    first = scores[0]
    if not all(_equal(first, other, _PHRASE) for other in scores):
        return None
    mean = dataclasses.replace(first, values=mean_over_seeds([one.values for one in scores]))
    statistic = statistics_of(mean).get(metric)
    samples = {key: getattr(first, key) for key in _PHRASE}
    return _Pooled(statistic, first.patient_key, samples, mean) if statistic else None


def _of_masks(stack: Sequence[Result], metric: str) -> _Pooled | None:
    if metric not in DICE_VARIANTS:
        return None
    found = [MaskPredictions.load(one.outcome.predictions(one.workdir)) for one in stack]
    first = found[0]
    if not all(_equal(first, other, ("patient_key", "image_key")) for other in found):
        return None
    samples = {"patient_key": first.patient_key, "image_key": first.image_key}
    return _Pooled(mean_of([dice_statistics(one.counts)[metric] for one in found]), first.patient_key, samples)


def _of_images(stack: Sequence[Result], metric: str) -> _Pooled | None:
    predictions = [Predictions.load(one.outcome.predictions(one.workdir)) for one in stack]
    first = predictions[0]
    wanted = first.findings if metric == "mean_auc" else (metric.removeprefix("auc/"),)
    images = [one.image_key for one in predictions if one.image_key is not None]
    same = all(_same(images[0], other) for other in images) and all(
        _equal(first, other, ("patient_key", "truth")) and first.findings == other.findings for other in predictions
    )
    if not same or not set(wanted) <= set(first.findings):
        return None
    found = [_defined_aucs(one, wanted) for one in predictions]
    samples = {"patient_key": first.patient_key, "truth": first.truth}
    samples["findings"] = np.unique([",".join(aucs) for aucs in found])
    samples |= {"image_key": images[0]} if images else {}
    means = [mean_of(list(aucs.values())) for aucs in found if aucs]
    return _Pooled(mean_of(means), first.patient_key, samples)


def _defined_aucs(predictions: Predictions, wanted: Sequence[str]) -> dict[str, Statistic]:
    """The AUCs of findings by name, of those that have one: as in a result, the others are in no mean."""
    columns = {name: predictions.findings.index(name) for name in wanted}
    scores, truth, whole = predictions.scores.astype(np.float64), predictions.truth, np.ones(len(predictions.truth))
    found = {name: auc_statistic(scores[:, column], truth[:, column]) for name, column in columns.items()}
    return {name: statistic for name, statistic in found.items() if np.isfinite(statistic(whole))}


_PHRASE = ("patient_key", "image_key", "phrase_key", "category")
_POOLS: dict[str, Callable[[Sequence[Result], str], _Pooled | None]] = {
    "grounding": _of_phrases,
    "zero_shot": _of_images,
    "classification": _of_images,
    "segmentation": _of_masks,
}


def _equal(first: object, other: object, names: Sequence[str]) -> bool:
    read: Callable[[object, str], np.ndarray] = getattr
    return all(_same(read(first, name), read(other, name)) for name in names)


def _same(first: np.ndarray, other: np.ndarray) -> bool:
    return np.array_equal(first, other, equal_nan=first.dtype.kind == "f")
