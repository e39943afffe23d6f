"""Global alignment over the devices of a mesh: rows of similarities stay where their images are, report embeddings travel."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from msfl_jax import losses
from msfl_jax.parallel.contrast import Exchange, contrast
from msfl_jax.vectors import unit


def global_alignment(
    image_embedding: Float[Array, "B D"],
    report_embedding: Float[Array, "B D"],
    *,
    temperature: Float[Array, ""] | float,
    direction: losses.Direction = "symmetric",
    same_study: Bool[Array, "B B"] | None = None,
    exchange: Exchange = "gather",
) -> Float[Array, ""]:
    """`losses.global_alignment` of the global batch (eq. 1), computed where its rows lie on the mesh that is set (`jax.set_mesh`).

    XLA splits the global view as well, and gathers what it likes; here it is report embeddings alone, or, around the ring, those of one device at a
    time. To the loss, each embedding is the only region of its image, or the only sentence of its report.

    Args:
      image_embedding, report_embedding, temperature, direction, same_study: as in `losses.global_alignment`.
      exchange: how report embeddings reach other devices.

    Returns:
      Mean cross-entropy in nats, the same on any mesh.
    """
    # Divided here, because around the ring logits are differentiated by images and reports alone.
    images, reports = unit(image_embedding) / temperature, unit(report_embedding)
    everywhere = jnp.ones((len(reports), 1), bool)
    options = {"same_study": same_study, "direction": direction}
    return contrast(_products, images[:, None], reports[:, None], everywhere, exchange=exchange, **options)


def _products(
    images: Float[Array, "A 1 D"], reports: Float[Array, "N 1 D"], _: Bool[Array, "N 1"]
) -> Float[Array, "A N"]:
    return jnp.matmul(images[:, 0], reports[:, 0].T, precision=jax.lax.Precision.HIGHEST)
