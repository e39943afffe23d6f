"""Microbatches against the whole batch: same loss, metrics and gradients, with less memory; and what naive averaging would give."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from msfl_jax import gradient_cache, objective
from msfl_jax.config_files import load_config
from msfl_jax.model import Keys, Model
from msfl_jax.objective import Weights
from msfl_jax.parallel.mesh import batch_sharding

from .small import OVERRIDES, VOCABULARY

STEP = 90


def make_batch(rows):
    rng = np.random.default_rng(rows)
    sentence_ids = np.zeros((rows, 12), np.int32)
    sentence_ids[:, 1:5], sentence_ids[: rows // 2, 5:9] = 1, 2
    token_ids = np.where(sentence_ids > 0, rng.integers(6, VOCABULARY, (rows, 12)), 0).astype(np.int32)
    token_ids[:, 0] = 2
    return {
        "image": rng.integers(0, 255, (rows, 16, 16, 1), dtype=np.uint8),
        "token_ids": token_ids,
        "sentence_ids": sentence_ids,
        "study_key": rng.integers(0, rows, rows).astype(np.uint32),
    }


@functools.cache
def made(arg=""):
    """Logits of local alignment are twice its scores, as in the demo: rounded at GLoRIA's ten times, gradients differ by 1e-6 between programs."""
    config = load_config(f"demo:{arg}", [*OVERRIDES, "--config.objective.local_alignment.logit_scale=2.0"])
    model = Model.create(config, vocab_size=VOCABULARY)
    return model, Weights.create(config).at(STEP), jax.jit(model.init)(jax.random.key(0))


@functools.cache
def whole(arg, rows):
    model, weights, params = made(arg)
    loss = functools.partial(objective.total, model=model, weights=weights)
    return jax.jit(jax.value_and_grad(loss, has_aux=True))(params, make_batch(rows), Keys.at(0, STEP))


def in_parts(arg, batch, microbatches):
    model, weights, params = made(arg)
    cached = functools.partial(gradient_cache.value_and_grad, model=model, weights=weights, microbatches=microbatches)
    return jax.jit(cached)(params, batch, Keys.at(0, STEP))


def assert_same(found, expected):
    (value, metrics), gradients = found
    (whole_value, whole_metrics), whole_gradients = expected
    assert_allclose(value, whole_value, rtol=1e-6)
    assert metrics.keys() == whole_metrics.keys()
    for name, tally in whole_metrics.items():
        assert_allclose(metrics[name].total, tally.total, rtol=2e-6, err_msg=name)
        assert_allclose(metrics[name].count, tally.count, rtol=1e-6, err_msg=name)
    largest = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(whole_gradients))
    for ours, theirs in zip(jax.tree.leaves(gradients), jax.tree.leaves(whole_gradients), strict=True):
        assert_allclose(np.asarray(ours), np.asarray(theirs), atol=1e-6 * max(largest, 1.0))


@pytest.mark.parametrize("microbatches", [2, 8])  # and 4 with all objectives of "gloria" below
def test_microbatches_give_the_gradients_of_the_whole_batch(microbatches):
    assert_same(in_parts("", make_batch(8), microbatches), whole("", 8))


@pytest.mark.parametrize("arg", ["global", "global,modality", "global,local,instance", "gloria"])
def test_so_they_do_with_some_of_the_objectives(arg):
    assert_same(in_parts(arg, make_batch(8), 4), whole(arg, 8))


def test_so_they_do_where_one_masked_pass_feeds_all():
    batch = make_batch(8)
    config = load_config("demo", [*OVERRIDES, "--config.image.passes=shared", "--config.text.passes=shared"])
    model = Model.create(config, vocab_size=VOCABULARY)
    params, weights, keys = jax.jit(model.init)(jax.random.key(0)), Weights.create(config).at(STEP), Keys.at(0, STEP)
    parts = {"model": model, "weights": weights}
    cached = functools.partial(gradient_cache.value_and_grad, **parts, microbatches=4)
    plain = jax.value_and_grad(functools.partial(objective.total, **parts), has_aux=True)
    assert_same(jax.jit(cached)(params, batch, keys), jax.jit(plain)(params, batch, keys))


def test_averaging_the_losses_of_microbatches_is_another_objective():
    model, weights, params = made()
    batch = make_batch(8)
    loss = functools.partial(objective.total, model=model, weights=weights)
    step = jax.jit(jax.value_and_grad(loss, has_aux=True))
    naive = [
        step(params, {name: rows[i : i + 2] for name, rows in batch.items()}, Keys.at(0, STEP)) for i in (0, 2, 4, 6)
    ]
    (expected, _), gradients = whole("", 8)
    assert abs(np.mean([float(value) for (value, _), _ in naive]) - expected) > 1
    averaged = jax.tree.map(lambda *parts: sum(parts) / len(parts), *(gradient for _, gradient in naive))
    apart = [np.linalg.norm(a - b) for a, b in zip(*map(jax.tree.leaves, (averaged, gradients)), strict=True)]
    length = [np.linalg.norm(b) for b in jax.tree.leaves(gradients)]
    assert np.linalg.norm(apart) > 0.3 * np.linalg.norm(length)


@pytest.mark.parametrize("shape", [(8, 1, 1), (2, 2, 2)], ids=str)
def test_on_a_mesh_every_device_has_rows_of_each_microbatch(mesh_of, shape):
    expected, mesh = whole("", 32), mesh_of(*shape)
    with jax.set_mesh(mesh):
        placed = jax.device_put(make_batch(32), batch_sharding(mesh))
        assert_same(in_parts("", placed, 2), expected)


def test_the_encoders_need_the_memory_of_a_microbatch():
    model, weights, params = made()
    batch = make_batch(64)
    loss = functools.partial(objective.total, model=model, weights=weights)
    cached = functools.partial(gradient_cache.value_and_grad, model=model, weights=weights, microbatches=8)
    at_once = jax.jit(jax.value_and_grad(loss, has_aux=True)).lower(params, batch, Keys.at(0, STEP)).compile()
    in_eighths = jax.jit(cached).lower(params, batch, Keys.at(0, STEP)).compile()
    sizes = [program.memory_analysis().temp_size_in_bytes for program in (at_once, in_eighths)]
    assert sizes[1] < sizes[0] / 2
