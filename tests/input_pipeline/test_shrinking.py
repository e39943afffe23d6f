"""How views are shrunk, beside Pillow's Lanczos filter, OpenCV's averaging of areas, and points placed by hand."""

import cv2
import numpy as np
import pytest
from PIL import Image

from input_pipeline import images

QUICK = [1.51, 1.65, 1.77, 1.9, 2.05, 2.2, 16 / 7]  # ratios at which views are blurred and interpolated
AVERAGED = [1.004, 1.2, 1.45, 2.35, 3.3, 5.1]


def side_for(ratio, size):
    return round(ratio * size)


def averaged(image, size):
    return cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA)


def lanczos(image, size):
    return np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.LANCZOS))


def decibels(found, expected):
    return 10 * np.log10(255**2 / np.mean((found.astype(float) - expected) ** 2))


def textured(side, seed):
    """Noise whose amplitude falls with the frequency to the power of 1.5, as that of radiographs about does."""
    down, across = np.meshgrid(np.fft.fftfreq(side), np.fft.rfftfreq(side), indexing="ij")
    frequency = np.maximum(np.hypot(down, across), 1 / side)
    spectrum = np.fft.rfft2(np.random.default_rng(seed).normal(size=(side, side))) / frequency**1.5
    image = np.fft.irfft2(spectrum, (side, side))
    return np.clip(128 + 40 * image / image.std(), 0, 255).astype(np.uint8)


def compare(pictures, size):
    """Decibels to Lanczos: rows are pictures; a view first, then averaged areas."""
    found = [(images.evaluation_view(picture, size), averaged(picture, size)) for picture in pictures]
    references = [lanczos(picture, size) for picture in pictures]
    return np.array([[decibels(x, ref) for x in pair] for pair, ref in zip(found, references, strict=True)])


@pytest.fixture(scope="module")
def radiographs(real_data):
    """NIH's 24 as a build stores them: 512 x 512 pixels, JPEG."""
    stored = []
    for path in sorted((real_data / "nih_chestxray14" / "images").glob("*.png")):
        image = images.resize_short_side(images.decode_gray(path.read_bytes()), 512)
        stored.append(images.decode_gray(images.encode_jpeg(image)))
    assert [image.shape for image in stored] == [(512, 512)] * 24
    return stored


@pytest.mark.parametrize("ratio", QUICK)
def test_views_are_as_near_to_lanczos_as_averaged_areas(ratio):
    quality = compare([textured(side_for(ratio, 160), seed) for seed in range(4)], 160)
    assert quality[:, 0].mean() >= quality[:, 1].mean() - 0.2
    assert quality[:, 0].min() >= quality[:, 1].min() - 0.3


@pytest.mark.parametrize("ratio", QUICK)
def test_views_of_radiographs_are_as_near_to_lanczos_as_averaged_areas(radiographs, ratio):
    size = min(224, int(512 / ratio))
    side = side_for(ratio, size)
    edge = (512 - side) // 2
    quality = compare([radiograph[edge : edge + side, edge : edge + side] for radiograph in radiographs], size)
    assert quality[:, 0].mean() >= quality[:, 1].mean() - 0.1
    assert quality[:, 0].min() >= quality[:, 1].min() - 0.4


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("ratio", QUICK)
def test_stripes_too_fine_for_a_view_are_as_faint_as_in_averaged_areas(ratio, turned):
    size, left = 160, []
    side = side_for(ratio, size)
    for frequency in np.linspace(0.51 * size / side, 0.5, 16):
        wave = np.round(127.5 + 100 * np.sin(2 * np.pi * frequency * np.arange(side) + 0.7)).astype(np.uint8)
        stripes = np.tile(wave, (side, 1))
        stripes = np.ascontiguousarray(stripes.T) if turned else stripes
        shrunk = images.evaluation_view(stripes, size), averaged(stripes, size)
        left.append([view[8:-8, 8:-8].std() / stripes.std() for view in shrunk])
    ours, theirs = np.square(left).mean(axis=0) ** 0.5
    assert ours <= theirs + 0.02
    assert np.max(left, axis=0)[0] <= np.max(left, axis=0)[1] + 0.04


@pytest.mark.parametrize("ratio", QUICK)
def test_rings_too_fine_for_a_view_are_as_faint_as_in_averaged_areas(ratio):
    size = 160
    side = side_for(ratio, size)
    down, across = np.mgrid[:side, :side] - (side - 1) / 2
    radius = np.hypot(down, across)  # the frequency grows from 0 in the centre to a half at the borders
    rings = np.round(127.5 + 100 * np.cos(np.pi * radius**2 / side)).astype(np.uint8)
    limit = 0.5 * side / ratio
    down, across = (np.mgrid[:size, :size] - (size - 1) / 2) * ratio
    too_fine = (np.hypot(down, across) > 1.1 * limit) & (np.hypot(down, across) < side / 2 - 4)
    ours, theirs = (view[too_fine].std() for view in (images.evaluation_view(rings, size), averaged(rings, size)))
    assert ours <= 1.1 * theirs


@pytest.mark.parametrize("place", [(0.3, 0.4), (0.52, 0.49), (0.71, 0.33)])
@pytest.mark.parametrize("ratio", [*QUICK, *AVERAGED, 2.0, 3.0])
def test_a_spot_stays_where_it_is(ratio, place):
    size = 96
    side = side_for(ratio, size)
    rows, columns = np.mgrid[:side, :side] + 0.5
    spot = np.exp(-((rows - place[0] * side) ** 2 + (columns - place[1] * side) ** 2) / (2 * (4 * ratio) ** 2))
    view = images.evaluation_view(np.round(255 * spot).astype(np.uint8), size).astype(float)
    rows, columns = np.mgrid[:size, :size] + 0.5
    found = np.array([(view * rows).sum(), (view * columns).sum()]) / view.sum()
    np.testing.assert_allclose(found, np.array(place) * size, atol=0.05)


def test_a_box_keeps_its_borders():
    image = np.zeros((500, 500), np.uint8)
    image[125:375, 100:300] = 200
    view = images.evaluation_view(image, 224)
    inside = np.argwhere(view >= 100)
    assert np.abs(inside.min(axis=0) - np.array([125, 100]) * 0.448).max() <= 0.5
    assert np.abs(inside.max(axis=0) + 1 - np.array([375, 300]) * 0.448).max() <= 0.5
    assert view.max() <= 215  # cubic interpolation may overshoot, but little


def test_each_axis_is_blurred_for_its_own_ratio():
    image = textured(340, 0)[:, :240]
    view = images.evaluation_view(image, 150, "squash")
    expected = lanczos(image, 150)
    assert (view != averaged(image, 150)).any()
    assert decibels(view, expected) >= decibels(averaged(image, 150), expected) - 0.2


@pytest.mark.parametrize("ratio", [2, 3, 4])
def test_whole_ratios_are_means_of_blocks(ratio):
    image = textured(48 * ratio, 1)
    expected = image.reshape(48, ratio, 48, ratio).mean(axis=(1, 3))
    assert np.abs(images.evaluation_view(image, 48) - expected).max() <= 0.5


@pytest.mark.parametrize("ratio", AVERAGED)
def test_views_of_other_ratios_are_averaged_areas(ratio):
    image = textured(side_for(ratio, 100), 2)
    np.testing.assert_array_equal(images.evaluation_view(image, 100), averaged(image, 100))


@pytest.mark.parametrize("ratio", QUICK)
def test_builds_store_averaged_areas_at_every_ratio(ratio):
    image = textured(side_for(ratio, 100), 3)
    np.testing.assert_array_equal(images.resize_short_side(image, 100), averaged(image, 100))
