"""DICOM files written by pydicom, against levels worked out by hand, Pillow, and pydicom's own pixels and tables."""

import io
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pydicom import uid
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate, get_frame
from pydicom.pixels.processing import apply_modality_lut, apply_voi_lut

from input_pipeline import dicom, images
from input_pipeline.errors import DataError, UserError

ROWS, COLUMNS = 40, 30
RAMP = np.add.outer(np.arange(ROWS) * 5, np.arange(COLUMNS) * 2)  # 0 to 253
CANARY = "XK7CANARY"


def dataset(pixels, *, photometric="MONOCHROME2", stored=None, syntax=uid.ExplicitVRLittleEndian, **elements):
    """A dataset around pixels [H, W] or [H, W, 3] of any integer type; `stored` is BitsStored."""
    made = Dataset()
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = syntax
    made.SOPClassUID = uid.SecondaryCaptureImageStorage
    made.SOPInstanceUID = uid.generate_uid()
    made.Rows, made.Columns = pixels.shape[:2]
    made.SamplesPerPixel = 1 if pixels.ndim == 2 else 3
    if pixels.ndim == 3:
        made.PlanarConfiguration = 0
    made.PhotometricInterpretation = photometric
    made.BitsAllocated = 8 * pixels.itemsize
    made.BitsStored = stored or made.BitsAllocated
    made.HighBit = made.BitsStored - 1
    made.PixelRepresentation = int(pixels.dtype.kind == "i")
    made.PixelData = pixels.tobytes() + b"\0" * (pixels.nbytes % 2)
    made["PixelData"].VR = "OW" if pixels.itemsize > 1 else "OB"
    for keyword, value in elements.items():
        setattr(made, keyword, value)
    return made


def written(made):
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # damaged on purpose, some of them
        made.save_as(file, enforce_file_format=True)
    return file.getvalue()


def file_of(pixels, **options):
    return written(dataset(pixels, **options))


def jpeg_file(picture, **options):
    """A file whose one frame is a JPEG made by Pillow."""
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=90)
    made = dataset(picture, syntax=uid.JPEGBaseline8Bit, **options)
    made.PixelData = encapsulate([file.getvalue()])
    made["PixelData"].VR = "OB"
    made["PixelData"].is_undefined_length = True
    return written(made), file.getvalue()


def stretched(values, low=None, high=None):
    low, high = (values.min() if low is None else low), (values.max() if high is None else high)
    return np.round((np.clip(values.astype(float), low, high) - low) * 255 / (high - low))


def look_up_table(entries, first, bits):
    item = Dataset()
    item.LUTDescriptor = [len(entries) % 65536, first, bits]
    item.LUTData = [int(entry) for entry in entries]
    item["LUTData"].VR = "US"
    return pydicom.Sequence([item])


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


def test_several_frames_no_pixels_and_lossless_jpeg_are_refused_with_the_way_out():
    pixels = RAMP.astype(np.uint8)
    frames = dataset(pixels, NumberOfFrames=2)
    frames.PixelData = pixels.tobytes() * 2
    bare = dataset(pixels)
    del bare.PixelData
    lossless = dataset(pixels, syntax=uid.JPEGLosslessSV1)
    lossless.PixelData = encapsulate([b"\xff\xd8not a jpeg\xff\xd9"])
    video = dataset(pixels, syntax=uid.MPEG2MPML)
    video.PixelData = encapsulate([b"\0" * 8])
    for made, words in (
        (frames, "2 frames; expected one"),
        (bare, "no pixel data"),
        (lossless, "pip install pylibjpeg pylibjpeg-libjpeg"),
        (video, "MPEG2 Main Profile / Main Level, has no decoder"),
        (dataset(pixels, photometric="HSV"), "no known colours"),
        (dataset(pixels, RescaleSlope="0", RescaleIntercept="0"), "RescaleSlope is 0"),
        (dataset(pixels, WindowCenter="5", WindowWidth="0"), "width of 1 or more"),
        (dataset(pixels, Rows=0), "0 x 30 pixels"),
        (dataset(pixels, Rows=41), "damaged or truncated"),
    ):
        assert_refused(written(made), words)


def test_an_unknown_transfer_syntax_is_refused_without_its_name():
    data = file_of(RAMP.astype(np.uint8)).replace(b"1.2.840.10008.1.2.1\0", b"1.2.3.40.50.60.70.8\0")
    assert_refused(data, "transfer syntax has no decoder here; convert it")


def test_twelve_bit_jpeg_names_what_to_install():
    made = dataset(RAMP.astype(np.uint16), stored=12, syntax=uid.JPEGExtended12Bit)
    made.PixelData = encapsulate([b"\xff\xd8\xff\xd9"])
    assert_refused(written(made), "pip install pylibjpeg pylibjpeg-libjpeg")


def test_words_where_numbers_belong_are_refused_without_quoting_them():
    data = file_of(RAMP.astype(np.uint8), RescaleSlope="1.25", RescaleIntercept="0")
    for value in (b"1,25", b"nope", b"nan "):
        assert_refused(data.replace(b"1.25", value), "")


def assert_refused(data, words):
    with pytest.raises(DataError) as error:
        dicom.decode_dicom(data)
    assert words in str(error.value)
    assert "\n" not in str(error.value)
    assert "nope" not in str(error.value)


@pytest.mark.parametrize("data", [b"", b"DICM", b"\0" * 128 + b"DICM", b"\0" * 128 + b"DICM" + b"\xff" * 500])
def test_what_is_no_dicom_is_refused_in_one_line(data):
    for read in (dicom.decode_dicom, dicom.embedded_jpeg, images.decode_gray):
        with pytest.raises(DataError) as error:
            read(data)
        assert "\n" not in str(error.value)
    if len(data) < 132:
        with pytest.raises(DataError):
            dicom.header_values(data)


def test_deflated_files_are_refused_before_they_are_inflated():
    made = dataset(np.zeros((8000, 8000), np.uint8), syntax=uid.DeflatedExplicitVRLittleEndian)
    data = written(made)
    assert len(data) < 100_000
    assert_refused(data, "deflated")
    with pytest.raises(DataError, match="deflated"):
        dicom.header_values(data)


def test_too_many_pixels_are_refused_from_the_header_alone(monkeypatch):
    monkeypatch.setattr(dicom, "_stored_pixels", lambda *arguments: pytest.fail("decoded"))
    assert_refused(file_of(RAMP.astype(np.uint8), Rows=20_000, Columns=20_000), "20000 x 20000")
    data, _ = jpeg_file(RAMP.astype(np.uint8), Rows=20_000, Columns=20_000)
    assert_refused(data, "20000 x 20000")
    with pytest.raises(DataError, match="20000 x 20000"):
        dicom.embedded_jpeg(data)


def test_a_jpeg_of_another_size_than_the_header_says_is_refused():
    data, _ = jpeg_file(RAMP.astype(np.uint8), Rows=ROWS - 1)
    assert_refused(data, "no JPEG of the size that its header says")


@pytest.mark.parametrize("fraction", [0.3, 0.7, 0.95, 0.99])
def test_truncated_files_are_refused(fraction):
    for data in (file_of(RAMP.astype(np.uint8)), jpeg_file(RAMP.astype(np.uint8))[0]):
        assert_refused(data[: int(len(data) * fraction)], "")


FUZZED = [
    file_of(
        (RAMP[:8, :12] * 16).astype(np.uint16), stored=12, WindowCenter="2000", WindowWidth="900", PixelPaddingValue=3
    ),
    jpeg_file(RAMP[:16, :16].astype(np.uint8), RescaleSlope="1", RescaleIntercept="0")[0],
    file_of(np.stack([RAMP[:8, :8]] * 3, axis=-1).astype(np.uint8), photometric="RGB"),
]


@given(st.sampled_from(FUZZED), st.lists(st.tuples(st.integers(132, 2**16), st.integers(0, 255)), max_size=8))
def test_damaged_files_decode_or_are_refused_but_raise_nothing_else(data, damages):
    damaged = bytearray(data)
    for position, value in damages:
        damaged[132 + position % (len(data) - 132)] = value
    for read in (dicom.decode_dicom, dicom.embedded_jpeg, dicom.header_values):
        try:
            result = read(bytes(damaged))
        except DataError:
            continue
        if isinstance(result, np.ndarray):
            assert result.dtype == np.uint8
            assert result.ndim == 2


@given(st.binary(max_size=300))
def test_garbage_after_the_mark_is_refused(garbage):
    with pytest.raises(DataError):
        dicom.decode_dicom(b"\0" * 128 + b"DICM" + garbage)


def test_a_truncated_jpeg_is_refused_as_everywhere():
    made = pydicom.dcmread(io.BytesIO(jpeg_file(RAMP.astype(np.uint8))[0]))
    frame = get_frame(made.PixelData, 0, number_of_frames=1)
    made.PixelData = encapsulate([frame[:-60]])
    assert_refused(written(made), "truncated")


CANARIES = [
    *("PatientName", "PatientID", "OtherPatientIDs", "PatientComments", "PatientAddress"),
    *("EthnicGroup", "Occupation", "AdditionalPatientHistory", "AdmissionID", "InstitutionName"),
    *("InstitutionAddress", "StationName", "AccessionNumber", "StudyID", "StudyDescription"),
    *("SeriesDescription", "ReferringPhysicianName", "PerformingPhysicianName", "OperatorsName", "RequestingPhysician"),
    *("ImageComments", "ProtocolName", "DeviceSerialNumber", "PatientMotherBirthName", "MedicalRecordLocator"),
    *(
        "CurrentPatientLocation",
        "PatientReligiousPreference",
        "RequestedProcedureDescription",
        "ReasonForStudy",
        "InterpretationText",
    ),
]


def planted():
    pixels = (RAMP * 16).astype(np.uint16)
    made = dataset(
        pixels, stored=12, PatientAge="051Y", PatientSex="F", ViewPosition="PA", PixelSpacing=["0.139", "0.14"]
    )
    for number, keyword in enumerate(CANARIES):
        setattr(made, keyword, f"{CANARY}{number}")
    made.StudyDate, made.PatientBirthDate = "20011231", "19501231"
    return made


def test_header_values_are_the_allow_list_and_nothing_else():
    assert len(CANARIES) == 30
    data = written(planted())
    assert data.count(CANARY.encode()) == 30
    assert dicom.header_values(data) == {
        "age": 51.0,
        "sex": "F",
        "view_position": "PA",
        "pixel_spacing": (0.139, 0.14),
        "photometric_interpretation": "MONOCHROME2",
    }


@pytest.mark.parametrize(("age", "years"), [("51", 51), ("006M", 0.5), ("058Y", 58), ("010D", 10 / 365.25)])
def test_ages_in_years(age, years):
    made = planted()
    made.add_new("PatientAge", "AS", age)
    assert dicom.header_values(written(made))["age"] == pytest.approx(years)


def test_free_text_in_the_five_values_is_left_out():
    made = planted()
    for keyword in ("PatientAge", "PatientSex", "ViewPosition", "PhotometricInterpretation"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            setattr(made, keyword, CANARY)
    made.PixelSpacing = ["1"]
    assert dicom.header_values(written(made)) == {}
    assert dicom.header_values(file_of(RAMP.astype(np.uint8))) == {"photometric_interpretation": "MONOCHROME2"}


def test_nothing_of_the_header_reaches_errors_logs_warnings_or_pixels(tmp_path):
    data = written(planted())
    damaged = data.replace(b"20011231", CANARY.encode()[:8]).replace(b"051Y", CANARY.encode()[:4])
    places = (len(data) // 3, len(data) // 2, 400, 700, 1000)
    for number, content in enumerate([data, damaged, data[:-9], damaged[:600], *(data[:p] + b"\xff" + data[p:] for p in places)]):  # fmt: skip
        (tmp_path / f"{number}.bin").write_bytes(content)
    script = """
import logging, pathlib, sys, warnings
logging.basicConfig(level=logging.DEBUG)
warnings.simplefilter("always")
from input_pipeline import dicom
for file in sorted(pathlib.Path(sys.argv[1]).glob("*.bin")):
    for read in (dicom.decode_dicom, dicom.embedded_jpeg, dicom.header_values):
        try:
            result = read(file.read_bytes())
            print(result if isinstance(result, dict) else type(result))
        except Exception as error:
            print(type(error).__name__, error)
            assert error.__cause__ is None and error.__suppress_context__ or error.__context__ is None
"""
    root = Path(dicom.__file__).parents[1]
    run = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True, cwd=root
    )
    assert run.stdout.count("DataError") >= 3
    assert CANARY[:4] not in run.stdout + run.stderr


def test_without_pydicom_the_extra_is_named(monkeypatch):
    data = file_of(RAMP.astype(np.uint8))
    monkeypatch.setitem(sys.modules, "pydicom", None)
    dicom._pydicom.cache_clear()
    for read in (images.decode_gray, dicom.embedded_jpeg, dicom.header_values):
        with pytest.raises(UserError, match=r"pip install 'msfl_jax\[dicom\]'") as error:
            read(data)
        assert "\n" not in str(error.value)


def test_pydicom_is_imported_only_for_dicom_files():
    code = "import sys, input_pipeline.images, input_pipeline.dicom\nprint('pydicom' in sys.modules)"
    root = Path(dicom.__file__).parents[1]
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert result.stdout.strip() == "False"


def test_a_real_file_and_its_monochrome1_variant_are_each_others_negative(real_data):
    files = sorted((real_data / "siim_acr").glob("*.dcm"))
    original, variant = (file.read_bytes() for file in files)
    assert files[1].name.startswith("Fake")
    shown = dicom.decode_dicom(original)
    assert shown.shape == (1024, 1024)
    np.testing.assert_array_equal(shown, pydicom.dcmread(files[0]).pixel_array)
    np.testing.assert_array_equal(dicom.decode_dicom(variant), 255 - shown)
    embedded = dicom.embedded_jpeg(original)
    assert embedded is not None
    np.testing.assert_array_equal(images.decode_gray(embedded), shown)
    assert dicom.embedded_jpeg(variant) is None
    for data, photometric in ((original, "MONOCHROME2"), (variant, "MONOCHROME1")):
        values = dicom.header_values(data)
        assert values["photometric_interpretation"] == photometric
        assert values["pixel_spacing"] == (0.168, 0.168)
        assert values["view_position"] == "PA"
        assert set(values) <= {"age", "sex", "view_position", "pixel_spacing", "photometric_interpretation"}
