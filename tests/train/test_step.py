"""The step on several meshes, and with gradients that are no numbers."""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from numpy.testing import assert_allclose

from msfl_jax.model import Model
from msfl_jax.objective import Weights
from msfl_jax.parallel.distributed import global_batch
from msfl_jax.parallel.sharding import path_name
from msfl_jax.train.optimizer import make_optimizer, updates_taken
from msfl_jax.train.state import abstract_state, create_state
from msfl_jax.train.step import jit_train_step, merge, readable, useful_tokens

# Rows lie over all of `data` and `fsdp` alike, so the mesh of replicas alone is tried with one of the two.
MESHES = [(2, 4, 1), (2, 2, 2)]
ON_EIGHT = [("windowed", (8, 1, 1)), *((kind, shape) for kind in ("windowed", "paper") for shape in MESHES)]
THRESHOLD = 64  # so that even this model is sharded


class Recorded(NamedTuple):
    """The gradient that an optimizer was last given."""

    gradient: Any


class Otherwise(NamedTuple):
    """The state after one step, its metrics, the text of the compiled program, and what the state would be restored into."""

    state: Any
    metrics: dict[str, float]
    text: str
    like: Any


def recording() -> optax.GradientTransformation:
    """Passes gradients on and keeps them in its state, so that one compiled step shows them too."""
    return optax.GradientTransformation(
        init=lambda params: Recorded(jax.tree.map(jnp.zeros_like, params)),
        update=lambda updates, state, params=None: (updates, Recorded(updates)),
    )


def parts_of(config):
    return {
        "model": Model.create(config, vocab_size=61),
        "weights": Weights.create(config),
        "optimizer": optax.chain(recording(), make_optimizer(config.optimizer, config.train.steps)),
        "seed": config.seed,
    }


@pytest.fixture(scope="module")
def parts(config):
    return parts_of(config)


@pytest.fixture(scope="module")
def paper_config(config, changed):
    """The same sizes computed as the paper's are: scanned, recomputed, a class token, last-layer regions, and the siblings' local loss."""
    vision = dataclasses.replace(config.model.vision, cls_token=True)
    local = dataclasses.replace(
        config.objective.local_alignment,
        attention="gloria",
        aggregate="sum",
        include_cls=True,
        logit_scale=10.0,
        block=2,
    )
    return changed(
        config,
        model__vision=vision,
        model__scan_layers=True,
        model__remat="dots",
        regions__layer=0,
        regions__window_radius=0,
        objective__local_alignment=local,
    )


@pytest.fixture(scope="module")
def one_step(config, paper_config, mesh_of, random_batch):
    """Metrics, gradients and new parameters of a step on a mesh; it is numbered 5, where instance matching has its full weight."""
    parts_by_name = {"windowed": parts_of(config), "paper": parts_of(paper_config)}

    @functools.cache
    def run(name: str, *shape: int):
        parts, mesh = parts_by_name[name], mesh_of(*shape)
        with jax.set_mesh(mesh):
            state = create_state(parts["model"], parts["optimizer"], 0, mesh, threshold=THRESHOLD)
            state = dataclasses.replace(state, step=jax.device_put(np.int32(5), state.step.sharding))
            state, metrics = jit_train_step(state, mesh, **parts)(state, global_batch(random_batch(1), mesh))
            return readable(metrics), named(state.opt_state[0].gradient), named(state.params)

    return run


def named(tree):
    return {path_name(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}


def assert_same(metrics, gradients, expected):
    """Metrics and gradients as those of `one_step`, up to rounding."""
    for name, metric in metrics.items():
        assert_allclose(metric, expected[0][name], rtol=1e-5, atol=1e-5, err_msg=name)
    for name, gradient in gradients.items():
        # Sums of terms as large as a tensor's largest entry are rounded relative to those; a key bias has nothing but rounding.
        scale = 1.0 if name.endswith("attn/key/bias") else np.abs(expected[1][name]).max()
        assert_allclose(gradient, expected[1][name], rtol=1e-5, atol=1e-5 * scale, err_msg=name)


@pytest.mark.parametrize("kind, shape", ON_EIGHT, ids=str)
def test_a_step_on_eight_devices_equals_one_device_in_every_loss_metric_and_gradient(one_step, kind, shape):
    metrics, gradients, _ = one_step(kind, *shape)
    expected_metrics, expected_gradients, _ = one_step(kind, 1, 1, 1)
    losses = {
        "global_alignment",
        "local_alignment",
        "instance_matching",
        "image_reconstruction",
        "masked_language_modeling",
    }
    assert {f"loss/{name}" for name in losses} <= metrics.keys()
    assert metrics.keys() == expected_metrics.keys()
    assert_same(metrics, gradients, (expected_metrics, expected_gradients))


@pytest.mark.parametrize("kind, shape", ON_EIGHT, ids=str)
def test_parameters_after_a_step_on_eight_devices_equal_one_device_except_key_biases(one_step, kind, shape):
    """A key bias adds the same to all logits of a query: its gradient is 0 and AdamW scales rounding up to the learning rate."""
    params, expected = one_step(kind, *shape)[2], one_step(kind, 1, 1, 1)[2]
    for name, value in params.items():
        if not name.endswith("attn/key/bias"):
            assert_allclose(value, expected[name], rtol=1e-5, atol=1e-5, err_msg=name)


@pytest.fixture(scope="module")
def otherwise(config, changed, mesh_of, random_batch):
    """A step with all that changes nothing but rounding, at once.

    Two devices with four rows: two microbatches, both alignments around the ring, half of the large moments on each device, parameters whole, and of
    two reports the shorter read at 15 of 16 tokens, where all fit.
    """
    local = dataclasses.replace(config.objective.local_alignment, exchange="ring")
    whole = dataclasses.replace(config.objective.global_alignment, exchange="ring")
    keys = {"objective__local_alignment": local, "objective__global_alignment": whole, "text__length_buckets": "15:0.5"}
    parts, mesh, options = (
        parts_of(changed(config, **keys)),
        mesh_of(2),
        {"threshold": THRESHOLD, "shard_moments": True},
    )
    with jax.set_mesh(mesh):
        state = create_state(parts["model"], parts["optimizer"], 0, mesh, **options)
        state = dataclasses.replace(state, step=jax.device_put(np.int32(5), state.step.sharding))
        batch = global_batch(random_batch(1), mesh)
        step = jit_train_step(state, mesh, **parts, microbatches=2).lower(state, batch).compile()
        state, metrics = step(state, batch)
    like = abstract_state(parts["model"], parts["optimizer"], mesh, **options)
    return Otherwise(state, readable(metrics), step.as_text(), like)


def test_microbatches_the_ring_split_moments_and_reading_by_length_leave_a_step_as_it_is(
    one_step, otherwise, random_batch
):
    token_ids, expected, metrics = random_batch(1)["token_ids"], one_step("windowed", 1, 1, 1), dict(otherwise.metrics)
    useful = (token_ids != 0).sum() / token_ids.size
    assert_allclose(metrics.pop("tokens/useful"), useful / (31 / 32), rtol=1e-6)
    assert_allclose(expected[0]["tokens/useful"], useful, rtol=1e-6)
    assert_same(metrics, named(otherwise.state.opt_state[0].gradient), expected)
    for name, value in named(otherwise.state.params).items():
        if not name.endswith("attn/key/bias"):
            assert_allclose(value, expected[2][name], rtol=1e-5, atol=1e-5, err_msg=name)
    assert "collective-permute" in otherwise.text


def test_split_moments_lie_on_both_replicas_by_halves_and_parameters_whole(otherwise):
    moments = jax.tree.leaves(otherwise.state.opt_state)
    split = [leaf for leaf in moments if "data" in leaf.sharding.spec]
    assert sum(leaf.size for leaf in split) > 0.9 * sum(leaf.size for leaf in moments)
    assert all(2 * shard.data.size == leaf.size for leaf in split for shard in leaf.addressable_shards)
    assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(otherwise.state.params))
    same = jax.tree.map(lambda leaf, shape: leaf.sharding == shape.sharding, otherwise.state, otherwise.like)
    assert all(jax.tree.leaves(same))


def test_useful_tokens_are_counted_as_each_microbatch_is_read(mesh_of):
    """Of two devices with four reports of at most 16 tokens, two microbatches, and half of the rows read at 8 tokens where they fit."""
    lengths = np.array([8, 12, 9, 9, 3, 16, 2, 4])
    token_ids = jnp.asarray(np.arange(16) < lengths[:, None], jnp.int32)
    with jax.set_mesh(mesh_of(2)):
        apart, whole = (useful_tokens(token_ids, ((8, 0.5),), parts) for parts in (2, 1))
    assert apart.total == whole.total == lengths.sum()
    assert apart.count == 2 * (8 + 16) + 4 * 16, "the first reports of both devices fit, the others of the first do not"
    assert whole.count == 8 * 16, "of the first device, the second shortest has 9"


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
    assert (int(state.step), updates_taken(state.opt_state)) == (3, 1), "the rate goes by updates"
    assert metrics["skipped"] == 2
    assert metrics["skipped_in_a_row"] == 2
    assert metrics["loss/total"] == readable(third)["loss/total"], "a skipped step counts nothing"
    assert np.isfinite(list(metrics.values())).all()
