"""The four objectives together: features, negatives, match, losses, weighted sum (eq. 7)."""

import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key, UInt32

from msfl_jax import losses
from msfl_jax.config import Config, ObjectiveConfig
from msfl_jax.model import Features, Keys, Model
from msfl_jax.parallel.global_alignment import global_alignment
from msfl_jax.parallel.local_alignment import local_alignment
from msfl_jax.parallel.mesh import BATCH_AXES, devices_along
from msfl_jax.vectors import unit

Batch = Mapping[str, Array]


class Tally(NamedTuple):
    """A mean still to be divided, so that tallies of several steps add up correctly."""

    total: Float[Array, ""]
    count: Float[Array, ""]


Metrics = dict[str, Tally]


@dataclasses.dataclass(frozen=True)
class Weights:
    """The lambdas of eq. 7 at one step, and the options of the losses they weigh.

    Attributes:
      options: the objective section of the configuration.
      steps: length of the run, of which `ramp` gives shares.
      instance_share: 0 to 1, how far the weight of instance matching has been raised.
    """

    options: ObjectiveConfig
    steps: int
    instance_share: Float[Array, ""] | float = 1.0

    @classmethod
    def create(cls, config: Config) -> "Weights":
        """The weights of a run."""
        return cls(options=config.objective, steps=config.train.steps)

    def at(self, step: Array | int) -> "Weights":
        """The weights at one step: a linear ramp of instance matching between the two configured shares of the run."""
        start, full = (share * self.steps for share in self.options.instance_matching.ramp)
        share = jnp.clip((jnp.asarray(step, jnp.float32) - start) / max(full - start, 1.0), 0.0, 1.0)
        return dataclasses.replace(self, instance_share=share)


def total(params: Any, batch: Batch, keys: Keys, *, model: Model, weights: Weights) -> tuple[Float[Array, ""], Metrics]:
    """The loss of one global batch (eq. 7) and what is reported about it.

    Args:
      params: parameters as `Model.init` makes them.
      batch: `image`, `token_ids`, `sentence_ids` and `study_key` of the global batch.
      keys: the randomness of this step.
      model: static; encoders and heads.
      weights: lambdas and options, at this step.

    Returns:
      The weighted sum, and tallies by name: `loss/*` in nats (reconstruction in squared deviations), `accuracy/*`, `temperature`.
    """
    features = model.features(params, batch, keys, parts=devices_along(BATCH_AXES))
    across, metrics = across_studies(params, features, batch["study_key"], keys.negatives, model=model, weights=weights)
    within, more = within_studies(features, weights.options)
    value = across + within
    return value, metrics | more | {"loss/total": per_batch(value)}


def across_studies(
    params: Any,
    features: Features,
    study_key: UInt32[Array, " B"],
    key: Key[Array, ""],
    *,
    model: Model,
    weights: Weights,
) -> tuple[Float[Array, ""], Metrics]:
    """The weighted losses that compare the studies of the batch with each other: both alignments and instance matching."""
    same_study = study_key[:, None] == study_key[None, :]
    options = weights.options
    metrics: Metrics = {}
    value = jnp.float32(0.0)
    if options.lambda_global:
        value += options.lambda_global * _global(features, same_study, options, metrics)
    if options.lambda_local:
        dtype = jnp.dtype(model.config.model.compute_dtype)
        value += options.lambda_local * _local(features, same_study, options, dtype, metrics)
    if options.lambda_instance:
        loss = _instance(params, features, same_study, key, model, options.instance_matching.negatives, metrics)
        value += options.lambda_instance * weights.instance_share * loss
    return value, metrics


def within_studies(
    features: Features, options: ObjectiveConfig, shares: tuple[Array | float, Array | float] = (1.0, 1.0)
) -> tuple[Float[Array, ""], Metrics]:
    """The weighted reconstruction of each modality, a mean over the batch.

    Args:
      features: of the batch, or of a part of it.
      options: the objective section of the configuration.
      shares: of the masked patches, and of the predicted tokens, of the batch that this part has; values and tallies of all parts then add up to
        those of the batch.
    """
    metrics: Metrics = {}
    if not options.lambda_modality:
        return jnp.float32(0.0), metrics
    return options.lambda_modality * _modality(features, shares, metrics), metrics


def _global(features: Features, same_study: Bool[Array, "B B"], objective: ObjectiveConfig, metrics: Metrics) -> Array:
    options = objective.global_alignment
    alignment = losses.global_alignment
    if options.exchange != "xla":
        alignment = partial(global_alignment, exchange=options.exchange)
    loss = _reduced(options.direction, objective.reduction) * alignment(
        features.image_embedding,
        features.report_embedding,
        temperature=features.temperature,
        direction=options.direction,
        same_study=same_study,
    )
    rank = jnp.where(same_study & ~jnp.eye(len(same_study), dtype=bool), -jnp.inf, _cosines(features))
    hits = jnp.argmax(rank, axis=1) == jnp.arange(len(rank))
    metrics["loss/global_alignment"] = per_batch(loss)
    metrics["accuracy/image_to_report"] = Tally(hits.sum().astype(jnp.float32), jnp.float32(len(hits)))
    metrics["temperature"] = per_batch(features.temperature)
    return loss


def _local(
    features: Features, same_study: Bool[Array, "B B"], objective: ObjectiveConfig, dtype: jnp.dtype, metrics: Metrics
) -> Array:
    """Over all pairs of a group, the one loss whose products may cost as much as the encoders': taken in the encoders' dtype."""
    options = objective.local_alignment
    loss = _reduced(options.direction, objective.reduction) * local_alignment(
        features.regions.astype(dtype),
        features.sentences.astype(dtype),
        features.sentence_mask,
        attention=options.attention,
        region_scale=options.region_scale,
        sentence_scale=options.sentence_scale,
        aggregate=options.aggregate,
        block=options.block or None,
        logit_scale=options.logit_scale,
        direction=options.direction,
        same_study=same_study,
        group=options.group,
        exchange=options.exchange,
        kernel=options.kernel,
    )
    metrics["loss/local_alignment"] = per_batch(loss)
    return loss


def _instance(
    params: Any,
    features: Features,
    same_study: Bool[Array, "B B"],
    key: Array,
    model: Model,
    negatives: str,
    metrics: Metrics,
) -> Array:
    """Matched pairs, each image with a wrong report, each report with a wrong image: 3B pairs (eq. 4)."""
    image, report = features.image_embedding, features.report_embedding
    similarity = (
        _cosines(features) / features.temperature if negatives == "hard" else jnp.zeros(same_study.shape, image.dtype)
    )
    drawn = losses.sample_hard_negatives(jax.lax.stop_gradient(similarity), key, exclude=same_study)
    # Three rows of B pairs: joined end to end, along the axis that lies over devices, most of them would have to move.
    images, reports = jnp.stack([image, image, image[drawn.image]]), jnp.stack([report, report[drawn.report], report])
    logits = jax.vmap(partial(model.match, params))(images, reports)
    matched = jnp.broadcast_to(jnp.asarray([[1.0], [0.0], [0.0]]), logits.shape)
    pair_weights = jnp.stack([jnp.ones(len(image)), drawn.has_report, drawn.has_image]).astype(jnp.float32)
    loss = losses.instance_matching(logits, matched, pair_weights)
    metrics["loss/instance_matching"] = per_batch(loss)
    metrics["accuracy/instance_matching"] = Tally(
        jnp.sum(((logits > 0) == (matched > 0)) * pair_weights), pair_weights.sum()
    )
    return loss


def _modality(features: Features, shares: tuple[Array | float, Array | float], metrics: Metrics) -> Array:
    """Masked image plus masked language modeling, without inner weights (eq. 5-6)."""
    logits, targets, weights = features.token_logits, features.token_targets, features.token_weights
    predicted, target, masked = features.pixel_prediction, features.pixel_target, features.pixel_masked
    # With a weight above 0 the model rebuilds both; the types cannot say so.
    assert logits is not None
    assert targets is not None
    assert weights is not None
    assert predicted is not None
    assert target is not None
    assert masked is not None
    image = losses.image_reconstruction(predicted, target, masked)
    text = losses.masked_language_modeling(logits, targets, weights)
    hits = jnp.argmax(logits, axis=-1) == targets
    of_image, of_text = shares
    metrics["loss/image_reconstruction"] = Tally(image * of_image, jnp.float32(of_image))
    metrics["loss/masked_language_modeling"] = Tally(text * weights.sum(), weights.sum())
    metrics["accuracy/masked_token"] = Tally((hits * weights).sum(), weights.sum())
    return image * of_image + text * of_text


def _reduced(direction: str, reduction: str) -> float:
    """What turns the mean of an alignment's directions into what the configuration asks for."""
    return 2.0 if direction == "symmetric" and reduction == "sum" else 1.0


def _cosines(features: Features) -> Float[Array, "B B"]:
    return unit(features.image_embedding) @ unit(features.report_embedding).T


def per_batch(value: Array) -> Tally:
    """A mean over the batch as a tally: counted once."""
    return Tally(jnp.asarray(value, jnp.float32), jnp.float32(1.0))
