"""A pretraining run from its configuration to its last checkpoint; running it again resumes."""

import contextlib
import dataclasses
import hashlib
import json
import math
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import optax
from jax.sharding import Mesh

from input_pipeline.errors import CheckpointError, DivergedError, RetryError, UserError
from input_pipeline.loader import BatchSpec, train_batches
from input_pipeline.manifest import read_manifest
from input_pipeline.tokenizer import ReportTokenizer
from msfl_jax.config import Config, config_hash, to_dict
from msfl_jax.config_init import with_defaults
from msfl_jax.model import Model, SpecialTokens
from msfl_jax.parallel import distributed
from msfl_jax.parallel.local_alignment import check_kernel
from msfl_jax.parallel.mesh import check_batch_size, make_mesh
from msfl_jax.train.checkpoint import Checkpoints, restore_parameters
from msfl_jax.train.due import Due
from msfl_jax.train.flops import flops_per_pair
from msfl_jax.train.optimizer import learning_rate, make_optimizer
from msfl_jax.train.preemption import Preemption
from msfl_jax.train.provenance import Inherited, inherit, write_provenance
from msfl_jax.train.recorder import Recorder
from msfl_jax.train.state import TrainState, abstract_state, create_state, place_imported
from msfl_jax.train.step import jit_step_of

CONFIG_FILE = "config.json"
TOKENIZER_DIRECTORY = "tokenizer"
BEST_METRIC = "zero_shot/mean_auc"

# Sections and keys that a resumed run may change: they say where and how it runs and what is watched, not what is computed.
MAY_CHANGE = (
    *("data.directory", "data.tokenizer", "data.workers", "mesh", "zero_shot", "grounding"),
    *("retrieval", "probe"),
    *(
        "train.log_every",
        "train.checkpoint_every",
        "train.keep_checkpoints",
        "train.evaluate_every",
        "train.max_skipped_steps",
    ),
    *(
        "train.microbatches",
        "model.attention",
        "model.remat",
        "text.length_buckets",
        "objective.global_alignment.exchange",
    ),
    *("objective.local_alignment.exchange", "objective.local_alignment.kernel"),
)

Evaluate = Callable[[Any, int], Mapping[str, float]]
Initial = Callable[[Any], tuple[Mapping[str, Any], tuple[str, ...]]]
"""Shapes of the parameters -> arrays that some of them start from, and what that makes it necessary to say beside every number."""


@dataclasses.dataclass(frozen=True)
class RunResult:
    """What a run ends with.

    Attributes:
      step: steps taken over all sessions.
      params: on the devices of the mesh.
      metrics: the last that were logged in this session; empty where the run had ended before.
    """

    step: int
    params: Any
    metrics: Mapping[str, float]


def pretrain(
    config: Config,
    workdir: Path,
    *,
    evaluate: Evaluate | None = None,
    progress: bool = True,
    init_from: Path | None = None,
    initial: Initial | None = None,
    best_metric: str = BEST_METRIC,
) -> RunResult:
    """Trains to `train.steps`, from the latest checkpoint of `workdir` if it has one.

    Every process of a run calls it with the same arguments. The run directory gets config.json, data.json, tokenizer/, parameters.txt,
    metrics.jsonl, tensorboard/ and checkpoints/.

    Args:
      config: of the run; when resuming, only the keys of `MAY_CHANGE` may differ.
      workdir: the run directory, shared by all processes.
      evaluate: called with (params, step) every `train.evaluate_every` steps and at the end, by every process; returns the same numbers in each.
      progress: whether to print a line of progress.
      init_from: run directory whose parameters to start from; for the first start only.
      initial: reads what `config.init_from` names (`msfl_jax.export.importing.imported_parameters`), called for the first start only.
      best_metric: name in what `evaluate` returns, higher is better, by which the best checkpoint is chosen.

    Raises:
      UserError: the mesh, the batch and the schedule do not fit each other, or `workdir` is a URL.
      CheckpointError: the checkpoints are damaged or belong to another configuration, tokenizer or data set.
      DivergedError: `train.max_skipped_steps` steps in a row had no finite loss and gradient.
      RetryError: the run was asked to stop; it has saved its state.
    """
    refuse_url(workdir)
    distributed.start()
    run = _Run.create(config, Path(workdir), evaluate, best_metric)
    with (
        jax.set_mesh(run.mesh),
        Preemption() as preemption,
        Checkpoints(run.workdir, keep=config.train.keep_checkpoints) as checkpoints,
    ):
        state, inherited = first_state(run, checkpoints, init_from, initial)
        start = int(state.step)
        prepare_workdir(run.config, run.workdir, inherited, fresh=start == 0)
        with _recorder(run, state, start, progress) as recorder:
            state = _train(run, state, start, recorder, checkpoints, preemption)
    return RunResult(config.train.steps, state.params, recorder.values)


@dataclasses.dataclass(frozen=True)
class _Run:
    """What does not change during a run."""

    config: Config
    workdir: Path
    mesh: Mesh
    model: Model
    optimizer: optax.GradientTransformation
    meta: Mapping[str, Any]
    evaluate: Evaluate | None
    best_metric: str

    @classmethod
    def create(cls, config: Config, workdir: Path, evaluate: Evaluate | None, best_metric: str) -> "_Run":
        mesh = make_mesh(config.mesh)
        check_batch_size(config.data.batch_size, mesh, microbatches=config.train.microbatches)
        check_kernel(config, mesh.shape, mesh.devices.flat[0].platform)
        tokenizer = ReportTokenizer.load(Path(config.data.tokenizer))
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, tokenizer_hash=tokenizer.hash))
        return cls(
            config=config,
            workdir=workdir,
            mesh=mesh,
            model=Model.create(
                config, vocab_size=tokenizer.vocab_size, special=SpecialTokens(tokenizer.mask_id, tokenizer.special_ids)
            ),
            optimizer=make_optimizer(config.optimizer, config.train.steps),
            meta=describe(config, tokenizer),
            evaluate=evaluate,
            best_metric=best_metric,
        )


def _train(
    run: _Run, state: TrainState, start: int, recorder: Recorder, checkpoints: Checkpoints, preemption: Preemption
) -> TrainState:
    """All steps after `start`: update, read and evaluate where due, save where due, stop where asked to."""
    update = jit_step_of(run.config, state, run.mesh, model=run.model, optimizer=run.optimizer)
    evaluate_owed(run.evaluate, run.best_metric, state, start, recorder, checkpoints)
    with contextlib.closing(_rows(run, start)) as rows:
        batches = distributed.device_batches(rows, run.mesh)
        for step in range(start + 1, run.config.train.steps + 1):
            state, metrics = update(state, next(batches))
            recorder.add(metrics, step)
            due = Due.after(step, run.config.train, evaluates=run.evaluate is not None, stop=preemption.reached(step))
            if due.log:
                refuse_divergence(recorder.read(step, state.opt_state), run.config.train.max_skipped_steps, step)
            scores = recorder.evaluate(run.evaluate, state.params, step) if run.evaluate and due.evaluate else {}
            recorder.write(step)
            if due.save:
                score = scores.get(run.best_metric, math.nan)
                meta = {**run.meta, "examples": step * run.config.data.batch_size}
                checkpoints.save(state, step, meta, score=score, owed=due.owed)
            if due.stop:
                raise RetryError(
                    f"asked to stop; step {step} is saved in {run.workdir}: run the same command again to go on"
                )
    return state


def evaluate_owed(
    evaluate: Evaluate | None,
    best_metric: str,
    state: TrainState,
    step: int,
    recorder: Recorder,
    checkpoints: Checkpoints,
) -> None:
    """Makes up for the evaluation that a stop left out at the step after which a run goes on, so that its best step is that of a run in one go."""
    if evaluate is None or not checkpoints.owed:
        return
    scores = recorder.evaluate(evaluate, state.params, step)
    checkpoints.rate(step, scores.get(best_metric, math.nan))
    recorder.amend(step)


def _recorder(run: _Run, state: TrainState, start: int, progress: bool) -> Recorder:
    config = run.config
    return Recorder(
        run.workdir,
        state.params,
        rate=learning_rate(config.optimizer, config.train.steps),
        flops=flops_per_pair(config, run.model.vocab_size),
        batch_size=config.data.batch_size,
        steps=config.train.steps,
        step=start,
        label="pretraining" if progress else "",
    )


def training_spec(config: Config) -> BatchSpec:
    """What the loader needs to know to feed a training run: sizes, augmentation and the tokenizer."""
    data = config.data
    return BatchSpec(
        tokenizer=data.tokenizer,
        image_size=config.model.vision.image_size * config.image.target_scale,
        max_tokens=config.model.text.max_tokens,
        max_sentences=config.text.max_sentences,
        fit=data.fit,
        scale=data.scale,
        shift=data.shift,
        subset_probability=config.text.subset_probability,
        aspect=data.aspect,
        placement=data.placement,
        zoom=data.zoom,
        rotation=data.rotation,
        flip=data.flip,
    )


def _rows(run: _Run, start: int) -> Any:
    """This process's rows of the global batches after step `start`."""
    config = run.config
    index, count = distributed.data_share(run.mesh, config.data.batch_size)
    return train_batches(
        config.data.directory,
        training_spec(config),
        batch_size=config.data.batch_size,
        seed=config.seed,
        split=config.data.split,
        start_step=start,
        process_index=index,
        process_count=count,
        workers=config.data.workers,
        permute_reports=config.data.permute_reports,
    )


def first_state(
    run: _Run, checkpoints: Checkpoints, init_from: Path | None, initial: Initial | None = None
) -> tuple[TrainState, Inherited]:
    """The state of the latest checkpoint, else a new one, else a new one with another run's parameters or imported ones.

    Returns:
      The state, and what must be said of the run because of where it started.

    Raises:
      UserError: the configuration names weights and nothing reads them.
      CheckpointError: see `pretrain`.
    """
    shard_moments = run.config.mesh.shard_moments
    like = abstract_state(run.model, run.optimizer, run.mesh, shard_moments=shard_moments)
    if checkpoints.steps:
        refuse_other_config(run.config, run.workdir)
    if restored := checkpoints.restore(like):
        state, meta = restored
        refuse_other_data(meta, run.meta, ("tokenizer_hash", "data", "batch_size", "seed"), run.workdir)
        return state, Inherited()
    if run.config.init_from and (initial is None or init_from is not None):
        raise UserError(
            "config: 'init_from' names weights; expected `msfl pretrain` without --init-from, which reads them"
        )
    imported, caveats = initial(like.params) if initial and run.config.init_from else ({}, ())
    state = create_state(run.model, run.optimizer, run.config.seed, run.mesh, shard_moments=shard_moments)
    if init_from is None:
        return dataclasses.replace(state, params=place_imported(state.params, imported)), Inherited(caveats)
    params, meta = restore_parameters(init_from, like.params)
    refuse_other_data(meta, run.meta, ("tokenizer_hash",), init_from)
    inherited = inherit(init_from, read_manifest(run.config.data.directory), run.config.data.split)
    return dataclasses.replace(state, params=params), inherited


def describe(config: Config, tokenizer: ReportTokenizer) -> dict[str, Any]:
    """What is written beside every checkpoint: enough to refuse to go on with another tokenizer or other data.

    Raises:
      UserError: the build does not exist or has no such split.
    """
    manifest = read_manifest(Path(config.data.directory))
    if config.data.split not in manifest.readable_splits():
        found = ", ".join(manifest.readable_splits())
        raise UserError(f"{config.data.directory}: no split '{config.data.split}'; found {found}")
    whole = manifest.splits[manifest.split_of(config.data.split)]
    shards = hashlib.sha256("".join(shard.sha256 for shard in whole.shards).encode()).hexdigest()[:16]
    return {
        "seed": config.seed,
        "config_hash": config_hash(config),
        "tokenizer_hash": tokenizer.hash,
        "vocab_size": tokenizer.vocab_size,
        "batch_size": config.data.batch_size,
        "data": {"split": config.data.split, "records": manifest.record_count(config.data.split), "shards": shards},
    }


def refuse_other_data(
    found: Mapping[str, Any], expected: Mapping[str, Any], keys: Sequence[str], workdir: Path
) -> None:
    """Raises a CheckpointError where a checkpoint was made with another tokenizer or at other data."""
    for key in keys:
        if found.get(key) != expected[key]:
            raise CheckpointError(
                f"{workdir}: checkpoint has {key} {found.get(key)}; this run has {expected[key]}: use a new workdir"
            )


def refuse_other_config(config: Any, workdir: Path, *, may_change: Sequence[str] = MAY_CHANGE) -> None:
    """Raises a CheckpointError that names the keys in which the run's config.json and `config` differ, those of `may_change` aside."""
    try:
        found = with_defaults(type(config), json.loads((workdir / CONFIG_FILE).read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(
            f"{workdir / CONFIG_FILE}: cannot be read ({type(error).__name__}), but there are checkpoints"
        ) from error
    found, wanted = (_flat(json.loads(json.dumps(values))) for values in (found, to_dict(config)))
    keys = sorted(key for key in found.keys() | wanted.keys() if found.get(key) != wanted.get(key))
    refused = [key for key in keys if not any(key == free or key.startswith(f"{free}.") for free in may_change)]
    if refused:
        listed = ", ".join(f"{key} {found.get(key)!r} is now {wanted.get(key)!r}" for key in refused)
        raise CheckpointError(f"{workdir}: begun with another configuration: {listed}; use a new workdir")


def refuse_divergence(values: Mapping[str, float], limit: int, step: int) -> None:
    """Raises a DivergedError where more steps in a row were skipped than the configuration allows."""
    if values["skipped_in_a_row"] >= limit > 0:
        row = int(values["skipped_in_a_row"])
        raise DivergedError(
            f"step {step}: {row} steps in a row without a finite loss and gradient; lower optimizer.peak_rate"
        )


def refuse_url(workdir: Path) -> None:
    """Raises a UserError for gs://bucket/run and its like, which would become a local folder of that name, lost with the machine."""
    if re.match(r"[a-z][a-z0-9]+:/", str(workdir)):
        raise UserError(f"{workdir}: is no folder; mount the bucket and give the path of the mount (launch/README.md)")


def prepare_workdir(config: Config, workdir: Path, inherited: Inherited, *, fresh: bool) -> None:
    """Writes config.json, data.json and a copy of the tokenizer, so that the run directory can be evaluated on its own.

    Args:
      config: of the run.
      workdir: its directory.
      inherited: from what it starts from.
      fresh: whether it starts now, rather than being resumed.
    """
    if distributed.is_lead():
        workdir.mkdir(parents=True, exist_ok=True)
        (workdir / CONFIG_FILE).write_text(json.dumps(to_dict(config), indent=2) + "\n")
        manifest, (caveats, before) = read_manifest(config.data.directory), inherited
        write_provenance(manifest, config.data.split, workdir, inherited=caveats, before=before, fresh=fresh)
        source, target = Path(config.data.tokenizer).resolve(), (workdir / TOKENIZER_DIRECTORY).resolve()
        if source != target:
            shutil.copytree(source, target, dirs_exist_ok=True)
    distributed.barrier("workdir")


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested sections as dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return flat
