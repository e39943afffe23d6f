"""Fine-tuning on the planted study, whole: squares of two greys stand for findings, and a tiny encoder learns to see them."""

import dataclasses
import itertools
import json
import shutil

import jax
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.metrics import roc_auc_score

from input_pipeline.build import build as build_records
from input_pipeline.errors import CheckpointError, DataError, UserError
from input_pipeline.labelled_batches import labelled_evaluation_batches
from input_pipeline.reading import open_split
from msfl_jax.commands import finetuned as commands
from msfl_jax.config_files import load_config
from msfl_jax.finetune_config import finetune_config
from msfl_jax.model import Model
from msfl_jax.results.label_efficiency import classification_table
from msfl_jax.results.own_results import find_results
from msfl_jax.tasks.classification import evaluate_classification, finetune_classification, open_finetuned
from msfl_jax.tasks.classifier_scores import chosen_findings, evaluation_view_spec, validation_metrics
from msfl_jax.tasks.compare import compare
from msfl_jax.tasks.finding_result import Predictions
from msfl_jax.tasks.outcome import load_outcomes
from msfl_jax.tasks.recompute import check_results
from msfl_jax.tasks.run import Run

from .conftest import PlantedSource

FINDINGS = ("Pneumonia", "Edema", "Pneumothorax")


@pytest.fixture(scope="module")
def run(tiny_config, planted_tokenizer):
    """A model that was never trained, in the place of a pretrained one."""
    model = Model(tiny_config, planted_tokenizer.vocab_size)
    patches = np.zeros((1, 16, 64), np.float32)
    vision = jax.jit(model.vision.init)(jax.random.key(9), patches)["params"]
    return Run(planted_tokenizer.directory.parent, tiny_config, model, {"vision": vision}, planted_tokenizer, 7)


@pytest.fixture(scope="module")
def build(split_build):
    """The planted study with three splits."""
    return split_build


def settings(build, words="", **overrides):
    usual = {
        "data.directory": build,
        "data.batch_size": 8,
        "data.shift": 0.0,
        "data.flip": False,
        "data.findings": "",
        "train.steps": 40,
        "train.evaluate_every": 20,
        "optimizer.peak_rate": 5e-3,
        "optimizer.warmup_steps": 2,
        "optimizer.layer_decay": 1.0,
    }
    changes = [f"--config.{key}={value}" for key, value in (usual | overrides).items()]
    return load_config(f"finetune_demo:{words}", changes, make=finetune_config)


@pytest.fixture(scope="module")
def finetuned(build, run, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("ft") / "run"
    outcome = finetune_classification(settings(build), workdir, run, caveats=("said",), progress=False, replicates=20)
    return outcome, workdir


def test_what_is_planted_is_learned_and_said(finetuned):
    outcome, _ = finetuned
    assert outcome.metrics["auc/Pneumonia"].value > 0.9
    assert (outcome.task, outcome.split, outcome.variant) == ("classification", "test", "pretrained-full-100-seed0")
    expected = {"init": "pretrained", "mode": "full", "fraction": 100, "seed": 0}
    assert {name: outcome.options[name] for name in expected} == expected
    assert outcome.caveats == ("said",)


def test_a_finding_without_positives_is_na_with_the_reason_and_the_mean_says_over_how_many(finetuned):
    outcome, _ = finetuned
    assert np.isnan(outcome.metrics["auc/Pneumothorax"].value)
    assert outcome.reasons == {"auc/Pneumothorax": "no positives"}
    assert outcome.options["findings_in_mean"] == 2
    both = [outcome.metrics[f"auc/{name}"].value for name in FINDINGS[:2]]
    assert_allclose(outcome.metrics["mean_auc"].value, np.mean(both))


def test_numbers_follow_from_the_saved_predictions_which_name_their_images(finetuned, build):
    outcome, workdir = finetuned
    assert next(found for _, found in load_outcomes([workdir])).name == outcome.name
    saved = Predictions.load(outcome.predictions(workdir))
    assert saved.findings == FINDINGS
    records = list(open_split(build, "test"))
    for name in ("patient_key", "image_key"):
        assert_array_equal(getattr(saved, name), [int(getattr(record, name)[:8], 16) for record in records])
    for column, name in enumerate(FINDINGS[:2]):
        known = ~np.isnan(saved.truth[:, column])
        expected = roc_auc_score(saved.truth[known, column], saved.scores[known, column])
        assert_allclose(outcome.metrics[f"auc/{name}"].value, expected, rtol=1e-12)


def test_the_checkpoint_is_the_best_on_the_validation_split(finetuned):
    outcome, workdir = finetuned
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    scores = {row["step"]: row["validate/mean_auc"] for row in rows if "validate/mean_auc" in row}
    assert sorted(scores) == [20, 40]
    assert outcome.step == max(sorted(scores), key=lambda step: scores[step])


def test_running_again_gives_the_same_and_another_configuration_is_refused(finetuned, build, run):
    outcome, workdir = finetuned
    again = finetune_classification(settings(build), workdir, run, progress=False, replicates=20)
    assert again.metrics["auc/Pneumonia"] == outcome.metrics["auc/Pneumonia"]
    with pytest.raises(CheckpointError, match=r"data\.fraction 100 is now 10"):
        finetune_classification(settings(build, **{"data.fraction": 10}), workdir, run, progress=False)
    with pytest.raises(CheckpointError, match="other findings"):
        finetune_classification(settings(build, **{"data.findings": "Edema"}), workdir, run, progress=False)


def test_a_probe_trains_nothing_but_its_last_layer_and_equals_features_times_weights(build, run, tmp_path):
    config = settings(build, "100,probe")
    outcome = finetune_classification(config, tmp_path, run, progress=False, replicates=5)
    probe = open_finetuned(tmp_path)
    assert (outcome.variant, outcome.step) == ("pretrained-probe-100-seed0", 0)
    jax.tree.map(assert_array_equal, jax.device_get(probe.params["vision"]), jax.device_get(run.params["vision"]))
    spec = evaluation_view_spec(probe.classifier, config)
    with labelled_evaluation_batches(build, spec, batch_size=8, split="test") as batches:
        batch = next(itertools.islice(batches, 1))
    features = jax.jit(probe.classifier.features)(probe.params, jax.numpy.asarray(batch["image"]))
    expected = np.asarray(features) @ probe.params["head"]["fc"]["kernel"] + probe.params["head"]["fc"]["bias"]
    saved = Predictions.load(outcome.predictions(tmp_path))
    assert_allclose(saved.scores[: batch["valid"].sum()], expected[batch["valid"]], rtol=1e-3, atol=1e-3)
    again = evaluate_classification(probe, build, "test", replicates=5)
    assert again.metrics == outcome.metrics or np.isnan(again.metrics["auc/Pneumothorax"].value)


@dataclasses.dataclass(frozen=True)
class Healthy(PlantedSource):
    """The planted study without edema in its training split."""

    def scan(self):
        whole = super().scan()
        train = [dataclasses.replace(row, labels=(row.labels[0], 0.0, row.labels[2])) for row in whole.rows["train"]]
        return dataclasses.replace(whole, rows={**whole.rows, "train": train})


def test_a_finding_of_which_a_probe_saw_one_class_is_na_with_that_reason(run, tmp_path):
    directory, splits = tmp_path / "data", ("train", "validate", "test")
    build_records(Healthy(boxes=False, splits=splits), directory, short_side=32, workers=1, progress=False)
    config = settings(directory, "probe")
    outcome = finetune_classification(config, tmp_path / "run", run, progress=False, replicates=5)
    truth = Predictions.load(outcome.predictions(tmp_path / "run")).truth
    assert {0.0, 1.0} <= set(truth[:, 1])  # both classes of edema are among the test images
    assert outcome.reasons == {f"auc/{name}": "one class only in train" for name in ("Edema", "Pneumothorax")}
    assert outcome.options["findings_in_mean"] == 1
    assert outcome.metrics["mean_auc"].value == outcome.metrics["auc/Pneumonia"].value
    assert "n/a: one class only in train" in classification_table(outcome)
    assert all(check.agrees for check in check_results(tmp_path / "run"))


@pytest.mark.parametrize(
    ("splits", "findings", "error", "words"),
    [
        (("train", "test"), "", UserError, "no split 'validate' .* found .*test.*: build it with --validation 0.1"),
        (("train", "validate"), "", UserError, "no split 'test'"),
        (("train", "validate", "test"), "Pneumothorax", DataError, "no finding is both present and absent"),
    ],
)
def test_what_could_not_end_is_refused_before_it_begins(run, tmp_path, splits, findings, error, words):
    """NIH's official lists, for one, have no validation images; the finding without positives has no AUC."""
    build_records(
        PlantedSource(boxes=False, splits=splits), tmp_path / "data", short_side=32, workers=1, progress=False
    )
    config = settings(tmp_path / "data", **{"data.findings": findings})
    with pytest.raises(error, match=words) as refusal:
        finetune_classification(config, tmp_path / "run", run, progress=False)
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "run").exists()


@dataclasses.dataclass(frozen=True)
class Elsewhere(PlantedSource):
    """The planted study as another data set: of its findings it has but one as a label, under another number, and one that nobody asked for."""

    name: str = "elsewhere"
    labels: tuple[str, ...] = ("Mass", "Edema")

    def label_names(self):
        return self.labels

    def _rows(self, number):
        return [dataclasses.replace(row, labels=(0.0, row.labels[1])) for row in super()._rows(number)]


@pytest.fixture(scope="module")
def elsewhere(build):
    """Below the data root of the build that was fine-tuned on, so that keys can be compared."""
    out = build.parent / "elsewhere"
    build_records(Elsewhere(boxes=False), out, short_side=32, workers=1, progress=False)
    return out


@pytest.fixture
def copied(finetuned, tmp_path):
    return shutil.copytree(finetuned[1], tmp_path / "copy")


def test_a_run_is_measured_on_another_build_whose_labels_are_matched_by_name(finetuned, copied, elsewhere, monkeypatch):
    monkeypatch.setattr(commands, "REPLICATES", 20)
    with pytest.raises(DataError, match="fine-tuning and test share 24 images"):
        commands.classification_report(copied, elsewhere, split="test")
    text = commands.classification_report(copied, elsewhere, split="test", allow_leak=True)
    found = {outcome.dataset: outcome for _, outcome in load_outcomes([copied])}
    own, other = found["planted"], found["elsewhere"]
    # The images and their Edema are the same: so is its AUC.
    assert other.metrics["auc/Edema"].value == own.metrics["auc/Edema"].value == other.metrics["mean_auc"].value
    assert {name: other.reasons[f"auc/{name}"] for name in FINDINGS if f"auc/{name}" in other.reasons} == {
        "Pneumonia": "no label of the build",
        "Pneumothorax": "no label of the build",
    }
    assert other.options["findings_in_mean"] == 1
    assert (other.name, other.step) == ("classification-elsewhere-test-pretrained-full-100-seed0", own.step)
    assert str(other.options["fine_tuned_on"]).startswith("planted (")
    assert "fine_tuned_on" not in own.options
    assert any(caveat.startswith("fine-tuning and test share") for caveat in other.caveats)
    assert "said" in other.caveats
    assert str(other.predictions(copied)) in text
    assert "n/a: no label of the build" in text
    assert all(check.agrees for check in check_results(copied))
    same = compare((copied, other), (copied, other), replicates=5)
    assert {one.name: one.difference.value for one in same.differences}["auc/Edema"] == 0
    variants = {one.outcome.dataset: one.variant for one in find_results([copied])}
    assert variants["planted"] == "pretrained, full"
    assert variants["elsewhere"] == f"pretrained, full, fine-tuned on {other.options['fine_tuned_on']}"


def test_a_build_with_none_of_the_findings_is_refused(copied, build):
    out = build.parent / "nothing"
    build_records(Elsewhere(boxes=False, labels=("Mass", "Nodule")), out, short_side=32, workers=1, progress=False)
    with pytest.raises(UserError, match=r"none of the findings .* found Mass, Nodule, expected some of Pneumonia, Ed"):
        evaluate_classification(open_finetuned(copied), out, "test")


def test_a_share_of_the_labels_is_for_training_and_never_for_a_measurement(copied, build):
    """The training split of another build is measured whole, whatever percentage the run was fine-tuned on."""
    run = open_finetuned(copied)
    config = dataclasses.replace(run.config, data=dataclasses.replace(run.config.data, fraction=10))
    found = evaluate_classification(dataclasses.replace(run, config=config), build, "train", replicates=0)
    assert found.records == len(open_split(build, "train"))


def test_the_pretraining_run_is_no_place_to_fine_tune_in(build, run):
    before = sorted(run.directory.rglob("*"))
    with pytest.raises(UserError, match="is the pretraining run itself; give a new --workdir"):
        finetune_classification(settings(build), run.directory, run, progress=False)
    assert sorted(run.directory.rglob("*")) == before


def test_findings_are_chosen_by_name_and_unknown_ones_refused():
    assert chosen_findings("", FINDINGS) == FINDINGS
    assert chosen_findings("Edema, Pneumonia", FINDINGS) == ("Edema", "Pneumonia")
    with pytest.raises(UserError, match=r"'Edma' is no label of the build \(did you mean 'Edema'\?\)"):
        chosen_findings("Edma", FINDINGS)


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(UserError, match="no fine-tuned run of classification"):
        open_finetuned(tmp_path)


def test_validation_metrics_leave_undefined_findings_out_of_the_mean():
    truth = np.asarray([[0, 1, np.nan], [1, 1, np.nan], [1, 1, 0]], np.float32)
    predictions = Predictions(("a", "b", "c"), np.asarray([[0.1] * 3, [0.2] * 3, [0.0] * 3]), truth, np.arange(3))
    found = validation_metrics(predictions)
    assert found["validate/mean_auc"] == found["validate/auc/a"] == 0.5
    assert np.isnan(found["validate/auc/b"])
