"""What zero-shot classification scored: AUC and calibration of each finding, their means and controls, from predictions alone and without JAX."""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Real
from scipy.special import expit

from input_pipeline.errors import UserError
from msfl_jax.metrics import Interval, Statistic, auc_statistic, bootstrap, calibration_statistic
from msfl_jax.tasks.outcome import Option, Outcome, identify_split
from msfl_jax.tasks.predictions import load_arrays, save_arrays

TASK = "zero_shot"
UNDEFINED = Interval(np.nan, np.nan, np.nan)


@dataclass(frozen=True)
class Predictions:
    """Scores and truth of every image.

    Attributes:
      findings: names of the columns.
      scores: [N, F], higher is more likely present.
      truth: [N, F]; 1 present, 0 absent, NaN left out.
      patient_key: [N], hashed.
      exchanged: [N, F], scores with positive and negative prompts exchanged; None where the rule gives the opposite order by construction.
    """

    findings: tuple[str, ...]
    scores: Float[np.ndarray, "N F"]
    truth: Float[np.ndarray, "N F"]
    patient_key: Real[np.ndarray, "N"]
    exchanged: Float[np.ndarray, "N F"] | None = None

    def save(self, path: Path | str) -> None:
        """Writes an .npz file without pickle."""
        arrays = {"scores": self.scores, "truth": self.truth, "patient_key": self.patient_key}
        if self.exchanged is not None:
            arrays["exchanged"] = self.exchanged
        save_arrays(path, findings=np.asarray(self.findings, dtype=np.str_), **arrays)

    @classmethod
    def load(cls, path: Path | str) -> "Predictions":
        """Reads what `save` wrote; raises a UserError where it is something else."""
        arrays = load_arrays(path)
        try:
            findings = tuple(str(name) for name in arrays["findings"])
            columns = arrays["scores"], arrays["truth"], arrays["patient_key"]
            return cls(findings, *columns, exchanged=arrays.get("exchanged"))
        except KeyError as error:
            raise UserError(
                f"{path}: array {error} is missing; expected predictions of `msfl eval zero-shot`"
            ) from error


@dataclass(frozen=True)
class Finding:
    """AUC and calibration error of one finding over the images whose label is known; nan, with the reason, where they are undefined."""

    name: str
    auc: Interval
    positives: int
    negatives: int
    reason: str
    ece: Interval = UNDEFINED


@dataclass(frozen=True)
class ZeroShotResult:
    """Zero-shot AUCs with 95 % patient-bootstrap intervals.

    Attributes:
      rule: how prompts became scores.
      split, step: what was evaluated, and the step of the parameters.
      findings: in the order of the prompt set.
      mean: unweighted mean AUC of the `defined` findings; its interval resamples the same patients for all of them.
      shuffled: the same mean with images shuffled against labels: what no information gives on this very data.
      swapped: the same mean where each finding is scored with the prompts of the next one: what prompts give that do not name the finding, as
        "something is abnormal". Of a single finding, it is `exchanged`.
      exchanged: the same mean with positive and negative prompts exchanged: 1 - `mean` by construction, except with the rule "gloria"; below 0.5
        unless the prompts say the opposite of what they should.
      mean_ece: mean calibration error, in bins of equal width; `mean_ece_equal_mass` in bins of equal mass.
      temperature: of the run, see `probabilities`.
      records, patients: how many were scored.
      predictions: from which all of this can be computed again.
    """

    rule: str
    split: str
    step: int
    findings: tuple[Finding, ...]
    mean: Interval
    shuffled: Interval
    swapped: Interval
    exchanged: Interval
    mean_ece: Interval
    mean_ece_equal_mass: Interval
    temperature: float
    records: int
    patients: int
    predictions: Predictions

    @property
    def auc(self) -> dict[str, Interval]:
        """AUC by finding."""
        return {finding.name: finding.auc for finding in self.findings}

    @property
    def defined(self) -> int:
        """How many findings the mean is over."""
        return sum(not finding.reason for finding in self.findings)

    @property
    def metrics(self) -> dict[str, Interval]:
        """Every number by its name in an `Outcome`."""
        means = {
            "mean_auc": self.mean,
            "mean_auc_shuffled_images": self.shuffled,
            "mean_auc_swapped_prompts": self.swapped,
            "mean_auc_exchanged_sides": self.exchanged,
            "mean_ece": self.mean_ece,
            "mean_ece_equal_mass": self.mean_ece_equal_mass,
        }
        each = {f"auc/{finding.name}": finding.auc for finding in self.findings}
        return means | each | {f"ece/{finding.name}": finding.ece for finding in self.findings}

    @property
    def reasons(self) -> dict[str, str]:
        """Why, for each number that is undefined."""
        found = {f"{metric}/{f.name}": f.reason for f in self.findings if f.reason for metric in ("auc", "ece")}
        none = "no finding has an AUC"
        return found | ({} if self.defined else {name: none for name in self.metrics if name.startswith("mean_")})


def probabilities(scores: Float[np.ndarray, "*n"], rule: str, temperature: float = 1.0) -> Float[np.ndarray, "*n"]:
    """Scores as probabilities that the finding is present.

    cosine, gloria  1 / (1 + exp(-score / temperature)): the softmax of the positive and the negative cosine, divided by the temperature of the run's
                    global alignment. Of the rule "gloria", half of which has no negative side, it is no more than a convention
    maco            the softmax of the raw products, as published: no temperature
    chexzero        the score is a mean of softmaxes already, without temperature, as published: near a half for every image
    """
    if rule == "chexzero":
        return scores.astype(np.float64)
    return expit(scores.astype(np.float64) / (1.0 if rule == "maco" else temperature))


def truth_of_labels(labels: Float[np.ndarray, "N F"], blank: str = "negative") -> Float[np.ndarray, "N F"]:
    """1 present, 0 absent, NaN left out, from labels that are also -1 (uncertain, left out) and NaN (blank, as `blank` says)."""
    truth = np.where(labels == -1, np.nan, labels)
    return np.where(np.isnan(labels), 0.0 if blank == "negative" else np.nan, truth).astype(np.float32)


def summarise(
    predictions: Predictions,
    *,
    rule: str,
    split: str,
    step: int,
    temperature: float = 1.0,
    seed: int = 0,
    replicates: int = 2000,
) -> ZeroShotResult:
    """AUCs, calibration, their means and intervals, from predictions alone; `split` and `step` are only passed on."""
    resample = functools.partial(bootstrap, patients=predictions.patient_key, replicates=replicates, seed=seed)
    scores, truth = predictions.scores, predictions.truth
    probable = probabilities(scores, rule, temperature)
    statistics = _auc_statistics(scores, truth)
    findings = tuple(
        _finding(name, probable[:, column], truth[:, column], statistics[column], resample)
        for column, name in enumerate(predictions.findings)
    )
    defined = [column for column, finding in enumerate(findings) if not finding.reason]

    def mean_auc(scores: Float[np.ndarray, "N F"]) -> Interval:
        """Mean of the defined findings with other scores."""
        return resample(_mean(_auc_statistics(scores[:, defined], truth[:, defined])))

    def mean_ece(binning: str) -> Interval:
        return resample(_mean([_ece(probable[:, column], truth[:, column], binning) for column in defined]))

    order = np.random.default_rng(seed).permutation(len(scores))
    exchanged = mean_auc(-scores if predictions.exchanged is None else predictions.exchanged)
    return ZeroShotResult(
        rule=rule,
        split=split,
        step=step,
        findings=findings,
        mean=resample(_mean([statistics[column] for column in defined])),
        shuffled=mean_auc(scores[order]),
        swapped=mean_auc(np.roll(scores, -1, axis=1)) if len(findings) > 1 else exchanged,
        exchanged=exchanged,
        mean_ece=mean_ece("equal_width"),
        mean_ece_equal_mass=mean_ece("equal_mass"),
        temperature=temperature,
        records=len(scores),
        patients=len(np.unique(predictions.patient_key)),
        predictions=predictions,
    )


def describe(
    result: ZeroShotResult,
    directory: Path | str,
    *,
    options: Mapping[str, Option],
    caveats: tuple[str, ...] = (),
    prompts: str = "",
) -> Outcome:
    """The result as it is saved.

    Args:
      result: of `summarise`.
      directory: the build that was evaluated.
      options: what else was chosen; `seed` and `replicates` of the bootstrap must be among them, so that all can be computed again.
      caveats: what must be said beside the numbers.
      prompts: short name of the set, for the names of files; "" is the one that the run takes for these data.

    Raises:
      UserError: there is no such build or split.
    """
    dataset, split_hash = identify_split(directory, result.split)
    known = {"rule": result.rule, "temperature": result.temperature, "findings_in_mean": result.defined}
    return Outcome(
        task=TASK,
        dataset=dataset,
        split=result.split,
        split_hash=split_hash,
        variant="-".join(filter(None, (result.rule, prompts))),
        options=known | dict(options),
        step=result.step,
        records=result.records,
        patients=result.patients,
        metrics=result.metrics,
        reasons=result.reasons,
        caveats=caveats,
    )


def _auc_statistics(scores: np.ndarray, truth: np.ndarray) -> list[Statistic]:
    return [auc_statistic(scores[:, column].astype(np.float64), truth[:, column]) for column in range(scores.shape[1])]


def _mean(statistics: list[Statistic]) -> Statistic:
    """The mean of several statistics of the same weights; nan without any."""
    return lambda weights: (
        float(np.mean([statistic(weights) for statistic in statistics])) if statistics else float("nan")
    )


def _ece(probable: Float[np.ndarray, "N"], truth: Float[np.ndarray, "N"], binning: str) -> Statistic:
    return calibration_statistic(probable, truth, binning="equal_mass" if binning == "equal_mass" else "equal_width")


def _finding(
    name: str,
    probable: Float[np.ndarray, "N"],
    truth: Float[np.ndarray, "N"],
    statistic: Statistic,
    resample: Callable[[Statistic], Interval],
) -> Finding:
    positives, negatives = int((truth == 1).sum()), int((truth == 0).sum())
    missing = [word for word, count in (("positives", positives), ("negatives", negatives)) if not count]
    reason = f"no {' and no '.join(missing)}" if missing else ""
    if not reason and np.isnan(probable[~np.isnan(truth)]).any():
        reason = "scores are not numbers"
    if reason:
        return Finding(name, UNDEFINED, positives, negatives, reason)
    auc = resample(statistic)
    return Finding(name, auc, positives, negatives, "", resample(_ece(probable, truth, "equal_width")))
