"""Heads: fusion, instance matching, masked-language logits, initial distributions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from msfl_jax import heads


@pytest.mark.parametrize(
    ("fusion", "expected"),
    [("sum", [4, 1]), ("product", [3, -2]), ("concat", [1, 2, 3, -1]), ("sum_product", [4, 1, 3, -2])],
)
def test_pairs_are_fused_as_named(fusion, expected):
    assert_allclose(heads.fuse(jnp.asarray([[1.0, 2.0]]), jnp.asarray([[3.0, -1.0]]), fusion), [expected])


@pytest.mark.parametrize("activation", ["gelu", "relu", "none"])
def test_matching_logits_equal_two_dense_layers_by_hand(activation):
    image, report = jax.random.normal(jax.random.key(0), (2, 3, 4))
    head = heads.MatchingHead(5, fusion="sum", activation=activation)
    variables = head.init(jax.random.key(1), image, report)
    params = jax.tree.map(np.asarray, variables["params"])
    hidden = np.asarray(image + report) @ params["hidden"]["kernel"]
    curve = {
        "gelu": lambda x: jax.nn.gelu(x, approximate=False),
        "relu": lambda x: np.maximum(x, 0),
        "none": lambda x: x,
    }
    expected = np.asarray(curve[activation](hidden)) @ params["logit"]["kernel"]
    assert_allclose(head.apply(variables, image, report), expected[:, 0], rtol=1e-5, atol=1e-6)


def test_a_linear_head_on_a_sum_cannot_tell_matched_pairs_from_swapped_ones():
    """Why an activation is needed: matched and swapped pairs have the same mean logit, whatever the weights."""
    image, report = jax.random.normal(jax.random.key(0), (2, 2, 4))
    swapped = report[::-1]

    def gap(activation):
        head = heads.MatchingHead(5, fusion="sum", activation=activation)
        variables = head.init(jax.random.key(1), image, report)
        return abs(float(head.apply(variables, image, report).mean() - head.apply(variables, image, swapped).mean()))

    assert gap("none") < 1e-6 < 1e-3 < gap("gelu")


def test_language_logits_use_the_word_table_and_are_float32():
    states, words = jax.random.normal(jax.random.key(0), (2, 3, 8)), jax.random.normal(jax.random.key(1), (11, 8))
    head = heads.LanguageHead("bfloat16")
    variables = head.init(jax.random.key(2), states, words)
    logits = head.apply(variables, states, words)
    assert logits.dtype == jnp.float32
    assert logits.shape == (2, 3, 11)
    moved = head.apply(variables, states, words.at[4].add(1.0))
    assert np.flatnonzero(np.abs(moved - logits).max(axis=(0, 1)) > 1e-6).tolist() == [4]


def test_projections_are_xavier_and_the_pooler_is_normal_as_in_bert():
    inputs = jnp.zeros((1, 96))
    projection = heads.projection(64).init(jax.random.key(0), inputs)["params"]["kernel"]
    pooler = heads.pooler(64).init(jax.random.key(0), inputs)["params"]["kernel"]
    assert_allclose(np.abs(projection).max(), np.sqrt(6 / 160), rtol=0.01)
    assert_allclose(projection.std(), np.sqrt(2 / 160), rtol=0.03)
    assert_allclose(pooler.std(), 0.02, rtol=0.05)
