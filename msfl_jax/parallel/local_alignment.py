"""Local alignment over the devices of a mesh: each keeps the rows of its own images, sentences travel, patches never do.

A report's sentences are a twelfth to a twenty-fifth of what its image has in patches, so sentences are what is exchanged: gathered once ("gather"),
or passed on from device to device ("ring"), which never holds those of the global batch. Nor are the [B, B] scores gathered: a device normalises its
rows alone, and columns by a maximum and a sum over devices.
"""

import math
from collections.abc import Mapping
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float

from input_pipeline.errors import UserError
from msfl_jax import losses
from msfl_jax.config import Config
from msfl_jax.parallel.collectives import Devices, Scores, gathered_scores, ring_scores
from msfl_jax.parallel.mesh import AXES, BATCH_AXES

Exchange = Literal["gather", "ring"]


class _Rows(NamedTuple):
    """What lies row by row over the devices; a row of `same_study` has the columns of its own group, N of them."""

    regions: Float[Array, "b P E"]
    sentences: Float[Array, "b S E"]
    mask: Bool[Array, "b S"]
    same_study: Bool[Array, "b N"]


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
      group: so many consecutive rows are each other's only negatives; all rows are where None.
      exchange: how sentences reach other devices.
      **form: the other options of `losses.local_scores`.

    Returns:
      The mean over the batch in nats: the same on any mesh, and the mean over groups of what each alone would give. Where neither a device has
      whole groups nor a group whole devices, it is computed in the global view, and XLA decides what travels.

    Raises:
      ValueError: groups do not divide the batch.
    """
    batch = len(regions)
    group = batch if group is None else group
    if group < 1 or batch % group:
        raise ValueError(f"groups of {group} negatives; expected a divisor of the batch size {batch}")
    axes, devices = _row_axes(batch, group, jax.sharding.get_abstract_mesh().shape)
    if same_study is None:
        same_study = jnp.zeros((batch, batch), bool)
    rows = _Rows(regions, sentences, sentence_mask, _own_columns(same_study, group))
    scores = partial(losses.local_scores, **form)
    if batch // devices % group == 0:
        total = partial(_of_own_groups, scores, group, logit_scale, direction)
    else:
        team = Devices(axes, devices, group * devices // batch)
        total = partial(_of_shared_groups, scores, team, exchange, logit_scale, direction)
    if devices == 1:
        return total(rows) / batch

    def over_devices(rows: _Rows) -> Array:
        return jax.lax.psum(total(rows), axes)

    by_row = PartitionSpec(axes)
    # Sums over devices are the same everywhere, which JAX cannot see through the backward pass written by hand.
    return jax.shard_map(over_devices, in_specs=by_row, out_specs=PartitionSpec(), check_vma=False)(rows) / batch


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
    if math.prod(sizes.values()) > 1 and _row_axes(batch, local.group or batch, sizes)[1] == 1:
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


def _row_axes(batch: int, group: int, sizes: Mapping[str, int]) -> tuple[tuple[str, ...], int]:
    """The axes that rows are laid over on a mesh of these sizes, and the devices along them: all or those of the batch, where rows and groups fit."""
    for axes in (AXES, BATCH_AXES):
        devices = math.prod(sizes.get(axis, 1) for axis in axes)
        rows, left = divmod(batch, devices)
        if not left and (rows % group == 0 or group % rows == 0):
            return axes, devices
    return (), 1


def _own_columns(matrix: Bool[Array, "B B"], group: int) -> Bool[Array, "B N"]:
    """Of each row the columns of its own group."""
    groups = len(matrix) // group
    blocks = matrix.reshape(groups, group, groups, group)
    own = jax.vmap(lambda rows, index: jax.lax.dynamic_index_in_dim(rows, index, axis=1, keepdims=False))
    return own(blocks, jnp.arange(groups)).reshape(-1, group)


def _of_own_groups(
    scores: Scores, group: int, logit_scale: float, direction: losses.Direction, rows: _Rows
) -> Float[Array, ""]:
    """The sum over rows where no group leaves the device."""

    def mean(rows: _Rows) -> Array:
        logits = logit_scale * scores(rows.regions, rows.sentences, rows.mask)
        return losses.contrast(logits, direction, rows.same_study)

    groups = jax.tree.map(lambda rows: rows.reshape(-1, group, *rows.shape[1:]), rows)
    return group * jnp.sum(jax.lax.map(mean, groups))


def _of_shared_groups(
    scores: Scores,
    team: Devices,
    exchange: Exchange,
    logit_scale: float,
    direction: losses.Direction,
    rows: _Rows,
) -> Float[Array, ""]:
    """The sum over this device's rows and columns where groups consist of several devices."""
    exchanged = ring_scores if exchange == "ring" else gathered_scores
    logits = logit_scale * exchanged(scores, team, rows.regions, rows.sentences, rows.mask)
    count, width = logits.shape
    first = team.rank() * count
    matched = jnp.arange(width) == first + jnp.arange(count)[:, None]
    logits = jnp.where(rows.same_study & ~matched, -jnp.inf, logits)
    positive = jnp.sum(jnp.where(matched, logits, 0), axis=1)
    by_image = jax.nn.logsumexp(logits, axis=1) - positive
    by_report = jax.lax.dynamic_slice_in_dim(team.logsumexp(logits), first, count) - positive
    return {
        "image_to_report": by_image.sum(),
        "report_to_image": by_report.sum(),
        "symmetric": (by_image + by_report).sum() / 2,
    }[direction]
