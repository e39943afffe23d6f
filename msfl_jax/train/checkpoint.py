"""Checkpoints of a run: the only file that knows Orbax.

A step is a folder `checkpoints/<step>` with the items `params`, `opt_state` and `meta` (JSON), committed by a rename, so that a folder is whole or
absent. `checkpoints/best.json` names the step with the best score.
"""

import contextlib
import json
import logging
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import SingleDeviceSharding
from orbax.checkpoint import checkpoint_managers

from input_pipeline.errors import CheckpointError
from msfl_jax.parallel.distributed import barrier
from msfl_jax.parallel.sharding import path_name
from msfl_jax.train.state import TrainState

DIRECTORY = "checkpoints"
BEST_FILE = "best.json"
QUARANTINE = "quarantine"
OWED = "evaluation_owed"
LISTED_LEAVES = 8

log = logging.getLogger(__name__)


@dataclass
class _Pinned:
    """An Orbax preservation policy: the steps in `steps`, whatever their age."""

    steps: set[int]

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> Sequence[bool]:
        return [checkpoint.step in self.steps for checkpoint in checkpoints]


class Checkpoints:
    """The checkpoints below a run directory: the latest ones and the best one are kept.

    Orbax alone keeps the best by deleting the latest, and lets one NaN evict the best; so which step is best is recorded here, and only finite
    scores count. Saving is asynchronous: only the copy to the host holds up training, and each process writes its own shards.
    """

    def __init__(self, workdir: Path, *, keep: int) -> None:
        """Opens or creates the folder; what a killed save left behind is removed.

        Args:
          workdir: the run directory, shared by all processes.
          keep: how many of the latest checkpoints stay, at least 1.
        """
        self._directory = (workdir / DIRECTORY).absolute()
        self._made = [path for path in (self._directory, self._directory.parent) if not path.exists()]
        self._best = _read_best(self._directory)
        self._candidate: dict[str, Any] | None = None
        self._pinned = _Pinned(set())
        self._owed = False
        self._manager = _open(self._directory, keep=max(keep, 1), pinned=self._pinned)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Waits for what is being saved; where a start was refused, the folders that were made for it are gone if they are empty."""
        self.wait()
        self._manager.close()
        for folder in self._made if kind is not None and jax.process_index() == 0 else ():
            with contextlib.suppress(OSError):
                folder.rmdir()

    @property
    def steps(self) -> list[int]:
        """Steps with a checkpoint, oldest first."""
        return sorted(self._manager.all_steps())

    @property
    def best(self) -> int | None:
        """The step with the best score; None where no score was finite."""
        self.wait()
        return self._best["step"] if self._best else None

    @property
    def owed(self) -> bool:
        """Whether the state that was restored had been saved without the evaluation that was due at its step."""
        return self._owed

    def save(
        self, state: TrainState, step: int, meta: Mapping[str, Any], *, score: float = math.nan, owed: bool = False
    ) -> None:
        """Saves the state after `step`, unless it has been saved; every process calls it.

        Args:
          state: arrays on the mesh; may be donated as soon as this returns.
          step: `state.step` as known on the host.
          meta: what `restore` gives back beside the state; JSON.
          score: the better the higher; NaN, like any other score that is not finite, is never the best.
          owed: whether an evaluation was due and has not been made; `rate` takes its score.
        """
        self.wait()
        if step in self.steps:
            return
        self._consider(step, score)
        self._pinned.steps = {best["step"] for best in (self._best, self._candidate) if best}
        meta = {**meta, "step": step, "skipped": int(state.skipped), "processes": jax.process_count()}
        meta |= {OWED: True} if owed else {}
        items = ocp.args.Composite(
            params=ocp.args.StandardSave(state.params),
            opt_state=ocp.args.StandardSave(state.opt_state),
            meta=ocp.args.JsonSave(meta),
        )
        self._manager.save(step, args=items, force=True)

    def rate(self, step: int, score: float) -> None:
        """Gives a step that is saved the score of an evaluation that was made afterwards; every process calls it."""
        self._consider(step, score)
        self.wait()

    def restore(self, like: TrainState) -> tuple[TrainState, dict[str, Any]] | None:
        """The newest state that can be read, and its meta; None where there is no checkpoint at all.

        A checkpoint that cannot be read is passed over with a warning for the one before it; when an older one has been read, damaged newer ones are
        moved to `checkpoints/quarantine`.

        Args:
          like: shapes, dtypes and shardings to restore into, on any mesh (see `state.abstract_state`).

        Raises:
          CheckpointError: names, shapes or dtypes differ from `like`, or no checkpoint can be read.
        """
        damaged: list[int] = []
        for step in reversed(self.steps):
            try:
                restored = _agree(self._read(step, like))
            except CheckpointError:
                raise
            except Exception as error:  # whatever damage makes Orbax or JSON raise
                log.warning("checkpoint step %d cannot be read (%s)", step, type(error).__name__)
                damaged.append(step)
                continue
            self._quarantine(damaged)
            self._owed = bool(restored[1].get(OWED))
            return restored
        if damaged:
            raise CheckpointError(
                f"{self._directory}: no checkpoint can be read (steps {damaged}); restore a copy or use a new workdir"
            )
        return None

    def wait(self) -> None:
        """Until the save in flight is on disk; then its step is the best, if its score was."""
        self._manager.wait_until_finished()
        if self._candidate:
            self._best, self._candidate = self._candidate, None
            if jax.process_index() == 0:
                _write_json(self._directory / BEST_FILE, self._best)

    def _consider(self, step: int, score: float) -> None:
        """Notes a step that is the best so far."""
        if math.isfinite(score) and (self._best is None or score > self._best["score"]):
            self._candidate = {"step": step, "score": score}

    def _read(self, step: int, like: TrainState) -> tuple[TrainState, dict[str, Any]]:
        saved = self._manager.item_metadata(step)
        _refuse_differences(step, saved["params"], like.params)
        _refuse_differences(step, saved["opt_state"], like.opt_state)
        items = self._manager.restore(
            step,
            args=ocp.args.Composite(
                params=ocp.args.StandardRestore(like.params),
                opt_state=ocp.args.StandardRestore(like.opt_state),
                meta=ocp.args.JsonRestore(),
            ),
        )
        meta = items["meta"]
        counts = {"step": meta["step"], "skipped": meta["skipped"]}
        placed = {name: _place(value, getattr(like, name)) for name, value in counts.items()}
        return TrainState(params=items["params"], opt_state=items["opt_state"], **placed), meta

    def _quarantine(self, steps: list[int]) -> None:
        """Moves damaged steps out of the way of the saves to come."""
        if not steps:
            return
        if jax.process_index() == 0:
            (self._directory / QUARANTINE).mkdir(exist_ok=True)
            for step in steps:
                target = self._directory / QUARANTINE / str(step)
                os.rename(self._directory / str(step), _unused(target))
                log.warning("damaged checkpoint step %d is now in %s", step, target.parent)
        barrier("quarantine")
        self._manager.reload()


def restore_parameters(
    workdir: Path, like: Any, *, step: int | str | None = None, unread: tuple[str, ...] = ()
) -> tuple[Any, dict[str, Any]]:
    """Parameters of a run and their meta, without the optimizer: for evaluation and export.

    Args:
      workdir: run directory.
      like: shapes of the parameters, as `jax.eval_shape(model.init, key)` gives them. Leaves with a sharding are restored into it, others onto the
        first device of this process.
      step: a step, "best", or None for the latest.
      unread: beginnings of names that `like` leaves out; the checkpoint may hold them, and they are not read.

    Raises:
      CheckpointError: there is no such checkpoint, it cannot be read, or it holds other parameters than `like`.
    """
    directory, step = _find(workdir, step)
    with _reading(directory) as manager:
        try:
            _refuse_differences(step, manager.item_metadata(step)["params"], like, unread)
            wanted = _with_shardings(like)
            params = ocp.args.PyTreeRestore(
                wanted, restore_args=ocp.checkpoint_utils.construct_restore_args(wanted), partial_restore=bool(unread)
            )
            items = manager.restore(step, args=ocp.args.Composite(params=params, meta=ocp.args.JsonRestore()))
        except CheckpointError:
            raise
        except Exception as error:
            raise CheckpointError(
                f"{directory / str(step)}: cannot be read ({type(error).__name__}); choose another step"
            ) from error
    return items["params"], items["meta"]


def read_meta(workdir: Path, *, step: int | str | None = None) -> dict[str, Any]:
    """The meta of a checkpoint alone; `step` as in `restore_parameters`.

    Keys: step, seed, config_hash, tokenizer_hash, vocab_size, batch_size, examples, data (split, records, shards), processes, skipped; and
    evaluation_owed where one was due and has been left to the session that resumes.

    Raises:
      CheckpointError: there is no such checkpoint, or its meta cannot be read.
    """
    directory, step = _find(workdir, step)
    with _reading(directory) as manager:
        try:
            return manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))["meta"]
        except Exception as error:
            raise CheckpointError(f"{directory / str(step)}: meta cannot be read ({type(error).__name__})") from error


def _open(directory: Path, *, keep: int = 0, pinned: _Pinned | None = None) -> ocp.CheckpointManager:
    """A manager that writes where `pinned` is given, else one that only reads."""
    policies = [checkpoint_managers.LatestN(keep), pinned] if pinned else [checkpoint_managers.LatestN(None)]
    # This handler of parameters can read some of them.
    handlers: dict[str, Any] = {"params": ocp.PyTreeCheckpointHandler(), "meta": ocp.JsonCheckpointHandler()}
    if pinned is not None:  # nobody who only reads looks at the optimizer
        handlers |= {"params": ocp.StandardCheckpointHandler(), "opt_state": ocp.StandardCheckpointHandler()}
    options = ocp.CheckpointManagerOptions(
        preservation_policy=checkpoint_managers.AnyPreservationPolicy(policies),
        create=pinned is not None,
        cleanup_tmp_directories=pinned is not None,
        read_only=pinned is None,
    )
    return ocp.CheckpointManager(directory, options=options, item_names=tuple(handlers), item_handlers=handlers)


@contextlib.contextmanager
def _reading(directory: Path) -> Iterator[ocp.CheckpointManager]:
    """A manager that only reads. Orbax warns of that, and that it will not read the optimizer; a program that loads a model need hear neither."""
    logger = logging.getLogger("absl")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with _open(directory) as manager:
            yield manager
    finally:
        logger.setLevel(before)


def _find(workdir: Path, step: int | str | None) -> tuple[Path, int]:
    """The folder of checkpoints and the number of the one that is meant."""
    directory = (Path(workdir) / DIRECTORY).absolute()
    steps = sorted(int(path.name) for path in directory.glob("*") if path.name.isdigit())
    if not steps:
        raise CheckpointError(f"{workdir}: no checkpoint; expected a run directory of `msfl pretrain`")
    if step == "best":
        best = _read_best(directory)
        step = best["step"] if best else "best"
    step = steps[-1] if step is None else step
    if step not in steps:
        raise CheckpointError(f"{workdir}: no checkpoint '{step}'; found steps {', '.join(map(str, steps))}")
    return directory, int(step)


def _refuse_differences(step: int, saved: Any, like: Any, unread: tuple[str, ...] = ()) -> None:
    """Raises a CheckpointError that names the leaves in which a checkpoint and this configuration differ, but for `unread` ones."""
    found = {path_name(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(saved.tree)[0]}
    wanted = {path_name(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(like)[0]}
    causes = {
        "missing": sorted(wanted.keys() - found.keys()),
        "unknown": sorted(name for name in found.keys() - wanted.keys() if not name.startswith(unread)),
        "other shape or dtype": [
            f"{name} {_describe(found[name])} for {_describe(wanted[name])}"
            for name in sorted(wanted.keys() & found.keys())
            if _describe(found[name]) != _describe(wanted[name])
        ],
    }
    text = "; ".join(f"{cause}: {_shortened(names)}" for cause, names in causes.items() if names)
    if text:
        raise CheckpointError(f"checkpoint step {step} does not fit this configuration: {text}")


def _describe(leaf: Any) -> str:
    return f"{np.dtype(leaf.dtype)}[{','.join(map(str, leaf.shape))}]"


def _shortened(names: Sequence[str]) -> str:
    more = f" and {len(names) - LISTED_LEAVES} more" if len(names) > LISTED_LEAVES else ""
    return ", ".join(names[:LISTED_LEAVES]) + more


def _with_shardings(like: Any) -> Any:
    """`like` with a sharding on every leaf: without one Orbax takes the saved one, whose devices need not exist here."""
    here = SingleDeviceSharding(jax.local_devices()[0])
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding or here), like)


def _place(value: int, like: Any) -> jax.Array:
    """A number of meta as the replicated scalar that the state holds."""
    return jax.device_put(jnp.asarray(value, like.dtype), like.sharding)


def _agree(restored: Any) -> Any:
    """Waits until every process has read its shards."""
    barrier("restored")
    return restored


def _read_best(directory: Path) -> dict[str, Any] | None:
    """The pointer to the best step, or None where there is none that can be read."""
    try:
        best = json.loads((directory / BEST_FILE).read_text())
        return {"step": int(best["step"]), "score": float(best["score"])}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write_json(file: Path, value: Any) -> None:
    """Writes whole or not at all."""
    temporary = file.with_suffix(".tmp")
    temporary.write_text(json.dumps(value))
    os.replace(temporary, file)


def _unused(path: Path) -> Path:
    """The path, numbered where something of that name exists."""
    number = 0
    while (candidate := path if not number else path.with_name(f"{path.name}.{number}")).exists():
        number += 1
    return candidate
