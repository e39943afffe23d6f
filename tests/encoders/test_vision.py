"""The image encoder: leaving patches out, windows, regions."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from numpy.testing import assert_allclose, assert_array_equal

from msfl_jax.encoders import BlockSpec, VisionTransformer, random_masking, sincos_positions, stack_layers, take
from msfl_jax.encoders.layers import Stream, apply_blocks, layer_norm

SPEC = BlockSpec("vit", depth=2, width=16, heads=2, hidden=32)
GRID, PIXELS = 4, 9


@pytest.fixture(scope="module")
def patches():
    return jax.random.normal(jax.random.key(0), (2, GRID**2, PIXELS))


def make(**options):
    module = VisionTransformer(SPEC, grid=GRID, **options)
    return module, jax.jit(module.init)(jax.random.key(1), jnp.zeros((1, GRID**2, PIXELS)))


@functools.partial(jax.jit, static_argnums=0)
def encode(module, variables, *inputs):
    return module.apply(variables, *inputs)


class AfterEmbedding(nn.Module):
    """The encoder from its blocks on."""

    @nn.compact
    def __call__(self, tokens):
        return layer_norm("vit", "float32", "norm")(apply_blocks(SPEC, Stream(tokens))[0].tokens)


def embed_all(params, patches):
    """Class token and all patches with positions, in MAE's order: embed, add positions, and only then drop some."""
    if "patch_hidden" in params:
        patches = jax.nn.gelu(
            patches @ params["patch_hidden"]["kernel"] + params["patch_hidden"]["bias"], approximate=False
        )
    tokens = patches @ params["patch_embed"]["kernel"] + params["patch_embed"]["bias"]
    fixed = np.concatenate([np.zeros((1, 16)), sincos_positions(GRID, 16)])
    places = params["pos_embed"][0] if "pos_embed" in params else fixed
    cls = jnp.broadcast_to(params["cls_token"], (len(tokens), 1, 16))
    return jnp.concatenate([cls, tokens], axis=1) + places


@pytest.mark.parametrize("patch_layers", [1, 2])
@pytest.mark.parametrize("positions", ["sincos", "learned"])
def test_leaving_raw_patches_out_equals_dropping_their_tokens(patches, patch_layers, positions):
    module, variables = make(patch_layers=patch_layers, positions=positions)
    kept = random_masking(jax.random.key(2), 2, GRID**2, 6).kept
    found = encode(module, variables, take(patches, kept), kept)

    tokens = embed_all(variables["params"], patches)
    visible = jnp.concatenate([tokens[:, :1], take(tokens[:, 1:], kept)], axis=1)
    expected = jax.jit(AfterEmbedding().apply)(variables, visible)
    assert_allclose(found.cls, expected[:, 0], rtol=1e-5, atol=1e-5)
    assert_allclose(found.patches, expected[:, 1:], rtol=1e-5, atol=1e-5)


def test_all_patches_in_another_order_are_the_same_image(patches):
    module, variables = make()
    order = jnp.asarray(np.random.default_rng(0).permutation(GRID**2))[None].repeat(2, axis=0)
    found = encode(module, variables, take(patches, order), order)
    expected = encode(module, variables, patches)
    assert_allclose(found.cls, expected.cls, rtol=1e-4, atol=1e-5)
    assert_allclose(found.patches, take(expected.patches, order), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("class_token", [False, True])
@pytest.mark.parametrize("scan_layers", [False, True])
def test_a_windowed_region_after_block_1_ignores_patches_far_away(patches, class_token, scan_layers):
    module, variables = make(class_token=class_token, region_layer=1, window_radius=1)
    if scan_layers:
        module = module.clone(spec=dataclasses.replace(SPEC, scan_layers=True))
        variables = {"params": stack_layers(variables["params"])}
    before = encode(module, variables, patches)
    after = encode(module, variables, patches.at[:, 15].add(1.0))  # the lower right corner
    changed = np.abs(after.regions - before.regions).max(axis=(0, 2)) > 1e-6
    assert_array_equal(np.flatnonzero(changed), [10, 11, 14, 15])
    assert (np.abs(after.patches - before.patches).max(axis=(0, 2)) > 1e-6).all()  # later blocks see everything


def test_a_window_holds_for_visible_patches_too(patches):
    module, variables = make(region_layer=1, window_radius=1)
    kept = jnp.asarray([[15, 0, 10, 5], [1, 4, 15, 11]])
    visible = take(patches, kept)
    before = encode(module, variables, visible, kept).regions
    moved = jnp.asarray([[1.0, 0, 0, 0], [0, 0, 1.0, 0]])[:, :, None]
    after = encode(module, variables, visible + moved, kept).regions
    changed = np.abs(after - before).max(axis=2) > 1e-6
    assert_array_equal(changed, [[True, False, True, False], [False, False, True, True]])


def test_a_window_with_final_regions_limits_every_block(patches):
    module, variables = make(class_token=False, window_radius=1)
    before = encode(module, variables, patches).regions
    after = encode(module, variables, patches.at[:, 15].add(1.0)).regions
    changed = np.abs(after - before).max(axis=(0, 2)) > 1e-6
    assert not changed[[0, 1, 2, 3, 4, 8, 12]].any()  # two blocks reach two patches far
    assert changed[5]


def test_without_a_window_every_region_sees_every_patch(patches):
    module, variables = make(region_layer=1)
    before = encode(module, variables, patches).regions
    after = encode(module, variables, patches.at[:, 15].add(1.0)).regions
    assert (np.abs(after - before).max(axis=(0, 2)) > 1e-6).all()


def test_regions_of_layer_0_are_the_final_patch_tokens(patches):
    module, variables = make()
    tokens = encode(module, variables, patches)
    assert_array_equal(tokens.regions, tokens.patches)


def test_fixed_positions_are_no_parameters_and_learned_ones_cover_the_class_token():
    assert "pos_embed" not in make()[1]["params"]
    assert make(positions="learned")[1]["params"]["pos_embed"].shape == (1, GRID**2 + 1, 16)
    assert make(positions="learned", class_token=False)[1]["params"]["pos_embed"].shape == (1, GRID**2, 16)


@pytest.mark.parametrize("class_token, region_layer", [(False, 1), (True, 0)])
def test_tapped_layers_are_raw_patch_tokens_and_change_nothing_else(patches, class_token, region_layer):
    module, variables = make(class_token=class_token, region_layer=region_layer)
    tapping, others = make(class_token=class_token, region_layer=region_layer, taps=(1, 2))
    assert jax.tree.structure(variables) == jax.tree.structure(others)
    plain, found = encode(module, variables, patches), encode(tapping, variables, patches)
    jax.tree.map(lambda a, b: assert_allclose(a, b, rtol=1e-5, atol=1e-6), found._replace(layers=()), plain)
    assert [layer.shape for layer in found.layers] == [(2, GRID**2, 16)] * 2
    if region_layer:
        assert_array_equal(found.layers[0], found.regions)
    normed = layer_norm("vit", "float32").apply({"params": variables["params"]["norm"]}, found.layers[1])
    assert_allclose(normed, found.patches, rtol=1e-5, atol=1e-5)
