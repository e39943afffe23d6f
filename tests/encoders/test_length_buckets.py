"""Reports read in groups by length against the same reports read at full length."""

import functools
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from msfl_jax.encoders import BlockSpec, TextTransformer, read_both, read_by_length, useful_tokens
from msfl_jax.parallel.mesh import batch_sharding

TOKENS, WORDS, WIDTH = 12, 20, 4
LENGTHS = ([3, 12, 4, 2, 8, 3, 1, 9], [12] * 8, [0, 4, 0, 12, 5, 4, 0, 12])


def reports(lengths):
    rng = np.random.default_rng(len(lengths))
    token_ids = rng.integers(1, WORDS, (len(lengths), TOKENS)).astype(np.int32)
    return np.where(np.arange(TOKENS) < np.asarray(lengths)[:, None], token_ids, 0)


def attend(params, token_ids):
    """The simplest encoder that is blind to padding: every token takes its share of all that are real."""
    states = params["words"][token_ids] + params["positions"][: token_ids.shape[1]]
    logits = jnp.where((token_ids != 0)[:, None], states @ states.swapaxes(1, 2), -1e9)
    return jax.nn.softmax(logits, axis=-1) @ states


def made(shape):
    return np.random.default_rng(0).normal(size=shape)


@functools.cache
def reading(encode, buckets=(), parts=1):
    """Compiled: states of real tokens, and the gradient of a sum over them."""

    def total(params, token_ids):
        states = read_by_length(partial(encode, params), token_ids, buckets=buckets, parts=parts)
        real = jnp.where((token_ids != 0)[..., None], states, 0)
        return jnp.sum(jnp.sin(real)), real

    return jax.jit(jax.grad(total, has_aux=True))


@pytest.mark.parametrize("parts", [1, 2, 4])
@pytest.mark.parametrize("buckets", [((4, 0.5),), ((4, 0.25), (8, 0.5)), ((5, 0.1), (7, 0.85))], ids=str)
def test_groups_give_the_states_and_gradients_of_full_length_whether_reports_fit_or_not(buckets, parts):
    with jax.enable_x64():
        params = {"words": made((WORDS, WIDTH)), "positions": made((TOKENS, WIDTH))}
        for lengths in LENGTHS:
            token_ids = reports(lengths)
            found, expected = (reading(attend, *how)(params, token_ids) for how in ((buckets, parts), ()))
            for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
                assert ours.dtype == np.float64
                assert_allclose(ours, theirs, rtol=1e-10, atol=1e-12)


def test_the_report_encoder_is_such_an_encoder():
    encoder = TextTransformer(BlockSpec("bert", 1, WIDTH, heads=2, hidden=8), vocab_size=WORDS, max_tokens=TOKENS)
    params = encoder.init(jax.random.key(0), jnp.zeros((1, TOKENS), jnp.int32))
    token_ids = jnp.asarray(reports(LENGTHS[0]))
    encode = jax.jit(encoder.apply)
    found = read_by_length(partial(encode, params), token_ids, buckets=((4, 0.5), (9, 0.25)))
    real = (token_ids != 0)[..., None]
    assert_allclose(jnp.where(real, found, 0), jnp.where(real, encode(params, token_ids), 0), rtol=1e-5, atol=2e-6)


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


@given(st.lists(st.integers(0, TOKENS), min_size=6, max_size=6), st.sampled_from([((4, 0.5),), ((4, 0.3), (8, 0.4))]))
def test_reports_beside_their_masked_selves_are_grouped_as_the_reports_are(lengths, buckets):
    """With three reports a part, a half is one report; of their six rows it is two, not three."""
    token_ids, seen = jnp.asarray(reports(lengths)), []

    def encode(rows):
        jax.debug.callback(lambda rows: seen.append(rows.size), rows)
        return rows[..., None].astype(jnp.float32)

    masked = jnp.where(token_ids == 7, 1, token_ids)
    states = read_both(encode, token_ids, masked, buckets=buckets, parts=2)
    jax.effects_barrier()
    assert sum(seen) == 2 * useful_tokens(token_ids, buckets=buckets, parts=2)[1]
    for found, expected in zip(states, (token_ids, masked), strict=True):
        assert_allclose(found[..., 0], expected)


def test_fewer_tokens_are_computed_where_reports_fit():
    """By the shapes that the encoder is traced with: those of the groups, and of all rows for a batch that does not fit."""
    rows = jax.ShapeDtypeStruct((64, TOKENS), jnp.int32)
    seen = []

    def encode(token_ids):
        seen.append(token_ids.shape)
        return jnp.zeros((*token_ids.shape, WIDTH))

    jax.eval_shape(lambda rows: read_by_length(encode, rows, buckets=((4, 0.5), (8, 0.25)), parts=2), rows)
    assert sorted(seen) == [(16, 8), (16, TOKENS), (32, 4), (64, TOKENS)]


def test_no_report_leaves_its_device(mesh_of):
    """In the compiled gradient, all that devices exchange is whether reports fit, and sums of gradients by parameters."""
    params = {"words": jnp.zeros((WORDS, WIDTH)), "positions": jnp.zeros((TOKENS, WIDTH))}
    mesh = mesh_of(4, 2)
    rows = jax.ShapeDtypeStruct((64, TOKENS), jnp.int32, sharding=batch_sharding(mesh))
    with jax.set_mesh(mesh):
        text = reading(attend, ((4, 0.5), (8, 0.25)), 8).lower(params, rows).compile().as_text()
    assert not re.search(r"(all-gather|all-to-all|collective-permute|reduce-scatter)(-start)?\(", text)
    reduced = re.findall(r"= \(?\w+\[([\d,]*)\][^=\n]* all-reduce(?:-start)?\(", text)
    assert set(reduced) <= {"", f"{WORDS},{WIDTH}", f"{TOKENS},{WIDTH}"}
    assert "" in reduced
