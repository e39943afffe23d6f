"""Results computed again from their predictions: untouched ones agree, anything else is named, and JAX is not needed."""

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest

from input_pipeline.errors import DataError, UserError
from msfl_jax.commands.again import again_report
from msfl_jax.metrics import Interval
from msfl_jax.tasks import grounding_result, retrieval_result, zero_shot_result
from msfl_jax.tasks.finding_result import Predictions
from msfl_jax.tasks.grounding_result import PhraseScores
from msfl_jax.tasks.outcome import Outcome, load_outcome, save_outcome
from msfl_jax.tasks.predictions import load_arrays, save_arrays
from msfl_jax.tasks.recompute import check_results
from msfl_jax.tasks.retrieval_result import Ranks

SAMPLES = 30
CHOSEN = {"seed": 3, "replicates": 25}
PATIENTS = np.arange(SAMPLES) // 2


def zero_shot():
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 2, (SAMPLES, 2)).astype(np.float32)
    truth[:, 1] = 0  # undefined
    scores = (truth + rng.normal(size=truth.shape)).astype(np.float32)
    predictions = Predictions(("Edema", "Hernia"), scores, truth, PATIENTS, exchanged=scores / 3)
    result = zero_shot_result.summarise(predictions, rule="gloria", split="test", step=4, temperature=0.2, **CHOSEN)
    return result.metrics, {"rule": "gloria", "temperature": 0.2}, predictions


def retrieval():
    rng = np.random.default_rng(1)
    own, shuffled = (rng.integers(1, 9, (SAMPLES, 2)) for _ in range(2))
    ranks = Ranks(own, shuffled, np.asarray([20, SAMPLES]), rng.integers(1, 3, SAMPLES), PATIENTS)
    return retrieval_result.summarise(ranks, split="test", step=4, **CHOSEN).metrics, {}, ranks


def grounding():
    rng = np.random.default_rng(2)
    arrays = {
        "values": rng.normal(size=(SAMPLES, 2, len(grounding_result.COLUMNS))).astype(np.float32),
        "unpredicted": np.zeros((SAMPLES, 2), np.int64),
        "box_share": np.full(SAMPLES, 0.1, np.float32),
        "category": np.asarray(["Edema", "Pneumonia"] * (SAMPLES // 2)),
        "maps": np.zeros((SAMPLES, 2, 2, 2), np.float32),
    }
    scores = PhraseScores(**arrays, patient_key=PATIENTS, image_key=PATIENTS, phrase_key=PATIENTS)
    return grounding_result.intervals_of(scores, **CHOSEN), {"protocol": "biovil"}, scores


def save(workdir, task, made):
    metrics, options, predictions = made
    sizes = {"step": 4, "records": SAMPLES, "patients": SAMPLES // 2}
    outcome = Outcome(task, "planted", "test", "ab", "", options | CHOSEN, metrics=metrics, **sizes)
    predictions.save(outcome.predictions(workdir))
    return save_outcome(outcome, workdir)


@pytest.fixture
def workdir(tmp_path):
    for task, made in (("zero_shot", zero_shot()), ("retrieval", retrieval()), ("grounding", grounding())):
        save(tmp_path, task, made)
    return tmp_path


def test_untouched_results_agree_and_a_task_without_a_way_is_said_and_not_blamed(workdir):
    checks = check_results(workdir)
    assert [(check.file.stem.split("-")[0], check.agrees) for check in checks] == [
        ("grounding", True),
        ("retrieval", True),
        ("zero_shot", True),
    ]
    save(workdir, "divination", retrieval())
    lines = again_report(workdir).splitlines()
    assert len(lines) == 4
    assert "not checked: nothing here computes 'divination' again" in lines[0]
    assert all(" agrees " in line for line in lines[1:])


@pytest.mark.parametrize("task", ["zero_shot", "retrieval", "grounding"])
def test_one_changed_number_is_named(workdir, capsys, task):
    file = workdir / "results" / f"{task}-planted-test.json"
    outcome = load_outcome(file)
    name, interval = next(iter(outcome.metrics.items()))
    changed = dict(outcome.metrics) | {name: interval._replace(low=interval.low - 1e-6)}
    save_outcome(dataclasses.replace(outcome, metrics=changed), workdir)
    with pytest.raises(DataError, match="1 of 3 results do not follow") as error:
        again_report(workdir)
    assert error.value.exit_code == 3
    printed = capsys.readouterr().out
    assert printed.count("DIFFERS") == 1
    assert f"1 of {len(changed)} metrics differ: {name} is" in printed


def test_predictions_of_other_images_options_of_another_run_and_missing_files_are_named(workdir):
    file = workdir / "predictions" / "zero_shot-planted-test.npz"
    arrays = load_arrays(file)
    save_arrays(file, **arrays | {"scores": arrays["scores"][::-1]})
    result = workdir / "results" / "retrieval-planted-test.json"
    values = json.loads(result.read_text())
    result.write_text(json.dumps(values | {"options": {}}))
    (workdir / "predictions" / "grounding-planted-test.npz").unlink()
    said = {check.file.stem.split("-")[0]: check.said for check in check_results(workdir)}
    assert "metrics differ" in said["zero_shot"]
    assert said["retrieval"] == "predictions or options are damaged (KeyError)"
    assert "no predictions" in said["grounding"]


def test_an_undefined_number_that_became_one_and_a_metric_too_many_are_named(workdir):
    for name, value, words in (
        ("auc/Hernia", 0.5, "auc/Hernia is 0.5 (nan to nan), from the predictions nan"),
        ("auc/Zebra", 0.5, "'auc/Zebra' in the result"),
    ):
        file = save(workdir, "zero_shot", zero_shot())
        outcome = load_outcome(file)
        metrics = dict(outcome.metrics) | {name: Interval(value, np.nan, np.nan)}
        save_outcome(dataclasses.replace(outcome, metrics=metrics), workdir)
        assert words in check_results(workdir)[-1].said


def test_a_directory_without_results_is_one_line(tmp_path):
    with pytest.raises(UserError, match="no results"):
        again_report(tmp_path)


def test_it_runs_without_jax(workdir):
    script = (
        "import sys; from pathlib import Path; from msfl_jax.commands.again import again_report; "
        f"print(again_report(Path({str(workdir)!r})).count(' agrees ')); "
        "print(sorted({'jax', 'flax', 'optax', 'tensorflow', 'torch'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert found.stdout.split("\n")[:2] == ["3", "[]"]
