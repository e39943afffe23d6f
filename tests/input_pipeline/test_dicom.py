"""DICOM files written by pydicom, against levels worked out by hand, Pillow, and pydicom's own pixels and tables."""

import io

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom import uid
from pydicom.pixels.processing import apply_modality_lut, apply_voi_lut

from input_pipeline import dicom, images
from input_pipeline.errors import DataError

from .dicom_files import COLUMNS, RAMP, ROWS, dataset, file_of, jpeg_file, look_up_table, stretched, written


@pytest.mark.parametrize(
    "syntax", [uid.ExplicitVRLittleEndian, uid.ImplicitVRLittleEndian, uid.ExplicitVRBigEndian, uid.RLELossless]
)
@pytest.mark.parametrize("kind", ["uint8", "uint16"])
def test_every_plain_encoding_gives_the_same_levels(syntax, kind):
    pixels = (RAMP * (1 if kind == "uint8" else 257)).astype(kind)
    made = dataset(pixels, syntax=uid.ExplicitVRLittleEndian)
    if syntax == uid.RLELossless:
        made.compress(syntax)
    elif syntax == uid.ExplicitVRBigEndian:
        made.file_meta.TransferSyntaxUID = syntax
        made.PixelData = pixels.astype(pixels.dtype.newbyteorder(">")).tobytes()
    else:
        made.file_meta.TransferSyntaxUID = syntax
    expected = RAMP if kind == "uint8" else stretched(RAMP)
    np.testing.assert_array_equal(dicom.decode_dicom(written(made)), expected)


def test_decode_gray_takes_dicom_too():
    data = file_of(RAMP.astype(np.uint8))
    decoded = images.decode_gray(data)
    assert decoded.dtype == np.uint8
    np.testing.assert_array_equal(decoded, RAMP)
    with pytest.raises(DataError, match="40 x 30"):
        images.decode_gray(data, max_pixels=ROWS * COLUMNS - 1)


def test_twelve_bits_inverted_with_a_window():
    pixels = (RAMP * 16).astype(np.uint16)
    data = file_of(pixels, photometric="MONOCHROME1", stored=12, WindowCenter="2000", WindowWidth="1001")
    # PS3.3 C.11.2.1.2.1: black up to centre - .5 - (width - 1) / 2, white from as much above it.
    expected = 255 - stretched(pixels, 1499.5, 2499.5)
    np.testing.assert_array_equal(dicom.decode_dicom(data), expected)


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize("slope", ["1", "0.5", "-2"])
def test_rescaling_and_windows_follow_pydicom(function, slope):
    pixels = (RAMP * 16).astype(np.uint16)
    made = dataset(pixels, stored=12, RescaleSlope=slope, RescaleIntercept="-100")
    made.WindowCenter, made.WindowWidth, made.VOILUTFunction = ["700", "9"], ["800", "3"], function
    values = apply_voi_lut(apply_modality_lut(pixels, made), made)
    low, high = sorted(float(slope) * end - 100 for end in (0, 4095))
    expected = (values - low) / (high - low) * 255
    if slope == "-2":  # pydicom turns its range round with the slope
        expected = 255 - expected
    assert np.abs(dicom.decode_dicom(written(made)) - expected).max() <= 0.51


def test_a_window_of_one_level_is_a_step():
    data = file_of(RAMP.astype(np.uint8), WindowCenter="100.5", WindowWidth="1")
    np.testing.assert_array_equal(dicom.decode_dicom(data), np.where(RAMP > 100, 255, 0))


def test_without_a_window_deep_levels_fill_their_own_range_whatever_the_rescaling():
    pixels = (RAMP * 3 + 900).astype(np.uint16)
    expected = stretched(pixels)
    np.testing.assert_array_equal(dicom.decode_dicom(file_of(pixels, stored=12)), expected)
    rescaled = file_of(pixels, stored=12, RescaleSlope="2", RescaleIntercept="-1024")
    assert np.abs(dicom.decode_dicom(rescaled) - expected).max() <= 1
    negative = file_of(pixels, stored=12, RescaleSlope="-1", RescaleIntercept="0")
    assert np.abs(dicom.decode_dicom(negative) - (255 - expected)).max() <= 1
    np.testing.assert_array_equal(dicom.decode_dicom(file_of(np.full((4, 6), 900, np.uint16))), np.zeros((4, 6)))


def test_empty_windows_are_no_windows():
    data = file_of(RAMP.astype(np.uint8), WindowCenter=None, WindowWidth=None, RescaleSlope=None)
    np.testing.assert_array_equal(dicom.decode_dicom(data), RAMP)


def test_unused_high_bits_are_masked():
    garbage = np.random.default_rng(0).integers(0, 16, RAMP.shape).astype(np.uint16) << 12
    data = file_of((RAMP * 16).astype(np.uint16) | garbage, stored=12)
    np.testing.assert_array_equal(dicom.decode_dicom(data), stretched(RAMP))


def test_signed_pixels():
    pixels = (RAMP * 8 - 1000).astype(np.int16)
    np.testing.assert_array_equal(dicom.decode_dicom(file_of(pixels)), stretched(pixels))
    masked = (pixels.view(np.uint16) & 0x0FFF).view(np.int16)  # negative values without their upper bits
    np.testing.assert_array_equal(dicom.decode_dicom(file_of(masked, stored=12)), stretched(pixels))
    windowed = file_of(pixels, WindowCenter="0", WindowWidth="1001")
    np.testing.assert_array_equal(dicom.decode_dicom(windowed), stretched(pixels, -500.5, 499.5))


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize(("kind", "value"), [("uint16", 60000), ("int16", -2000)])
def test_padding_is_black_and_counts_for_no_minimum(photometric, kind, value):
    pixels = (RAMP + 300).astype(kind)
    pixels[:5] = value
    expected = stretched(RAMP, RAMP[5:].min(), RAMP[5:].max())
    expected = 255 - expected if photometric == "MONOCHROME1" else expected
    expected[:5] = 0
    made = dataset(pixels, photometric=photometric)
    made.add_new("PixelPaddingValue", "SS" if kind == "int16" else "US", value)
    np.testing.assert_array_equal(dicom.decode_dicom(written(made)), expected)
    if kind == "int16":  # as some writers have it
        made.add_new("PixelPaddingValue", "US", value + 65536)
        np.testing.assert_array_equal(dicom.decode_dicom(written(made)), expected)


def test_a_range_of_padding_values():
    pixels = (RAMP + 300).astype(np.uint16)
    pixels[:5], pixels[5:8] = 10, 20
    made = dataset(pixels)
    made.add_new("PixelPaddingValue", "US", 25)
    made.add_new("PixelPaddingRangeLimit", "US", 5)
    expected = stretched(RAMP, RAMP[8:].min(), RAMP[8:].max())
    expected[:8] = 0
    np.testing.assert_array_equal(dicom.decode_dicom(written(made)), expected)


def test_tables_replace_rescaling_and_windows():
    pixels = RAMP.astype(np.uint16) + 50
    curve = np.round(4095 * (np.arange(200) / 199) ** 2).astype(np.uint16)
    made = dataset(pixels, WindowCenter="3", WindowWidth="2")
    made.VOILUTSequence = look_up_table(curve, 80, 12)
    index = np.clip(pixels.astype(int) - 80, 0, 199)
    np.testing.assert_array_equal(dicom.decode_dicom(written(made)), np.round(curve[index] / 4095 * 255))
    modality = dataset(pixels, RescaleSlope="7", RescaleIntercept="0")
    modality.ModalityLUTSequence = look_up_table(curve, 80, 12)
    np.testing.assert_array_equal(dicom.decode_dicom(written(modality)), stretched(curve[index]))
    # As packed bytes, two to an entry.
    made.VOILUTSequence[0].add_new("LUTData", "OW", curve.tobytes())
    np.testing.assert_array_equal(dicom.decode_dicom(written(made)), np.round(curve[index] / 4095 * 255))


def test_eight_bit_tables_for_deep_pixels():
    pixels = (RAMP * 16).astype(np.uint16)
    made = dataset(pixels, stored=12)
    made.VOILUTSequence = look_up_table(255 - np.arange(4096) // 16, 0, 8)
    np.testing.assert_array_equal(dicom.decode_dicom(written(made)), 255 - RAMP)


def test_a_gray_jpeg_gives_the_pixels_of_pillow_and_pydicom():
    data, embedded = jpeg_file(RAMP.astype(np.uint8))
    decoded = dicom.decode_dicom(data)
    np.testing.assert_array_equal(decoded, np.asarray(Image.open(io.BytesIO(embedded))))
    np.testing.assert_array_equal(decoded, pydicom.dcmread(io.BytesIO(data)).pixel_array)
    np.testing.assert_array_equal(dicom.decode_dicom(jpeg_file(RAMP.astype(np.uint8), photometric="MONOCHROME1")[0]), 255 - decoded)  # fmt: skip


def test_colour_becomes_luma():
    colours = np.stack([RAMP, 253 - RAMP, RAMP // 2], axis=-1).astype(np.uint8)
    expected = np.asarray(Image.fromarray(colours).convert("L"), int)
    plain = dicom.decode_dicom(file_of(colours, photometric="RGB"))
    assert np.abs(plain.astype(int) - expected).max() <= 1
    data, embedded = jpeg_file(colours, photometric="YBR_FULL_422")
    expected = np.asarray(Image.open(io.BytesIO(embedded)).convert("L"), int)
    assert np.abs(dicom.decode_dicom(data).astype(int) - expected).max() <= 3


def test_palettes_are_looked_up():
    made = dataset((RAMP % 16).astype(np.uint8), photometric="PALETTE COLOR")
    for number, name in enumerate(("Red", "Green", "Blue")):
        setattr(made, f"{name}PaletteColorLookupTableDescriptor", [256, 0, 16])
        entries = (np.arange(256) * (number + 1) * 256).astype(np.uint16)
        setattr(made, f"{name}PaletteColorLookupTableData", entries.tobytes())
    level = RAMP % 16
    expected = 0.299 * level + 0.587 * 2 * level + 0.114 * 3 * level
    assert np.abs(dicom.decode_dicom(written(made)) - expected).max() <= 1


def test_embedded_jpegs_are_given_where_they_show_the_same():
    picture = RAMP.astype(np.uint8)
    for elements in (
        {},
        {"RescaleSlope": "1", "RescaleIntercept": "0"},
        {"WindowCenter": "128", "WindowWidth": "256"},
        {"WindowCenter": "127.5", "WindowWidth": "255", "VOILUTFunction": "LINEAR_EXACT"},
        {"RescaleSlope": "2", "RescaleIntercept": "10", "WindowCenter": "265.5", "WindowWidth": "511"},
    ):
        data, embedded = jpeg_file(picture, **elements)
        found = dicom.embedded_jpeg(data)
        assert found is not None
        assert found.removesuffix(b"\0") == embedded
        np.testing.assert_array_equal(images.decode_gray(found), dicom.decode_dicom(data))


@pytest.mark.parametrize(
    "elements",
    [
        {"photometric": "MONOCHROME1"},
        {"RescaleSlope": "2", "RescaleIntercept": "0"},
        {"WindowCenter": "100", "WindowWidth": "50"},
        {"VOILUTSequence": look_up_table(np.arange(256)[::-1], 0, 8)},
        {"PixelPaddingValue": 0},
    ],
)
def test_no_embedded_jpeg_where_the_pixels_would_differ(elements):
    assert dicom.embedded_jpeg(jpeg_file(RAMP.astype(np.uint8), **elements)[0]) is None
    assert dicom.embedded_jpeg(file_of(RAMP.astype(np.uint8))) is None
