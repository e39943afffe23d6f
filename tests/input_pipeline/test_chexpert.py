"""CheXpert is read by column name from either release, with every row accounted for and uncertain labels as asked."""

import csv
import pickle
import shutil
from collections import Counter

import cv2
import numpy as np
import pytest

from input_pipeline.build import build
from input_pipeline.datasets.chexpert import LABEL_NAMES, Chexpert
from input_pipeline.datasets.labelled import SplitPlan
from input_pipeline.errors import DataError, MsflError, UserError
from input_pipeline.reading import label_names, open_split
from input_pipeline.splits import CHEXPERT_LABEL_NAMES

HEADER = (
    "Path,Sex,Age,Frontal/Lateral,AP/PA,No Finding,Enlarged Cardiomediastinum,Cardiomegaly,Lung Opacity,Lung Lesion,Edema,"
    "Consolidation,Pneumonia,Atelectasis,Pneumothorax,Pleural Effusion,Pleural Other,Fracture,Support Devices"
)
VALUES = ("1.0", "0.0", "-1.0", "")


def table_row(number, folder="train", side="frontal", release="CheXpert-v1.0-small"):
    path = f"{release}/{folder}/patient{number // 2:05d}/study1/view{number % 2 + 1}_{side}.jpg"
    labels = [VALUES[(number + place) % 4] for place in range(14)]
    view = "AP" if side == "frontal" else ""
    return dict(zip(HEADER.split(","), [path, "Male", "50", side.title(), view, *labels], strict=True))


def rows(release="CheXpert-v1.0-small"):
    """Two images of each of six patients; the last of them are `valid`, and every patient's second image is lateral."""
    folders = {number: "valid" if number >= 8 else "train" for number in range(12)}
    sides = ("frontal", "lateral")
    return [table_row(number, folder, sides[number % 2], release) for number, folder in folders.items()]


def write(layout, home, table):
    for folder in ("train", "valid"):
        layout.write_table(home / f"{folder}.csv", [row for row in table if f"/{folder}/" in row["Path"]])
    for row in table:
        path = home / row["Path"].partition("/")[2]
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), np.random.default_rng(len(path.name)).integers(0, 256, (40, 48), dtype=np.uint8))
    return home


@pytest.fixture
def root(layout, tmp_path):
    return write(layout, tmp_path / "CheXpert-v1.0-small", rows())


def rewrite(layout, root, table):
    layout.write_table(root / "train.csv", table)


def refusal(root, kind: type[MsflError] = UserError, **options):
    with pytest.raises(kind) as error:
        Chexpert(root, **options).scan()
    message = str(error.value)
    assert "\n" not in message
    assert "patient0" not in message.replace("patient00001/study1", "")
    return message


def test_every_row_is_kept_or_counted(root):
    scan = Chexpert(root).scan()
    assert {split: len(found) for split, found in scan.rows.items()} == {"train": 4, "test": 2}
    assert scan.dropped == {"train": Counter(not_frontal=4), "test": Counter(not_frontal=2)}
    assert scan.input_rows == 12
    assert {row.view for found in scan.rows.values() for row in found} == {"AP"}
    assert set(Chexpert(root, valid_as="validate").scan().rows) == {"train", "validate"}


def test_all_views_and_patients_from_the_path(root):
    scan = Chexpert(root, views="all").scan()
    assert not scan.dropped
    first, second = scan.rows["train"][:2]
    assert (first.patient, first.study, first.view) == ("patient00000", "patient00000/study1", "AP")
    assert (second.patient, second.study, second.view) == ("patient00000", "patient00000/study1", "LATERAL")
    assert all((root / row.path).is_file() for found in scan.rows.values() for row in found)


@pytest.mark.parametrize("release", ["CheXpert-v1.0-small", "CheXpert-v1.0", "anything"])
@pytest.mark.parametrize("above", [False, True])
def test_the_releases_name_is_stripped_and_the_folder_around_is_accepted(layout, tmp_path, release, above):
    home = write(layout, tmp_path / "data" / release, rows(release))
    source = Chexpert(home.parent if above else home, views="all")
    found = [row for kept in source.scan().rows.values() for row in kept]
    assert len(found) == 12
    assert all(source.files(row)[0].is_file() and source.image(row) for row in found)
    assert {row.image for row in found} == {row["Path"].partition("/")[2].removesuffix(".jpg") for row in rows()}


@pytest.mark.parametrize(
    "options, expected",
    [
        ({}, {"-1.0": -1.0, "": np.nan}),
        ({"uncertain": "ones"}, {"-1.0": 1.0, "": np.nan}),
        ({"uncertain": "zeros", "blank": "absent"}, {"-1.0": 0.0, "": 0.0}),
        ({"uncertain": "ignore", "blank": "absent"}, {"-1.0": np.nan, "": 0.0}),
    ],
)
def test_uncertain_and_blank_labels_become_what_is_asked(root, options, expected):
    table = {row["Path"].partition("/")[2]: row for row in rows()}
    values = {"1.0": 1.0, "0.0": 0.0, **expected}
    for row in Chexpert(root, views="all", **options).scan().rows["train"]:
        wanted = [values[table[row.path][name]] for name in LABEL_NAMES]
        np.testing.assert_array_equal(row.labels, wanted)


def test_the_published_mixture(layout, root):
    doubtful = {**table_row(0), **dict.fromkeys(LABEL_NAMES, "-1.0")}
    rewrite(layout, root, [doubtful])
    (row,) = Chexpert(root, uncertain="published").scan().rows["train"]
    found = dict(zip(LABEL_NAMES, row.labels, strict=True))
    assert [found.pop(name) for name in CHEXPERT_LABEL_NAMES] == [1, 0, 0, 1, 1]
    assert len(found) == 9
    assert np.isnan(list(found.values())).all()


def test_columns_may_stand_in_any_order_and_the_table_may_be_gzipped(layout, root):
    before = Chexpert(root).scan()
    (root / "train.csv").unlink()
    layout.write_table(root / "train.csv.gz", [dict(reversed(row.items())) for row in rows()[:8]])
    after = Chexpert(root).scan()
    for found, expected in zip(after.rows["train"], before.rows["train"], strict=True):
        np.testing.assert_array_equal(found.labels, expected.labels)
        assert found.path == expected.path


def test_valid_may_be_missing_and_the_manifest_will_say_so(root):
    (root / "valid.csv").unlink()
    scan = Chexpert(root).scan()
    assert set(scan.rows) == {"train"}
    assert scan.inputs["valid"] == "absent"
    assert len(scan.inputs["train"]) == 64


def test_published_lists_name_images_of_the_small_release(layout, tmp_path):
    home = write(layout, tmp_path / "CheXpert-v1.0", rows("CheXpert-v1.0"))
    table = rows()
    lists = {
        "validate": [row["Path"] for row in table[4:8]],
        "test": [row["Path"] for row in table[8:]] + [table_row(98)["Path"]],
    }
    plan = SplitPlan(lists, {"train_1": [table[0]["Path"]]}, rest="train")
    scan = Chexpert(home, plan, views="all").scan()
    assert {split: len(found) for split, found in scan.rows.items()} == {"train": 4, "validate": 4, "test": 4}
    assert scan.dropped == {"test": Counter(not_in_table=1)}
    assert [row.subsets for row in scan.rows["train"]] == [("train_1",), (), (), ()]
    assert len(scan.inputs["splits"]) == 64


def test_lists_that_share_a_patient_are_refused(root):
    table = rows()
    leaky = {"train": [table[0]["Path"]], "validate": [table[1]["Path"]]}
    assert "share 0 images and 1 patient; expected nothing in two splits" in refusal(
        root, DataError, plan=SplitPlan(leaky), views="all"
    )
    source = Chexpert(root, SplitPlan(leaky, allow_leak=True), views="all")
    assert source.scan().input_rows == 12
    assert source.settings()["allow_leak"] is True


def test_settings_and_pickling(root):
    source = Chexpert(root, SplitPlan({"train": ["CheXpert-v1.0/train/patient00000/study1/view1_frontal.jpg"]}))
    assert "patient" not in str(source.settings())
    assert str(root) not in str(source.settings())
    assert pickle.loads(pickle.dumps(source)) == source


@pytest.mark.parametrize(
    "change, message",
    [
        ({"Edema": "2.0"}, "train.csv: row 2 has a label that is none of 1, 0, -1 and blank"),
        ({"Edema": "nan"}, "train.csv: row 2 has a label that is none of"),
        ({"Frontal/Lateral": "Oblique"}, "train.csv: row 2 is neither 'Frontal' nor 'Lateral'"),
        ({"Path": "../../etc/passwd"}, "train.csv: row 2 has a path that is none of CheXpert's"),
        ({"Path": "a/train/patient00001/../../../x.jpg"}, "train.csv: row 2 has a path that is none of CheXpert's"),
    ],
)
def test_a_wrong_row_is_named(layout, root, change, message):
    rewrite(layout, root, [{**table_row(0), **change}])
    assert message in refusal(root)


def test_duplicates_are_refused_even_under_two_releases_names(layout, root):
    rewrite(layout, root, [table_row(0), table_row(2), table_row(0, release="CheXpert-v1.0")])
    assert "train.csv: the image of row 4 is listed twice, first in row 2; expected" in refusal(root, DataError)


def test_a_missing_column_is_named_with_its_nearest(layout, root):
    renamed = [{key.replace("Pleural Effusion", "Pleural_Effusion"): row[key] for key in row} for row in rows()[:8]]
    rewrite(layout, root, renamed)
    assert "column 'Pleural Effusion' is missing; found 19 columns, nearest 'Pleural_Effusion'" in refusal(root)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"views": "side"}, "found views 'side'; expected one of frontal, all"),
        ({"uncertain": "maybe"}, "found uncertain 'maybe'; expected one of keep, ones, zeros, ignore, published"),
        ({"blank": "0"}, "found blank '0'; expected one of unknown, absent"),
        ({"valid_as": "train"}, "found valid_as 'train'; expected one of validate, test"),
        ({"plan": SplitPlan({"train": ["x.jpg"]})}, "a list has a name that is none of CheXpert's"),
    ],
)
def test_a_wrong_option_is_refused(root, options, message):
    assert message in refusal(root, **options)


def test_a_wrong_folder_is_named(root, tmp_path):
    assert "found no train.csv; expected the one folder of CheXpert" in refusal(
        tmp_path / "CheXpert-v1.0-small" / "train"
    )
    shutil.copytree(root, tmp_path / "CheXpert-v1.0")
    assert "found CheXpert-v1.0, CheXpert-v1.0-small; expected the one folder" in refusal(tmp_path)


def test_a_build_holds_the_labels_of_the_table(root, tmp_path):
    (root / rows()[2]["Path"].partition("/")[2]).unlink()
    out = tmp_path / "out"
    manifest = build(Chexpert(root, blank="absent"), out, short_side=32, workers=1, progress=False)
    assert manifest.splits["train"].dropped == {"missing_image": 1, "not_frontal": 4}
    assert manifest.splits["train"].input_rows == 8
    assert label_names(out) == LABEL_NAMES
    assert manifest.settings["views"] == "frontal"
    with (root / "valid.csv").open() as file:
        table = [row for row in csv.DictReader(file) if row["Frontal/Lateral"] == "Frontal"]
    for record, row in zip(open_split(out, "test"), table, strict=True):
        np.testing.assert_array_equal(record.labels, [float(row[name] or 0) for name in LABEL_NAMES])
        assert record.original_size == (40, 48)
        assert record.view == "AP"
