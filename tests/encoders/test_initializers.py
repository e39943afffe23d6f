"""Every kind of tensor has the distribution that MAE or BERT gives it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from msfl_jax.encoders import BlockSpec, PixelDecoder, TextTransformer, VisionTransformer

VIT = BlockSpec("vit", depth=1, width=96, heads=4, hidden=192)
BERT = BlockSpec("bert", depth=1, width=96, heads=4, hidden=192)


@pytest.fixture(scope="module")
def vision():
    module = VisionTransformer(VIT, grid=4, positions="learned", patch_layers=2)
    return jax.jit(module.init)(jax.random.key(0), jnp.zeros((1, 16, 64)))["params"]


@pytest.fixture(scope="module")
def text():
    module = TextTransformer(BERT, vocab_size=200, max_tokens=32)
    return jax.jit(module.init)(jax.random.key(0), jnp.zeros((1, 4), int))["params"]


@pytest.fixture(scope="module")
def decoder():
    inputs = jnp.zeros((1, 3, 96)), jnp.zeros((1, 96)), jnp.zeros((1, 16), int)
    module = PixelDecoder(VIT, grid=4, pixels=64)
    return jax.jit(module.init)(jax.random.key(0), *inputs)["params"]


def assert_uniform(values, bound):
    values = np.asarray(values)
    assert np.abs(values).max() <= bound * 1.0001
    assert np.abs(values).max() > 0.98 * bound
    assert abs(values.std() / (bound / np.sqrt(3)) - 1) < 0.03


def assert_normal(values, deviation=0.02):
    values = np.asarray(values).ravel()
    tolerance = 5 / np.sqrt(2 * values.size)
    assert abs(values.std() / deviation - 1) < tolerance
    assert abs(values.mean()) < 5 * deviation / np.sqrt(values.size)


def xavier_bound(inputs, outputs):
    return np.sqrt(6 / (inputs + outputs))


@pytest.mark.parametrize("name", ["query", "key", "value"])
def test_query_key_and_value_have_the_bound_of_one_fused_kernel(vision, name):
    assert_uniform(vision["blocks_0"]["attn"][name]["kernel"], xavier_bound(96, 3 * 96))


def test_the_fused_bound_at_vit_b_is_the_one_measured_on_mae():
    assert round(xavier_bound(768, 3 * 768), 4) == 0.0442


def test_dense_kernels_of_the_vision_transformer_are_xavier(vision):
    block = vision["blocks_0"]
    assert_uniform(block["attn"]["out"]["kernel"], xavier_bound(96, 96))
    assert_uniform(block["fc1"]["kernel"], xavier_bound(96, 192))
    assert_uniform(block["fc2"]["kernel"], xavier_bound(192, 96))


def test_patch_embedding_is_xavier_on_flattened_patches(vision):
    assert_uniform(vision["patch_hidden"]["kernel"], xavier_bound(64, 96))
    assert_uniform(vision["patch_embed"]["kernel"], xavier_bound(96, 96))


def test_class_token_and_learned_positions_are_normal_with_deviation_002(vision):
    assert vision["cls_token"].shape == (1, 1, 96)
    assert_normal(vision["cls_token"])
    assert_normal(vision["pos_embed"])


def test_decoder_kernels_are_xavier_and_its_mask_token_normal(decoder):
    assert_uniform(decoder["embed"]["kernel"], xavier_bound(96, 96))
    assert_uniform(decoder["prediction"]["kernel"], xavier_bound(96, 64))
    assert_normal(decoder["mask_token"])


def test_all_kernels_and_embeddings_of_the_report_encoder_are_normal(text):
    for name in ("word_embeddings", "position_embeddings", "token_type_embeddings"):
        assert_normal(text[name]["embedding"])
    block = text["blocks_0"]
    for kernel in (
        *(block["attn"][name]["kernel"] for name in ("query", "key", "value", "out")),
        block["fc1"]["kernel"],
        block["fc2"]["kernel"],
    ):
        assert_normal(kernel)


def test_biases_start_at_0_and_norms_at_1(vision, text, decoder):
    for path, leaf in jax.tree_util.tree_leaves_with_path([vision, text, decoder]):
        name = path[-1].key
        if name in ("bias", "scale"):
            assert (leaf == (name == "scale")).all(), path
