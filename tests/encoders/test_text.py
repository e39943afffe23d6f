"""The report encoder: padding, empty reports, positions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from msfl_jax.encoders import BlockSpec, TextTransformer

SPEC = BlockSpec("bert", depth=2, width=16, heads=2, hidden=32)
REPORT = [2, 7, 9, 8, 3]


@pytest.fixture(scope="module")
def encode():
    module = TextTransformer(SPEC, vocab_size=20, max_tokens=12)
    variables = jax.jit(module.init)(jax.random.key(0), jnp.zeros((1, 12), jnp.int32))
    apply = jax.jit(module.apply)
    return lambda *reports: apply(variables, jnp.asarray(reports))


def test_padding_changes_no_state(encode):
    short, long = encode(REPORT), encode(REPORT + [0] * 7)
    assert_allclose(long[:, :5], short, rtol=1e-5, atol=1e-6)


def test_the_order_of_words_matters(encode):
    assert np.abs(encode(REPORT)[0, 0] - encode([2, 9, 7, 8, 3])[0, 0]).max() > 1e-5


def test_a_report_without_any_token_is_finite_in_value_and_gradient():
    module = TextTransformer(SPEC, vocab_size=20, max_tokens=12)
    empty = jnp.zeros((2, 12), jnp.int32)
    variables = jax.jit(module.init)(jax.random.key(0), empty)
    gradient = jax.jit(jax.grad(lambda v: jnp.square(module.apply(v, empty)).sum()))(variables)
    assert np.isfinite(module.apply(variables, empty)).all()
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


def test_reports_do_not_see_each_other(encode):
    alone, together = encode(REPORT), encode(REPORT, [2, 11, 12, 13, 3])
    assert_allclose(together[0], alone[0], rtol=1e-5, atol=1e-6)


def test_a_report_longer_than_the_position_table_is_refused(encode):
    with pytest.raises(ValueError, match="13 tokens; expected at most 12"):
        encode([2] * 13)
