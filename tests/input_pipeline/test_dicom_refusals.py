"""DICOM files that are refused, damaged, or hold names: one line each, and nothing of a header anywhere."""

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
from pydicom import uid
from pydicom.encaps import encapsulate, get_frame

from input_pipeline import dicom, images
from input_pipeline.errors import DataError, UserError

from .dicom_files import CANARY, RAMP, ROWS, dataset, file_of, jpeg_file, written


def test_several_frames_and_no_pixels_are_refused_with_the_way_out():
    pixels = RAMP.astype(np.uint8)
    frames = dataset(pixels, NumberOfFrames=2)
    frames.PixelData = pixels.tobytes() * 2
    bare = dataset(pixels)
    del bare.PixelData
    video = dataset(pixels, syntax=uid.MPEG2MPML)
    video.PixelData = encapsulate([b"\0" * 8])
    for made, words in (
        (frames, "2 frames; expected one"),
        (bare, "no pixel data"),
        (video, "MPEG2 Main Profile / Main Level, has no decoder"),
        (dataset(pixels, photometric="HSV"), "no known colours"),
        (dataset(pixels, RescaleSlope="0", RescaleIntercept="0"), "RescaleSlope is 0"),
        (dataset(pixels, WindowCenter="5", WindowWidth="0"), "width of 1 or more"),
        (dataset(pixels, Rows=0), "0 x 30 pixels"),
        (dataset(pixels, Rows=41), "damaged or truncated"),
    ):
        assert_refused(written(made), words)


@pytest.mark.parametrize(
    "syntax, words",
    [
        (uid.JPEGLosslessSV1, "pip install pylibjpeg pylibjpeg-libjpeg"),
        (uid.JPEG2000, "pip install pylibjpeg pylibjpeg-openjpeg"),
    ],
)
def test_a_decoder_that_is_not_installed_is_no_fault_of_the_file(monkeypatch, syntax, words):
    monkeypatch.setattr(type(pydicom.pixels.get_decoder(syntax)), "is_available", False)
    made = dataset(RAMP.astype(np.uint8), syntax=syntax)
    made.PixelData = encapsulate([b"\xff\xd8not a jpeg\xff\xd9"])
    with pytest.raises(UserError) as error:
        images.decode_gray(written(made))
    assert str(error.value).endswith(words)
    assert "\n" not in str(error.value)


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
