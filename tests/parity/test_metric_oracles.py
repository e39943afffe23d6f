"""Metric values of the original evaluation code on inputs given by closed formulas."""

import numpy as np
import pytest
from numpy.testing import assert_allclose

from msfl_jax.metrics import (
    auc,
    contrast_to_noise,
    dice,
    iou_at,
    mean_iou,
    normalise_heatmap,
    smoothing,
    upsample,
)

HEAT = np.arange(16.0).reshape(4, 4)
MASK = np.zeros((4, 4), int)
MASK[2:, 2:] = 1


def test_iou_at_the_five_thresholds_of_maco():
    heat = normalise_heatmap(HEAT)
    values = [iou_at(heat, MASK, threshold) for threshold in (0.1, 0.2, 0.3, 0.4, 0.5)]
    assert_allclose(values, [0.571429, 0.666667, 0.666667, 0.5, 0.333333], atol=6e-7)
    assert_allclose(mean_iou(heat, MASK), 0.547619, atol=6e-7)


def test_contrast_to_noise_is_signed_and_drops_pixels_of_two_boxes():
    overlapping = MASK.copy()
    overlapping[3, 3] = 2
    assert_allclose(contrast_to_noise(HEAT, MASK), 1.488646, atol=6e-7)
    assert_allclose(contrast_to_noise(normalise_heatmap(HEAT), MASK == 1), 1.488646, atol=6e-7)
    assert_allclose(contrast_to_noise(-HEAT, MASK), -1.488646, atol=6e-7)
    assert_allclose(contrast_to_noise(HEAT, overlapping), 1.349151, atol=6e-7)
    inside, outside = HEAT[MASK == 1], HEAT[MASK == 0]
    unbiased = (inside.mean() - outside.mean()) / np.sqrt(inside.var(ddof=1) + outside.var(ddof=1))
    assert_allclose(unbiased, 1.392851, atol=6e-7)  # what an evaluation with sample variances reports for the same map


def test_constant_heat_keeps_its_shape_where_the_original_flattens_it():
    flat = normalise_heatmap(np.full((4, 4), 3.0))
    assert flat.shape == (4, 4)
    assert not flat.any()
    assert np.isnan(contrast_to_noise(np.full((4, 4), 3.0), MASK))


def test_smoothing_of_a_single_patch_in_the_middle_and_in_a_corner():
    middle, corner = np.zeros((2, 14, 14))
    middle[7, 7] = corner[0, 0] = 1
    assert_allclose(smoothing(middle)[7, 3:8], [0.002021, 0.009573, 0.029081, 0.056642, 0.070737], atol=6e-7)
    assert_allclose(smoothing(corner)[0, :5], [0.229376, 0.154364, 0.069606, 0.020877, 0.004131], atol=6e-7)
    assert_allclose(smoothing(corner).sum(), 1, rtol=1e-12)


def test_bilinear_upsampling_repeats_the_edges():
    assert_allclose(upsample(np.array([[0.0, 1.0], [2.0, 3.0]]), (4, 4))[0], [0, 0.25, 0.75, 1], rtol=1e-12)


def test_dice_of_one_image():
    empty, one, two = np.zeros((2, 2), bool), np.eye(2) * [1, 0] > 0, np.eye(2) > 0
    found = [dice(empty, empty), dice(one, empty), dice(one, two), dice(empty, one)]
    assert_allclose(found, [1, 0, 0.666667, 0], atol=6e-7)


@pytest.mark.parametrize("temperature", [0.01, 0.07, 1.0, 20.0])
def test_zero_shot_auc_does_not_depend_on_the_temperature(temperature):
    rng = np.random.default_rng(0)
    positive, negative = rng.uniform(-1, 1, (2, 50))
    labels = rng.integers(0, 2, 50)
    margin = (positive - negative) / temperature
    assert auc(margin, labels) == auc(positive - negative, labels)
