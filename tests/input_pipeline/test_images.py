"""Decoding against Pillow and hand-made files; views against arithmetic by hand and the published box transfer."""

import io
import math
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from input_pipeline import images
from input_pipeline.errors import DataError, UserError


def smooth_noise(height, width, seed=0):
    noise = np.random.default_rng(seed).integers(0, 256, (height, width), dtype=np.uint8)
    return cv2.GaussianBlur(noise, (0, 0), 2)


def encode(picture, kind, **options):
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def make_png(samples, bits, color_type):
    """Writes a PNG by hand from rows of bytes, without any image library."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    height = len(samples)
    channels = {0: 1, 2: 3, 4: 2, 6: 4}[color_type]
    width = len(samples[0]) * 8 // (bits * channels)
    header = struct.pack(">IIBBBBB", width, height, bits, color_type, 0, 0, 0)
    body = zlib.compress(b"".join(b"\0" + row for row in samples))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


GRAY = smooth_noise(60, 90)
COLOR = np.stack([GRAY, GRAY[::-1], GRAY[:, ::-1]], axis=-1)


@pytest.mark.parametrize(
    "options", [{"quality": 95}, {"quality": 60, "progressive": True}, {"quality": 95, "optimize": True}]
)
def test_gray_jpegs_decode_to_the_same_pixels_as_pillow(options):
    data = encode(Image.fromarray(GRAY), "JPEG", **options)
    np.testing.assert_array_equal(images.decode_gray(data), np.asarray(Image.open(io.BytesIO(data))))


def test_gray_pngs_decode_to_the_same_pixels_as_pillow():
    np.testing.assert_array_equal(images.decode_gray(encode(Image.fromarray(GRAY), "PNG")), GRAY)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_colour_becomes_luma(kind):
    data = encode(Image.fromarray(COLOR), kind)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("L"), int)
    assert np.abs(images.decode_gray(data).astype(int) - expected).max() <= 1


def test_transparency_is_dropped():
    alpha = np.full((*GRAY.shape, 1), 7, np.uint8)
    rgba = Image.fromarray(np.concatenate([COLOR, alpha], axis=-1))
    expected = np.asarray(Image.fromarray(COLOR).convert("L"), int)
    assert np.abs(images.decode_gray(encode(rgba, "PNG")).astype(int) - expected).max() <= 1
    gray_alpha = make_png([bytes([10, 0, 20, 255, 30, 9])], 8, 4)
    np.testing.assert_array_equal(images.decode_gray(gray_alpha), [[10, 20, 30]])


def test_palettes_and_single_bits_are_expanded():
    palette = Image.fromarray(GRAY).quantize(16)
    expected = np.asarray(palette.convert("L"), int)
    assert np.abs(images.decode_gray(encode(palette, "PNG")).astype(int) - expected).max() <= 1
    np.testing.assert_array_equal(images.decode_gray(make_png([b"\xa5"], 1, 0)), [[255, 0, 255, 0, 0, 255, 0, 255]])


def test_cmyk_jpegs_decode_close_to_pillow():
    data = encode(Image.fromarray(COLOR).convert("CMYK"), "JPEG", quality=95)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("L"), int)
    assert np.abs(images.decode_gray(data).astype(int) - expected).max() <= 3


def test_sixteen_bit_samples_are_scaled_by_their_own_range():
    row = struct.pack(">5H", 1000, 1040, 2020, 3000, 5095)
    expected = [round((value - 1000) * 255 / 4095) for value in (1000, 1040, 2020, 3000, 5095)]
    np.testing.assert_array_equal(images.decode_gray(make_png([row], 16, 0)), [expected])
    full = struct.pack(">3H", 0, 257 * 100, 65535)
    np.testing.assert_array_equal(images.decode_gray(make_png([full], 16, 0)), [[0, 100, 255]])


def test_a_constant_sixteen_bit_image_is_black():
    np.testing.assert_array_equal(images.decode_gray(make_png([struct.pack(">2H", 900, 900)], 16, 0)), [[0, 0]])


def test_exif_orientation_is_ignored():
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encode(Image.fromarray(GRAY), "JPEG", exif=exif)
    assert images.decode_gray(data).shape == GRAY.shape


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("fraction", [0.01, 0.3, 0.6, 0.95, 0.999])
def test_truncated_files_are_refused(kind, fraction):
    data = encode(Image.fromarray(GRAY), kind)
    with pytest.raises(DataError):
        images.decode_gray(data[: int(len(data) * fraction)])


def test_a_truncated_jpeg_with_a_whole_thumbnail_is_refused():
    thumbnail = encode(Image.fromarray(GRAY[:8, :8]), "JPEG")
    data = encode(Image.fromarray(GRAY), "JPEG", exif=b"Exif\0\0" + thumbnail)
    assert images.decode_gray(data).shape == GRAY.shape
    with pytest.raises(DataError, match="truncated"):
        images.decode_gray(data[:-40])


def test_a_flipped_bit_in_a_png_is_refused():
    data = bytearray(encode(Image.fromarray(GRAY), "PNG"))
    data[len(data) // 2] ^= 1
    with pytest.raises(DataError, match="checksum"):
        images.decode_gray(bytes(data))


@pytest.mark.parametrize(
    "data", [b"", b"\xff\xd8", b"\xff\xd8\xff\xd9", b"<html>not found</html>", b"\x89PNG\r\n\x1a\n"]
)
def test_what_is_no_image_is_refused_in_one_line(data):
    with pytest.raises(DataError) as error:
        images.decode_gray(data)
    assert error.value.exit_code == 3
    assert "\n" not in str(error.value)


def test_too_many_pixels_are_refused_from_the_header_alone():
    header = struct.pack(">IIBBBBB", 20_000, 20_000, 8, 0, 0, 0, 0)
    bomb = bytearray(make_png([b"\0" * 4], 8, 0))
    bomb[16:29] = header
    bomb[29:33] = struct.pack(">I", zlib.crc32(b"IHDR" + header))
    with pytest.raises(DataError, match="20000 x 20000"):
        images.decode_gray(bytes(bomb))
    with pytest.raises(DataError, match="60 x 90"):
        images.decode_gray(encode(Image.fromarray(GRAY), "JPEG"), max_pixels=60 * 90 - 1)


@given(st.sampled_from(["JPEG", "PNG"]), st.lists(st.tuples(st.integers(0, 2**16), st.integers(0, 255)), max_size=8))
def test_damaged_files_decode_or_are_refused_but_raise_nothing_else(kind, damages):
    data = bytearray(encode(Image.fromarray(GRAY[:16, :24]), kind))
    for position, value in damages:
        data[position % len(data)] = value
    try:
        image = images.decode_gray(bytes(data))
    except DataError:
        return
    assert image.dtype == np.uint8
    assert image.ndim == 2


@given(st.integers(1, 80), st.integers(1, 80), st.integers(1, 64))
def test_the_short_side_is_met_and_the_aspect_ratio_kept(height, width, short_side):
    resized = images.resize_short_side(np.zeros((height, width), np.uint8), short_side)
    assert min(resized.shape) == short_side
    scale = short_side / min(height, width)
    assert abs(resized.shape[0] - height * scale) <= 0.5
    assert abs(resized.shape[1] - width * scale) <= 0.5


def test_halving_averages_blocks_of_four_pixels():
    expected = GRAY.reshape(30, 2, 45, 2).mean(axis=(1, 3))
    assert np.abs(images.resize_short_side(GRAY, 30) - expected).max() <= 0.5


def test_a_thin_strip_is_refused_rather_than_blown_up():
    with pytest.raises(DataError, match="elongated"):
        images.resize_short_side(np.zeros((1, 3000), np.uint8), 512)


def test_jpeg_bytes_are_reproducible_and_close_to_the_pixels():
    data = images.encode_jpeg(GRAY)
    assert data == images.encode_jpeg(GRAY.copy())
    assert np.abs(images.decode_gray(data).astype(int) - GRAY).max() <= 6


@pytest.mark.parametrize(
    ("height", "width", "fit", "expected"),
    [
        (100, 60, "crop", (20.0, 0.0, 60.0, 60.0)),
        (60, 101, "crop", (0.0, 20.5, 60.0, 60.0)),
        (100, 60, "pad", (0.0, -20.0, 100.0, 100.0)),
        (60, 101, "pad", (-20.5, 0.0, 101.0, 101.0)),
        (100, 60, "squash", (0.0, 0.0, 100.0, 60.0)),
    ],
)
def test_view_rectangles_by_hand(height, width, fit, expected):
    assert images.view_rectangle(height, width, fit) == expected


@pytest.mark.parametrize(
    ("height", "width", "box", "expected"),
    [
        (3056, 2544, (100, 200, 300, 400), [26, 14, 21, 29]),
        (2544, 3056, (100, 200, 300, 400), [7, 33, 21, 29]),
        (2544, 3056, (10, 10, 5, 5), [0, 19, 0, 0]),
    ],
)
def test_padded_views_place_boxes_as_the_published_box_transfer(height, width, box, expected):
    top, left, side, _ = images.view_rectangle(height, width, "pad")
    x, y, w, h = box
    moved = [value * 224 / side for value in (x - left, y - top, w, h)]
    assert [math.floor(value) for value in moved] == expected


def test_an_unknown_fit_is_a_user_error():
    with pytest.raises(UserError, match="'crop', 'pad' or 'squash'"):
        images.view_rectangle(4, 4, "stretch")


def test_evaluation_views_show_their_rectangle():
    image = np.arange(24, dtype=np.uint8).reshape(4, 6)
    np.testing.assert_array_equal(images.evaluation_view(image, 4, "crop"), image[:, 1:5])
    padded = np.zeros((6, 6), np.uint8)
    padded[1:5] = image
    np.testing.assert_array_equal(images.evaluation_view(image, 6, "pad"), padded)
    squashed = images.evaluation_view(image, 2, "squash")
    assert np.abs(squashed - image.reshape(2, 2, 2, 3).mean(axis=(1, 3))).max() <= 0.5


@given(st.integers(2, 40), st.integers(2, 40), st.integers(1, 32), st.sampled_from(["crop", "pad", "squash"]))
def test_training_views_without_augmentation_equal_evaluation_views(height, width, size, fit):
    image = smooth_noise(height, width, seed=height)
    view = images.training_view(image, size, np.random.default_rng(3), fit=fit)
    np.testing.assert_array_equal(view, images.evaluation_view(image, size, fit))


@pytest.mark.parametrize("fit", ["crop", "pad", "squash"])
def test_training_views_are_a_function_of_the_generator(fit):
    def view(seed):
        rng = np.random.default_rng(seed)
        made = images.training_view(GRAY, 32, rng, scale=(0.6, 1.2), shift=0.1, fit=fit)
        return made, rng.random()

    first, after = view(1)
    np.testing.assert_array_equal(first, view(1)[0])
    assert (first != view(2)[0]).any()
    reference = np.random.default_rng(1)
    reference.random(3)
    assert after == reference.random()


def test_training_views_repeat_the_edge_outside_the_picture():
    image = np.tile(np.arange(10, dtype=np.uint8) * 20, (10, 1))
    view = images.training_view(image, 20, np.random.default_rng(0), scale=(4.0, 4.0))
    columns = np.clip(np.arange(-5, 15), 0, 9) * 20
    np.testing.assert_array_equal(view, np.tile(columns, (20, 1)))


@given(
    sides=st.tuples(st.integers(1, 30), st.integers(1, 30)),
    shift=st.floats(0, 3),
    zoom=st.floats(0.01, 9),
    size=st.integers(1, 9),
    seed=st.integers(0, 99),
)
def test_training_views_equal_a_gather_of_clipped_places(sides, shift, zoom, size, seed):
    image = np.random.default_rng(seed).integers(0, 256, sides, dtype=np.uint8)
    view = images.training_view(image, size, np.random.default_rng(seed), scale=(zoom, zoom), shift=shift)
    rng = np.random.default_rng(seed)
    grown = np.sqrt(rng.uniform(zoom, zoom))
    moved = rng.uniform(-shift, shift, size=2)
    side = float(min(sides))
    places = []
    for end, move in zip(sides, moved, strict=True):
        start = int(np.floor((end - side) / 2 + side * (move + (1 - grown) / 2)))
        places.append(np.clip(np.arange(start, start + max(1, round(side * grown))), 0, end - 1))
    gathered = image[np.ix_(*places)]
    np.testing.assert_array_equal(view, images.evaluation_view(gathered, size, "squash"))


def test_training_views_never_flip():
    ramp = np.tile(np.linspace(0, 255, 64).astype(np.uint8), (64, 1))
    rng = np.random.default_rng(0)
    for _ in range(30):
        view = images.training_view(ramp, 16, rng, scale=(0.5, 1.0), shift=0.1).astype(int)
        assert (np.diff(view, axis=1) >= 0).all()


def test_images_and_text_import_neither_jax_nor_tensorflow_nor_transformers():
    code = (
        "import sys, input_pipeline.images, input_pipeline.sections, input_pipeline.tokenizer\n"
        "print(sorted({'jax', 'tensorflow', 'torch', 'transformers', 'msfl_jax'} & set(sys.modules)))"
    )
    root = Path(images.__file__).parents[1]
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert result.stdout.strip() == "[]"
