"""One picture as file, bytes, PIL image and array gives the same grey levels; what is no picture is one line."""

import io
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from input_pipeline.errors import DataError, UserError
from input_pipeline.image_inputs import as_list, read_image, read_numbered
from input_pipeline.images import decode_gray

from .dicom_files import RAMP, file_of

NAME = "p10000032"  # stands for a patient in a path
GREY = RAMP.astype(np.uint8)
DEEP = (RAMP * 16 + 7).astype(np.uint16)  # 12 bits, as detectors give them
COLOURS = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)


def png(pixels):
    """A PNG file as OpenCV writes it; colours are red, green and blue."""
    return cv2.imencode(".png", pixels[..., [2, 1, 0, *range(3, pixels.shape[2])]] if pixels.ndim == 3 else pixels)[
        1
    ].tobytes()


def opened(data):
    return Image.open(io.BytesIO(data))


@pytest.mark.parametrize("kind", ["png", "dcm"])
def test_grey_levels_are_the_same_in_every_form(tmp_path, kind):
    data = png(GREY) if kind == "png" else file_of(GREY)
    file = tmp_path / f"{NAME}.{kind}"
    file.write_bytes(data)
    thrice = np.repeat(GREY[..., None], 3, axis=2)
    forms = [file, str(file), data, GREY, GREY[..., None], thrice, np.asfortranarray(thrice), np.dstack([thrice, GREY])]
    forms += [Image.fromarray(GREY), Image.fromarray(thrice), opened(png(GREY)), opened(png(thrice))]
    forms += [Image.fromarray(GREY).convert(mode) for mode in ("RGBA", "LA")]
    for form in forms:
        np.testing.assert_array_equal(read_image(form), GREY)


def test_a_jpeg_is_the_same_as_file_and_as_pillow_decodes_it():
    file = io.BytesIO()
    Image.fromarray(GREY).save(file, "JPEG", quality=90)
    expected = decode_gray(file.getvalue())
    for form in (file.getvalue(), Image.open(file), np.asarray(Image.open(file))):
        np.testing.assert_array_equal(read_image(form), expected)


def test_more_than_eight_bits_are_scaled_alike_in_every_form():
    expected = np.round((DEEP - 7.0) * 255 / (int(DEEP.max()) - 7)).astype(np.uint8)
    forms = [DEEP, DEEP.astype(">u2"), DEEP.astype(np.int16) - np.int16(2000), np.repeat(DEEP[..., None], 3, axis=2)]
    forms += [png(DEEP), opened(png(DEEP)), Image.fromarray(DEEP), Image.fromarray(DEEP.astype(np.int32))]
    forms += [file_of(DEEP, stored=12)]
    for form in forms:
        np.testing.assert_array_equal(read_image(form), expected)


@given(arrays(np.int16, st.tuples(st.integers(1, 5), st.integers(1, 5)), elements=st.integers(-(2**15), 2**15 - 1)))
def test_any_sixteen_bit_array_equals_its_png(pixels):
    shifted = (pixels.astype(np.int32) - int(pixels.min())).astype(np.uint16)
    np.testing.assert_array_equal(read_image(pixels), decode_gray(png(shifted)))


def test_colours_become_the_luma_of_their_png():
    expected = decode_gray(png(COLOURS))
    clear = np.dstack([COLOURS, np.zeros(COLOURS.shape[:2], np.uint8)])
    for form in (COLOURS, clear, Image.fromarray(COLOURS), Image.fromarray(clear), opened(png(COLOURS))):
        np.testing.assert_array_equal(read_image(form), expected)
    palette = io.BytesIO()
    Image.fromarray(COLOURS).quantize(16).save(palette, "PNG")
    np.testing.assert_array_equal(read_image(Image.open(palette)), decode_gray(palette.getvalue()))


def test_several_images_are_a_list_or_a_tuple():
    for one in ("a.png", Path("a"), b"", GREY, Image.fromarray(GREY)):
        assert as_list(one)[0] is one
    assert [len(as_list(form)) for form in ([GREY], (), ("a", "b"), "ab")] == [1, 0, 2, 1]


def test_what_cannot_be_read_is_one_line_without_the_path(tmp_path):
    text, whole = tmp_path / f"{NAME}.txt", png(GREY)
    text.write_text("no image")
    cases = [
        (tmp_path / f"{NAME}.png", UserError, r"cannot be read \(No such file"),
        (str(tmp_path), UserError, "cannot be read"),
        (f"{NAME}\0", UserError, "no path"),
        (text, DataError, "neither JPEG nor PNG nor DICOM"),
        (b"", DataError, "neither JPEG nor PNG nor DICOM"),
        (whole[:-20], DataError, "truncated"),
        (opened(whole[:-40]), DataError, "PIL image of mode 'L' cannot be decoded"),
        (3, UserError, "found int; expected a path"),
        (GREY.astype(np.float32), UserError, "array of float32; expected uint8"),
        (GREY.astype(np.int64), UserError, "array of int64"),
        (GREY > 3, UserError, "array of bool"),
        (Image.fromarray(GREY.astype(np.float32)), UserError, "array of float32"),
        (Image.fromarray(GREY.astype(np.int32) - 1), UserError, "values from -1 to"),
        (GREY[0], UserError, r"array of 30; expected \[H, W\]"),
        (np.zeros((5, 8, 8), np.uint8), UserError, "array of 5 x 8 x 8; .*give several images as a list"),
        (np.zeros((1, 8, 8, 1), np.uint8), UserError, "array of 1 x 8 x 8 x 1"),
        (GREY[:0], DataError, "image has 0 x 30 pixels"),
        (np.broadcast_to(np.uint8(0), (8001, 8000)), DataError, "8001 x 8000 pixels"),
    ]
    for form, kind, message in cases:
        with pytest.raises(kind, match=message) as error:
            read_numbered(form, 3, 7)
        assert str(error.value).startswith("image 3 of 7: ")
        assert "\n" not in str(error.value)
        assert NAME not in str(error.value)
    with pytest.raises(UserError, match=r"^image: found int"):
        read_numbered(3, 1, 1)
