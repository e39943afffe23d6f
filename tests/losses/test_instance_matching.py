"""Hard negatives and the matching loss: distribution, exclusions, sign and weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from msfl_jax.losses import hard_negative_probabilities, instance_matching, sample_hard_negatives


def loop_probabilities(similarity, exclude):
    reports_for_image, images_for_report = np.zeros((2, *similarity.shape))
    for i in range(len(similarity)):
        reports = {j: np.exp(similarity[i, j]) for j in range(len(similarity)) if i != j and not exclude[i, j]}
        images = {j: np.exp(similarity[j, i]) for j in range(len(similarity)) if i != j and not exclude[j, i]}
        for row, weights in ((reports_for_image[i], reports), (images_for_report[i], images)):
            for j, weight in weights.items():
                row[j] = weight / sum(weights.values())
    return reports_for_image, images_for_report


@settings(max_examples=30)
@given(
    batch=st.sampled_from([1, 2, 4]),
    seed=st.integers(0, 2**32 - 1),
    pairs=st.lists(st.booleans(), min_size=16, max_size=16),
)
def test_probabilities_equal_a_loop_and_are_zero_where_everything_is_excluded(batch, seed, pairs):
    similarity = 4 * np.random.default_rng(seed).normal(size=(batch, batch))
    exclude = np.array(pairs).reshape(4, 4)[:batch, :batch]
    with jax.enable_x64():
        actual = jax.jit(hard_negative_probabilities)(similarity, exclude=exclude)
    for ours, loop in zip(actual, loop_probabilities(similarity, exclude), strict=True):
        assert_allclose(ours, loop, rtol=1e-9, atol=1e-15)


def test_similarities_that_underflow_still_give_a_negative():
    similarity = jnp.asarray([[1.0, -1.0], [-1.0, 1.0]]) / 0.01
    exclude = jnp.zeros((2, 2), bool)
    for probabilities in hard_negative_probabilities(similarity, exclude=exclude):
        assert_array_equal(probabilities, [[0, 1], [1, 0]])
    negatives = sample_hard_negatives(similarity, jax.random.key(0), exclude=exclude)
    assert_array_equal(negatives.report, [1, 0])
    assert_array_equal(negatives.image, [1, 0])


def test_draws_follow_the_probabilities_and_never_take_an_excluded_pair():
    similarity = jnp.asarray(np.random.default_rng(0).normal(size=(4, 4)))
    exclude = jnp.zeros((4, 4), bool).at[0, 1].set(True).at[3].set(True)
    draws = 20_000
    sample = jax.vmap(lambda key: sample_hard_negatives(similarity, key, exclude=exclude))
    negatives = sample(jax.random.split(jax.random.key(1), draws))
    for drawn, expected in zip(negatives[:2], hard_negative_probabilities(similarity, exclude=exclude), strict=True):
        frequency = np.stack([np.bincount(column, minlength=4) for column in np.asarray(drawn).T]) / draws
        rows = np.asarray(expected).sum(axis=1) > 0
        # Five standard deviations of a frequency, and exactly none where the probability is 0.
        assert (np.abs(frequency - expected) <= 5 * np.sqrt(np.asarray(expected) / draws))[rows].all()
    assert_array_equal(negatives.has_report[0], [True, True, True, False])
    assert_array_equal(negatives.has_image[0], [True, True, True, True])
    assert_array_equal(negatives.report[:, 3], 3)


def test_a_batch_without_any_negative_says_so_and_keeps_indices_in_range():
    for size in (1, 3):
        negatives = sample_hard_negatives(
            jnp.ones((size, size)), jax.random.key(0), exclude=jnp.ones((size, size), bool)
        )
        assert not negatives.has_report.any()
        assert not negatives.has_image.any()
        assert_array_equal(negatives.report, np.arange(size))
        assert_array_equal(negatives.image, np.arange(size))


def test_the_same_key_draws_the_same_negatives_and_sides_are_drawn_apart():
    exclude = jnp.zeros((64, 64), bool)
    first, again, other = (
        sample_hard_negatives(jnp.zeros((64, 64)), jax.random.key(seed), exclude=exclude) for seed in (0, 0, 1)
    )
    assert_array_equal(first.report, again.report)
    assert not np.array_equal(first.report, other.report)
    assert not np.array_equal(first.report, first.image)


def test_no_gradient_flows_through_sampling():
    def picked(similarity):
        negatives = sample_hard_negatives(similarity, jax.random.key(0), exclude=jnp.zeros((3, 3), bool))
        return negatives.report.sum() * 1.0 + (similarity - jax.lax.stop_gradient(similarity)).sum() * 0

    assert_array_equal(jax.grad(picked)(jnp.eye(3)), 0)


def test_the_loss_is_the_cross_entropy_with_the_sign_that_rewards_being_right():
    logits, matched = np.array([2.0, -1.0, 0.5, -3.0]), np.array([1.0, 1.0, 0.0, 0.0])
    chance = 1 / (1 + np.exp(-logits))
    expected = np.mean([-np.log(p) if y else -np.log(1 - p) for p, y in zip(chance, matched, strict=True)])
    assert_allclose(instance_matching(jnp.asarray(logits), jnp.asarray(matched)), expected, rtol=1e-6)
    assert_allclose(instance_matching(jnp.asarray(logits), jnp.asarray(matched) == 1), expected, rtol=1e-6)
    assert instance_matching(jnp.asarray([9.0, -9.0]), jnp.asarray([True, False])) < 1e-3
    gradient = jax.grad(instance_matching)(jnp.zeros(2), jnp.asarray([True, False]))
    assert gradient[0] < 0 < gradient[1]


def test_pairs_of_weight_zero_are_left_out_even_when_they_are_not_finite():
    logits, matched = jnp.asarray([2.0, jnp.nan, 0.5]), jnp.asarray([True, True, False])
    weights = jnp.asarray([1.0, 0.0, 3.0])
    value, gradient = jax.value_and_grad(instance_matching)(logits, matched, weights)
    assert_allclose(value, (np.log1p(np.exp(-2.0)) + 3 * np.log1p(np.exp(0.5))) / 4, rtol=1e-6)
    assert gradient[0] < 0 < gradient[2]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_no_weight_at_all_and_huge_logits_are_finite(dtype):
    logits, matched = jnp.asarray([1e4, -1e4, 1e4], dtype), jnp.asarray([True, True, False])
    value, gradient = jax.value_and_grad(instance_matching)(logits, matched)
    assert value.dtype == jnp.float32
    assert_allclose(value, 2e4 / 3, rtol=1e-2)
    assert np.isfinite(np.asarray(gradient, np.float64)).all()
    value, gradient = jax.value_and_grad(instance_matching)(logits, matched, jnp.zeros(3))
    assert value == 0
    assert_array_equal(gradient, 0)
