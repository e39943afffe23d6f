"""Two evaluations of the same images and texts compared: differences of every metric with paired patient-bootstrap intervals.

Works from saved predictions alone, without a model and without JAX. A task takes part when `SAMPLES` knows how to read its predictions.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Shaped

from input_pipeline.errors import DataError, UserError
from msfl_jax.metrics import Interval, Statistic, auc_statistic, bootstrap_all, dice_statistics, difference_statistic
from msfl_jax.tasks.finding_result import mean_of
from msfl_jax.tasks.grounding_result import PhraseScores, statistics_of
from msfl_jax.tasks.mask_result import MaskPredictions
from msfl_jax.tasks.outcome import Outcome
from msfl_jax.tasks.predictions import load_arrays
from msfl_jax.tasks.retrieval_result import Ranks, rank_statistics


class Samples(NamedTuple):
    """Predictions as compared: what must be equal in both, the patients, and the metrics.

    Attributes:
      identity: arrays by name that tell whether two evaluations scored the same samples in the same order.
      patients: [N].
      values: [N, ...] values per sample of which metrics are means, or None; where one evaluation has none (NaN), the other's is not counted either.
      statistics: from such values to the metrics by name, each a function of the samples' weights.
    """

    identity: Mapping[str, Shaped[np.ndarray, "N *d"]]
    patients: Shaped[np.ndarray, "N"]
    values: Float[np.ndarray, "N *m"]
    statistics: Callable[[Float[np.ndarray, "N *m"]], dict[str, Statistic]]


class Difference(NamedTuple):
    """One metric of both evaluations, and first minus second with its interval."""

    name: str
    first: float
    second: float
    difference: Interval


@dataclass(frozen=True)
class Comparison:
    """What `compare` found.

    Attributes:
      differences: one per metric.
      samples, patients: how many were compared.
      notes: options in which the two differ, and what else must be said.
    """

    differences: tuple[Difference, ...]
    samples: int
    patients: int
    notes: tuple[str, ...]


def compare(
    first: tuple[Path, Outcome], second: tuple[Path, Outcome], *, seed: int = 0, replicates: int = 2000
) -> Comparison:
    """Differences between two evaluations, each a run directory with one of its results.

    Patients are resampled together for both, so that what makes a patient easy or hard for either cancels out. A sample that one of them has no
    value for is left out of both.

    Args:
      first, second: from `msfl_jax.tasks.outcome.load_outcomes`.
      seed: of the bootstrap.
      replicates: of the bootstrap.

    Raises:
      DataError: the two are of different tasks, splits or samples.
      UserError: predictions are missing, or the task has none per sample.
    """
    outcomes = first[1], second[1]
    _check_same_split(*outcomes)
    reader = SAMPLES.get(outcomes[0].task)
    if reader is None:
        known = ", ".join(sorted(SAMPLES))
        raise UserError(f"task '{outcomes[0].task}' cannot be compared; expected one of {known}")
    samples = [reader(outcome.predictions(workdir)) for workdir, outcome in (first, second)]
    _check_same_samples(*samples)
    one, other = (sample.statistics(values) for sample, values in zip(samples, _paired(*samples), strict=True))
    patients = samples[0].patients
    whole = np.ones(len(patients))
    both = {name: difference_statistic(one[name], other[name]) for name in one if name in other}
    intervals = bootstrap_all(both, patients, replicates=replicates, seed=seed)
    differences = tuple(
        Difference(name, float(one[name](whole)), float(other[name](whole)), interval)
        for name, interval in intervals.items()
    )
    return Comparison(differences, len(patients), len(np.unique(patients)), tuple(_notes(*outcomes, *samples)))


def choose(
    outcomes: Sequence[tuple[Path, Outcome]], *, task: str, dataset: str = "", split: str = "", variant: str = ""
) -> list[tuple[Path, Outcome]]:
    """The results that fit; "" fits everything."""
    return [
        (workdir, outcome)
        for workdir, outcome in outcomes
        if outcome.task == task
        and dataset in ("", outcome.dataset)
        and split in ("", outcome.split)
        and variant in ("", outcome.variant)
    ]


def phrases_of(file: Path) -> Samples:
    """Predictions of `msfl eval grounding`."""
    scores = PhraseScores.load(file)
    identity = {"images": scores.image_key, "phrases": scores.phrase_key, "patients": scores.patient_key}

    def statistics(values: Float[np.ndarray, "N 2 M"]) -> dict[str, Statistic]:
        return statistics_of(dataclasses.replace(scores, values=values))

    return Samples(identity, scores.patient_key, scores.values, statistics)


def scored_findings_of(file: Path) -> Samples:
    """Predictions that are scores and truth of findings, as of `msfl eval zero-shot`: the AUC of each and their mean.

    Files of older versions do not name their images; between one of them and another file, the truth in its order stands for the images.
    """
    arrays = load_arrays(file)
    try:
        findings = [str(name) for name in arrays["findings"]]
        scores, truth, patients = arrays["scores"], arrays["truth"], arrays["patient_key"]
    except KeyError as error:
        raise UserError(f"{file}: array {error} is missing; expected scores and truth of findings") from error
    identity = {"findings": arrays["findings"], "truth": truth, "patients": patients}
    identity |= {"images": arrays["image_key"]} if "image_key" in arrays else {}

    def statistics(values: Float[np.ndarray, "N F"]) -> dict[str, Statistic]:
        labels = np.where(np.isnan(values), np.nan, truth)
        single = {f"auc/{name}": auc_statistic(values[:, c], labels[:, c]) for c, name in enumerate(findings)}
        # As in its table, the mean is over findings with both classes.
        defined = [one for one in single.values() if np.isfinite(one(np.ones(len(patients))))]
        return {"mean_auc": mean_of(defined)} | single

    return Samples(identity, patients, scores.astype(np.float64), statistics)


def masks_of(file: Path) -> Samples:
    """Predictions of `msfl finetune segmentation`: the four Dice variants."""
    found = MaskPredictions.load(file)
    target, pixels = found.counts[:, 2], found.counts[:, 3]
    identity = {"images": found.image_key, "patients": found.patient_key, "masks": target, "sizes": pixels}

    def statistics(values: Float[np.ndarray, "N 4"]) -> dict[str, Statistic]:
        return dice_statistics(values.astype(np.int64))

    return Samples(identity, found.patient_key, found.counts.astype(np.float64), statistics)


def ranks_of(file: Path) -> Samples:
    """Predictions of `msfl eval retrieval`: recalls and median ranks in both directions, of the same pairs in the same pool."""
    ranks = Ranks.load(file)
    pool = np.broadcast_to(ranks.pool, (len(ranks.own), 2))
    identity = {"patients": ranks.patient_key, "pools": pool, "reports": ranks.sharing}
    identity |= {} if ranks.image_key is None else {"images": ranks.image_key}
    return Samples(identity, ranks.patient_key, ranks.own.astype(np.float64), rank_statistics)


SAMPLES: dict[str, Callable[[Path], Samples]] = {
    "grounding": phrases_of,
    "zero_shot": scored_findings_of,
    "classification": scored_findings_of,
    "segmentation": masks_of,
    "retrieval": ranks_of,
}
"""How predictions of a task are read; a task that is not here has no values per sample."""


def _check_same_split(one: Outcome, other: Outcome) -> None:
    for name in ("task", "split_hash"):
        found, expected = getattr(other, name), getattr(one, name)
        if found != expected:
            what = "tasks" if name == "task" else "images: split hash"
            raise DataError(
                f"the two results are of different {what} {expected[:12]} and {found[:12]}; evaluate both on one build"
            )


def _check_same_samples(one: Samples, other: Samples) -> None:
    for name in one.identity.keys() & other.identity.keys():
        a, b = one.identity[name], other.identity[name]
        nan = np.issubdtype(a.dtype, np.floating)
        if a.shape != b.shape or not np.array_equal(a, b, equal_nan=nan):
            raise DataError(
                f"the two results are not of the same {name} in the same order; evaluate both again on one build with the same options"
            )


def _paired(one: Samples, other: Samples) -> tuple[np.ndarray, np.ndarray]:
    """Values of both, NaN wherever either is."""
    missing = np.isnan(one.values) | np.isnan(other.values)
    return np.where(missing, np.nan, one.values), np.where(missing, np.nan, other.values)


def _notes(a: Outcome, b: Outcome, one: Samples, other: Samples) -> list[str]:
    notes = [
        f"{name} differs: {a.options.get(name, '-')} and {b.options.get(name, '-')}"
        for name in sorted(a.options.keys() | b.options.keys())
        if a.options.get(name) != b.options.get(name)
    ]
    notes += [f"variant differs: {a.variant or '-'} and {b.variant or '-'}"] if a.variant != b.variant else []
    unpaired = int((np.isnan(one.values) != np.isnan(other.values)).reshape(len(one.values), -1).any(axis=1).sum())
    notes += [f"{unpaired:,} samples lack a value in one of the two and count in neither"] if unpaired else []
    return [*notes, *dict.fromkeys((*a.caveats, *b.caveats))]
