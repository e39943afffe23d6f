"""Differences between two runs against a bootstrap written out by hand; results that do not belong together are refused."""

import math

import numpy as np
import pytest
from numpy.testing import assert_allclose
from sklearn.metrics import roc_auc_score

from input_pipeline.errors import DataError, UserError
from msfl_jax.commands.compare import comparison_report
from msfl_jax.metrics import Interval
from msfl_jax.tasks.compare import compare
from msfl_jax.tasks.grounding_result import COLUMNS, PhraseScores
from msfl_jax.tasks.mask_result import MaskPredictions
from msfl_jax.tasks.outcome import Outcome, save_outcome
from msfl_jax.tasks.predictions import save_arrays
from msfl_jax.tasks.retrieval_result import Ranks

PATIENTS = np.asarray([9, 9, 4, 4, 4, 7], np.uint32)  # as they first appear: 9, 4, 7
FEW = {"replicates": 20}
CNR = {"a": [1.0, 2.0, 0.5, math.nan, 1.5, 3.0], "b": [0.5, 1.0, 0.75, 2.0, 1.0, math.nan]}


def outcome(task, **changes):
    values = {
        "task": task,
        "dataset": "study",
        "split": "validate",
        "split_hash": "ab12",
        "variant": "biovil" if task == "grounding" else "cosine",
        "options": {"seed": 0, "sigma": 1.5},
        "step": 40,
        "records": 6,
        "patients": 3,
        "metrics": {"cnr": Interval(1.0, 0.5, 1.5)},
    }
    return Outcome(**values | changes)


def save_phrases(workdir, cnr, *, phrases=(1, 2, 3, 4, 5, 6), **changes):
    values = np.zeros((6, 2, len(COLUMNS)), np.float32)
    values[:, 0, 0] = cnr
    PhraseScores(
        values=values,
        unpredicted=np.zeros((6, 2), np.uint8),
        box_share=np.full(6, 0.1, np.float32),
        category=np.asarray(["x", "x", "x", "y", "y", "y"]),
        patient_key=PATIENTS,
        image_key=np.arange(6, dtype=np.uint32),
        phrase_key=np.asarray(phrases, np.uint32),
        maps=np.zeros((6, 2, 2, 2), np.float32),
    ).save(outcome("grounding", **changes).predictions(workdir))
    save_outcome(outcome("grounding", **changes), workdir)
    return workdir, outcome("grounding", **changes)


def save_findings(workdir, scores, truth, images=None, **changes):
    file = outcome("zero_shot", **changes).predictions(workdir)
    named = {} if images is None else {"image_key": np.asarray(images, np.uint32)}
    told = {"findings": np.asarray(["Edema", "Hernia"]), "patient_key": PATIENTS} | named
    save_arrays(file, scores=scores, truth=truth, **told)
    save_outcome(outcome("zero_shot", **changes), workdir)
    return workdir, outcome("zero_shot", **changes)


def drawn_patients(replicates, seed):
    """Rows of every resample: the patients' rows, as often as the patient was drawn."""
    rng = np.random.default_rng(seed)
    rows = [np.flatnonzero(patient == PATIENTS) for patient in (9, 4, 7)]
    return [
        np.concatenate([rows[patient] for patient in rng.integers(0, 3, size=3)]).astype(int) for _ in range(replicates)
    ]


def by_name(comparison):
    return {found.name: found for found in comparison.differences}


def test_means_are_compared_on_phrases_that_both_have_and_patients_are_drawn_together(tmp_path):
    one, other = (save_phrases(tmp_path / name, cnr) for name, cnr in CNR.items())
    found = by_name(compare(one, other, replicates=200, seed=5))["cnr"]
    both = np.asarray([0, 1, 2, 4])
    a, b = np.asarray(CNR["a"]), np.asarray(CNR["b"])
    assert_allclose([found.first, found.second], [a[both].mean(), b[both].mean()], rtol=1e-6)
    differences = []
    for rows in drawn_patients(200, 5):
        kept = rows[np.isin(rows, both)]
        if len(kept):
            differences.append(a[kept].mean() - b[kept].mean())
    limits = np.quantile(differences, [0.025, 0.975])
    assert_allclose(found.difference, [1.25 - 0.8125, *limits], rtol=1e-6)


def test_categories_are_averaged_as_in_the_result_and_missing_values_are_said(tmp_path):
    one, other = (save_phrases(tmp_path / name, cnr) for name, cnr in CNR.items())
    comparison = compare(one, other, replicates=5)
    found = by_name(comparison)["category/cnr"]
    assert_allclose([found.first, found.second], [(3.5 / 3 + 1.5) / 2, (2.25 / 3 + 1.0) / 2], rtol=1e-6)
    assert (comparison.samples, comparison.patients) == (6, 3)
    assert comparison.notes == ("2 samples lack a value in one of the two and count in neither",)


def test_aucs_are_compared_against_scikit_learn_on_every_resample(tmp_path):
    rng = np.random.default_rng(0)
    truth = np.asarray([[1, 0], [0, 0], [1, 0], [0, 0], [1, 0], [0, np.nan]], np.float32)
    scores = {name: rng.normal(size=(6, 2)).astype(np.float32) for name in "ab"}
    one, other = (save_findings(tmp_path / name, scores[name], truth) for name in "ab")
    found = by_name(compare(one, other, replicates=100, seed=1))
    differences = []
    for rows in drawn_patients(100, 1):
        if 0 < truth[rows, 0].sum() < len(rows):
            a, b = (roc_auc_score(truth[rows, 0], scores[name][rows, 0]) for name in "ab")
            differences.append(a - b)
    expected = [roc_auc_score(truth[:, 0], scores[name][:, 0]) for name in "ab"]
    assert_allclose([found["auc/Edema"].first, found["auc/Edema"].second], expected, rtol=1e-12)
    assert_allclose(found["auc/Edema"].difference[1:], np.quantile(differences, [0.025, 0.975]), rtol=1e-9)
    assert math.isnan(found["auc/Hernia"].difference.value)  # no positives
    assert found["mean_auc"].difference == found["auc/Edema"].difference


def test_a_run_does_not_differ_from_itself(tmp_path):
    one = save_phrases(tmp_path / "a", CNR["a"])
    for found in compare(one, one, replicates=20).differences:
        assert np.nan_to_num(found.difference.value) == 0
        assert np.nan_to_num([found.difference.low, found.difference.high]).tolist() == [0, 0]


def test_other_images_other_phrases_and_other_tasks_are_refused(tmp_path):
    one = save_phrases(tmp_path / "a", CNR["a"])
    for changes, message in (
        ({"split_hash": "cd34"}, "different images: split hash ab12 and cd34"),
        ({"phrases": (1, 2, 3, 4, 5, 7)}, "not of the same phrases"),
    ):
        with pytest.raises(DataError, match=message) as error:
            compare(one, save_phrases(tmp_path / "b", CNR["b"], **changes))
        assert error.value.exit_code == 3
        assert "\n" not in str(error.value)
    with pytest.raises(DataError, match="different tasks"):
        compare(one, save_findings(tmp_path / "b", np.zeros((6, 2)), np.zeros((6, 2))))
    other = tmp_path / "c", outcome("captions")
    with pytest.raises(UserError, match="'captions' cannot be compared; expected one of classification, grounding"):
        compare(other, other)


COUNTS = {  # common, predicted, true and all pixels of each image
    "a": [[4, 6, 8, 100], [0, 0, 0, 100], [0, 3, 0, 100], [5, 5, 5, 100], [1, 9, 7, 100], [2, 4, 6, 100]],
    "b": [[2, 9, 8, 100], [0, 2, 0, 100], [0, 0, 0, 100], [5, 9, 5, 100], [3, 9, 7, 100], [0, 0, 6, 100]],
}


def save_masks(workdir, counts):
    one = outcome("segmentation", variant="v")
    MaskPredictions(np.asarray(counts), PATIENTS, np.arange(6, dtype=np.uint32)).save(one.predictions(workdir))
    save_outcome(one, workdir)
    return workdir, one


def dices(counts, rows):
    """All four variants by loops over images; nan where there is no mask."""
    each = [2 * c / (p + t) if p + t else 1.0 for c, p, t, _ in (counts[row] for row in rows)]
    masked = [value for value, row in zip(each, rows, strict=True) if counts[row][2]]
    c, p, t, n = (sum(counts[row][column] for row in rows) for column in range(4))
    front, back = 2 * c / (p + t) if p + t else math.nan, 2 * (n - p - t + c) / (2 * n - p - t)
    return [np.mean(each), np.mean(masked) if masked else math.nan, front, (front + back) / 2]


def test_dices_are_compared_against_loops_on_every_resample(tmp_path):
    one, other = (save_masks(tmp_path / name, counts) for name, counts in COUNTS.items())
    comparison = compare(one, other, replicates=50, seed=2)
    whole = [dices(counts, range(6)) for counts in COUNTS.values()]
    drawn = [np.subtract(*(dices(counts, rows) for counts in COUNTS.values())) for rows in drawn_patients(50, 2)]
    for column, found in enumerate(comparison.differences):
        assert_allclose([found.first, found.second], [side[column] for side in whole], rtol=1e-12)
        limits = np.nanquantile([difference[column] for difference in drawn], [0.025, 0.975])
        assert_allclose(found.difference[1:], limits, rtol=1e-9, atol=1e-12)
    assert "dice_pooled_foreground" in comparison_report(tmp_path / "a", tmp_path / "b", task="segmentation", **FEW)
    changed = [[*row[:2], row[2] + 1, row[3]] for row in COUNTS["b"]]
    with pytest.raises(DataError, match="not of the same masks"):
        compare(one, save_masks(tmp_path / "b", changed))


def save_ranks(workdir, own, pool=(5, 6), images=None):
    one = outcome("retrieval", variant="")
    sharing = np.asarray([1, 1, 1, 1, 2, 2])
    ranks = Ranks(np.asarray(own), np.ones((6, 2), int), np.asarray(pool), sharing, PATIENTS, images)
    ranks.save(one.predictions(workdir))
    save_outcome(one, workdir)
    return workdir, one


def test_recalls_and_median_ranks_are_compared_on_the_same_resamples_and_pool(tmp_path):
    ranks = {
        "a": [[1, 1], [1, 2], [3, 1], [1, 6], [2, 1], [5, 5]],
        "b": [[2, 1], [1, 1], [4, 6], [5, 3], [1, 1], [5, 2]],
    }
    one, other = (save_ranks(tmp_path / name, own) for name, own in ranks.items())
    found = by_name(compare(one, other, replicates=50, seed=3))
    recall, median = found["image_to_report/recall@1"], found["report_to_image/median_rank"]
    assert (recall.first, recall.second) == (3 / 6, 2 / 6)
    assert (median.first, median.second) == (1, 1)
    hit = np.asarray([[row[0] == 1 for row in own] for own in ranks.values()], float)
    drawn = [hit[0, rows].mean() - hit[1, rows].mean() for rows in drawn_patients(50, 3)]
    assert_allclose(recall.difference[1:], np.quantile(drawn, [0.025, 0.975]), rtol=1e-9, atol=1e-12)
    text = comparison_report(tmp_path / "a", tmp_path / "b", task="retrieval", **FEW)
    assert "image_to_report/recall@5" in text
    with pytest.raises(DataError, match="not of the same pools"):
        compare(one, save_ranks(tmp_path / "b", ranks["b"], pool=(6, 6)))


@pytest.mark.parametrize("task", ["findings", "ranks"])
def test_images_are_paired_by_their_keys_and_files_that_have_none_by_their_order(tmp_path, task):
    truth = np.asarray([[1, 0], [0, 0], [1, 0], [0, 0], [1, 0], [0, 0]], np.float32)
    keys = np.arange(6, dtype=np.uint32)

    def save(name, images):
        if task == "ranks":
            return save_ranks(tmp_path / name, np.ones((6, 2), int), images=images)
        return save_findings(tmp_path / name, truth, truth, images=images)

    one, same, old = save("one", keys), save("same", keys), save("old", None)
    for other in (same, old):
        assert compare(one, other, replicates=5).samples == 6
    other = save("other", keys[[1, 0, 2, 3, 4, 5]])  # of the same patient
    with pytest.raises(DataError, match="not of the same images in the same order"):
        compare(one, other, replicates=5)


def test_the_table_names_both_runs_the_split_and_which_is_higher(tmp_path):
    save_phrases(tmp_path / "a", np.asarray(CNR["b"]) + 1)
    save_phrases(tmp_path / "b", CNR["b"], options={"seed": 0, "sigma": 0.8})
    lines = comparison_report(tmp_path / "a", tmp_path / "b", task="grounding", **FEW).splitlines()
    title = "grounding, study validate (split hash ab12): 6 samples of 3 patients, resampled in pairs"
    assert lines[0] == title
    assert lines[1] == f"A  {tmp_path / 'a'}, biovil, step 40"
    assert lines[5].split() == ["cnr", "2.050", "1.050", "1.000", "1.000", "-", "1.000", "A"]
    assert "caveat  sigma differs: 1.5 and 0.8" in lines
    assert not any("x/cnr" in line or "iou_0.1" in line for line in lines)
    everything = comparison_report(tmp_path / "a", tmp_path / "b", task="grounding", **FEW, everything=True)
    assert "x/cnr" in everything
    assert "iou_0.1" in everything


def test_a_choice_between_results_is_asked_for_and_two_variants_of_one_run_can_be_compared(tmp_path):
    for name, variant in (("a", "biovil"), ("a", "maco"), ("b", "biovil"), ("b", "maco")):
        save_phrases(tmp_path / name, CNR["a"], variant=variant)
    runs = tmp_path / "a", tmp_path / "b"
    with pytest.raises(UserError, match=r"grounding-study-validate-biovil, .*; say which with --data-name"):
        comparison_report(*runs, task="grounding", **FEW)
    assert "biovil, step 40" in comparison_report(*runs, task="grounding", **FEW, variant="biovil")
    own = comparison_report(runs[0], runs[0], task="grounding", **FEW, variant="biovil", variant_b="maco")
    assert "caveat  variant differs: biovil and maco" in own
    with pytest.raises(UserError, match="no such result of task 'zero_shot'"):
        comparison_report(*runs, task="zero_shot", **FEW)
    assert comparison_report(*runs, task="grounding", **FEW, variant="maco", split="validate", dataset="study")
