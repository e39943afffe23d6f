"""The schedule, what decays, and clipping, against published numbers and AdamW written out."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from numpy.testing import assert_allclose

from msfl_jax.config import OptimizerConfig
from msfl_jax.model import Model
from msfl_jax.parallel.sharding import path_name
from msfl_jax.train.optimizer import clip_by_global_norm, decayed, learning_rate, make_optimizer

MACO = OptimizerConfig(peak_rate=2.5e-4, warmup_steps=20, weight_decay=0.05, b1=0.9, b2=0.95, clip_norm=1.0)


@pytest.mark.parametrize(
    ("epoch", "rate"), [(0, 0.0), (1, 1.25e-4), (2, 2.5e-4), (10, 2.339148e-4), (26.5, 1.25e-4), (51, 0.0)]
)
def test_the_schedule_is_macos_with_ten_steps_an_epoch(epoch, rate):
    assert_allclose(learning_rate(MACO, 510)(int(epoch * 10)), rate, rtol=1e-6, atol=1e-10)


def test_without_warm_up_the_first_step_has_the_full_rate():
    assert_allclose(learning_rate(dataclasses.replace(MACO, warmup_steps=0), 10)(0), 2.5e-4)


def test_only_kernels_and_word_embeddings_decay(config, changed):
    learned = changed(config, text__pool="mean")
    vision = dataclasses.replace(learned.model.vision, cls_token=True, positions="learned")
    learned = dataclasses.replace(learned, model=dataclasses.replace(learned.model, vision=vision))
    for variant in (config, learned):
        params = jax.eval_shape(Model.create(variant, vocab_size=61).init, jax.random.key(0))
        names = {path_name(path): yes for path, yes in jax.tree_util.tree_flatten_with_path(decayed(params))[0]}
        for name, yes in names.items():
            assert yes == (name.endswith("/kernel") or name == "text/word_embeddings/embedding"), name


def test_an_update_is_clipped_adamw_written_out():
    rng = np.random.default_rng(0)
    kernel, gradient = rng.normal(size=(3, 4)), 10 * rng.normal(size=(3, 4))
    params = {"dense": {"kernel": jnp.asarray(kernel, jnp.float32), "bias": jnp.ones(4)}}
    gradients = {"dense": {"kernel": jnp.asarray(gradient, jnp.float32), "bias": jnp.zeros(4)}}
    config = dataclasses.replace(MACO, warmup_steps=0)
    optimizer = make_optimizer(config, 100)
    updates, _ = optimizer.update(gradients, optimizer.init(params), params)
    clipped = gradient / np.linalg.norm(gradient)
    expected = -config.peak_rate * (clipped / (np.abs(clipped) + 1e-8) + config.weight_decay * kernel)
    assert_allclose(updates["dense"]["kernel"], expected, rtol=1e-5)
    assert_allclose(updates["dense"]["bias"], 0.0)


@pytest.mark.parametrize("limit", [1e-3, 1.0, 1e3])
def test_clipping_by_a_factor_is_optax_clipping(limit):
    gradients = {"a": jnp.arange(6.0).reshape(2, 3), "b": jnp.array([-2.0, 3.0]), "none": jnp.zeros(0)}
    (found, state), (expected, theirs) = (
        clip.update(gradients, clip.init(gradients))
        for clip in (clip_by_global_norm(limit), optax.clip_by_global_norm(limit))
    )
    assert jax.tree.structure(state) == jax.tree.structure(theirs)
    jax.tree.map(lambda one, other: assert_allclose(one, other, rtol=3e-7), found, expected)


def test_clipping_no_gradient_at_all_leaves_it():
    clip = clip_by_global_norm(1.0)
    updates, _ = clip.update({"a": jnp.zeros(3)}, clip.init({}))
    assert_allclose(updates["a"], 0.0)
