"""Reconstruction losses against plain loops; masks and weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from msfl_jax.losses import image_reconstruction, masked_language_modeling


@pytest.fixture(autouse=True, scope="module")
def float64():
    with jax.enable_x64():
        yield


@settings(max_examples=20)
@given(seed=st.integers(0, 2**32 - 1), masked=st.lists(st.booleans(), min_size=6, max_size=6), as_float=st.booleans())
def test_image_reconstruction_equals_a_loop_over_masked_patches(seed, masked, as_float):
    predicted, target = np.random.default_rng(seed).normal(size=(2, 2, 3, 4))
    masked = np.array(masked).reshape(2, 3)
    errors = [np.mean((predicted[b, p] - target[b, p]) ** 2) for b in range(2) for p in range(3) if masked[b, p]]
    loss = jax.jit(image_reconstruction)(predicted, target, masked.astype(float) if as_float else masked)
    assert_allclose(loss, np.mean(errors) if errors else 0.0, rtol=1e-12)


def test_visible_patches_get_no_gradient():
    predicted, target = map(jnp.asarray, np.random.default_rng(0).normal(size=(2, 2, 3, 4)))
    masked = jnp.asarray([[True, False, False], [False, True, False]])
    gradient = jax.grad(image_reconstruction)(predicted, target, masked)
    assert_allclose(gradient, jnp.where(masked[..., None], (predicted - target) * 2 / 4 / 2, 0), rtol=1e-12)
    assert_array_equal(jax.grad(image_reconstruction)(predicted, target, jnp.zeros((2, 3), bool)), 0)


@settings(max_examples=20)
@given(seed=st.integers(0, 2**32 - 1), real=st.lists(st.sampled_from([0.0, 1.0, 2.0]), min_size=6, max_size=6))
def test_masked_language_modeling_equals_a_loop_over_positions(seed, real):
    rng = np.random.default_rng(seed)
    logits, tokens, weights = 5 * rng.normal(size=(2, 3, 7)), rng.integers(0, 7, (2, 3)), np.array(real).reshape(2, 3)
    total = sum(
        weights[b, m] * -np.log(np.exp(logits[b, m, tokens[b, m]]) / np.exp(logits[b, m]).sum())
        for b in range(2)
        for m in range(3)
    )
    loss = jax.jit(masked_language_modeling)(logits, tokens, weights)
    assert_allclose(loss, total / weights.sum() if weights.any() else 0.0, rtol=1e-9, atol=1e-12)


def test_padded_positions_get_no_gradient():
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(1, 3, 7)))
    gradient = jax.grad(masked_language_modeling)(logits, jnp.zeros((1, 3), int), jnp.asarray([[1.0, 0.0, 1.0]]))
    assert_array_equal(gradient[0, 1], 0)
    assert_allclose(gradient.sum(axis=-1), 0, atol=1e-15)
    assert (gradient[0, (0, 2), 0] < 0).all()


def test_half_precision_is_computed_in_float32_and_float64_stays():
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(1, 3, 7)))
    patches, tokens, weights = jnp.ones((1, 3, 4)), jnp.zeros((1, 3), int), jnp.ones((1, 3), bool)
    for dtype, expected in (("float16", "float32"), ("bfloat16", "float32"), ("float64", "float64")):
        assert masked_language_modeling(logits.astype(dtype), tokens, weights).dtype == expected
        assert image_reconstruction(patches.astype(dtype), patches.astype(dtype), weights).dtype == expected
