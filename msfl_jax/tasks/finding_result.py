"""Scores of findings against the labels of a build: the AUC of each and their mean, from predictions alone and without JAX."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Real

from input_pipeline.errors import UserError
from msfl_jax.metrics import Interval, Statistic, auc_statistic, bootstrap
from msfl_jax.tasks.predictions import load_arrays, save_arrays

UNDEFINED = Interval(np.nan, np.nan, np.nan)


@dataclass(frozen=True)
class Predictions:
    """Scores and truth of every image.

    Attributes:
      findings: names of the columns.
      scores: [N, F], higher is more likely present.
      truth: [N, F]; 1 present, 0 absent, NaN left out.
      patient_key: [N], hashed.
      exchanged: [N, F], scores with positive and negative prompts exchanged; None where the rule gives the opposite order by construction, and
        where there are no prompts.
      image_key: [N], hashed; None in files that were saved before it was.
    """

    findings: tuple[str, ...]
    scores: Float[np.ndarray, "N F"]
    truth: Float[np.ndarray, "N F"]
    patient_key: Real[np.ndarray, "N"]
    exchanged: Float[np.ndarray, "N F"] | None = None
    image_key: Real[np.ndarray, "N"] | None = None

    def save(self, path: Path | str) -> None:
        """Writes an .npz file without pickle."""
        arrays = {"scores": self.scores, "truth": self.truth, "patient_key": self.patient_key}
        optional = {"exchanged": self.exchanged, "image_key": self.image_key}
        arrays |= {name: array for name, array in optional.items() if array is not None}
        save_arrays(path, findings=np.asarray(self.findings, dtype=np.str_), **arrays)

    @classmethod
    def load(cls, path: Path | str) -> "Predictions":
        """Reads what `save` wrote; raises a UserError where it is something else."""
        arrays = load_arrays(path)
        try:
            findings = tuple(str(name) for name in arrays["findings"])
            columns = arrays["scores"], arrays["truth"], arrays["patient_key"]
            return cls(findings, *columns, exchanged=arrays.get("exchanged"), image_key=arrays.get("image_key"))
        except KeyError as error:
            raise UserError(
                f"{path}: array {error} is missing; expected predictions of `msfl eval zero-shot` or of a classifier"
            ) from error


@dataclass(frozen=True)
class FindingAuc:
    """AUC of one finding over the images whose label is known; nan, with the reason, where it is undefined."""

    name: str
    auc: Interval
    positives: int
    negatives: int
    reason: str


@dataclass(frozen=True)
class FindingsResult:
    """AUCs with 95 % patient-bootstrap intervals.

    Attributes:
      findings: in the order of the predictions.
      mean: unweighted mean AUC of the `defined` findings; its interval resamples the same patients for all of them.
      records, patients: how many were scored.
    """

    findings: tuple[FindingAuc, ...]
    mean: Interval
    records: int
    patients: int

    @property
    def defined(self) -> int:
        """How many findings the mean is over."""
        return sum(not finding.reason for finding in self.findings)

    @property
    def metrics(self) -> dict[str, Interval]:
        """Every number by its name in an `Outcome`."""
        return {"mean_auc": self.mean} | {f"auc/{finding.name}": finding.auc for finding in self.findings}

    @property
    def reasons(self) -> dict[str, str]:
        """Why, for each number that is undefined."""
        found = {f"auc/{finding.name}": finding.reason for finding in self.findings if finding.reason}
        return found | ({} if self.defined else {"mean_auc": "no finding has an AUC"})


def summarise_findings(predictions: Predictions, *, seed: int = 0, replicates: int = 2000) -> FindingsResult:
    """AUCs, their mean and intervals, from predictions alone; `seed` and `replicates` are of the bootstrap."""
    resample = functools.partial(bootstrap, patients=predictions.patient_key, replicates=replicates, seed=seed)
    scores, truth = predictions.scores, predictions.truth
    statistics, findings = auc_statistics(scores, truth), []
    for column, name in enumerate(predictions.findings):
        positives, negatives, reason = _counts(scores[:, column], truth[:, column])
        auc = UNDEFINED if reason else resample(statistics[column])
        findings.append(FindingAuc(name, auc, positives, negatives, reason))
    defined = [column for column, finding in enumerate(findings) if not finding.reason]
    return FindingsResult(
        findings=tuple(findings),
        mean=resample(mean_of([statistics[column] for column in defined])),
        records=len(scores),
        patients=len(np.unique(predictions.patient_key)),
    )


def truth_of_labels(labels: Float[np.ndarray, "N F"], blank: str = "negative") -> Float[np.ndarray, "N F"]:
    """1 present, 0 absent, NaN left out, from labels that are also -1 (uncertain, left out) and NaN (blank, as `blank` says)."""
    truth = np.where(labels == -1, np.nan, labels)
    return np.where(np.isnan(labels), 0.0 if blank == "negative" else np.nan, truth).astype(np.float32)


def auc_statistics(scores: Float[np.ndarray, "N F"], truth: Float[np.ndarray, "N F"]) -> list[Statistic]:
    """The AUC of each column as a function of the images' weights."""
    return [auc_statistic(scores[:, column].astype(np.float64), truth[:, column]) for column in range(scores.shape[1])]


def mean_of(statistics: Sequence[Statistic]) -> Statistic:
    """The mean of several statistics of the same weights, undefined where one of them is; nan without any."""
    return lambda weights: (
        float(np.mean([statistic(weights) for statistic in statistics])) if statistics else float("nan")
    )


def _counts(scores: Float[np.ndarray, "N"], truth: Float[np.ndarray, "N"]) -> tuple[int, int, str]:
    """Images with and without a finding, and why it has no AUC, if it has none."""
    positives, negatives = int((truth == 1).sum()), int((truth == 0).sum())
    missing = [word for word, count in (("positives", positives), ("negatives", negatives)) if not count]
    reason = f"no {' and no '.join(missing)}" if missing else ""
    if not reason and np.isnan(scores[~np.isnan(truth)]).any():
        reason = "scores are not numbers"
    return positives, negatives, reason
