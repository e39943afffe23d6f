"""The linear probe against scikit-learn, and against what a ridge and missing labels must do."""

import numpy as np
import pytest
from numpy.testing import assert_allclose
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from msfl_jax.tasks.probe import fit_probe

SAMPLES, WIDTH = 80, 6


@pytest.fixture(scope="module")
def sample():
    """Features of very different scales and two labels that follow from them, the second with unknown values."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(SAMPLES, WIDTH)) * np.logspace(-2, 2, WIDTH) + 3.0
    scores = StandardScaler().fit_transform(features) @ rng.normal(size=(WIDTH, 2))
    labels = (scores + rng.logistic(size=scores.shape) > 0).astype(np.float32)
    labels[::5, 1] = np.nan
    return features.astype(np.float32), labels


@pytest.mark.parametrize("l2", [1e-3, 0.1, 10.0])
def test_log_odds_equal_those_of_scikit_learn_on_standardised_features(sample, l2):
    features, labels = sample
    weights, bias = fit_probe(features, labels, l2)
    standardised = StandardScaler().fit_transform(features.astype(np.float64))
    for column in range(labels.shape[1]):
        known = ~np.isnan(labels[:, column])
        oracle = LogisticRegression(C=1 / (known.sum() * l2), tol=1e-10, max_iter=10_000)
        oracle.fit(standardised[known], labels[known, column])
        found = features.astype(np.float64) @ weights[:, column] + bias[column]
        assert_allclose(found, oracle.decision_function(standardised), rtol=1e-4, atol=1e-4)


def test_a_label_without_both_classes_has_no_weights_and_does_not_touch_others(sample):
    features, labels = sample
    beside = np.column_stack([labels, np.ones(SAMPLES), np.full(SAMPLES, np.nan)]).astype(np.float32)
    weights, bias = fit_probe(features, beside)
    assert np.isnan(weights[:, 2:]).all()
    assert np.isnan(bias[2:]).all()
    expected = fit_probe(features, labels)
    assert_allclose(weights[:, :2], expected[0])
    assert_allclose(bias[:2], expected[1])


def test_scale_and_place_of_the_features_do_not_matter(sample):
    features, labels = sample
    weights, bias = fit_probe(features, labels)
    moved = features.astype(np.float64) * 1000 - 7
    again = fit_probe(moved, labels)
    assert_allclose(moved @ again[0] + again[1], features @ weights + bias, rtol=1e-3, atol=1e-3)


def test_a_constant_feature_has_no_weight(sample):
    features, labels = sample
    constant = np.column_stack([features, np.full(SAMPLES, 0.1, np.float32)])
    weights, bias = fit_probe(constant, labels)
    assert (weights[-1] == 0).all()
    assert_allclose(bias, fit_probe(features, labels)[1], rtol=1e-6)


def test_separable_classes_have_finite_weights():
    weights, bias = fit_probe(np.asarray([[0.0], [1.0], [2.0], [3.0]]), np.asarray([[0.0], [0.0], [1.0], [1.0]]))
    assert 0 < weights[0, 0] < 100
    assert_allclose(-bias / weights[0], [1.5], rtol=1e-4)


def test_what_makes_no_sense_is_refused(sample):
    features, labels = sample
    with pytest.raises(ValueError, match="positive"):
        fit_probe(features, labels, 0.0)
    with pytest.raises(ValueError, match="uncertain"):
        fit_probe(features, np.where(np.isnan(labels), -1, labels))
