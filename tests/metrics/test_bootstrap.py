"""Bootstrap intervals against every possible resample, and against intervals known in closed form."""

from itertools import product

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy import stats

from msfl_jax.metrics import auc_statistic, bootstrap, mean_statistic, paired_bootstrap

# Patient "a" has two samples, so that resampling samples instead of patients would be seen.
PATIENTS = np.array(["a", "b", "a"])
VALUES = np.array([1.0, 4.0, 3.0])


def every_resample(patients, values):
    """The mean of each equally likely resample of patients, all samples of a patient together."""
    unique = sorted(set(patients))
    return np.array(
        [
            np.mean(np.concatenate([values[patients == p] for p in drawn]))
            for drawn in product(unique, repeat=len(unique))
        ]
    )


def test_two_patients_give_every_resample_in_its_proportion():
    means = every_resample(PATIENTS, VALUES)
    assert_allclose(sorted(means), [2.0, 8 / 3, 8 / 3, 4.0])
    seen = []
    bootstrap(lambda weights: seen.append(weights) or 0.0, PATIENTS, replicates=4000)
    weights, counts = np.unique(seen[:4000], axis=0, return_counts=True)
    assert_array_equal(weights, [[0, 2, 0], [1, 1, 1], [2, 0, 2]])
    # Five standard deviations of a share of 4000.
    assert_allclose(counts / 4000, [0.25, 0.5, 0.25], atol=5 * np.sqrt(0.25 / 4000))


@pytest.mark.parametrize("level, low, high", [(0.95, 2.0, 4.0), (0.6, 2.0, 4.0), (0.4, 8 / 3, 8 / 3)])
def test_the_interval_of_two_patients_has_the_quantiles_of_all_resamples(level, low, high):
    interval = bootstrap(mean_statistic(VALUES), PATIENTS, level=level)
    exact = np.quantile(np.repeat(every_resample(PATIENTS, VALUES), 1000), [(1 - level) / 2, (1 + level) / 2])
    assert_allclose(exact, [low, high])
    assert_allclose(interval, [8 / 3, low, high])


def test_the_interval_of_a_mean_has_the_width_of_the_normal_theory():
    values = np.random.default_rng(0).normal(size=400)
    interval = bootstrap(mean_statistic(values), np.arange(400))
    half_width = 1.96 * values.std() / 20
    assert_allclose(
        [interval.low, interval.high], values.mean() + half_width * np.array([-1, 1]), atol=0.1 * half_width
    )


def test_samples_of_a_patient_that_agree_do_not_narrow_the_interval():
    values = np.random.default_rng(0).normal(size=50)
    alone = bootstrap(mean_statistic(values), np.arange(50))
    repeated = bootstrap(mean_statistic(values.repeat(4)), np.arange(50).repeat(4))
    assert_allclose(repeated, alone, rtol=1e-12)


def test_the_value_is_that_of_the_samples_as_they_are_and_the_seed_decides_the_rest():
    rng = np.random.default_rng(0)
    scores, labels, patients = rng.normal(size=60), rng.integers(0, 2, 60), rng.integers(0, 30, 60)
    statistic = auc_statistic(scores, labels)
    first, again, other = (bootstrap(statistic, patients, replicates=200, seed=seed) for seed in (0, 0, 1))
    assert first == again
    assert first.value == other.value == statistic(np.ones(60))
    assert (first.low, first.high) != (other.low, other.high)
    assert first.low < first.value < first.high


def test_undefined_replicates_are_ignored_and_nothing_defined_gives_nan():
    scores, labels, patients = np.array([0.1, 0.9]), np.array([0, 1]), np.arange(2)
    assert_array_equal(bootstrap(auc_statistic(scores, labels), patients), [1, 1, 1])
    assert_array_equal(bootstrap(auc_statistic(scores, np.ones(2)), patients), [np.nan] * 3)


def test_missing_values_stay_out_of_the_mean():
    statistic = mean_statistic(np.array([1.0, np.nan, 4.0]))
    assert statistic(np.ones(3)) == 2.5
    assert statistic(np.array([2.0, 5.0, 1.0])) == 2.0
    assert np.isnan(statistic(np.array([0.0, 1.0, 0.0])))


def test_the_difference_of_a_statistic_with_itself_shifted_is_exactly_the_shift():
    rng = np.random.default_rng(0)
    values, patients = rng.normal(size=40), rng.integers(0, 20, 40)
    interval = paired_bootstrap(mean_statistic(values + 0.25), mean_statistic(values), patients)
    assert_allclose(interval, [0.25] * 3, rtol=1e-12)
    apart = bootstrap(mean_statistic(values), patients)
    assert apart.high - apart.low > 0.1


def test_intervals_do_not_depend_on_the_names_of_patients():
    values = np.random.default_rng(0).normal(size=12)
    patients = np.asarray([0, 0, 1, 2, 2, 2, 3, 4, 5, 5, 6, 7])
    renamed = np.asarray([f"{(37 * patient + 11) % 101:03d}" for patient in patients])
    assert bootstrap(mean_statistic(values), patients, replicates=50) == bootstrap(
        mean_statistic(values), renamed, replicates=50
    )


def test_one_sample_per_patient_gives_the_interval_of_scipy():
    rng = np.random.default_rng(0)
    scores, labels = rng.normal(size=40), np.arange(40) % 2
    scores = scores + labels
    ours = bootstrap(auc_statistic(scores, labels), np.arange(40), replicates=4000)

    def area(chosen):
        return auc_statistic(scores[chosen], labels[chosen])(np.ones(len(chosen)))

    theirs = stats.bootstrap(
        (np.arange(40),), area, n_resamples=4000, method="percentile", vectorized=False, rng=np.random.default_rng(1)
    ).confidence_interval
    # Two random sets of 4000 resamples; quantiles of each have a standard error of some 0.004 here.
    assert_allclose([ours.low, ours.high], theirs, atol=0.02)
