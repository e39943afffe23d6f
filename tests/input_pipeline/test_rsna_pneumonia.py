"""RSNA's rows are one per box: images are grouped, and labels of the test images come from a list."""

import csv
import pickle
from collections import Counter

import cv2
import numpy as np
import pytest

from input_pipeline.build import build
from input_pipeline.datasets.labelled import SplitPlan
from input_pipeline.datasets.rsna_pneumonia import RsnaPneumonia
from input_pipeline.errors import DataError, MsflError, UserError
from input_pipeline.keys import open_keyring
from input_pipeline.reading import open_split

from .dicom_files import CANARY, file_of

IMAGES = [f"{number:08x}-14fd-4e49-80ba-63a80b6bddd{number}" for number in range(5)]
TABLE = (
    (0, "", "", "", "", 0),
    (1, 264.0, 152.0, 213.0, 379.0, 1),
    (2, "NaN", "nan", "", "", 0),
    (1, 562.0, 152.0, 256.0, 453.0, 1),
    (3, 900.5, 900.5, 300.0, 20.0, 1),
)
CLASSES = (
    (0, "Normal"),
    (1, "Lung Opacity"),
    (1, "Lung Opacity"),
    (2, "No Lung Opacity / Not Normal"),
    (3, "Lung Opacity"),
)


def write(root, table=TABLE, classes=CLASSES):
    root.mkdir(exist_ok=True)
    with (root / "stage_2_train_labels.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["patientId", "x", "y", "width", "height", "Target"])
        writer.writerows((IMAGES[number], *values) for number, *values in table)
    with (root / "stage_2_detailed_class_info.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("patientId", "class"), *((IMAGES[number], name) for number, name in classes)])
    return root


@pytest.fixture
def root(tmp_path):
    return write(tmp_path / "rsna")


def refusal(root, kind: type[MsflError] = UserError, **options):
    with pytest.raises(kind) as error:
        RsnaPneumonia(root, **options).scan()
    message = str(error.value)
    assert "\n" not in message
    assert not any(image in message for image in IMAGES)
    return message


def test_the_boxes_of_an_image_are_one_row(root):
    scan = RsnaPneumonia(root).scan()
    assert scan.input_rows == 4
    rows = {row.image: row for row in scan.rows["train"]}
    assert [rows[image].labels for image in IMAGES[:4]] == [(0.0,), (1.0,), (0.0,), (1.0,)]
    assert rows[IMAGES[1]].boxes == ((264, 152, 213, 379), (562, 152, 256, 453))
    assert rows[IMAGES[1]].phrase == rows[IMAGES[1]].category == "Pneumonia"
    assert rows[IMAGES[0]].phrase == rows[IMAGES[0]].category == ""
    assert rows[IMAGES[0]].path == f"stage_2_train_images/{IMAGES[0]}.dcm"


def test_the_dicom_file_is_given_as_it_is_and_a_converted_one_is_second_choice(root):
    folder = root / "stage_2_train_images"
    folder.mkdir()
    (folder / f"{IMAGES[0]}.png").write_bytes(b"png")
    (folder / f"{IMAGES[1]}.png").write_bytes(b"png")
    (folder / f"{IMAGES[0]}.dcm").write_bytes(b"dicom")
    source = RsnaPneumonia(root)
    rows = {row.image: row for row in source.scan().rows["train"]}
    assert source.image(rows[IMAGES[0]]) == b"dicom"
    assert source.image(rows[IMAGES[1]]) == b"png"
    assert source.files(rows[IMAGES[1]]) == (folder / f"{IMAGES[1]}.png",)


def test_published_lists_bring_the_test_images_and_their_labels(root):
    lists = {
        "train": [f"stage_2_train_images/{IMAGES[number]}.dcm" for number in (0, 1, 2)],
        "test": [f"stage_2_test_images/{IMAGES[4]}.dcm"],
    }
    plan = SplitPlan(lists, {"train_1": lists["train"][1:2]})
    source = RsnaPneumonia(root, plan, listed={lists["test"][0]: 1.0})
    scan = source.scan()
    assert {split: [row.image for row in rows] for split, rows in scan.rows.items()} == {
        "train": IMAGES[:3],
        "test": IMAGES[4:],
    }
    (test,) = scan.rows["test"]
    assert (test.labels, test.path) == ((1.0,), f"stage_2_test_images/{IMAGES[4]}.dcm")
    assert scan.rows["train"][1].subsets == ("train_1",)
    assert scan.dropped == {"none": Counter(no_split=1)}
    assert len(scan.inputs["listed"]) == 64
    assert pickle.loads(pickle.dumps(source)) == source
    assert not any(image in str(source.settings()) for image in IMAGES)
    without = RsnaPneumonia(root, plan).scan()
    assert without.dropped["test"] == Counter(not_in_table=1)
    assert without.input_rows == scan.input_rows == 5


def test_without_a_plan_listed_images_are_the_test_split(root):
    scan = RsnaPneumonia(root, listed={IMAGES[4]: 0.0}).scan()
    assert {split: len(rows) for split, rows in scan.rows.items()} == {"train": 4, "test": 1}


def test_detailed_classes_are_two_more_labels(root):
    source = RsnaPneumonia(root, detailed=True, listed={IMAGES[4]: 1.0})
    assert source.label_names() == ("Pneumonia", "Normal", "No Lung Opacity / Not Normal")
    scan = source.scan()
    assert [row.labels for row in scan.rows["train"]] == [(0, 1, 0), (1, 0, 0), (0, 0, 1), (1, 0, 0)]
    np.testing.assert_array_equal(scan.rows["test"][0].labels, [1, np.nan, np.nan])
    assert set(scan.inputs) == {"labels", "classes", "listed", "checksums"}


@pytest.mark.parametrize(
    "row, kind, message",
    [
        ((0, 1, 2, 3, 4, 2), UserError, "stage_2_train_labels.csv: row 7 has a Target that is neither 0 nor 1"),
        ((4, 1, 2, 3, 4, 0), UserError, "row 7 has Target 0 and a box"),
        ((4, "", 2, 3, 4, 1), UserError, "row 7 has no box"),
        ((4, 1, 2, 0, 4, 1), UserError, "row 7 has no box"),
        ((0, "", "", "", "", 0), DataError, "row 7 repeats or contradicts row 2 of its image"),
        ((1, "", "", "", "", 0), DataError, "row 7 repeats or contradicts row 3 of its image"),
        ((0, 1, 2, 3, 4, 1), DataError, "row 7 repeats or contradicts row 2 of its image"),
        (TABLE[1], DataError, "row 7 repeats or contradicts row 3 of its image"),
    ],
)
def test_a_wrong_row_is_named(root, row, kind, message):
    write(root, (*TABLE, row))
    assert message in refusal(root, kind)


def test_an_identifier_that_cannot_name_a_file_is_refused(root):
    (root / "stage_2_train_labels.csv").write_text("patientId,x,y,width,height,Target\n../a,,,,,0\n")
    assert "row 2 has an identifier that cannot name a file" in refusal(root)


@pytest.mark.parametrize(
    "classes, kind, message",
    [
        (((0, "Healthy"), *CLASSES), UserError, "row 2 has an unknown class"),
        ((*CLASSES, (0, "Lung Opacity")), DataError, "row 7 disagrees with another row or with the boxes"),
        ((*CLASSES, (1, "Normal")), DataError, "row 7 disagrees"),
        ((*CLASSES, (2, "Normal")), DataError, "row 7 disagrees"),
        (CLASSES[1:], DataError, "1 images have no class"),
    ],
)
def test_classes_that_contradict_the_boxes_are_refused(root, classes, kind, message):
    write(root, TABLE, classes)
    assert message in refusal(root, kind, detailed=True)


@pytest.mark.parametrize(
    "listed, kind, message",
    [
        ({IMAGES[4]: 0.5}, UserError, "a listed image has no name, or a label other than 0 and 1"),
        ({"stage_2_test_images/.dcm": 1.0}, UserError, "a listed image has no name"),
        ({IMAGES[0]: 1.0}, DataError, "1 listed images are listed twice or in the table"),
        ({IMAGES[4]: 1.0, f"{IMAGES[4]}.dcm": 1.0}, DataError, "1 listed images are listed twice"),
    ],
)
def test_listed_labels_that_are_wrong_are_refused(root, listed, kind, message):
    assert message in refusal(root, kind, listed=listed)


def test_a_build_clips_boxes_and_drops_resized_copies_that_have_any(root, tmp_path):
    folder = root / "stage_2_train_images"
    folder.mkdir()
    for image, side in zip(IMAGES, (512, 512, 1024, 1024), strict=False):
        cv2.imwrite(str(folder / f"{image}.png"), np.full((side, side), 90, np.uint8))
    manifest = build(RsnaPneumonia(root), tmp_path / "out", short_side=32, workers=1, progress=False)
    entry = manifest.splits["train"]
    assert entry.dropped == {"wrong_size": 1}
    assert entry.flags == {"blank_image": 3, "clipped_box": 1}
    first, second, third = open_split(tmp_path / "out", "train")
    assert [float(record.labels[0]) for record in (first, second, third)] == [0, 0, 1]
    np.testing.assert_array_equal(third.boxes, [[900.5, 900.5, 123.5, 20]])
    assert not len(first.boxes)
    assert not first.sentences
    assert third.sentences == ("Pneumonia",)


def test_the_released_table_has_its_published_counts(real_data):
    scan = RsnaPneumonia(real_data / "rsna_pneumonia").scan()
    rows = scan.rows["train"]
    with (real_data / "rsna_pneumonia" / "stage_2_train_labels.csv").open() as file:
        table = list(csv.DictReader(file))
    assert len(table) == 30_227
    assert scan.input_rows == len(rows) == len({row["patientId"] for row in table}) == 26_684
    assert sum(len(row.boxes) for row in rows) == sum(row["Target"] == "1" for row in table) == 9_555
    assert sum(row.labels == (1.0,) for row in rows) == 6_012


def test_the_published_lists_fit_the_released_table(real_data):
    def entries(name):
        lines = (real_data / "splits" / "RSNA_Pneumonia" / f"{name}.txt").read_text().splitlines()
        return {image: float(label) for image, label in map(str.split, lines)}

    lists = {"train": entries("train_list"), "validate": entries("val_list"), "test": entries("test_list")}
    subsets = {name: list(entries(name)) for name in ("train_1", "train_10")}
    plan = SplitPlan({split: list(names) for split, names in lists.items()}, subsets)
    scan = RsnaPneumonia(real_data / "rsna_pneumonia", plan, listed=lists["test"]).scan()
    assert {split: len(rows) for split, rows in scan.rows.items()} == {
        "train": 25_184,
        "validate": 1_500,
        "test": 3_000,
    }
    assert not scan.dropped
    for split, names in lists.items():
        labels = {image.rpartition("/")[2].removesuffix(".dcm"): label for image, label in names.items()}
        assert all(row.labels == (labels[row.image],) for row in scan.rows[split])
    assert Counter(name for row in scan.rows["train"] for name in row.subsets) == {"train_1": 251, "train_10": 2_518}


def test_the_view_of_a_dicom_header_is_kept_where_it_is_one_and_no_other_text_is(root, tmp_path):
    (root / "stage_2_train_images").mkdir()
    views = {0: "AP", 1: "PA ", 2: CANARY, 3: None}
    for number, view in views.items():
        side = np.random.default_rng(number).integers(0, 256, (1024, 1024), dtype=np.uint8)
        elements = {} if view is None else {"ViewPosition": view}
        (root / "stage_2_train_images" / f"{IMAGES[number]}.dcm").write_bytes(file_of(side, **elements))
    build(RsnaPneumonia(root), tmp_path / "out", short_side=32, workers=1, progress=False)
    keyring = open_keyring(tmp_path)
    found = {record.image_key: record.view for record in open_split(tmp_path / "out", "train")}
    assert [found[keyring.key("image", IMAGES[number])] for number in views] == ["AP", "PA", "", ""]
