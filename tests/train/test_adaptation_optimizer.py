"""Schedules against the numbers of the siblings' code, SGD against PyTorch's, layer factors against a list written by hand."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from numpy.testing import assert_allclose

from msfl_jax.encoders.layers import stack_layers
from msfl_jax.finetune_config import FinetuneOptimizerConfig
from msfl_jax.parallel.sharding import path_name
from msfl_jax.train.adaptation_optimizer import finetuning_optimizer, finetuning_rate, layer_factors

SGD = FinetuneOptimizerConfig("sgd", "cosine", 0.1, 0, 0.9, 0.9, 0.999, 0.0, 1e9, 1.0, 0.9)


def test_the_cosine_schedule_has_the_siblings_values_at_each_step():
    """Oracle: MRM's WarmupCosine(50, 2000) at 0, 25, 50, 1025, 2000 gives 0, .5, 1, .5, 0 times the rate."""
    rate = finetuning_rate(dataclasses.replace(SGD, peak_rate=8.5e-3, warmup_steps=50), 2000)
    found = [float(rate(step)) / 8.5e-3 for step in (0, 25, 50, 1025, 2000)]
    assert_allclose(found, [0, 0.5, 1, 0.5, 0], atol=1e-6)


@pytest.mark.parametrize("warmup", [0, 10])
def test_the_polynomial_schedule_is_mmsegs_which_does_not_begin_anew_after_the_warm_up(warmup):
    """Its rate at a step is base * (1 - step / steps) ** power, in the warm-up times 1 - (1 - step / warmup) * (1 - ratio), where ratio is 1e-6."""
    rate = finetuning_rate(dataclasses.replace(SGD, schedule="poly", warmup_steps=warmup, power=0.9), 110)
    steps = range(111)
    regular = [0.1 * (1 - step / 110) ** 0.9 for step in steps]
    factors = [1 - (1 - step / warmup) * (1 - 1e-6) if step < warmup else 1 for step in steps]
    expected = [value * factor for value, factor in zip(regular, factors, strict=True)]
    assert_allclose([float(rate(step)) for step in steps], expected, rtol=1e-5, atol=1.1e-7)


def test_our_first_update_has_the_rate_of_step_0_where_the_siblings_has_that_of_step_1():
    config = dataclasses.replace(SGD, warmup_steps=4, momentum=0.0)
    optimizer = finetuning_optimizer(config, 20)
    params = {"fc": {"kernel": jnp.ones(1)}}
    state, taken = optimizer.init(params), []
    for _ in range(3):
        updates, state = optimizer.update({"fc": {"kernel": jnp.ones(1)}}, state, params)
        taken.append(-float(updates["fc"]["kernel"][0]))
    assert_allclose(taken, [0.0, 0.025, 0.05], rtol=1e-6)


@pytest.mark.parametrize("clip", [1e9, 0.5])
def test_sgd_with_momentum_and_clipping_equals_torch(clip):
    rng = np.random.default_rng(0)
    start, gradients = rng.normal(size=3), rng.normal(size=(5, 3))
    config = dataclasses.replace(SGD, schedule="poly", power=0.0, clip_norm=clip)  # a constant rate
    optimizer = finetuning_optimizer(config, 100)
    params = {"fc": {"kernel": jnp.asarray(start, jnp.float32)}}
    state = optimizer.init(params)
    weight = torch.nn.Parameter(torch.tensor(start, dtype=torch.float32))
    oracle = torch.optim.SGD([weight], lr=0.1, momentum=0.9)
    for gradient in gradients:
        updates, state = optimizer.update({"fc": {"kernel": jnp.asarray(gradient, jnp.float32)}}, state, params)
        params = optax.apply_updates(params, updates)
        weight.grad = torch.tensor(gradient, dtype=torch.float32)
        torch.nn.utils.clip_grad_norm_([weight], clip)
        oracle.step()
    assert_allclose(params["fc"]["kernel"], weight.detach().numpy(), rtol=1e-5)


ENCODER = {
    "vision": {
        "patch_hidden": {"kernel": jnp.ones((2, 2))},
        "patch_embed": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)},
        "pos_embed": jnp.ones((1, 3, 2)),
        "cls_token": jnp.ones((1, 1, 2)),
        "blocks_0": {"fc1": {"kernel": jnp.ones((2, 4)), "bias": jnp.ones(4)}},
        "blocks_1": {"fc1": {"kernel": jnp.ones((2, 4)), "bias": jnp.ones(4)}},
        "norm": {"scale": jnp.ones(2)},
    },
    "head": {"fc_norm": {"scale": jnp.ones(2)}, "fc": {"kernel": jnp.ones((2, 5))}},
}
FACTORS = {  # decay .5, two blocks
    "vision/patch_hidden/kernel": 0.125,
    "vision/patch_embed/kernel": 0.125,
    "vision/patch_embed/bias": 0.125,
    "vision/pos_embed": 0.125,
    "vision/cls_token": 0.125,
    "vision/blocks_0/fc1/kernel": 0.25,
    "vision/blocks_0/fc1/bias": 0.25,
    "vision/blocks_1/fc1/kernel": 0.5,
    "vision/blocks_1/fc1/bias": 0.5,
    "vision/norm/scale": 1.0,
    "head/fc_norm/scale": 1.0,
    "head/fc/kernel": 1.0,
}


def test_layer_factors_are_those_of_a_list_written_by_hand():
    found = jax.tree_util.tree_flatten_with_path(layer_factors(ENCODER, 0.5, 2))[0]
    assert {path_name(path): float(value) for path, value in found} == FACTORS


def test_scanned_blocks_have_the_factors_of_unrolled_ones_along_their_first_axis():
    factors = layer_factors(stack_layers(ENCODER), 0.5, 2)["vision"]["blocks"]["fc1"]
    assert factors["kernel"].shape == (2, 1, 1)
    assert_allclose(factors["kernel"].ravel(), [0.25, 0.5])
    assert_allclose(factors["bias"].ravel(), [0.25, 0.5])


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_layer_decay_multiplies_the_updates_of_the_whole_chain_weight_decay_included(kind):
    config = dataclasses.replace(SGD, kind=kind, weight_decay=0.1)
    gradients = jax.tree.map(lambda leaf: 0.3 * leaf, ENCODER)
    plain, slow = (
        finetuning_optimizer(dataclasses.replace(config, layer_decay=decay), 10, depth=2) for decay in (1.0, 0.5)
    )
    expected, _ = plain.update(gradients, plain.init(ENCODER), ENCODER)
    found, _ = slow.update(gradients, slow.init(ENCODER), ENCODER)
    reference = {path_name(path): value for path, value in jax.tree_util.tree_flatten_with_path(expected)[0]}
    for path, value in jax.tree_util.tree_flatten_with_path(found)[0]:
        assert_allclose(value, FACTORS[path_name(path)] * reference[path_name(path)], rtol=1e-6)
