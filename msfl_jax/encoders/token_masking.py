"""Random masking of report tokens for masked language modeling (BERT)."""

import math
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

MASK_ID = 4
LAST_SPECIAL_ID = 5  # PAD UNK CLS SEP MASK DEID: never predicted, never drawn as a replacement


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
) -> TokenMasking:
    """Chooses max(1, round(rate * n)) of a report's n ordinary words and hides them; M = ceil(rate * T).

    Args:
      key: the masking is a function of it and of the tokens.
      token_ids: 0 is padding; ids up to 5 are special.
      rate: share of the words that is predicted.
      replacement: "bert" shows [MASK] for 80 %, another word for 10 % and the word itself for 10 %; "mask_only" always shows [MASK].
      vocab_size: replacements are drawn from 6 to this, exclusive.
    """
    choice_key, fate_key, word_key = jax.random.split(key, 3)
    positions, chosen = _choose(choice_key, token_ids, rate)
    targets = jnp.take_along_axis(token_ids, positions, axis=1)
    shown = jnp.full_like(targets, MASK_ID)
    if replacement == "bert":
        fate = jax.random.uniform(fate_key, targets.shape)
        words = jax.random.randint(word_key, targets.shape, LAST_SPECIAL_ID + 1, vocab_size, targets.dtype)
        shown = jnp.where(fate < 0.8, shown, jnp.where(fate < 0.9, words, targets))
    rows = jnp.arange(len(token_ids))[:, None]
    masked = token_ids.at[rows, positions].set(jnp.where(chosen, shown, targets))
    return TokenMasking(masked, positions, targets, chosen.astype(jnp.float32))


def _choose(
    key: Key[Array, ""], token_ids: Int[Array, "B T"], rate: float
) -> tuple[Int[Array, "B M"], Bool[Array, "B M"]]:
    """Distinct random positions, words first; True for those that are predicted."""
    ordinary = token_ids > LAST_SPECIAL_ID
    noise = jnp.where(ordinary, jax.random.uniform(key, token_ids.shape), 2.0)
    most = math.ceil(rate * token_ids.shape[1])
    count = ordinary.sum(axis=1, keepdims=True)
    wanted = jnp.minimum(jnp.maximum(1, jnp.round(rate * count)), count)
    return jnp.argsort(noise, axis=1)[:, :most], jnp.arange(most) < wanted
