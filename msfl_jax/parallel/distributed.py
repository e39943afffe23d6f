"""Starts JAX over several processes where there are several, and moves a process's rows into arrays of all devices."""

import os
from collections import deque
from collections.abc import Iterable, Iterator, Mapping

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from input_pipeline.errors import UserError
from msfl_jax.parallel.clusters import COUNT, Cluster, detect
from msfl_jax.parallel.mesh import batch_sharding

# A process that says nothing for so long is dead; JAX waits 100 s.
HEARTBEAT_SECONDS = 30


def start() -> None:
    """Connects this process to the others of the run, if there are any; call before anything touches a device.

    `clusters.detect` says whether there are, from the variables of SLURM, Open MPI, GKE, a TPU VM, torchrun or JAX itself; process 0 prints which
    it was. Does nothing for one process on its own, and nothing the second time.

    Raises:
      UserError: the variables are incomplete or contradict each other, or JAX finds no TPU where there should be some.
    """
    if jax.distributed.is_initialized():
        return
    cluster = detect(os.environ)
    if cluster is None:
        return
    if cluster.index == 0 and cluster.address:  # before connecting: if a process is missing, this is the last line
        print(f"{'processes':<20}{cluster.count} ({cluster.launcher}), process 0 at {cluster.address}", flush=True)
    if cluster.address:
        _connect(cluster)
    else:
        _ask_tpu_runtime(cluster)


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


def _connect(cluster: Cluster) -> None:
    """Connects at a known address. JAX does not look for a cluster itself: it would take one GPU per process for granted."""
    jax.distributed.initialize(
        cluster.address,
        cluster.count,
        cluster.index,
        local_device_ids=cluster.devices,
        cluster_detection_method="deactivate",
        heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
    )


def _ask_tpu_runtime(cluster: Cluster) -> None:
    """Lets JAX ask the TPU runtime, or on a TPU VM the metadata server, who the others are."""
    try:
        jax.distributed.initialize(heartbeat_timeout_seconds=HEARTBEAT_SECONDS)
    except ValueError as error:  # JAX recognised no cluster
        raise UserError(
            f"{cluster.launcher}: JAX finds no TPU on this machine; install the extra 'tpu', or set {COUNT}=1"
        ) from error
    except OSError as error:  # no metadata server: a machine with TPUs outside Google Cloud, on its own
        raise UserError(
            f"{cluster.launcher}: the metadata server does not answer ({type(error).__name__}); set {COUNT}=1 for a machine on its own"
        ) from error
    if is_lead() and jax.process_count() > 1:
        print(f"{'processes':<20}{jax.process_count()} ({cluster.launcher})", flush=True)
