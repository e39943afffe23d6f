"""Numbers computed again from saved predictions, without a model and without JAX: whether results follow from what lies beside them.

A task takes part by an entry in `TASKS`: a function of the outcome, whose options say how, and of the file of predictions.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from input_pipeline.errors import UserError
from msfl_jax.metrics import Interval
from msfl_jax.tasks import finding_result, grounding_result, mask_result, retrieval_result, zero_shot_result
from msfl_jax.tasks.outcome import RESULTS, Outcome, load_outcome

TOLERANCE = 1e-9  # sums in another order differ by less; another image, label or seed by more

Recompute = Callable[[Outcome, Path], Mapping[str, Interval]]


@dataclass(frozen=True)
class Check:
    """Whether one result follows from its predictions; None where nothing knows how to compute it again."""

    file: Path
    agrees: bool | None
    said: str


def zero_shot(outcome: Outcome, predictions: Path) -> Mapping[str, Interval]:
    """Of `msfl eval zero-shot`."""
    result = zero_shot_result.summarise(
        finding_result.Predictions.load(predictions),
        rule=str(outcome.options["rule"]),
        temperature=float(outcome.options["temperature"]),
        split=outcome.split,
        step=outcome.step,
        **bootstrap_options(outcome),
    )
    return result.metrics


def retrieval(outcome: Outcome, predictions: Path) -> Mapping[str, Interval]:
    """Of `msfl eval retrieval`."""
    ranks = retrieval_result.Ranks.load(predictions)
    return retrieval_result.summarise(
        ranks, split=outcome.split, step=outcome.step, **bootstrap_options(outcome)
    ).metrics


def grounding(outcome: Outcome, predictions: Path) -> Mapping[str, Interval]:
    """Of `msfl eval grounding`."""
    scores = grounding_result.PhraseScores.load(predictions)
    return grounding_result.intervals_of(scores, **bootstrap_options(outcome))


def classification(outcome: Outcome, predictions: Path) -> Mapping[str, Interval]:
    """Of `msfl finetune classification`."""
    found = finding_result.Predictions.load(predictions)
    return finding_result.summarise_findings(found, **bootstrap_options(outcome)).metrics


def segmentation(outcome: Outcome, predictions: Path) -> Mapping[str, Interval]:
    """Of `msfl finetune segmentation`."""
    found = mask_result.MaskPredictions.load(predictions)
    return mask_result.summarise(found.counts, found.patient_key, **bootstrap_options(outcome))


TASKS: dict[str, Recompute] = {
    zero_shot_result.TASK: zero_shot,
    retrieval_result.TASK: retrieval,
    "grounding": grounding,
    "classification": classification,
    "segmentation": segmentation,
}


def bootstrap_options(outcome: Outcome) -> dict[str, int]:
    """`seed` and `replicates` of the bootstrap, as the result was made with; where a model was trained, `seed` is that of the training."""
    options = outcome.options
    return {"seed": int(options.get("bootstrap_seed", options["seed"])), "replicates": int(options["replicates"])}


def check_results(workdir: Path) -> list[Check]:
    """Computes every result of a run directory again, in the order of their names.

    Raises:
      UserError: the directory has no results.
    """
    files = sorted((workdir / RESULTS).glob("*.json"))
    if not files:
        raise UserError(f"{workdir}: no {RESULTS}/*.json; expected a run directory in which `msfl eval` has been")
    return [check_result(workdir, file) for file in files]


def check_result(workdir: Path, file: Path) -> Check:
    """Computes one result again and says the first number that differs, or why there is none."""
    try:
        outcome = load_outcome(file)
        if outcome.task not in TASKS:
            return Check(file, None, f"not checked: nothing here computes '{outcome.task}' again")
        found = TASKS[outcome.task](outcome, outcome.predictions(workdir))
    except UserError as error:
        return Check(file, False, str(error))
    except (KeyError, ValueError, TypeError, IndexError) as error:
        return Check(file, False, f"predictions or options are damaged ({type(error).__name__})")
    return compare(file, outcome.metrics, found)


def compare(file: Path, saved: Mapping[str, Interval], found: Mapping[str, Interval]) -> Check:
    """Whether two sets of numbers are the same, up to rounding; undefined equals undefined."""
    if missing := sorted(saved.keys() ^ found.keys()):
        where = "the result" if missing[0] in saved else "its predictions"
        return Check(file, False, f"{len(missing)} metrics are in only one of both: '{missing[0]}' in {where}")
    apart = [
        name
        for name, interval in saved.items()
        if not np.allclose(interval, found[name], rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True)
    ]
    if apart:
        first = apart[0]
        said = f"{first} is {_triple(saved[first])}, from the predictions {_triple(found[first])}"
        return Check(file, False, f"{len(apart)} of {len(saved)} metrics differ: {said}")
    return Check(file, True, f"{len(saved)} metrics agree")


def _triple(interval: Interval) -> str:
    return f"{interval.value:.6g} ({interval.low:.6g} to {interval.high:.6g})"
