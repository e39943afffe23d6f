"""Decoders of masks: shapes, doubling, norms, blocks that are read. UPerNet against PyTorch is in tests/parity."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from msfl_jax.encoders import SegmentationDecoder, spread_layers
from msfl_jax.encoders.segmentation_decoders import Doubling, group_norm, tokens_to_grid


@pytest.mark.parametrize(
    "depth, expected", [(12, (4, 6, 8, 12)), (24, (8, 12, 16, 24)), (3, (1, 2, 2, 3)), (1, (1,) * 4)]
)
def test_the_blocks_that_are_read_are_spread_as_the_siblings(depth, expected):
    assert spread_layers(depth) == expected


def test_tokens_become_the_square_they_come_from():
    grid = tokens_to_grid(jnp.arange(18.0).reshape(1, 9, 2))
    assert_array_equal(grid[0, 2, 1], [14, 15])
    with pytest.raises(ValueError, match="found 8 tokens; expected a square"):
        tokens_to_grid(jnp.zeros((1, 8, 2)))


def test_doubling_puts_four_pixels_where_one_was():
    module = Doubling(2)
    kernel = np.random.default_rng(0).normal(size=(3, 8)).astype(np.float32)
    grid = jnp.zeros((1, 2, 3, 3)).at[0, 1, 2].set(jnp.asarray([1.0, 2.0, 3.0]))
    found = module.apply({"params": {"dense": {"kernel": kernel, "bias": np.zeros(8)}}}, grid)
    assert found.shape == (1, 4, 6, 2)
    four = (np.asarray([1, 2, 3]) @ kernel).reshape(2, 2, 2)
    assert_allclose(found[0, 2:, 4:], four, rtol=1e-5)
    assert not found[0, :2].any()


@pytest.mark.parametrize("channels", [8, 12, 16, 64, 256, 768])
def test_norms_of_one_pixel_keep_differences_between_channels(channels):
    norm = group_norm(channels)
    pixel = jnp.arange(channels, dtype=jnp.float32).reshape(1, 1, 1, channels)
    found = norm.apply({"params": {"scale": jnp.ones(channels), "bias": jnp.zeros(channels)}}, pixel)
    assert jnp.std(found) > 0.9
    assert norm.num_groups <= 32


@pytest.mark.parametrize("head, side", [("linear", 16), ("upernet", 16)])
def test_logits_have_the_resolution_of_the_finest_grid(head, side):
    layers = (jax.ShapeDtypeStruct((2, 16, 8), jnp.bfloat16),) * 4
    decoder = SegmentationDecoder(head, 16, "bfloat16")
    params = jax.eval_shape(decoder.init, jax.random.key(0), layers)["params"]
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    found = jax.eval_shape(decoder.apply, {"params": params}, layers)
    assert found.logits == jax.ShapeDtypeStruct((2, side, side, 2), jnp.float32)
    assert (found.auxiliary is None) == (head == "linear")
    with pytest.raises(ValueError, match="found tokens of 3 blocks; expected 4"):
        jax.eval_shape(decoder.init, jax.random.key(0), layers[:3])


def test_the_light_decoder_reads_every_block_and_starts_undecided():
    layers = tuple(jax.random.normal(jax.random.key(i), (1, 9, 8)) for i in range(4))
    decoder = SegmentationDecoder("linear", 8)
    params = jax.jit(decoder.init)(jax.random.key(9), layers)["params"]

    @jax.jit
    def gradients(inputs):
        return jax.grad(lambda x: decoder.apply({"params": params}, x).logits[..., 1].sum())(inputs)

    assert all(jnp.abs(gradient).max() > 1e-4 for gradient in gradients(layers))
    assert jnp.abs(decoder.apply({"params": params}, layers).logits).max() < 0.5
