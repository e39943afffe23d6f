"""The step on several meshes, and with gradients that are no numbers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from msfl_jax import objective
from msfl_jax.model import Keys, Model
from msfl_jax.objective import Weights
from msfl_jax.parallel.distributed import global_batch
from msfl_jax.parallel.sharding import path_name
from msfl_jax.train.optimizer import make_optimizer
from msfl_jax.train.state import abstract_state, create_state
from msfl_jax.train.step import jit_train_step, merge, readable

MESHES = [(8, 1, 1), (2, 4, 1), (2, 2, 2)]
THRESHOLD = 64  # so that even this model is sharded


@pytest.fixture(scope="module")
def parts(config):
    model = Model.create(config, vocab_size=61)
    return {
        "model": model,
        "weights": Weights.create(config),
        "optimizer": make_optimizer(config.optimizer, config.train.steps),
        "seed": config.seed,
    }


@pytest.fixture(scope="module")
def one_step(parts, mesh_of, random_batch):
    """Loss, gradients, metrics and new parameters of the second step on a mesh, as NumPy arrays."""

    @functools.cache
    def run(*shape: int):
        mesh = mesh_of(*shape)
        with jax.set_mesh(mesh):
            state = create_state(parts["model"], parts["optimizer"], 0, mesh, threshold=THRESHOLD)
            batch = global_batch(random_batch(1), mesh)

            def loss(params):
                keys = Keys.at(0, jnp.int32(5))
                return objective.total(params, batch, keys, model=parts["model"], weights=parts["weights"].at(5))

            placed = jax.tree.map(lambda leaf: leaf.sharding, state.params)
            differentiate = jax.jit(jax.value_and_grad(loss, has_aux=True), out_shardings=((None, None), placed))
            (value, tallies), gradients = differentiate(state.params)
            after, metrics = jit_train_step(state, mesh, **parts)(state, batch)
            return jax.device_get((value, tallies, gradients, after.params)), readable(metrics)

    return run


def named(tree):
    return {path_name(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}


@pytest.mark.parametrize("shape", MESHES, ids=["data 8", "data 2 fsdp 4", "data 2 fsdp 2 tensor 2"])
def test_every_loss_metric_and_gradient_on_eight_devices_equals_one(one_step, shape):
    (value, tallies, gradients, _), metrics = one_step(*shape)
    (expected_value, expected_tallies, expected_gradients, _), expected_metrics = one_step(1)
    assert_allclose(value, expected_value, rtol=1e-5)
    assert {"loss/global_alignment", "loss/local_alignment", "loss/instance_matching"} <= tallies.keys()
    for name, tally in tallies.items():
        assert_allclose(tally, expected_tallies[name], rtol=1e-5, atol=1e-5, err_msg=name)
    for name, gradient in named(gradients).items():
        assert_allclose(gradient, named(expected_gradients)[name], rtol=1e-5, atol=1e-5, err_msg=name)
    assert metrics.keys() == expected_metrics.keys()
    for name, metric in metrics.items():
        assert_allclose(metric, expected_metrics[name], rtol=1e-5, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("shape", MESHES, ids=["data 8", "data 2 fsdp 4", "data 2 fsdp 2 tensor 2"])
def test_parameters_after_a_step_on_eight_devices_equal_one_except_key_biases(one_step, shape):
    """A key bias adds the same to all logits of a query: its gradient is 0 and AdamW scales rounding up to the learning rate."""
    params, expected = named(one_step(*shape)[0][3]), named(one_step(1)[0][3])
    for name, value in params.items():
        if not name.endswith("attn/key/bias"):
            assert_allclose(value, expected[name], rtol=1e-5, atol=1e-5, err_msg=name)


def test_every_leaf_of_the_state_has_the_sharding_it_is_restored_with(parts, mesh_of):
    mesh = mesh_of(2, 2, 2)
    with jax.set_mesh(mesh):
        state = create_state(parts["model"], parts["optimizer"], 0, mesh, threshold=THRESHOLD)
    like = abstract_state(parts["model"], parts["optimizer"], mesh, threshold=THRESHOLD)
    same = jax.tree.map(lambda leaf, shape: leaf.sharding == shape.sharding and leaf.dtype == shape.dtype, state, like)
    assert all(jax.tree.leaves(same))
    assert state.step.sharding.is_fully_replicated


def test_a_batch_without_a_finite_loss_is_skipped_and_counted(parts, mesh_of, random_batch):
    mesh = mesh_of(1)
    optimizer = parts["optimizer"]
    with jax.set_mesh(mesh):
        state = create_state(parts["model"], optimizer, 0, mesh)
        healthy = state.params["temperature"]["log_scale"]
        state.params["temperature"]["log_scale"] = jnp.float32(jnp.nan)
        state = jax.device_put(state, jax.tree.map(lambda leaf: leaf.sharding, state))
        before = jax.device_get((state.params, state.opt_state))
        step = jit_train_step(state, mesh, **parts)
        batch = global_batch(random_batch(2), mesh)
        state, first = step(state, batch)
        assert int(state.step) == 1
        assert int(state.skipped) == 1
        jax.tree.map(np.testing.assert_array_equal, jax.device_get((state.params, state.opt_state)), before)

        state, second = step(state, batch)
        state.params["temperature"]["log_scale"] = jnp.copy(healthy)
        state, third = step(state, batch)
    metrics = readable(merge(merge(first, second), third))
    assert int(state.skipped) == 0
    assert metrics["skipped"] == 2
    assert metrics["skipped_in_a_row"] == 2
    assert metrics["loss/total"] == readable(third)["loss/total"], "a skipped step counts nothing"
    assert np.isfinite(list(metrics.values())).all()
