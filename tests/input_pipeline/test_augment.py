"""Augmented views against NumPy's rotations, points placed by hand, and a slow renderer that averages many samples per pixel."""

import dataclasses
import hashlib
import itertools
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from input_pipeline import augment, images, loader

EVERYTHING: dict[str, Any] = {
    "scale": (0.5, 1.0),
    "shift": 0.1,
    "aspect": (0.75, 4 / 3),
    "placement": "anywhere",
    "zoom": (0.8, 1.2),
    "rotation": 20.0,
    "flip": True,
}
SIBLINGS: dict[str, dict[str, Any]] = {
    "MaCo": {"rotation": 20.0, "zoom": (0.8, 1.2), "flip": True},
    "MRM": {"scale": (0.2, 1.0), "aspect": (0.75, 4 / 3), "placement": "anywhere", "flip": True},
    "GLoRIA": {"scale": ((224 / 256) ** 2, (224 / 256) ** 2), "placement": "anywhere"},
}
FITS = ("crop", "pad", "squash")


def everything(**changed) -> dict[str, Any]:
    return EVERYTHING | changed


def generator(seed=0):
    return np.random.default_rng(seed)


def smooth(height, width, seed=0, sigma=6.0):
    noise = np.random.default_rng(seed).normal(size=(height, width))
    blurred = cv2.GaussianBlur(noise, (0, 0), sigma)
    return np.round(128 + blurred * (100 / np.abs(blurred).max())).astype(np.uint8)


def shown_points(points, motion, shape, size, fit):
    """Where points (x, y) of a view lie in the canvas, step by step and without matrices."""
    top, left, height, width = images.view_rectangle(shape[0], shape[1], fit)
    x, y = points
    if motion.mirrored:
        x = size - x
    right, up = x / size - 0.5, 0.5 - y / size
    radius, angle = np.hypot(right, up), np.arctan2(up, right) - np.deg2rad(motion.degrees)
    right, up = radius * np.cos(angle), radius * np.sin(angle)
    centre_x, centre_y = left + width * (0.5 + motion.right), top + height * (0.5 + motion.down)
    return centre_x + right * width * motion.width, centre_y - up * height * motion.height


def bilinear(image, x, y):
    """Samples at points whose pixel centres lie at halves; the edge is repeated."""
    x, y = x - 0.5, y - 0.5
    x0, y0 = np.floor(x).astype(int), np.floor(y).astype(int)
    dx, dy = x - x0, y - y0
    rows = [np.clip(y0 + i, 0, image.shape[0] - 1) for i in (0, 1)]
    columns = [np.clip(x0 + i, 0, image.shape[1] - 1) for i in (0, 1)]
    above, below = ((1 - dx) * image[r, columns[0]] + dx * image[r, columns[1]] for r in rows)
    return (1 - dy) * above + dy * below


def slow_view(image, size, motion, fit, samples=4):
    """Every pixel of the view as the mean of samples x samples points of it."""
    canvas = image
    if fit == "pad":
        side = max(image.shape)
        canvas = np.zeros((side, side), np.uint8)
        top, left = (side - image.shape[0]) // 2, (side - image.shape[1]) // 2
        canvas[top : top + image.shape[0], left : left + image.shape[1]] = image
    grid = (np.arange(size * samples) + 0.5) / samples
    x, y = np.meshgrid(grid, grid)
    values = bilinear(canvas.astype(float), *shown_points((x, y), motion, canvas.shape, size, fit))
    return values.reshape(size, samples, size, samples).mean(axis=(1, 3))


def view_and_motion(image, size, seed, *, fit="crop", **settings):
    view = images.training_view(image, size, generator(seed), fit=fit, **settings)
    return view, augment.draw(generator(seed), **settings)


@given(st.integers(2, 40), st.integers(2, 40), st.integers(1, 32), st.sampled_from(FITS), st.integers(0, 99))
def test_settings_that_change_nothing_give_the_evaluation_view(height, width, size, fit, seed):
    image = smooth(height, width, seed=height, sigma=2)
    view = images.training_view(image, size, generator(seed), fit=fit, placement="anywhere", rotation=0.0, flip=False)
    np.testing.assert_array_equal(view, images.evaluation_view(image, size, fit))


@given(st.integers(0, 2**32 - 1), st.sampled_from([(1.0, 1.0), (0.6, 1.0), (0.2, 0.9)]), st.sampled_from([0.0, 0.1]))
def test_crops_and_shifts_are_those_of_before_whatever_else_is_on(seed, scale, shift):
    rng = generator(seed)
    side = np.sqrt(rng.uniform(*scale))
    down, right = rng.uniform(-shift, shift, size=2)
    after = rng.random()
    for rotation, flip in ((0.0, False), (20.0, True)):
        rng = generator(seed)
        motion = augment.draw(rng, scale=scale, shift=shift, rotation=rotation, flip=flip)
        assert (motion.height, motion.width, motion.down, motion.right) == (side, side, down, right)
        assert rng.random() == after


@pytest.mark.parametrize("kind", [np.random.PCG64, np.random.Philox])
def test_the_count_of_drawn_numbers_does_not_depend_on_the_settings(kind):
    reference = np.random.Generator(kind(5))
    reference.random(3)
    expected = reference.random(4)
    motions = []
    for size in range(len(EVERYTHING) + 1):
        for names in itertools.combinations(EVERYTHING, size):
            rng = np.random.Generator(kind(5))
            motions.append((set(names), augment.draw(rng, **{name: EVERYTHING[name] for name in names})))
            np.testing.assert_array_equal(rng.random(4), expected)
    # Nor do the values: one setting does not change what another draws.
    assert len({motion.degrees for names, motion in motions if "rotation" in names}) == 1
    assert len({motion.mirrored for names, motion in motions if "flip" in names}) == 1
    heights = {motion.height for names, motion in motions if names & {"scale", "aspect", "zoom"} == {"zoom"}}
    assert len(heights) == 1


def test_the_further_numbers_are_not_those_of_another_record_or_of_the_sentences():
    seen = [augment.draw(generator(seed), **EVERYTHING) for seed in range(300)]
    assert len({motion.degrees for motion in seen}) == 300
    following = [generator(seed).random(20) for seed in range(300)]
    assert not {(motion.degrees + 20) / 40 for motion in seen} & {number for row in following for number in row}


def test_draws_fill_their_ranges_evenly():
    drawn = [augment.draw(generator(seed), **everything(shift=0.0)) for seed in range(2000)]
    degrees = np.array([motion.degrees for motion in drawn])
    assert -20 <= degrees.min() < -19.9
    assert 19.9 < degrees.max() <= 20
    assert abs(degrees.mean()) < 0.7
    assert abs(np.mean([motion.mirrored for motion in drawn]) - 0.5) < 0.03
    zoomed = np.array([1 / augment.draw(generator(seed), zoom=(0.8, 1.2)).height for seed in range(2000)])
    assert 0.8 <= zoomed.min() < 0.801
    assert 1.199 < zoomed.max() <= 1.2
    assert abs(zoomed.mean() - 1) < 0.01
    ratios = np.array([augment.draw(generator(s), scale=(0.3, 0.3), aspect=(0.5, 2.0)) for s in range(2000)])
    logs = np.array([np.log2(motion.width / motion.height) for motion in ratios])
    assert -1 <= logs.min() < -0.99
    assert 0.99 < logs.max() <= 1
    assert abs(logs.mean()) < 0.03
    areas = np.array([motion.width * motion.height for motion in ratios])
    np.testing.assert_allclose(areas, 0.3, rtol=1e-12)


@given(st.integers(0, 2**32 - 1), st.floats(0.05, 1.0))
def test_crops_placed_anywhere_stay_inside_and_reach_the_borders(seed, area):
    settings = {"scale": (area, area), "aspect": (0.5, 2.0), "placement": "anywhere"}
    motion = augment.draw(generator(seed), **settings)
    assert motion.height <= 1
    assert motion.width <= 1
    assert abs(motion.down) + motion.height / 2 <= 0.5 + 1e-12
    assert abs(motion.right) + motion.width / 2 <= 0.5 + 1e-12
    places = [augment.draw(generator(s), scale=(0.25, 0.25), placement="anywhere").down for s in range(200)]
    assert min(places) < -0.24
    assert max(places) > 0.24


@pytest.mark.parametrize("fit", FITS)
def test_a_flipped_view_is_the_mirrored_one(fit):
    image = smooth(70, 50, sigma=2)
    mirrored = 0
    for seed in range(20):
        settings = everything(flip=False)
        plain = images.training_view(image, 32, generator(seed), fit=fit, **settings)
        view, motion = view_and_motion(image, 32, seed, fit=fit, **everything())
        np.testing.assert_array_equal(view, plain[:, ::-1] if motion.mirrored else plain)
        mirrored += motion.mirrored
    assert 4 <= mirrored <= 16


@pytest.mark.parametrize("quarter", [1, 2, 3, -1])
@pytest.mark.parametrize("size", [64, 32, 47, 90])
def test_quarter_turns_are_those_of_numpy(monkeypatch, quarter, size):
    image = smooth(64, 64, sigma=4)
    motion = augment.Motion(1.0, 1.0, 0.0, 0.0, 90.0 * quarter, False)
    monkeypatch.setattr(augment, "draw", lambda rng, **settings: motion)
    view = images.training_view(image, size, generator()).astype(int)
    expected = np.rot90(images.evaluation_view(image, size), quarter).astype(int)
    assert np.abs(view - expected).max() <= (0 if size == 64 else 2)


def test_small_turns_hardly_change_a_view():
    image = smooth(300, 240, sigma=12)
    for fit in ("crop", "squash"):
        view = images.training_view(image, 64, generator(1), fit=fit, rotation=0.01).astype(int)
        assert np.abs(view - images.evaluation_view(image, 64, fit)).max() <= 2


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize(
    ("height", "width", "size", "sigma"),
    [(300, 220, 64, 12), (220, 300, 64, 12), (100, 100, 96, 4), (60, 70, 128, 4)],
)
def test_turned_views_equal_a_slow_renderer(fit, height, width, size, sigma):
    image = smooth(height, width, sigma=sigma)
    for seed in range(6):
        settings = everything(rotation=45.0)
        view, motion = view_and_motion(image, size, seed, fit=fit, **settings)
        difference = np.abs(view - slow_view(image, size, motion, fit))
        if fit == "pad":  # the border of the black margin is not smooth
            assert np.median(difference) <= 0.5
            assert (difference > 6).mean() < 0.06
        else:
            assert difference.max() <= 2.5
            assert difference.mean() <= 0.5


def test_turned_views_equal_pillow_rotating_a_shrunk_picture():
    image = smooth(256, 256, sigma=8)
    view, motion = view_and_motion(image, 64, 3, rotation=30.0)
    shrunk = Image.fromarray(image).resize((64, 64), Image.Resampling.BOX)
    expected = np.asarray(shrunk.rotate(motion.degrees, Image.Resampling.BICUBIC), int)
    rows, columns = np.mgrid[:64, :64] - 31.5
    inside = np.hypot(rows, columns) < 30  # Pillow's corners are black
    assert np.abs(view - expected)[inside].max() <= 3


def test_turned_views_do_not_alias():
    stripes = np.tile(np.array([0, 255], np.uint8), (400, 200))  # finer than any pixel of the view
    for seed in range(5):
        view = images.training_view(stripes, 50, generator(seed), rotation=40.0, zoom=(2.0, 2.0))
        assert np.abs(view - 127.5).max() <= 10


@pytest.mark.parametrize("recipe", [*SIBLINGS.values(), EVERYTHING], ids=[*SIBLINGS, "everything"])
@pytest.mark.parametrize("fit", FITS)
def test_a_marker_lands_where_the_motion_says(recipe, fit):
    size, tried = 80, 0
    for seed in range(8):
        motion = augment.draw(generator(seed), **recipe)
        shape = (240, 240) if fit == "pad" else (240, 200)
        target = np.array([30.5, 47.5])
        x, y = shown_points(target, motion, shape, size, fit)
        if not (12 < x < shape[1] - 12 and 12 < y < shape[0] - 12):
            continue  # on the margin, or beyond the picture
        tried += 1
        rows, columns = np.mgrid[: shape[0], : shape[1]] + 0.5
        spot = np.round(255 * np.exp(-((rows - y) ** 2 + (columns - x) ** 2) / 50)).astype(np.uint8)
        view = images.training_view(spot, size, generator(seed), fit=fit, **recipe).astype(float)
        rows, columns = np.mgrid[:size, :size] + 0.5
        found = np.array([(view * columns).sum(), (view * rows).sum()]) / view.sum()
        # Upright views are cut at whole pixels of the image, so they may be off by one of those along each axis.
        step = size / min(motion.height * shape[0], motion.width * 200)
        assert np.abs(found - target).max() <= (0.1 if motion.degrees else 1.5 * step)
    assert tried >= 5


def test_turned_views_repeat_the_edge_outside_the_picture():
    image = np.full((40, 40), 90, np.uint8)
    image[:, :20] = 30
    for seed in range(10):
        view = images.training_view(image, 32, generator(seed), rotation=30.0, zoom=(0.3, 0.5))
        assert view[[0, 0, -1, -1], [0, -1, 0, -1]].min() == 30
        assert view[[0, 0, -1, -1], [0, -1, 0, -1]].max() == 90
        assert set(np.unique(view[:, 0])) == {30}


@given(st.integers(1, 30), st.integers(1, 30), st.integers(1, 24), st.integers(0, 2**32 - 1), st.sampled_from(FITS))
def test_views_of_any_picture_have_their_size(height, width, size, seed, fit):
    image = np.full((height, width), 77, np.uint8)
    settings = everything(rotation=180.0, zoom=(0.1, 10.0), scale=(1e-3, 1.0), shift=0.5)
    view = images.training_view(image, size, generator(seed), fit=fit, **settings)
    assert view.shape == (size, size)
    assert view.dtype == np.uint8
    assert view.flags.c_contiguous
    if fit != "pad":
        assert (view == 77).all()


def test_views_are_the_same_in_another_process():
    code = """
import hashlib, numpy as np
from input_pipeline import images
image = (np.add.outer(np.arange(90) ** 2, np.arange(70) * 7) % 256).astype(np.uint8)
settings = SETTINGS
views = [images.training_view(image, 40, np.random.default_rng(seed), **settings) for seed in range(20)]
print(hashlib.sha256(b"".join(view.tobytes() for view in views)).hexdigest())
""".replace("SETTINGS", repr(EVERYTHING))
    root = Path(images.__file__).parents[1]
    runs = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
        for _ in range(2)
    ]
    image = (np.add.outer(np.arange(90) ** 2, np.arange(70) * 7) % 256).astype(np.uint8)
    views = [images.training_view(image, 40, generator(seed), **EVERYTHING) for seed in range(20)]
    here = hashlib.sha256(b"".join(view.tobytes() for view in views)).hexdigest()
    assert {run.stdout.strip() for run in runs} == {here}


def batches(directory, spec, steps=4, **options):
    with loader.train_batches(directory, spec, batch_size=8, seed=3, **options) as stream:
        return [{name: np.array(value) for name, value in batch.items()} for batch in itertools.islice(stream, steps)]


def test_every_process_worker_and_first_step_gives_a_record_the_same_view(mimic_build, batch_spec):
    spec = dataclasses.replace(batch_spec, **EVERYTHING)
    reference = batches(mimic_build, spec)
    in_worker = batches(mimic_build, spec, workers=1)
    parts = [batches(mimic_build, spec, process_index=index, process_count=2) for index in (0, 1)]
    late = batches(mimic_build, spec, 2, start_step=2)
    for step, batch in enumerate(reference):
        halves = np.concatenate([part[step]["image"] for part in parts])
        for other in (in_worker[step]["image"], halves, *([late[step - 2]["image"]] if step >= 2 else [])):
            np.testing.assert_array_equal(other, batch["image"])
    # A record looks different each time, and other settings change images alone.
    plain = batches(mimic_build, batch_spec)
    for one, other in zip(reference, plain, strict=True):
        assert (one["image"] != other["image"]).any()
        for name in ("token_ids", "sentence_ids", "study_key"):
            np.testing.assert_array_equal(one[name], other[name])
