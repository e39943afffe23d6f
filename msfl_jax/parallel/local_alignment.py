"""Local alignment over the devices of a mesh: each keeps the regions of its own images, sentences travel, patches never do.

A report's sentences are a twelfth to a twenty-fifth of what its image has in patches.
"""

import math
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from input_pipeline.errors import UserError
from msfl_jax import losses
from msfl_jax.config import Config
from msfl_jax.parallel.contrast import Exchange, contrast, row_axes


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


def check_kernel(config: Config, sizes: Mapping[str, int], platform: str) -> None:
    """Refuses the TPU kernel of local alignment where it cannot run, before anything is computed.

    Args:
      config: of a run.
      sizes: of the mesh, by axis.
      platform: of its devices, as JAX calls it.

    Raises:
      UserError: the devices are no TPUs, a group lies on parts of several, or a tile does not fit into their fast memory.
    """
    objective = config.objective
    if objective.local_alignment.kernel == "pallas" and objective.lambda_local:
        fault = _misfit(config, sizes, platform)
        if fault:
            raise UserError(f"config: 'objective.local_alignment.kernel' is 'pallas'; expected 'xla': {fault}")


def _misfit(config: Config, sizes: Mapping[str, int], platform: str) -> str:
    """Why the TPU kernel cannot run, or nothing."""
    from msfl_jax.losses.local_pallas import Tiles  # see `losses.local_scores`

    local, batch, width = config.objective.local_alignment, config.data.batch_size, config.model.region_width
    if platform != "tpu":
        return f"the kernel is for TPUs, and the devices here are of kind {platform}"
    if math.prod(sizes.values()) > 1 and row_axes(batch, local.group or batch, sizes)[1] == 1:
        return f"neither has a device whole groups of {local.group} rows nor a group whole devices"
    units = config.text.max_sentences + local.include_cls
    try:
        Tiles.of(
            (batch, config.model.vision.grid**2, width),
            (batch, units, width),
            jnp.dtype(config.model.compute_dtype).itemsize,
        )
    except ValueError as error:
        return str(error)
    return ""
