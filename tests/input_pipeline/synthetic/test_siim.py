"""Synthetic SIIM-ACR: the challenge's files to the letter, read by the existing source, with the phantom's own masks."""

import csv

import cv2
import numpy as np
import pydicom
import pytest
from numpy.testing import assert_array_equal

from input_pipeline.build import build
from input_pipeline.datasets.releases import SplitChoice, detect, siim_acr
from input_pipeline.datasets.siim_acr import SiimAcr
from input_pipeline.datasets.synthetic.findings import draw_frontal
from input_pipeline.datasets.synthetic.siim import choose_studies, synthesize_siim
from input_pipeline.datasets.synthetic.study import plan_studies
from input_pipeline.errors import UserError
from input_pipeline.images import decode_gray, decode_mask
from input_pipeline.reading import open_split

IMAGES, POSITIVES = 12, 5


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("siim") / "release"
    summary = synthesize_siim(path, images=IMAGES, seed=3, positives=0.4, workers=1)
    assert (summary.images, summary.positives) == (IMAGES, POSITIVES)
    return path


@pytest.fixture(scope="module")
def studies():
    return choose_studies(IMAGES, POSITIVES, 2**31 + 3)


def test_files_lie_and_read_as_the_challenges(folder):
    files = sorted((folder / "dicom-images-train").glob("*/*/*.dcm"))
    assert len(files) == IMAGES
    for file in files[:3]:
        read = pydicom.dcmread(file)
        assert read.file_meta.TransferSyntaxUID == pydicom.uid.JPEGBaseline8Bit
        assert (read.Rows, read.Columns, read.PhotometricInterpretation) == (1024, 1024, "MONOCHROME2")
        assert (read.SOPInstanceUID, read.StudyInstanceUID) == (file.stem, file.parent.parent.name)
        assert read.pixel_array.shape == (1024, 1024)
        assert "WindowCenter" not in read
    with open(folder / "train-rle.csv") as table:
        header, *rows = csv.reader(table)
    assert header == ["ImageId", " EncodedPixels"]
    assert sorted(row[0] for row in rows) == sorted(file.stem for file in files)
    assert sum(row[1] == " -1" for row in rows) == IMAGES - POSITIVES


def test_images_and_masks_are_the_phantoms(folder, studies):
    source = SiimAcr(folder)
    rows = source.scan().rows["train"]
    drawn = [draw_frontal(study, 256) for study in studies]
    small = [cv2.resize(decode_gray(source.image(row)), (256, 256), interpolation=cv2.INTER_AREA) for row in rows]
    seen = set()
    for row, image in zip(rows, small, strict=True):
        distance = [np.abs(image.astype(float) - drawing.image).mean() for drawing in drawn]
        place = int(np.argmin(distance))
        assert distance[place] < 4
        seen.add(place)
        names = [finding.name for finding in studies[place].findings]
        masks = [mask for position, mask in drawn[place].masks if names[position] == "Pneumothorax"]
        expected = masks[0] if masks else np.zeros((256, 256), bool)
        assert_array_equal(source.mask(row, 1024, 1024), expected.repeat(4, axis=0).repeat(4, axis=1))
        assert row.labels == (float("Pneumothorax" in names),)
    assert len(seen) == IMAGES


def test_it_becomes_a_build_with_masks_and_splits(folder, tmp_path):
    assert isinstance(detect(folder), SiimAcr)
    choice = SplitChoice(validation=0.25, test=0.25, fractions=(0.5,), seeds=(0,))
    build(siim_acr(folder, choice), tmp_path / "build", short_side=64, workers=1, progress=False)
    sizes = {split: len(open_split(tmp_path / "build", split)) for split in ("train", "validate", "test")}
    assert sum(sizes.values()) == IMAGES
    assert min(sizes.values()) >= 1
    for record in open_split(tmp_path / "build", "train"):
        assert record.original_size == (1024, 1024)
        assert decode_mask(record.mask).any() == (record.labels[0] == 1)


def test_patients_are_others_than_those_of_the_pretraining_study_and_come_once(studies):
    pretraining = plan_studies(400, 3)
    theirs = {pretraining.study(index).patient for index in range(400)}
    ours = [study.patient for study in studies]
    assert len(set(ours)) == IMAGES
    assert not theirs & set(ours)


def test_bytes_follow_from_the_seed(folder, tmp_path):
    synthesize_siim(tmp_path / "again", images=IMAGES, seed=3, positives=0.4, workers=1)
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        assert (tmp_path / "again" / file.relative_to(folder)).read_bytes() == file.read_bytes()
    synthesize_siim(tmp_path / "other", images=2, seed=4, workers=1)
    assert not {path.stem for path in (tmp_path / "other").rglob("*.dcm")} & {
        path.stem for path in folder.rglob("*.dcm")
    }


@pytest.mark.parametrize("options", [{"images": 0}, {"seed": -1}, {"positives": 1.5}, {"workers": 0}])
def test_numbers_out_of_range_are_refused_in_one_line(tmp_path, options):
    with pytest.raises(UserError, match=r"^found [^\n]*; expected [^\n]*$"):
        synthesize_siim(tmp_path / "x", **{"images": 2, "seed": 0, "workers": 1, **options})
    assert not (tmp_path / "x").exists()


def test_a_folder_with_something_in_it_is_left_alone(folder):
    with pytest.raises(UserError, match="not an empty folder"):
        synthesize_siim(folder, images=2, seed=0, workers=1)
