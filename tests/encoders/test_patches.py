"""Patches against a loop and MAE's order; masks against their definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from msfl_jax.encoders import (
    count_visible,
    masking_from_noise,
    normalise_image,
    normalise_patches,
    patchify,
    random_masking,
    take,
)


@pytest.fixture
def float64():
    with jax.enable_x64():
        yield


def test_patches_have_the_order_of_mae():
    image = jnp.arange(16.0).reshape(1, 4, 4, 1)
    assert_array_equal(patchify(image, 2)[0, 0], [0, 1, 4, 5])
    assert_array_equal(patchify(image, 2)[0, 1], [2, 3, 6, 7])


@pytest.mark.parametrize(("batch", "rows", "columns", "size"), [(1, 1, 1, 1), (2, 3, 3, 4), (2, 2, 3, 2)])
def test_patches_equal_a_loop(batch, rows, columns, size):
    image = np.random.default_rng(0).normal(size=(batch, rows * size, columns * size, 1)).astype(np.float32)
    found = patchify(jnp.asarray(image), size)
    for b, r, c in np.ndindex(batch, rows, columns):
        expected = image[b, r * size : (r + 1) * size, c * size : (c + 1) * size, 0]
        assert_array_equal(found[b, r * columns + c].reshape(size, size), expected)


@pytest.mark.parametrize(("ratio", "visible"), [(0.75, 49), (0.5, 98), (0.6, 78)])
def test_as_many_patches_stay_visible_as_in_mae(ratio, visible):
    assert count_visible(196, ratio) == visible


@given(seed=st.integers(0, 2**31), visible=st.integers(1, 11))
@settings(max_examples=20)
def test_kept_and_masked_patches_divide_the_image(seed, visible):
    masking = random_masking(jax.random.key(seed), 3, 12, visible)
    kept, masked = np.asarray(masking.kept), np.asarray(masking.masked)
    for b in range(3):
        assert len(set(kept[b])) == visible
        assert_array_equal(np.flatnonzero(~masked[b]), np.sort(kept[b]))


def test_restore_puts_kept_patches_back_in_their_places():
    patches = jax.random.normal(jax.random.key(0), (2, 9, 4))
    masking = random_masking(jax.random.key(1), 2, 9, 4)
    filled = jnp.concatenate([take(patches, masking.kept), jnp.zeros((2, 5, 4))], axis=1)
    expected = jnp.where(masking.masked[..., None], 0, patches)
    assert_array_equal(take(filled, masking.restore), expected)


def test_the_smallest_noise_is_kept():
    masking = masking_from_noise(jnp.asarray([[0.9, 0.1, 0.5, 0.2]]), 2)
    assert_array_equal(masking.kept, [[1, 3]])
    assert_array_equal(masking.masked, [[True, False, True, False]])


def test_a_mask_is_a_function_of_the_key_alone_and_differs_between_images():
    first, again = (random_masking(jax.random.key(3), 4, 64, 16) for _ in range(2))
    other = random_masking(jax.random.key(4), 4, 64, 16)
    assert_array_equal(first.masked, again.masked)
    assert (first.masked != other.masked).any()
    assert (first.masked[0] != first.masked[1]).any()


def test_every_patch_is_hidden_equally_often():
    masked = random_masking(jax.random.key(0), 4000, 16, 4).masked
    assert_allclose(masked.mean(axis=0), 0.75, atol=5 * np.sqrt(0.75 * 0.25 / 4000))


def test_fixed_normalisation_uses_the_given_numbers():
    image = jnp.asarray([0, 51, 255], jnp.uint8).reshape(1, 1, 3, 1)
    found = normalise_image(image, normalisation="fixed", mean=0.5, deviation=0.25)
    assert found.dtype == jnp.float32
    assert_allclose(found.ravel(), [-2, -1.2, 2], rtol=1e-6)


def test_per_image_normalisation_forgets_brightness_and_contrast():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 100, (1, 8, 8, 1)).astype(np.uint8)
    options = {"normalisation": "per_image", "mean": 0.5, "deviation": 0.25}
    found = normalise_image(jnp.asarray(np.concatenate([image, 2 * image + 30])), **options)
    assert_allclose(found[0], found[1], atol=1e-3)
    assert_allclose([found.mean(), found.std()], [0, 1], atol=1e-3)


def test_an_image_of_one_grey_value_becomes_0():
    found = normalise_image(jnp.full((1, 4, 4, 1), 77, jnp.uint8), normalisation="per_image", mean=0.5, deviation=0.25)
    assert_allclose(found, 0, atol=1e-3)


@pytest.mark.usefixtures("float64")
def test_patches_are_normalised_by_their_own_mean_and_unbiased_variance():
    patches = np.random.default_rng(0).uniform(0, 255, size=(2, 3, 16))
    normalised = np.asarray(normalise_patches(jnp.asarray(patches)))
    for patch, result in zip(patches.reshape(-1, 16), normalised.reshape(-1, 16), strict=True):
        variance = sum((x - patch.mean()) ** 2 for x in patch) / 15
        assert_allclose(result, (patch - patch.mean()) / (variance + 1e-6) ** 0.5, rtol=1e-9)


@pytest.mark.usefixtures("float64")
def test_a_patch_of_one_grey_level_becomes_zero_with_finite_gradient():
    flat = jnp.full((1, 1, 16), 0.3)
    assert_allclose(normalise_patches(flat), 0, atol=1e-9)
    assert np.isfinite(jax.grad(lambda x: (normalise_patches(x) ** 2).sum())(flat)).all()


@pytest.mark.usefixtures("float64")
def test_normalised_patches_are_at_least_float32():
    for dtype, expected in (("float16", "float32"), ("bfloat16", "float32"), ("float64", "float64")):
        assert normalise_patches(jnp.ones((1, 3, 4), dtype)).dtype == expected
