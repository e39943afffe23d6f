"""NIH's tables are read whatever their vintage, and its boxes stay on their images."""

import csv
import gzip
from collections import Counter

import cv2
import numpy as np
import pytest
from PIL import Image

from input_pipeline.build import build
from input_pipeline.datasets.labelled import SplitPlan
from input_pipeline.datasets.nih_chestxray14 import LABEL_NAMES, NihBoxes, NihChestXray14
from input_pipeline.errors import DataError, MsflError, UserError
from input_pipeline.images import decode_gray
from input_pipeline.reading import grounding_records, open_split

BEFORE_SPACING = "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient {},View Position,"
HEADERS = {
    "2017": BEFORE_SPACING.format("Gender") + "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y],",
    "2017 old": BEFORE_SPACING.format("Gender") + "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y],",
    "v2020": BEFORE_SPACING.format("Sex") + "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]",
}
AGES = {"2017": "58", "2017 old": "058Y", "v2020": "58"}
FINDINGS = {
    "00000001_000.png": "Cardiomegaly",
    "00000001_001.png": "Cardiomegaly|Emphysema",
    "00000002_000.png": "No Finding",
    "00000003_000.png": "Pleural_Thickening|Hernia|Infiltration",
    "00000013_026.png": "Effusion|Edema",
}
BOX_HEADER = "Image Index,Finding Label,Bbox [x,y,w,h],,,"
BOXES = (
    ("00000003_000.png", "Infiltrate", 220.123456789012, 540.987654321098, 80.1234567890123, 70.1234567890123),
    ("00000013_026.png", "Effusion", 10.5, 20.25, 30.0, 40.0),
    ("00000003_000.png", "Infiltrate", 680.5, 130.5, 180.25, 310.75),
    ("00000003_000.png", "Atelectasis", 1.0, 2.0, 3.0, 4.0),
)


def write_labels(path, vintage="2017", findings=FINDINGS):
    end = "," if HEADERS[vintage].endswith(",") else ""
    lines = [
        f"{image},{labels},{int(image[9:12])},{int(image[:8])},{AGES[vintage]},M,PA,2682,2749,0.143,0.143{end}"
        for image, labels in findings.items()
    ]
    text = "\n".join([HEADERS[vintage], *lines]) + "\n"
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())


def write_boxes(path, boxes=BOXES, end=",,,"):
    """As released: the header has nine fields, and rows may lack its empty ones."""
    lines = [",".join(map(str, box)) + end for box in boxes]
    path.write_text("\n".join([BOX_HEADER, *lines]) + "\n")


def write_image(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), pixels)


@pytest.fixture
def root(tmp_path):
    """The labels and lists, with images in two of the archives' folders, one of them RGBA and one missing."""
    folder = tmp_path / "nih"
    folder.mkdir()
    write_labels(folder / "Data_Entry_2017.csv")
    write_boxes(folder / "BBox_List_2017.csv")
    (folder / "train_val_list.txt").write_bytes(b"00000001_000.png\r\n00000001_001.png\r\n00000002_000.png")
    (folder / "test_list.txt").write_bytes(b"00000003_000.png\n00000099_000.png\n")
    rng = np.random.default_rng(0)
    for place, image in enumerate(list(FINDINGS)[:4]):
        grey = cv2.GaussianBlur(rng.integers(0, 256, (60, 50), dtype=np.uint8), (0, 0), 2)
        pixels = cv2.merge([grey, grey, grey, np.full_like(grey, 255)]) if place == 1 else grey
        write_image(folder / f"images_{place // 2 + 1:03d}" / "images" / image, pixels)
    (folder / "images_001" / "images" / "00000001_000.png").unlink()
    return folder


def refusal(source, kind: type[MsflError] = UserError):
    with pytest.raises(kind) as error:
        source.scan()
    message = str(error.value)
    assert "\n" not in message
    assert "0000000" not in message
    return message


def read_gray(path):
    """Pillow's decoding."""
    return np.asarray(Image.open(path).convert("L"))


def expected_labels(findings):
    return [float(name in findings.split("|")) for name in LABEL_NAMES]


ALL = SplitPlan({}, rest="train")


@pytest.mark.parametrize("vintage", HEADERS)
@pytest.mark.parametrize("suffix", [".csv", ".csv.gz"])
def test_every_vintage_gives_the_same_rows(tmp_path, vintage, suffix):
    write_labels(tmp_path / f"Data_Entry_2017_x{suffix}", vintage)
    rows = NihChestXray14(tmp_path, ALL).scan().rows["train"]
    assert [(row.image, row.patient, row.view) for row in rows] == [(name, name[:8], "PA") for name in sorted(FINDINGS)]
    for row in rows:
        np.testing.assert_array_equal(row.labels, expected_labels(FINDINGS[row.image]))


def test_official_lists_count_every_row_and_name(root):
    scan = NihChestXray14(root).scan()
    assert {split: len(rows) for split, rows in scan.rows.items()} == {"train": 3, "test": 1}
    assert scan.dropped == {"none": Counter(no_split=1), "test": Counter(not_in_table=1)}
    assert scan.input_rows == 6
    assert set(scan.inputs) == {"labels", "train_val_list.txt", "test_list.txt", "splits", "checksums"}


def test_without_official_lists_a_plan_is_asked_for(root):
    (root / "test_list.txt").unlink()
    assert "no test_list.txt; expected the official lists, or published ones" in refusal(NihChestXray14(root))
    assert NihChestXray14(root, ALL).scan().input_rows == 5


def test_images_are_found_in_archives_flattened_or_beside_the_table(root):
    for target in (root / "images", root):
        found = {row.image: row.path for row in NihChestXray14(root, ALL).scan().rows["train"]}
        assert found["00000013_026.png"] == "images/00000013_026.png"  # nowhere, so it will be counted as missing
        present = {image: path for image, path in found.items() if (root / path).is_file()}
        assert set(present) == set(FINDINGS) - {"00000001_000.png", "00000013_026.png"}
        for path in present.values():
            target.mkdir(exist_ok=True)
            (root / path).rename(target / (root / path).name)


def test_two_vintages_are_refused_unless_one_is_chosen(root):
    write_labels(root / "Data_Entry_2017_v2020.csv", "v2020", {"00000001_000.png": "Hernia"})
    message = refusal(NihChestXray14(root))
    assert "found Data_Entry_2017.csv, Data_Entry_2017_v2020.csv; choose one" in message
    assert NihChestXray14(root, ALL, table=root / "Data_Entry_2017_v2020.csv").scan().input_rows == 1


@pytest.mark.parametrize(
    "image, findings, message",
    [
        ("00000001_000.png", "Cardiomegaly|Infiltrate", "row 2 has an unknown finding"),
        ("00000001_000.png", "No Finding|Mass", "row 2 has an unknown finding"),
        ("00000001_000.png", "Mass|Mass", "row 2 has an unknown finding"),
        ("00000001_000.png", "", "row 2 has an unknown finding"),
        ("../00000001_000.png", "Mass", "row 2 has no image name; expected 8 digits"),
        ("1.png", "Mass", "row 2 has no image name; expected 8 digits"),
    ],
)
def test_a_wrong_row_is_named(tmp_path, image, findings, message):
    path = tmp_path / "Data_Entry_2017.csv"
    write_labels(path, findings={"00000001_000.png": "Hernia"})
    path.write_text(path.read_text().replace("00000001_000.png,Hernia", f"{image},{findings}"))
    assert f"Data_Entry_2017.csv: {message}" in refusal(NihChestXray14(tmp_path, ALL))


def test_a_patient_who_is_not_that_of_the_name_and_a_duplicate_are_refused(tmp_path):
    path = tmp_path / "Data_Entry_2017.csv"
    write_labels(path)
    text = path.read_text()
    path.write_text(text.replace("Effusion|Edema,26,13,", "Effusion|Edema,26,12,"))
    assert "the patient of row 6 is not that of its image's name" in refusal(NihChestXray14(tmp_path, ALL))
    path.write_text(text + text.splitlines()[1] + "\n")
    assert "the image of row 7 is listed twice, first in row 2; expected each image once" in refusal(
        NihChestXray14(tmp_path, ALL), DataError
    )


def test_a_build_reads_rgba_and_counts_what_is_missing(root, tmp_path):
    manifest = build(NihChestXray14(root), tmp_path / "out", short_side=32, workers=1, progress=False)
    assert manifest.splits["train"].dropped == {"missing_image": 1}
    first, second = open_split(tmp_path / "out", "train")
    np.testing.assert_array_equal(first.labels, expected_labels("Cardiomegaly|Emphysema"))
    np.testing.assert_array_equal(second.labels, np.zeros(14))
    assert first.original_size == (60, 50)
    expected = read_gray(root / "images_001" / "images" / "00000001_001.png")
    assert abs(decode_gray(first.image).mean() - expected.mean()) < 1
    assert not len(first.boxes)


@pytest.mark.parametrize("end", ["", ",,,"])
def test_boxes_are_grouped_by_image_and_finding(root, end):
    write_boxes(root / "BBox_List_2017.csv", end=end)
    rows = NihBoxes(root).scan().rows["test"]
    assert [(row.image, row.category, row.phrase, len(row.boxes)) for row in rows] == [
        ("00000003_000.png", "Atelectasis", "Atelectasis", 1),
        ("00000003_000.png", "Infiltration", "Infiltration", 2),
        ("00000013_026.png", "Effusion", "Effusion", 1),
    ]
    assert rows[1].boxes == (BOXES[0][2:], BOXES[2][2:])
    labels = dict(zip(LABEL_NAMES, rows[1].labels, strict=True))
    assert labels.pop("Infiltration") == 1
    assert np.isnan(list(labels.values())).all()


def test_boxes_on_an_image_of_another_size_are_dropped(root, tmp_path):
    write_image(root / "images" / "00000013_026.png", np.zeros((1024, 1024), np.uint8))
    manifest = build(NihBoxes(root), tmp_path / "out", short_side=32, workers=1, progress=False)
    assert manifest.splits["test"].dropped == {"box_outside_image": 1, "wrong_size": 1}
    (record,) = grounding_records(tmp_path / "out", "test")
    np.testing.assert_array_equal(record.boxes, np.array([BOXES[1][2:]], np.float32))
    assert (record.sentences, record.category) == (("Effusion",), "Effusion")


@pytest.mark.parametrize(
    "box, kind, message",
    [
        (("00000003_000.png", "Mass", 1, 2, "nan", 4), UserError, "BBox_List_2017.csv: row 2 has no box"),
        (("00000003_000.png", "Mass", 1, 2, 3, -4), UserError, "row 2 has no box"),
        (("00000003_000.png", "Tumour", 1, 2, 3, 4), UserError, "row 2 has an unknown finding"),
        (("3.png", "Mass", 1, 2, 3, 4), UserError, "row 2 has no image name"),
        (("00000003_000.png", "Mass", 1, 2, 3), UserError, "row 2 has 5 fields; expected at least 6"),
        (BOXES[0], DataError, "the box of row 3 is listed twice, first in row 2; expected each box once"),
    ],
)
def test_a_wrong_box_is_named(root, box, kind, message):
    write_boxes(root / "BBox_List_2017.csv", [box, *BOXES[:1]], end="")
    assert message in refusal(NihBoxes(root), kind)


def released_labels(folder):
    with gzip.open(folder / "Data_Entry_2017_v2020.csv.gz", "rt") as file:
        return {row["Image Index"]: row["Finding Labels"] for row in csv.DictReader(file)}


def test_the_released_tables_have_their_published_counts(real_data):
    folder = real_data / "nih_chestxray14"
    scan = NihChestXray14(folder, ALL).scan()
    rows = scan.rows["train"]
    assert scan.input_rows == len(rows) == 112_120
    assert len({row.patient for row in rows}) == 30_805
    table = released_labels(folder)
    counts = Counter(name for findings in table.values() for name in findings.split("|"))
    assert dict(zip(LABEL_NAMES, np.sum([row.labels for row in rows], axis=0), strict=True)) == {
        name: counts[name] for name in LABEL_NAMES
    }
    boxes = NihBoxes(folder).scan()
    assert sum(len(row.boxes) for row in boxes.rows["test"]) == 984
    assert len({row.image for row in boxes.rows["test"]}) == 880


def test_the_published_lists_fit_the_released_table(real_data):
    lists = {
        key: [line.split()[0] for line in (real_data / "splits" / "NIH_ChestX-ray" / f"{key}.txt").open()]
        for key in ("train_list", "val_list", "test_list", "train_1", "train_10")
    }
    splits = {"train": lists["train_list"], "validate": lists["val_list"], "test": lists["test_list"]}
    plan = SplitPlan(splits, {key: lists[key] for key in ("train_1", "train_10")})
    scan = NihChestXray14(real_data / "nih_chestxray14", plan).scan()
    assert {split: len(rows) for split, rows in scan.rows.items()} == {
        "train": 78_468,
        "validate": 11_219,
        "test": 22_433,
    }
    assert not scan.dropped
    subsets = Counter(name for row in scan.rows["train"] for name in row.subsets)
    assert subsets == {"train_1": 785, "train_10": 7_847}


def test_real_images_are_built_with_their_labels_and_boxes(real_data, tmp_path):
    folder = real_data / "nih_chestxray14"
    images = sorted(path.name for path in (folder / "images").iterdir())
    plan = SplitPlan({"train": images[:16], "test": images[16:]}, {"train_10": images[:3]})
    manifest = build(NihChestXray14(folder, plan), tmp_path / "nih", short_side=64, workers=1, progress=False)
    assert manifest.counts == {"train": 16, "test": 8}
    assert manifest.splits["none"].dropped == {"no_split": 112_120 - 24}
    table = released_labels(folder)
    found = [record for split in ("train", "test") for record in open_split(tmp_path / "nih", split)]
    for image, record in zip(images, found, strict=True):
        np.testing.assert_array_equal(record.labels, expected_labels(table[image]))
        expected = read_gray(folder / "images" / image)
        assert record.original_size == expected.shape
        small = cv2.resize(expected, (64, 64), interpolation=cv2.INTER_AREA)
        assert np.abs(decode_gray(record.image).astype(int) - small).mean() < 2
    assert len({record.patient_key for record in found}) == len({image[:8] for image in images})
    assert len(open_split(tmp_path / "nih", "train_10")) == 3


def test_the_box_of_a_real_image_is_built(real_data, tmp_path):
    folder = real_data / "nih_chestxray14"
    with gzip.open(folder / "BBox_List_2017.csv.gz", "rt") as file:
        table = [row for row in csv.reader(file) if (folder / "images" / row[0]).is_file()]
    manifest = build(NihBoxes(folder), tmp_path / "boxes", short_side=64, workers=1, progress=False)
    assert manifest.splits["test"].dropped == {"missing_image": 984 - len(table)}
    (row,), (record,) = table, grounding_records(tmp_path / "boxes", "test")
    np.testing.assert_allclose(record.boxes, [[float(value) for value in row[2:6]]], rtol=1e-6)
    assert record.category == row[1]
    assert record.labels[LABEL_NAMES.index(row[1])] == 1
