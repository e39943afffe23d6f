"""The reliability figure: one panel per defined finding, and a reason where there is none."""

import dataclasses

import numpy as np
import pytest

from input_pipeline.errors import UserError
from input_pipeline.images import decode_gray
from msfl_jax.results.calibration import save_reliability
from msfl_jax.tasks.finding_result import Predictions
from msfl_jax.tasks.zero_shot_result import summarise


@pytest.fixture(scope="module")
def predictions():
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 2, (40, 2)).astype(np.float32)
    return Predictions(("Pneumonia", "Edema"), truth + rng.normal(size=truth.shape), truth, np.arange(40))


def draw(predictions, file):
    save_reliability(summarise(predictions, rule="cosine", split="test", step=0, replicates=0), file)
    return decode_gray(file.read_bytes())


def test_each_defined_finding_has_a_panel(predictions, tmp_path):
    both = draw(predictions, tmp_path / "new" / "both.png")
    truth = predictions.truth.copy()
    truth[:, 1] = 1
    one = draw(dataclasses.replace(predictions, truth=truth), tmp_path / "one.png")
    assert both.shape[1] > 1.4 * one.shape[1]
    assert one.std() > 10


def test_nothing_to_draw_is_one_line(predictions, tmp_path):
    with pytest.raises(UserError, match="both positives and negatives"):
        draw(dataclasses.replace(predictions, truth=np.ones_like(predictions.truth)), tmp_path / "none.png")
