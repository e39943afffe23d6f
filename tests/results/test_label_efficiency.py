"""Label efficiency: what is averaged over which seeds, and what the table and the plot show."""

import cv2
import numpy as np
import pytest

from input_pipeline.errors import UserError
from msfl_jax.commands.finetune import parse_fractions, sweep_config
from msfl_jax.metrics import Interval
from msfl_jax.results.label_efficiency import (
    classification_table,
    label_efficiency,
    label_efficiency_table,
    save_label_efficiency,
)
from msfl_jax.tasks.outcome import Outcome


def outcome(init, fraction, seed, value, task="classification"):
    options = {"init": init, "mode": "full", "fraction": fraction, "seed": seed, "findings_in_mean": 1}
    variant = f"{init}-full-{fraction}-seed{seed}"
    metrics = {
        "mean_auc": Interval(value, value - 0.1, value + 0.1),
        "auc/Edema": Interval(value, value - 0.1, value + 0.1),
        "auc/Mass": Interval(np.nan, np.nan, np.nan),
    }
    reasons = {"auc/Mass": "no positives"}
    return Outcome(task, "nih", "test", "", variant, options, 9, 20, 12, metrics, reasons)


OUTCOMES = [
    outcome("random", 100, 0, 0.8),
    outcome("pretrained", 100, 0, 0.85),
    outcome("pretrained", 1, 0, 0.70),
    outcome("pretrained", 1, 1, 0.74),
    outcome("pretrained", 1, 0, 0.1, task="zero_shot"),
]


def test_cells_hold_the_seeds_of_one_initialisation_and_fraction():
    cells = label_efficiency(OUTCOMES)
    found = [(cell.init, cell.fraction, cell.aucs) for cell in cells]
    assert found == [("pretrained", 1, (0.7, 0.74)), ("pretrained", 100, (0.85,)), ("random", 100, (0.8,))]
    assert cells[0].mean == pytest.approx(0.72)
    assert cells[0].spread == pytest.approx(np.std([0.7, 0.74], ddof=1))


def test_the_table_shows_mean_deviation_and_how_many_seeds_and_a_dash_for_what_was_not_run():
    lines = label_efficiency_table(label_efficiency(OUTCOMES)).splitlines()
    assert lines[0].split() == ["1", "%", "100", "%"]
    assert lines[1].split() == ["pretrained,", "full", "0.720", "±", "0.028", "(2)", "0.850", "(1)"]
    assert lines[2].split() == ["random,", "full", "-", "0.800", "(1)"]


def test_the_table_of_a_run_says_why_a_number_is_missing():
    text = classification_table(OUTCOMES[0])
    assert "20 images of 12 patients" in text
    assert "n/a: no positives" in text
    assert "mean of 1" in text


def test_the_plot_is_a_picture(tmp_path):
    save_label_efficiency(label_efficiency(OUTCOMES), tmp_path / "figures" / "plot.png", title="nih, test")
    image = cv2.imread(str(tmp_path / "figures" / "plot.png"))
    assert image.shape[1] > 600
    assert image.std() > 5


def test_fractions_and_cells_of_a_sweep():
    assert parse_fractions("1, 10,100") == (1, 10, 100)
    for text in ("", "1.5", "0", "101", "a"):
        with pytest.raises(UserError, match="whole percentages"):
            parse_fractions(text)
    config = sweep_config("finetune_nih:mrm", ["--config.train.log_every=7"], 1, 3, "random")
    assert (config.data.fraction, config.seed, config.encoder.init) == (1, 3, "random")
    assert (config.optimizer.peak_rate, config.train.log_every) == (3e-2, 7)
    with pytest.raises(UserError, match="no initialisation 'imagenet'"):
        sweep_config("finetune_nih", [], 1, 0, "imagenet")
