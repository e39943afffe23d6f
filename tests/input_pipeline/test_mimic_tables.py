"""Labellers, radiologists, the user's own split and the list of images: by name, once each, and every row counted."""

from collections import Counter

import numpy as np
import pytest

from input_pipeline.datasets.mimic_cxr import LABEL_NAMES, MimicCxr
from input_pipeline.datasets.mimic_tables import Index, read_labels
from input_pipeline.errors import DataError, MsflError, UserError
from input_pipeline.sources import Scan


def source(root, **options):
    return MimicCxr(root, root, **options)


def refusal(root, kind: type[MsflError] = UserError, **options):
    with pytest.raises(kind) as error:
        source(root, **options).scan()
    message = str(error.value)
    assert "\n" not in message
    assert not any(word in message for word in ("10000000", "10000037", "50000000", "00000000-"))
    return message


def label_rows(layout, value, studies=None):
    return [
        {"study_id": item.number, **dict.fromkeys(LABEL_NAMES, value)}
        for item in layout.studies()
        if studies is None or item.study in studies
    ]


def rows(scan):
    return [row for split in scan.rows.values() for row in split]


def test_negbio_labels_are_read_from_their_own_table(own_mimic_root, layout):
    assert "no negbio table; expected mimic-cxr-2.0.0-negbio.csv.gz" in refusal(own_mimic_root, labels="negbio")
    layout.write_table(own_mimic_root / "mimic-cxr-2.0.0-negbio.csv.gz", label_rows(layout, "-1.0"))
    scan = source(own_mimic_root, labels="negbio").scan()
    assert {row.labels for row in rows(scan)} == {(-1.0,) * 14}
    assert "negbio" in scan.inputs
    assert "chexpert" not in scan.inputs
    assert source(own_mimic_root, labels="negbio").settings()["labels"] == "negbio"
    assert "expected 'chexpert' or 'negbio'" in refusal(own_mimic_root, labels="chexbert")


def test_radiologists_label_the_test_split_alone(own_mimic_root, layout):
    tested = [item.study for item in layout.studies() if item.split == "test"]
    table = label_rows(layout, "1.0", [0, *tested[:2]])  # study 0 is in train
    for row in table:
        row["Airspace Opacity"] = row.pop("Lung Opacity")  # the name in release 2.1.0
        row["Edema"] = ""
    before = source(own_mimic_root).scan()
    layout.write_table(own_mimic_root / "mimic-cxr-2.1.0-test-set-labeled.csv", table)
    after, off = source(own_mimic_root).scan(), source(own_mimic_root, radiologist_labels=False).scan()
    expected = [np.nan if name == "Edema" else 1.0 for name in LABEL_NAMES]
    read = {row.study: row.labels for row in rows(after)}
    for old in rows(before):
        labelled = old.study in [layout.studies()[number].number for number in tested[:2]]
        np.testing.assert_array_equal(read[old.study], expected if labelled else old.labels)
    assert before.inputs["test-set-labeled"] == "absent"
    assert len(after.inputs["test-set-labeled"]) == 64
    np.testing.assert_array_equal([row.labels for row in rows(off)], [row.labels for row in rows(before)])
    assert not source(own_mimic_root, radiologist_labels=False).settings()["radiologist_labels"]


def test_a_study_with_two_rows_of_labels_is_refused(own_mimic_root, layout):
    path = own_mimic_root / "mimic-cxr-2.0.0-chexpert.csv.gz"
    layout.write_table(path, [*label_rows(layout, "1.0"), label_rows(layout, "0.0")[2]])
    assert "the study of row 26 is listed twice, first in row 4; expected once" in refusal(own_mimic_root, DataError)


def test_equal_labels_are_one_object(own_mimic_root, layout):
    path = own_mimic_root / "labels.csv"
    layout.write_table(path, [*label_rows(layout, "1.0"), {**label_rows(layout, "")[0], "study_id": "5999"}])
    assert len({id(labels) for labels in read_labels(path, Scan(), Index()).values()}) == 2


def write_splits(layout, path, key, of):
    """A split file by "dicom_id" or "subject_id"; `of` gives a study's split, or None to leave it out."""
    table = {}
    for item in layout.studies():
        if split := of(item):
            table[item.image if key == "dicom_id" else item.subject] = split
    layout.write_table(path, [{"split": split, key: name, "note": "x"} for name, split in table.items()])
    return path


@pytest.mark.parametrize("key", ["dicom_id", "subject_id"])
def test_an_own_split_replaces_the_official_one(own_mimic_root, layout, tmp_path, key):
    places = (None, "train", "test")
    path = write_splits(layout, tmp_path / "own.csv", key, lambda item: places[item.patient % 3])
    (own_mimic_root / "mimic-cxr-2.0.0-split.csv.gz").unlink()
    data = source(own_mimic_root, splits=path)
    scan = data.scan()
    for split, kept in scan.rows.items():
        expected = {item.image for item in layout.studies() if places[item.patient % 3] == split}
        assert {row.image for row in kept} == expected
    # Eight images of four patients, the lateral image of one of them, and the image that the official table does not know.
    assert scan.dropped == {"none": Counter(no_split=10)}
    assert scan.input_rows == 26
    assert len(scan.inputs["split"]) == 64
    assert data.settings()["splits"] == "own"


def test_images_of_one_patient_in_two_splits_are_refused(own_mimic_root, layout, tmp_path):
    path = write_splits(
        layout, tmp_path / "own.csv", "dicom_id", lambda item: "train" if item.study % 2 else "validate"
    )
    assert "puts images of one patient into two splits" in refusal(own_mimic_root, DataError, splits=path)


def test_an_image_of_an_own_split_without_metadata_is_counted(own_mimic_root, layout, tmp_path):
    path = tmp_path / "own.csv"
    layout.write_table(
        path, [{"dicom_id": layout.studies()[0].image, "split": "train"}, {"dicom_id": "abc", "split": "test"}]
    )
    scan = source(own_mimic_root, splits=path).scan()
    assert scan.dropped["test"] == Counter(no_metadata=1)
    assert len(scan.rows["train"]) == 1


@pytest.mark.parametrize(
    "content, kind, message",
    [
        ("study,split\n1,train\n", UserError, "no column dicom_id or subject_id"),
        ("subject_id,part\n10000000,train\n", UserError, "column 'split' is missing"),
        (
            "subject_id,split\n10000000,val\n",
            UserError,
            "row 2 has an unknown split; expected one of train, validate, test",
        ),
        ("subject_id,split\n10000000,train\n10000000,test\n", DataError, "row 3 is listed before with another split"),
        ("subject_id,split\nJane Doe,train\n", UserError, "row 2 has no subject_id"),
        ("dicom_id,split\n../x,train\n", UserError, "row 2 has no dicom_id"),
        ("", UserError, "the file is empty; expected a header"),
        ("subject_id;split\n", UserError, "columns are separated by ';'; expected commas"),
    ],
)
def test_a_wrong_split_file_is_refused(own_mimic_root, tmp_path, content, kind, message):
    path = tmp_path / "own.csv"
    path.write_text(content)
    assert message in refusal(own_mimic_root, kind, splits=path)


def test_a_split_file_that_is_not_there_or_is_a_folder_is_refused(own_mimic_root, tmp_path):
    assert "no such file" in refusal(own_mimic_root, splits=tmp_path / "own.csv")
    assert "expected a CSV table" in refusal(own_mimic_root, splits=tmp_path)


def write_list(root, paths):
    (root / "IMAGE_FILENAMES").write_text("".join(f"{path}\n" for path in paths))


def test_the_list_of_images_is_compared_with_the_tables(own_mimic_root, layout):
    assert source(own_mimic_root).scan().inputs["image_filenames"] == "absent"
    listed = [item.jpg for item in layout.studies()]
    lateral, splitless, plain = (
        layout.table_rows()[role][-k]["dicom_id"] for role, k in (("split", 2), ("metadata", 1), ("split", 1))
    )
    others = [f"files/p19/p19999999/s59999999/{name}.jpg" for name in (lateral, splitless, plain)]
    write_list(own_mimic_root, [*listed, *others])
    complete = source(own_mimic_root).scan()
    assert complete.input_rows == 27
    assert not any("list" in reason for reasons in complete.dropped.values() for reason in reasons)
    write_list(own_mimic_root, [*listed[2:], *others, "files/p19/p19999999/s59999999/only-here.jpg"])
    scan = source(own_mimic_root).scan()
    assert scan.dropped["train"] == complete.dropped["train"] + Counter(not_listed=2)
    assert scan.dropped["none"] == Counter(no_split=1, in_no_table=1)
    assert scan.input_rows == 28
    assert len(scan.inputs["image_filenames"]) == 64


@pytest.mark.parametrize("line", ["LICENSE.txt", "files/p10/x", "<html>", ".jpg"])
def test_a_line_that_is_no_image_is_named_by_its_number(own_mimic_root, layout, line):
    write_list(own_mimic_root, [layout.studies()[0].jpg, line])
    assert "IMAGE_FILENAMES: line 2 is no image" in refusal(own_mimic_root)


def test_an_image_listed_twice_in_the_list_is_refused(own_mimic_root, layout):
    write_list(own_mimic_root, [layout.studies()[0].jpg] * 2)
    assert "the image of line 2 is listed twice" in refusal(own_mimic_root, DataError)


def test_lateral_views_are_lateral_and_left_lateral(own_mimic_root, layout):
    table = layout.table_rows()["metadata"]
    views = ("LATERAL", "LL", "XTABLE LATERAL", "PA", "", "", "", "")
    meanings = ("", "", "", "", "Lateral", "left lateral", "antero-posterior", "supine")
    for row, view, meaning in zip(table, views, meanings, strict=False):
        row.update(ViewPosition=view, ViewCodeSequence_CodeMeaning=meaning)
    layout.write_table(own_mimic_root / "mimic-cxr-2.0.0-metadata.csv.gz", table)
    names = [row["dicom_id"] for row in table]
    kept = {row.image for row in rows(source(own_mimic_root, views="lateral").scan())}
    assert kept == {names[k] for k in (0, 1, 4, 5)} | {table[-2]["dicom_id"]}
    frontal = {row.image for row in rows(source(own_mimic_root).scan())}
    assert {names[k] in frontal for k in (3, 6)} == {True}
    assert not kept & frontal
    assert not {names[2], names[7]} & (kept | frontal)
    assert source(own_mimic_root, views="lateral").scan().dropped["validate"] == Counter(not_lateral=4)
    assert (
        source(own_mimic_root, views="lateral").scan().dropped["train"]["no_view"] == 1
    )  # row 8, whose code is none of a view
    assert source(own_mimic_root).scan().dropped["train"]["no_view"] == 1
    every = {row.image: row for row in rows(source(own_mimic_root, views="all").scan())}
    coded = {image for image, row in every.items() if row.flags == ("view_from_code",)}
    assert coded == {names[k] for k in (4, 5, 6)}
    assert every[names[7]].view == ""


@pytest.mark.parametrize(
    "options, message",
    [
        ({"policy": ("finding",)}, "found section 'finding'; expected its usual name 'findings'"),
        ({"policy": ("Findings",)}, "expected its usual name 'findings'"),
        ({"fallback": "conclusion"}, "expected its usual name 'impression'"),
        ({"policy": ()}, "found no section to read"),
    ],
)
def test_sections_are_asked_for_by_their_usual_names(mimic_root, options, message):
    assert message in refusal(mimic_root, **options)


@pytest.mark.parametrize("name", ["findings", "impression", "last_paragraph", "full report", "wet read", "comparison"])
def test_every_section_of_the_parser_can_be_asked_for(mimic_root, name):
    assert source(mimic_root, policy=(name,), fallback=None).scan().input_rows == 27
