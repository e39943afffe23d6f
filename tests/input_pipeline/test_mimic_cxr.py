"""MIMIC-CXR-JPG is joined by column name, every row of it is accounted for, and nothing of it is quoted in a message."""

import shutil
from collections import Counter

import numpy as np
import pytest

from input_pipeline.datasets.mimic_cxr import LABEL_NAMES, MimicCxr
from input_pipeline.errors import DataError, MsflError, UserError


def source(root, **options):
    return MimicCxr(root, root, **options)


def rewrite(layout, root, role, change):
    """Writes one table again after `change` has edited its rows."""
    rows = layout.table_rows()[role]
    change(rows)
    layout.write_table(root / f"mimic-cxr-2.0.0-{role}.csv.gz", rows)


def refusal(root, kind: type[MsflError] = UserError, **options):
    """The message of a scan that is refused: one line, without identifiers."""
    with pytest.raises(kind) as error:
        source(root, **options).scan()
    message = str(error.value)
    assert "\n" not in message
    assert "10000000" not in message
    return message


def test_every_row_of_either_table_is_kept_or_counted(mimic_root, layout):
    scan = source(mimic_root).scan()
    assert {split: len(rows) for split, rows in scan.rows.items()} == {"train": 16, "validate": 4, "test": 4}
    assert scan.dropped == {
        "train": Counter(not_frontal=1, no_metadata=1),
        "none": Counter(no_split=1),
    }
    tables = layout.table_rows()
    images = {row["dicom_id"] for role in ("split", "metadata") for row in tables[role]}
    assert scan.input_rows == len(images) == 27


def test_rows_are_sorted_and_their_paths_exist(mimic_root, layout):
    rows = source(mimic_root).scan().rows["test"]
    expected = sorted((item.subject, item.number, item.jpg) for item in layout.studies() if item.split == "test")
    assert [(row.patient, row.study, row.path) for row in rows] == expected
    assert all((mimic_root / row.path).is_file() for row in rows)


def test_a_missing_view_is_taken_from_its_code(mimic_root, layout):
    views = {row.study: row.view for rows in source(mimic_root).scan().rows.values() for row in rows}
    assert views[layout.studies()[2].number] == "PA"
    assert set(views.values()) == {"PA", "AP"}


def test_all_views_keep_the_lateral_image(mimic_root):
    rows = source(mimic_root, views="all").scan().rows["train"]
    assert Counter(row.view for row in rows)["LATERAL"] == 1


def test_labels_belong_to_their_names_whatever_the_column_order(own_mimic_root, layout):
    before = source(own_mimic_root).scan()

    def reverse(rows):
        rows[:] = [dict(reversed(row.items())) for row in rows]

    rewrite(layout, own_mimic_root, "chexpert", reverse)
    after = source(own_mimic_root).scan()
    for split, rows in before.rows.items():
        np.testing.assert_array_equal([row.labels for row in rows], [row.labels for row in after.rows[split]])
    values = {"1.0": 1.0, "0.0": 0.0, "-1.0": -1.0, "": np.nan}
    expected = {row["study_id"]: [values[row[name]] for name in LABEL_NAMES] for row in layout.table_rows()["chexpert"]}
    for row in after.rows["train"]:
        np.testing.assert_array_equal(row.labels, expected[row.study])


def test_without_a_label_table_or_row_labels_are_unknown(own_mimic_root, layout):
    rewrite(layout, own_mimic_root, "chexpert", lambda rows: rows.pop(0))
    first = source(own_mimic_root).scan().rows["train"][0]
    assert np.isnan(first.labels).all()
    (own_mimic_root / "mimic-cxr-2.0.0-chexpert.csv.gz").unlink()
    rows = source(own_mimic_root).scan().rows["train"]
    assert np.isnan([row.labels for row in rows]).all()


def test_plain_tables_are_read_as_well(own_mimic_root, mimic_root, layout):
    for role in ("split", "metadata", "chexpert"):
        (own_mimic_root / f"mimic-cxr-2.0.0-{role}.csv.gz").unlink()
        layout.write_table(own_mimic_root / f"mimic-cxr-2.0.0-{role}.csv", layout.table_rows()[role])
    found, expected = source(own_mimic_root).scan().rows, source(mimic_root).scan().rows
    assert {split: [row.path for row in rows] for split, rows in found.items()} == {
        split: [row.path for row in rows] for split, rows in expected.items()
    }


@pytest.mark.parametrize("role", ["split", "metadata"])
def test_a_missing_table_is_named(own_mimic_root, role):
    (own_mimic_root / f"mimic-cxr-2.0.0-{role}.csv.gz").unlink()
    assert f"no {role} table; expected mimic-cxr-2.0.0-{role}.csv.gz" in refusal(own_mimic_root)


def test_a_renamed_column_is_named_with_its_nearest(own_mimic_root, layout):
    def rename(rows):
        rows[:] = [
            {key.replace("Pleural Effusion", "Pleural_Effusion"): value for key, value in row.items()} for row in rows
        ]

    rewrite(layout, own_mimic_root, "chexpert", rename)
    assert "column 'Pleural Effusion' is missing; found 16 columns, nearest 'Pleural_Effusion'" in refusal(
        own_mimic_root
    )


@pytest.mark.parametrize(
    "role, row, values, message",
    [
        ("split", 0, {"split": "val"}, "row 2 has an unknown split; expected one of train, validate, test"),
        ("chexpert", 1, {"Edema": "2"}, "row 3 has a label that is none of 1, 0, -1 and blank"),
        ("metadata", 2, {"dicom_id": "../../etc/passwd"}, "row 4 has an identifier that cannot name a file"),
        ("split", 2, {"subject_id": "1/../../.."}, "row 4 has an identifier that cannot name a file"),
    ],
)
def test_a_wrong_value_is_named_by_its_row(own_mimic_root, layout, role, row, values, message):
    rewrite(layout, own_mimic_root, role, lambda rows: rows[row].update(values))
    assert message in refusal(own_mimic_root)


def test_an_image_listed_twice_is_refused(own_mimic_root, layout):
    for role in ("split", "metadata"):
        rewrite(layout, own_mimic_root, role, lambda rows: rows.append(rows[0]))
        assert "listed twice" in refusal(own_mimic_root, DataError)
        rewrite(layout, own_mimic_root, role, lambda rows: None)


def test_a_patient_in_two_splits_is_refused(own_mimic_root, layout):
    rewrite(layout, own_mimic_root, "split", lambda rows: rows[0].update(split="test"))
    assert "is in two splits" in refusal(own_mimic_root, DataError)


def test_tables_that_disagree_on_a_study_are_refused(own_mimic_root, layout):
    rewrite(layout, own_mimic_root, "metadata", lambda rows: rows[0].update(study_id="50000999"))
    assert "disagree" in refusal(own_mimic_root, DataError)


def test_an_unknown_choice_of_views_is_refused(mimic_root):
    assert "expected 'frontal', 'lateral' or 'all'" in refusal(mimic_root, views="frontal ")


def test_a_link_out_of_the_data_folder_is_refused(own_mimic_root, tmp_path, layout):
    item = layout.studies()[0]
    image = own_mimic_root / item.jpg
    shutil.move(image, tmp_path / "elsewhere.jpg")
    image.symlink_to(tmp_path / "elsewhere.jpg")
    row = source(own_mimic_root).scan().rows["train"][0]
    with pytest.raises(UserError, match="leads out of the data folder"):
        source(own_mimic_root).image(row)


def test_the_whole_image_tree_may_be_a_link(own_mimic_root, tmp_path):
    shutil.move(own_mimic_root / "files", tmp_path / "disk")
    (own_mimic_root / "files").symlink_to(tmp_path / "disk")
    row = source(own_mimic_root).scan().rows["train"][0]
    assert source(own_mimic_root).image(row).startswith(b"\xff\xd8")
