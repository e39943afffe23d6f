"""Zero-shot rules against NumPy loops and scikit-learn, and a planted model whose answer is known."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.metrics import roc_auc_score

from input_pipeline.errors import UserError
from input_pipeline.reading import open_split
from msfl_jax.tasks import zero_shot
from msfl_jax.tasks.predictions import load_arrays, save_arrays
from msfl_jax.tasks.prompts import Prompts
from msfl_jax.tasks.zero_shot import (
    Predictions,
    choose_rule,
    evaluate_zero_shot,
    local_similarity,
    score,
    summarise,
    truth_of_labels,
)

PROMPTS = {
    "Pneumonia": Prompts(("Pneumonia is seen.", "There is pneumonia."), ("No pneumonia.",)),
    "Edema": Prompts(("Edema is seen.",), ("No edema.", "There is no edema.")),
    "Pneumothorax": Prompts(("There is pneumothorax.",), ("No pneumothorax.",)),
    "Hernia": Prompts(("Hernia.",), ("No hernia.",)),
}
embeddings = st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(1, 3), st.integers(0, 2**31)).map(
    lambda n: [np.random.default_rng(n[3]).normal(size=(rows, 5)) for rows in n[:3]]
)


def cosine(a, b):
    return float(np.dot(a, b) / np.sqrt(np.dot(a, a) * np.dot(b, b)))


@given(embeddings)
def test_each_rule_equals_a_loop_over_images(arrays):
    images, positive, negative = arrays
    for row, image in enumerate(images):
        sides = []
        for side in (positive, negative):
            mean = sum(prompt / np.linalg.norm(prompt) for prompt in side) / len(side)
            sides.append(cosine(image, mean))
        assert_allclose(score(images, positive, negative, "cosine")[row], sides[0] - sides[1], atol=1e-12)

        raw = [float(np.mean([np.dot(image, prompt) for prompt in side])) for side in (positive, negative)]
        probability = np.exp(raw[0]) / (np.exp(raw[0]) + np.exp(raw[1]))
        assert_allclose(1 / (1 + np.exp(-score(images, positive, negative, "maco")[row])), probability, atol=1e-12)

        pairs = [(np.exp(cosine(image, p)), np.exp(cosine(image, n))) for p in positive for n in negative]
        expected = np.mean([p / (p + n) for p, n in pairs])
        assert_allclose(score(images, positive, negative, "chexzero")[row], expected, atol=1e-12)


def test_maco_softmax_of_two_and_one_is_the_published_oracle():
    image, positive, negative = np.asarray([[1.0, 0.0]]), np.asarray([[2.0, 5.0]]), np.asarray([[1.0, -3.0]])
    assert_allclose(1 / (1 + np.exp(-score(image, positive, negative, "maco"))), [0.731059], atol=5e-7)


def test_maco_orders_images_whose_softmax_is_saturated():
    image = np.asarray([[60.0], [50.0]])
    first, second = score(image, np.ones((1, 1)), -np.ones((1, 1)), "maco")
    assert first > second


@given(st.floats(0.01, 100))
def test_lengths_of_embeddings_change_only_maco(scale):
    rng = np.random.default_rng(0)
    image, positive, negative = rng.normal(size=(3, 4)), rng.normal(size=(2, 4)), rng.normal(size=(2, 4))
    for rule in ("cosine", "chexzero"):
        assert_allclose(score(image * scale, positive, negative / scale, rule), score(image, positive, negative, rule))


def test_gloria_takes_half_the_cosine_rule_and_half_the_best_positive_prompt():
    image = np.asarray([[1.0, 0.0], [0.0, 1.0]])
    positive, negative = np.asarray([[0.0, 1.0], [1.0, 0.0]]), np.asarray([[-2.0, 0.0]])
    near = np.asarray([[0.9, 0.2], [-0.5, -0.7]])
    found = score(image, positive, negative, "gloria", local_positive=near)
    # The mean positive prompt lies halfway between the two; the negative one points away from the first image.
    assert_allclose(found, [0.5 * (0.5**0.5 + 1 + 0.9), 0.5 * (0.5**0.5 - 0.5)])
    with pytest.raises(ValueError, match="local_positive"):
        score(image, positive, negative, "gloria")


def test_local_similarity_equals_a_loop():
    rng = np.random.default_rng(1)
    regions, sentences = rng.normal(size=(2, 6, 3)), rng.normal(size=(4, 2, 3))
    mask = np.asarray([[True, True], [True, False], [False, True], [False, False]])
    found = local_similarity(regions.astype(np.float32), sentences.astype(np.float32), mask, region_scale=5.0)
    for image, prompt in np.ndindex(2, 4):
        values = []
        for unit in sentences[prompt][mask[prompt]]:
            weights = np.exp([5.0 * cosine(region, unit) for region in regions[image]])
            context = (weights[:, None] / weights.sum() * regions[image]).sum(axis=0)
            values.append(cosine(context, unit))
        assert_allclose(found[image, prompt], max(values, default=0.0), atol=1e-5)


def test_uncertain_labels_are_left_out_and_blank_ones_count_as_told():
    labels = np.asarray([[1.0, 0.0, -1.0, np.nan]], np.float32)
    np.testing.assert_array_equal(truth_of_labels(labels, "negative"), [[1, 0, np.nan, 0]])
    np.testing.assert_array_equal(truth_of_labels(labels, "ignore"), [[1, 0, np.nan, np.nan]])


@pytest.mark.parametrize("rule", ["cosine", "maco", "chexzero", "gloria"])
def test_a_model_that_sees_the_findings_scores_one_and_shuffled_images_do_not(planted_run, labelled_build, rule):
    result = evaluate_zero_shot(
        planted_run, labelled_build, "test", prompts=PROMPTS, rule=rule, batch_size=7, replicates=50
    )
    assert result.auc["Pneumonia"].value == 1.0
    assert result.auc["Edema"].value == 1.0
    assert result.mean == (1.0, 1.0, 1.0)
    assert result.shuffled.value < 0.8
    assert (result.records, result.patients, result.defined, result.step) == (24, 12, 2, 7)


def test_a_finding_without_positives_is_named_and_not_in_the_mean(planted_run, labelled_build):
    result = evaluate_zero_shot(planted_run, labelled_build, "test", prompts=PROMPTS, replicates=10)
    last = result.findings[-1]
    assert (last.name, last.positives, last.negatives, last.reason) == ("Pneumothorax", 0, 24, "no positives")
    assert np.isnan(last.auc.value)
    assert "Hernia" not in result.auc


def test_blank_labels_can_be_ignored_and_records_limited(planted_run, labelled_build):
    options = {"prompts": PROMPTS, "replicates": 0, "batch_size": 8}
    counted = evaluate_zero_shot(planted_run, labelled_build, "test", **options).findings[1]
    ignored = evaluate_zero_shot(planted_run, labelled_build, "test", blank="ignore", **options).findings[1]
    assert (counted.positives, counted.negatives) == (8, 14)  # two are uncertain
    assert ignored.negatives < counted.negatives
    assert evaluate_zero_shot(planted_run, labelled_build, "test", records=10, **options).records == 10


def test_saved_predictions_give_the_same_numbers_as_scikit_learn(planted_run, labelled_build, tmp_path):
    noisy = dataclasses.replace(planted_run, params={"offset": jnp.float32(0.0)})
    result = evaluate_zero_shot(noisy, labelled_build, "test", prompts=PROMPTS, replicates=30)
    rng = np.random.default_rng(0)
    scores = (result.predictions.scores + rng.normal(scale=1.0, size=result.predictions.scores.shape)).astype(
        np.float32
    )
    dataclasses.replace(result.predictions, scores=scores).save(tmp_path / "new" / "zero_shot.npz")

    again = Predictions.load(tmp_path / "new" / "zero_shot.npz")
    numbers = summarise(again, rule="cosine", split="test", step=7, replicates=30)
    for column, name in enumerate(again.findings[:2]):
        known = ~np.isnan(again.truth[:, column])
        expected = roc_auc_score(again.truth[known, column], again.scores[known, column])
        assert_allclose(numbers.auc[name].value, expected, rtol=1e-12)
        assert numbers.auc[name].low <= expected <= numbers.auc[name].high
    assert_allclose(numbers.mean.value, np.mean([numbers.auc[name].value for name in again.findings[:2]]))


def test_saved_predictions_name_every_image_by_its_hashed_key(planted_run, labelled_build, tmp_path):
    result = evaluate_zero_shot(planted_run, labelled_build, "test", prompts=PROMPTS, batch_size=7, replicates=0)
    result.predictions.save(tmp_path / "new.npz")
    records = list(open_split(labelled_build, "test"))
    assert_array_equal(Predictions.load(tmp_path / "new.npz").image_key, [int(r.image_key[:8], 16) for r in records])
    arrays = load_arrays(tmp_path / "new.npz")
    del arrays["image_key"]  # as versions before saved them
    save_arrays(tmp_path / "old.npz", **arrays)
    old = Predictions.load(tmp_path / "old.npz")
    assert old.image_key is None
    assert summarise(old, rule="cosine", split="test", step=7, replicates=0).mean.value == result.mean.value


def test_the_interval_of_the_mean_resamples_the_same_patients_for_all_findings():
    rng = np.random.default_rng(0)
    truth = np.repeat(rng.integers(0, 2, (60, 1)), 2, axis=1).astype(np.float32)
    scores = np.repeat(truth[:, :1] + rng.normal(size=(60, 1)), 2, axis=1).astype(np.float32)
    patients = np.arange(60, dtype=np.uint32)
    result = summarise(Predictions(("a", "b"), scores, truth, patients), rule="", split="", step=0, replicates=100)
    assert result.mean == result.auc["a"]  # independent resamples would give a narrower interval


def test_a_model_that_gives_no_numbers_says_so():
    predictions = Predictions(("a",), np.full((4, 1), np.nan, np.float32), np.eye(4, 1, dtype=np.float32), np.arange(4))
    result = summarise(predictions, rule="", split="", step=0, replicates=5)
    assert result.findings[0].reason == "scores are not numbers"
    assert (result.defined, np.isnan(result.mean.value)) == (0, True)


def test_prompts_that_fit_no_label_are_one_line_with_the_nearest(planted_run, labelled_build):
    with pytest.raises(UserError, match=r"'Oedema' \(did you mean 'Edema'\?\)"):
        evaluate_zero_shot(planted_run, labelled_build, "test", prompts={"Oedema": PROMPTS["Edema"]})


def test_other_files_are_no_predictions(tmp_path):
    np.savez(tmp_path / "objects.npz", scores=np.asarray([{}], dtype=object))
    np.savez(tmp_path / "other.npz", findings=np.asarray(["a"]))
    (tmp_path / "text.npz").write_text("no")
    for name in ("objects", "other", "text", "absent"):
        with pytest.raises(UserError, match=name):
            zero_shot.Predictions.load(tmp_path / f"{name}.npz")


def test_a_run_without_local_alignment_is_scored_by_cosine_and_refuses_gloria(planted_run):
    def with_options(weight, rule):
        objective = dataclasses.replace(planted_run.config.objective, lambda_local=weight)
        options = dataclasses.replace(planted_run.config.zero_shot, rule=rule)
        return dataclasses.replace(
            planted_run, config=dataclasses.replace(planted_run.config, objective=objective, zero_shot=options)
        )

    assert choose_rule(with_options(1.0, "gloria"), None) == "gloria"
    assert choose_rule(with_options(0.0, "gloria"), None) == "cosine"
    assert choose_rule(with_options(0.0, "maco"), None) == "maco"
    assert choose_rule(with_options(0.0, "gloria"), "chexzero") == "chexzero"
    with pytest.raises(UserError, match="without"):
        choose_rule(with_options(0.0, "cosine"), "gloria")
    with pytest.raises(UserError, match="did you mean 'cosine'"):
        choose_rule(with_options(1.0, "gloria"), "cosin")
