"""Reports read in groups by length against the same reports read at full length."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from msfl_jax.encoders import BlockSpec, TextTransformer, read_by_length, useful_tokens

TOKENS = 12
ENCODER = TextTransformer(BlockSpec("bert", depth=1, width=8, heads=2, hidden=16), vocab_size=20, max_tokens=TOKENS)
PARAMS = ENCODER.init(jax.random.key(0), jnp.zeros((1, TOKENS), jnp.int32))


def reports(lengths):
    rng = np.random.default_rng(len(lengths))
    token_ids = rng.integers(1, 20, (len(lengths), TOKENS)).astype(np.int32)
    return np.where(np.arange(TOKENS) < np.asarray(lengths)[:, None], token_ids, 0)


def read(token_ids, buckets=(), parts=1):
    """States of real tokens, and the gradient of a sum over them."""

    def total(params):
        states = read_by_length(lambda rows: ENCODER.apply(params, rows), token_ids, buckets=buckets, parts=parts)
        real = jnp.where((token_ids != 0)[..., None], states, 0)
        return jnp.sum(jnp.sin(real)), real

    gradients, states = jax.jit(jax.grad(total, has_aux=True))(PARAMS)
    return states, gradients


@pytest.mark.parametrize("parts", [1, 2, 4])
@pytest.mark.parametrize("buckets", [((4, 0.5),), ((4, 0.25), (8, 0.5)), ((5, 0.1), (7, 0.85))], ids=str)
@pytest.mark.parametrize("lengths", [[3, 12, 4, 2, 8, 3, 1, 9], [12] * 8, [0, 4, 0, 12, 5, 4, 0, 12]], ids=str)
def test_groups_give_the_states_and_gradients_of_full_length_whether_reports_fit_or_not(lengths, buckets, parts):
    token_ids = reports(lengths)
    for ours, theirs in zip(
        jax.tree.leaves(read(token_ids, buckets, parts)), jax.tree.leaves(read(token_ids)), strict=True
    ):
        assert_allclose(ours, theirs, rtol=1e-5, atol=2e-6)


def loop(lengths, buckets, parts):
    """Tokens that are computed, report by report."""
    per_part = len(lengths) // parts
    computed = 0
    for part in range(parts):
        own = sorted(lengths[part * per_part : (part + 1) * per_part])
        room = [tokens for tokens, share in buckets for _ in range(int(per_part * share))]
        room += [TOKENS] * (per_part - len(room))
        if any(length > most for length, most in zip(own, room, strict=True)):
            return len(lengths) * TOKENS
        computed += sum(room)
    return computed


@given(
    st.lists(st.integers(0, TOKENS), min_size=8, max_size=8), st.sampled_from([(), ((4, 0.5),), ((3, 0.3), (8, 0.45))])
)
def test_useful_tokens_are_counted_as_by_hand(lengths, buckets):
    for parts in (1, 2):
        useful, computed = useful_tokens(jnp.asarray(reports(lengths)), buckets=buckets, parts=parts)
        assert (float(useful), float(computed)) == (sum(lengths), loop(lengths, buckets, parts))


def test_fewer_tokens_are_computed_where_reports_fit():
    """By the compiler's own count of what each branch multiplies."""
    rows = jnp.zeros((64, TOKENS), jnp.int32)
    seen = []

    def encode(token_ids):
        seen.append(token_ids.shape)
        return ENCODER.apply(PARAMS, token_ids)

    jax.eval_shape(lambda rows: read_by_length(encode, rows, buckets=((4, 0.5), (8, 0.25)), parts=2), rows)
    assert sorted(seen) == [(16, 8), (16, TOKENS), (32, 4), (64, TOKENS)]
