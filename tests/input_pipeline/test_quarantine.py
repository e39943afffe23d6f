"""What the doctor found is left out of a build by key, counted under its reason, and nothing else is."""

import dataclasses
import json
from collections import Counter

import cv2
import numpy as np
import pytest

from input_pipeline.build import build, read_manifest
from input_pipeline.datasets.mimic_cxr import MimicCxr
from input_pipeline.doctor import examine
from input_pipeline.errors import UserError
from input_pipeline.reading import open_split

OPTIONS = {"short_side": 32, "workers": 1, "shard_records": 5, "progress": False}


@pytest.fixture
def examined(own_mimic_root, layout, tmp_path):
    """The data set with a blank image, and the doctor's folder with a salt of its own."""
    cv2.imwrite(str(own_mimic_root / layout.studies()[0].jpg), np.full((40, 40), 7, np.uint8))
    source = MimicCxr(own_mimic_root, own_mimic_root)
    examine(source, tmp_path / "doctor", workers=1, progress=False)
    return source, tmp_path / "doctor" / "quarantine.jsonl"


def test_quarantined_rows_are_left_out_under_their_reasons(examined, tmp_path):
    source, file = examined
    plain = build(source, tmp_path / "a" / "out", **OPTIONS)
    # The reports and images of these rows are not looked at again: repaired since, they would stay out.
    made = build(source, tmp_path / "a" / "quarantined", quarantine=file, **OPTIONS)
    assert made.input_rows == plain.input_rows
    assert made.counts == plain.counts
    assert made.splits["train"].dropped == plain.splits["train"].dropped
    assert made.splits["train"].flags == {"blank_image": 1, "view_from_code": 1}
    assert {split: entry.members for split, entry in made.splits.items()} == {
        split: entry.members for split, entry in plain.splits.items()
    }
    assert len(made.inputs["quarantine"]) == 64
    assert (tmp_path / "a" / "out" / "quarantine.jsonl").read_text()


def test_blank_images_are_dropped_where_that_is_asked_for(examined, tmp_path):
    source, file = examined
    made = build(source, tmp_path / "out", quarantine=file, drop_noted=["blank_image"], **OPTIONS)
    assert made.splits["train"].dropped["blank_image"] == 1
    assert "blank_image" not in made.splits["train"].flags
    assert made.input_rows == sum(split.records + sum(split.dropped.values()) for split in made.splits.values())
    assert len(open_split(tmp_path / "out", "train")) == made.counts["train"] == 11
    assert made.inputs["notes"].startswith("blank_image of ")
    assert read_manifest(tmp_path / "out") == made


def test_every_row_that_the_file_names_is_gone_and_no_other(examined, tmp_path):
    source, _ = examined
    whole = build(source, tmp_path / "root" / "whole", **OPTIONS)
    doctor = examine(source, tmp_path / "root", workers=1, progress=False)
    assert doctor.records == sum(whole.counts.values())
    stored = [record.image_key for record in open_split(tmp_path / "root" / "whole", "test")]
    with (tmp_path / "root" / "quarantine.jsonl").open("a") as lines:
        lines.writelines(json.dumps({"image": key, "reason": "bad_image"}) + "\n" for key in stored[1:])
    made = build(source, tmp_path / "root" / "part", quarantine=tmp_path / "root" / "quarantine.jsonl", **OPTIONS)
    left = Counter(record.image_key for record in open_split(tmp_path / "root" / "part", "test"))
    assert left == {stored[0]: 1}
    assert made.splits["test"].dropped == {"bad_image": len(stored) - 1}


@pytest.mark.parametrize(
    "content, noted, words",
    [
        ("nonsense", (), "none of `msfl data doctor`'s files"),
        (
            '{"image": "' + "0" * 32 + '", "reason": "bad_image"}\n',
            (),
            "none of its 1 images is among those of this build",
        ),
        ("", ("blanc_image",), "no row is noted for blanc_image"),
        (None, (), "No such file"),
    ],
)
def test_what_is_no_quarantine_of_this_data_set_is_refused(examined, tmp_path, content, noted, words):
    source, file = dataclasses.replace(examined[0], views="all"), examined[1]  # all that the doctor has looked at
    file.unlink() if content is None else file.write_text(content)
    with pytest.raises(UserError, match=words):
        build(source, tmp_path / "out", quarantine=file, drop_noted=noted, **OPTIONS)
    assert not (tmp_path / "out").exists()


def test_a_copy_without_the_salt_and_reasons_without_a_file_are_refused(examined, tmp_path):
    source, file = examined
    (tmp_path / "copy").mkdir()
    copy = file.rename(tmp_path / "copy" / file.name)
    with pytest.raises(UserError, match="not a copy"):
        build(source, tmp_path / "out", quarantine=copy, **OPTIONS)
    with pytest.raises(UserError, match="expected the doctor's file as well"):
        build(source, tmp_path / "out", drop_noted=["blank_image"], **OPTIONS)


def test_a_build_that_looks_at_none_of_the_views_that_are_named_goes_on(own_mimic_root, tmp_path):
    source = MimicCxr(own_mimic_root, own_mimic_root, views="all")
    (lateral,) = (row for row in source.scan().rows["train"] if row.view == "LATERAL")
    cv2.imwrite(str(own_mimic_root / lateral.path), np.full((40, 40), 7, np.uint8))
    examine(source, tmp_path / "doctor", workers=1, progress=False)
    notes = tmp_path / "doctor" / "notes.jsonl"
    lines = [json.loads(line) for line in notes.read_text().splitlines()]
    (tmp_path / "doctor" / "quarantine.jsonl").write_text(
        "".join(json.dumps(line) + "\n" for line in lines if line["reason"] == "blank_image")
    )
    frontal = MimicCxr(own_mimic_root, own_mimic_root)
    made = build(frontal, tmp_path / "out", quarantine=tmp_path / "doctor" / "quarantine.jsonl", **OPTIONS)
    assert made.splits["train"].dropped["not_frontal"] == 1
    assert "blank_image" not in made.splits["train"].dropped


def test_a_reason_that_is_asked_for_counts_where_another_stands_before_it(examined, tmp_path):
    source, file = examined
    notes = file.with_name("notes.jsonl")
    (line,) = (line for line in notes.read_text().splitlines() if "blank_image" in line)
    notes.write_text(line.replace("blank_image", "clipped_box") + "\n" + notes.read_text())
    made = build(source, tmp_path / "out", quarantine=file, drop_noted=["blank_image"], **OPTIONS)
    assert made.splits["train"].dropped["blank_image"] == 1
