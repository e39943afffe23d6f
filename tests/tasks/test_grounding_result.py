"""What is undefined, what is saved, and that all of it follows from saved predictions without JAX."""

import dataclasses
import math
import subprocess
import sys

import numpy as np
import pytest

from input_pipeline.errors import DataError, UserError
from input_pipeline.loader import grounding_records
from msfl_jax.commands.evaluate import grounding_report
from msfl_jax.metrics import mean_iou, normalise_heatmap
from msfl_jax.results.tables import grounding_table
from msfl_jax.tasks import grounding
from msfl_jax.tasks.grounding import evaluate_grounding
from msfl_jax.tasks.grounding_protocol import known_protocol
from msfl_jax.tasks.grounding_result import COLUMNS, METRICS, PhraseScores, intervals_of, outcome_of, summarise
from msfl_jax.tasks.outcome import load_outcomes


def scores_of(cnr, iou, categories, *, unpredicted=0):
    """Phrases of as many patients with the given CNR and IoU at every threshold."""
    count, keys = len(cnr), np.arange(len(cnr), dtype=np.uint32)
    values = np.zeros((count, 2, len(COLUMNS)), np.float32)
    values[:, 0, 0], values[:, 0, 1] = cnr, np.abs(cnr)
    values[:, 0, 2] = iou
    values[:, 0, 4:] = np.asarray(iou)[:, None]
    empty = np.zeros((count, 2), np.uint8)
    empty[:unpredicted, 0] = 3
    maps = np.zeros((count, 2, 2, 2), np.float32)
    share = np.full(count, 0.1, np.float32)
    return PhraseScores(values, empty, share, np.asarray(categories), keys, keys, keys, maps)


def test_phrases_without_a_metric_are_left_out_of_both_averages_and_counted():
    scores = scores_of([1.0, math.nan, 4.0], [0.2, math.nan, 0.6], ["a", "a", "b"], unpredicted=1)
    result = summarise(scores, protocol="biovil/raw", split="test", step=1, replicates=0)
    assert result.metrics["cnr"].value == 2.5
    assert result.category_average["cnr"].value == 2.5
    assert math.isclose(result.metrics["iou_0.3"].value, 0.4, rel_tol=1e-6)
    assert {name: result.undefined[name] for name in METRICS} == {
        "cnr": 1,
        "absolute_cnr": 1,
        "miou": 1,
        "pointing_game": 0,
    }
    assert result.unpredicted == 1
    text = grounding_table(result)
    assert "nothing exceeds a threshold in 1 of 3 phrases" in text
    outcome = outcome_of(result, dataset="d", split_hash="h", variant="v", options={}, caveats=("said before",))
    assert outcome.caveats == (
        "said before",
        "cnr is undefined for 1 of 3 phrases",
        "absolute_cnr is undefined for 1 of 3 phrases",
        "miou is undefined for 1 of 3 phrases",
    )


def test_a_category_without_a_metric_leaves_the_mean_of_categories_to_the_others_and_says_why():
    scores = scores_of([1.0, 3.0, math.nan], [0.1, 0.3, math.nan], ["a", "a", "b"])
    result = summarise(scores, protocol="biovil/minmax", split="test", step=1, replicates=0)
    assert result.category_average["cnr"].value == 2.0
    outcome = outcome_of(result, dataset="d", split_hash="h", variant="v", options={})
    assert outcome.reasons == dict.fromkeys(("b/cnr", "b/absolute_cnr", "b/miou"), "no phrase has it")
    assert outcome.metrics["category/cnr"].value == 2.0
    assert outcome.metrics["a/cnr"].value == 2.0


@pytest.mark.parametrize("scaling", ["minmax", "raw"])
def test_constant_heat_predicts_nothing_and_has_no_contrast(planted_run, boxes_build, monkeypatch, scaling):
    monkeypatch.setattr(grounding, "_maps_of_records", lambda *_: np.full((20, 2, 4, 4), 0.05, np.float32))
    protocol = known_protocol("biovil", scaling)
    result = evaluate_grounding(planted_run, boxes_build, "test", protocol=protocol, sigma=0.0, replicates=5)
    assert result.undefined["cnr"] == 20
    assert math.isnan(result.metrics["cnr"].value)
    assert result.metrics["miou"].value == 0.0
    assert result.unpredicted == 20
    np.testing.assert_allclose(result.metrics["pointing_game"].value, result.pointing_chance, rtol=1e-5)


def test_a_box_that_vanishes_in_the_published_pixels_makes_a_phrase_undefined(planted_run, boxes_build, monkeypatch):
    maps = np.random.default_rng(0).normal(size=(20, 2, 4, 4)).astype(np.float32)
    monkeypatch.setattr(grounding, "_maps_of_records", lambda *_: maps)
    monkeypatch.setattr("msfl_jax.tasks.grounding_protocol.transfer_boxes", lambda boxes, size: np.zeros((1, 4), int))
    protocol = known_protocol("maco", geometry="published")
    result = evaluate_grounding(planted_run, boxes_build, "test", protocol=protocol, sigma=0.0, replicates=5)
    assert result.undefined == dict.fromkeys(COLUMNS, 20)
    assert np.isnan(result.scores.values).all()


def test_a_phrase_without_a_word_is_undefined_and_boxes_without_any_phrase_are_refused(
    planted_run, boxes_build, monkeypatch
):
    records = grounding_records(boxes_build, "test")
    wordless = [dataclasses.replace(one, sentences=()) for one in records]
    monkeypatch.setattr(grounding, "grounding_records", lambda *_: wordless)
    with pytest.raises(DataError, match="boxes but no phrases"):
        evaluate_grounding(planted_run, boxes_build, "test", replicates=0)
    monkeypatch.setattr(grounding, "grounding_records", lambda *_: [*wordless[:1], *records[1:]])
    whole = grounding._phrase_embeddings

    def embeddings(run, phrases):
        vectors, usable = whole(run, phrases)
        return vectors, usable & (np.asarray(phrases) != "")

    monkeypatch.setattr(grounding, "_phrase_embeddings", embeddings)
    result = evaluate_grounding(planted_run, boxes_build, "test", sigma=0.7, replicates=0)
    assert result.undefined == dict.fromkeys(COLUMNS, 1)
    assert np.isnan(result.scores.values[0, 0]).all()
    assert np.isfinite(result.scores.values[1:, 0]).all()


def test_miou_of_columns_equals_the_metric_on_arrays(planted_run, boxes_build):
    result = evaluate_grounding(planted_run, boxes_build, "test", sigma=0.7, replicates=0)
    values = result.scores.values
    np.testing.assert_allclose(values[..., 2], values[..., 4:].mean(axis=-1), rtol=1e-6)
    flat = normalise_heatmap(np.full((4, 4), 0.3))
    assert flat.shape == (4, 4)
    assert mean_iou(flat, np.eye(4) > 0) == 0.0


def test_a_result_is_saved_with_all_that_computes_it_again(planted_run, boxes_build, tmp_path, monkeypatch):
    monkeypatch.setattr("msfl_jax.commands.evaluate.open_run", lambda workdir: planted_run)
    monkeypatch.setattr("msfl_jax.commands.evaluate.REPLICATES", 30)
    options = {"split": "test", "overlays": 0, "seed": 3}
    text = grounding_report(tmp_path, boxes_build, **options)
    assert "protocol biovil/minmax, test" in text
    assert "(heat scaled to -1..1 per map; the run's own view, in source pixels)" in text
    raw = grounding_report(
        tmp_path, boxes_build, **options, scaling="raw", geometry="published", sigma=0.5, shifts=2, allow_leak=True
    )
    assert "protocol biovil/raw/published, test" in raw
    second, first = (outcome for _, outcome in load_outcomes([tmp_path]))  # in the order of their names
    assert (first.variant, second.variant) == ("biovil", "biovil-raw-published-sigma0.5-shifts2")
    assert first.dataset == "planted"
    assert first.options == {
        "protocol": "biovil",
        "scaling": "minmax",
        "geometry": "own",
        "sigma": 1.5,
        "shifts": 1,
        "seed": 3,
        "replicates": 30,
    }
    assert (first.records, first.patients) == (20, 12)
    for outcome in (first, second):
        scores = PhraseScores.load(outcome.predictions(tmp_path))
        again = intervals_of(scores, seed=outcome.options["seed"], replicates=outcome.options["replicates"])
        np.testing.assert_equal(again, dict(outcome.metrics))
    expected = {*METRICS, *(f"{name}_shuffled_phrases" for name in METRICS), "cnr_over_shuffled", "iou_0.1", "iou_0.5"}
    expected |= {f"{part}/{name}" for part in ("category", "Pneumonia", "Edema") for name in METRICS}
    assert expected <= first.metrics.keys()


def test_phrases_of_one_image_have_different_keys_and_none_is_their_text(planted_run, boxes_build):
    scores = evaluate_grounding(planted_run, boxes_build, "test", sigma=0.0, replicates=0).scores
    pairs = {(int(image), int(phrase)) for image, phrase in zip(scores.image_key, scores.phrase_key, strict=True)}
    assert len(pairs) == len(scores.values)
    # The same words on two images have two keys.
    assert len({phrase for _, phrase in pairs}) == len(pairs)


def test_a_number_of_looks_that_does_not_divide_the_patches_is_refused(planted_run, boxes_build, tmp_path, monkeypatch):
    monkeypatch.setattr("msfl_jax.commands.evaluate.open_run", lambda workdir: planted_run)
    with pytest.raises(UserError, match="3 looks per axis; expected 1, or a number whose double divides 8"):
        grounding_report(tmp_path, boxes_build, split="test", shifts=3)


def test_predictions_are_summarised_without_jax():
    script = (
        "import sys; from msfl_jax.tasks import compare, grounding_protocol, grounding_result, outcome; "
        "print({'jax', 'flax', 'tensorflow'} & set(sys.modules))"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"
