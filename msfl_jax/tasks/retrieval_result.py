"""What retrieval scored, from saved ranks alone and without JAX."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int, Real

from input_pipeline.errors import UserError
from msfl_jax.metrics import Interval, Statistic, bootstrap, mean_statistic
from msfl_jax.metrics.retrieval import chance_of_recall, median_statistic
from msfl_jax.tasks.outcome import Option, Outcome, identify_split
from msfl_jax.tasks.predictions import load_arrays, save_arrays

TASK = "retrieval"
DIRECTIONS = ("image_to_report", "report_to_image")
DEPTHS = (1, 5, 10)


@dataclass(frozen=True)
class Ranks:
    """Ranks of every image-report pair, from which all numbers of a result follow.

    Attributes:
      own: [N, 2] for each pair the rank of its report among all reports, and of its report's nearest image among all images.
      shuffled: [N, 2] the same where reports were shuffled among the images before.
      pool: [2] number of distinct reports, and of images.
      sharing: [N] how many images have the pair's report.
      patient_key: [N], hashed.
      image_key: [N], hashed; None in files that were saved before it was.
    """

    own: Int[np.ndarray, "N 2"]
    shuffled: Int[np.ndarray, "N 2"]
    pool: Int[np.ndarray, "2"]
    sharing: Int[np.ndarray, "N"]
    patient_key: Real[np.ndarray, "N"]
    image_key: Real[np.ndarray, "N"] | None = None

    def save(self, path: Path | str) -> None:
        """Writes an .npz file without pickle."""
        save_arrays(path, **{name: array for name, array in vars(self).items() if array is not None})

    @classmethod
    def load(cls, path: Path | str) -> "Ranks":
        """Reads what `save` wrote; raises a UserError where it is something else."""
        arrays = load_arrays(path)
        try:
            required = {name: arrays[name] for name in cls.__dataclass_fields__ if name != "image_key"}
            return cls(**required, image_key=arrays.get("image_key"))
        except KeyError as error:
            raise UserError(
                f"{path}: array {error} is missing; expected predictions of `msfl eval retrieval`"
            ) from error


@dataclass(frozen=True)
class RetrievalResult:
    """Retrieval in both directions with 95 % patient-bootstrap intervals; the pool stays whole in every resample.

    Attributes:
      split, step: what was evaluated, and the step of the parameters.
      metrics: DIRECTION/recall@K and DIRECTION/median_rank, with the suffix _shuffled where reports were shuffled among images, and the exact
        DIRECTION/recall@K_chance of a random order.
      left_out: images without a report.
      records, patients: how many pairs were scored.
      ranks: from which all of this can be computed again.
    """

    split: str
    step: int
    metrics: dict[str, Interval]
    left_out: int
    records: int
    patients: int
    ranks: Ranks


def summarise(
    ranks: Ranks, *, split: str, step: int, left_out: int = 0, seed: int = 0, replicates: int = 2000
) -> RetrievalResult:
    """Recalls, medians, chance and intervals from ranks alone; `split`, `step` and `left_out` are only passed on."""
    resample = functools.partial(bootstrap, patients=ranks.patient_key, replicates=replicates, seed=seed)
    metrics: dict[str, Interval] = {}
    for column, direction in enumerate(DIRECTIONS):
        for suffix, values in (("", ranks.own), ("_shuffled", ranks.shuffled)):
            for name, statistic in rank_statistics(values).items():
                if name.startswith(f"{direction}/"):
                    metrics[f"{name}{suffix}"] = resample(statistic)
        right = np.ones_like(ranks.sharing) if column == 0 else ranks.sharing
        for depth in DEPTHS:
            chance = float(chance_of_recall(right, int(ranks.pool[column]), depth).mean())
            metrics[f"{direction}/recall@{depth}_chance"] = Interval(chance, chance, chance)
    patients = len(np.unique(ranks.patient_key))
    return RetrievalResult(split, step, metrics, left_out, len(ranks.own), patients, ranks)


def rank_statistics(ranks: Real[np.ndarray, "N 2"]) -> dict[str, Statistic]:
    """DIRECTION/recall@K and DIRECTION/median_rank as functions of the pairs' weights."""
    found: dict[str, Statistic] = {}
    for column, direction in enumerate(DIRECTIONS):
        values = ranks[:, column]
        found |= {f"{direction}/recall@{k}": mean_statistic((values <= k).astype(float)) for k in DEPTHS}
        found[f"{direction}/median_rank"] = median_statistic(values)
    return found


def describe(
    result: RetrievalResult, directory: Path | str, *, options: Mapping[str, Option], caveats: tuple[str, ...] = ()
) -> Outcome:
    """The result as it is saved.

    Args:
      result: of `summarise`.
      directory: the build that was evaluated.
      options: what else was chosen; `seed` and `replicates` of the bootstrap must be among them, so that all can be computed again.
      caveats: what must be said beside the numbers.

    Raises:
      UserError: there is no such build or split.
    """
    dataset, split_hash = identify_split(directory, result.split)
    pools = {"reports": int(result.ranks.pool[0]), "images": int(result.ranks.pool[1]), "left_out": result.left_out}
    return Outcome(
        task=TASK,
        dataset=dataset,
        split=result.split,
        split_hash=split_hash,
        variant="",
        options=pools | dict(options),
        step=result.step,
        records=result.records,
        patients=result.patients,
        metrics=result.metrics,
        caveats=caveats,
    )
