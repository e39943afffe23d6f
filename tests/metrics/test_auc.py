"""The AUC against scikit-learn and a count of pairs."""

import time

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.testing import assert_allclose
from sklearn.metrics import roc_auc_score

from msfl_jax.metrics import auc, auc_statistic, bootstrap

SIZE = 12
weights_or_counts = hnp.arrays(float, SIZE, elements=st.one_of(st.integers(0, 3).map(float), st.floats(0.01, 10)))


@given(
    scores=hnp.arrays(float, SIZE, elements=st.one_of(st.integers(-2, 2).map(float), st.floats(-1e3, 1e3))),
    labels=hnp.arrays(np.int64, SIZE, elements=st.integers(0, 1)),
    weights=weights_or_counts,
)
def test_weighted_auc_with_ties_equals_scikit_learn(scores, labels, weights):
    assume(weights[labels == 1].sum() > 0 and weights[labels == 0].sum() > 0)
    # With ties or weights it drops collinear points only, so the area is exact.
    expected = roc_auc_score(labels, scores, sample_weight=weights)
    assert_allclose(auc(scores, labels, weights), expected, rtol=0, atol=1e-12)


@given(
    scores=hnp.arrays(np.float32, SIZE, elements=st.floats(-3, 3, width=32)),
    labels=hnp.arrays(np.float32, SIZE, elements=st.sampled_from([0.0, 1.0, np.nan])),
    weights=weights_or_counts,
)
def test_auc_counts_the_pairs_of_known_samples_in_order(scores, labels, weights):
    right, pairs = 0.0, 0.0
    for i in range(SIZE):
        for j in range(SIZE):
            if labels[i] == 1 and labels[j] == 0:
                pairs += weights[i] * weights[j]
                right += weights[i] * weights[j] * ((scores[i] > scores[j]) + 0.5 * (scores[i] == scores[j]))
    expected = right / pairs if pairs else np.nan
    assert_allclose(auc(scores, labels, weights), expected, rtol=1e-12, atol=1e-12)


@given(st.integers(0, 2**31), st.integers(2, 300), st.integers(1, 40))
def test_auc_of_any_size_with_any_number_of_ties_equals_scikit_learn(seed, size, levels):
    rng = np.random.default_rng(seed)
    scores, weights = rng.integers(0, levels, size) / levels, rng.exponential(size=size) * 10.0 ** rng.integers(-3, 4)
    labels = rng.permutation(np.arange(size) % rng.integers(2, size + 1) == 0).astype(float)
    expected = roc_auc_score(labels, scores, sample_weight=weights)
    assert_allclose(auc(scores, labels, weights), expected, rtol=0, atol=1e-12)
    # Only the order counts, and the other class has what is left.
    assert_allclose(auc(np.exp(scores), labels, weights), expected, rtol=0, atol=1e-12)
    assert_allclose(auc(-scores, labels, weights), 1 - expected, rtol=0, atol=1e-12)


def test_integer_weights_are_the_same_as_repeated_samples():
    rng = np.random.default_rng(0)
    scores, labels, counts = rng.normal(size=40).round(1), rng.integers(0, 2, 40), rng.integers(0, 4, 40)
    assert_allclose(auc(scores, labels, counts), auc(scores.repeat(counts), labels.repeat(counts)), rtol=1e-14)


@pytest.mark.parametrize("labels", [[], [1, 1], [0, 0], [np.nan, 1], [np.nan, np.nan]])
def test_auc_is_nan_without_both_classes(labels):
    assert np.isnan(auc(np.arange(float(len(labels))), np.array(labels, float)))


def test_auc_is_nan_when_a_known_score_is_not_a_number():
    scores = np.array([0.1, np.nan, 0.3])
    assert np.isnan(auc(scores, np.array([0, 1, 1])))
    assert auc(scores, np.array([0, np.nan, 1])) == 1


def test_uncertain_labels_are_refused_rather_than_guessed():
    with pytest.raises(ValueError, match="uncertain"):
        auc(np.arange(3.0), np.array([0.0, 1.0, -1.0]))


def test_two_thousand_replicates_of_800_samples_take_less_than_a_second():
    rng = np.random.default_rng(0)
    statistic = auc_statistic(rng.normal(size=800), rng.integers(0, 2, 800))
    patients = rng.integers(0, 400, 800)
    started = time.process_time()
    bootstrap(statistic, patients, replicates=2000)
    assert time.process_time() - started < 1.0
