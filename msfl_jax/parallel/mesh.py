"""The (data, fsdp, tensor) mesh of devices, and how a batch lies on it."""

import math
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from input_pipeline.errors import UserError
from msfl_jax.config import MeshConfig

AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")


def make_mesh(config: MeshConfig, devices: Sequence[Any] | None = None) -> Mesh:
    """Arranges devices as (data, fsdp, tensor); enter it with `jax.set_mesh`.

    The axes are `Auto`: JAX's default since 0.9 is `Explicit`, under which layers that do not name every sharding fail.

    Args:
      config: devices along each axis; -1, for one axis at most, takes what is left.
      devices: `jax.Device`s; all of all processes when None.

    Raises:
      UserError: the axes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    shape = _resolve((config.data, config.fsdp, config.tensor), len(devices))
    return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows over data and fsdp together; the devices of a tensor group hold the same rows."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def devices_along(axes: Sequence[str]) -> int:
    """Devices along some axes of the mesh that is set (`jax.set_mesh`); 1 without one."""
    sizes = jax.sharding.get_abstract_mesh().shape
    return math.prod(sizes.get(axis, 1) for axis in axes)


def check_batch_size(batch_size: int, mesh: Mesh, *, microbatches: int = 1) -> None:
    """Raises a UserError unless a global batch splits evenly over the mesh, and each device's rows over microbatches."""
    parts = math.prod(mesh.shape[axis] for axis in BATCH_AXES) * microbatches
    if batch_size % parts:
        times = f", times {microbatches} microbatches" if microbatches > 1 else ""
        raise UserError(
            f"config: 'data.batch_size' is {batch_size}; expected a multiple of {parts}, "
            f"the devices along data ({mesh.shape['data']}) and fsdp ({mesh.shape['fsdp']}){times}"
        )


def _resolve(axes: tuple[int, int, int], devices: int) -> tuple[int, int, int]:
    """The axes with -1 replaced by what is left of the devices."""
    named = ", ".join(f"{name} {size}" for name, size in zip(AXES, axes, strict=True))
    fixed = math.prod(size for size in axes if size != -1)
    if any(size < 1 and size != -1 for size in axes) or axes.count(-1) > 1:
        raise UserError(f"config: 'mesh' is {named}; expected sizes of at least 1, and -1 for one axis at most")
    if devices % fixed or (fixed != devices and -1 not in axes):
        raise UserError(
            f"config: 'mesh' is {named}; expected {devices} device(s) to fit: set data to -1, or other sizes"
        )
    data, fsdp, tensor = (devices // fixed if size == -1 else size for size in axes)
    return data, fsdp, tensor
