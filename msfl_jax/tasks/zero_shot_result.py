"""What zero-shot classification scored: AUC and calibration of each finding, their means and controls, from predictions alone and without JAX."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float
from scipy.special import expit

from msfl_jax.metrics import Interval, Statistic, bootstrap, calibration_statistic
from msfl_jax.tasks.finding_result import (
    UNDEFINED,
    FindingAuc,
    Predictions,
    auc_statistics,
    mean_of,
    summarise_findings,
)
from msfl_jax.tasks.outcome import Option, Outcome, identify_split

TASK = "zero_shot"


@dataclass(frozen=True)
class Finding(FindingAuc):
    """AUC and calibration error of one finding over the images whose label is known; nan, with the reason, where they are undefined."""

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
    found = summarise_findings(predictions, seed=seed, replicates=replicates)
    scores, truth = predictions.scores, predictions.truth
    probable = probabilities(scores, rule, temperature)
    defined = [column for column, finding in enumerate(found.findings) if not finding.reason]
    errors = {column: resample(_ece(probable[:, column], truth[:, column], "equal_width")) for column in defined}

    def mean_auc(scores: Float[np.ndarray, "N F"]) -> Interval:
        """Mean of the defined findings with other scores."""
        return resample(mean_of(auc_statistics(scores[:, defined], truth[:, defined])))

    def mean_ece(binning: str) -> Interval:
        return resample(mean_of([_ece(probable[:, column], truth[:, column], binning) for column in defined]))

    order = np.random.default_rng(seed).permutation(len(scores))
    exchanged = mean_auc(-scores if predictions.exchanged is None else predictions.exchanged)
    return ZeroShotResult(
        rule=rule,
        split=split,
        step=step,
        findings=tuple(
            Finding(**vars(finding), ece=errors.get(column, UNDEFINED)) for column, finding in enumerate(found.findings)
        ),
        mean=found.mean,
        shuffled=mean_auc(scores[order]),
        swapped=mean_auc(np.roll(scores, -1, axis=1)) if len(found.findings) > 1 else exchanged,
        exchanged=exchanged,
        mean_ece=mean_ece("equal_width"),
        mean_ece_equal_mass=mean_ece("equal_mass"),
        temperature=temperature,
        records=found.records,
        patients=found.patients,
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


def _ece(probable: Float[np.ndarray, "N"], truth: Float[np.ndarray, "N"], binning: str) -> Statistic:
    return calibration_statistic(probable, truth, binning="equal_mass" if binning == "equal_mass" else "equal_width")
