"""Splits given as lists put every image where they say, refuse leaks, and account for every name."""

import hashlib
import json
import os
import pickle
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from input_pipeline.build import build
from input_pipeline.compact import Names
from input_pipeline.datasets import labelled
from input_pipeline.datasets.image_files import find_images, image_of_name
from input_pipeline.datasets.labelled import Found, SplitPlan, distribute, find_one_table, parse_box
from input_pipeline.datasets.labelled_rows import Kept
from input_pipeline.datasets.releases import SplitChoice
from input_pipeline.errors import DataError, UserError
from input_pipeline.sources import SPLITS, ImageRow, Scan
from input_pipeline.splits import PublishedSplits
from input_pipeline.tables import file_hash


def row(image, patient=None):
    return ImageRow(patient or f"patient-{image}", "s", image, f"{image}.png", "", (1.0,))


def run(images, plan, **options):
    scan = Scan()
    distribute(scan, [Found(image if isinstance(image, ImageRow) else row(image), "train") for image in images], plan)
    return scan


def kept(scan):
    return {split: [row.image for row in rows] for split, rows in scan.rows.items()}


names = st.sampled_from("abcdefgh")


@given(st.sets(names), st.lists(st.sampled_from((*SPLITS, None)), min_size=8, max_size=8))
def test_every_image_and_every_listed_name_is_kept_or_counted(table, homes):
    lists = {split: [name for name, home in zip("abcdefgh", homes, strict=True) if home == split] for split in SPLITS}
    scan = run(sorted(table), SplitPlan(lists))
    listed = {name for members in lists.values() for name in members}
    assert scan.input_rows == len(table | listed)
    for split, members in lists.items():
        assert kept(scan).get(split, []) == sorted(set(members) & table)
        assert scan.dropped.get(split, Counter())["not_in_table"] == len(set(members) - table)
    assert scan.dropped.get("none", Counter()) == Counter({"no_split": len(table - listed)} if table - listed else {})


def test_without_lists_the_official_splits_hold_and_the_rest_may_be_given_a_split():
    assert kept(run("ab", SplitPlan())) == {"train": ["a", "b"]}
    assert kept(run("abc", SplitPlan({"test": ["b"]}, rest="train"))) == {"train": ["a", "c"], "test": ["b"]}
    assert kept(run("ab", SplitPlan({}, rest="validate"))) == {"validate": ["a", "b"]}


def test_an_image_in_two_splits_is_refused_or_is_two_records():
    lists = {"train": ["a", "b"], "test": ["b", "c"], "validate": ["d"]}
    with pytest.raises(DataError, match=r"^train and test share 1 image; expected nothing in two splits"):
        run("abc", SplitPlan(lists))
    plan = SplitPlan(lists, {"train_1": ["b"]}, allow_leak=True)
    scan = run("abcd", plan)
    assert kept(scan) == {"train": ["a", "b"], "test": ["b", "c"], "validate": ["d"]}
    assert scan.input_rows == 5
    assert [row.subsets for row in scan.rows["train"]] == [(), ("train_1",)]
    assert [row.subsets for row in scan.rows["test"]] == [(), ()]
    assert plan.settings()["splits"] == "listed"
    assert plan.settings()["allow_leak"] is True


def test_a_patient_in_two_splits_is_refused_unless_the_leak_is_allowed():
    rows = [row("a", "p"), row("b", "p"), row("c", "q")]
    lists = {"train": ["a"], "test": ["b", "c"]}
    with pytest.raises(DataError, match=r"^train and test share 0 images and 1 patient; expected nothing"):
        run(rows, SplitPlan(lists))
    assert run(rows, SplitPlan(lists, allow_leak=True)).input_rows == 3


def test_subsets_may_overlap_and_name_images_that_the_table_lacks():
    plan = SplitPlan({"train": ["a", "b", "z"]}, {"train_1": ["b"], "train_10": ["a", "b", "z"]})
    scan = run("ab", plan)
    assert {row.image: set(row.subsets) for row in scan.rows["train"]} == {
        "a": {"train_10"},
        "b": {"train_1", "train_10"},
    }
    assert scan.dropped == {"train": Counter(not_in_table=1)}


def test_subsets_of_official_splits():
    scan = run("ab", SplitPlan(subsets={"train_1": ["b"]}))
    assert [row.subsets for row in scan.rows["train"]] == [(), ("train_1",)]


@pytest.mark.parametrize(
    "plan, kind, message",
    [
        (SplitPlan({"dev": ["a"]}), UserError, "found split 'dev'; expected one of train, validate, test"),
        (SplitPlan({}, rest="dev"), UserError, "found split 'dev'"),
        (SplitPlan(subsets={"tenth": ["a"]}), UserError, "found subset 'tenth'; expected the name of its split"),
        (SplitPlan(subsets={"train": ["a"]}), UserError, "found subset 'train'"),
        (SplitPlan({"train": ["a", "a", "b"]}), DataError, "the list of 'train' names 1 images twice"),
        (SplitPlan({"train": "a", "test": "b"}, {"train_1": "b"}), DataError, "subset 'train_1' names 1 images that"),
        (SplitPlan(subsets={"train_1": ["a", "y"]}), DataError, "subset 'train_1' names 1 images that are not in its"),
    ],
)
def test_a_plan_that_contradicts_itself_is_refused(plan, kind, message):
    with pytest.raises(kind) as error:
        run("ab", plan)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_plan_pickles_and_its_hash_ignores_order():
    plan = SplitPlan({"train": ("a", "b"), "test": ("c",)}, {"train_1": ("a",)})
    assert pickle.loads(pickle.dumps(plan)) == plan
    other = SplitPlan({"test": ("c",), "train": ("b", "a")}, {"train_1": {"a"}})
    assert other.hashes() == plan.hashes()
    assert run("abc", plan).inputs == {**plan.hashes(), "checksums": "absent"}  # none of these releases has any
    assert SplitPlan({"train": ("a",), "test": ("b", "c")}).hashes() != plan.hashes()
    assert SplitPlan().hashes() == {}


@given(st.dictionaries(names, st.sets(st.text("a\u00e9\u4e00\U0001fac1", max_size=3))))
def test_the_hash_of_lists_is_that_of_sorted_json_wherever_they_lie(lists):
    on_disk = {name: Names() for name in lists}
    for name, members in lists.items():
        for member in members:
            on_disk[name].add(member)
    text = json.dumps([{name: sorted(members) for name, members in lists.items()}, {"train_1": ["a"]}], sort_keys=True)
    expected = {"splits": hashlib.sha256(text.encode()).hexdigest()}
    assert SplitPlan(lists, {"train_1": ["a"]}).hashes() == SplitPlan(on_disk, {"train_1": ["a"]}).hashes() == expected


identifiers = st.sampled_from(["", "p", "p1", "p10", "\u00e9"])
rows = st.builds(
    ImageRow,
    *[identifiers] * 5,
    st.sampled_from([(), (0.0, -1.0), (1.0, 0.1)]),
    *[identifiers] * 2,
    st.sampled_from([(), ((0.1, 2.0, 3e-9, 4.0),), ((1.0, 2.0, 3.0, 4.0), (5.0, 6.0, 7.0, 8.0))]),
    st.sampled_from([(), ("1 2", "3 4")]),
    identifiers,
    st.sampled_from([(), ("train_1",), ("train_1", "train_10")]),
    st.sampled_from([(), ("view_from_code",)]),
)


@given(st.lists(st.tuples(st.sampled_from(SPLITS), rows), max_size=12))
def test_rows_come_back_from_the_disk_as_they_were_and_in_order(added):
    kept, expected = Kept(["train_1", "train_10"]), {}
    for split, item in added:
        kept.add(split, item)
        expected.setdefault(split, []).append(item)
    for split, members in expected.items():
        kept.sort(split)
        members.sort(key=lambda item: (item.patient, item.study, item.image, item.phrase))
        assert list(kept.rows(split)) == members
        assert kept.rows(split)[1:] == list(kept.rows(split))[1:]
        assert kept.rows(split)[-1] == list(kept.rows(split))[-1]
    assert list(kept.places) == list(expected)


def test_a_file_whose_name_is_not_utf8_stands_in_no_other_s_way(tmp_path):
    for name in (b"a.png", b"\xff.png", b"\xff.jpg"):
        (tmp_path / os.fsdecode(name)).touch()
    assert find_images(tmp_path, [""], Scan()) == {"a": "a.png", "\udcff": "\udcff.png"}


def test_image_files_are_found_at_any_depth_and_the_better_copy_is_taken(tmp_path):
    files = [
        "t/u/v/1.2.3.dcm",
        "t/1.2.3.png",
        "t/4.jpg",
        "t/4.PNG",
        "images/4.dcm",
        "5.png",
        "masks/6.png",
        "t/note.txt",
    ]
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    scan = Scan(lenient=True)
    found = find_images(tmp_path, ["t", "images", "absent", ""], scan, lambda stem: f"<{stem}>")
    assert found == {"1.2.3": "t/u/v/1.2.3.dcm", "4": "t/4.PNG", "5": "5.png"}
    assert sorted((note.code, note.identifier) for note in scan.notes) == [
        ("two_files", "<1.2.3>"),
        ("two_files", "<4>"),
        ("two_files", "<4>"),
    ]
    strict = Scan()
    assert find_images(tmp_path, ["t", "images", "absent", ""], strict) == found
    assert not strict.notes


def test_names_lose_folder_and_suffix_but_keep_their_dots():
    assert image_of_name("stage_2_train_images/0004-ab.dcm") == "0004-ab"
    assert image_of_name("1.2.276.850819") == "1.2.276.850819"
    assert image_of_name("a/b/1.2.276.850819.PNG") == "1.2.276.850819"


def test_one_table_is_expected(tmp_path):
    for name, found in {"a.csv.gz": "none", "b.csv": "a.csv.gz, b.csv"}.items():
        if found != "none":
            (tmp_path / "a.csv.gz").touch()
            assert find_one_table(tmp_path, ["?.csv"]).name == "a.csv.gz"
            (tmp_path / name).touch()
        with pytest.raises(UserError, match=f"expected one table .*; found {found}; choose one"):
            find_one_table(tmp_path, ["?.csv"])
    assert find_one_table(tmp_path, ["?.csv"], tmp_path / "b.csv") == tmp_path / "b.csv"


@given(st.lists(st.one_of(st.floats().map(str), st.integers().map(str), st.text(max_size=5)), min_size=3, max_size=5))
def test_a_box_has_four_finite_numbers_and_an_area(values):
    try:
        numbers = tuple(float(value) for value in values)
    except ValueError:
        numbers = ()
    if len(numbers) == 4 and all(abs(number) < 1e6 for number in numbers) and min(numbers[2:]) > 0:
        assert parse_box("t.csv: row 7", values) == numbers
        return
    with pytest.raises(UserError, match=r"^t.csv: row 7 has no box; expected numbers x, y, w, h with w and h above 0$"):
        parse_box("t.csv: row 7", values)


def test_shares_of_train_become_the_splits_that_are_missing_by_whole_patients():
    rows = [row(f"{patient}{image}", f"p{patient}") for patient in range(40) for image in range(patient % 3 + 1)]
    plan = SplitPlan({"train": [item.image for item in rows]}, {"train_9": [rows[0].image]}, validation=0.2, test=0.1)
    scan = run(rows, plan)
    patients = {split: {item.patient for item in members} for split, members in scan.rows.items()}
    assert not patients["train"] & patients["validate"] | patients["train"] & patients["test"]
    assert not patients["validate"] & patients["test"]
    assert scan.input_rows == len(rows)
    for split, share in (("validate", 0.2), ("test", 0.1)):
        assert share * len(rows) <= len(scan.rows[split]) < share * len(rows) + 3
    with pytest.raises(UserError, match="have 'test' already"):
        run(rows, SplitPlan({"test": [rows[0].image]}, rest="train", test=0.1))


def test_fractions_of_train_are_subsets_by_seed_and_nested():
    rows = [row(f"{patient}{image}", f"p{patient}") for patient in range(40) for image in range(patient % 3 + 1)]
    plan = SplitPlan({"train": [item.image for item in rows]}, fractions=(0.05, 0.25), seeds=(0, 1))
    members = {}
    for item in run(rows, plan).rows["train"]:
        for name in item.subsets:
            members.setdefault(name, set()).add(item.patient)
    assert set(members) == {f"train_{share}_seed{seed}" for share in (5, 25) for seed in (0, 1)}
    assert all(members[f"train_5_seed{seed}"] < members[f"train_25_seed{seed}"] for seed in (0, 1))
    assert members["train_25_seed0"] != members["train_25_seed1"]


def test_the_settings_name_the_variant_of_published_lists_and_nothing_where_there_are_none():
    published = PublishedSplits({"train": ("a",)}, {}, {})
    assert SplitChoice(variant="clean").plan(published).settings()["variant"] == "clean"
    assert SplitChoice().plan(published).settings()["variant"] == "as_published"
    assert "variant" not in SplitChoice().plan(None).settings()


def test_a_source_that_is_written_from_the_readme_has_its_table_among_the_inputs(tmp_path):
    text = (Path(labelled.__file__).parents[1] / "README.md").read_text()
    (block,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    known = {name: getattr(labelled, name) for name in ("Found", "LabelledImages", "distribute", "record_hash")}
    known |= {"dataclass": dataclass, "Mapping": Mapping, "Iterator": Iterator, "Any": Any, "Path": Path}
    known |= {"ImageRow": ImageRow, "Scan": Scan, "UserError": UserError}
    exec(block, known)

    class Hospital(known["MyHospital"]):
        name = "my_hospital"

        def label_names(self):
            return ("Edema",)

        def settings(self):
            return self.plan.settings()

    (tmp_path / "root" / "images").mkdir(parents=True)
    (tmp_path / "root" / "labels.csv").write_text("image,patient,label\na,p1,1\nb,p2,0\n")
    for number, image in enumerate("ab"):
        pixels = np.random.default_rng(number).integers(0, 256, (40, 40), np.uint8)
        cv2.imwrite(str(tmp_path / "root" / "images" / f"{image}.png"), pixels)
    made = build(Hospital(tmp_path / "root"), tmp_path / "out", short_side=32, workers=1, progress=False)
    assert made.counts == {"train": 2}
    assert made.inputs == {"checksums": "absent", "labels": file_hash(tmp_path / "root" / "labels.csv")}
    (tmp_path / "root" / "labels.csv").write_text("image,patient,label\na,p1,maybe\nb,p2,0\n")
    with pytest.raises(UserError, match=r"labels\.csv: row 2 has no label 0 or 1"):
        Hospital(tmp_path / "root").scan()
    assert [problem.code for problem in Hospital(tmp_path / "root").scan(lenient=True).problems] == ["unknown_label"]
