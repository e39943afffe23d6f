"""One update on the global batch, what it measures, and the one place where `jit` is put around it."""

import functools
import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from clu import metrics as clu_metrics
from flax import struct
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Int

from msfl_jax import encoders, gradient_cache, objective
from msfl_jax.config import Config
from msfl_jax.model import Keys, Model
from msfl_jax.objective import Batch, Tally, Weights
from msfl_jax.parallel.mesh import BATCH_AXES, batch_sharding, devices_along, replicated
from msfl_jax.parallel.xla_flags import compiler_options
from msfl_jax.train.state import TrainState


@struct.dataclass
class Mean(clu_metrics.Average):
    """A sum and a count that add up over steps; the mean is NaN where nothing was counted."""


@struct.dataclass
class Sum(clu_metrics.Metric):
    """Adds up over steps."""

    value: Any

    @classmethod
    def empty(cls) -> "Sum":
        """Before the first step; what is counted is never negative."""
        return cls(jnp.int32(0))

    def merge(self, other: "Sum") -> "Sum":
        """Of this step and those before."""
        return Sum(self.value + other.value)

    def compute(self) -> Any:
        """The sum."""
        return self.value


@struct.dataclass
class Largest(clu_metrics.Metric):
    """The largest value over steps."""

    value: Any

    @classmethod
    def empty(cls) -> "Largest":
        """Before the first step; what is counted is never negative."""
        return cls(jnp.int32(0))

    def merge(self, other: "Largest") -> "Largest":
        """Of this step and those before."""
        return Largest(jnp.maximum(self.value, other.value))

    def compute(self) -> Any:
        """The largest value."""
        return self.value


def train_step(
    state: TrainState,
    batch: Batch,
    *,
    model: Model,
    weights: Weights,
    optimizer: optax.GradientTransformation,
    seed: int,
    microbatches: int = 1,
) -> tuple[TrainState, clu_metrics.Collection]:
    """One update on the global batch; everything random comes from (seed, step).

    Args:
      state: before the step.
      batch: `image`, `token_ids`, `sentence_ids` and `study_key` of the global batch.
      model: static; encoders and heads.
      weights: the lambdas of eq. 7 as functions of the step.
      optimizer: static.
      seed: of masks and negatives.
      microbatches: parts in which the encoders see the batch (`gradient_cache`).

    Returns:
      The state after the step, and sums and counts by name (see `readable`).
    """
    keys = Keys.at(seed, state.step)

    weights = weights.at(state.step)
    if microbatches > 1:
        cached = functools.partial(gradient_cache.value_and_grad, model=model, microbatches=microbatches)
        (value, tallies), gradients = cached(state.params, batch, keys, weights=weights)
    else:
        loss = functools.partial(objective.total, model=model, weights=weights)
        (value, tallies), gradients = jax.value_and_grad(loss, has_aux=True)(state.params, batch, keys)
    norm = optax.global_norm(gradients)
    finite = jnp.isfinite(value) & jnp.isfinite(norm)
    state = apply_if_finite(state, gradients, finite, optimizer)
    useful = useful_tokens(batch["token_ids"], model.config.text.buckets, microbatches)
    tallies |= {"gradient_norm": Tally(norm, jnp.float32(1.0)), "tokens/useful": useful}
    return state, collect(tallies, finite, state.skipped)


def useful_tokens(token_ids: Int[Array, "B T"], buckets: encoders.Buckets, microbatches: int) -> Tally:
    """Tokens of reports over those that are computed for them, padding included, on the mesh that is set; masked reports cost the same again."""
    count = functools.partial(encoders.useful_tokens, buckets=buckets, parts=devices_along(BATCH_AXES))
    useful, computed = jax.vmap(count)(gradient_cache.split(token_ids, microbatches))
    return Tally(useful.sum(), computed.sum())


def apply_if_finite(
    state: TrainState, gradients: Any, finite: Bool[Array, ""], optimizer: optax.GradientTransformation
) -> TrainState:
    """The state after the update, or, where `finite` is False, the same parameters and moments one step on and `skipped` raised."""
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    kept = functools.partial(jax.tree.map, functools.partial(jnp.where, finite))
    return TrainState(
        step=state.step + 1,
        params=kept(params, state.params),
        opt_state=kept(opt_state, state.opt_state),
        skipped=jnp.where(finite, 0, state.skipped + 1).astype(jnp.int32),
    )


def collect(tallies: dict[str, Tally], finite: Bool[Array, ""], skipped: Array) -> clu_metrics.Collection:
    """The tallies of one step as a collection; those of a skipped step count nothing, so that one NaN does not hide its neighbours."""
    means = {name: Mean(*(jnp.where(finite, part, 0.0) for part in tally)) for name, tally in tallies.items()}
    counts = {"skipped": Sum(1 - finite.astype(jnp.int32)), "skipped_in_a_row": Largest(skipped)}
    fields = {_field(name): value for name, value in sorted((means | counts).items())}
    kind: Any = _collection(tuple((name, type(value)) for name, value in fields.items()))
    return kind.empty().replace(**fields)


@jax.jit
def merge(earlier: clu_metrics.Collection, later: clu_metrics.Collection) -> clu_metrics.Collection:
    """Both collections as one, on the devices."""
    return earlier.merge(later)


def readable(metrics: clu_metrics.Collection) -> dict[str, float]:
    """Waits for the devices and returns means and counts by name, as `loss/total`."""
    computed = jax.device_get(metrics.compute())
    return {name.replace("__", "/"): float(value) for name, value in computed.items()}


def jit_train_step(
    state: TrainState,
    mesh: Mesh,
    *,
    model: Model,
    weights: Weights,
    optimizer: optax.GradientTransformation,
    seed: int,
    microbatches: int = 1,
):
    """`train_step` compiled by `jit_update`.

    Args:
      state: arrays, or shapes with shardings.
      mesh: to be entered with `jax.set_mesh` around calls.
      model, weights, optimizer, seed, microbatches: as in `train_step`.
    """
    parts = {"model": model, "weights": weights, "optimizer": optimizer, "seed": seed, "microbatches": microbatches}
    return jit_update(functools.partial(train_step, **parts), state, mesh)


def jit_update(step: Callable[[TrainState, Batch], Any], state: TrainState, mesh: Mesh):
    """A step compiled: the state is donated and stays where it is, the batch lies over data and fsdp, metrics are on every device."""
    placed = jax.tree.map(lambda leaf: leaf.sharding, state)
    return jax.jit(
        step,
        in_shardings=(placed, batch_sharding(mesh)),
        out_shardings=(placed, replicated(mesh)),
        donate_argnums=0,
        compiler_options=compiler_options(mesh.devices.flat[0].platform, os.environ.get("XLA_FLAGS", "")),
    )


def jit_step_of(
    config: Config, state: TrainState, mesh: Mesh, *, model: Model, optimizer: optax.GradientTransformation
):
    """`jit_train_step` with what else a configuration says: weights, seed and microbatches."""
    weights, microbatches = Weights.create(config), config.train.microbatches
    parts: dict[str, Any] = {"weights": weights, "seed": config.seed, "microbatches": microbatches}
    return jit_train_step(state, mesh, model=model, optimizer=optimizer, **parts)


def abstract_batch(config: Config, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes, dtypes and shardings of a global batch as the loader makes it, to compile a step without data."""
    batch, vision = config.data.batch_size, config.model.vision
    side, tokens = vision.image_size * config.image.target_scale, config.model.text.max_tokens
    shapes: dict[str, tuple[tuple[int, ...], Any]] = {
        "image": ((batch, side, side, 1), jnp.uint8),
        "token_ids": ((batch, tokens), jnp.int32),
        "sentence_ids": ((batch, tokens), jnp.int32),
        "study_key": ((batch,), jnp.uint32),
    }
    placed = batch_sharding(mesh)
    return {name: jax.ShapeDtypeStruct(*shape, sharding=placed) for name, shape in shapes.items()}


@functools.cache
def _collection(fields: tuple[tuple[str, type[clu_metrics.Metric]], ...]) -> type[clu_metrics.Collection]:
    """One class per set of metrics: collections of two classes do not merge."""
    return clu_metrics.Collection.create(**dict(fields))


def _field(name: str) -> str:
    """A metric's name as the attribute of a dataclass."""
    return name.replace("/", "__")
