"""The training step of a configuration, compiled for devices that need not be there; runs in the process that compiles."""

import math
import re
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax

from msfl_jax.config import Config
from msfl_jax.model import Model
from msfl_jax.parallel.mesh import AXES, check_batch_size, make_mesh
from msfl_jax.planner.cache import write_text
from msfl_jax.planner.protocol import Compiled, TooLarge
from msfl_jax.train.optimizer import make_optimizer
from msfl_jax.train.state import TrainState, abstract_state
from msfl_jax.train.step import abstract_batch, jit_step_of

_UNITS = {"": 1.0, "K": 2.0**10, "M": 2.0**20, "G": 2.0**30, "T": 2.0**40}


def compile_step(
    config: Config,
    vocab_size: int,
    devices: list[Any],
    *,
    platform: str,
    hlo: Path,
    options: Mapping[str, Any] = MappingProxyType({}),
) -> Compiled | TooLarge:
    """Compiles the step that `msfl pretrain` would run and measures what it needs; nothing is computed.

    Args:
      config: of the run; its mesh is laid over all devices.
      vocab_size: of the tokenizer.
      devices: real ones, or those of a topology.
      platform: theirs, as XLA calls it: tpu, cuda or cpu.
      hlo: file that the program's text is written to, compressed.
      options: of XLA's compiler.

    Raises:
      UserError: the mesh or the batch does not fit the devices.
    """
    begin = time.monotonic()
    try:
        lowered, state, batch = lowered_step(config, vocab_size, devices, platform=platform)
        program = lowered.compile(compiler_options=dict(options))
    except jax.errors.JaxRuntimeError as error:
        if not str(error).startswith("RESOURCE_EXHAUSTED"):
            raise
        return too_large(str(error))
    write_text(hlo, program.as_text())
    memory, mesh = program.memory_analysis(), batch["image"].sharding.mesh
    params = jax.tree.leaves(state.params)
    return Compiled(
        seconds=time.monotonic() - begin,
        parameters=bytes_per_chip(state.params),
        optimizer=bytes_per_chip(state.opt_state),
        batch=bytes_per_chip(batch),
        arguments=float(memory.argument_size_in_bytes),
        outputs=float(memory.output_size_in_bytes),
        aliased=float(memory.alias_size_in_bytes),
        temporary=float(memory.temp_size_in_bytes),
        count=sum(math.prod(leaf.shape) for leaf in params),
        split=sum(math.prod(leaf.shape) for leaf in params if "fsdp" in leaf.sharding.spec),
        mesh=(mesh.shape[AXES[0]], mesh.shape[AXES[1]], mesh.shape[AXES[2]]),
    )


def bytes_per_chip(tree: Any) -> float:
    """Bytes of one device's shards of shapes that have shardings."""
    leaves = jax.tree.leaves(tree)
    return float(sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves))


def too_large(message: str) -> TooLarge:
    """What the compiler says about memory when it gives up, as "Used 17.07G of 15.75G hbm"; its G are 2^30."""
    found = re.search(r"Used ([\d.]+)([KMGT]?) of ([\d.]+)([KMGT]?) hbm", message)
    if not found:
        return TooLarge()
    return TooLarge(float(found[1]) * _UNITS[found[2]], float(found[3]) * _UNITS[found[4]])


def lowered_step(
    config: Config, vocab_size: int, devices: list[Any], *, platform: str
) -> tuple[Any, TrainState, dict[str, jax.ShapeDtypeStruct]]:
    """The step as it is given to the compiler, and the shapes of what it is called with; arguments and errors as in `compile_step`."""
    mesh = make_mesh(config.mesh, devices)
    check_batch_size(config.data.batch_size, mesh, microbatches=config.train.microbatches)
    model = Model.create(config, vocab_size=vocab_size)
    optimizer = make_optimizer(config.optimizer, config.train.steps)
    with jax.set_mesh(mesh):
        state = abstract_state(model, optimizer, mesh, shard_moments=config.mesh.shard_moments)
        batch = abstract_batch(config, mesh)
        step = jit_step_of(config, state, mesh, model=model, optimizer=optimizer)
        return step.trace(state, batch).lower(lowering_platforms=(platform,)), state, batch
