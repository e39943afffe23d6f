"""Fine-tuning: any loss on any parameters, trained to its last checkpoint; running it again resumes.

The loop of `msfl_jax.train.loop` without a pretraining model in it: the same step counting, logs, checkpoints, signals and exit codes. What differs
between tasks is an `Adaptation`; what is the same for all is here.
"""

import contextlib
import dataclasses
import functools
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import optax
from clu import metrics as clu_metrics
from jax.sharding import Mesh

from input_pipeline.errors import DataError, RetryError
from msfl_jax.config import MeshConfig, TrainConfig, to_dict
from msfl_jax.objective import Tally
from msfl_jax.parallel import distributed
from msfl_jax.parallel.mesh import check_batch_size, make_mesh
from msfl_jax.parallel.sharding import shardings
from msfl_jax.train.checkpoint import Checkpoints, restore_parameters
from msfl_jax.train.due import Due
from msfl_jax.train.loop import (
    CONFIG_FILE,
    RunResult,
    evaluate_owed,
    refuse_divergence,
    refuse_other_config,
    refuse_other_data,
    refuse_url,
)
from msfl_jax.train.preemption import Preemption
from msfl_jax.train.recorder import Recorder
from msfl_jax.train.state import TrainState
from msfl_jax.train.step import apply_if_finite, collect, jit_update

Loss = Callable[[Any, Mapping[str, Any], Any], tuple[Any, dict[str, Tally]]]
Rows = Callable[[int, int, int], Iterator[Mapping[str, Any]]]

# As in pretraining: where and how a run computes and what is watched, not what is computed.
MAY_CHANGE = (
    *("data.directory", "data.workers", "mesh"),
    *(
        "train.log_every",
        "train.checkpoint_every",
        "train.keep_checkpoints",
        "train.max_skipped_steps",
    ),
)


@runtime_checkable
class Settings(Protocol):
    """What the loop reads of a configuration, which is a frozen dataclass with more in it."""

    @property
    def seed(self) -> int:
        """Everything random follows from (seed, step)."""
        ...

    @property
    def train(self) -> TrainConfig:
        """Length of the run and what happens along it."""
        ...

    @property
    def mesh(self) -> MeshConfig:
        """Devices along each axis."""
        ...


@dataclasses.dataclass(frozen=True)
class Adaptation:
    """One supervised training run: what is trained on what.

    Attributes:
      params: before the first step; arrays anywhere, which stay as they are.
      loss: (params, batch on the devices, key of the step) -> (scalar, tallies by name as "loss/dice"); "loss/total" and "gradient_norm" are added.
        Written in the global view, it is differentiated by its first argument.
      optimizer: its state holds arrays under the parameters' names.
      rate: learning rate by step, for the logs.
      batches: (start_step, index, count) -> this process's rows of the global batches after `start_step`, the `index`-th of `count` equal blocks.
        An iterator of dictionaries of arrays [b, ...], which is closed where it can be.
      batch_size: rows of the global batch.
      evaluate: (parameters on the mesh, step) -> metrics by name, the same in every process; called every `train.evaluate_every` steps, and last.
      best_metric: name in what `evaluate` returns, a number at least once, the higher the better, by which the best checkpoint is chosen.
      meta: what a checkpoint must agree with to be resumed, as {"data": ..., "init": ...}; JSON.
      label: of the line of progress; "" prints none.
      flops: of training on one row, for the logs; nan where it is not known.
    """

    params: Any
    loss: Loss
    optimizer: optax.GradientTransformation
    rate: optax.Schedule
    batches: Rows
    batch_size: int
    evaluate: Callable[[Any, int], Mapping[str, float]] | None = None
    best_metric: str = ""
    meta: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    label: str = "fine-tuning"
    flops: float = math.nan


def adapt(task: Adaptation, config: Settings, workdir: Path, *, may_change: Sequence[str] = MAY_CHANGE) -> RunResult:
    """Trains to `train.steps`, from the latest checkpoint of `workdir` if it has one.

    Every process of a run calls it with the same arguments. The run directory gets config.json, parameters.txt, metrics.jsonl, tensorboard/ and
    checkpoints/: the latest ones, and the best one by `task.best_metric`, which `best_parameters` reads.

    Args:
      task: what is trained.
      config: a frozen dataclass, written to config.json; when resuming, only the keys of `may_change` may differ.
      workdir: the run directory, shared by all processes.
      may_change: dotted keys, or sections.

    Raises:
      UserError: the mesh and the batch do not fit each other, or `workdir` is a URL.
      CheckpointError: the checkpoints are damaged or belong to another configuration or other data.
      DataError: no evaluation had a finite score, so that there is no best checkpoint.
      DivergedError: `train.max_skipped_steps` steps in a row had no finite loss and gradient.
      RetryError: the run was asked to stop; it has saved its state.
    """
    refuse_url(workdir)
    distributed.start()
    run = _Run(task, config, Path(workdir), make_mesh(config.mesh))
    check_batch_size(task.batch_size, run.mesh)
    with (
        jax.set_mesh(run.mesh),
        Preemption() as preemption,
        Checkpoints(run.workdir, keep=config.train.keep_checkpoints) as checkpoints,
    ):
        state = _first_state(run, checkpoints, may_change)
        write_config(config, run.workdir)
        start = int(state.step)
        with _recorder(run, state, start) as recorder:
            state = _train(run, state, start, recorder, checkpoints, preemption)
        if task.evaluate and checkpoints.best is None:
            raise DataError(
                f"{run.workdir}: trained to step {config.train.steps}, but no evaluation gave a finite {task.best_metric}, so no "
                "checkpoint is the best; expected validation images with and without findings: use another split and a new workdir"
            )
    return RunResult(config.train.steps, state.params, recorder.values)


def best_parameters(workdir: Path, like: Any, *, step: int | str | None = "best") -> tuple[Any, int]:
    """Parameters of a fine-tuned run and their step.

    Args:
      workdir: its run directory.
      like: shapes of the parameters; with shardings they are restored into them.
      step: "best" by the run's `best_metric`, a step, or None for the latest.

    Raises:
      CheckpointError: there is no such checkpoint, it cannot be read, or it holds other parameters than `like`.
    """
    params, meta = restore_parameters(workdir, like, step=step)
    return params, int(meta["step"])


def adaptation_step(
    state: TrainState,
    batch: Mapping[str, Any],
    *,
    loss: Loss,
    optimizer: optax.GradientTransformation,
    seed: int,
) -> tuple[TrainState, clu_metrics.Collection]:
    """One update on the global batch; everything random comes from fold_in(seed, step).

    Args:
      state: before the step.
      batch: the global batch.
      loss, optimizer: as in `Adaptation`.
      seed: of what the loss draws at random.

    Returns:
      The state after the step, and sums and counts by name. A step without a finite loss and gradient changes no parameter.
    """
    key = jax.random.fold_in(jax.random.key(seed), state.step)
    (value, tallies), gradients = jax.value_and_grad(loss, has_aux=True)(state.params, batch, key)
    norm = optax.global_norm(gradients)
    finite = jnp.isfinite(value) & jnp.isfinite(norm)
    state = apply_if_finite(state, gradients, finite, optimizer)
    one = jnp.float32(1.0)
    return state, collect(
        tallies | {"loss/total": Tally(value, one), "gradient_norm": Tally(norm, one)}, finite, state.skipped
    )


def jit_adaptation_step(
    state: TrainState, mesh: Mesh, *, loss: Loss, optimizer: optax.GradientTransformation, seed: int
):
    """`adaptation_step` compiled by `jit_update`.

    Args:
      state: arrays, or shapes with shardings.
      mesh: to be entered with `jax.set_mesh` around calls.
      loss, optimizer, seed: as in `adaptation_step`.
    """
    return jit_update(functools.partial(adaptation_step, loss=loss, optimizer=optimizer, seed=seed), state, mesh)


@dataclasses.dataclass(frozen=True)
class _Run:
    """What does not change during a run."""

    task: Adaptation
    config: Settings
    workdir: Path
    mesh: Mesh


def _train(
    run: _Run, state: TrainState, start: int, recorder: Recorder, checkpoints: Checkpoints, preemption: Preemption
) -> TrainState:
    """All steps after `start`: update, read and evaluate where due, save where due, stop where asked to."""
    task, train = run.task, run.config.train
    update = jit_adaptation_step(state, run.mesh, loss=task.loss, optimizer=task.optimizer, seed=run.config.seed)
    evaluate_owed(task.evaluate, task.best_metric, state, start, recorder, checkpoints)
    with _closing(task.batches(start, *distributed.data_share(run.mesh, task.batch_size))) as rows:
        batches = distributed.device_batches(rows, run.mesh)
        for step in range(start + 1, train.steps + 1):
            state, metrics = update(state, next(batches))
            recorder.add(metrics, step)
            due = Due.after(step, train, evaluates=task.evaluate is not None, stop=preemption.reached(step))
            if due.log:
                refuse_divergence(recorder.read(step, state.opt_state), train.max_skipped_steps, step)
            scores = recorder.evaluate(task.evaluate, state.params, step) if task.evaluate and due.evaluate else {}
            recorder.write(step)
            if due.save:
                score = scores.get(task.best_metric, math.nan)
                checkpoints.save(state, step, task.meta, score=score, owed=due.owed)
            if due.stop:
                raise RetryError(
                    f"asked to stop; step {step} is saved in {run.workdir}: run the same command again to go on"
                )
    return state


def _first_state(run: _Run, checkpoints: Checkpoints, may_change: Sequence[str]) -> TrainState:
    """The state of the latest checkpoint, else one with the task's own parameters; each device holds only its shards."""

    def initial(params: Any) -> TrainState:
        # Copies: the first step donates the state, and the task's own arrays must outlive it.
        params = jax.tree.map(jnp.copy, params)
        return TrainState(jnp.int32(0), params, run.task.optimizer.init(params), jnp.int32(0))

    shapes = jax.eval_shape(initial, run.task.params)
    placed = shardings(shapes, run.mesh, shard_moments=run.config.mesh.shard_moments)
    like = jax.tree.map(lambda leaf, at: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=at), shapes, placed)
    if checkpoints.steps:
        refuse_other_config(run.config, run.workdir, may_change=may_change)
    if restored := checkpoints.restore(like):
        state, meta = restored
        expected = json.loads(json.dumps(dict(run.task.meta)))  # as JSON gives it back
        refuse_other_data(meta, expected, tuple(expected), run.workdir)
        return state
    # From the host: every process has the same numbers, and none of them has all devices.
    return jax.jit(initial, out_shardings=placed)(jax.device_get(run.task.params))


def _recorder(run: _Run, state: TrainState, start: int) -> Recorder:
    return Recorder(
        run.workdir,
        state.params,
        rate=run.task.rate,
        flops=run.task.flops,
        batch_size=run.task.batch_size,
        steps=run.config.train.steps,
        step=start,
        label=run.task.label,
    )


def write_config(config: Any, workdir: Path) -> None:
    """Writes config.json of a run directory, once for all processes."""
    if distributed.is_lead():
        workdir.mkdir(parents=True, exist_ok=True)
        (workdir / CONFIG_FILE).write_text(json.dumps(to_dict(config), indent=2) + "\n")
    distributed.barrier("workdir")


def _closing(rows: Any) -> Any:
    """A context that closes what has threads or workers behind it."""
    return contextlib.closing(rows) if hasattr(rows, "close") else contextlib.nullcontext(rows)
