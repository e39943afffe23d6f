"""Local alignment of a whole batch, tile by tile: what is held at once does not grow with the square of the batch, backward either.

Both passes go over tiles of images and, within them, over tiles of reports. Nothing of the forward pass is kept but its inputs; the backward pass
computes each tile again. So B^2 S P scores and B^2 S E contexts never exist, only one tile of them and the [B, B] result. A small batch, with no more
scores in all than a tile may hold, keeps its similarities of regions and sentences, and its tiles are as small as a CPU's cache.
"""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Shaped

from msfl_jax.losses.local_tile import (
    Form,
    Reports,
    gram_of,
    regions_from_gram,
    tile_gradients,
    tile_scores,
)

# Scores [images, P, S, reports] of one tile where nothing else is asked for: 64 MiB in float32.
SCORES_AT_ONCE = 2**24
# Reports of a tile, where nothing else is asked for: enough columns for fast products, few enough to leave room for many images.
_REPORTS_AT_ONCE = 64
# Scores of a tile of a small batch: 1 MiB, so that what is done to them one after the other happens in a CPU's cache.
_CACHED_SCORES = 2**18
# Patches per embedding value below which the Gram form needs fewer operations, forward and backward together.
_GRAM_PAYS_BELOW = 1.33


@dataclasses.dataclass(frozen=True)
class Tiling:
    """Images and reports of one tile, and whether all similarities of regions and sentences are kept for the backward pass."""

    images: int
    reports: int
    keeps: bool

    @classmethod
    def of(cls, regions: tuple[int, ...], sentences: tuple[int, ...], block: int | None, *, gram: bool) -> "Tiling":
        """Tiles for arrays of these shapes, evened out.

        Args:
          regions, sentences: shapes [A, P, E] and [B, S, E].
          block: reports of a tile, of which nothing is kept; chosen here where None. As many images go with them as may be held at once.
          gram: whether the Gram form is used; without it there is never one tile with the contexts of all pairs.
        """
        (images, patches, _), (reports, count, _) = regions, sentences
        keeps = block is None and images * patches * count * reports <= SCORES_AT_ONCE
        most = _CACHED_SCORES if keeps else SCORES_AT_ONCE
        several = min(block or max(_REPORTS_AT_ONCE, most // max(1, images * patches * count)), reports)
        at_once = max(1, most // max(1, patches * count * several))
        if several == reports and not gram:
            at_once = min(at_once, -(-images // 2))
        return cls(evened(images, at_once), evened(reports, several), keeps)


def uses_gram(patches: int, width: int) -> bool:
    """Whether the Gram form needs fewer operations than the contexts.

    With U for the product of all regions and sentences and W = U P / E for one by the Gram matrices, forward and backward take 4U + 3W against
    8U; both take one U less where similarities are kept.
    """
    return patches < _GRAM_PAYS_BELOW * width


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def blockwise_scores(
    form: Form,
    tiling: Tiling,
    regions: Float[Array, "A P E"],
    sentences: Float[Array, "B S E"],
    sentence_mask: Bool[Array, "B S"],
) -> Float[Array, "A B"]:
    """The scores of `local_tile.tile_scores` of all images with all reports; inputs have one dtype, padded sentences are zero vectors."""
    without = dataclasses.replace(tiling, keeps=False)
    return _scores_and_kept(form, without, regions, sentences, sentence_mask)[0]


def _scores_and_kept(
    form: Form,
    tiling: Tiling,
    regions: Float[Array, "A P E"],
    sentences: Float[Array, "B S E"],
    sentence_mask: Bool[Array, "B S"],
) -> tuple[Float[Array, "A B"], Float[Array, "n m a P S r"] | None]:
    """`blockwise_scores`, and the similarities of all tiles where they are kept."""
    grouped = sentence_by_sentence(sentences, sentence_mask, tiling.reports)

    def with_all_reports(images: Float[Array, "a P E"]) -> tuple[Float[Array, "m a r"], Any]:
        gram = gram_of(images, form)

        def with_reports(reports: Reports) -> tuple[Float[Array, "a r"], Any]:
            scores, similarity = tile_scores(images, gram, reports, form)
            return scores, similarity if tiling.keeps else None

        return jax.lax.map(with_reports, grouped)

    scores, kept = jax.lax.map(with_all_reports, _split(regions, tiling.images))
    return _joined(scores)[: len(regions), : len(sentences)], kept


def blockwise_gradients(
    form: Form,
    tiling: Tiling,
    regions: Float[Array, "A P E"],
    sentences: Float[Array, "B S E"],
    sentence_mask: Bool[Array, "B S"],
    cotangent: Float[Array, "A B"],
    kept: Float[Array, "n m a P S r"] | None,
) -> tuple[Float[Array, "A P E"], Float[Array, "B S E"]]:
    """The gradients of `sum(cotangent * blockwise_scores(...))` by regions and by sentences, at least float32; None keeps nothing."""
    grouped = sentence_by_sentence(sentences, sentence_mask, tiling.reports)
    dtype = cotangent.dtype

    def with_all_reports(d_sentences, tile):
        images, *of_reports = tile
        gram = gram_of(images, form)

        def with_reports(sums, tile):
            reports, weights, similarity = tile
            found = tile_gradients(images, gram, reports, weights, form, similarity)
            return jax.tree.map(jnp.add, sums, (found.regions, found.gram)), found.sentences

        nothing = (jnp.zeros(images.shape, dtype), None if gram is None else jnp.zeros(gram.shape, dtype))
        (d_images, d_gram), parts = jax.lax.scan(with_reports, nothing, (grouped, *of_reports))
        if d_gram is not None:
            d_images += regions_from_gram(d_gram, images)
        return d_sentences + parts, d_images

    tiles = (_split(regions, tiling.images), _tiled(cotangent, tiling), kept)
    d_sentences, d_regions = jax.lax.scan(with_all_reports, jnp.zeros(grouped.sentences.shape, dtype), tiles)
    d_regions = d_regions.reshape(-1, *regions.shape[1:])[: len(regions)]
    d_sentences = jnp.swapaxes(d_sentences, 1, 2).reshape(-1, *sentences.shape[1:])[: len(sentences)]
    return d_regions, d_sentences


def _forward(form: Form, tiling: Tiling, regions: Array, sentences: Array, mask: Array) -> tuple[Array, Any]:
    scores, kept = _scores_and_kept(form, tiling, regions, sentences, mask)
    return scores, (regions, sentences, mask, kept)


def _backward(form: Form, tiling: Tiling, inputs: Any, cotangent: Array) -> tuple[Array, Array, None]:
    regions, sentences, mask, kept = inputs
    d_regions, d_sentences = blockwise_gradients(form, tiling, regions, sentences, mask, cotangent, kept)
    return d_regions.astype(regions.dtype), d_sentences.astype(sentences.dtype), None


blockwise_scores.defvjp(_forward, _backward)


def evened(count: int, most: int) -> int:
    """The size of blocks of at most `most` that differ least; equal ones where half of that size is enough for it."""
    equal = (size for size in range(min(most, count), most // 2, -1) if count % size == 0)
    return next(equal, -(-count // -(-count // most))) if count else 1


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
