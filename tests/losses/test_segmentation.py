"""Segmentation losses: hand-made values, empty masks, extremes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from msfl_jax.losses import focal, segmentation, soft_dice

with_gradient = jax.jit(jax.value_and_grad(segmentation))
CORNER = jnp.zeros((1, 4, 4), bool).at[0, :2, :2].set(True)


def certain(mask, strength=40.0):
    """Logits of a model that is sure of a mask."""
    sign = jnp.where(mask, strength, -strength)
    return jnp.stack([-sign, sign], axis=-1)


def test_zero_logits_give_the_values_of_the_formula():
    logits = jnp.zeros((1, 4, 4, 2))
    assert_allclose(focal(logits, CORNER), 0.5 * 0.25 * np.log(2), rtol=1e-6)
    assert_allclose(focal(logits, CORNER, gamma=0.0), 0.5 * np.log(2), rtol=1e-6)
    # 4 of 16 pixels: 2 * 4 * .5 + 1 over 16 * .25 + 4 + 1, for one of two classes.
    assert_allclose(soft_dice(logits, CORNER), (1 - 5 / 9) / 2, rtol=1e-6)
    assert_allclose(segmentation(logits, CORNER), 2 * 0.125 * np.log(2) + 2 / 9, rtol=1e-6)


def test_class_weights_choose_what_counts():
    logits = certain(CORNER).at[..., 0].set(0.0)  # right about the foreground, undecided about the background
    assert_allclose(focal(logits, CORNER, class_weights=(0.0, 1.0)), 0, atol=1e-7)
    assert_allclose(focal(logits, CORNER, class_weights=(1.0, 0.0)), 0.125 * np.log(2) / 2, rtol=1e-6)
    wrong = certain(~CORNER)
    assert_allclose(soft_dice(wrong, CORNER, class_weights=(0.0, 1.0)), (1 - 1 / 17) / 2, rtol=1e-6)
    assert_allclose(soft_dice(wrong, CORNER, class_weights=None), (1 - 1 / 17), rtol=1e-6)


@pytest.mark.parametrize("strength", [0.0, 1.0, 200.0])
@pytest.mark.parametrize("target", [jnp.zeros((2, 3, 3), bool), jnp.ones((2, 3, 3), bool)])
def test_empty_and_full_masks_have_finite_values_and_gradients(strength, target):
    for sign in (1, -1):
        value, gradient = with_gradient(certain(target, sign * strength), target)
        assert np.isfinite(value)
        assert np.isfinite(gradient).all()


def test_what_is_right_costs_nothing_and_what_is_wrong_pulls_towards_the_mask():
    empty = jnp.zeros_like(CORNER)
    for target in (CORNER, empty):
        assert_allclose(segmentation(certain(target), target), 0, atol=1e-6)
    _, gradient = with_gradient(jnp.zeros((1, 4, 4, 2)), CORNER)
    assert (jnp.sign(gradient[..., 1]) == jnp.where(CORNER, -1, 1)).all()


def test_half_precision_is_computed_in_float32():
    logits = certain(CORNER, 3.0)
    assert segmentation(logits.astype(jnp.bfloat16), CORNER).dtype == jnp.float32
    assert_allclose(segmentation(logits.astype(jnp.bfloat16), CORNER), segmentation(logits, CORNER), rtol=1e-6)
