"""Reconstruction within each modality: masked patches of the image (eq. 5) and masked tokens of the report (eq. 6)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from msfl_jax.losses.similarity import weighted_mean
from msfl_jax.vectors import at_least_float32


def image_reconstruction(
    predicted: Float[Array, "B P K"], target: Float[Array, "B P K"], masked: Bool[Array, "B P"] | Float[Array, "B P"]
) -> Float[Array, ""]:
    """Mean squared error over the pixels of a patch, then over the masked patches of the batch (MAE; eq. 5 prints no mean).

    Args:
      predicted: pixel values of every patch.
      target: in the same units; usually patches of mean 0 and deviation 1.
      masked: True or 1 where the encoder did not see the patch; only those count.

    Returns:
      At least float32; 0 if nothing is masked.
    """
    squared_error = (at_least_float32(predicted) - at_least_float32(target)) ** 2
    return weighted_mean(jnp.mean(squared_error, axis=-1), masked)


def masked_language_modeling(
    logits: Float[Array, "B M V"], token_ids: Int[Array, "B M"], weights: Bool[Array, "B M"] | Float[Array, "B M"]
) -> Float[Array, ""]:
    """Cross-entropy of the original tokens at the M predicted positions of each report (BERT; eq. 6).

    Args:
      logits: over the vocabulary, for predicted positions only.
      token_ids: the tokens that stood there before masking.
      weights: 0 for padding among the positions.

    Returns:
      Mean over the weighted positions of the batch in nats, at least float32; 0 if there are none.
    """
    logits = at_least_float32(logits)
    chosen = jnp.take_along_axis(logits, token_ids[..., None], axis=-1)[..., 0]
    return weighted_mean(jax.nn.logsumexp(logits, axis=-1) - chosen, weights)
