"""Pooling against loops, with padding and reports that have nothing to pool."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from msfl_jax.encoders import VisionTokens, pool_image, pool_report, pool_sentences

IDS = st.lists(st.lists(st.integers(0, 4), min_size=6, max_size=6), min_size=1, max_size=3)


@given(sentence_ids=IDS, pool=st.sampled_from(["mean", "sum"]))
def test_sentences_equal_a_loop(sentence_ids, pool):
    ids = np.asarray(sentence_ids, np.int32)
    states = np.random.default_rng(0).normal(size=(*ids.shape, 3)).astype(np.float32)
    sentences, present = pool_sentences(jnp.asarray(states), jnp.asarray(ids), 5, pool)
    for b, s in np.ndindex(len(ids), 5):
        members = states[b, ids[b] == s + 1].astype(np.float64)
        expected = np.zeros(3) if not len(members) else members.sum(axis=0) / (len(members) if pool == "mean" else 1)
        assert_allclose(sentences[b, s], expected, rtol=1e-5, atol=1e-6)
        assert present[b, s] == bool(len(members))


def test_gradients_are_zero_outside_sentences():
    ids = jnp.asarray([[0, 1, 1, 2, 0, 0]])
    gradient = jax.grad(lambda x: pool_sentences(x, ids, 3, "mean")[0].sum())(jnp.ones((1, 6, 2)))
    assert_allclose(gradient[0, :, 0], [0, 0.5, 0.5, 1, 0, 0])


def test_the_mean_of_a_report_leaves_padding_out():
    states = jnp.asarray([[[1.0], [3.0], [100.0]], [[1.0], [1.0], [1.0]]])
    found = pool_report(states, jnp.asarray([[2, 3, 0], [0, 0, 0]]), "mean")
    assert_allclose(found, [[2.0], [0.0]])
    assert_allclose(pool_report(states, jnp.asarray([[2, 3, 0], [2, 3, 0]]), "cls"), [[1.0], [1.0]])


def test_images_are_pooled_by_mean_maximum_or_class_token():
    patches = jnp.asarray([[[1.0, 5.0], [3.0, 1.0]]])
    tokens = VisionTokens(patches, jnp.asarray([[7.0, 8.0]]), patches)
    assert_allclose(pool_image(tokens, "mean"), [[2, 3]])
    assert_allclose(pool_image(tokens, "mean_max"), [[2, 3, 3, 5]])
    assert_allclose(pool_image(tokens, "cls"), [[7, 8]])


def test_pooling_an_absent_class_token_is_refused():
    tokens = VisionTokens(jnp.zeros((1, 2, 2)), None, jnp.zeros((1, 2, 2)))
    with pytest.raises(ValueError, match="class token"):
        pool_image(tokens, "cls")


@pytest.mark.parametrize("pool", ["mean", "sum"])
def test_pooled_half_precision_is_summed_in_float32(pool):
    states = jnp.full((1, 600, 1), 1.01, jnp.bfloat16)
    ones = jnp.ones((1, 600), jnp.int32)
    exact = float(states[0, 0, 0]) * (600 if pool == "sum" else 1)
    assert_allclose(pool_sentences(states, ones, 1, pool)[0], [[[exact]]], rtol=1e-5)
    assert_allclose(pool_report(states, ones, "mean"), [[float(states[0, 0, 0])]], rtol=1e-5)
