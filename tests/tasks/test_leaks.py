"""A run is measured on what it was not trained on; where it was, or where that cannot be known, every table says so."""

import dataclasses
import json
import shutil

import pytest

from input_pipeline.build import build
from input_pipeline.errors import DataError
from input_pipeline.manifest import MANIFEST_NAME
from msfl_jax.tasks.leaks import leak_caveats

from .conftest import STUDIES, PlantedSource


def trained_on(run, directory, split):
    data = dataclasses.replace(run.config.data, directory=str(directory), split=split)
    return dataclasses.replace(run, config=dataclasses.replace(run.config, data=data))


def test_a_build_that_shares_images_with_the_training_split_is_refused_or_marked(
    planted_run, labelled_build, boxes_build
):
    run = trained_on(planted_run, labelled_build, "test")
    with pytest.raises(DataError, match=r"pretraining and test share \d+ images and \d+ patients; expected nothing"):
        leak_caveats(run, boxes_build, "test")
    (caveat,) = leak_caveats(run, boxes_build, "test", allow_leak=True)
    assert caveat.startswith("pretraining and test share ")
    assert f"and {STUDIES // 2} patients" in caveat or "patients" in caveat


def test_the_images_that_a_run_was_trained_on_are_said_to_be_those(planted_run, labelled_build):
    run = trained_on(planted_run, labelled_build, "test")
    assert leak_caveats(run, labelled_build, "test") == ("these are the images that it was trained on",)


def test_a_training_build_that_is_gone_or_has_other_keys_is_said_to_be_unknown(
    planted_run, labelled_build, boxes_build, tmp_path
):
    (caveat,) = leak_caveats(trained_on(planted_run, tmp_path / "gone", "test"), boxes_build, "test")
    assert caveat == "not checked: whether it was trained on these patients; the training build is not where it was"
    build(PlantedSource(boxes=False), tmp_path / "root" / "labels", short_side=32, workers=1, progress=False)
    (caveat,) = leak_caveats(trained_on(planted_run, tmp_path / "root" / "labels", "test"), boxes_build, "test")
    assert caveat.endswith("the builds have keys of different salts")


def test_the_caveats_of_the_run_and_of_the_build_that_is_evaluated_are_both_told(planted_run, labelled_build, tmp_path):
    leaky = tmp_path / "leaky"
    shutil.copytree(labelled_build, leaky)
    values = json.loads((leaky / MANIFEST_NAME).read_text())
    values["settings"] = {"allow_leak": True}
    (leaky / MANIFEST_NAME).write_text(json.dumps(values))
    run = dataclasses.replace(
        trained_on(planted_run, leaky, "test"), caveats=("MS-CXR patients were kept in training",)
    )
    found = leak_caveats(run, leaky, "test")
    assert found[0] == "MS-CXR patients were kept in training"
    assert any("overlap" in caveat for caveat in found)


def test_what_was_trained_on_nih_is_said_to_be_unchecked_on_sets_made_of_its_images(
    planted_run, labelled_build, boxes_build, tmp_path
):
    builds = {}
    for name, origin in (("nih_chestxray14", labelled_build), ("rsna_pneumonia", boxes_build)):
        builds[name] = shutil.copytree(origin, tmp_path / name, ignore=shutil.ignore_patterns(".keys"))
        values = json.loads((builds[name] / MANIFEST_NAME).read_text())
        (builds[name] / MANIFEST_NAME).write_text(json.dumps({**values, "name": name}))
    run = trained_on(planted_run, builds["nih_chestxray14"], "test")
    found = leak_caveats(run, builds["rsna_pneumonia"], "test", allow_leak=True)
    assert found[0] == (
        "not checked: whether it was trained on these patients; images of nih_chestxray14 and of rsna_pneumonia "
        "come from NIH ChestX-ray14, whose patients may be in both"
    )
    assert not any("NIH" in caveat for caveat in leak_caveats(run, boxes_build, "test", allow_leak=True))
