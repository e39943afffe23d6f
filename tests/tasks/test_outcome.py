"""Results on disk: what was saved is what is read, and nothing else is read."""

import json
import math

import numpy as np
import pytest

from input_pipeline.errors import UserError
from msfl_jax.metrics import Interval
from msfl_jax.tasks.outcome import Outcome, load_outcome, load_outcomes, save_outcome

NAN = math.nan


def outcome(**changes) -> Outcome:
    values = {
        "task": "zero_shot",
        "dataset": "rsna_pneumonia",
        "split": "test",
        "split_hash": "ab12",
        "variant": "cosine",
        "options": {"rule": "cosine", "seed": 0},
        "step": 40,
        "records": 9,
        "patients": 7,
        "metrics": {"mean_auc": Interval(0.8, 0.7, 0.9), "auc/Hernia": Interval(NAN, NAN, NAN)},
        "reasons": {"auc/Hernia": "no positives"},
        "caveats": ("splits overlap (allowed)",),
    }
    return Outcome(**values | changes)


def test_a_result_is_read_as_it_was_saved_and_undefined_numbers_are_null(tmp_path):
    file = save_outcome(outcome(), tmp_path)
    assert file == tmp_path / "results" / "zero_shot-rsna_pneumonia-test-cosine.json"
    assert outcome().predictions(tmp_path) == tmp_path / "predictions" / "zero_shot-rsna_pneumonia-test-cosine.npz"
    found = load_outcome(file)
    np.testing.assert_equal(found.metrics, outcome().metrics)
    assert found == outcome(metrics=found.metrics)
    assert json.loads(file.read_text())["metrics"]["auc/Hernia"] == [None, None, None]


def test_a_later_step_replaces_the_result_and_another_variant_stands_beside_it(tmp_path):
    for one in (outcome(), outcome(step=80), outcome(variant="maco")):
        save_outcome(one, tmp_path)
    found = load_outcomes([tmp_path, tmp_path / "nothing_here"])
    assert [(one.variant, one.step) for _, one in found] == [("cosine", 80), ("maco", 40)]
    assert {workdir for workdir, _ in found} == {tmp_path}
    assert not list(tmp_path.rglob("*.partial"))


def test_a_result_of_other_images_is_not_replaced_and_predictions_have_its_name(tmp_path):
    first, other = outcome(), outcome(split_hash="cd34ef567890", options={"rule": "cosine", "seed": 1})
    for one in (first, other, outcome(step=80), other):
        one.predictions(tmp_path).parent.mkdir(exist_ok=True)
        one.predictions(tmp_path).write_text(one.split_hash)
        save_outcome(one, tmp_path)
    names = ["zero_shot-rsna_pneumonia-test-cosine", "zero_shot-rsna_pneumonia-test-cosine-cd34ef"]
    assert sorted(file.stem for file in (tmp_path / "results").iterdir()) == names
    found = sorted((one for _, one in load_outcomes([tmp_path])), key=lambda one: one.name)
    assert [(one.name, one.split_hash, one.step) for one in found] == [
        (names[0], "ab12", 80),
        (names[1], "cd34ef567890", 40),
    ]
    assert [one.predictions(tmp_path).read_text() for one in found] == ["ab12", "cd34ef567890"]
    assert save_outcome(found[1], tmp_path).stem == names[1], "a result that was read goes back to its own file"


def test_a_result_without_a_variant_gets_the_hash_alone(tmp_path):
    save_outcome(outcome(variant=""), tmp_path)
    file = save_outcome(outcome(variant="", split_hash="cd34ef567890"), tmp_path)
    assert file.stem == "zero_shot-rsna_pneumonia-test-cd34ef"


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"metrics": 3}', '{"metrics": {}, "caveats": []}'])
def test_another_file_is_refused_in_one_line(tmp_path, text):
    (tmp_path / "other.json").write_text(text)
    with pytest.raises(UserError, match="no result") as error:
        load_outcome(tmp_path / "other.json")
    assert "\n" not in str(error.value)
