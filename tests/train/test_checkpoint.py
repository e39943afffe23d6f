"""What is kept, what is refused, and where restored arrays lie."""

import dataclasses
import json
import math
import shutil

import jax
import jax.numpy as jnp
import optax
import pytest
from numpy.testing import assert_array_equal

from input_pipeline.errors import CheckpointError
from msfl_jax.parallel.sharding import shardings
from msfl_jax.train.checkpoint import Checkpoints, read_meta, restore_parameters
from msfl_jax.train.state import TrainState

META = {"seed": 0, "config_hash": "c", "tokenizer_hash": "t", "vocab_size": 7}


def make_state(mesh, *, value: float = 1.0, width: int = 8, name: str = "attn") -> TrainState:
    """A state of one block whose parameters are drawn around `value`."""
    kernel = value + jnp.arange(width * width, dtype=jnp.float32).reshape(width, width)
    params = {"vision": {"blocks_0": {name: {"query": {"kernel": kernel, "bias": jnp.full(width, float(value))}}}}}
    opt_state = optax.adamw(optax.cosine_decay_schedule(1.0, 10)).init(params)
    state = TrainState(jnp.int32(value), params, opt_state, jnp.int32(2))
    return jax.device_put(state, shardings(state, mesh, threshold=1))


def like(state: TrainState) -> TrainState:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), state)


def save_steps(workdir, mesh, steps, *, keep=2, scores=None):
    with Checkpoints(workdir, keep=keep) as checkpoints:
        for step in steps:
            score = (scores or {}).get(step, math.nan)
            checkpoints.save(make_state(mesh, value=step), step, META | {"examples": step}, score=score)


def damage(workdir, step, item="params"):
    """Cuts the files of an item to half of their length."""
    for file in (workdir / "checkpoints" / str(step) / item).rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def test_a_state_comes_back_bit_equal_on_any_mesh(tmp_path, mesh_of):
    state = make_state(mesh_of(2, 2, 2), value=5)
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(state, 5, META)
    for shape in [(8, 1, 1), (1, 2, 4), (2, 4, 1), (1, 1, 1)]:
        wanted = like(make_state(mesh_of(*shape)))
        with Checkpoints(tmp_path, keep=1) as checkpoints:
            restored, meta = checkpoints.restore(wanted)
        jax.tree.map(assert_array_equal, jax.device_get(restored), jax.device_get(state))
        assert jax.tree.all(jax.tree.map(lambda leaf, shape: leaf.sharding == shape.sharding, restored, wanted))
        assert meta == META | {"step": 5, "skipped": 2, "processes": 1}


def test_nothing_is_restored_from_an_empty_folder(tmp_path, mesh_of):
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        assert checkpoints.restore(like(make_state(mesh_of(1)))) is None


def test_a_refused_start_leaves_no_folder_that_was_not_there(tmp_path, mesh_of):
    def refuse(workdir):
        with pytest.raises(CheckpointError, match="refused"), Checkpoints(workdir, keep=1):
            raise CheckpointError("refused")

    refuse(tmp_path / "runs" / "new")
    assert not (tmp_path / "runs" / "new").exists()
    (tmp_path / "mine").mkdir()
    refuse(tmp_path / "mine")
    assert not list((tmp_path / "mine").iterdir())
    save_steps(tmp_path / "kept", mesh_of(1), [1])
    refuse(tmp_path / "kept")
    assert (tmp_path / "kept" / "checkpoints" / "1").is_dir()
    with Checkpoints(tmp_path / "empty", keep=1):
        pass
    assert (tmp_path / "empty" / "checkpoints").is_dir()


def test_donating_a_state_after_saving_it_does_not_change_the_checkpoint(tmp_path, mesh_of):
    state = make_state(mesh_of(8), value=1)
    expected = jax.device_get(state)
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(state, 1, META)
        state = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf * 0, tree), donate_argnums=0)(state)
        jax.block_until_ready(state)
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        restored, _ = checkpoints.restore(like(state))
    jax.tree.map(assert_array_equal, jax.device_get(restored), expected)


@pytest.mark.parametrize(
    ("scores", "best"),
    [
        ({}, None),
        ({1: 0.5, 2: 0.9, 3: 0.7}, 2),
        ({1: 0.5, 2: 0.9, 3: math.nan, 4: math.inf}, 2),
        ({1: 0.9, 5: 0.1}, 1),
        ({1: 0.5, 5: 0.6}, 5),
    ],
    ids=["no scores", "a falling score", "scores that are no numbers", "the first is best", "the last is best"],
)
def test_the_latest_and_the_best_are_kept(tmp_path, mesh_of, scores, best):
    mesh = mesh_of(1)
    save_steps(tmp_path, mesh, [1, 2, 3, 4, 5], scores=scores)
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        assert {4, 5} | ({best} if best else set()) <= set(checkpoints.steps)
        checkpoints.save(make_state(mesh, value=6), 6, META)
        checkpoints.wait()
        assert checkpoints.steps == sorted({5, 6} | ({best} if best else set()))
    if best:
        params, meta = restore_parameters(tmp_path, like(make_state(mesh)).params, step="best")
        assert meta["step"] == best
        assert float(params["vision"]["blocks_0"]["attn"]["query"]["bias"][0]) == best


def test_what_is_not_wanted_is_not_read(tmp_path, mesh_of):
    """Not even where its file is gone."""
    state = make_state(mesh_of(2, 2, 2), value=4)
    state = dataclasses.replace(state, params=state.params | {"pixel_decoder": {"kernel": jnp.ones((64, 64))}})
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(state, 4, META)
    wanted = like(make_state(mesh_of(1, 4, 2))).params
    with pytest.raises(CheckpointError, match="unknown: pixel_decoder/kernel"):
        restore_parameters(tmp_path, wanted)
    found, meta = restore_parameters(tmp_path, wanted, unread=("pixel_decoder/",))
    assert found.keys() == {"vision"}
    assert meta["step"] == 4
    jax.tree.map(assert_array_equal, jax.device_get(found), jax.device_get({"vision": state.params["vision"]}))
    assert jax.tree.all(jax.tree.map(lambda leaf, shape: leaf.sharding == shape.sharding, found, wanted))
    with pytest.raises(CheckpointError, match="missing: vision"):
        restore_parameters(tmp_path, {"vision": wanted["vision"] | {"more": wanted["vision"]["blocks_0"]}})


def test_the_best_step_is_remembered_when_a_run_goes_on(tmp_path, mesh_of):
    save_steps(tmp_path, mesh_of(1), [1, 2], scores={1: 0.9})
    save_steps(tmp_path, mesh_of(1), [3, 4, 5], scores={3: 0.8})
    assert json.loads((tmp_path / "checkpoints" / "best.json").read_text()) == {"step": 1, "score": 0.9}
    assert read_meta(tmp_path, step="best")["step"] == 1
    assert read_meta(tmp_path)["step"] == 5


@pytest.mark.parametrize("item", ["params", "opt_state", "meta"])
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(tmp_path, mesh_of, item, caplog):
    save_steps(tmp_path, mesh_of(8), [1, 2])
    damage(tmp_path, 2, item)
    wanted = like(make_state(mesh_of(8)))
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        restored, meta = checkpoints.restore(wanted)
        assert meta["step"] == int(restored.step) == 1
        checkpoints.save(make_state(mesh_of(8), value=2), 2, META)
    assert (tmp_path / "checkpoints" / "quarantine" / "2").is_dir()
    assert "step 2 cannot be read" in caplog.text
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        assert checkpoints.restore(wanted)[1]["step"] == 2


def test_damaged_checkpoints_alone_are_refused_and_left_in_place(tmp_path, mesh_of):
    save_steps(tmp_path, mesh_of(1), [1, 2])
    damage(tmp_path, 1)
    damage(tmp_path, 2)
    with (
        Checkpoints(tmp_path, keep=2) as checkpoints,
        pytest.raises(CheckpointError, match="no checkpoint can be read"),
    ):
        checkpoints.restore(like(make_state(mesh_of(1))))
    assert (tmp_path / "checkpoints" / "2").is_dir()


def test_a_checkpoint_of_another_model_is_refused_by_its_leaves(tmp_path, mesh_of):
    save_steps(tmp_path, mesh_of(1), [1])
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        with pytest.raises(CheckpointError, match=r"query/bias float32\[8\] for float32\[16\]") as error:
            checkpoints.restore(like(make_state(mesh_of(1), width=16)))
        assert "query/kernel float32[8,8] for float32[16,16]" in str(error.value)
        with pytest.raises(CheckpointError, match=r"missing: .*mixer/query/bias.*unknown: .*attn/query/bias"):
            checkpoints.restore(like(make_state(mesh_of(1), name="mixer")))
        half = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(
                leaf.shape, jnp.bfloat16 if leaf.ndim else leaf.dtype, sharding=leaf.sharding
            ),
            like(make_state(mesh_of(1))),
        )
        with pytest.raises(CheckpointError, match=r"float32\[8\] for bfloat16\[8\]"):
            checkpoints.restore(half)


def test_parameters_are_restored_without_shardings_or_the_optimizer(tmp_path, mesh_of):
    state = make_state(mesh_of(2, 2, 2), value=3)
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(state, 3, META)
    shutil.rmtree(tmp_path / "checkpoints" / "3" / "opt_state")
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), state.params)
    params, meta = restore_parameters(tmp_path, shapes)
    jax.tree.map(assert_array_equal, jax.device_get(params), jax.device_get(state.params))
    assert meta["vocab_size"] == 7
    assert all(len(leaf.sharding.device_set) == 1 for leaf in jax.tree.leaves(params))


@pytest.mark.parametrize("step", [7, "best"])
def test_a_step_that_does_not_exist_is_named_with_those_that_do(tmp_path, mesh_of, step):
    save_steps(tmp_path, mesh_of(1), [1, 2])
    with pytest.raises(CheckpointError, match=f"no checkpoint '{step}'; found steps 1, 2"):
        read_meta(tmp_path, step=step)


def test_a_folder_without_checkpoints_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="expected a run directory"):
        read_meta(tmp_path)


def test_what_a_killed_save_left_behind_is_no_checkpoint_and_in_nobodys_way(tmp_path, mesh_of):
    save_steps(tmp_path, mesh_of(1), [1])
    leftover = tmp_path / "checkpoints" / "2.orbax-checkpoint-tmp"
    shutil.copytree(tmp_path / "checkpoints" / "1", leftover)
    assert read_meta(tmp_path)["step"] == 1
    save_steps(tmp_path, mesh_of(1), [2])
    assert read_meta(tmp_path)["step"] == 2
    assert not leftover.exists()
