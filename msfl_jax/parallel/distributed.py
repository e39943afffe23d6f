"""Starts JAX over several processes where there are several, and moves a process's rows into arrays of all devices."""

import os
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from input_pipeline.errors import UserError
from msfl_jax.parallel.mesh import batch_sharding

# A process that says nothing for so long is dead; JAX waits 100 s.
HEARTBEAT_SECONDS = 30


def start() -> None:
    """Connects this process to the others of the run, if there are any; call before anything touches a device.

    Reads JAX_COORDINATOR_ADDRESS ("host:port"), JAX_NUM_PROCESSES and JAX_PROCESS_ID, as `launch/local_processes.py` sets them; otherwise lets JAX
    ask SLURM, Open MPI or the TPU runtime. Does nothing for one process on its own, and nothing the second time.

    Raises:
      UserError: some of the three variables are set and others are not, or are no numbers.
    """
    if jax.distributed.is_initialized():
        return
    if "JAX_COORDINATOR_ADDRESS" in os.environ:
        jax.distributed.initialize(**_from_environment(os.environ), heartbeat_timeout_seconds=HEARTBEAT_SECONDS)
    elif _in_cluster(os.environ):
        jax.distributed.initialize(heartbeat_timeout_seconds=HEARTBEAT_SECONDS)


def is_lead() -> bool:
    """True in the one process that prints and writes logs."""
    return jax.process_index() == 0


def barrier(name: str) -> None:
    """Waits for all processes to come here; `name` must be the same in each."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def global_batch(rows: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Global arrays [B, ...] from this process's contiguous rows [b, ...] of each array; b times the processes is B."""
    sharding = batch_sharding(mesh)
    return {name: jax.make_array_from_process_local_data(sharding, value) for name, value in rows.items()}


def device_batches(
    batches: Iterable[Mapping[str, np.ndarray]], mesh: Mesh, *, ahead: int = 2
) -> Iterator[dict[str, jax.Array]]:
    """Batches on the devices, of which up to `ahead` are on their way while a step computes."""
    waiting: deque[dict[str, jax.Array]] = deque()
    for rows in batches:
        waiting.append(global_batch(rows, mesh))
        if len(waiting) > ahead:
            yield waiting.popleft()
    yield from waiting


def data_share(mesh: Mesh, batch_size: int) -> tuple[int, int]:
    """Which part of each global batch this process loads: (index, count), the index-th of `count` equal blocks of rows.

    Asked of the sharding rather than of the process number, because a mesh may order devices by their wiring, and because processes whose devices
    form one tensor group load the same rows.

    Raises:
      UserError: this process's devices hold rows that are no single block.
    """
    rows = batch_sharding(mesh).addressable_devices_indices_map((batch_size,))
    spans = sorted({index[0].indices(batch_size)[:2] for index in rows.values() if index is not None})
    size = sum(stop - start for start, stop in spans)
    if spans[-1][1] - spans[0][0] != size or spans[0][0] % size:
        raise UserError(
            f"mesh: process {jax.process_index()} holds rows {spans}; expected one block: put processes along 'data'"
        )
    return spans[0][0] // size, batch_size // size


def _from_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    """Arguments of `jax.distributed.initialize` from the variables of this process."""
    values: dict[str, Any] = {"coordinator_address": environment["JAX_COORDINATOR_ADDRESS"]}
    for name, argument in (("JAX_NUM_PROCESSES", "num_processes"), ("JAX_PROCESS_ID", "process_id")):
        found = environment.get(name)
        if found is None or not found.isdigit():
            raise UserError(
                f"{name} is {found!r}; expected a number beside JAX_COORDINATOR_ADDRESS (see launch/README.md)"
            )
        values[argument] = int(found)
    return values


def _in_cluster(environment: Mapping[str, str]) -> bool:
    """Whether a launcher started several processes in a way that JAX recognises by itself."""
    slurm = int(environment.get("SLURM_NTASKS", "1")) > 1 and "SLURM_STEP_NODELIST" in environment
    open_mpi = int(environment.get("OMPI_COMM_WORLD_SIZE", "1")) > 1
    tpu = "," in environment.get("TPU_WORKER_HOSTNAMES", "")
    return slurm or open_mpi or tpu
