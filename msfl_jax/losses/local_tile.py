"""Local alignment of some images with some reports: their scores (eq. 2), and the gradient of these by hand.

Shapes: A images of P regions, R reports of S sentences, vectors of width E. Reports lie sentence by sentence, [S, R, E], so that what is done
over the sentences of a report is done for all reports of the tile at once. Products are taken in the dtype of the inputs and summed in float32 at
least; everything else is float32, or float64 where the inputs are.
"""

import dataclasses
from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from msfl_jax.vectors import at_least_float32, safe_sqrt

Attention = Literal["gloria", "regions"]
Aggregate = Literal["sum", "mean"]

# GLoRIA's clamp of |c| |t|.
SMALLEST_NORM = 1e-8
# Weights reach down to exp(-2 region_scale); beyond this they could vanish in all regions, and a maximum is taken out first.
BOUNDED_SCALE = 20.0


@dataclasses.dataclass(frozen=True)
class Form:
    """How a score is computed; `gram` says whether c't and |c|^2 are taken as a's and a'Ga or from the contexts c."""

    attention: Attention
    region_scale: float
    sentence_scale: float
    aggregate: Aggregate
    gram: bool


class Reports(NamedTuple):
    """The sentences of a tile; those that are padding are zero vectors."""

    sentences: Float[Array, "S R E"]
    mask: Bool[Array, "S R"]


class Gradients(NamedTuple):
    """Of the regions (`gram` apart, since it adds up over tiles before it is multiplied out) and of the sentences of one tile."""

    regions: Float[Array, "A P E"]
    gram: Float[Array, "A P P"] | None
    sentences: Float[Array, "S R E"]


class _Matched(NamedTuple):
    """What both passes need. `response` is G w with the Gram form, else the contexts c = V'w."""

    similarity: Float[Array, "A P S R"]
    among_sentences: Float[Array, "A P S R"] | None
    weights: Float[Array, "A P S R"]
    response: Float[Array, "A P S R"] | Float[Array, "A S R E"]
    squared: Float[Array, "A S R"]
    inverse_length: Float[Array, "A S R"]
    clamped: Bool[Array, "A S R"]
    cosine: Float[Array, "A S R"]
    logits: Float[Array, "A S R"]


def gram_of(regions: Float[Array, "A P E"], form: Form) -> Float[Array, "A P P"] | None:
    """G = VV' of each image, where the form uses it, in the dtype of the regions."""
    return _product("ape,aqe->apq", regions, regions, like=regions).astype(regions.dtype) if form.gram else None


def tile_scores(
    regions: Float[Array, "A P E"], gram: Float[Array, "A P P"] | None, reports: Reports, form: Form
) -> tuple[Float[Array, "A R"], Float[Array, "A P S R"]]:
    """Z of all images of the tile with all its reports, 0 for a report without sentences; and similarities, which `tile_gradients` may be given."""
    matched = _match(regions, gram, reports, form)
    return of_reports(jax.nn.logsumexp(matched.logits, axis=1), reports.mask, form), matched.similarity


def tile_gradients(
    regions: Float[Array, "A P E"],
    gram: Float[Array, "A P P"] | None,
    reports: Reports,
    cotangent: Float[Array, "A R"],
    form: Form,
    similarity: Float[Array, "A P S R"] | None = None,
) -> Gradients:
    """The gradient of `sum(cotangent * tile_scores(...)[0])`, at least float32; similarities that were not kept are computed again.

    With w the unnormalised weights of a sentence on the regions, s = Vt and c = V'w: cos = w's / (sqrt(w'Gw) |t|) = c't / (|c| |t|), from which the
    normaliser of w has cancelled.
    """
    matched = _match(regions, gram, reports, form, similarity)
    cotangent = jnp.where(reports.mask.any(axis=0), cotangent, 0).astype(matched.cosine.dtype)
    d_cosine = form.sentence_scale * cotangent[:, None] * jax.nn.softmax(matched.logits, axis=1)
    # A vector too short has no direction to follow; beyond 1 a cosine only gets by rounding, and was cut there.
    d_cosine = jnp.where(matched.clamped | (jnp.abs(matched.cosine) > 1), 0, d_cosine)
    d_product = d_cosine * matched.inverse_length
    d_squared = -0.5 * d_cosine * matched.cosine / jnp.where(matched.clamped, 1, matched.squared)

    if form.gram:
        d_weights = d_product[:, None] * matched.similarity + 2 * d_squared[:, None] * matched.response
        d_gram = _product("apsr,aqsr->apq", d_squared[:, None] * matched.weights, matched.weights, like=regions)
        d_regions = 0
    else:
        through_squared = 2 * d_squared[..., None] * matched.response
        d_context = d_product[..., None] * reports.sentences + through_squared
        d_weights = _product("ape,asre->apsr", regions, d_context, like=regions)
        d_regions = _product("apsr,asre->ape", matched.weights, through_squared, like=regions)
        d_gram = None

    d_attended = form.region_scale * matched.weights * d_weights
    if matched.among_sentences is not None:
        mean = jnp.sum(matched.among_sentences * d_attended, axis=2, keepdims=True)
        d_attended = matched.among_sentences * (d_attended - mean)
    d_similarity = d_product[:, None] * matched.weights + d_attended
    d_sentences = _product("apsr,ape->sre", d_similarity, regions, like=regions)
    d_sentences += through_length(jnp.sum(d_cosine * matched.cosine, axis=0), reports.sentences)
    d_regions += _product("apsr,sre->ape", d_similarity, reports.sentences, like=regions)
    return Gradients(d_regions, d_gram, d_sentences)


def regions_from_gram(d_gram: Float[Array, "A P P"], regions: Float[Array, "A P E"]) -> Float[Array, "A P E"]:
    """The gradient of the regions from that of G = VV', which is symmetric."""
    return 2 * _product("apq,aqe->ape", d_gram, regions, like=regions)


def _match(
    regions: Float[Array, "A P E"],
    gram: Float[Array, "A P P"] | None,
    reports: Reports,
    form: Form,
    similarity: Float[Array, "A P S R"] | None = None,
) -> _Matched:
    """Each sentence with its attended context in each image: similarities, weights, lengths, cosines."""
    real = scored(reports.mask)
    if similarity is None:
        similarity = _product("ape,sre->apsr", regions, reports.sentences, like=regions)
    among_sentences = None
    if form.attention == "gloria":
        among_sentences = jax.nn.softmax(jnp.where(real, similarity, -jnp.inf), axis=2)
    attended = similarity if among_sentences is None else among_sentences
    highest = 1 if form.region_scale <= BOUNDED_SCALE else attended.max(axis=1, keepdims=True)
    weights = jnp.exp(form.region_scale * (attended - highest))

    if gram is None:
        response = _product("apsr,ape->asre", weights, regions, like=regions)
        squared, product = jnp.sum(response**2, axis=-1), jnp.sum(response * reports.sentences, axis=-1)
    else:
        response = _product("apq,aqsr->apsr", gram, weights, like=regions)
        squared, product = jnp.sum(weights * response, axis=1), jnp.sum(weights * similarity, axis=1)
    total = jnp.sum(weights, axis=1)
    both_lengths = safe_sqrt(squared) * lengths(reports.sentences)
    clamped = both_lengths < SMALLEST_NORM * total
    inverse_length = 1 / jnp.where(clamped, SMALLEST_NORM * total, both_lengths)
    cosine = product * inverse_length
    logits = jnp.where(real, form.sentence_scale * jnp.clip(cosine, -1, 1), -jnp.inf)
    return _Matched(similarity, among_sentences, weights, response, squared, inverse_length, clamped, cosine, logits)


def scored(mask: Bool[Array, "*tiles S R"]) -> Bool[Array, "*tiles S R"]:
    """The mask, all True for a report without sentences: its score is replaced afterwards, and no softmax is empty."""
    return mask | ~mask.any(axis=-2, keepdims=True)


def of_reports(scores: Float[Array, "A R"], mask: Bool[Array, "S R"], form: Form) -> Float[Array, "A R"]:
    """Scores from the log-sum-exp over each report's sentences: less log S where the form takes the mean, 0 for a report without sentences."""
    if form.aggregate == "mean":
        scores = scores - jnp.log(scored(mask).sum(axis=0)).astype(scores.dtype)
    return jnp.where(mask.any(axis=0), scores, 0)


def lengths(sentences: Float[Array, "*rows E"]) -> Float[Array, "*rows"]:
    """Of each sentence, at least float32."""
    return safe_sqrt(jnp.sum(at_least_float32(sentences) ** 2, axis=-1))


def through_length(d_log_length: Float[Array, "*rows"], sentences: Float[Array, "*rows E"]) -> Float[Array, "*rows E"]:
    """What cosines lose as sentences get longer: -sum_a(dcos cos) t / |t|^2."""
    squared = lengths(sentences)[..., None] ** 2
    return -d_log_length[..., None] * sentences / jnp.where(squared > 0, squared, 1)


def _product(
    equation: str, left: Float[Array, "..."], right: Float[Array, "..."], *, like: Float[Array, "..."]
) -> Float[Array, "..."]:
    """A product of operands of the dtype of `like`, summed in float32 at least."""
    out = jnp.promote_types(like.dtype, jnp.float32)
    precision = jax.lax.Precision.HIGHEST if like.dtype == out else jax.lax.Precision.DEFAULT
    product = partial(jnp.einsum, precision=precision, preferred_element_type=out)
    return product(equation, left.astype(like.dtype), right.astype(like.dtype))
