"""Label efficiency: what is averaged over which seeds, what is gained over random weights, and what the table and the plot show."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from input_pipeline.errors import UserError
from msfl_jax.commands.finetune import parse_fractions, sweep_config
from msfl_jax.metrics import Interval
from msfl_jax.results import pooling
from msfl_jax.results.label_efficiency import (
    Cell,
    advantages,
    classification_table,
    label_efficiency,
    label_efficiency_table,
    save_label_efficiency,
)
from msfl_jax.results.own_results import Result
from msfl_jax.results.pooling import pooled_interval
from msfl_jax.tasks.finding_result import Predictions
from msfl_jax.tasks.outcome import Outcome


def outcome(init, fraction, seed, value, task="classification", findings=1):
    options = {"init": init, "mode": "full", "fraction": fraction, "seed": seed, "findings_in_mean": findings}
    variant = f"{init}-full-{fraction}-seed{seed}"
    metrics = {
        "mean_auc": Interval(value, value - 0.1, value + 0.1),
        "auc/Edema": Interval(value, value - 0.1, value + 0.1),
        "auc/Mass": Interval(np.nan, np.nan, np.nan),
    }
    reasons = {"auc/Mass": "no positives"}
    return Outcome(task, "nih", "test", "", variant, options, 9, 20, 12, metrics, reasons)


def result(one: Outcome, workdir: Path = Path("nowhere")) -> Result:
    return Result(workdir, one, "demo", "global", "same", int(one.options["seed"]))


RESULTS = [
    result(one)
    for one in (
        outcome("random", 100, 0, 0.8),
        outcome("pretrained", 100, 0, 0.85),
        outcome("pretrained", 1, 0, 0.70),
        outcome("pretrained", 1, 1, 0.74),
        outcome("pretrained", 1, 0, 0.1, task="zero_shot"),
    )
]
PATIENTS = np.asarray([5, 5, 2, 8, 2, 1, 8, 8, 3, 4], np.uint32)
TRUTH = np.asarray([1, 0, 1, 0, 1, 0, 0, 1, 1, 0], np.float32)[:, None]


@pytest.fixture
def scored(tmp_path):
    """A result of one seed with its predictions; the higher the strength, the more the scores tell."""

    def save(init, fraction, seed, strength):
        rng = np.random.default_rng([fraction, seed, len(init)])
        scores = (strength * TRUTH + rng.normal(size=TRUTH.shape)).astype(np.float32)
        one = result(outcome(init, fraction, seed, roc_auc_score(TRUTH[:, 0], scores[:, 0])), tmp_path / init)
        Predictions(("Edema",), scores, TRUTH, PATIENTS).save(one.outcome.predictions(one.workdir))
        return one, scores[:, 0]

    return save


def test_cells_hold_the_seeds_of_one_initialisation_and_fraction():
    cells = label_efficiency(RESULTS)
    found = [(cell.init, cell.fraction, cell.aucs) for cell in cells]
    assert found == [("pretrained", 1, (0.7, 0.74)), ("pretrained", 100, (0.85,)), ("random", 100, (0.8,))]
    assert cells[0].numbers["value"] == pytest.approx(0.72)
    assert cells[0].numbers["spread"] == pytest.approx(np.std([0.7, 0.74], ddof=1))


def test_the_table_shows_mean_deviation_and_how_many_seeds_and_a_dash_for_what_was_not_run():
    lines = label_efficiency_table(label_efficiency(RESULTS)).splitlines()
    assert lines[0].split() == ["1", "%", "100", "%"]
    assert lines[1].split("   ")[1:] == ["0.720 ± 0.028 (2 seeds)", "0.850 (0.750 - 0.950)"]
    assert lines[2].split() == ["random,", "full", "-", "0.800", "(0.700", "-", "0.900)"]


def test_the_interval_of_several_seeds_is_that_of_their_predictions_together(scored):
    (first, _), (second, _) = (scored("pretrained", 1, seed, 1.0) for seed in (0, 1))
    (cell,) = label_efficiency([first, second], pooled_interval)
    assert cell.pooled == pooled_interval([first, second], "mean_auc")
    low, high = (f"{cell.pooled[side]:.3f}" for side in (1, 2))
    assert f"(2 seeds, {low} - {high})" in label_efficiency_table([cell])


def loop_gain(pairs, replicates):
    """Mean over seeds of the difference in AUC, by scikit-learn on every resample of the patients."""
    order = list(dict.fromkeys(PATIENTS.tolist()))  # as they first appear
    truth, rng = TRUTH[:, 0], np.random.default_rng(0)

    def gain(rows):
        if not 0 < truth[rows].sum() < len(rows):
            return np.nan
        return np.mean([np.subtract(*(roc_auc_score(truth[rows], side[rows]) for side in pair)) for pair in pairs])

    drawn = []
    for _ in range(replicates):
        chosen = [order[one] for one in rng.integers(0, len(order), size=len(order))]
        drawn.append(gain(np.concatenate([np.flatnonzero(patient == PATIENTS) for patient in chosen])))
    return gain(np.arange(len(truth))), *np.nanquantile(drawn, [0.025, 0.975])


def test_the_gain_over_random_weights_is_that_of_a_loop_over_patients(scored, monkeypatch):
    """Of the seeds that both have, one line for each percentage; a third seed of one side, and what has no counterpart, count in none."""
    pretrained = [scored("pretrained", 1, seed, 1.5) for seed in range(3)]
    random = [scored("random", 1, seed, 0.2) for seed in range(2)]
    alone = [scored("pretrained", 10, 0, 1.0), scored("imported", 100, 0, 1.0), scored("random", 100, 0, 1.0)]
    monkeypatch.setattr(pooling, "REPLICATES", 200)
    found = advantages([one for one, _ in (*random, *pretrained, *alone)])
    assert [(one.init, one.fraction, one.seeds) for one in found] == [("pretrained", 1, 2), ("imported", 100, 1)]
    pairs = [(ours[1], base[1]) for ours, base in zip(pretrained, random, strict=False)]
    expected = loop_gain(pairs, 200)
    np.testing.assert_allclose(found[0].gain, expected, rtol=1e-9)
    said = str(found[0])
    assert said.startswith(f"pretrained - random, full, 1 %: mean AUC {expected[0]:.3f}, 95 % interval")
    assert said.endswith("(2 seeds, 20 images of 12 patients, paired)")
    assert ("leaves out 0" in said) == (expected[1] > 0)


def test_a_gain_without_predictions_is_named_as_not_compared():
    (one,) = advantages(RESULTS)
    assert str(one).startswith("pretrained - random, full, 100 %: not compared; ")


def test_means_over_different_numbers_of_findings_say_so_in_each_cell():
    all_of_one = label_efficiency_table(label_efficiency(RESULTS))
    assert "findings" not in all_of_one, "one number for all stands above the table"
    fewer = result(outcome("random", 1, 0, 0.6, findings=2))
    mixed = result(outcome("random", 1, 1, 0.6, findings=1))
    lines = label_efficiency_table(label_efficiency([*RESULTS, fewer, mixed])).splitlines()
    assert "(2 seeds), mean of 1 of 2 findings   0.850" in lines[1]
    assert "(2 seeds), mean of 1 to 2 of 2 findings   0.800" in lines[2]


def test_the_table_of_a_run_says_why_a_number_is_missing():
    text = classification_table(RESULTS[0].outcome)
    assert "20 images of 12 patients" in text
    assert "n/a: no positives" in text
    assert "mean of 1" in text


def test_the_plot_shows_intervals_and_leaves_out_what_is_undefined(tmp_path):
    def drawn(pooled):
        cells = [Cell("pretrained", "full", part, (0.7, 0.74), pooled) for part in (1, 100)]
        cells.append(Cell("random", "full", 1, (float("nan"),)))
        save_label_efficiency(cells, tmp_path / "figures" / "plot.png", title="nih, test")
        return cv2.imread(str(tmp_path / "figures" / "plot.png"))

    image = drawn(None)
    assert image.shape[1] > 600
    assert image.std() > 5
    tall = drawn(Interval(0.72, 0.3, 0.95))
    reddish = [(one[..., 2].astype(int) - one[..., 1] > 40).any(axis=1).sum() for one in (image, tall)]
    assert reddish[1] > 1.5 * reddish[0], "bars from 0.3 to 0.95 span most of the axis"


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
