"""Local alignment: image regions against report sentences, for all pairs of the batch (eq. 2 and 3), in blocks of reports."""

from collections.abc import Callable
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from msfl_jax.losses.similarity import Direction, contrast
from msfl_jax.vectors import at_least_float32, safe_sqrt, unit

Attention = Literal["gloria", "regions"]
Aggregate = Literal["sum", "mean"]

# Scores [images, block, S, P] held at once when the block is chosen here: 64 MiB in float32.
_SCORES_AT_ONCE = 2**24
# Patches per embedding value below which the Gram form needs fewer operations, forward and backward together.
_GRAM_PAYS_BELOW = 1.33
# GLoRIA's clamp of |c| |t|.
_SMALLEST_NORM = 1e-8

_einsum = partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)


def local_alignment(
    regions: Float[Array, "B P E"],
    sentences: Float[Array, "B S E"],
    sentence_mask: Bool[Array, "B S"],
    *,
    attention: Attention = "gloria",
    region_scale: float = 4.0,
    sentence_scale: float = 5.0,
    aggregate: Aggregate = "sum",
    block: int | None = None,
    logit_scale: float = 10.0,
    direction: Direction = "symmetric",
    same_study: Bool[Array, "B B"] | None = None,
) -> Float[Array, ""]:
    """Pulls the regions of each image to the sentences of its own report (eq. 3).

    Args:
      regions, sentences, sentence_mask, attention, region_scale, sentence_scale, aggregate, block: as in `local_scores`.
      logit_scale: multiplies the scores; 10 in GLoRIA, 1 if the printed equation is read with one temperature.
      direction: "symmetric" is the mean of both directions; GLoRIA adds them, which is a factor of 2.
      same_study: pairs that share a report without being matched; they leave the denominators, the diagonal never does.

    Returns:
      Mean cross-entropy in nats, at least float32; 0 for a batch of one.
    """
    scores = local_scores(
        regions,
        sentences,
        sentence_mask,
        attention=attention,
        region_scale=region_scale,
        sentence_scale=sentence_scale,
        aggregate=aggregate,
        block=block,
    )
    return contrast(logit_scale * scores, direction, same_study)


def local_scores(
    regions: Float[Array, "A P E"],
    sentences: Float[Array, "B S E"],
    sentence_mask: Bool[Array, "B S"],
    *,
    attention: Attention = "gloria",
    region_scale: float = 4.0,
    sentence_scale: float = 5.0,
    aggregate: Aggregate = "sum",
    block: int | None = None,
) -> Float[Array, "A B"]:
    """How well the regions of each image explain the sentences of each report: Z of eq. 2, before the final scale.

    For image regions v_p and sentences t_i of one report, with a_ip the attention of sentence i on region p:
      c_i = sum_p a_ip v_p;   r_i = cos(c_i, t_i);   Z = log sum_i exp(sentence_scale r_i)

    The contexts c of all pairs are never formed: c.t = sum_p a_p (v_p.t), and |c|^2 = a'Ga with G = VV' of each image where
    that is cheaper than the contexts of one block. Backward passes are computed block by block as well.

    Args:
      regions: any length of vector; P per image.
      sentences: row b is report b; S includes padding.
      sentence_mask: True where a sentence is real; the others change nothing. A report without any scores 0 everywhere.
      attention: "gloria" takes raw dot products, a softmax over the report's sentences, and a softmax over regions of
        `region_scale` times that (GLoRIA's code); "regions" takes unit vectors and a softmax over regions of `region_scale`
        times the cosine (what GLoRIA and eq. 2 print).
      region_scale: multiplies the input of the softmax over regions; 4 in GLoRIA's code.
      sentence_scale: multiplies the cosines; 5 in GLoRIA's code.
      aggregate: "sum" is eq. 2; "mean" subtracts log S of the report, so that long reports have no advantage.
      block: reports scored at once. None or 0 takes all while their scores stay below 2^24 numbers, else as many as that allows.

    Returns:
      Z, rows images, columns reports, at least float32.

    Raises:
      ValueError: `attention` or `aggregate` is no known word.
    """
    _check_words(attention, aggregate)
    dtype = jnp.promote_types(regions.dtype, sentences.dtype)
    regions, sentences = at_least_float32(regions.astype(dtype)), at_least_float32(sentences.astype(dtype))
    sentences = jnp.where(sentence_mask[..., None], sentences, 0)
    if attention == "regions":
        regions, sentences = unit(regions), unit(sentences)
    use_gram = regions.shape[1] < _GRAM_PAYS_BELOW * regions.shape[2]
    gram = _einsum("ape,aqe->apq", regions, regions) if use_gram else None
    score = partial(
        _score_block, attention=attention, region_scale=region_scale, sentence_scale=sentence_scale, aggregate=aggregate
    )
    size = _reports_per_block(block, regions.shape, sentences.shape, use_gram)
    return _map_blocks(lambda *reports: score(regions, gram, *reports), sentences, sentence_mask, size)


def _check_words(attention: str, aggregate: str) -> None:
    if attention not in ("gloria", "regions"):
        raise ValueError(f"attention is {attention!r}; expected gloria or regions")
    if aggregate not in ("sum", "mean"):
        raise ValueError(f"aggregate is {aggregate!r}; expected sum or mean")


def _reports_per_block(block: int | None, regions: tuple[int, ...], sentences: tuple[int, ...], use_gram: bool) -> int:
    """The block size, evened out over the blocks; without the Gram form never the whole batch, whose contexts would then exist."""
    (images, patches, _), (reports, count, _) = regions, sentences
    size = block or max(1, _SCORES_AT_ONCE // (images * patches * count))
    blocks = max(-(-reports // size), 1 if use_gram else min(2, reports))
    return -(-reports // blocks)


def _map_blocks(
    score: Callable[[Array, Array], Array], sentences: Float[Array, "B S E"], mask: Bool[Array, "B S"], size: int
) -> Float[Array, "A B"]:
    """`score(sentences, mask)` over blocks of `size` reports, keeping only the inputs for the backward pass."""
    reports, count, width = sentences.shape
    if size == reports:
        return score(sentences, mask)
    padding = -reports % size
    sentences = jnp.pad(sentences, ((0, padding), (0, 0), (0, 0))).reshape(-1, size, count, width)
    mask = jnp.pad(mask, ((0, padding), (0, 0))).reshape(-1, size, count)
    # The scan around it already keeps XLA from merging the recomputation with the forward pass.
    recomputed = jax.checkpoint(score, prevent_cse=False)
    scores = jax.lax.map(lambda reports: recomputed(*reports), (sentences, mask))
    return jnp.moveaxis(scores, 0, 1).reshape(scores.shape[1], -1)[:, :reports]


def _score_block(
    regions: Float[Array, "A P E"],
    gram: Float[Array, "A P P"] | None,
    sentences: Float[Array, "b S E"],
    mask: Bool[Array, "b S"],
    *,
    attention: Attention,
    region_scale: float,
    sentence_scale: float,
    aggregate: Aggregate,
) -> Float[Array, "A b"]:
    """Z of all images with a block of reports; padded sentences are zero vectors."""
    has_sentence = mask.any(axis=-1)
    # A report without sentences is scored as if its padding were real, then replaced: no empty softmax, no gradient.
    mask = mask | ~has_sentence[:, None]
    similarity = _einsum("ape,bse->apbs", regions, sentences)
    if attention == "gloria":
        among_sentences = jax.nn.softmax(jnp.where(mask, similarity, -jnp.inf), axis=-1)
        weights = jax.nn.softmax(region_scale * among_sentences, axis=1)
    else:
        weights = jax.nn.softmax(region_scale * similarity, axis=1)
    cosine = _cosine_with_context(weights, similarity, regions, gram, safe_sqrt(jnp.sum(sentences**2, axis=-1)))
    scores = jax.nn.logsumexp(jnp.where(mask, sentence_scale * cosine, -jnp.inf), axis=-1)
    if aggregate == "mean":
        scores = scores - jnp.log(mask.sum(axis=-1)).astype(scores.dtype)
    return jnp.where(has_sentence, scores, 0)


def _cosine_with_context(
    weights: Float[Array, "A P b S"],
    similarity: Float[Array, "A P b S"],
    regions: Float[Array, "A P E"],
    gram: Float[Array, "A P P"] | None,
    sentence_length: Float[Array, "b S"],
) -> Float[Array, "A b S"]:
    """Cosine of each sentence with its attended context, its denominator clamped as GLoRIA does."""
    product = jnp.sum(weights * similarity, axis=1)
    if gram is None:
        squared = jnp.sum(_einsum("apbs,ape->abse", weights, regions) ** 2, axis=-1)
    else:
        squared = jnp.sum(weights * _einsum("apq,aqbs->apbs", gram, weights), axis=1)
    lengths = safe_sqrt(squared) * sentence_length
    clamped = lengths < _SMALLEST_NORM
    cosine = product / jnp.where(clamped, 1, lengths)
    # A vector this short has no direction to follow: GLoRIA's value, but not its gradient of 1e8.
    cosine = jnp.where(clamped, jax.lax.stop_gradient(product) / _SMALLEST_NORM, cosine)
    # Product and lengths were rounded on their own: where regions cancel, only rounding can take the quotient beyond 1.
    return jnp.clip(cosine, -1, 1)
