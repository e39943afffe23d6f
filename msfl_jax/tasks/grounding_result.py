"""What phrase grounding scored: per phrase, in the mean over phrases and over categories, with intervals.

Everything here follows from saved predictions and needs neither a model nor JAX.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Shaped

from input_pipeline.errors import UserError
from msfl_jax.metrics import THRESHOLDS, Interval, Statistic, bootstrap, mean_statistic
from msfl_jax.tasks.outcome import Option, Outcome
from msfl_jax.tasks.predictions import load_arrays, save_arrays

METRICS = ("cnr", "absolute_cnr", "miou", "pointing_game")
OVERLAPS = tuple(f"iou_{threshold}" for threshold in THRESHOLDS)
COLUMNS = (*METRICS, *OVERLAPS)
_AVERAGE = "category"


@dataclass(frozen=True)
class PhraseScores:
    """Scores of every phrase, from which all numbers of a result follow.

    Attributes:
      values: [N, 2, M], the metrics of `COLUMNS` with the image's own phrase and with another one; NaN where a metric is undefined: all of
        them without a box among the pixels that count, the CNR also where one of its sides is empty or the heat constant.
      unpredicted: [N, 2], how many thresholds nothing exceeds; the IoU counts as 0 there.
      box_share: [N], share of the pixels seen that lies in a box: what pointing at random scores.
      category: [N], finding of the phrase.
      patient_key, image_key, phrase_key: [N], hashed.
      maps: [N, 2, G, G], smoothed similarities on the patch grid, from which the metrics can be measured again.
    """

    values: Float[np.ndarray, "N 2 M"]
    unpredicted: Shaped[np.ndarray, "N 2"]
    box_share: Float[np.ndarray, "N"]
    category: Shaped[np.ndarray, "N"]
    patient_key: Shaped[np.ndarray, "N"]
    image_key: Shaped[np.ndarray, "N"]
    phrase_key: Shaped[np.ndarray, "N"]
    maps: Float[np.ndarray, "N 2 G G"]

    def save(self, path: Path | str) -> None:
        """Writes an .npz file without pickle."""
        save_arrays(path, columns=np.asarray(COLUMNS), **self.__dict__)

    @classmethod
    def load(cls, path: Path | str) -> "PhraseScores":
        """Reads what `save` wrote; raises a UserError where it is something else."""
        arrays = load_arrays(path)
        try:
            return cls(**{name: arrays[name] for name in cls.__dataclass_fields__})
        except KeyError as error:
            raise UserError(
                f"{path}: array {error} is missing; expected predictions of `msfl eval grounding`"
            ) from error


@dataclass(frozen=True)
class Category:
    """Means over the phrases of one finding."""

    name: str
    phrases: int
    metrics: dict[str, Interval]


@dataclass(frozen=True)
class GroundingResult:
    """Phrase grounding with 95 % patient-bootstrap intervals.

    Attributes:
      protocol: how similarities became heat-maps, with the scaling of the heat before thresholds: "biovil/minmax".
      split, step: what was evaluated, and the step of the parameters.
      metrics: means over the phrases that have them (per sample). cnr (signed), absolute_cnr, miou, pointing_game and iou_0.1 to iou_0.5; the first
        four again with the suffix _shuffled_phrases, where each image was searched for a phrase of another one; cnr_over_shuffled, the mean of the
        differences in CNR.
      category_average: cnr, absolute_cnr, miou, pointing_game and the IoUs as means over categories of the means over their phrases (AFLoc's columns).
      categories: of each finding.
      pointing_chance: what pointing at random scores.
      undefined: for each metric the number of phrases that do not have it.
      unpredicted: phrases with a threshold that nothing exceeds; such an IoU counts as 0.
      records, images, patients: how many were scored.
      scores: from which all of this can be computed again.
    """

    protocol: str
    split: str
    step: int
    metrics: dict[str, Interval]
    category_average: dict[str, Interval]
    categories: tuple[Category, ...]
    pointing_chance: float
    undefined: dict[str, int]
    unpredicted: int
    records: int
    images: int
    patients: int
    scores: PhraseScores


def summarise(
    scores: PhraseScores, *, protocol: str, split: str, step: int, seed: int = 0, replicates: int = 2000
) -> GroundingResult:
    """Means and intervals from the scores of phrases alone; `protocol`, `split` and `step` are only passed on."""
    intervals = intervals_of(scores, seed=seed, replicates=replicates)
    names = [str(name) for name in np.unique(scores.category)]
    own = scores.values[:, 0]
    return GroundingResult(
        protocol=protocol,
        split=split,
        step=step,
        metrics={name: interval for name, interval in intervals.items() if "/" not in name},
        category_average={name: intervals[f"{_AVERAGE}/{name}"] for name in COLUMNS},
        categories=tuple(
            Category(
                name,
                int((scores.category == name).sum()),
                {metric: intervals[f"{name}/{metric}"] for metric in METRICS},
            )
            for name in names
        ),
        pointing_chance=float(np.nanmean(scores.box_share)) if np.isfinite(scores.box_share).any() else float("nan"),
        undefined={name: int(np.isnan(own[:, column]).sum()) for column, name in enumerate(COLUMNS)},
        unpredicted=int((scores.unpredicted[:, 0] > 0).sum()),
        records=len(own),
        images=len(np.unique(scores.image_key)),
        patients=len(np.unique(scores.patient_key)),
        scores=scores,
    )


def intervals_of(scores: PhraseScores, *, seed: int = 0, replicates: int = 2000) -> dict[str, Interval]:
    """Every number of an `Outcome`, by its name there, from saved predictions; see `statistics_of`."""
    resample = functools.partial(bootstrap, patients=scores.patient_key, replicates=replicates, seed=seed)
    return {name: resample(statistic) for name, statistic in statistics_of(scores).items()}


def statistics_of(scores: PhraseScores) -> dict[str, Statistic]:
    """What is reported, as functions of the phrases' weights: METRIC per sample, category/METRIC and CATEGORY/METRIC.

    In a category's own metrics its patients are resampled with all others, so that its interval fits those of the mean.
    """
    own, other = scores.values[:, 0], scores.values[:, 1]
    statistics = {name: mean_statistic(own[:, column]) for column, name in enumerate(COLUMNS)}
    for column, name in enumerate(METRICS):
        statistics[f"{name}_shuffled_phrases"] = mean_statistic(other[:, column])
    statistics["cnr_over_shuffled"] = mean_statistic((own - other)[:, COLUMNS.index("cnr")])
    for column, name in enumerate(COLUMNS):
        statistics[f"{_AVERAGE}/{name}"] = _over_categories(own[:, column], scores.category)
    for category in np.unique(scores.category):
        member = scores.category == category
        for column, name in enumerate(METRICS):
            statistics[f"{category}/{name}"] = mean_statistic(np.where(member, own[:, column], np.nan))
    return statistics


def outcome_of(
    result: GroundingResult,
    *,
    dataset: str,
    split_hash: str,
    variant: str,
    options: Mapping[str, Option],
    caveats: Sequence[str] = (),
) -> Outcome:
    """What is saved of a result; metrics that no phrase has are undefined for a reason, and phrases that lack one are a caveat."""
    metrics = result.metrics | {f"{_AVERAGE}/{name}": value for name, value in result.category_average.items()}
    for category in result.categories:
        metrics |= {f"{category.name}/{name}": value for name, value in category.metrics.items()}
    lacking = {name: count for name, count in result.undefined.items() if count and name in METRICS}
    said = [f"{name} is undefined for {count:,} of {result.records:,} phrases" for name, count in lacking.items()]
    return Outcome(
        task="grounding",
        dataset=dataset,
        split=result.split,
        split_hash=split_hash,
        variant=variant,
        options=options,
        step=result.step,
        records=result.records,
        patients=result.patients,
        metrics=metrics,
        reasons={name: "no phrase has it" for name, value in metrics.items() if np.isnan(value.value)},
        caveats=(*caveats, *said),
    )


def _over_categories(values: Float[np.ndarray, "N"], category: Shaped[np.ndarray, "N"]) -> Statistic:
    """Mean over categories of weighted means; those without a defined value are left out, as by AFLoc's nanmean."""
    parts = [mean_statistic(np.where(category == name, values, np.nan)) for name in np.unique(category)]

    def statistic(weights: Float[np.ndarray, "N"]) -> float:
        means = np.asarray([part(weights) for part in parts])
        return float(means[~np.isnan(means)].mean()) if np.isfinite(means).any() else float("nan")

    return statistic
