"""Segmentation as text and pictures."""

import cv2
import numpy as np
import pytest

from msfl_jax.results.segmentation import choose_images, save_mask_overlay, segmentation_table
from msfl_jax.tasks.mask_result import MaskPredictions, summarise
from msfl_jax.tasks.outcome import Outcome
from msfl_jax.tasks.segmentation import SegmentationResult


def coloured(path):
    """Shares of reddish and of greenish pixels in the thirds of a picture, from left to right."""
    pixels = cv2.imread(str(path))[..., ::-1].astype(int)
    red = (pixels[..., 0] > pixels[..., 1] + 40) & (pixels[..., 0] > pixels[..., 2] + 40)
    green = (pixels[..., 1] > pixels[..., 0] + 40) & (pixels[..., 1] > pixels[..., 2] + 40)
    thirds = np.array_split(np.arange(pixels.shape[1]), 3)
    return [(red[:, third].mean(), green[:, third].mean()) for third in thirds]


@pytest.fixture
def masks():
    target, predicted = np.zeros((2, 80, 80), bool)
    target[20:50, 20:50], predicted[20:50, 30:60] = True, True
    return target, predicted


def test_the_outline_is_green_and_the_prediction_red(masks, tmp_path):
    image = np.full((40, 40), 110, np.uint8)  # of another resolution than the masks
    save_mask_overlay(image, *masks, tmp_path / "deep" / "both.png")
    plain, outlined, filled = coloured(tmp_path / "deep" / "both.png")
    assert plain == (0, 0)
    assert outlined[0] == 0
    assert outlined[1] > 0.002
    assert filled[0] > 0.04
    assert filled[1] > 0.002


@pytest.mark.parametrize("which", ["target", "predicted"])
def test_an_empty_mask_draws_nothing(masks, tmp_path, which):
    target, predicted = (mask & (which != name) for mask, name in zip(masks, ("target", "predicted"), strict=True))
    save_mask_overlay(np.zeros((80, 80), np.uint8), target, predicted, tmp_path / "one.png")
    _, outlined, filled = coloured(tmp_path / "one.png")
    assert (outlined[1] > 0) == target.any()
    assert (filled[0] > 0.02) == predicted.any()


def test_images_with_disease_come_first():
    positive = np.asarray([False, True, False, True, True, True, True, False])
    assert list(choose_images(positive, 4)) == [1, 3, 4, 0]
    assert list(choose_images(positive, 8)) == [1, 3, 4, 5, 6, 0, 2, 7]
    assert list(choose_images(positive[:1], 4)) == [0]
    assert list(choose_images(~positive[:1], 4)) == [0]
    assert list(choose_images(positive, 0)) == []


def test_the_table_shows_what_predicting_nothing_would_score():
    counts = np.asarray([[50, 60, 100, 1000], [0, 0, 0, 1000], [0, 0, 0, 1000], [0, 10, 0, 1000]])
    options = {"init": "random", "head": "upernet", "fraction": 10, "seed": 1, "lists": "clean"}
    metrics = summarise(counts, np.arange(4), replicates=50)
    outcome = Outcome("segmentation", "siim_acr", "test", "", "v", options, 50, 4, 4, metrics)
    predictions = MaskPredictions(counts, *np.zeros((2, 4), np.uint32))
    lines = segmentation_table(SegmentationResult(outcome, predictions)).splitlines()
    assert lines[0] == (
        "segmentation, random encoder, upernet head, 10 % of the labels, test (clean lists), step 50: 4 images, 1 with disease"
    )
    cells = {line[:30].strip(): line[30:].split() for line in lines[3:]}
    assert cells["Dice per image, empty = 1"][0] == "0.66"  # (.625 + 1 + 1 + 0) / 4
    assert cells["Dice per image, empty = 1"][-1] == "0.75"
    assert cells["Dice of images with disease"][0] == "0.62"
    assert cells["Dice pooled, foreground"][0] == "0.59"  # 100 / 170
    assert cells["Dice pooled, foreground"][-1] == "0.00"
