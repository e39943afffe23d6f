"""Segmentation end to end: bright discs are learned, runs resume exactly, predictions come back in pixels of the source images."""

import dataclasses
import json
import shutil

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from input_pipeline.build import build
from input_pipeline.errors import DataError, RetryError, UserError
from input_pipeline.labelled_batches import view_spec
from input_pipeline.manifest import read_manifest
from input_pipeline.reading import open_split
from input_pipeline.sources import ImageRow, ImagesOnly, Scan
from msfl_jax import segmentation_presets
from msfl_jax.commands import finetuned as commands
from msfl_jax.metrics import DICE_VARIANTS
from msfl_jax.model import Model
from msfl_jax.segmentation_config import segmentation_config
from msfl_jax.segmenter import Segmenter
from msfl_jax.tasks import segmentation
from msfl_jax.tasks.leaks import finetuning_caveats
from msfl_jax.tasks.mask_predictions import predict
from msfl_jax.tasks.mask_result import MaskPredictions, summarise
from msfl_jax.tasks.outcome import load_outcomes
from msfl_jax.tasks.recompute import check_results
from msfl_jax.tasks.run import Run
from msfl_jax.tasks.segmentation import (
    evaluate_segmentation,
    finetune_segmentation,
    lists_of,
    open_segmentation,
    refuse_other_lists,
)

SPLITS = {"train": 12, "validate": 6, "test": 8}


def truth(number):
    """A disc, or nothing in every fourth image; images are wide or tall."""
    height, width = (96, 64) if number % 2 else (64, 96)
    mask = np.zeros((height, width), np.uint8)
    if number % 4 != 3:
        cv2.circle(mask, (16 + 5 * number % (width - 32), 18 + 7 * number % (height - 36)), 14, 1, -1)
    return mask > 0


@dataclasses.dataclass(frozen=True)
class Discs(ImagesOnly):
    masks: bool = True
    name: str = "discs"

    def label_names(self):
        return ("Disc",)

    def settings(self):
        return {}

    def files(self, row):
        return ()

    def scan(self):
        rows, first = {}, 0
        for split, count in SPLITS.items():
            names = [f"{number:02d}" for number in range(first, first + count)]
            rows[split] = [ImageRow(n, n, n, "", "", (float(truth(int(n)).any()),)) for n in names]
            first += count
        return Scan(rows)

    def image(self, row):
        noise = np.random.default_rng(int(row.study)).integers(0, 60, truth(int(row.study)).shape)
        return cv2.imencode(".png", (noise + 150 * truth(int(row.study))).astype(np.uint8))[1].tobytes()

    def mask(self, row, height, width):
        return truth(int(row.study)) if self.masks else None


@pytest.fixture(scope="module")
def discs(tmp_path_factory):
    path = tmp_path_factory.mktemp("discs") / "build"
    build(Discs(), path, short_side=48, workers=1, progress=False)
    return path


@pytest.fixture(scope="module")
def run(tiny_config, planted_tokenizer, tmp_path_factory):
    """A model with patches of 4 px, so that a disc's border is within what its tokens can hold."""
    vision = dataclasses.replace(tiny_config.model.vision, patch_size=4)
    config = dataclasses.replace(tiny_config, model=dataclasses.replace(tiny_config.model, vision=vision))
    model = Model.create(config, vocab_size=planted_tokenizer.vocab_size)
    directory = tmp_path_factory.mktemp("pretrained")
    return Run(directory, config, model, jax.jit(model.init)(jax.random.key(5)), planted_tokenizer, 3)


def configure(directory, **changes):
    config = segmentation_presets.segmenting("discs", "100,linear", {100: (60, 5, 1e-2, 20)})
    config.encoder.image_size = 48
    config.head.channels = 16
    config.optimizer.layer_decay = 1.0
    config.data.directory, config.data.batch_size = str(directory), 8
    config.train.log_every = 20
    for name, value in changes.items():
        section, key = name.split("__")
        config[section][key] = value
    return segmentation_config(config)


@pytest.fixture(scope="module")
def trained(discs, run, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("finetuned") / "run"
    result = finetune_segmentation(configure(discs), workdir, run, caveats=("said",), replicates=100, progress=False)
    return workdir, result


def test_discs_are_learned(trained):
    _, result = trained
    values = {name: interval.value for name, interval in result.outcome.metrics.items()}
    assert tuple(values) == DICE_VARIANTS
    assert min(values.values()) > 0.9, values
    assert result.outcome.step in (20, 40, 60)


def test_the_outcome_says_what_was_done_and_follows_from_the_predictions(trained, discs):
    workdir, result = trained
    ((_, outcome),) = load_outcomes([workdir])
    assert outcome == result.outcome
    assert (outcome.task, outcome.dataset, outcome.split) == ("segmentation", "discs", "test")
    assert outcome.variant == "pretrained-linear-100-seed0"
    expected = {"init": "pretrained", "head": "linear", "fraction": 100, "seed": 0, "lists": "own"}
    assert expected.items() <= outcome.options.items()
    assert outcome.split_hash == read_manifest(discs).splits["test"].members
    assert (outcome.records, outcome.patients) == (8, 8)
    assert outcome.caveats == ("said",)
    predictions = MaskPredictions.load(outcome.predictions(workdir))
    assert summarise(predictions.counts, predictions.patient_key, replicates=100) == outcome.metrics
    areas = [truth(number).sum() for number in range(18, 26)]
    assert_array_equal(np.sort(predictions.counts[:, 2]), np.sort(areas))
    assert_array_equal(predictions.counts[:, 3], 64 * 96)


def test_the_best_checkpoint_is_the_one_evaluated(trained):
    workdir, result = trained
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    scores = {row["step"]: row[f"validate/{DICE_VARIANTS[2]}"] for row in rows if f"validate/{DICE_VARIANTS[2]}" in row}
    assert sorted(scores) == [20, 40, 60]
    assert scores[result.outcome.step] == max(scores.values())


def test_a_run_that_was_stopped_goes_on_to_the_same_numbers(trained, discs, run, tmp_path, monkeypatch):
    workdir, expected = trained
    validate = segmentation._validate

    def stopping(segmenter, source, spec, params, step):
        if step == 40:
            raise RetryError("stopped")
        return validate(segmenter, source, spec, params, step)

    monkeypatch.setattr(segmentation, "_validate", stopping)
    with pytest.raises(RetryError):
        finetune_segmentation(configure(discs), tmp_path / "again", run, replicates=10, progress=False)
    monkeypatch.setattr(segmentation, "_validate", validate)
    result = finetune_segmentation(configure(discs), tmp_path / "again", run, replicates=10, progress=False)
    assert result.outcome.step == expected.outcome.step
    assert_array_equal(result.predictions.counts, expected.predictions.counts)
    ours, theirs = (open_segmentation(path).params for path in (tmp_path / "again", workdir))
    jax.tree.map(assert_array_equal, ours, theirs)


def test_a_finetuned_run_opens_and_measures_another_split(trained, discs, run, tmp_path):
    workdir, result = trained
    shutil.copytree(workdir, tmp_path / "copy")
    opened = open_segmentation(tmp_path / "copy")
    assert (opened.step, opened.caveats) == (result.outcome.step, ("said",))
    again = evaluate_segmentation(opened, discs, "validate", replicates=10)
    assert again.outcome.records == 6
    assert (tmp_path / "copy" / "results" / f"segmentation-discs-validate-{again.outcome.variant}.json").is_file()
    with pytest.raises(UserError, match="no fine-tuned run of segmentation"):
        open_segmentation(run.directory)


def test_the_command_measures_a_run_on_another_split_and_draws_it(trained, discs, tmp_path, monkeypatch):
    monkeypatch.setattr(commands, "REPLICATES", 10)
    workdir = shutil.copytree(trained[0], tmp_path / "copy")
    # The same images elsewhere: the run knows them by what it has noted.
    moved = shutil.copytree(discs, tmp_path / "moved")
    text = commands.segmentation_report(workdir, moved, split="validate", overlays=2)
    found = {outcome.split: outcome for _, outcome in load_outcomes([workdir])}
    other = found["validate"]
    assert found["test"] == trained[1].outcome
    assert (other.records, other.split_hash) == (6, read_manifest(discs).splits["validate"].members)
    assert "fine_tuned_on" not in other.options
    assert "its checkpoint was chosen by these images" in other.caveats
    assert not any("fine-tuned on these patients" in caveat for caveat in other.caveats)
    for place in (other.predictions(workdir), workdir / "results" / f"{other.name}.json"):
        assert place.is_file()
        assert str(place) in text
    assert len(list((workdir / "figures" / other.name).glob("mask_*.png"))) == 2
    assert all(check.agrees for check in check_results(workdir))


def test_a_random_encoder_has_seen_no_image(run, discs):
    assert finetuning_caveats(configure(discs, encoder__init="random"), run) == ()
    assert any("not checked" in caveat for caveat in finetuning_caveats(configure(discs), run))


@dataclasses.dataclass(frozen=True)
class Bright(Segmenter):
    """Calls bright pixels foreground."""

    def margin(self, params, image):
        return image[..., 0].astype(jnp.float32) - 105 + params["offset"]


@pytest.mark.parametrize("fit", ["pad", "squash"])
def test_predictions_are_in_pixels_of_the_source(discs, tiny_config, fit):
    config = configure(discs)
    seer = Bright(tiny_config, 48, (1, 1, 1, 1), config.head)
    found = predict(seer, {"offset": jnp.float32(0)}, open_split(discs, "train"), view_spec(48, fit=fit))
    common, ours, theirs, pixels = found.counts.T
    positive = theirs > 0
    assert_array_equal(positive, [truth(number).any() for number in range(12)])
    assert (2 * common[positive] > 0.93 * (ours + theirs)[positive]).all()
    assert not ours[~positive].any()
    assert_array_equal(pixels, 64 * 96)


def test_what_a_crop_does_not_show_is_background(discs, tiny_config):
    everything = Bright(tiny_config, 48, (1, 1, 1, 1), configure(discs).head)
    found = predict(everything, {"offset": jnp.float32(999)}, open_split(discs, "test"), view_spec(48, fit="crop"))
    assert_array_equal(found.counts[:, 1], 64 * 64)


def test_the_encoder_is_the_pretrained_one_and_a_random_one_has_its_size(run, discs):
    config = configure(discs)
    segmenter = Segmenter.create(config, run.config)
    fresh = segmenter.initial(jax.random.key(0), None)
    taken = segmenter.initial(jax.random.key(0), run.params)
    assert "norm" not in fresh["vision"]
    jax.tree.map(assert_array_equal, taken["vision"], {name: run.params["vision"][name] for name in fresh["vision"]})
    jax.tree.map(assert_array_equal, taken["decoder"], fresh["decoder"])
    kernel = fresh["vision"]["blocks_0"]["fc1"]["kernel"]
    assert kernel.shape == taken["vision"]["blocks_0"]["fc1"]["kernel"].shape
    assert not np.allclose(kernel, taken["vision"]["blocks_0"]["fc1"]["kernel"])


def test_the_margin_is_the_difference_of_the_enlarged_logits(tiny_config, discs):
    segmenter = Segmenter.create(configure(discs), tiny_config)
    params = jax.jit(segmenter.init)(jax.random.key(0))
    image = jax.random.randint(jax.random.key(1), (2, 48, 48, 1), 0, 255, jnp.uint8)
    logits = jax.jit(segmenter.masks)(params, image).logits
    assert logits.shape == (2, 24, 24, 2)
    expected = cv2.resize(np.asarray(logits[1, ..., 1] - logits[1, ..., 0]), (48, 48), interpolation=cv2.INTER_LINEAR)
    assert_allclose(jax.jit(segmenter.margin)(params, image)[1], expected, rtol=1e-4, atol=1e-6)
    with pytest.raises(ValueError, match="images have 32 x 32 pixels; expected 48 x 48"):
        segmenter.masks(params, image[:, :32, :32])


def test_runs_that_make_no_sense_are_refused(run, discs, tmp_path):
    with pytest.raises(UserError, match="is the pretraining run itself"):
        finetune_segmentation(configure(discs), run.directory, run)
    with pytest.raises(UserError, match=r"'encoder.layers' is \(1, 1, 1, 2\); expected blocks 1 to 1"):
        Segmenter.create(configure(discs, encoder__layers=(1, 1, 1, 2)), run.config)
    build(Discs(masks=False), tmp_path / "plain", short_side=32, workers=1, progress=False)
    with pytest.raises(DataError, match="has no masks; expected a build of `msfl data build siim`"):
        finetune_segmentation(configure(tmp_path / "plain"), tmp_path / "run", run)
    assert not (tmp_path / "run").exists()
    np.savez(tmp_path / "x.npz", patient_key=np.zeros(1))
    with pytest.raises(UserError, match="array 'counts' is missing"):
        MaskPredictions.load(tmp_path / "x.npz")


@dataclasses.dataclass(frozen=True)
class HealthyValidation(Discs):
    def mask(self, row, height, width):
        return truth(int(row.study)) & (int(row.study) not in range(12, 18))


def test_validation_images_without_disease_are_noticed_before_anything_is_trained(run, tmp_path):
    build(HealthyValidation(), tmp_path / "build", short_side=32, workers=1, progress=False)
    with pytest.raises(DataError, match=r"split 'validate' holds 6 images, none with disease.*--validation") as refusal:
        finetune_segmentation(configure(tmp_path / "build"), tmp_path / "run", run)
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "settings, expected",
    [
        ({}, "own"),
        ({"splits": "official"}, "own"),
        ({"splits": "listed", "variant": "clean"}, "clean"),
        ({"splits": "listed", "variant": "as_published", "allow_leak": True}, "as_published"),
    ],
)
def test_results_say_whose_lists_the_splits_are(discs, tmp_path, settings, expected):
    shutil.copytree(discs, tmp_path / "build")
    values = json.loads((tmp_path / "build" / "manifest.json").read_text())
    (tmp_path / "build" / "manifest.json").write_text(json.dumps(values | {"settings": settings}))
    manifest = read_manifest(tmp_path / "build")
    assert lists_of(manifest) == expected
    for wanted in ("any", "clean", "as_published"):
        config = configure(tmp_path / "build", data__lists=wanted)
        if wanted in ("any", expected):
            refuse_other_lists(config, manifest)
        else:
            with pytest.raises(UserError, match=f"made with lists '{expected}'; expected '{wanted}'"):
                refuse_other_lists(config, manifest)
