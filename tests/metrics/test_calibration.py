"""Calibration against scikit-learn, a loop over bins, and scores whose calibration is known."""

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.calibration import calibration_curve

from msfl_jax.metrics import calibration_error, calibration_statistic, reliability_curve

SIZE = 30
STRATEGY = {"equal_width": "uniform", "equal_mass": "quantile"}
# Grids of a tenth and of a thirtieth lie on the edges of bins.
probabilities_of = hnp.arrays(
    float, SIZE, elements=st.one_of(st.floats(0, 1), st.integers(0, 10).map(lambda n: n / 10))
)
labels_of = hnp.arrays(float, SIZE, elements=st.sampled_from([0.0, 1.0, np.nan]))


@pytest.mark.parametrize("binning", STRATEGY)
@given(probabilities=probabilities_of, labels=labels_of, bins=st.integers(1, 12))
def test_the_curve_equals_scikit_learns(binning, probabilities, labels, bins):
    known = ~np.isnan(labels)
    assume(len(np.unique(labels[known])) == 2)
    observed, predicted = calibration_curve(
        labels[known], probabilities[known], n_bins=bins, strategy=STRATEGY[binning]
    )
    found = reliability_curve(probabilities, labels, bins=bins, binning=binning)
    assert_allclose(found.observed, observed, rtol=1e-12)
    assert_allclose(found.predicted, predicted, rtol=1e-12)
    assert found.count.sum() == known.sum()


@given(probabilities=probabilities_of, labels=labels_of, weights=hnp.arrays(np.int64, SIZE, elements=st.integers(0, 3)))
def test_the_error_equals_a_loop_over_bins_and_repeated_samples(probabilities, labels, weights):
    bins, total, expected = 5, 0, 0.0
    for low in range(bins):
        gap = 0.0
        for probability, label, weight in zip(probabilities, labels, weights, strict=True):
            edge = [low / bins, (low + 1) / bins]
            inside = edge[0] < probability <= edge[1] or (low == 0 and probability == 0)
            if inside and not np.isnan(label):
                gap += weight * (label - probability)
                total += weight
        expected += abs(gap)
    found = calibration_statistic(probabilities, labels, bins=bins)(weights.astype(float))
    assert_allclose(found, expected / total if total else np.nan, atol=1e-12)
    repeated = calibration_error(probabilities.repeat(weights), labels.repeat(weights), bins=bins)
    assert_allclose(found, repeated, atol=1e-12)


def test_a_calibrated_score_has_no_error_and_an_overconfident_one_has():
    rng = np.random.default_rng(0)
    probabilities = rng.uniform(size=40_000)
    labels = (rng.uniform(size=40_000) < probabilities).astype(float)
    for binning in STRATEGY:
        assert calibration_error(probabilities, labels, binning=binning) < 0.015
        assert calibration_error(np.round(probabilities), labels, binning=binning) == pytest.approx(0.25, abs=0.01)


def test_bins_of_equal_mass_hold_as_many_and_never_part_equal_scores():
    probabilities = np.linspace(0, 0.1, 100)
    labels = np.zeros(100)
    assert_array_equal(reliability_curve(probabilities, labels, bins=4, binning="equal_mass").count, [25] * 4)
    assert_array_equal(reliability_curve(probabilities, labels, bins=4).count, [100])
    assert_array_equal(reliability_curve(np.full(9, 0.3), np.ones(9), bins=4, binning="equal_mass").count, [9])


def test_without_known_samples_there_is_no_error():
    nothing = np.asarray([np.nan, np.nan])
    for binning in STRATEGY:
        assert np.isnan(calibration_error(np.asarray([0.1, 0.2]), nothing, binning=binning))
        assert len(reliability_curve(np.asarray([0.1, 0.2]), nothing, binning=binning).count) == 0


@pytest.mark.parametrize("probability", [-0.1, 1.1, np.nan])
def test_what_is_no_probability_is_refused_where_it_counts(probability):
    values = np.asarray([0.5, probability])
    with pytest.raises(ValueError, match=r"0\.\.1"):
        calibration_error(values, np.asarray([0.0, 1.0]))
    assert calibration_error(values, np.asarray([0.0, np.nan])) == 0.5


def test_uncertain_labels_and_no_bins_are_refused():
    with pytest.raises(ValueError, match="uncertain"):
        calibration_error(np.zeros(1), np.asarray([-1.0]))
    with pytest.raises(ValueError, match="1 or more"):
        calibration_error(np.zeros(1), np.zeros(1), bins=0)
