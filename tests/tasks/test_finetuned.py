"""A fine-tuned run says what it and its encoder were trained on, and is checked against other builds from its own folder."""

import dataclasses
import json
import shutil

import pytest

from input_pipeline.build import build
from input_pipeline.errors import CheckpointError, DataError, UserError
from input_pipeline.manifest import MANIFEST_NAME, read_manifest
from msfl_jax.config import to_dict
from msfl_jax.config_files import load_config
from msfl_jax.finetune_config import finetune_config
from msfl_jax.segmentation_config import segmentation_config
from msfl_jax.tasks.finetuned import ENCODER_FILE, FinetunedRun, prepare_finetuning, read_finetuning
from msfl_jax.tasks.leaks import finetuned_caveats
from msfl_jax.train.provenance import read_caveats, write_provenance

from .conftest import PlantedSource


@dataclasses.dataclass(frozen=True)
class Apart(PlantedSource):
    """The planted study with its patients shared out among the splits."""

    def scan(self):
        whole = super().scan()
        rows = {
            split: [row for row in found if int(row.study) // 2 % len(self.splits) == number]
            for number, (split, found) in enumerate(whole.rows.items())
        }
        return dataclasses.replace(whole, rows=rows)


def planted(directory, *splits, synthetic=False, kind=PlantedSource):
    """A build of the planted study, of which every split has the same images; `synthetic` writes the mark of a synthetic study into it."""
    build(kind(boxes=False, splits=splits), directory, short_side=32, workers=1, progress=False)
    if synthetic:
        file = directory / MANIFEST_NAME
        file.write_text(json.dumps(json.loads(file.read_text()) | {"settings": {"synthetic": True}}))
    return directory


@pytest.fixture
def pretrained(planted_run, tmp_path):
    """Makes the folder of a pretraining run with its data.json: what `prepare_finetuning` reads of one."""

    def make(build, *, caveats=("splits overlap (allowed)",)):
        folder = tmp_path / "pretraining"
        folder.mkdir()
        write_provenance(read_manifest(build), "train", folder, inherited=caveats)
        data = dataclasses.replace(planted_run.config.data, directory=str(build), split="train")
        config = dataclasses.replace(planted_run.config, data=data)
        return dataclasses.replace(planted_run, directory=folder, config=config, caveats=read_caveats(folder))

    return make


def prepared(tmp_path, run, build, *, leaks=(), init="pretrained"):
    """The folder of a fine-tuned run as it is before its first step, moved away from where it was made, and opened without parameters."""
    words = [f"--config.data.directory={build}", f"--config.encoder.init={init}"]
    config = load_config("finetune_demo", words, make=finetune_config)
    made, workdir = tmp_path / "made", tmp_path / "elsewhere" / "tuned"
    prepare_finetuning(config.data, made, run, (*run.caveats, *leaks), findings=("Edema",))
    (made / "config.json").write_text(json.dumps(to_dict(config)))
    shutil.copytree(made, workdir)
    shutil.rmtree(made)
    return opened(workdir)


def opened(workdir):
    config, origin = read_finetuning(workdir, finetune_config, task="classification")
    return FinetunedRun(workdir, config, origin, {}, 5, read_caveats(workdir))


@pytest.fixture
def builds(tmp_path):
    """Below one data root, so that their keys can be compared: one pretrained on, one fine-tuned on."""
    return planted(tmp_path / "data" / "pairs", "train", synthetic=True), planted(
        tmp_path / "data" / "labels", "train", "validate", "test", kind=Apart
    )


def test_encoder_json_says_what_the_encoder_was_trained_on(builds, pretrained, tmp_path):
    run = prepared(tmp_path, pretrained(builds[0]), builds[1], leaks=("pretraining and test share 3 images",))
    first, second = map(read_manifest, builds)
    known = run.origin.trained_on
    assert (known.dataset, known.synthetic, known.split) == ("synthetic_planted", True, "train")
    assert (known.members, known.key_check) == (first.splits["train"].members, first.key_check)
    assert known.caveats == ("splits overlap (allowed)",)
    assert run.origin.leaks == ("pretraining and test share 3 images",)
    assert run.origin.tested == second.splits["test"].members
    assert run.origin.findings == ("Edema",)
    assert set(run.caveats) == {"splits overlap (allowed)", "pretraining and test share 3 images"}
    noted = json.loads((run.directory / ENCODER_FILE).read_text())
    del noted["config"]  # which holds the paths of the run, as its own config.json does
    assert str(tmp_path) not in json.dumps(noted)


def test_what_was_noted_first_stays_and_earlier_folders_get_what_they_lack(builds, pretrained, tmp_path):
    pretraining = pretrained(builds[0])
    run = prepared(tmp_path, pretraining, builds[1], leaks=("noted first",))
    file = run.directory / ENCODER_FILE
    whole = json.loads(file.read_text())
    prepare_finetuning(run.config.data, run.directory, pretraining, ("said later",), findings=("Edema",))
    assert json.loads(file.read_text()) == whole
    file.write_text(json.dumps({name: whole[name] for name in ("config", "findings")}))
    earlier = opened(run.directory)
    assert (earlier.origin.trained_on, earlier.origin.leaks) == (None, ())
    prepare_finetuning(run.config.data, run.directory, pretraining, ("noted first",), findings=("Edema",))
    assert json.loads(file.read_text()) == whole
    with pytest.raises(CheckpointError, match="begun with another encoder or other findings; use a new workdir"):
        prepare_finetuning(run.config.data, run.directory, pretraining, (), findings=("Mass",))


def test_a_run_goes_on_whose_encoder_is_the_same_experiment_and_no_other_does(builds, pretrained, tmp_path):
    """Begun before a key existed, or before its pretraining run was told to compute otherwise."""
    pretraining = pretrained(builds[0])
    run = prepared(tmp_path, pretraining, builds[1])
    file = run.directory / ENCODER_FILE
    older = json.loads(file.read_text())
    del older["config"]["zero_shot"]["directory"], older["config"]["model"]["attention"]
    file.write_text(json.dumps(older))
    prepare_finetuning(run.config.data, run.directory, pretraining, (), findings=("Edema",))
    older["config"]["model"] |= {"attention": "cudnn", "remat": "dots"}
    older["config"]["data"]["directory"] = "/before/it/was/moved"
    file.write_text(json.dumps(older))
    prepare_finetuning(run.config.data, run.directory, pretraining, (), findings=("Edema",))
    older["config"]["image"]["mean"] = 0.25
    file.write_text(json.dumps(older))
    with pytest.raises(CheckpointError, match="begun with another encoder"):
        prepare_finetuning(run.config.data, run.directory, pretraining, (), findings=("Edema",))


def test_the_folder_is_enough_for_the_split_that_it_was_tested_on(builds, pretrained, tmp_path):
    run = prepared(tmp_path, pretrained(builds[0]), builds[1], leaks=("pretraining and test share 3 images",))
    shutil.rmtree(builds[0])
    moved = shutil.move(builds[1], tmp_path / "moved")
    assert finetuned_caveats(run, moved, "test") == ("splits overlap (allowed)", "pretraining and test share 3 images")
    (general, synthetic, unknown, chosen) = finetuned_caveats(run, moved, "validate")
    assert (general, synthetic) == ("splits overlap (allowed)", "trained on synthetic_planted, a synthetic study")
    assert unknown.startswith(
        "not checked: whether it was trained on these patients"
    )  # what was noted is of the test split
    assert chosen == "its checkpoint was chosen by these images"


def test_what_pretraining_shares_with_another_build_is_refused_or_said(builds, pretrained, tmp_path):
    run = prepared(tmp_path, pretrained(builds[0]), planted(tmp_path / "data" / "other", "train", "validate"))
    other = planted(tmp_path / "data" / "later", "train", "test", synthetic=True)
    values = json.loads((other / MANIFEST_NAME).read_text())
    values["splits"]["train"]["members"] = "0" * 64  # as of other images
    (other / MANIFEST_NAME).write_text(json.dumps(values))
    with pytest.raises(DataError, match=r"pretraining and test share \d+ images and \d+ patients"):
        finetuned_caveats(run, other, "test")
    found = finetuned_caveats(run, other, "test", allow_leak=True)
    for phase in ("pretraining", "fine-tuning"):
        assert any(caveat.startswith(f"{phase} and test share ") for caveat in found)


def test_a_build_of_the_images_of_pretraining_needs_no_other(pretrained, tmp_path):
    splits, folders = ("train", "validate", "test"), [tmp_path / "data" / name for name in "abc"]
    first, second, again = (planted(folder, *splits, synthetic=folder is folders[0], kind=Apart) for folder in folders)
    run = prepared(tmp_path, pretrained(first, caveats=()), second)
    for gone in (first, second):
        shutil.rmtree(gone)
    said = ("trained on synthetic_planted, a synthetic study",)
    seen = tuple(f"these are the images that it was {verb} on" for verb in ("trained", "fine-tuned"))
    assert finetuned_caveats(run, again, "train") == said + seen
    assert finetuned_caveats(run, again, "validate") == (*said, "its checkpoint was chosen by these images")
    assert finetuned_caveats(run, again, "test") == ()  # where what was noted then would be said


def test_where_neither_build_is_known_the_numbers_say_so(builds, pretrained, tmp_path):
    run = prepared(tmp_path, pretrained(builds[0]), builds[1])
    foreign = planted(tmp_path / "root" / "labels", "test")
    found = finetuned_caveats(run, foreign, "test")
    assert sum("keys of different salts" in caveat for caveat in found) == 2
    for gone in builds:
        shutil.rmtree(gone)
    found = finetuned_caveats(run, foreign, "test")
    assert [caveat for caveat in found if "the training build is not where it was" in caveat] == [
        f"not checked: whether it was {verb} on these patients; the training build is not where it was"
        for verb in ("trained", "fine-tuned")
    ]


def test_a_training_build_with_other_images_is_compared_and_said_to_be_another(builds, pretrained, tmp_path):
    run = prepared(tmp_path, pretrained(builds[0]), builds[1])
    file = builds[0] / MANIFEST_NAME
    values = json.loads(file.read_text())
    values["splits"]["train"]["members"] = "0" * 64
    file.write_text(json.dumps(values))
    other = planted(tmp_path / "data" / "tests", "test")
    with pytest.raises(DataError, match="pretraining and test share"):
        finetuned_caveats(run, other, "test")
    found = finetuned_caveats(run, other, "test", allow_leak=True)
    assert any("the training build holds other images now" in caveat for caveat in found)


def test_an_encoder_that_started_at_random_has_seen_what_it_was_fine_tuned_on_alone(builds, pretrained, tmp_path):
    run = prepared(tmp_path, pretrained(builds[0], caveats=()), builds[1], init="random")
    shutil.rmtree(builds[0])
    other = planted(tmp_path / "data" / "tests", "test")
    with pytest.raises(DataError, match="fine-tuning and test share"):
        finetuned_caveats(run, other, "test")
    found = finetuned_caveats(run, other, "test", allow_leak=True)
    assert not any("not checked" in caveat or "synthetic" in caveat for caveat in found)


def test_a_folder_of_another_task_is_refused_in_one_line(builds, pretrained, tmp_path):
    run = prepared(tmp_path, pretrained(builds[0]), builds[1])
    with pytest.raises(UserError, match=r"no fine-tuned run of segmentation .*expected a folder of `msfl finetune seg"):
        read_finetuning(run.directory, segmentation_config, task="segmentation")
