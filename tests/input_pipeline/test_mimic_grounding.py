"""MS-CXR's images and patients stay out of train unless a build says that it keeps them."""

import json

import pytest

from input_pipeline.build import build
from input_pipeline.datasets.mimic_cxr import MimicCxr
from input_pipeline.datasets.mimic_grounding import find_boxes, read_grounding
from input_pipeline.errors import UserError

BOX_FILE = "MS_CXR_Local_Alignment_v1.1.0.csv"


@pytest.fixture
def root(own_mimic_root):
    """The data set without MS-CXR."""
    (own_mimic_root / BOX_FILE).unlink()
    return own_mimic_root


def boxes(layout, path, numbers):
    """A box file, CSV or JSON, of some studies."""
    paths = [layout.studies()[number].jpg for number in numbers]
    if path.suffix == ".csv":
        layout.write_table(path, [{"category_name": "Edema", "path": path, "x": 1} for path in paths])
    else:
        path.write_text(json.dumps({"images": [{"id": k, "path": path} for k, path in enumerate(paths)]}))
    return path


def train(root, **options):
    scan = MimicCxr(root, root, **options).scan()
    return {row.image for row in scan.rows["train"]}, dict(scan.dropped["train"])


def test_a_build_must_say_what_becomes_of_grounding_patients(root, tmp_path):
    with pytest.raises(UserError) as error:
        build(MimicCxr(root, root), tmp_path / "out", progress=False)
    message = str(error.value)
    assert "--exclude FILE" in message
    assert "--keep-grounding-patients" in message
    assert "\n" not in message
    assert error.value.exit_code == 2
    assert not (tmp_path / "out").exists()


def test_both_choices_at_once_are_refused(root, layout, tmp_path):
    path = boxes(layout, tmp_path / "boxes.csv", [0])
    with pytest.raises(UserError, match="both excluded and kept"):
        train(root, exclude=path, keep_grounding_patients=True)


@pytest.mark.parametrize("name", [BOX_FILE, "MS_CXR_Local_Alignment_v1.0.0.json"])
def test_a_box_file_beside_the_tables_is_found(root, layout, name):
    everything, _ = train(root, keep_grounding_patients=True)
    boxes(layout, root / name, [0, 8])  # a patient of train and one of validate
    kept, dropped = train(root)
    assert everything - kept == {layout.studies()[0].image, layout.studies()[1].image}
    assert dropped["grounding_patient"] == 2
    assert train(root, keep_grounding_patients=True)[0] == everything


def test_every_release_that_is_found_counts(root, layout):
    boxes(layout, root / BOX_FILE, [0])
    boxes(layout, root / "MS_CXR_Local_Alignment_v1.0.0.json", [3])
    assert len(find_boxes(root)) == 2
    assert train(root)[1]["grounding_patient"] == 4
    assert {"exclude", "exclude_1"} <= set(MimicCxr(root, root).scan().inputs)


def test_a_given_file_is_used_alone(root, layout, tmp_path):
    boxes(layout, root / BOX_FILE, [0])
    path = boxes(layout, tmp_path / "boxes.csv", [3])
    kept, _ = train(root, exclude=path)
    assert layout.studies()[0].image in kept
    assert layout.studies()[3].image not in kept


def test_an_image_under_another_patient_is_left_out_as_well(root, layout, tmp_path):
    image = layout.studies()[0].image
    (tmp_path / "boxes.csv").write_text(f"path\nfiles/p19/p19999999/s59999999/{image}.jpg\n")
    kept, dropped = train(root, exclude=tmp_path / "boxes.csv")
    assert image not in kept
    assert dropped["grounding_image"] == 1
    assert "grounding_patient" not in dropped


def test_other_splits_keep_grounding_patients(root, layout, tmp_path):
    path = boxes(layout, tmp_path / "boxes.csv", range(24))
    scan = MimicCxr(root, root, exclude=path).scan()
    assert {split: len(rows) for split, rows in scan.rows.items()} == {"validate": 4, "test": 4}


def test_the_choice_is_in_the_settings_and_the_caveats_of_the_build(root, layout, tmp_path):
    options = {"short_side": 32, "workers": 1, "progress": False}
    kept = build(MimicCxr(root, root, keep_grounding_patients=True), tmp_path / "kept", **options)
    assert kept.settings["grounding_patients"] == "kept"
    assert kept.caveats == ("MS-CXR patients were kept in training",)
    excluded = build(MimicCxr(root, root, exclude=boxes(layout, tmp_path / "b.csv", [0])), tmp_path / "out", **options)
    assert excluded.settings["grounding_patients"] == "excluded"
    assert excluded.caveats == ()


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("b.csv", "path\nfiles/x.jpg\n", "b.csv: row 2 names no patient"),
        ("b.csv", "file\nx\n", "column 'path' is missing"),
        ("b.json", "{", "b.json: not MS-CXR's boxes"),
        ("b.json", "[]", "b.json: not MS-CXR's boxes"),
        ("b.json", '{"images": [{"path": 3}]}', "b.json: not MS-CXR's boxes"),
        ("b.json", '{"images": ["x"]}', "b.json: not MS-CXR's boxes"),
        ("b.json", '{"images": [{"file_name": "files/x.jpg"}]}', "b.json: row 1 names no patient"),
    ],
)
def test_what_is_no_box_file_is_refused(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError) as error:
        read_grounding([tmp_path / name])
    assert message in str(error.value)


@pytest.mark.parametrize("name", ["b.csv", "b.json"])
def test_a_box_file_that_is_not_there_is_refused(tmp_path, name):
    with pytest.raises(UserError, match="no such file"):
        read_grounding([tmp_path / name])
