"""The numbers and the figure of an ablation, from results on disk."""

import dataclasses
import itertools
import json
import math

import cv2
import numpy as np
import pytest

from msfl_jax.metrics import Interval
from msfl_jax.results.ablation import (
    Combination,
    Measure,
    Wanted,
    as_json,
    gains_of_local,
    measure_combinations,
    measured_by,
    remembering_pool,
)
from msfl_jax.results.ablation_figure import save_ablation
from msfl_jax.results.own_results import ALL_COMBINATIONS, find_results
from msfl_jax.results.published import load_published
from msfl_jax.tasks.grounding_result import COLUMNS, PhraseScores

TABLE = load_published()[5]
PHRASES = 6


def grounded(workdir, outcome, cnr):
    keys = np.arange(PHRASES, dtype=np.uint32)
    values = np.full((PHRASES, 2, len(COLUMNS)), 0.5, np.float32)
    values[:, 0, COLUMNS.index("cnr")] = cnr
    scores = PhraseScores(
        values=values,
        unpredicted=np.zeros((PHRASES, 2), np.int32),
        box_share=np.full(PHRASES, 0.1, np.float32),
        category=np.full(PHRASES, "Edema"),
        patient_key=keys // 2,
        image_key=keys,
        phrase_key=keys,
        maps=np.zeros((PHRASES, 2, 2, 2), np.float32),
    )
    scores.save(outcome.predictions(workdir))


@pytest.fixture
def results(run_directory, save):
    """Global alone with three seeds, global and local with two of them; CNR 0.1 * seed, and 1 more with local alignment."""
    for objectives, seed in [("global", 0), ("global", 1), ("global", 2), ("global,local", 0), ("global,local", 1)]:
        run = run_directory(f"{objectives}-{seed}", objectives, seed=seed)
        cnr = 0.1 * seed + (objectives != "global") + 0.01 * np.arange(PHRASES)
        metrics = {"cnr": (float(cnr.mean()), 0.0, 2.0), "pointing_game": (0.5, 0.4, 0.6)}
        outcome = save(run, "grounding", "ms_cxr", metrics, records=PHRASES, patients=3)
        grounded(run, outcome, cnr)
        save(run, "zero_shot", "mimic_cxr", {"mean_auc": (0.7 + seed / 100, 0.6, 0.8)})
    return find_results([run.parent])


def test_combinations_are_the_eight_with_global_alignment():
    expected = {
        ",".join(["global", *others])
        for count in range(4)
        for others in itertools.combinations(("local", "instance", "modality"), count)
    }
    assert set(ALL_COMBINATIONS) == expected
    assert ALL_COMBINATIONS[:3] == ("global", "global,local", "global,instance")
    assert ALL_COMBINATIONS[-1] == "global,local,instance,modality"


def test_results_of_another_split_other_images_or_another_initialisation_are_no_part_of_the_ablation(
    run_directory, save
):
    run = run_directory("run", "global")
    (run / "scratch").mkdir()
    tuned = {"init": "pretrained", "fraction": 1}
    for split, members, init in (
        *(("test", "aa", "pretrained"), ("validate", "bb", "pretrained")),
        *(("test", "cc", "pretrained"), ("test", "aa", "random")),
    ):
        options = tuned | {"init": init, "seed": 0}
        name = f"{split}-{members}-{init}"
        metrics = {"mean_auc": (0.7 if name == "test-aa-pretrained" else 0.9, 0.6, 0.95)}
        place = run / "scratch" if init == "random" else run
        save(
            place,
            "classification",
            "mimic_cxr",
            metrics,
            split=split,
            split_hash=members,
            options=options,
            variant=name,
        )
    found = measured_by(find_results([run]), {"classification": Wanted("test", "aa", tuned)})
    assert [one.outcome.variant for one in found] == ["test-aa-pretrained"]
    (row,) = measure_combinations(TABLE, find_results([run / "scratch"]), remembering_pool())
    assert row.measures[0].values == (), "table 5 shows pretrained encoders alone"


def test_every_measure_has_its_seeds_and_their_mean(results):
    rows = measure_combinations(TABLE, results, remembering_pool())
    assert [(row.objectives, row.seeds) for row in rows] == [("global", (0, 1, 2)), ("global,local", (0, 1))]
    tuned, zero_shot, cnr, pointing = rows[0].measures
    assert tuned.values == ()
    assert math.isnan(tuned.mean.value)
    assert zero_shot.values == pytest.approx((70, 71, 72))
    assert zero_shot.mean.value == pytest.approx(71)
    assert math.isnan(zero_shot.mean.low), "no predictions, no interval"
    assert cnr.mean.value == pytest.approx(0.125)
    assert cnr.mean.low < 0.125 < cnr.mean.high
    assert pointing.mean == pytest.approx((0.5, 0.5, 0.5))


def test_the_gain_of_local_alignment_is_taken_over_the_seeds_that_both_have(results):
    (gain,) = gains_of_local(TABLE, results)
    assert (gain.combination, gain.base, gain.seeds) == ("global,local", "global", (0, 1))
    assert gain.gain == pytest.approx((1, 1, 1), abs=1e-6)
    assert str(gain) == (
        "global + local over global: CNR 1.00 higher, 95 % interval 1.00 - 1.00, which leaves out 0 "
        "(2 seeds, 6 phrases of 3 patients, paired)"
    )
    assert "(1 seed, 6 phrases" in str(dataclasses.replace(gain, seeds=(0,)))


def test_undefined_numbers_are_null_in_json(results):
    rows = as_json(measure_combinations(TABLE, results, remembering_pool()))
    text = json.dumps(rows, allow_nan=False)
    assert json.loads(text)[0]["measures"][0] == {
        "column": "fine-tuned, 1 %",
        "values": [],
        "mean": {"value": None, "low": None, "high": None},
    }


def test_intervals_are_computed_once(results, monkeypatch):
    calls = []
    monkeypatch.setattr("msfl_jax.results.ablation.pooled_interval", lambda stack, metric: calls.append(metric))
    pool = remembering_pool()
    stack = [one for one in results if one.outcome.task == "grounding"]
    assert pool(stack, "cnr") is pool(stack, "cnr") is None
    pool(stack[:1], "cnr")
    assert calls == ["cnr", "cnr"]


def test_the_figure_shows_local_alignment_in_red_and_leaves_out_what_nobody_measured(tmp_path):
    def row(objectives, values):
        none = Measure("fine-tuned, 1 %", (), Interval(math.nan, math.nan, math.nan))
        return Combination(objectives, (0, 1), (none, Measure("CNR", values, Interval(sum(values) / 2, *values))))

    save_ablation([row("global", (0.1, 0.2)), row("global,local", (1.4, 1.6))], tmp_path / "made" / "a.png")
    image = cv2.imread(str(tmp_path / "made" / "a.png"))
    assert image is not None
    red = (image[..., 2] > 150) & (image[..., 1] < 90)
    columns, rows = np.flatnonzero(red.any(axis=0)), np.flatnonzero(red.any(axis=1))
    assert columns.min() > image.shape[1] / 2, "the higher values, to the right"
    assert rows.min() > image.shape[0] / 2, "the second row"
    assert image.shape[1] < 1000, "one panel"
    with pytest.raises(ValueError, match="no measure"):
        save_ablation([], tmp_path / "b.png")
