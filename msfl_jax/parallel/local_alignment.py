"""Local alignment over the devices of a mesh: each keeps the regions of its own images, sentences travel, patches never do.

A report's sentences are a twelfth to a twenty-fifth of what its image has in patches.
"""

from typing import Any

from jaxtyping import Array, Bool, Float

from msfl_jax import losses
from msfl_jax.parallel.contrast import Exchange, contrast


def local_alignment(
    regions: Float[Array, "B P E"],
    sentences: Float[Array, "B S E"],
    sentence_mask: Bool[Array, "B S"],
    *,
    same_study: Bool[Array, "B B"] | None = None,
    group: int | None = None,
    exchange: Exchange = "gather",
    logit_scale: float = 10.0,
    direction: losses.Direction = "symmetric",
    **form: Any,
) -> Float[Array, ""]:
    """`losses.local_alignment` of the global batch, computed where its rows lie on the mesh that is set (`jax.set_mesh`).

    Args:
      regions, sentences, sentence_mask, same_study, logit_scale, direction: as in `losses.local_alignment`.
      group, exchange: as in `contrast`.
      **form: the other options of `losses.local_scores`.

    Returns:
      The mean over the batch in nats: the same on any mesh, and the mean over groups of what each alone would give.

    Raises:
      ValueError: groups do not divide the batch.
    """

    def logits(regions: Array, sentences: Array, mask: Array) -> Array:
        return logit_scale * losses.local_scores(regions, sentences, mask, **form)

    options: dict[str, Any] = {"same_study": same_study, "group": group, "exchange": exchange, "direction": direction}
    return contrast(logits, regions, sentences, sentence_mask, **options)
