"""Random masking of report tokens for masked language modeling (BERT)."""

import math
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key


class SpecialTokens(NamedTuple):
    """Ids that masking must know; the defaults are those of every tokenizer trained by `input_pipeline.tokenizer`.

    Attributes:
      mask: id of [MASK].
      ids: of PAD UNK CLS SEP MASK DEID, ascending: never predicted, never drawn as a replacement.
    """

    mask: int = 4
    ids: tuple[int, ...] = (0, 1, 2, 3, 4, 5)


TRAINED_HERE = SpecialTokens()


class TokenMasking(NamedTuple):
    """A masked report and what is to be predicted.

    Attributes:
      token_ids: Int [B, T], what the encoder sees.
      positions: Int [B, M], the predicted tokens.
      targets: Int [B, M], the tokens that stood there.
      weights: Float [B, M], 1, or 0 where a report has fewer than M tokens to predict.
    """

    token_ids: Int[Array, "B T"]
    positions: Int[Array, "B M"]
    targets: Int[Array, "B M"]
    weights: Float[Array, "B M"]


def mask_tokens(
    key: Key[Array, ""],
    token_ids: Int[Array, "B T"],
    *,
    rate: float,
    replacement: Literal["bert", "mask_only"],
    vocab_size: int,
    special: SpecialTokens = TRAINED_HERE,
) -> TokenMasking:
    """Chooses max(1, round(rate * n)) of a report's n ordinary words and hides them; M = ceil(rate * T).

    Args:
      key: the masking is a function of it and of the tokens.
      token_ids: 0 is padding.
      rate: share of the words that is predicted.
      replacement: "bert" shows [MASK] for 80 %, another word for 10 % and the word itself for 10 %; "mask_only" always shows [MASK].
      vocab_size: replacements are drawn from the ids below it that are not special.
      special: tokens that are no words.
    """
    choice_key, fate_key, word_key = jax.random.split(key, 3)
    positions, chosen = _choose(choice_key, token_ids, rate, special)
    targets = jnp.take_along_axis(token_ids, positions, axis=1)
    shown = jnp.full_like(targets, special.mask)
    if replacement == "bert":
        fate = jax.random.uniform(fate_key, targets.shape)
        words = jax.random.randint(word_key, targets.shape, 0, vocab_size - len(special.ids), targets.dtype)
        for index in special.ids:  # the n-th id that is not special
            words = jnp.where(words >= index, words + 1, words)
        shown = jnp.where(fate < 0.8, shown, jnp.where(fate < 0.9, words, targets))
    rows = jnp.arange(len(token_ids))[:, None]
    masked = token_ids.at[rows, positions].set(jnp.where(chosen, shown, targets))
    return TokenMasking(masked, positions, targets, chosen.astype(jnp.float32))


def _choose(
    key: Key[Array, ""], token_ids: Int[Array, "B T"], rate: float, special: SpecialTokens
) -> tuple[Int[Array, "B M"], Bool[Array, "B M"]]:
    """Distinct random positions, words first; True for those that are predicted."""
    ordinary = ~jnp.isin(token_ids, jnp.asarray(special.ids, token_ids.dtype))
    noise = jnp.where(ordinary, jax.random.uniform(key, token_ids.shape), 2.0)
    most = math.ceil(rate * token_ids.shape[1])
    count = ordinary.sum(axis=1, keepdims=True)
    wanted = jnp.minimum(jnp.maximum(1, jnp.round(rate * count)), count)
    return jnp.argsort(noise, axis=1)[:, :most], jnp.arange(most) < wanted
