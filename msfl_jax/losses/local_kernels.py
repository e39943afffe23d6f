"""What the TPU kernels of local alignment do with one tile: some images and 128 reports, in the fast memory of a core (see `local_pallas`).

The arithmetic is that of `local_tile` in its Gram form, arranged for a TPU. A register has 128 lanes, so the sentences of 128 reports lie side by
side: N = S * 128 columns, the first sentence of every report, then the second, and so on. All of them with one image are then one matrix product,
sums over regions go down columns, and what couples the sentences of a report happens between slices of whole registers: nothing is reshaped.

Regions and columns that fill up a block are zero vectors. A zero vector adds nothing to s = Vt, to Gw or to any gradient, so only the sum and the
maximum of weights have to leave such regions out.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array, Bool, Float

from msfl_jax.losses.local_tile import BOUNDED_SCALE, SMALLEST_NORM, Form
from msfl_jax.vectors import safe_sqrt

# Reports of a tile: the lanes of a register.
REPORTS = 128


class Operands(NamedTuple):
    """What every kernel reads: references to the blocks of a tile, I images with N columns, or the values of one image and all columns.

    Attributes:
      regions: [I, P, E], P and E filled up with zeros.
      gram: [I, P, P], VV' of each image in the dtype of the regions.
      sentences: [N, E].
      lengths: [1, N], float32.
      bias: [1, N], 0 or, for the padding of a report, minus infinity.
    """

    regions: Any
    gram: Any
    sentences: Any
    lengths: Any
    bias: Any

    def of_image(self, image: Any) -> "Operands":
        """The values of one image, read from references."""
        return Operands(self.regions[image], self.gram[image], self.sentences[...], self.lengths[...], self.bias[...])


class _Matched(NamedTuple):
    """One image with all sentences, as `local_tile` has it; `response` is G w."""

    similarity: Float[Array, "P N"]
    among_sentences: Float[Array, "P N"] | None
    weights: Float[Array, "P N"]
    response: Float[Array, "P N"]
    squared: Float[Array, "1 N"]
    inverse_length: Float[Array, "1 N"]
    clamped: Bool[Array, "1 N"]
    cosine: Float[Array, "1 N"]
    logits: Float[Array, "1 N"]


class _Derivatives(NamedTuple):
    """Of the weighted scores of one image, by s = Vt, by w'Gw, and by the logarithm of a sentence's length (with its sign turned)."""

    similarity: Float[Array, "P N"]
    squared: Float[Array, "1 N"]
    log_length: Float[Array, "1 N"]


def scores_kernel(form: Form, patches: int, *references: Any) -> None:
    """Writes the log-sum-exp over each report's sentences for every image of the tile: operands -> scores [I, 1, 128]."""
    operands, scores = Operands(*references[:5]), references[5]

    @pl.loop(0, operands.regions.shape[0])
    def score(image: Any) -> None:
        logits = _match(form, patches, operands.of_image(image)).logits
        highest = _over_sentences(jnp.maximum, logits)
        total = _over_sentences(jnp.add, jnp.exp(logits - _repeated(highest, logits)))
        scores[image] = jnp.log(total) + highest


def regions_kernel(form: Form, patches: int, *references: Any) -> None:
    """Adds up the gradient of the regions over the tiles of reports, the inner axis of the grid.

    operands, cotangent [I, 1, 128] -> d_regions [I, P, E] float32. That of the Gram matrices waits in scratch, [I, P, P], for the last tile.
    """
    operands, (cotangent, d_regions, d_gram) = Operands(*references[:5]), references[5:]

    @pl.when(pl.program_id(1) == 0)
    def start() -> None:
        d_regions[...] = jnp.zeros(d_regions.shape, d_regions.dtype)
        d_gram[...] = jnp.zeros(d_gram.shape, d_gram.dtype)

    @pl.loop(0, operands.regions.shape[0])
    def add(image: Any) -> None:
        values = operands.of_image(image)
        matched = _match(form, patches, values)
        found = _differentiate(form, matched, cotangent[image])
        dtype = values.regions.dtype
        d_regions[image] += _product(found.similarity.astype(dtype), values.sentences, (1, 0))
        weighted = (found.squared * matched.weights).astype(dtype)
        d_gram[image] += _product(weighted, matched.weights.astype(dtype), (1, 1))

    @pl.when(pl.program_id(1) == pl.num_programs(1) - 1)
    def finish() -> None:
        @pl.loop(0, operands.regions.shape[0])
        def of_image(image: Any) -> None:
            regions = operands.regions[image]
            d_regions[image] += 2 * _product(d_gram[image].astype(regions.dtype), regions, (1, 0))


def sentences_kernel(form: Form, patches: int, *references: Any) -> None:
    """Adds up the gradient of the sentences over the tiles of images, the inner axis of the grid.

    operands, cotangent [I, 1, 128] -> d_sentences [N, E] float32, as far as it goes through s = Vt, and d_log_length [1, N], which is for
    `local_tile.through_length`.
    """
    operands, (cotangent, d_sentences, d_log_length) = Operands(*references[:5]), references[5:]

    @pl.when(pl.program_id(1) == 0)
    def start() -> None:
        d_sentences[...] = jnp.zeros(d_sentences.shape, d_sentences.dtype)
        d_log_length[...] = jnp.zeros(d_log_length.shape, d_log_length.dtype)

    @pl.loop(0, operands.regions.shape[0])
    def add(image: Any) -> None:
        values = operands.of_image(image)
        found = _differentiate(form, _match(form, patches, values), cotangent[image])
        d_sentences[...] += _product(found.similarity.astype(values.regions.dtype), values.regions, (0, 0))
        d_log_length[...] += found.log_length


def _match(form: Form, patches: int, tile: Operands) -> _Matched:
    """All sentences with their attended contexts in one image, of which the first `patches` regions are real."""
    similarity = _product(tile.regions, tile.sentences, (1, 1))
    among_sentences = _softmax(similarity + tile.bias) if form.attention == "gloria" else None
    attended = similarity if among_sentences is None else among_sentences
    real = None
    if patches < len(similarity):
        real = jax.lax.broadcasted_iota(jnp.int32, similarity.shape, 0) < patches
    highest: Any = 1.0
    if form.region_scale > BOUNDED_SCALE:
        highest = jnp.max(attended if real is None else jnp.where(real, attended, -jnp.inf), axis=0, keepdims=True)
    weights = jnp.exp(form.region_scale * (attended - highest))
    if real is not None:
        weights = jnp.where(real, weights, 0.0)

    response = _product(tile.gram, weights.astype(tile.gram.dtype), (1, 0))
    squared, product, total = (_column_sum(weights * factor) for factor in (response, similarity, 1.0))
    both_lengths = safe_sqrt(squared) * tile.lengths
    clamped = both_lengths < SMALLEST_NORM * total
    inverse_length = 1 / jnp.where(clamped, SMALLEST_NORM * total, both_lengths)
    cosine = product * inverse_length
    logits = form.sentence_scale * jnp.clip(cosine, -1.0, 1.0) + tile.bias
    return _Matched(similarity, among_sentences, weights, response, squared, inverse_length, clamped, cosine, logits)


def _differentiate(form: Form, matched: _Matched, cotangent: Float[Array, "1 128"]) -> _Derivatives:
    """The derivatives of `sum(cotangent * scores)` of one image, as in `local_tile.tile_gradients`."""
    d_cosine = form.sentence_scale * _repeated(cotangent, matched.logits) * _softmax(matched.logits)
    d_cosine = jnp.where(matched.clamped | (jnp.abs(matched.cosine) > 1), 0.0, d_cosine)
    d_product = d_cosine * matched.inverse_length
    d_squared = -0.5 * d_cosine * matched.cosine / jnp.where(matched.clamped, 1.0, matched.squared)

    d_weights = d_product * matched.similarity + 2 * d_squared * matched.response
    d_attended = form.region_scale * matched.weights * d_weights
    if matched.among_sentences is not None:
        mean = _over_sentences(jnp.add, matched.among_sentences * d_attended)
        d_attended = matched.among_sentences * (d_attended - _repeated(mean, d_attended))
    return _Derivatives(d_product * matched.weights + d_attended, d_squared, d_cosine * matched.cosine)


def _over_sentences(combine: Callable[[Array, Array], Array], values: Float[Array, "R N"]) -> Float[Array, "R 128"]:
    """What is combined over the sentences of each report."""
    count = values.shape[1] // REPORTS
    return functools.reduce(combine, (values[:, REPORTS * k : REPORTS * (k + 1)] for k in range(count)))


def _repeated(by_report: Float[Array, "R 128"], like: Float[Array, "Q N"]) -> Float[Array, "R N"]:
    """For each sentence what its report has; as many columns as `like`."""
    return jnp.concatenate([by_report] * (like.shape[1] // REPORTS), axis=1)


def _softmax(values: Float[Array, "R N"]) -> Float[Array, "R N"]:
    """Over the sentences of each report, one of which is finite."""
    raised = jnp.exp(values - _repeated(_over_sentences(jnp.maximum, values), values))
    return raised * _repeated(1 / _over_sentences(jnp.add, raised), values)


def _column_sum(values: Float[Array, "P N"]) -> Float[Array, "1 N"]:
    return jnp.sum(values, axis=0, keepdims=True)


def _product(left: Float[Array, "L M"], right: Float[Array, "Q K"], over: tuple[int, int]) -> Float[Array, "O U"]:
    """A product of operands of one dtype over an axis of each, summed in float32."""
    exact = left.dtype == jnp.float32
    return jax.lax.dot_general(
        left,
        right,
        (((over[0],), (over[1],)), ((), ())),
        precision=jax.lax.Precision.HIGHEST if exact else jax.lax.Precision.DEFAULT,
        preferred_element_type=jnp.float32,
    )
