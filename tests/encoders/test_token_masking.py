"""Masked language modeling: which words are hidden, how many, and behind what."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from msfl_jax.encoders import TRAINED_HERE, SpecialTokens, mask_tokens

VOCAB = 50
LAST_SPECIAL_ID = TRAINED_HERE.ids[-1]
IMPORTED = SpecialTokens(mask=13, ids=(0, 10, 11, 12, 13, 49))  # as BERT numbers them, [DEID] appended
MASK = 4


def reports(lengths, tokens=20, seed=0):
    """[CLS] words [UNK] [DEID] [SEP] padding, with so many words each."""
    rng = np.random.default_rng(seed)
    rows = []
    for length in lengths:
        row = [2, *rng.integers(LAST_SPECIAL_ID + 1, VOCAB, length), 1, 5, 3]
        rows.append(row + [0] * (tokens - len(row)))
    return jnp.asarray(rows, jnp.int32)


jitted = jax.jit(mask_tokens, static_argnames=("rate", "replacement", "vocab_size", "special"))


def mask(token_ids, seed=0, rate=0.15, replacement="bert"):
    return jitted(jax.random.key(seed), token_ids, rate=rate, replacement=replacement, vocab_size=VOCAB)


@given(
    lengths=st.lists(st.integers(0, 16), min_size=4, max_size=4),
    rate=st.sampled_from([0.15, 0.3, 0.9]),
    seed=st.integers(0, 1000),
)
def test_words_are_hidden_and_special_tokens_never(lengths, rate, seed):
    token_ids = reports(lengths)
    masking = jax.tree.map(np.asarray, mask(token_ids, seed, rate))
    most = math.ceil(rate * 20)
    assert masking.positions.shape == (len(lengths), most)
    for b, length in enumerate(lengths):
        wanted = max(1, round(float(np.float32(rate) * length))) if length else 0
        chosen = masking.positions[b][masking.weights[b] == 1]
        assert len(set(chosen)) == len(chosen) == wanted
        assert (np.asarray(token_ids)[b, chosen] > LAST_SPECIAL_ID).all()
        assert_array_equal(masking.targets[b][: len(chosen)], np.asarray(token_ids)[b, chosen])
        elsewhere = np.setdiff1d(np.arange(20), chosen)
        assert_array_equal(masking.token_ids[b, elsewhere], np.asarray(token_ids)[b, elsewhere])


@pytest.fixture(scope="module")
def many():
    token_ids = reports([16] * 3000)
    masking = mask(token_ids, rate=0.5)
    shown = np.take_along_axis(np.asarray(masking.token_ids), np.asarray(masking.positions), axis=1)
    keep = np.asarray(masking.weights) == 1
    return shown[keep], np.asarray(masking.targets)[keep], np.asarray(masking.positions)[keep]


def within(share, expected, draws):
    return abs(share - expected) < 5 * np.sqrt(expected * (1 - expected) / draws)


def test_of_hidden_words_80_percent_show_mask_10_another_word_10_themselves(many):
    shown, targets, _ = many
    other_words = VOCAB - LAST_SPECIAL_ID - 1
    assert within((shown == MASK).mean(), 0.8, len(shown))
    assert within((shown == targets).mean(), 0.1 + 0.1 / other_words, len(shown))
    assert within(((shown != MASK) & (shown != targets)).mean(), 0.1 - 0.1 / other_words, len(shown))


def test_replacements_are_ordinary_words_and_all_of_them_occur(many):
    shown, targets, _ = many
    drawn = shown[(shown != MASK) & (shown != targets)]
    assert set(drawn) == set(range(LAST_SPECIAL_ID + 1, VOCAB))


def test_every_word_is_chosen_equally_often(many):
    _, _, positions = many
    counts = np.bincount(positions, minlength=20)
    assert not counts[[0, 17, 18, 19]].any()
    assert all(within(count / 3000, 0.5, 3000) for count in counts[1:17])


def test_special_tokens_of_an_imported_vocabulary_are_left_alone_too():
    words = np.setdiff1d(np.arange(VOCAB), IMPORTED.ids)
    drawn = np.random.default_rng(0).choice(words, (2000, 16))
    ends = np.full((2000, 1), 11), np.full((2000, 1), 12)
    token_ids = jnp.asarray(
        np.concatenate([ends[0], drawn, np.full((2000, 1), 49), ends[1], ends[1] * 0], 1), jnp.int32
    )
    rules = {"rate": 0.5, "replacement": "bert", "vocab_size": VOCAB, "special": IMPORTED}
    masking = jax.tree.map(np.asarray, jitted(jax.random.key(0), token_ids, **rules))
    keep = masking.weights == 1
    shown = np.take_along_axis(masking.token_ids, masking.positions, axis=1)[keep]
    assert set(masking.positions[keep]) == set(range(1, 17))
    assert within((shown == IMPORTED.mask).mean(), 0.8, len(shown))
    replaced = shown[(shown != IMPORTED.mask) & (shown != masking.targets[keep])]
    assert set(replaced) == set(words)


def test_mask_only_shows_nothing_but_mask():
    masking = mask(reports([16] * 50), replacement="mask_only")
    shown = jnp.take_along_axis(masking.token_ids, masking.positions, axis=1)
    assert (shown[masking.weights == 1] == MASK).all()


def test_a_report_without_words_is_left_alone():
    token_ids = jnp.asarray([[2, 3] + [0] * 18, [0] * 20], jnp.int32)
    masking = mask(token_ids)
    assert not masking.weights.any()
    assert_array_equal(masking.token_ids, token_ids)


def test_masks_are_a_function_of_the_key():
    token_ids = reports([16] * 8)
    assert_array_equal(mask(token_ids, 1).token_ids, mask(token_ids, 1).token_ids)
    assert (mask(token_ids, 1).positions != mask(token_ids, 2).positions).any()
