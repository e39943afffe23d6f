"""Global alignment: whole images against whole reports (eq. 1)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from msfl_jax.losses.similarity import Direction, contrast
from msfl_jax.vectors import unit


def global_alignment(
    image_embedding: Float[Array, "B D"],
    report_embedding: Float[Array, "B D"],
    *,
    temperature: Float[Array, ""] | float,
    direction: Direction = "symmetric",
    same_study: Bool[Array, "B B"] | None = None,
) -> Float[Array, ""]:
    """Pulls each image to its own report and pushes it from the others (eq. 1).

                report 0  report 1  report 2
      image 0     pull      push      push
      image 1     push      pull      push
      image 2     push      push      pull

    Args:
      image_embedding: any length of vector; the whole global batch.
      report_embedding: row i belongs to image i.
      temperature: divides the cosine similarities; 0.07 in most sibling methods.
      direction: "image_to_report" is what eq. 1 prints, "symmetric" what all published code does.
      same_study: pairs that share a report without being matched; they leave the denominators, the diagonal never does.

    Returns:
      Mean cross-entropy in nats, at least float32: ln B when all embeddings are equal, 0 when perfectly aligned.
    """
    similarity = jnp.matmul(unit(image_embedding), unit(report_embedding).T, precision=jax.lax.Precision.HIGHEST)
    return contrast(similarity / temperature, direction, same_study)
