"""MS-CXR's boxes are grouped into image-phrase pairs and stay on the image."""

import json
import shutil

import cv2
import numpy as np
import pytest

from input_pipeline.build import build
from input_pipeline.datasets.mimic_grounding import read_grounding
from input_pipeline.datasets.ms_cxr import CATEGORIES, MsCxr
from input_pipeline.datasets.synthetic.study import FINDINGS
from input_pipeline.errors import DataError, UserError
from input_pipeline.images import decode_gray, evaluation_view, view_rectangle
from input_pipeline.reading import grounding_records, open_split
from input_pipeline.shards import clip_boxes
from input_pipeline.sources import Dropped


def box_row(item, phrase, category, box, **more):
    x, y, w, h = box
    return {
        "category_name": category,
        "label_text": phrase,
        "path": item.jpg,
        "dicom_id": item.image,
        "x": x,
        "y": y,
        "w": w,
        "h": h,
        "image_width": 52,
        "image_height": 44,
        **more,
    }


def rows(layout):
    first, second = layout.studies()[0], layout.studies()[3]
    return [
        box_row(first, "left basal  opacity", "Pneumonia", (4, 5, 10, 12)),
        box_row(second, "small effusion", "Pleural Effusion", (1, 2, 3, 4)),
        box_row(first, "left basal opacity", "Pneumonia", (20, 6, 8, 9)),
        box_row(first, "Left basal opacity", "Pneumonia", (0, 0, 100, 10)),
    ]


def write(layout, path, table):
    layout.write_table(path, table)
    return path


def test_boxes_of_one_image_and_phrase_are_one_record(mimic_root, layout, tmp_path):
    data = MsCxr(mimic_root, write(layout, tmp_path / "boxes.csv", rows(layout)))
    build(data, tmp_path / "ms", short_side=32, workers=1, progress=False)
    found = {record.sentences[0]: record for record in grounding_records(tmp_path / "ms", "test")}
    assert sorted(found) == ["Left basal opacity", "left basal opacity", "small effusion"]
    np.testing.assert_array_equal(found["left basal opacity"].boxes, [[4, 5, 10, 12], [20, 6, 8, 9]])
    np.testing.assert_array_equal(found["Left basal opacity"].boxes, [[0, 0, 52, 10]])
    assert found["small effusion"].category == "Pleural Effusion"
    np.testing.assert_array_equal(found["small effusion"].labels, [1, np.nan])
    assert {record.original_size[1] for record in found.values()} == {52}


@pytest.mark.parametrize(
    "category, close", [("Pneumothorrax", ", nearest 'Pneumothorax'"), ("edema", ", nearest 'Edema'"), ("Hernia", "")]
)
def test_a_finding_of_no_release_is_refused_with_the_nearest_one(mimic_root, layout, tmp_path, category, close):
    table = [*rows(layout), box_row(layout.studies()[1], "somewhere", category, (1, 2, 3, 4))]
    data = MsCxr(mimic_root, write(layout, tmp_path / "boxes.csv", table))
    with pytest.raises(
        UserError, match=f"^boxes.csv: row 6 has an unknown finding{close}; expected one of Atelectasis"
    ):
        data.scan()
    assert data.label_names() == ("Pleural Effusion", "Pneumonia")
    (problem,) = data.scan(lenient=True).problems
    assert problem.code == "unknown_label"


def test_the_findings_of_the_synthetic_study_are_known():
    assert {*FINDINGS} - {*CATEGORIES} == {"Support Devices"}  # which no phrase points at


def test_a_clipped_box_is_flagged_and_counts_add_up(mimic_root, layout, tmp_path):
    outside = box_row(layout.studies()[1], "elsewhere", "Edema", (60, 2, 3, 4))
    blank = box_row(layout.studies()[1], " ", "Edema", (1, 2, 3, 4))
    data = MsCxr(mimic_root, write(layout, tmp_path / "boxes.csv", [*rows(layout), outside, blank]))
    entry = build(data, tmp_path / "ms", short_side=32, workers=1, progress=False).splits["test"]
    assert entry.flags == {"clipped_box": 1}
    assert entry.dropped == {"box_outside_image": 1, "no_text": 1}
    assert entry.input_rows == 5 == entry.records + 2


def test_keys_agree_with_the_build_of_the_images(mimic_build, mimic_root, layout, tmp_path):
    table = write(layout, tmp_path / "boxes.csv", rows(layout))
    out = mimic_build.parent / "ms"
    build(MsCxr(mimic_root, table), out, short_side=32, workers=1, progress=False)
    keys = {(record.image_key, record.study_key, record.patient_key) for record in grounding_records(out, "test")}
    known = {(record.image_key, record.study_key, record.patient_key) for record in open_split(mimic_build, "train")}
    assert len(keys) == 2
    assert keys <= known


def test_the_split_column_of_release_1_1_is_used(layout, mimic_root, tmp_path):
    table = [
        box_row(item, "opacity", "Pneumonia", (1, 1, 2, 2), split=split)
        for item, split in zip(layout.studies(), ("train", "val", "test"), strict=False)
    ]
    scan = MsCxr(mimic_root, write(layout, tmp_path / "boxes.csv", table)).scan()
    assert {split: len(kept) for split, kept in scan.rows.items()} == {"train": 1, "validate": 1, "test": 1}


@pytest.mark.parametrize(
    "change, message",
    [
        ({"path": "../../etc/passwd"}, "the path of row 2 leads out of the data folder"),
        ({"path": "/files/p10/p10000000/s50000000/a.jpg"}, "the path of row 2 leads out of the data folder"),
        ({"path": "a.jpg"}, "the path of row 2 names no study"),
        ({"x": ""}, "row 2 has no box; expected numbers x, y, w, h"),
        ({"w": "0"}, "row 2 has no box"),
        ({"h": "nan"}, "row 2 has no box"),
        ({"split": "dev"}, "row 2 has an unknown split; expected train, val or test"),
    ],
)
def test_a_wrong_row_is_refused_in_one_line(layout, mimic_root, tmp_path, change, message):
    table = [{"split": "test", **rows(layout)[0], **change}]
    with pytest.raises(UserError) as error:
        MsCxr(mimic_root, write(layout, tmp_path / "boxes.csv", table)).scan()
    assert message in str(error.value)
    assert "opacity" not in str(error.value)
    assert "\n" not in str(error.value)


def as_coco(table):
    """The rows of the CSV file in the form of the JSON file, whose images also have a `file_name` without folders."""
    categories = sorted({row["category_name"] for row in table})
    images = {row["dicom_id"]: row for row in table}
    places = list(images)
    return {
        "info": {"version": "1.1.0"},
        "categories": [{"id": 7 + place, "name": name} for place, name in enumerate(categories)],
        "images": [
            {
                "id": 100 + place,
                "file_name": f"{image}.jpg",
                "path": images[image]["path"],
                "width": images[image]["image_width"],
                "height": images[image]["image_height"],
            }
            for place, image in enumerate(places)
        ],
        "annotations": [
            {
                "id": place,
                "image_id": 100 + places.index(row["dicom_id"]),
                "category_id": 7 + categories.index(row["category_name"]),
                "bbox": [row[key] for key in "xywh"],
                "label_text": row["label_text"],
                **({"split": row["split"]} if "split" in row else {}),
            }
            for place, row in enumerate(table)
        ],
    }


@pytest.mark.parametrize("split", [{}, {"split": "val"}])
def test_json_and_csv_say_the_same(layout, mimic_root, tmp_path, split):
    table = [row | split for row in rows(layout)]
    (tmp_path / "boxes.json").write_text(json.dumps(as_coco(table)))
    sources = [
        MsCxr(mimic_root, write(layout, tmp_path / "boxes.csv", table)),
        MsCxr(mimic_root, tmp_path / "boxes.json"),
    ]
    found = [source.scan().rows for source in sources]
    assert [list(rows) for rows in found] == [["validate" if split else "test"]] * 2
    for first, second in zip(*(next(iter(rows.values())) for rows in found), strict=True):
        assert (first.image, first.path, first.phrase, first.boxes, first.size) == (
            second.image,
            second.path,
            second.phrase,
            second.boxes,
            second.size,
        )
        np.testing.assert_array_equal(first.labels, second.labels)
    assert sources[0].label_names() == sources[1].label_names()
    assert read_grounding([tmp_path / "boxes.json"]) == read_grounding([tmp_path / "boxes.csv"])


@pytest.mark.parametrize("name", ["MS_CXR_Local_Alignment_v1.0.0.csv", "MS_CXR_Local_Alignment_v1.1.0.json"])
def test_the_folder_of_a_release_will_do(layout, mimic_root, tmp_path, name):
    folder = tmp_path / "ms-cxr"
    write(layout, folder / "other.csv", rows(layout))
    with pytest.raises(UserError, match=r"expected one file MS_CXR_Local_Alignment_v\*.csv or .json"):
        MsCxr(mimic_root, folder).scan()
    if name.endswith(".json"):
        (folder / name).write_text(json.dumps(as_coco(rows(layout))))
    else:
        shutil.copy(folder / "other.csv", folder / name)
    assert MsCxr(mimic_root, folder).scan().input_rows == 3


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda coco: coco.pop("categories"), "boxes.json: not in COCO's form; expected lists 'images'"),
        (lambda coco: coco["images"].pop(0), "annotation 1 is not complete; expected a known image and category"),
        (lambda coco: coco["annotations"][1].pop("label_text"), "annotation 2 is not complete"),
        (lambda coco: coco["annotations"][1].update(category_id=[3]), "annotation 2 is not complete"),
        (lambda coco: coco["annotations"][2].update(bbox=[1, 2, 3]), "annotation 3 has no box"),
        (lambda coco: coco["annotations"][2].update(bbox=[1, 2, 3, True]), "annotation 3 has no box"),
        (lambda coco: coco["annotations"][2].update(split="dev"), "annotation 3 has an unknown split"),
        (lambda coco: coco["images"][0].update(path="../x"), "the path of annotation 1 leads out of the data folder"),
        (lambda coco: coco["images"][0].pop("path"), "the path of annotation 1 names no study"),
        (lambda coco: coco["images"][0].update(width=-1), "annotation 1 has no image size"),
    ],
)
def test_a_wrong_annotation_is_refused_in_one_line(layout, mimic_root, tmp_path, change, message):
    coco = as_coco(rows(layout))
    change(coco)
    (tmp_path / "boxes.json").write_text(json.dumps(coco))
    with pytest.raises(UserError) as error:
        MsCxr(mimic_root, tmp_path / "boxes.json").scan()
    assert message in str(error.value)
    assert "opacity" not in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["{", "[1]", "null", "[" * 100_000])
def test_what_is_no_coco_file_is_refused(mimic_root, tmp_path, text):
    (tmp_path / "boxes.json").write_text(text)
    with pytest.raises(UserError, match=r"boxes.json: not (a JSON file|in COCO's form)"):
        MsCxr(mimic_root, tmp_path / "boxes.json").scan()


@pytest.mark.parametrize("change", [{"split": "train"}, {"image_width": 53}])
def test_boxes_of_a_phrase_that_disagree_are_refused(layout, mimic_root, tmp_path, change):
    table = [{"split": "test", **row} for row in rows(layout)]
    table[2] |= change
    with pytest.raises(DataError, match="row 4 disagrees with another box of its phrase on split or image size"):
        MsCxr(mimic_root, write(layout, tmp_path / "boxes.csv", table)).scan()


def test_one_phrase_of_two_findings_is_two_records(layout, mimic_root, tmp_path):
    table = [rows(layout)[0], rows(layout)[0] | {"category_name": "Edema"}]
    found = MsCxr(mimic_root, write(layout, tmp_path / "boxes.csv", table)).scan().rows["test"]
    assert [(row.category, len(row.boxes)) for row in found] == [("Edema", 1), ("Pneumonia", 1)]


def test_resized_images_are_dropped_and_unknown_sizes_are_not(layout, mimic_root, tmp_path):
    table = rows(layout)
    table[1] |= {"image_width": 104, "image_height": 88}
    data = MsCxr(mimic_root, write(layout, tmp_path / "boxes.csv", table))
    entry = build(data, tmp_path / "ms", short_side=32, workers=1, progress=False).splits["test"]
    assert (entry.records, entry.dropped) == (2, {"wrong_size": 1})
    without = [{key: row[key] for key in row if not key.startswith("image_")} for row in table]
    data = MsCxr(mimic_root, write(layout, tmp_path / "plain.csv", without))
    assert build(data, tmp_path / "plain", short_side=32, workers=1, progress=False).counts == {"test": 3}


@pytest.mark.parametrize("fit", ["crop", "pad", "squash"])
@pytest.mark.parametrize("height, width", [(301, 400), (400, 301), (320, 320)])
def test_a_box_lands_on_what_was_painted_through_resizing_and_viewing(layout, tmp_path, fit, height, width):
    item, box, size = layout.studies()[0], (131, 117, 60, 44), 96
    image = np.random.default_rng(0).integers(0, 60, (height, width), dtype=np.uint8)
    cv2.rectangle(image, box[:2], (box[0] + box[2] - 1, box[1] + box[3] - 1), 255, -1)
    (tmp_path / item.jpg).parent.mkdir(parents=True)
    cv2.imwrite(str(tmp_path / item.jpg), image, [cv2.IMWRITE_JPEG_QUALITY, 100])
    table = [box_row(item, "bright box", "Edema", box, image_width=width, image_height=height)]
    data = MsCxr(tmp_path, write(layout, tmp_path / "boxes.csv", table))
    build(data, tmp_path / "out" / "ms", short_side=128, workers=1, progress=False)
    (record,) = grounding_records(tmp_path / "out" / "ms", "test")
    view = evaluation_view(decode_gray(record.image), size, fit)
    down, right = np.nonzero(view > 150)
    painted = [right.min(), down.min(), right.max() + 1, down.max() + 1]
    top, left, seen_height, seen_width = view_rectangle(*record.original_size, fit)
    x, y, w, h = record.boxes[0]
    shown = np.array([x - left, y - top, x + w - left, y + h - top]) * size / ([seen_width, seen_height] * 2)
    np.testing.assert_allclose(shown, painted, atol=1)


def test_clipping_agrees_with_masks():
    rng = np.random.default_rng(0)
    for _ in range(200):
        box = np.round(rng.uniform((-20, -20, 1, 1), (40, 40, 40, 40)))
        x, y, w, h = box.astype(int)
        mask = np.zeros((100, 100), bool)  # the image of 30 x 25 pixels stands at (30, 30)
        mask[30 + y : 30 + y + h, 30 + x : 30 + x + w] = True
        seen = mask[30:60, 30:55]
        if not seen.any():
            with pytest.raises(Dropped, match="box_outside_image"):
                clip_boxes([tuple(box)], 30, 25)
            continue
        (found,), clipped = clip_boxes([tuple(box)], 30, 25)
        rows_seen, columns_seen = np.nonzero(seen)
        expected = [columns_seen.min(), rows_seen.min(), np.ptp(columns_seen) + 1, np.ptp(rows_seen) + 1]
        np.testing.assert_array_equal(found, expected)
        assert clipped == (seen.sum() != mask.sum())
