"""The pixel decoder: mask tokens stand exactly where patches are hidden."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from msfl_jax.encoders import BlockSpec, PixelDecoder, random_masking, sincos_positions, take

SPEC = BlockSpec("vit", depth=0, width=8, heads=2, hidden=16)


@pytest.mark.parametrize("class_token", [False, True])
def test_without_blocks_each_patch_is_predicted_from_its_own_token_and_place(class_token):
    visible = jax.random.normal(jax.random.key(0), (2, 4, 6))
    cls = jnp.ones((2, 6)) if class_token else None
    masking = random_masking(jax.random.key(1), 2, 9, 4)
    module = PixelDecoder(SPEC, grid=3, pixels=5)
    variables = jax.jit(module.init)(jax.random.key(2), visible, cls, masking.restore)
    found = jax.jit(module.apply)(variables, visible, cls, masking.restore)

    params = jax.tree.map(np.asarray, variables["params"])
    for b, place in np.ndindex(2, 9):
        kept = list(np.asarray(masking.kept[b]))
        token = params["mask_token"][0, 0]
        if place in kept:
            token = visible[b, kept.index(place)] @ params["embed"]["kernel"]
        token = token + sincos_positions(3, 8)[place]
        token = (token - token.mean()) / np.sqrt(token.var() + 1e-6)
        assert_allclose(found[b, place], token @ params["prediction"]["kernel"], rtol=1e-4, atol=1e-5)


def test_predictions_depend_on_all_visible_patches_and_on_the_class_token():
    spec = BlockSpec("vit", depth=1, width=8, heads=2, hidden=16)
    module = PixelDecoder(spec, grid=3, pixels=5)
    patches, cls = jax.random.normal(jax.random.key(0), (1, 9, 6)), jnp.ones((1, 6))
    masking = random_masking(jax.random.key(1), 1, 9, 4)
    visible = take(patches, masking.kept)
    variables = jax.jit(module.init)(jax.random.key(2), visible, cls, masking.restore)
    apply = jax.jit(module.apply)
    base = apply(variables, visible, cls, masking.restore)
    moved = jax.random.normal(jax.random.key(3), (6,))
    other_patch = apply(variables, visible.at[0, 0].add(moved), cls, masking.restore)
    other_class = apply(variables, visible, cls + moved, masking.restore)
    assert (np.abs(other_patch - base).max(axis=2) > 1e-6).all()
    assert (np.abs(other_class - base).max(axis=2) > 1e-6).all()
