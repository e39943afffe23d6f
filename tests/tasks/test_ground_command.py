"""`msfl ground` with a model that sees grey squares: which file, sentence and box goes where, what is printed, and what is refused."""

import json
import sys
from io import BytesIO

import cv2
import numpy as np
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

from input_pipeline.errors import DataError, UserError
from input_pipeline.loader import grounding_records
from msfl_jax.cli import main
from msfl_jax.commands.ground import Peak, ground_report, parse_boxes, peak, zone

EDEMA, PNEUMONIA = 230, 110  # grey levels that the planted model knows
NAME = "p10000032"  # stands for a patient in a path


@pytest.fixture
def picture():
    """Edema in the image's lower left, pneumonia in its upper right."""
    image = np.zeros((64, 64), np.uint8)
    image[48:64, 0:16] = EDEMA
    image[0:16, 48:64] = PNEUMONIA
    return image


@pytest.fixture(autouse=True)
def opened(planted_run, monkeypatch):
    monkeypatch.setattr("msfl_jax.commands.ground.open_run", lambda workdir: planted_run)


def dicom_of(pixels, view):
    made = Dataset()
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    made.SOPClassUID, made.SOPInstanceUID = SecondaryCaptureImageStorage, generate_uid()
    made.Rows, made.Columns = pixels.shape
    made.SamplesPerPixel, made.PhotometricInterpretation, made.PixelRepresentation = 1, "MONOCHROME2", 0
    made.BitsAllocated = made.BitsStored = 8
    made.HighBit = 7
    made.ViewPosition = view
    made.PixelData = pixels.tobytes()
    made["PixelData"].VR = "OB"
    file = BytesIO()
    made.save_as(file, enforce_file_format=True)
    return file.getvalue()


def write(image, folder, kind):
    file = folder / f"{NAME}.{kind}"
    file.write_bytes(dicom_of(image, "PA") if kind == "dcm" else cv2.imencode(f".{kind}", image)[1].tobytes())
    return file


def rows(text):
    """Table rows as words."""
    return [line.split() for line in text.split("\n\n")[1].splitlines()[1:]]


@pytest.mark.parametrize("kind", ["png", "jpg", "dcm"])
def test_a_phrase_is_found_in_every_kind_of_file(picture, tmp_path, kind):
    file, out = write(picture, tmp_path, kind), tmp_path / "new" / "one.png"
    text = ground_report(tmp_path, image=file, phrase="Edema is seen.", sigma=0.0, out=out)
    assert "image of 64 x 64 pixels; similarity is a cosine" in text
    row = rows(text)[0]
    assert row[:5] == ["1", *row[1:3], "right", "lower"]
    assert int(row[1].rstrip(",")) < 16
    assert int(row[2]) >= 48
    assert row[6:] == ["Edema", "is", "seen."]
    assert text.endswith(f"overlay  {out}")
    assert cv2.imread(str(out)) is not None
    assert NAME not in text


def test_each_sentence_of_a_report_has_its_row_and_its_own_boxes(picture, tmp_path):
    (tmp_path / "report.txt").write_text(
        "Findings: There is edema.\nImpression: Pneumonia is seen. The heart is normal."
    )
    text = ground_report(
        tmp_path,
        image=write(picture, tmp_path, "png"),
        report=tmp_path / "report.txt",
        boxes=["1:0,48,16,16", "2:0,0,5,5", "2:8,8,4.5,4"],
        sigma=0.0,
        out=tmp_path / "out.png",
    )
    found = rows(text)
    assert [(row[0], *row[3:5], row[6]) for row in found[:2]] == [
        ("1", "right", "lower", "yes"),
        ("2", "left", "upper", "no"),
    ]
    assert [" ".join(row[7:]) for row in found[:2]] == ["There is edema.", "Pneumonia is seen."]
    assert found[2][6:] == ["The", "heart", "is", "normal."]  # no box is known
    assert (tmp_path / "out.png").stat().st_size > 10_000


def test_a_lateral_view_has_no_zones(picture, tmp_path):
    (tmp_path / "l.dcm").write_bytes(dicom_of(picture, "LATERAL"))
    text = ground_report(tmp_path, image=tmp_path / "l.dcm", phrase="Edema.", out=tmp_path / "o.png")
    assert rows(text)[0][3] == "-"


def test_a_record_brings_its_image_phrases_and_boxes(boxes_build, tmp_path):
    number = 3
    records = grounding_records(boxes_build, "test")
    same = [one for one in records if one.image_key == records[number].image_key]
    text = ground_report(tmp_path, data=boxes_build, record=number, sigma=0.0, out=tmp_path / "o.png")
    assert len(rows(text)) == len(same)
    assert [" ".join(row[7:]) for row in rows(text)] == [one.sentences[0] for one in same]
    assert {row[6] for row in rows(text)} == {"yes"}


def test_a_record_of_a_report_has_its_sentences_and_no_boxes(labelled_build, tmp_path):
    text = ground_report(tmp_path, data=labelled_build, record=0, out=tmp_path / "o.png")
    assert "in a box" not in text
    assert rows(text)[0][-4:] == ["The", "heart", "is", "normal."]


def test_the_peak_is_the_hottest_pixel_and_of_a_plateau_its_middle():
    heat = np.full((5, 7), np.nan)
    heat[1:4, 1:6] = 0.0
    heat[2, 2:5] = 1.5
    assert peak(heat) == Peak(2, 3, 1.5)


@pytest.mark.parametrize(
    ("row", "column", "view", "expected"),
    [
        (0, 0, "PA", "right upper"),
        (49, 99, "AP", "left middle"),
        (89, 50, "", "midline lower"),
        (30, 44, "pa", "midline middle"),
        (29, 43, "", "right upper"),
        (89, 56, "", "left lower"),
        (0, 0, "LATERAL", "-"),
    ],
)
def test_zones_are_of_the_patients_side_and_thirds_of_the_height(row, column, view, expected):
    assert zone(Peak(row, column, 1.0), (90, 100), view) == expected


def test_boxes_belong_to_their_sentence():
    found = parse_boxes(["2:1,2,3,4", "1: 5,6,7.5,8", "2:0,0,1,1"], 3)
    assert [one.tolist() for one in found] == [[[5, 6, 7.5, 8]], [[1, 2, 3, 4], [0, 0, 1, 1]], []]
    assert parse_boxes(["1,2,3,4"], 1)[0].tolist() == [[1, 2, 3, 4]]
    assert parse_boxes([], 2)[1].shape == (0, 4)
    for text, sentences in (("1,2,3", 1), ("1,2,3,0", 1), ("a,2,3,4", 1), ("nan,2,3,4", 1), ("x:1,2,3,4", 1)):
        with pytest.raises(UserError, match="expected x,y,w,h in pixels"):
            parse_boxes([text], sentences)
    for text in ("3:1,2,3,4", "0:1,2,3,4", "1,2,3,4"):
        with pytest.raises(UserError, match="of no sentence; expected 1: to 2:"):
            parse_boxes([text], 2)


def test_what_does_not_fit_together_or_cannot_be_read_is_one_line_without_the_path(picture, boxes_build, tmp_path):
    image, absent = write(picture, tmp_path, "png"), tmp_path / f"{NAME}_absent.dcm"
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / f"{NAME}.txt").write_text("no image")
    cases = [
        ({}, UserError, 'expected IMAGE "phrase"'),
        ({"image": image}, UserError, 'expected IMAGE "phrase"'),
        ({"image": image, "phrase": "a", "report": image}, UserError, 'expected IMAGE "phrase"'),
        ({"image": image, "phrase": "a", "data": boxes_build}, UserError, "--data beside an image"),
        ({"image": absent, "phrase": "edema"}, UserError, "IMAGE: cannot be read"),
        ({"image": image, "report": absent}, UserError, "--report: cannot be read"),
        ({"image": image, "report": tmp_path / "empty.txt"}, UserError, "--report: no findings"),
        ({"image": tmp_path / f"{NAME}.txt", "phrase": "edema"}, DataError, "neither JPEG nor PNG nor DICOM"),
        ({"data": boxes_build, "record": 20}, UserError, "has 20 records; expected 0 to 19"),
        ({"data": boxes_build, "split": "train"}, UserError, "no split 'train'"),
        ({"image": image, "phrase": "edema", "protocol": "biovll"}, UserError, "did you mean 'biovil'"),
        ({"image": image, "phrase": "edema", "out": tmp_path / "empty.txt" / "o.png"}, UserError, "--out: cannot"),
    ]
    for options, kind, message in cases:
        with pytest.raises(kind, match=message) as error:
            ground_report(tmp_path, **({"out": tmp_path / "o.png"} | options))
        assert "\n" not in str(error.value)
        assert NAME not in str(error.value)
    assert not (tmp_path / "o.png").exists()


def test_the_command_takes_its_options_and_logs_no_text(picture, tmp_path, monkeypatch, capsys, caplog):
    out = tmp_path / "o.png"
    arguments = ["ground", write(picture, tmp_path, "png"), "Edema is seen.", "--run", "r", "--out", out]
    monkeypatch.setattr(sys, "argv", ["msfl", *map(str, arguments), "--boxes", "1,2,3,4", "--boxes", "5,6,7,8"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert not stop.value.code
    printed = capsys.readouterr()
    assert rows(printed.out)[0][6] == "no"
    assert printed.err == ""
    assert caplog.text == ""
    assert json.dumps(sorted(file.name for file in tmp_path.iterdir())) == json.dumps(sorted([f"{NAME}.png", "o.png"]))
