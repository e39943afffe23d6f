"""Files on disk: PhysioNet's layout and columns, disjoint patients, masks that round-trip, bytes that depend on the seed alone."""

import csv
import gzip
import re
from collections import defaultdict

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from input_pipeline.datasets.synthetic import FINDINGS, synthesize
from input_pipeline.datasets.synthetic.findings import box_of, draw_frontal
from input_pipeline.datasets.synthetic.study import plan_studies
from input_pipeline.datasets.synthetic.tables import encode_rle
from input_pipeline.errors import UserError

COUNTS = {"studies": 150, "validate": 30, "test": 40}
SEED = 7


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A study of 80 + 30 + 40 at 64 px, written by this process."""
    path = tmp_path_factory.mktemp("synthetic") / "study"
    summary = synthesize(path, seed=SEED, size=64, workers=1, progress=False, **COUNTS)
    assert summary.splits == {"train": 80, "validate": 30, "test": 40}
    assert summary.studies == 150
    assert set(summary.findings) == set(FINDINGS)
    return path


def table(path):
    """Rows of a plain or compressed CSV as dictionaries, and its header."""
    data = path.read_bytes()
    text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode()
    reader = csv.DictReader(text.splitlines())
    return list(reader), reader.fieldnames or []


def loop_decode(text, height, width):
    """SIIM's relative run lengths pixel by pixel: down the columns, each start counted from the end of the last run."""
    mask, position = np.zeros((height, width), bool), 0
    numbers = [int(number) for number in text.split()]
    for skip, length in zip(numbers[::2], numbers[1::2], strict=True):
        position += skip
        for _ in range(length):
            mask[position % height, position // height] = True
            position += 1
    return mask


def test_headers_are_those_that_physionet_and_siim_ship(folder):
    expected = {
        "mimic-cxr-2.0.0-split.csv.gz": "dicom_id,study_id,subject_id,split",
        "mimic-cxr-2.0.0-metadata.csv.gz": "dicom_id,subject_id,study_id,PerformedProcedureStepDescription,ViewPosition,Rows,Columns,"
        "StudyDate,StudyTime,ProcedureCodeSequence_CodeMeaning,ViewCodeSequence_CodeMeaning,PatientOrientationCodeSequence_CodeMeaning",
        "mimic-cxr-2.0.0-chexpert.csv.gz": "subject_id,study_id,Atelectasis,Cardiomegaly,Consolidation,Edema,Enlarged Cardiomediastinum,"
        "Fracture,Lung Lesion,Lung Opacity,No Finding,Pleural Effusion,Pleural Other,Pneumonia,Pneumothorax,Support Devices",
        "MS_CXR_Local_Alignment_v1.1.0.csv": "category_name,label_text,path,dicom_id,x,y,w,h,image_width,image_height,split",
        "train-rle.csv": "ImageId, EncodedPixels",
    }
    for name, header in expected.items():
        assert ",".join(table(folder / name)[1]) == header


def test_every_image_lies_where_the_tables_say_and_decodes_as_grey(folder):
    metadata = table(folder / "mimic-cxr-2.0.0-metadata.csv.gz")[0]
    paths = (folder / "IMAGE_FILENAMES").read_text().splitlines()
    expected = [
        f"files/p{r['subject_id'][:2]}/p{r['subject_id']}/s{r['study_id']}/{r['dicom_id']}.jpg" for r in metadata
    ]
    assert paths == expected
    assert sorted(paths) == sorted(str(path.relative_to(folder)) for path in (folder / "files").rglob("*.jpg"))
    for path, row in zip(paths, metadata, strict=True):
        assert re.fullmatch(r"files/p1\d/p1\d{7}/s5\d{7}/[0-9a-f]{8}(-[0-9a-f]{8}){4}\.jpg", path)
        image = cv2.imdecode(np.frombuffer((folder / path).read_bytes(), np.uint8), cv2.IMREAD_UNCHANGED)
        assert image is not None
        assert image.shape == (int(row["Rows"]), int(row["Columns"])) == (64, 64)


def test_views_are_one_frontal_per_study_and_a_share_of_laterals(folder):
    views = defaultdict(list)
    for row in table(folder / "mimic-cxr-2.0.0-metadata.csv.gz")[0]:
        views[row["study_id"]].append(row["ViewPosition"])
    assert len(views) == 150
    assert all(one[0] in ("PA", "AP") and one[1:] in ([], ["LATERAL"]) for one in views.values())
    assert 0.07 < np.mean([len(one) == 2 for one in views.values()]) < 0.25


def test_no_patient_is_in_two_splits(folder):
    rows = table(folder / "mimic-cxr-2.0.0-split.csv.gz")[0]
    studies, patients = defaultdict(set), defaultdict(set)
    for row in rows:
        studies[row["split"]].add(row["study_id"])
        patients[row["split"]].add(row["subject_id"])
    assert {split: len(found) for split, found in studies.items()} == {"train": 80, "validate": 30, "test": 40}
    assert sum(map(len, patients.values())) == len(set().union(*patients.values())) < 150


def test_each_study_has_a_report_in_its_patients_folder(folder):
    rows = table(folder / "mimic-cxr-2.0.0-split.csv.gz")[0]
    expected = {f"files/p{r['subject_id'][:2]}/p{r['subject_id']}/s{r['study_id']}.txt" for r in rows}
    reports = folder / "mimic-cxr-reports"
    assert {str(path.relative_to(reports)) for path in reports.rglob("*.txt")} == expected


def test_labels_say_present_denied_or_nothing(folder):
    rows = table(folder / "mimic-cxr-2.0.0-chexpert.csv.gz")[0]
    plan = plan_studies(COUNTS["studies"], SEED, validate=COUNTS["validate"], test=COUNTS["test"])
    assert len(rows) == 150
    for index, row in enumerate(rows):
        present = {finding.name for finding in plan.study(index).findings}
        assert {name for name in FINDINGS if row[name] == "1.0"} == present
        assert (row["No Finding"] == "1.0") == (not present)
        assert (row["Lung Opacity"] == "1.0") == ("Pneumonia" in present)
        assert {row[name] for name in FINDINGS} <= {"1.0", "0.0", ""}
    assert sum(row[name] == "0.0" for row in rows for name in FINDINGS) > 150


def test_boxes_are_those_of_the_masks_with_a_sentence_of_the_report(folder):
    rows = table(folder / "MS_CXR_Local_Alignment_v1.1.0.csv")[0]
    plan = plan_studies(COUNTS["studies"], SEED, validate=COUNTS["validate"], test=COUNTS["test"])
    studies = {study.dicom_id(study.view): study for study in map(plan.study, range(80, 150))}
    by_image = defaultdict(list)
    for row in rows:
        study = studies[row["dicom_id"]]
        assert row["split"] == {"validate": "val", "test": "test"}[study.split]
        assert (folder / row["path"]).name == f"{row['dicom_id']}.jpg"
        report = (
            folder
            / "mimic-cxr-reports"
            / f"files/p{str(study.subject_id)[:2]}/p{study.subject_id}/s{study.study_id}.txt"
        )
        assert row["label_text"] in " ".join(report.read_text().split())
        by_image[row["dicom_id"]].append((row["category_name"], *(int(row[key]) for key in "xywh")))
    for dicom_id, study in studies.items():
        masks = [(study.findings[position].name, *box_of(mask)) for position, mask in draw_frontal(study, 64).masks]
        assert by_image[dicom_id] in ([box for box in masks if box[0] != "Support Devices"], [])
    assert len(by_image) > 25
    assert {row["category_name"] for row in rows} == set(FINDINGS) - {"Support Devices"}


def test_pneumothorax_masks_decode_to_what_was_drawn(folder):
    rows = table(folder / "train-rle.csv")[0]
    plan = plan_studies(COUNTS["studies"], SEED, validate=COUNTS["validate"], test=COUNTS["test"])
    assert len(rows) == 150
    for row, study in zip(rows, map(plan.study, range(150)), strict=True):
        assert row["ImageId"] == study.dicom_id(study.view)
        positions = [position for position, finding in enumerate(study.findings) if finding.name == "Pneumothorax"]
        if positions:
            mask = dict(draw_frontal(study, 64).masks)[positions[0]]
            np.testing.assert_array_equal(loop_decode(row[" EncodedPixels"], 64, 64), mask)
        else:
            assert row[" EncodedPixels"] == " -1"


@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**32 - 1), st.floats(0, 1))
def test_run_lengths_round_trip(height, width, seed, density):
    mask = np.random.default_rng(seed).random((height, width)) < density
    text = encode_rle(mask)
    if mask.any():
        np.testing.assert_array_equal(loop_decode(text, height, width), mask)
    else:
        assert text == " -1"


def test_two_workers_write_the_same_bytes_as_one(folder, tmp_path):
    synthesize(tmp_path / "again", seed=SEED, size=64, workers=2, progress=False, **COUNTS)
    files = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    assert files == sorted(
        path.relative_to(tmp_path / "again") for path in (tmp_path / "again").rglob("*") if path.is_file()
    )
    for path in files:
        assert (folder / path).read_bytes() == (tmp_path / "again" / path).read_bytes(), path


def test_another_seed_writes_other_patients_and_images(folder, tmp_path):
    synthesize(tmp_path / "other", studies=10, seed=SEED + 1, size=64, workers=1, progress=False)
    names = [{path.name for path in one.rglob("*.jpg")} for one in (folder, tmp_path / "other")]
    assert not names[0] & names[1]


def test_default_shares_are_76_12_12(tmp_path):
    summary = synthesize(tmp_path / "study", studies=50, seed=0, size=32, workers=1, progress=False)
    assert summary.splits == {"train": 38, "validate": 6, "test": 6}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"studies": 0}, "at least 1 to train"),
        ({"studies": 10, "validate": 6, "test": 6}, "at least 1 to train"),
        ({"studies": 10, "size": 8}, "at least 32 pixels"),
        ({"studies": 10, "workers": 0}, "at least 1"),
        ({"studies": 10, "seed": -1}, "0 or more"),
    ],
)
def test_impossible_requests_are_refused_in_one_line(tmp_path, arguments, message):
    with pytest.raises(UserError, match=message) as caught:
        synthesize(tmp_path / "study", **({"seed": 0, "progress": False} | arguments))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "study").exists()


def test_a_folder_in_use_is_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="not an empty folder"):
        synthesize(tmp_path, studies=5, seed=0, progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_an_interrupted_run_leaves_no_study_behind_and_can_be_repeated(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(cv2, "imencode", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            synthesize(tmp_path / "study", studies=5, seed=0, size=32, workers=1, progress=False)
    assert not (tmp_path / "study").exists()
    synthesize(tmp_path / "study", studies=5, seed=0, size=32, workers=1, progress=False)
    assert (tmp_path / "study" / "IMAGE_FILENAMES").exists()
    assert len(list(tmp_path.iterdir())) == 1
