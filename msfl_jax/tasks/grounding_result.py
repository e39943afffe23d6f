"""What phrase grounding scored: per phrase, in the mean over phrases and over categories, with intervals."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Shaped

from input_pipeline.errors import UserError
from msfl_jax.metrics import Interval, Statistic, bootstrap, mean_statistic
from msfl_jax.tasks.predictions import load_arrays, save_arrays

COLUMNS = ("cnr", "absolute_cnr", "miou", "pointing_game")


@dataclass(frozen=True)
class PhraseScores:
    """Scores of every phrase, from which all numbers of a result follow.

    Attributes:
      values: [N, 2, M], the metrics of `COLUMNS` with the image's own phrase and with another one; NaN where a metric is undefined.
      box_share: [N], share of the pixels seen that lies in a box: what pointing at random scores.
      category: [N], finding of the phrase.
      patient_key, image_key: [N], hashed.
      maps: [N, 2, G, G], smoothed similarities on the patch grid, from which the metrics can be measured again.
    """

    values: Float[np.ndarray, "N 2 M"]
    box_share: Float[np.ndarray, "N"]
    category: Shaped[np.ndarray, "N"]
    patient_key: Shaped[np.ndarray, "N"]
    image_key: Shaped[np.ndarray, "N"]
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
      protocol: how similarities became heat-maps.
      split, step: what was evaluated, and the step of the parameters.
      metrics: means over phrases. cnr (signed), absolute_cnr, miou, pointing_game; the same with the suffix _shuffled_phrases, where each image was
        searched for a phrase of another one; cnr_over_shuffled, the mean of the differences in CNR.
      category_average: cnr, absolute_cnr, miou and pointing_game as means over categories of the means over their phrases (AFLoc's columns).
      categories: of each finding.
      pointing_chance: what pointing at random scores.
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
    records: int
    images: int
    patients: int
    scores: PhraseScores


def summarise(
    scores: PhraseScores, *, protocol: str, split: str, step: int, seed: int = 0, replicates: int = 2000
) -> GroundingResult:
    """Means and intervals from the scores of phrases alone; `protocol`, `split` and `step` are only passed on."""
    resample = functools.partial(bootstrap, patients=scores.patient_key, replicates=replicates, seed=seed)
    own, other = scores.values[:, 0], scores.values[:, 1]
    metrics = {name: resample(mean_statistic(own[:, column])) for column, name in enumerate(COLUMNS)}
    for column, name in enumerate(COLUMNS):
        metrics[f"{name}_shuffled_phrases"] = resample(mean_statistic(other[:, column]))
    metrics["cnr_over_shuffled"] = resample(mean_statistic((own - other)[:, COLUMNS.index("cnr")]))
    return GroundingResult(
        protocol=protocol,
        split=split,
        step=step,
        metrics=metrics,
        category_average={
            name: resample(_over_categories(own[:, c], scores.category)) for c, name in enumerate(COLUMNS)
        },
        categories=tuple(_category(scores, name, resample) for name in np.unique(scores.category)),
        pointing_chance=float(np.nanmean(scores.box_share)) if np.isfinite(scores.box_share).any() else float("nan"),
        records=len(own),
        images=len(np.unique(scores.image_key)),
        patients=len(np.unique(scores.patient_key)),
        scores=scores,
    )


def _over_categories(values: Float[np.ndarray, "N"], category: Shaped[np.ndarray, "N"]) -> Statistic:
    """Mean over categories of weighted means; those without a defined value are left out, as by AFLoc's nanmean."""
    parts = [mean_statistic(np.where(category == name, values, np.nan)) for name in np.unique(category)]

    def statistic(weights: Float[np.ndarray, "N"]) -> float:
        means = np.asarray([part(weights) for part in parts])
        return float(means[~np.isnan(means)].mean()) if np.isfinite(means).any() else float("nan")

    return statistic


def _category(scores: PhraseScores, name: str, resample: Callable[[Statistic], Interval]) -> Category:
    """One finding; its patients are resampled with all others, so that its interval fits those of the mean."""
    member = scores.category == name
    own = np.where(member[:, None], scores.values[:, 0], np.nan)
    metrics = {metric: resample(mean_statistic(own[:, column])) for column, metric in enumerate(COLUMNS)}
    return Category(str(name), int(member.sum()), metrics)
