"""Controls, probabilities and calibration of zero-shot predictions against scikit-learn and loops, and their way to disk and back."""

import dataclasses
import json

import numpy as np
import pytest
from numpy.testing import assert_allclose
from sklearn.metrics import roc_auc_score

from msfl_jax.metrics import calibration_error
from msfl_jax.tasks.finding_result import Predictions
from msfl_jax.tasks.outcome import load_outcome, save_outcome
from msfl_jax.tasks.prompts import Prompts
from msfl_jax.tasks.zero_shot import evaluate_zero_shot
from msfl_jax.tasks.zero_shot_result import describe, probabilities, summarise

SAMPLES, NAMES = 60, ("a", "b", "c")


@pytest.fixture(scope="module")
def predictions():
    """Scores that follow the truth, which is unknown here and there; patients have two images each."""
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 2, (SAMPLES, 3)).astype(np.float32)
    scores = (0.1 * truth + rng.normal(scale=0.1, size=truth.shape)).astype(np.float32)
    truth[::7, 1] = np.nan
    return Predictions(NAMES, scores, truth, np.repeat(np.arange(SAMPLES // 2), 2))


def known_auc(truth, scores):
    known = ~np.isnan(truth)
    return roc_auc_score(truth[known], scores[known])


def summary(predictions, rule="cosine", **options):
    return summarise(predictions, rule=rule, split="test", step=7, **({"replicates": 20} | options))


def test_swapped_prompts_score_each_finding_with_the_next_ones(predictions):
    expected = [known_auc(predictions.truth[:, c], predictions.scores[:, (c + 1) % 3]) for c in range(3)]
    assert_allclose(summary(predictions).swapped.value, np.mean(expected), rtol=1e-12)


def test_exchanged_sides_give_one_minus_the_auc_unless_the_rule_says_otherwise(predictions):
    result = summary(predictions)
    assert_allclose(result.exchanged.value, 1 - result.mean.value, rtol=1e-12)
    other = dataclasses.replace(predictions, exchanged=predictions.scores * np.asarray([1, -1, 1], np.float32))
    expected = [known_auc(predictions.truth[:, c], other.exchanged[:, c]) for c in range(3)]
    assert_allclose(summary(other).exchanged.value, np.mean(expected), rtol=1e-12)


def test_probabilities_are_softmaxes_of_positive_and_negative():
    positive, negative = np.asarray([0.3, -0.2]), np.asarray([0.1, 0.5])
    for rule, temperature in (("cosine", 0.07), ("gloria", 0.5), ("maco", 1.0)):
        both = np.exp(np.stack([positive, negative]) / temperature)
        found = probabilities((positive - negative), rule, 0.07 if rule == "maco" else temperature)
        assert_allclose(found, both[0] / both.sum(axis=0), rtol=1e-12)
    assert_allclose(probabilities(positive, "chexzero", 0.07), positive)
    assert_allclose(probabilities(np.asarray([1.0]), "maco"), [0.731059], atol=5e-7)  # the softmax of (2, 1)


def test_temperature_changes_the_calibration_and_no_auc(predictions):
    cold, warm = summary(predictions, temperature=0.05), summary(predictions, temperature=5.0)
    assert cold.auc == warm.auc
    for result, temperature in ((cold, 0.05), (warm, 5.0)):
        expected = [
            calibration_error(
                1 / (1 + np.exp(-predictions.scores[:, c].astype(np.float64) / temperature)), predictions.truth[:, c]
            )
            for c in range(3)
        ]
        assert_allclose([finding.ece.value for finding in result.findings], expected, rtol=1e-12)
        assert_allclose(result.mean_ece.value, np.mean(expected), rtol=1e-12)
    assert cold.mean_ece.value != warm.mean_ece.value
    assert cold.mean_ece_equal_mass != cold.mean_ece


def test_the_result_on_disk_has_every_number_and_a_reason_for_each_that_is_undefined(
    predictions, labelled_build, tmp_path
):
    truth = predictions.truth.copy()
    truth[:, 2] = 0
    result = summary(dataclasses.replace(predictions, truth=truth))
    outcome = describe(result, labelled_build, options={"seed": 0, "replicates": 20}, caveats=("said",))
    found = load_outcome(save_outcome(outcome, tmp_path))
    assert (found.task, found.dataset, found.variant) == ("zero_shot", "planted", "cosine")
    assert (found.records, found.patients, found.caveats) == (SAMPLES, SAMPLES // 2, ("said",))
    assert found.options["findings_in_mean"] == 2
    undefined = {name for name, interval in found.metrics.items() if np.isnan(interval.value)}
    assert undefined == found.reasons.keys() == {"auc/c", "ece/c"}
    assert set(found.reasons.values()) == {"no positives"}
    assert found.metrics.keys() == {
        *("mean_auc", "mean_auc_shuffled_images", "mean_auc_swapped_prompts", "mean_auc_exchanged_sides"),
        *("mean_ece", "mean_ece_equal_mass"),
        *(f"{metric}/{name}" for metric in ("auc", "ece") for name in NAMES),
    }


def test_without_any_defined_finding_the_means_say_so(predictions, labelled_build):
    result = summary(dataclasses.replace(predictions, truth=np.zeros_like(predictions.truth)))
    outcome = describe(result, labelled_build, options={})
    assert all(np.isnan(interval.value) for interval in outcome.metrics.values())
    assert outcome.reasons.keys() == outcome.metrics.keys()
    assert outcome.reasons["mean_auc"] == "no finding has an AUC"


@pytest.mark.parametrize("given", [True, False])
def test_exchanged_scores_are_saved_where_there_are_any(predictions, tmp_path, given):
    saved = dataclasses.replace(predictions, exchanged=predictions.scores + 1 if given else None)
    saved.save(tmp_path / "p.npz")
    assert summary(Predictions.load(tmp_path / "p.npz")).metrics == summary(saved).metrics


def test_the_local_half_of_gloria_is_exchanged_as_well(planted_run, labelled_build):
    prompts = {"Pneumonia": Prompts(("Pneumonia is seen.",), ("No pneumonia.",))}
    result = evaluate_zero_shot(planted_run, labelled_build, "test", prompts=prompts, rule="gloria", replicates=0)
    # The planted model's sentences have no negation: both prompts lie as near to the regions, and only the global half turns round.
    own, exchanged = result.predictions.scores, result.predictions.exchanged
    local = 0.5 * (own + exchanged)
    assert_allclose(own - local, local - exchanged, atol=1e-6)
    assert local.std() > 0.01
    assert result.temperature == pytest.approx(0.1)
    assert json.dumps(result.metrics)
