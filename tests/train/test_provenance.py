"""data.json says what a run was trained on, once, without paths; its caveats travel to the runs that start from it."""

import dataclasses
import itertools
import json

import pytest

from input_pipeline.errors import CheckpointError
from input_pipeline.manifest import SubsetEntry, read_manifest
from msfl_jax.train.provenance import DATA_FILE, inherit, read_caveats, read_training_data, write_provenance

KEPT, LEAK = "MS-CXR patients were kept in training", "splits overlap (allowed)"


@pytest.fixture(scope="module")
def manifest(study):
    return read_manifest(study / "records")


def with_settings(manifest, **settings):
    return dataclasses.replace(manifest, settings={**manifest.settings, **settings})


def written(folder):
    return json.loads((folder / DATA_FILE).read_text())


def test_a_run_says_what_it_was_trained_on(manifest, study, tmp_path):
    write_provenance(manifest, "train", tmp_path)
    found = written(tmp_path)
    assert found == {
        "name": "mimic_cxr",
        "split": "train",
        "members": manifest.splits["train"].members,
        "key_check": manifest.key_check,
        "equalize": False,
        "settings": manifest.settings,
        "before": [],
        "caveats": [],
    }
    assert found["settings"]["grounding_patients"] == "excluded"
    assert str(study) not in json.dumps(found)
    assert read_caveats(tmp_path) == ()
    assert [path.name for path in tmp_path.iterdir()] == [DATA_FILE]


def test_a_subset_has_its_own_members(manifest, tmp_path):
    subset = SubsetEntry("train", 3, "ab" * 32)
    write_provenance(dataclasses.replace(manifest, subsets={"train_10": subset}), "train_10", tmp_path)
    assert written(tmp_path)["members"] == subset.members


def test_it_is_written_once(manifest, tmp_path):
    write_provenance(with_settings(manifest, grounding_patients="kept"), "train", tmp_path)
    write_provenance(manifest, "train", tmp_path)
    assert read_caveats(tmp_path) == (KEPT,)


def test_a_start_that_came_to_nothing_leaves_nothing_behind(manifest, tmp_path):
    """Killed before its first checkpoint, and started again from something else."""
    write_provenance(with_settings(manifest, grounding_patients="kept"), "train", tmp_path, fresh=True)
    write_provenance(manifest, "train", tmp_path, inherited=("started from imported weights",), fresh=True)
    assert read_caveats(tmp_path) == ("started from imported weights",)


def test_whether_images_were_equalised_is_noted(manifest, tmp_path):
    write_provenance(dataclasses.replace(manifest, equalize=True), "train", tmp_path)
    assert read_training_data(tmp_path).equalize
    older = {key: value for key, value in written(tmp_path).items() if key not in ("equalize", "before")}
    (tmp_path / DATA_FILE).write_text(json.dumps(older))
    data = read_training_data(tmp_path)
    assert (data.equalize, data.before) == (False, ())


def test_a_run_says_what_those_before_it_were_trained_on(manifest, tmp_path):
    """A parent on other images, a child of that, and one that saw the very images of the child."""
    other = dataclasses.replace(manifest, name="chexpert", settings={}, key_check="00")
    folders = [tmp_path / name for name in ("first", "second", "third")]
    for folder in folders:
        folder.mkdir()
    write_provenance(other, "train", folders[0])
    caveat = "started from a run trained on chexpert, split train; not checked: whether it saw these patients"
    for parent, folder in itertools.pairwise(folders):
        inherited = inherit(parent, manifest, "train")
        assert inherited.caveats == (caveat,)
        write_provenance(manifest, "train", folder, inherited=inherited.caveats, before=inherited.before)
    entries = [{"name": one.name, "split": "train", "settings": one.settings} for one in (manifest, other)]
    assert written(folders[2])["before"] == entries
    assert written(folders[1])["before"] == entries[1:]


def test_a_parent_that_says_nothing_is_said_to(manifest, tmp_path):
    (caveat,), before = inherit(tmp_path, manifest, "train")
    assert "does not say what it was trained on; not checked" in caveat
    assert before == ()


def test_caveats_are_those_of_the_data_and_of_the_first_run(manifest, tmp_path):
    assert with_settings(manifest, grounding_patients="kept", allow_leak=True).caveats == (KEPT, LEAK)
    assert with_settings(manifest, grounding_patients="excluded", allow_leak=False).caveats == ()
    write_provenance(with_settings(manifest, allow_leak=True), "train", tmp_path, inherited=(KEPT, LEAK))
    assert read_caveats(tmp_path) == (LEAK, KEPT)


def test_a_run_without_the_file_has_no_caveats_and_a_damaged_file_is_refused(tmp_path):
    assert read_caveats(tmp_path) == ()
    for content in (
        "",
        "{}",
        "[]",
        '{"caveats": 3}',
        '{"caveats": [], "before": 3}',
        '{"caveats": [], "before": ["x"]}',
    ):
        (tmp_path / DATA_FILE).write_text(content)
        with pytest.raises(CheckpointError, match="damaged"):
            read_caveats(tmp_path)
