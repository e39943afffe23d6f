"""MS-CXR's boxes are grouped into image-phrase pairs and stay on the image."""

import numpy as np
import pytest

from input_pipeline.build import build
from input_pipeline.datasets.ms_cxr import MsCxr
from input_pipeline.errors import UserError
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
