"""Local alignment of a whole batch, tile by tile: what is held at once does not grow with the square of the batch, backward either.

Both passes go over tiles of images and, within them, over tiles of reports. Nothing of the forward pass is kept but its inputs; the backward pass
computes each tile again. So B^2 S P scores and B^2 S E contexts never exist, only one tile of them and the [B, B] result.
"""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Shaped

from msfl_jax.losses.local_tile import Form, Reports, gram_of, regions_from_gram, tile_gradients, tile_scores

# Scores [images, P, S, reports] of one tile where nothing else is asked for: 64 MiB in float32.
SCORES_AT_ONCE = 2**24
# Reports of a tile, where nothing else is asked for: enough columns for fast products, few enough to leave room for many images.
_REPORTS_AT_ONCE = 64
# Patches per embedding value below which the Gram form needs fewer operations, forward and backward together.
_GRAM_PAYS_BELOW = 1.33


@dataclasses.dataclass(frozen=True)
class Tiling:
    """Images and reports of one tile."""

    images: int
    reports: int

    @classmethod
    def of(cls, regions: tuple[int, ...], sentences: tuple[int, ...], block: int | None, *, whole: bool) -> "Tiling":
        """Tiles for arrays of these shapes, evened out.

        Args:
          regions, sentences: shapes [A, P, E] and [B, S, E].
          block: reports of a tile; chosen here where None. As many images go with them as may be held at once.
          whole: one tile may hold the whole batch. Not with contexts: those of all pairs would exist.
        """
        (images, patches, _), (reports, count, _) = regions, sentences
        several = min(block or max(_REPORTS_AT_ONCE, SCORES_AT_ONCE // max(1, images * patches * count)), reports)
        at_once = max(1, SCORES_AT_ONCE // max(1, patches * count * several))
        if several == reports and not whole:
            at_once = min(at_once, -(-images // 2))
        return cls(evened(images, at_once), evened(reports, several))


def uses_gram(patches: int, width: int) -> bool:
    """Whether the Gram form needs fewer operations than the contexts."""
    return patches < _GRAM_PAYS_BELOW * width


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def blockwise_scores(
    form: Form,
    tiling: Tiling,
    regions: Float[Array, "A P E"],
    sentences: Float[Array, "B S E"],
    sentence_mask: Bool[Array, "B S"],
) -> Float[Array, "A B"]:
    """`local_tile.tile_scores` of all images with all reports; regions and sentences have one dtype, padded sentences are zero vectors."""
    grouped = sentence_by_sentence(sentences, sentence_mask, tiling.reports)

    def with_all_reports(images: Float[Array, "a P E"]) -> Float[Array, "m a r"]:
        gram = gram_of(images, form)
        return jax.lax.map(lambda reports: tile_scores(images, gram, reports, form), grouped)

    scores = jax.lax.map(with_all_reports, _split(regions, tiling.images))
    return _joined(scores)[: len(regions), : len(sentences)]


def blockwise_gradients(
    form: Form,
    tiling: Tiling,
    regions: Float[Array, "A P E"],
    sentences: Float[Array, "B S E"],
    sentence_mask: Bool[Array, "B S"],
    cotangent: Float[Array, "A B"],
) -> tuple[Float[Array, "A P E"], Float[Array, "B S E"]]:
    """The gradients of `sum(cotangent * blockwise_scores(...))` by regions and by sentences, at least float32."""
    grouped = sentence_by_sentence(sentences, sentence_mask, tiling.reports)
    dtype = cotangent.dtype

    def with_all_reports(d_sentences, tile):
        images, cotangents = tile
        gram = gram_of(images, form)

        def with_reports(sums, tile):
            reports, weights = tile
            found = tile_gradients(images, gram, reports, weights, form)
            return jax.tree.map(jnp.add, sums, (found.regions, found.gram)), found.sentences

        nothing = (jnp.zeros(images.shape, dtype), None if gram is None else jnp.zeros(gram.shape, dtype))
        (d_images, d_gram), parts = jax.lax.scan(with_reports, nothing, (grouped, cotangents))
        if d_gram is not None:
            d_images += regions_from_gram(d_gram, images)
        return d_sentences + parts, d_images

    tiles = (_split(regions, tiling.images), _tiled(cotangent, tiling))
    d_sentences, d_regions = jax.lax.scan(with_all_reports, jnp.zeros(grouped.sentences.shape, dtype), tiles)
    d_regions = d_regions.reshape(-1, *regions.shape[1:])[: len(regions)]
    d_sentences = jnp.swapaxes(d_sentences, 1, 2).reshape(-1, *sentences.shape[1:])[: len(sentences)]
    return d_regions, d_sentences


def _forward(form: Form, tiling: Tiling, regions: Array, sentences: Array, mask: Array) -> tuple[Array, Any]:
    return blockwise_scores(form, tiling, regions, sentences, mask), (regions, sentences, mask)


def _backward(form: Form, tiling: Tiling, inputs: Any, cotangent: Array) -> tuple[Array, Array, None]:
    regions, sentences, mask = inputs
    d_regions, d_sentences = blockwise_gradients(form, tiling, regions, sentences, mask, cotangent)
    return d_regions.astype(regions.dtype), d_sentences.astype(sentences.dtype), None


blockwise_scores.defvjp(_forward, _backward)


def evened(count: int, most: int) -> int:
    """The size of blocks of at most `most` that differ least."""
    return -(-count // -(-count // most)) if count else 1


def _split(rows: Shaped[Array, "N ..."], size: int) -> Shaped[Array, "n size ..."]:
    """Blocks of `size` rows, the last filled up with zeros."""
    padding = ((0, -len(rows) % size),) + ((0, 0),) * (rows.ndim - 1)
    return jnp.pad(rows, padding).reshape(-1, size, *rows.shape[1:])


def sentence_by_sentence(sentences: Float[Array, "B S E"], mask: Bool[Array, "B S"], size: int) -> Reports:
    """Blocks of `size` reports, sentence by sentence: [m, S, size, E] and [m, S, size]."""
    return Reports(jnp.swapaxes(_split(sentences, size), 1, 2), jnp.swapaxes(_split(mask, size), 1, 2))


def _tiled(matrix: Float[Array, "A B"], tiling: Tiling) -> Float[Array, "n m a r"]:
    rows, columns = -len(matrix) % tiling.images, -matrix.shape[1] % tiling.reports
    padded = jnp.pad(matrix, ((0, rows), (0, columns)))
    return padded.reshape(-1, tiling.images, padded.shape[1] // tiling.reports, tiling.reports).swapaxes(1, 2)


def _joined(tiles: Float[Array, "n m a r"]) -> Float[Array, "na mr"]:
    blocks, columns, images, reports = tiles.shape
    return tiles.swapaxes(1, 2).reshape(blocks * images, columns * reports)
