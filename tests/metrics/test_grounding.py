"""Grounding metrics against loops, scipy and PyTorch."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.testing import assert_allclose, assert_array_equal
from scipy.ndimage import gaussian_filter

from msfl_jax.metrics import (
    contrast_to_noise,
    dice,
    iou_at,
    mean_iou,
    normalise_heatmap,
    pointing_game,
    smoothing,
    upsample,
)

heatmaps = hnp.arrays(float, (3, 4), elements=st.integers(-10, 10).map(lambda n: n / 10))
masks = hnp.arrays(bool, (3, 4))


def pixels(array):
    return [(i, j) for i in range(array.shape[0]) for j in range(array.shape[1])]


@given(heatmaps, masks)
def test_contrast_to_noise_equals_its_definition(heatmap, mask):
    inside = [heatmap[p] for p in pixels(mask) if mask[p]]
    outside = [heatmap[p] for p in pixels(mask) if not mask[p]]
    value = contrast_to_noise(heatmap, mask)
    if not inside or not outside or len({*inside}) == len({*outside}) == 1:
        assert math.isnan(value)
        return
    means = [sum(side) / len(side) for side in (inside, outside)]
    variances = [
        sum((x - mean) ** 2 for x in side) / len(side) for side, mean in zip((inside, outside), means, strict=True)
    ]
    assert_allclose(value, (means[0] - means[1]) / math.sqrt(sum(variances)), rtol=1e-9, atol=1e-12)


@given(heatmaps, masks, st.sampled_from([-0.5, 0.1, 0.3, 0.5]))
def test_iou_counts_pixels(heatmap, mask, threshold):
    predicted = {p for p in pixels(mask) if heatmap[p] > threshold}
    inside = {p for p in pixels(mask) if mask[p]}
    expected = len(predicted & inside) / len(predicted | inside) if predicted and inside else math.nan
    assert_allclose(iou_at(heatmap, mask, threshold), expected)


def test_mean_iou_counts_a_threshold_without_prediction_as_zero_and_an_empty_mask_as_missing():
    heatmap, mask = np.array([[0.25, 0.0]]), np.array([[True, False]])
    assert_allclose(mean_iou(heatmap, mask), (1 + 1 + 0 + 0 + 0) / 5)
    assert math.isnan(mean_iou(heatmap, ~mask & mask))


@given(heatmaps, masks)
def test_pointing_game_is_the_share_of_hottest_pixels_inside(heatmap, mask):
    hottest = [p for p in pixels(mask) if heatmap[p] == heatmap.max()]
    expected = sum(mask[p] for p in hottest) / len(hottest) if mask.any() else math.nan
    assert_allclose(pointing_game(heatmap, mask), expected)


def test_pointing_at_one_pixel_is_a_hit_or_a_miss_and_constant_heat_is_chance():
    heatmap, mask = np.zeros((4, 4)), np.zeros((4, 4), bool)
    mask[1, 1:3] = True
    assert pointing_game(heatmap, mask) == 2 / 16
    heatmap[1, 2] = 1
    assert pointing_game(heatmap, mask) == 1
    assert pointing_game(heatmap, ~mask) == 0


def test_pixels_that_the_model_did_not_see_are_neither_noise_nor_prediction():
    heatmap, mask = np.random.default_rng(0).normal(size=(4, 6)), np.zeros((4, 6), bool)
    mask[1:3, 2:4] = True
    framed = np.pad(heatmap, 2, constant_values=np.nan)
    framed_mask = np.pad(mask, 2)
    assert contrast_to_noise(framed, framed_mask) == contrast_to_noise(heatmap, mask)
    assert pointing_game(framed, framed_mask) == pointing_game(heatmap, mask)
    assert iou_at(framed, framed_mask, 0.1) == iou_at(heatmap, mask, 0.1)
    assert_array_equal(normalise_heatmap(framed)[2:-2, 2:-2], normalise_heatmap(heatmap))
    for metric in (contrast_to_noise, pointing_game):
        assert math.isnan(metric(np.full((4, 6), np.nan), mask))


@given(heatmaps)
def test_normalised_heat_runs_from_minus_one_to_one(heatmap):
    normalised = normalise_heatmap(heatmap)
    assert normalised.shape == heatmap.shape
    if heatmap.min() == heatmap.max():
        assert_array_equal(normalised, 0)
    else:
        assert_allclose([normalised.min(), normalised.max()], [-1, 1])
        assert_array_equal(normalised.argmax(), heatmap.argmax())


@pytest.mark.parametrize("sigma", [0.5, 1.5, 4.0])
@pytest.mark.parametrize("shape", [(14, 14), (7, 10), (3, 2), (1, 5)])
def test_smoothing_equals_scipy_even_where_the_kernel_is_wider_than_the_map(sigma, shape):
    heatmap = np.random.default_rng(0).normal(size=shape)
    expected = gaussian_filter(heatmap, sigma, mode="reflect", truncate=4.0)
    assert_allclose(smoothing(heatmap, sigma), expected, rtol=1e-12, atol=1e-13)


def test_smoothing_works_on_many_maps_and_keeps_dtype_and_sigma_zero_is_off():
    heatmaps = np.random.default_rng(0).normal(size=(2, 3, 5, 6)).astype(np.float32)
    smooth = smoothing(heatmaps)
    assert smooth.dtype == np.float32
    assert_array_equal(smooth[1, 2], smoothing(heatmaps[1, 2]))
    assert_array_equal(smoothing(heatmaps, 0.0), heatmaps)
    with pytest.raises(ValueError, match="sigma"):
        smoothing(heatmaps, -1.0)


@pytest.mark.parametrize(
    "shape, size", [((14, 14), (224, 224)), ((7, 10), (50, 33)), ((1, 3), (5, 5)), ((9, 9), (4, 7))]
)
def test_upsampling_equals_torch(shape, size):
    heatmaps = np.random.default_rng(0).normal(size=(2, *shape))
    expected = torch.nn.functional.interpolate(
        torch.tensor(heatmaps)[None], size=size, mode="bilinear", align_corners=False
    )
    assert_allclose(upsample(heatmaps, size), expected[0].numpy(), rtol=1e-12, atol=1e-13)


@given(masks, masks)
def test_dice_counts_pixels(predicted, target):
    a, b = ({p for p in pixels(m) if m[p]} for m in (predicted, target))
    assert_allclose(dice(predicted, target), 2 * len(a & b) / (len(a) + len(b)) if a or b else 1.0)
    assert_allclose(
        dice(predicted.astype(np.uint8) * 255, target, empty=math.nan), dice(predicted, target, empty=math.nan)
    )
