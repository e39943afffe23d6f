"""The objective of a large batch by microbatches, exactly (gradient caching, Gao et al. 2021).

Alignment and matching compare every study with every other, so a mean of the losses of microbatches is another loss. Instead, embeddings of all
microbatches are computed first and kept, the losses across studies and their gradients by the embeddings follow, and each microbatch is then computed
again to take these gradients back to the parameters. Masks and negatives are drawn for the whole batch before: both passes, and one step without
microbatches, see the same ones. The memory of the encoders is that of one microbatch, the price a second forward pass.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from msfl_jax import objective
from msfl_jax.model import Features, Keys, Masks, Model
from msfl_jax.objective import Batch, Metrics, Weights
from msfl_jax.parallel.mesh import BATCH_AXES, devices_along


class Embeddings(NamedTuple):
    """What the losses across studies are differentiated by."""

    image_embedding: Float[Array, "B D"]
    report_embedding: Float[Array, "B D"]
    regions: Float[Array, "B P E"]
    sentences: Float[Array, "B S E"]


def value_and_grad(
    params: Any, batch: Batch, keys: Keys, *, model: Model, weights: Weights, microbatches: int
) -> tuple[tuple[Float[Array, ""], Metrics], Any]:
    """`jax.value_and_grad(objective.total, has_aux=True)` with the encoders run on a part of the batch at a time.

    Args:
      params, batch, keys, model, weights: as in `objective.total`.
      microbatches: parts of equal size; on a mesh every device has rows of each.

    Returns:
      ((loss, metrics), gradients), which differ from those of the whole batch by rounding alone.
    """
    masks = model.draw_masks(batch, keys)
    parts = jax.tree.map(partial(split, microbatches=microbatches), (dict(batch), masks))

    def embed(part: tuple[Batch, Masks]) -> tuple[Embeddings, Array]:
        features = model.features_behind(params, *part, parts=devices_along(BATCH_AXES), reconstruct=False)
        return _embeddings(features), features.sentence_mask

    embeddings, sentence_mask = jax.tree.map(_join, jax.lax.map(embed, parts))

    def across(params: Any, embeddings: Embeddings) -> tuple[Array, Metrics]:
        features = Features(*embeddings, sentence_mask, temperature=model.temperature(params))
        study_key = batch["study_key"]
        return objective.across_studies(params, features, study_key, keys.negatives, model=model, weights=weights)

    (value, metrics), (gradients, cached) = jax.value_and_grad(across, argnums=(0, 1), has_aux=True)(params, embeddings)
    cached = jax.tree.map(partial(split, microbatches=microbatches), cached)
    within, more, gradients = _second_pass(params, parts, masks, cached, gradients, model, weights)
    value = value + within
    return (value, metrics | more | {"loss/total": objective.per_batch(value)}), gradients


def split(rows: Array, microbatches: int) -> Array:
    """Rows [B, ...] as [microbatches, b, ...]: of each device's rows one part to each microbatch, so that nothing moves between devices."""
    parts = rows.reshape(devices_along(BATCH_AXES), microbatches, -1, *rows.shape[1:]).swapaxes(0, 1)
    return _placed(parts.reshape(microbatches, -1, *rows.shape[1:]), PartitionSpec(None, BATCH_AXES))


def _second_pass(
    params: Any, parts: Any, masks: Masks, cached: Embeddings, gradients: Any, model: Model, weights: Weights
) -> tuple[Array, Metrics, Any]:
    """Reconstruction of all microbatches, its tallies, and `gradients` with those of both kinds of losses through the encoders added."""
    patches, tokens = masks.image.masked.sum(), jnp.maximum(masks.text.weights.sum(), 1)

    def loss(params: Any, part: tuple[Batch, Masks], cotangents: Embeddings) -> tuple[Array, tuple[Array, Metrics]]:
        features = model.features_behind(params, *part, parts=devices_along(BATCH_AXES))
        hidden = part[1]
        shares = (hidden.image.masked.sum() / patches, hidden.text.weights.sum() / tokens)
        within, metrics = objective.within_studies(features, weights.options, shares)
        # Sums and no dot products, which on some devices are taken in less than float32.
        products = jax.tree.map(lambda value, cotangent: jnp.sum(value * cotangent), _embeddings(features), cotangents)
        return within + sum(products), (within, metrics)

    def add(gradients: Any, inputs: Any) -> tuple[Any, tuple[Array, Metrics]]:
        more, kept = jax.grad(loss, has_aux=True)(params, *inputs)
        return jax.tree.map(jnp.add, gradients, more), kept

    gradients, (within, tallies) = jax.lax.scan(add, gradients, (parts, cached))
    return within.sum(), jax.tree.map(lambda each: each.sum(axis=0), tallies), gradients


def _embeddings(features: Features) -> Embeddings:
    return Embeddings(*(getattr(features, name) for name in Embeddings._fields))


def _join(parts: Array) -> Array:
    """The inverse of `split`."""
    rows = parts.reshape(len(parts), devices_along(BATCH_AXES), -1, *parts.shape[2:]).swapaxes(0, 1)
    return _placed(rows.reshape(-1, *parts.shape[2:]), PartitionSpec(BATCH_AXES))


def _placed(array: Array, spec: PartitionSpec) -> Array:
    return array if jax.sharding.get_abstract_mesh().empty else jax.lax.with_sharding_constraint(array, spec)
