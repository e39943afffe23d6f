"""What the losses share: masked means and the contrastive cross-entropy."""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

Direction = Literal["symmetric", "image_to_report", "report_to_image"]


def weighted_mean(
    values: Float[Array, "*shape"], weights: Bool[Array, "*shape"] | Float[Array, "*shape"]
) -> Float[Array, ""]:
    """Mean of `values` by `weights`; what has weight 0 is ignored whatever its value, and no weight at all gives 0."""
    weights = weights.astype(values.dtype)
    total = jnp.sum(weights)
    kept = jnp.where(weights > 0, values, 0)
    return jnp.sum(kept * weights) / jnp.where(total > 0, total, 1)


def contrast(
    logits: Float[Array, "B B"], direction: Direction, ignore: Bool[Array, "B B"] | None = None
) -> Float[Array, ""]:
    """Cross-entropy of picking the matched report of an image, the image of a report, or the mean of both (eq. 1 and 3).

    Args:
      logits: rows images, columns reports, matched pairs on the diagonal.
      direction: "image_to_report" normalises over reports, "report_to_image" over images, "symmetric" is half their sum.
      ignore: pairs left out of the denominators; the diagonal always stays.

    Returns:
      Mean over the batch, in nats; 0 for a batch of one.

    Raises:
      ValueError: `direction` is none of the three.
    """
    if ignore is not None:
        logits = jnp.where(ignore & ~jnp.eye(len(logits), dtype=bool), -jnp.inf, logits)
    match direction:
        case "image_to_report":
            return _matched_cross_entropy(logits)
        case "report_to_image":
            return _matched_cross_entropy(logits.T)
        case "symmetric":
            return (_matched_cross_entropy(logits) + _matched_cross_entropy(logits.T)) / 2
    raise ValueError(f"direction is {direction!r}; expected symmetric, image_to_report or report_to_image")


def _matched_cross_entropy(logits: Float[Array, "B B"]) -> Float[Array, ""]:
    """Mean over rows of the negative log-probability of the diagonal."""
    return -jnp.mean(jnp.diagonal(jax.nn.log_softmax(logits, axis=1)))
