"""Pooled intervals: several seeds on the same patients, against a loop written out by hand."""

import dataclasses
import json
import re

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from msfl_jax.commands.table import table_report
from msfl_jax.metrics import Interval
from msfl_jax.results import pooling
from msfl_jax.results.own_results import Result
from msfl_jax.results.pooling import mean_over_seeds, pooled_gain, pooled_interval
from msfl_jax.tasks.finding_result import Predictions
from msfl_jax.tasks.grounding_result import COLUMNS, PhraseScores
from msfl_jax.tasks.mask_result import MaskPredictions
from msfl_jax.tasks.outcome import Outcome, save_outcome

PATIENTS = np.asarray([7, 7, 3, 9, 3, 1, 9, 9], np.uint32)
CATEGORIES = np.asarray(["Edema"] * 4 + ["Pneumonia"] * 4)


def result(folder, task, seed):
    outcome = Outcome(task, "ms_cxr", "test", "ab12", "v", {}, 10, 8, 4, {"cnr": Interval(0.0, 0.0, 0.0)})
    return Result(folder, outcome, "demo", "global,local", "same", seed)


@pytest.fixture
def grounded(tmp_path):
    """Saves scores of one seed, with the CNR given and everything else random."""

    def save(name, cnr, patients=PATIENTS):
        scores = PhraseScores(
            values=np.random.default_rng(0).normal(size=(len(cnr), 2, len(COLUMNS))).astype(np.float32),
            unpredicted=np.zeros((len(cnr), 2), np.int32),
            box_share=np.full(len(cnr), 0.1, np.float32),
            category=CATEGORIES,
            patient_key=patients,
            image_key=np.arange(len(cnr), dtype=np.uint32),
            phrase_key=np.arange(len(cnr), dtype=np.uint32),
            maps=np.zeros((len(cnr), 2, 2, 2), np.float32),
        )
        scores.values[:, 0, COLUMNS.index("cnr")] = cnr
        one = result(tmp_path / name, "grounding", 0)
        scores.save(one.outcome.predictions(one.workdir))
        return one

    return save


def loop_gain(better, base, patients, replicates):
    """Mean over seeds of each phrase, then patients drawn with all their phrases; differences of the two means, one by one."""
    a = [np.mean([seed[i] for seed in better]) for i in range(len(patients))]
    b = [np.mean([seed[i] for seed in base]) for i in range(len(patients))]
    order = list(dict.fromkeys(patients.tolist()))  # as they first appear
    rng = np.random.default_rng(0)
    differences = []
    for _ in range(replicates):
        first, second = [], []
        for drawn in rng.integers(0, len(order), size=len(order)):
            for i, patient in enumerate(patients.tolist()):
                if patient == order[drawn]:
                    first.append(a[i])
                    second.append(b[i])
        differences.append(np.mean(first) - np.mean(second))
    return np.mean(a) - np.mean(b), *np.quantile(differences, [0.025, 0.975])


def test_the_gain_is_that_of_a_loop_over_patients(grounded):
    rng = np.random.default_rng(3)
    values = rng.normal(size=(2, 3, len(PATIENTS))).astype(np.float32) + np.asarray([1.0, 0.0])[:, None, None]
    stacks = [[grounded(f"{side}{seed}", values[side, seed]) for seed in range(3)] for side in (0, 1)]
    found = pooled_gain(*stacks, "cnr", replicates=60)
    assert found == pytest.approx(loop_gain(values[0], values[1], PATIENTS, 60), rel=1e-6)


def test_a_phrase_without_a_number_in_one_seed_keeps_those_of_the_others(grounded):
    values = np.asarray([[1, 2, np.nan, 4, 5, 6, 7, np.nan], [3, 2, 1, 4, 5, 6, 7, np.nan]])
    np.testing.assert_array_equal(mean_over_seeds(list(values)), [2, 2, 1, 4, 5, 6, 7, np.nan])
    stack = [grounded(f"seed{seed}", row) for seed, row in enumerate(values)]
    assert pooled_interval(stack, "cnr", replicates=5).value == pytest.approx(27 / 7)


def test_a_phrase_that_one_side_has_no_number_for_counts_in_neither(grounded):
    better, base = np.arange(8.0), np.asarray([0, 0, 0, 0, np.nan, 0, 0, 0])
    better[0] = np.nan
    found = pooled_gain([grounded("better", better)], [grounded("base", base)], "cnr", replicates=5)
    assert found.value == pytest.approx((1 + 2 + 3 + 5 + 6 + 7) / 6)


def test_other_phrases_of_the_same_patients_are_not_compared(grounded):
    one, other = grounded("one", np.ones(8)), grounded("other", np.ones(8))
    file = other.outcome.predictions(other.workdir)
    scores = PhraseScores.load(file)
    scores.phrase_key[3] = 99
    scores.save(file)
    assert pooled_gain([one], [other], "cnr") is None


def test_the_pooled_dice_is_the_mean_over_seeds_and_patients_are_drawn_once(tmp_path):
    rng = np.random.default_rng(1)
    target = rng.integers(0, 30, size=8)
    stack, expected = [], []
    for seed in (0, 1):
        predicted = rng.integers(1, 30, size=8)
        common = np.minimum(predicted, target) // 2
        counts = np.stack([common, predicted, target, np.full(8, 100)], axis=1)
        one = result(tmp_path / f"seed{seed}", "segmentation", seed)
        MaskPredictions(counts, PATIENTS, np.arange(8, dtype=np.uint32)).save(one.outcome.predictions(one.workdir))
        stack.append(one)
        expected.append(2 * common.sum() / (predicted + target).sum())
    found = pooled_interval(stack, "dice_pooled_foreground", replicates=30)
    assert found.value == pytest.approx(np.mean(expected), rel=1e-12)
    assert found.low <= found.value <= found.high
    assert pooled_interval(stack, "dice_of_something") is None


def loop_categories(seeds, patients, categories, replicates):
    """As `loop_gain`, of one side: means of phrases over seeds, of each category over its phrases, over the categories that have any."""
    values = [np.nanmean([seed[i] for seed in seeds]) for i in range(len(patients))]

    def mean(drawn):
        parts = {}
        for i in drawn:
            parts.setdefault(categories[i], []).append(values[i])
        return np.mean([np.mean(part) for part in parts.values()])

    order, rng, means = list(dict.fromkeys(patients.tolist())), np.random.default_rng(0), []
    for _ in range(replicates):
        chosen = [order[drawn] for drawn in rng.integers(0, len(order), size=len(order))]
        means.append(mean([i for one in chosen for i, patient in enumerate(patients.tolist()) if patient == one]))
    return mean(range(len(patients))), *np.quantile(means, [0.025, 0.975])


def test_the_pooled_mean_over_categories_is_that_of_a_loop(grounded):
    values = np.random.default_rng(4).normal(size=(3, len(PATIENTS))).astype(np.float32)
    values[:, 4:] += 2  # so that the two categories weigh otherwise than their phrases
    values[0, 2] = np.nan  # a phrase that one seed has no value for keeps those of the others
    stack = [grounded(f"seed{seed}", row) for seed, row in enumerate(values)]
    found = pooled_interval(stack, "category/cnr", replicates=80)
    assert found == pytest.approx(loop_categories(values, PATIENTS, CATEGORIES, 80), rel=1e-6)
    single = np.nanmean(np.nanmean(values, axis=0)[:4])
    assert pooled_interval(stack, "Edema/cnr", replicates=5).value == pytest.approx(single, rel=1e-6)


def test_a_phrase_that_one_side_has_no_number_for_counts_in_no_category_either(grounded):
    better, base = np.asarray([9, 1, 1, 1, 4, 4, 4, 4.0]), np.asarray([np.nan, 0, 0, 0, 1, 1, 1, 1])
    found = pooled_gain([grounded("better", better)], [grounded("base", base)], "category/cnr", replicates=5)
    assert found.value == pytest.approx((1 + 3) / 2)


def test_the_command_prints_the_pooled_interval(grounded, monkeypatch):
    monkeypatch.setattr(pooling, "REPLICATES", 20)
    for seed in range(2):
        one = grounded(f"run{seed}", np.arange(8.0) + seed)
        config = {"name": "demo", "seed": seed, "objective": {"lambda_global": 1.0}}
        (one.workdir / "config.json").write_text(json.dumps(config))
        metrics = {name: Interval(3.5 + seed, 0.0, 9.0) for name in ("cnr", "category/cnr")}
        save_outcome(dataclasses.replace(one.outcome, metrics=metrics), one.workdir)
    text = table_report(4, [one.workdir.parent])
    found = re.findall(r"4\.000 ± 0\.707 \(2 seeds, (\d\.\d+) - (\d\.\d+)\)", text)
    assert len(found) == 2, text
    for low, high in found:
        assert float(low) < 4 < float(high)


def test_seeds_scored_on_other_patients_are_not_pooled(grounded):
    one, other = grounded("one", np.ones(8)), grounded("other", np.ones(8), PATIENTS[::-1].copy())
    assert pooled_interval([one, other], "cnr") is None
    assert pooled_gain([one], [other], "cnr") is None
    assert pooled_interval([one], "category/nothing") is None
    assert pooled_interval([result(one.workdir / "nowhere", "grounding", 0)], "cnr") is None


def test_the_pooled_auc_is_the_mean_over_seeds_and_findings_of_scikit_learns(tmp_path):
    rng = np.random.default_rng(5)
    truth = np.asarray([[1, 0, 1, 0, 1, 0, 0, 1], [0, 0, 1, 1, 0, 1, 0, 0], [0] * 8], np.float32).T
    scores = rng.normal(size=(2, 8, 3)).astype(np.float32)
    stack = []
    for seed in (0, 1):
        one = result(tmp_path / f"seed{seed}", "zero_shot", seed)
        predictions = Predictions(("Edema", "Hernia", "Fracture"), scores[seed], truth, PATIENTS)
        predictions.save(one.outcome.predictions(one.workdir))
        stack.append(one)
    expected = np.mean([roc_auc_score(truth[:, f], scores[seed][:, f]) for seed in (0, 1) for f in (0, 1)])
    found = pooled_interval(stack, "mean_auc", replicates=30)
    assert found.value == pytest.approx(expected, rel=1e-12)
    assert found.low <= found.value <= found.high
    hernia = pooled_interval(stack, "auc/Hernia", replicates=0)
    assert hernia.value == pytest.approx(np.mean([roc_auc_score(truth[:, 1], one[:, 1]) for one in scores]), rel=1e-12)
    assert pooled_interval(stack, "auc/Mass") is None


NAMES = ("Edema", "Hernia")
LABELS = np.asarray([[1, 0, 1, 0, 1, 0, 0, 1], [0, 0, 1, 1, 0, 1, 0, 0]], np.float32).T
IMAGES = np.arange(8, dtype=np.uint32)


@pytest.fixture
def classified(tmp_path):
    """Saves random scores of one seed."""

    def save(seed, images=IMAGES, nowhere=()):
        scores = np.random.default_rng(seed).normal(size=LABELS.shape).astype(np.float32)
        scores[:, [NAMES.index(name) for name in nowhere]] = np.nan
        one = result(tmp_path / f"seed{seed}", "zero_shot", seed)
        Predictions(NAMES, scores, LABELS, PATIENTS, image_key=images).save(one.outcome.predictions(one.workdir))
        return one, [roc_auc_score(LABELS[:, f], scores[:, f]) for f in (0, 1) if NAMES[f] not in nowhere]

    return save


def test_images_are_told_by_their_keys_and_older_files_that_lack_them_are_still_pooled(classified):
    (one, first), (other, second), (old, third) = classified(0), classified(1, IMAGES[::-1].copy()), classified(2, None)
    assert pooled_interval([one, other], "mean_auc") is None, "the same patients and truth, other images"
    assert pooled_gain([one], [other], "mean_auc") is None
    for stack, aucs in (([one, old], (first, third)), ([old, other], (third, second))):
        assert pooled_interval(stack, "mean_auc", replicates=5).value == pytest.approx(np.mean(aucs), rel=1e-12)
        gain = pooled_gain(stack[:1], stack[1:], "mean_auc", replicates=5)
        assert gain.value == pytest.approx(np.mean(aucs[0]) - np.mean(aucs[1]), rel=1e-12)
    assert pooled_interval([one, old, other], "mean_auc") is None, "an older file between them proves nothing"


def test_a_finding_without_numbers_is_in_no_mean_and_means_over_other_findings_are_not_compared(classified):
    (one, both), (other, single) = classified(0), classified(1, nowhere=["Hernia"])
    found = pooled_interval([one, other], "mean_auc", replicates=30)
    assert found.value == pytest.approx((np.mean(both) + single[0]) / 2, rel=1e-12)
    assert found.low <= found.value <= found.high
    assert pooled_interval([one, other], "auc/Hernia", replicates=0).value == pytest.approx(both[1], rel=1e-12)
    assert pooled_gain([one], [other], "mean_auc") is None
    gain = pooled_gain([one], [other], "auc/Edema", replicates=5)
    assert gain.value == pytest.approx(both[0] - single[0], rel=1e-12)
