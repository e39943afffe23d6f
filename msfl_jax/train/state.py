"""What a training step turns into what comes after it."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from jax.sharding import Mesh

from msfl_jax.model import Model
from msfl_jax.parallel.sharding import FSDP_THRESHOLD, sharded_shapes, shardings


@struct.dataclass
class TrainState:
    """Everything that changes; nothing random, because that follows from (seed, step).

    Attributes:
      step: int32 [], steps taken.
      params: parameters by name, float32.
      opt_state: moments of AdamW under the same names.
      skipped: int32 [], steps in a row without a finite loss and gradient.
    """

    # Not annotated as arrays: trees of shapes and of shardings have this type too.
    step: Any
    params: Any
    opt_state: Any
    skipped: Any


def create_state(
    model: Model,
    optimizer: optax.GradientTransformation,
    seed: int,
    mesh: Mesh,
    *,
    threshold: int = FSDP_THRESHOLD,
    shard_moments: bool = False,
) -> TrainState:
    """The state before the first step; each device computes only its own shards.

    Args:
      model: gives the shapes and the initialisers.
      optimizer: gives the shapes of the moments.
      seed: of the initial parameters.
      mesh: where the state lies.
      threshold, shard_moments: as in `shardings`.
    """
    initial = _initializer(model, optimizer, seed)
    placed = shardings(jax.eval_shape(initial), mesh, threshold=threshold, shard_moments=shard_moments)
    return jax.jit(initial, out_shardings=placed)()


def abstract_state(
    model: Model,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    *,
    threshold: int = FSDP_THRESHOLD,
    shard_moments: bool = False,
) -> TrainState:
    """Shapes, dtypes and shardings of the state, without computing it: what a checkpoint is restored into."""
    shapes = jax.eval_shape(_initializer(model, optimizer, seed=0))
    return sharded_shapes(shapes, mesh, threshold=threshold, shard_moments=shard_moments)


def place_imported(params: Any, found: Mapping[str, Any]) -> Any:
    """Parameters with arrays of the host in the place of some of them; every process has the same arrays, each device gets only its shards.

    Args:
      params: on the mesh.
      found: a nested dictionary with some of their names; an array with fewer rows replaces the first ones.
    """
    result = dict(params)
    for name, value in found.items():
        own = params[name]
        result[name] = place_imported(own, value) if isinstance(value, Mapping) else _placed(own, value)
    return result


def _placed(own: jax.Array, rows: np.ndarray) -> jax.Array:
    if rows.shape == own.shape:
        return jax.make_array_from_callback(own.shape, own.sharding, lambda index: rows[index])
    return jax.jit(lambda own, rows: own.at[: len(rows)].set(rows), out_shardings=own.sharding)(own, rows)


def _initializer(model: Model, optimizer: optax.GradientTransformation, seed: int):
    def initial() -> TrainState:
        params = model.init(jax.random.key(seed))
        return TrainState(jnp.int32(0), params, optimizer.init(params), jnp.int32(0))

    return initial
