"""Ranks against a loop over all pairs, chance against counting, the median against NumPy."""

import tracemalloc
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from msfl_jax.metrics import retrieval
from msfl_jax.metrics.retrieval import chance_of_recall, median_statistic, rank_pairs


def cosine(a, b):
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


@given(st.integers(0, 2**31), st.integers(1, 12), st.integers(1, 6), st.integers(1, 5))
def test_ranks_equal_a_loop_over_pairs_for_any_block(seed, images, reports, block):
    rng = np.random.default_rng(seed)
    reports = min(images, reports)
    owner = rng.permutation(np.concatenate([np.arange(reports), rng.integers(0, reports, images - reports)]))
    image, report = rng.normal(size=(images, 4)), rng.normal(size=(reports, 4))
    found = rank_pairs(image, report, owner, block=block)
    for i in range(images):
        right = cosine(image[i], report[owner[i]])
        ahead = [cosine(image[i], report[u]) > right for u in range(reports) if u != owner[i]]
        assert found.of_report[i] == 1 + sum(ahead)
    for u in range(reports):
        right = max(cosine(image[i], report[u]) for i in range(images) if owner[i] == u)
        ahead = [cosine(image[i], report[u]) > right for i in range(images) if owner[i] != u]
        assert found.of_image[u] == 1 + sum(ahead)


def test_blocks_of_reports_change_nothing(monkeypatch):
    rng = np.random.default_rng(0)
    owner = np.concatenate([np.arange(9), rng.integers(0, 9, 11)])
    image, report = rng.normal(size=(20, 3)), rng.normal(size=(9, 3))
    whole = rank_pairs(image, report, owner)
    monkeypatch.setattr(retrieval, "_REPORTS_PER_BLOCK", 4)
    assert_array_equal(rank_pairs(image, report, owner, block=6).of_report, whole.of_report)
    assert_array_equal(rank_pairs(image, report, owner, block=6).of_image, whole.of_image)


def test_images_of_one_report_are_never_wrong_for_each_other():
    image, report = np.asarray([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]]), np.asarray([[1.0, 0.0], [0.0, 1.0]])
    found = rank_pairs(image, report, np.asarray([0, 0, 1]))
    assert_array_equal(found.of_report, [1, 1, 1])
    assert_array_equal(found.of_image, [1, 1])


def test_a_model_that_sees_no_difference_is_last():
    found = rank_pairs(np.ones((5, 3)), np.ones((4, 3)), np.asarray([0, 1, 2, 3, 3]))
    assert_array_equal(found.of_report, [4] * 5)
    assert_array_equal(found.of_image, [5, 5, 5, 4])


def test_memory_is_that_of_a_block_and_not_of_all_pairs():
    rng = np.random.default_rng(0)
    image, report = (rng.normal(size=(4000, 8)).astype(np.float32) for _ in range(2))
    tracemalloc.start()
    rank_pairs(image, report, np.arange(4000), block=64)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8e6 < 4000 * 4000 * 4


@pytest.mark.parametrize("pool, right, k", [(5, 1, 1), (5, 2, 2), (6, 3, 2), (4, 4, 1), (4, 2, 9), (7, 2, 5)])
def test_chance_counts_the_draws_that_hit(pool, right, k):
    draws = list(combinations(range(pool), min(k, pool)))
    expected = np.mean([any(candidate < right for candidate in draw) for draw in draws])
    assert_allclose(chance_of_recall(np.asarray([right]), pool, k), [expected], atol=1e-12)


def test_the_median_is_numpys_lower_one_of_repeated_values():
    rng = np.random.default_rng(0)
    values, weights = rng.integers(1, 50, 31), rng.integers(0, 4, 31)
    expected = np.quantile(values.repeat(weights), 0.5, method="inverted_cdf")
    assert median_statistic(values)(weights.astype(float)) == expected
    assert np.isnan(median_statistic(values)(np.zeros(31)))
