"""Each of the five evaluation data sets, in the layout that its publisher gives it: built, trained on for one step and evaluated by the commands."""

import contextlib
import csv
import dataclasses
import functools
import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.metrics import roc_auc_score

from input_pipeline.errors import DataError, UserError
from input_pipeline.manifest import read_manifest
from input_pipeline.mask_batches import require_disease
from input_pipeline.reading import label_names, open_split
from input_pipeline.tokenizer import train_tokenizer
from msfl_jax.cli import app
from msfl_jax.commands import evaluate, finetune, finetuned, segment, zero_shot
from msfl_jax.config_files import load_config
from msfl_jax.export.mapping import to_format
from msfl_jax.finetune_config import finetune_config
from msfl_jax.metrics import DICE_VARIANTS
from msfl_jax.model import Model
from msfl_jax.tasks.classification import open_finetuned
from msfl_jax.tasks.classifier_scores import chosen_findings, require_splits
from msfl_jax.tasks.finding_result import Predictions
from msfl_jax.tasks.grounding_result import PhraseScores
from msfl_jax.tasks.mask_result import MaskPredictions
from msfl_jax.tasks.outcome import load_outcomes
from msfl_jax.tasks.prompts import load_prompts
from msfl_jax.tasks.segmentation import open_segmentation

from .faults.corpora import CORPORA
from .tasks.tiny import tiny, write_run
from .test_readmes import commands

SIDE = 1024 * 1024
COMPETITION = ("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion")
ONE_STEP = {
    "train.steps": 1,
    "train.log_every": 1,
    "train.evaluate_every": 1,
    "data.batch_size": 8,  # one image on each virtual device
    "optimizer.warmup_steps": 0,
}


@dataclasses.dataclass(frozen=True)
class Layout:
    """A corpus of `tests/faults`, how it is built, and what its test split must then hold."""

    corpus: str
    dataset: str  # what results must call it
    test: tuple[int, int]  # images and patients; of shares that are drawn, at least a fifth
    build: tuple[str, ...]
    undefined: tuple[str, ...] = ()  # findings that no image of the test split has


DRAWN = ("--validation", "0.2", "--test", "0.2")
LAYOUTS = {
    "chexpert": Layout("chexpert", "chexpert", (10, 10), ("--validation", "0.2")),
    "nih": Layout("nih", "nih_chestxray14", (16, 16), ("--validation", "0.2"), ("Atelectasis", "Hernia")),
    "rsna": Layout("rsna", "rsna_pneumonia", (10, 10), DRAWN),
    "siim": Layout("siim", "siim_acr", (9, 9), DRAWN),
}


def msfl(*arguments):
    """What `msfl ARGUMENTS` prints."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        app([str(argument) for argument in arguments], standalone_mode=False)
    return out.getvalue()


@pytest.fixture(autouse=True)
def few_replicates(monkeypatch):
    """Of every bootstrap: with the thousands of a user, the intervals would take most of the time."""
    for module in (zero_shot, evaluate, finetuned):
        monkeypatch.setattr(module, "REPLICATES", 20)
    for module, name in ((finetune, "finetune_classification"), (segment, "finetune_segmentation")):
        monkeypatch.setattr(module, name, functools.partial(getattr(module, name), replicates=20))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """In the place of a pretrained run: tiny and never trained, with a vocabulary of all prompts."""
    root = tmp_path_factory.mktemp("pretrained")
    sides = [
        side for name in LAYOUTS for finding in load_prompts(name).values() for side in dataclasses.astuple(finding)
    ]
    words = [*(text for side in sides for text in side), "granuloma opacity nodule at the left lobe, base and apex"]
    write_run(root / "run", tiny(), train_tokenizer(words, root / "tokenizer", vocab_size=300), step=3)
    return root / "run"


@pytest.fixture(scope="module")
def weights_of_others(tmp_path_factory):
    """A run of the architecture that published encoders have, and a file of another encoder of its size under MAE's names."""
    save_file = pytest.importorskip("safetensors.numpy").save_file
    root, config = tmp_path_factory.mktemp("imported"), tiny()
    vision = dataclasses.replace(config.model.vision, patch_layers=1, cls_token=True)
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, vision=vision))
    tokenizer = train_tokenizer(["no word of a report is read"], root / "tokenizer", vocab_size=100)
    write_run(root / "run", config, tokenizer, step=3)
    other = jax.jit(Model.create(config, vocab_size=tokenizer.vocab_size).init)(jax.random.key(99))
    tensors = to_format(jax.device_get(other), "mae", config)
    save_file(tensors, root / "mae.safetensors")
    return root / "run", root / "mae.safetensors", tensors["blocks.0.mlp.fc1.weight"].T


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Root of a corpus without faults and its build, made when first asked for."""

    @functools.cache
    def make(name: str) -> tuple[Path, Path]:
        root = tmp_path_factory.mktemp(name)
        CORPORA[LAYOUTS[name].corpus](root / "release", 0, "clean")
        options = ("--out", root / "build", "--short-side", 32, "--workers", 1)
        msfl("data", "build", name, root / "release", *LAYOUTS[name].build, *options)
        return root / "release", root / "build"

    return make


def overrides(**more) -> list[str]:
    return [f"--config.{key}={value}" for key, value in (ONE_STEP | more).items()]


def outcome_of(workdir: Path, task: str, layout: Layout, build: Path, said: str = "training build is not where it was"):
    """The one result of a task on a data set, of which all that holds for any task is checked."""
    wanted = (task, layout.dataset, read_manifest(build).splits["test"].members)
    found = [outcome for _, outcome in load_outcomes([workdir])]
    (outcome,) = (one for one in found if (one.task, one.dataset, one.split_hash) == wanted)
    records, patients = layout.test
    assert outcome.split == "test"
    assert (outcome.records, outcome.patients) == (records, patients)
    assert any(said in caveat for caveat in outcome.caveats)
    for metric, interval in outcome.metrics.items():
        assert np.isfinite(interval.value) != (metric in outcome.reasons), metric
    assert f"{outcome.name} " in msfl("eval", "again", workdir)  # a number that differs would be an error
    return outcome


def known(rows: list[str], *, blank: float = 0.0) -> list[float]:
    """What cells of CheXpert's tables mean: uncertain ones are left out, and what is not mentioned is absent."""
    return [{"1.0": 1.0, "0.0": 0.0, "": blank, "-1.0": np.nan}[row] for row in rows]


def chexpert_truth(release: Path) -> dict[str, list[float]]:
    with (release / "valid.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["Frontal/Lateral"] == "Frontal"]
    return {name: known([row[name] for row in rows]) for name in COMPETITION}


def nih_truth(release: Path) -> dict[str, list[float]]:
    test = set((release / "test_list.txt").read_text().split())
    with gzip.open(release / "Data_Entry_2017_v2020.csv.gz", "rt") as file:
        rows = [row["Finding Labels"].split("|") for row in csv.DictReader(file) if row["Image Index"] in test]
    return {name: [float(name in row) for row in rows] for name in load_prompts("nih")}


TRUTHS: dict[str, Callable[[Path], dict[str, list[float]]]] = {"chexpert": chexpert_truth, "nih": nih_truth}


def assert_aucs_follow(outcome, workdir: Path, layout: Layout, truth: dict[str, list[float]]) -> None:
    """Of each finding by scikit-learn from the saved predictions, whose truth is that of the tables of the release."""
    saved = Predictions.load(outcome.predictions(workdir))
    assert set(saved.findings) == {metric[4:] for metric in outcome.metrics if metric.startswith("auc/")}
    for column, name in enumerate(saved.findings):
        actual = saved.truth[:, column]
        if name in truth:
            assert_array_equal(np.sort(actual), np.sort(np.asarray(truth[name], np.float32)))
        if name in layout.undefined:
            assert outcome.reasons[f"auc/{name}"] == "no positives"
            continue
        kept = ~np.isnan(actual)
        expected = roc_auc_score(actual[kept], saved.scores[kept, column])
        assert_allclose(outcome.metrics[f"auc/{name}"].value, expected, rtol=1e-12)


@pytest.mark.parametrize("name", ["chexpert", "nih", "rsna"])
def test_one_step_of_fine_tuning_on_labels(name, run, built, tmp_path):
    layout, (release, build) = LAYOUTS[name], built(name)
    config = load_config(f"finetune_{name}:100", overrides(), make=finetune_config)
    printed = finetune.run_classification(config, tmp_path / "run", run, build)
    outcome = outcome_of(tmp_path / "run", "classification", layout, build)
    assert outcome.variant == "pretrained-full-100-seed0"
    assert outcome.options["config"] == f"finetune_{name}"
    assert outcome.step == 1
    assert set(outcome.reasons) == {f"auc/{finding}" for finding in layout.undefined}
    assert str(outcome.predictions(tmp_path / "run")) in printed
    assert_aucs_follow(outcome, tmp_path / "run", layout, TRUTHS.get(name, lambda _: {})(release))
    losses = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert all(np.isfinite(row["loss/total"]) for row in losses if "loss/total" in row)
    if name == "rsna":
        file = outcome.predictions(tmp_path / "run")
        before = file.read_bytes()
        again = msfl("eval", "classification", tmp_path / "run", "--data", build)
        assert str(file) in again
        assert file.read_bytes() == before
        assert outcome == outcome_of(tmp_path / "run", "classification", layout, build)
    if name == "chexpert":
        assert set(outcome.metrics) == {"mean_auc", *(f"auc/{finding}" for finding in COMPETITION)}


SMALL_MASKS = {"encoder.image_size": 32, "head.channels": 8}


def test_one_step_of_segmentation_on_siim_acr(run, built, tmp_path):
    layout, (_, build) = LAYOUTS["siim"], built("siim")
    sizes = overrides(**SMALL_MASKS)
    options = {"config": "segment_siim:100", "overrides": sizes, "overlays": 1}
    printed = segment.segmentation_report(run, build, tmp_path / "run", **options)
    outcome = outcome_of(tmp_path / "run", "segmentation", layout, build)
    assert outcome.variant == "pretrained-upernet-100-seed0"
    assert tuple(outcome.metrics) == DICE_VARIANTS
    assert (outcome.options["lists"], outcome.step) == ("own", 1)
    counts = MaskPredictions.load(outcome.predictions(tmp_path / "run")).counts
    assert_array_equal(counts[:, 3], SIDE)
    assert set(counts[:, 2]) <= {0, 100, 106}  # of no code, one and two
    assert 0 < np.count_nonzero(counts[:, 2]) < len(counts)
    assert str(outcome.predictions(tmp_path / "run")) in printed
    assert list((tmp_path / "run" / "figures").glob("*.png"))
    again = msfl("eval", "segmentation", tmp_path / "run", "--data", build, "--split", "validate", "--overlays", 0)
    assert f"segmentation-siim_acr-validate-{outcome.variant}.json" in again
    assert "caveat  its checkpoint was chosen by these images" in again


@pytest.mark.parametrize("name", ["rsna", "siim"])
def test_one_step_from_the_encoder_of_others(name, weights_of_others, built, tmp_path):
    (run, file, kernel), (_, build), workdir = weights_of_others, built(name), tmp_path / "run"
    weights = {"encoder.weights": file}
    if name == "rsna":
        config = load_config("finetune_rsna:100,imported", overrides(**weights), make=finetune_config)
        finetune.run_classification(config, workdir, run, build)
        task, params = "classification", open_finetuned(workdir).params
    else:
        options = {"config": "segment_siim:100,imported", "overrides": overrides(**SMALL_MASKS, **weights)}
        segment.segmentation_report(run, build, workdir, **options, overlays=0)
        task, params = "segmentation", open_segmentation(workdir).params
    outcome = outcome_of(workdir, task, LAYOUTS[name], build, said="what they were trained on is not known")
    assert (outcome.options["init"], outcome.step) == ("imported", 1)
    # A step of these rates moves no weight further.
    assert_allclose(params["vision"]["blocks_0"]["fc1"]["kernel"], kernel, atol=1e-3)


PLACES = {  # in the published SIIM lists too each split shares images with each other
    "train_list": (*range(10), *range(22, 32)),
    "val_list": (*range(8, 13), *range(30, 35)),
    "test_list": (9, 12, *range(14, 20), 31, 34, *range(36, 42)),
    "train_10": (0, 1, 22, 23),
}


@pytest.fixture(scope="module")
def listed(built, tmp_path_factory):
    """Builds the SIIM corpus with lists."""
    release, root = built("siim")[0], tmp_path_factory.mktemp("listed")
    names = names_of(release, "stage_2_train.csv", "ImageId")
    (root / "lists").mkdir()
    for name, places in PLACES.items():
        (root / "lists" / f"{name}.txt").write_text("".join(f"{names[place]}\n" for place in places))

    def make(name: str, *options: str) -> Path:
        places = ("--lists", root / "lists", "--out", root / name)
        msfl("data", "build", "siim", release, *places, *options, "--short-side", 32, "--workers", 1)
        return root / name

    return make


def test_a_run_on_the_published_lists_of_siim_is_measured_on_its_test_images_and_on_the_clean_ones(
    run, listed, tmp_path
):
    with pytest.raises(DataError, match=r"train and validate share 4 images, train and test share 2 images"):
        listed("refused")
    build, clean = listed("siim", "--allow-leak"), listed("siim_clean", "--variant", "clean")
    train, validate, test = (set(PLACES[name]) for name in ("train_list", "val_list", "test_list"))
    sizes = {name: len(open_split(build, name)) for name in ("train", "validate", "test", "train_10", "test_clean")}
    alone = test - train - validate
    expected = (len(train), len(validate), len(test), len(PLACES["train_10"]), len(alone))
    assert tuple(sizes.values()) == expected == (20, 10, 16, 4, 12)
    kept = [len(train - validate - test), len(validate - test), len(test)]
    assert [read_manifest(clean).record_count(name) for name in ("train", "validate", "test")] == kept
    assert "test_clean" not in read_manifest(clean).subsets

    options = {"overrides": overrides(**SMALL_MASKS), "overlays": 0}
    with pytest.raises(UserError, match="made with lists 'as_published'; expected 'clean'"):
        segment.segmentation_report(run, build, tmp_path / "run", config="segment_siim:100,clean", **options)
    segment.segmentation_report(run, build, tmp_path / "run", config="segment_siim:100,as_published", **options)
    printed = msfl("eval", "segmentation", tmp_path / "run", "--data", build, "--split", "test_clean", "--overlays", 0)
    found = {outcome.split: outcome for _, outcome in load_outcomes([tmp_path / "run"])}
    assert {split: outcome.records for split, outcome in found.items()} == {"test": 16, "test_clean": 12}
    assert {outcome.options["lists"] for outcome in found.values()} == {"as_published"}
    assert "caveat  test_clean holds the test images that no other split has" in printed
    assert all("splits overlap (allowed)" in outcome.caveats for outcome in found.values())
    files = (found[split].predictions(tmp_path / "run") for split in ("test", "test_clean"))
    whole, part = map(MaskPredictions.load, files)
    both = np.isin(whole.image_key, part.image_key)
    assert_array_equal(whole.counts[both], part.counts)
    assert len(msfl("eval", "again", tmp_path / "run").splitlines()) == 2


def names_of(release: Path, table: str, column: str) -> list[str]:
    """A column of a table, each value once and in its order."""
    data = (release / table).read_bytes()
    text = (gzip.decompress(data) if table.endswith(".gz") else data).decode()
    return list(dict.fromkeys(row[column] for row in csv.DictReader(text.splitlines())))


def lists_of(name: str, release: Path) -> tuple[list[str], list[str], list[str], int]:
    """Images to train, to validate and to test on as published lists name them, and how many labels a line of those has."""
    if name == "chexpert":
        train = names_of(release, "train.csv", "Path")
        return train[20:], train[:20], names_of(release, "valid.csv", "Path"), 5
    if name == "nih":
        names = names_of(release, "Data_Entry_2017_v2020.csv.gz", "Image Index")
        return names[32:], names[16:32], names[:16], 14
    table, column = {"rsna": ("stage_2_train_labels.csv", "patientId"), "siim": ("stage_2_train.csv", "ImageId")}[name]
    names = names_of(release, table, column)
    return names[::2], names[1::4], names[3::4], int(name == "rsna")


README = Path(__file__).parents[1] / "msfl_jax" / "tasks" / "README.md"
BUILDS = {words[words.index("--out") + 1]: words for words in commands(README) if words[:2] == ["data", "build"]}


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_build_of_the_readme_has_all_that_fine_tuning_asks_for(name, built, tmp_path):
    release, _ = built(name)
    *parts, labels = lists_of(name, release)
    for word, images in zip(("train", "val", "test"), parts, strict=True):
        (tmp_path / f"{word}_list.txt").write_text("".join(f"{image}{' 0' * labels}\n" for image in images))
    build = tmp_path / "build"
    places = {"DIR": release, "LISTS": tmp_path, f"data/{name}": build}
    msfl(*(places.get(word, word) for word in BUILDS[f"data/{name}"]), "--short-side", 32, "--workers", 1)
    counts = read_manifest(build).counts
    assert (counts["validate"], counts["test"]) == (len(parts[1]), len(parts[2]))
    assert counts["train"] == len(parts[0])
    if name == "siim":
        assert len(require_disease(open_split(build, "validate"), build, "validate")) == len(parts[1])
        return
    config = load_config(f"finetune_{name}", [f"--config.data.directory={build}"], make=finetune_config)
    require_splits(config, chosen_findings(config.data.findings, label_names(build)))


@pytest.mark.parametrize("name", LAYOUTS)
def test_zero_shot_with_the_prompts_of_the_data_set(name, run, built):
    layout, (release, build) = LAYOUTS[name], built(name)
    printed = msfl("eval", "zero-shot", run, "--data", build, "--prompts", name)
    outcome = outcome_of(run, "zero_shot", layout, build)
    variant = "cosine" if name == "chexpert" else f"cosine-{name}"  # the run's own set goes without saying
    assert (outcome.options["prompts"], outcome.variant, outcome.step) == (name, variant, 3)
    assert f"{layout.test[0]} images of {layout.test[1]} patients" in printed
    assert ("n/a" in printed) == bool(layout.undefined)
    assert_aucs_follow(outcome, run, layout, TRUTHS.get(name, lambda _: {})(release))


@pytest.mark.parametrize("name, label, with_it, without", [("rsna", 0, 40, 10), ("siim", 0, 22, 22)])
def test_drawn_splits_hold_every_image_of_the_release_once(name, label, with_it, without, built):
    _, build = built(name)
    labels = [record.labels[label] for split in ("train", "validate", "test") for record in open_split(build, split)]
    assert (labels.count(1.0), labels.count(0.0)) == (with_it, without)


@pytest.mark.parametrize("form", ["csv", "json"])
def test_ms_cxr_is_grounded(form, run, tmp_path):
    corpus = CORPORA[f"ms-cxr {form}"](tmp_path, 0, "clean")
    build = tmp_path / "build"
    options = ("--boxes", corpus.root, *corpus.arguments, "--out", build, "--short-side", 32, "--workers", 1)
    msfl("data", "build", "ms-cxr", *options)
    printed = msfl("eval", "grounding", run, "--data", build, "--overlays", 1)
    outcome = outcome_of(run, "grounding", Layout("", "ms_cxr", (6, 6), ()), build)
    assert "pointing game" in printed
    assert not outcome.reasons
    scores = PhraseScores.load(outcome.predictions(run))
    assert len(scores.patient_key) == 6
    assert list((run / "figures").glob("*.png"))
