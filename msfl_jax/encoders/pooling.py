"""One vector of many tokens: of an image, of a report, of each sentence."""

from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32, Int

from msfl_jax.encoders.vision import VisionTokens


def pool_image(tokens: VisionTokens, pool: Literal["mean", "mean_max", "cls"]) -> Float32[Array, "B C"]:
    """The image's vector: mean of its patches, mean and maximum side by side (C = 2D), or the class token.

    Raises:
      ValueError: "cls" without a class token.
    """
    patches = tokens.patches.astype(jnp.float32)
    if pool == "mean":
        return patches.mean(axis=1)
    if pool == "mean_max":
        return jnp.concatenate([patches.mean(axis=1), patches.max(axis=1)], axis=-1)
    if tokens.cls is None:
        raise ValueError("pool 'cls' needs a vision transformer with a class token")
    return tokens.cls.astype(jnp.float32)


def pool_report(
    states: Float[Array, "B T W"], token_ids: Int[Array, "B T"], pool: Literal["mean", "cls", "cls_linear"]
) -> Float32[Array, "B W"]:
    """The report's vector: mean over tokens that are not padding (0 where there are none), or the first token."""
    if pool != "mean":
        return states[:, 0].astype(jnp.float32)
    present = (token_ids != 0).astype(states.dtype)
    total = jnp.einsum("btw,bt->bw", states, present, preferred_element_type=jnp.float32)
    return total / jnp.maximum((token_ids != 0).sum(axis=1, keepdims=True), 1)


def pool_sentences(
    states: Float[Array, "B T W"], sentence_ids: Int[Array, "B T"], sentences: int, pool: Literal["mean", "sum"]
) -> tuple[Float32[Array, "B S W"], Bool[Array, "B S"]]:
    """Vectors of sentences 1 to S: mean or sum of their tokens, 0 where there is no such sentence; and which exist.

    One product with a one-hot matrix: as fast as a segment sum, and it splits over devices by rows.
    """
    member = sentence_ids[:, :, None] == jnp.arange(1, sentences + 1)
    total = jnp.einsum("btw,bts->bsw", states, member.astype(states.dtype), preferred_element_type=jnp.float32)
    count = member.sum(axis=1)
    return total / jnp.maximum(count, 1)[:, :, None] if pool == "mean" else total, count > 0


def separate_sentences(
    token_ids: Int[Array, "B T"], sentence_ids: Int[Array, "B T"], sentences: int
) -> Int[Array, "B S T"]:
    """Sentences 1 to S of each report as reports of their own: its first token ([CLS]), then the sentence, then padding."""
    member = sentence_ids[:, None, :] == jnp.arange(1, sentences + 1)[None, :, None]
    first = jnp.argsort(~member, axis=-1, stable=True)
    alone = jnp.take_along_axis(jnp.where(member, token_ids[:, None, :], 0), first, axis=-1)
    cls = jnp.broadcast_to(token_ids[:, :1, None], (*alone.shape[:2], 1))
    return jnp.concatenate([cls, alone[..., :-1]], axis=-1)
