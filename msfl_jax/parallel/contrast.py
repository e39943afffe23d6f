"""The contrastive loss of a global batch, computed where its rows lie on the mesh: images stay, what stands for reports travels.

Reports are gathered once ("gather"), or passed on from device to device ("ring"), which never holds those of the global batch. The [B, B] logits are
not gathered either: a device normalises its rows alone, and columns by a maximum and a sum over devices.
"""

import math
from collections.abc import Mapping
from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float

from msfl_jax import losses
from msfl_jax.parallel.collectives import Devices, Scores, gathered_scores, ring_scores
from msfl_jax.parallel.mesh import AXES, BATCH_AXES

Exchange = Literal["gather", "ring"]


class _Rows(NamedTuple):
    """What lies row by row over the devices; a row of `same_study` has the columns of its own group, N of them."""

    images: Float[Array, "b P E"]
    reports: Float[Array, "b S E"]
    mask: Bool[Array, "b S"]
    same_study: Bool[Array, "b N"]


def contrast(
    logits: Scores,
    images: Float[Array, "B P E"],
    reports: Float[Array, "B S E"],
    mask: Bool[Array, "B S"],
    *,
    same_study: Bool[Array, "B B"] | None = None,
    group: int | None = None,
    exchange: Exchange = "gather",
    direction: losses.Direction = "symmetric",
) -> Float[Array, ""]:
    """`losses.contrast` of the logits of all images with all reports, over the mesh that is set (`jax.set_mesh`).

    Args:
      logits: of some images with some reports; differentiable by both, and by nothing else.
      images: what stands for each image, one row or several.
      reports: what stands for each report.
      mask: which rows of a report exist.
      same_study: pairs left out of the denominators; the diagonal never is.
      group: so many consecutive rows are each other's only negatives; all rows are where None.
      exchange: how reports reach other devices.
      direction: as in `losses.contrast`.

    Returns:
      The mean over the batch in nats: the same on any mesh, and the mean over groups of what each alone would give. Where neither a device has
      whole groups nor a group whole devices, it is computed in the global view, and XLA decides what travels.

    Raises:
      ValueError: groups do not divide the batch.
    """
    batch = len(images)
    group = batch if group is None else group
    if group < 1 or batch % group:
        raise ValueError(f"groups of {group} negatives; expected a divisor of the batch size {batch}")
    axes, devices = row_axes(batch, group, jax.sharding.get_abstract_mesh().shape)
    if same_study is None:
        same_study = jnp.zeros((batch, batch), bool)
    rows = _Rows(images, reports, mask, _own_columns(same_study, group))
    if batch // devices % group == 0:
        total = partial(_of_own_groups, logits, group, direction)
    else:
        team = Devices(axes, devices, group * devices // batch)
        total = partial(_of_shared_groups, logits, team, exchange, direction)
    if devices == 1:
        return total(rows) / batch

    def over_devices(rows: _Rows) -> Array:
        return jax.lax.psum(total(rows), axes)

    by_row = PartitionSpec(axes)
    # Sums over devices are the same everywhere, which JAX cannot see through the backward pass written by hand.
    return jax.shard_map(over_devices, in_specs=by_row, out_specs=PartitionSpec(), check_vma=False)(rows) / batch


def row_axes(batch: int, group: int, sizes: Mapping[str, int]) -> tuple[tuple[str, ...], int]:
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


def _of_own_groups(logits: Scores, group: int, direction: losses.Direction, rows: _Rows) -> Float[Array, ""]:
    """The sum over rows where no group leaves the device."""

    def mean(rows: _Rows) -> Array:
        return losses.contrast(logits(rows.images, rows.reports, rows.mask), direction, rows.same_study)

    groups = jax.tree.map(lambda rows: rows.reshape(-1, group, *rows.shape[1:]), rows)
    return group * jnp.sum(jax.lax.map(mean, groups))


def _of_shared_groups(
    logits: Scores, team: Devices, exchange: Exchange, direction: losses.Direction, rows: _Rows
) -> Float[Array, ""]:
    """The sum over this device's rows and columns where groups consist of several devices."""
    exchanged = ring_scores if exchange == "ring" else gathered_scores
    found = exchanged(logits, team, rows.images, rows.reports, rows.mask)
    count, width = found.shape
    first = team.rank() * count
    matched = jnp.arange(width) == first + jnp.arange(count)[:, None]
    found = jnp.where(rows.same_study & ~matched, -jnp.inf, found)
    positive = jnp.sum(jnp.where(matched, found, 0), axis=1)
    by_image = jax.nn.logsumexp(found, axis=1) - positive
    by_report = jax.lax.dynamic_slice_in_dim(team.logsumexp(found), first, count) - positive
    return {
        "image_to_report": by_image.sum(),
        "report_to_image": by_report.sum(),
        "symmetric": (by_image + by_report).sum() / 2,
    }[direction]
