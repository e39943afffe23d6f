"""Instance matching: is this report the one of this image (eq. 4), and the hard negatives it is asked about."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from msfl_jax.losses.similarity import weighted_mean
from msfl_jax.vectors import at_least_float32


class Negatives(NamedTuple):
    """One sampled negative per row.

    Attributes:
      report: index of a report that does not belong to image i; i itself where there is none.
      image: index of an image that does not belong to report i; i itself where there is none.
      has_report: False where every report is excluded for image i.
      has_image: False where every image is excluded for report i.
    """

    report: Int[Array, "B"]
    image: Int[Array, "B"]
    has_report: Bool[Array, "B"]
    has_image: Bool[Array, "B"]


def instance_matching(
    logits: Float[Array, "*N"],
    matched: Bool[Array, "*N"] | Float[Array, "*N"],
    weights: Bool[Array, "*N"] | Float[Array, "*N"] | None = None,
) -> Float[Array, ""]:
    """Binary cross-entropy of telling matched from unmatched pairs (eq. 4, whose printed sign is wrong).

    Args:
      logits: log-odds that the pair is matched; pairs may have several axes.
      matched: True or 1 for an image with its own report.
      weights: of each pair in the mean; 0 leaves it out. None weighs all alike.

    Returns:
      Weighted mean in nats, at least float32; 0 if all weights are 0. A constant 1/3 on one matched in three gives 0.6365.
    """
    logits = at_least_float32(logits)
    matched = matched.astype(logits.dtype)
    losses = -matched * jax.nn.log_sigmoid(logits) - (1 - matched) * jax.nn.log_sigmoid(-logits)
    return weighted_mean(losses, jnp.ones_like(logits) if weights is None else weights)


def hard_negative_probabilities(
    similarity: Float[Array, "B B"], *, exclude: Bool[Array, "B B"]
) -> tuple[Float[Array, "B B"], Float[Array, "B B"]]:
    """With which probability each unmatched pair is drawn as a negative (ALBEF, section 3.2).

    Args:
      similarity: rows images, columns reports, already divided by the temperature.
      exclude: pairs never drawn, such as those of one study; the diagonal is always excluded.

    Returns:
      (reports_for_image, images_for_report): in the first, row i is over the reports for image i; in the second, row i is over
      the images for report i. Rows sum to 1, or are 0 where everything is excluded.
    """
    allowed = _allowed(exclude)
    return _probabilities(similarity, allowed), _probabilities(similarity.T, allowed.T)


def sample_hard_negatives(
    similarity: Float[Array, "B B"], key: PRNGKeyArray, *, exclude: Bool[Array, "B B"]
) -> Negatives:
    """Draws one unmatched report per image and one unmatched image per report, similar ones more often.

    The distribution is that of `hard_negative_probabilities`, drawn from masked logits: unlike drawing from probabilities, it cannot
    fail when they underflow. No gradient flows through the similarity. A constant similarity draws uniformly.

    Args:
      similarity: rows images, columns reports, already divided by the temperature.
      key: decides the draw.
      exclude: pairs never drawn, such as those of one study; the diagonal is always excluded.
    """
    allowed = _allowed(exclude)
    similarity = at_least_float32(jax.lax.stop_gradient(similarity))
    report_key, image_key = jax.random.split(key)
    report, has_report = _draw(report_key, similarity, allowed)
    image, has_image = _draw(image_key, similarity.T, allowed.T)
    return Negatives(report=report, image=image, has_report=has_report, has_image=has_image)


def _allowed(exclude: Bool[Array, "B B"]) -> Bool[Array, "B B"]:
    return ~exclude & ~jnp.eye(len(exclude), dtype=bool)


def _masked_logits(similarity: Float[Array, "B B"], allowed: Bool[Array, "B B"]) -> Float[Array, "B B"]:
    """-inf where not allowed, but 0 all along a row that allows nothing, which then stays finite."""
    logits = jnp.where(allowed, at_least_float32(similarity), -jnp.inf)
    return jnp.where(allowed.any(axis=1, keepdims=True), logits, 0)


def _probabilities(similarity: Float[Array, "B B"], allowed: Bool[Array, "B B"]) -> Float[Array, "B B"]:
    return jnp.where(allowed, jax.nn.softmax(_masked_logits(similarity, allowed), axis=1), 0)


def _draw(
    key: PRNGKeyArray, similarity: Float[Array, "B B"], allowed: Bool[Array, "B B"]
) -> tuple[Int[Array, "B"], Bool[Array, "B"]]:
    """One allowed column per row, and whether there was one."""
    has_any = allowed.any(axis=1)
    drawn = jax.random.categorical(key, _masked_logits(similarity, allowed), axis=1)
    return jnp.where(has_any, drawn, jnp.arange(len(allowed), dtype=drawn.dtype)), has_any
