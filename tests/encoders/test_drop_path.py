"""Stochastic depth: its statistics, its rates by block, and that it is not there in evaluation."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from numpy.testing import assert_allclose, assert_array_equal

from msfl_jax.encoders.layers import BlockSpec, Stream, apply_blocks, drop_path, stack_layers

SPEC = BlockSpec("vit", depth=3, width=8, heads=1, hidden=8)


class Tower(nn.Module):
    spec: BlockSpec

    @nn.compact
    def __call__(self, tokens):
        return apply_blocks(self.spec, Stream(tokens))[0].tokens


@pytest.fixture(scope="module")
def params():
    return Tower(SPEC).init(jax.random.key(0), jnp.zeros((1, 4, 8)))["params"]


@pytest.fixture(scope="module")
def tokens():
    return jnp.broadcast_to(jax.random.normal(jax.random.key(1), (1, 4, 8)), (2000, 4, 8))


def test_whole_rows_are_left_out_and_the_mean_stays():
    kept = np.asarray(drop_path(jnp.ones((20_000, 2, 3)), jax.random.key(0), 0.3))
    assert (kept == kept[:, :1, :1]).all()
    assert_allclose(np.unique(kept), [0, 1 / 0.7], rtol=1e-6)
    assert abs(kept.mean() - 1) < 4 * np.sqrt(0.3 / 0.7 / 20_000)  # four standard errors


@pytest.mark.parametrize("scan", [False, True])
def test_without_an_rng_nothing_changes_and_parameters_are_the_same(params, tokens, scan):
    spec = dataclasses.replace(SPEC, scan_layers=scan)
    own = stack_layers(params) if scan else params
    dropping = Tower(dataclasses.replace(spec, drop_path=0.5))
    fresh = dropping.init(jax.random.key(0), jnp.zeros((1, 4, 8)))["params"]
    assert jax.tree.map(jnp.shape, fresh) == jax.tree.map(jnp.shape, own)
    plain = Tower(spec).apply({"params": own}, tokens[:2])
    assert_array_equal(dropping.apply({"params": own}, tokens[:2]), plain)


@pytest.mark.parametrize("scan", [False, True])
def test_rates_rise_linearly_from_0_in_the_first_block(params, tokens, scan):
    """Equal rows come out in sixteen ways, each as often as its branches are kept or dropped: .25 in the second block, .5 in the third."""
    own = stack_layers(params) if scan else params
    spec = dataclasses.replace(SPEC, scan_layers=scan, drop_path=0.5)
    out = jax.jit(Tower(spec).apply)({"params": own}, tokens, rngs={"drop_path": jax.random.key(2)})
    groups, sizes = np.unique(np.asarray(out)[:, 0, 0].round(4), return_counts=True)
    assert len(groups) == 2**4  # the first block never drops; each of the other two has two branches
    expected = sorted(
        2000 * np.prod([rate if gone else 1 - rate for rate, gone in zip((0.25, 0.25, 0.5, 0.5), outcome, strict=True)])
        for outcome in np.ndindex(2, 2, 2, 2)
    )
    assert_allclose(sorted(sizes), expected, atol=5 * np.sqrt(max(expected)))


def test_the_same_key_drops_the_same_and_another_one_others(params, tokens):
    tower = Tower(dataclasses.replace(SPEC, drop_path=0.5))
    first, again, other = (
        np.asarray(tower.apply({"params": params}, tokens[:64], rngs={"drop_path": jax.random.key(seed)}))
        for seed in (0, 0, 1)
    )
    assert_array_equal(first, again)
    assert (first != other).any()
