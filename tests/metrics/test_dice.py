"""The four Dice variants against loops over images and pixels, also under the weights of a bootstrap."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.testing import assert_allclose, assert_array_equal

from msfl_jax.metrics import COUNTS, DICE_VARIANTS, bootstrap, count_overlap, dice, dice_statistics


def overlap(pairs):
    return np.stack([count_overlap(predicted, target) for predicted, target in pairs])


def pixel_sets(mask):
    return {(int(r), int(c)) for r, c in zip(*np.nonzero(mask), strict=True)}


def brute_force(pairs):
    """From sets of pixels, image by image."""
    each, positive, pooled = [], [], {True: [0, 0], False: [0, 0]}
    for predicted, target in pairs:
        a, b, every = pixel_sets(predicted), pixel_sets(target), pixel_sets(np.ones_like(target))
        value = 1.0 if not a | b else 2 * len(a & b) / (len(a) + len(b))
        each.append(value)
        positive += [value] if b else []
        for side, (x, y) in {True: (a, b), False: (every - a, every - b)}.items():
            pooled[side][0] += 2 * len(x & y)
            pooled[side][1] += len(x) + len(y)
    fore, back = (common / both if both else math.nan for common, both in (pooled[True], pooled[False]))
    return [np.mean(each), np.mean(positive) if positive else math.nan, fore, (fore + back) / 2]


masks = arrays(bool, (3, 4), elements=st.booleans(), fill=st.just(False))


@given(st.lists(st.tuples(masks, masks), min_size=1, max_size=5))
def test_all_variants_equal_a_loop_over_sets_of_pixels(pairs):
    counts = overlap(pairs)
    found = [statistic(np.ones(len(pairs))) for statistic in dice_statistics(counts).values()]
    assert tuple(dice_statistics(counts)) == DICE_VARIANTS
    assert_allclose(found, brute_force(pairs), rtol=1e-12)


@given(st.lists(st.tuples(masks, masks, st.integers(0, 3)), min_size=1, max_size=4))
def test_a_weight_is_a_repetition(rows):
    counts = overlap([row[:2] for row in rows])
    repeated = [row[:2] for row in rows for _ in range(row[2])]
    found = [statistic(np.asarray([float(row[2]) for row in rows])) for statistic in dice_statistics(counts).values()]
    assert_allclose(found, brute_force(repeated) if repeated else [math.nan] * 4, rtol=1e-12)


def test_what_the_siblings_evaluation_gives_for_single_images():
    nothing, one, two = np.zeros((3, 2, 2), bool)
    one[0, 0] = two[0, 0] = two[0, 1] = True
    for predicted, target, expected in ((nothing, nothing, 1), (one, nothing, 0), (one, two, 2 / 3), (nothing, one, 0)):
        variants = dice_statistics(overlap([(predicted, target)]))
        assert_allclose(variants["dice_per_image_with_empty"](np.ones(1)), expected)
        assert_allclose(dice(predicted, target), expected)
        only = variants["dice_positive_only"](np.ones(1))
        assert_allclose(only, expected if target.any() else math.nan)


def test_variants_tell_a_model_that_predicts_nothing_from_one_that_is_right():
    target = np.zeros((4, 8, 8), bool)
    target[0, 2:4, 2:4] = True  # three of four have no disease
    silent = overlap([(np.zeros_like(mask), mask) for mask in target])
    found = {name: statistic(np.ones(4)) for name, statistic in dice_statistics(silent).items()}
    assert_allclose(found["dice_per_image_with_empty"], 0.75)
    assert found["dice_positive_only"] == found["dice_pooled_foreground"] == 0
    assert found["dice_pooled_with_background"] > 0.49


def test_counts_of_masks_of_any_size_and_type():
    predicted = np.zeros((5, 7), np.uint8)
    predicted[:2, :3] = 255
    target = np.zeros((5, 7))
    target[1:4, 1:4] = 0.5
    assert_array_equal(count_overlap(predicted, target), [2, 6, 9, 35])
    assert COUNTS == ("intersection", "predicted", "target", "pixels")


@pytest.mark.parametrize("variant", DICE_VARIANTS)
def test_intervals_resample_patients(variant):
    rng = np.random.default_rng(0)
    pairs = [(rng.random((4, 4)) < 0.5, rng.random((4, 4)) < 0.4) for _ in range(12)]
    patients = np.repeat(np.arange(4), 3)
    statistic = dice_statistics(overlap(pairs))[variant]
    found = bootstrap(statistic, patients, replicates=50, seed=3)
    draws, place = np.random.default_rng(3), DICE_VARIANTS.index(variant)
    values = []
    for _ in range(50):
        drawn = draws.integers(0, 4, size=4)
        values.append(brute_force([pairs[3 * patient + k] for patient in drawn for k in range(3)])[place])
    assert_allclose(found, [brute_force(pairs)[place], *np.quantile(values, [0.025, 0.975])], rtol=1e-12)
