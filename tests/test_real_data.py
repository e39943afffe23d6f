"""Real radiographs and reports through everything a user runs on them; no score is promised, only that all of it works."""

import csv
import gzip
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

from input_pipeline.build import build
from input_pipeline.datasets.labelled import SplitPlan
from input_pipeline.datasets.mimic_cxr import MimicCxr
from input_pipeline.datasets.nih_chestxray14 import NihChestXray14
from input_pipeline.datasets.synthetic import synthesize
from input_pipeline.images import decode_gray, evaluation_view
from input_pipeline.loader import text_sentences
from input_pipeline.tokenizer import train_tokenizer
from msfl_jax.commands.again import again_report
from msfl_jax.commands.evaluate import grounding_report
from msfl_jax.commands.pretrain import run_pretraining
from msfl_jax.commands.retrieval import retrieval_report
from msfl_jax.commands.zero_shot import zero_shot_report
from msfl_jax.config_files import load_config
from msfl_jax.tasks.linear_probe import embed_split, evaluate_probe
from msfl_jax.tasks.outcome import load_outcomes
from msfl_jax.tasks.prompts import load_prompts
from msfl_jax.tasks.run import encode_images, encode_texts, open_run
from msfl_jax.tasks.zero_shot import score


@pytest.fixture(scope="module")
def pairs(real_data, tmp_path_factory):
    """The 44 real pairs as shards, and a tokenizer of their words and of a synthetic study's."""
    root = tmp_path_factory.mktemp("real")
    source = real_data / "real_pairs"
    mimic = MimicCxr(source, source / "mimic-cxr-reports", keep_grounding_patients=True)  # there is no MS-CXR of them
    how = {"workers": 1, "progress": False}  # starting two processes takes longer than 44 images do
    manifest = build(mimic, root / "pairs", short_side=256, **how)
    synthesize(root / "study", studies=120, seed=0, size=64, **how)
    build(MimicCxr(root / "study", root / "study/mimic-cxr-reports"), root / "synthetic", short_side=64, **how)
    words = [*text_sentences(root / "pairs", "train"), *text_sentences(root / "synthetic", "train")]
    train_tokenizer(words, root / "tokenizer", vocab_size=2000)
    assert manifest.counts == {"train": 33, "test": 11}
    return root


def configured(pairs, name, build_name, *overrides):
    paths = (f"--config.data.directory={pairs / build_name}", f"--config.data.tokenizer={pairs / 'tokenizer'}")
    return load_config(name, [*paths, "--config.data.batch_size=8", "--config.optimizer.warmup_steps=2", *overrides])


@pytest.fixture(scope="module")
def continued(pairs):
    """20 steps on the real pairs, from the parameters of a run of the demo's configuration on a synthetic study."""
    run_pretraining(configured(pairs, "demo", "synthetic", "--config.train.steps=5"), pairs / "first", quiet=True)
    config = configured(pairs, "demo", "pairs", "--config.train.steps=20")
    result = run_pretraining(config, pairs / "continued", init_from=pairs / "first", quiet=True)
    assert result.step == 20
    assert np.isfinite(result.metrics["loss/total"])
    return pairs / "continued"


def test_a_demo_run_continues_on_real_pairs_and_is_evaluated_on_them(pairs, continued):
    report = zero_shot_report(continued, pairs / "pairs", split="test", prompts="chexpert")
    assert "11 images" in report
    # The study's CheXpert columns are blank, so no finding has positives: said, not computed.
    assert "n/a" in report
    overlays = grounding_report(continued, pairs / "pairs", split="test", overlays=2)
    assert "no boxes" in overlays
    files = sorted((continued / "figures").glob("report_test_*.png"))
    assert len(files) == 2
    assert all(file.stat().st_size > 20_000 for file in files)


def test_five_steps_of_the_s16_preset_at_224_pixels_from_scratch(pairs):
    paths = (f"--config.data.directory={pairs / 'pairs'}", f"--config.data.tokenizer={pairs / 'tokenizer'}")
    steps = ("--config.train.steps=5", "--config.optimizer.warmup_steps=2", "--config.train.log_every=1")
    command = [
        sys.executable,
        "-m",
        "msfl_jax.cli",
        "pretrain",
        "--config",
        "mimic_vit_s16",
        "--workdir",
        str(pairs / "s16"),
    ]
    # On one device and as users compile: eight virtual ones would hold 70 million parameters eight times.
    environment = {**os.environ, "XLA_FLAGS": ""}
    subprocess.run(
        [*command, *paths, *steps, "--config.data.batch_size=4"], env=environment, check=True, capture_output=True
    )
    rows = [json.loads(line) for line in (pairs / "s16/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5]
    assert all(np.isfinite(row["loss/total"]) and row["skipped"] == 0 for row in rows)
    assert "n/a" in zero_shot_report(pairs / "s16", pairs / "pairs", split="test", prompts="chexpert")
    assert "no boxes" in grounding_report(pairs / "s16", pairs / "pairs", split="test", overlays=1)
    assert len(list((pairs / "s16/figures").glob("report_test_*.png"))) == 1
    shutil.rmtree(pairs / "s16/checkpoints")


def test_nih_radiographs_are_embedded_and_scored(real_data, continued):
    run = open_run(continued)
    files = sorted((real_data / "nih_chestxray14/images").glob("*.png"))
    assert len(files) == 24
    images = [decode_gray(file.read_bytes()) for file in files]
    views = np.stack([evaluation_view(image, run.config.model.vision.image_size) for image in images])[..., None]
    embedding = np.asarray(encode_images(run, views, batch_size=24)[0])
    assert np.isfinite(embedding).all()
    for prompts in load_prompts("chexpert").values():
        sides = (encode_texts(run, side).report_embedding for side in (prompts.positive, prompts.negative))
        scores = score(embedding, *sides)
        assert np.isfinite(scores).all()
        assert len(np.unique(scores)) > 12


def test_real_pairs_are_retrieved(pairs, continued):
    report = retrieval_report(continued, pairs / "pairs", split="test")
    assert "8 images and 8 distinct reports of 8 patients; 3 images without a report left out" in report
    assert "R@10" in report


def test_nih_radiographs_go_through_zero_shot_embedding_and_probe(real_data, pairs, continued):
    folder = real_data / "nih_chestxray14"
    images = sorted(path.name for path in (folder / "images").iterdir())
    plan = SplitPlan({"train": images[::2], "test": images[1::2]}, {})
    manifest = build(NihChestXray14(folder, plan), pairs / "nih", short_side=256, workers=1, progress=False)
    assert manifest.counts == {"train": 12, "test": 12}

    report = zero_shot_report(continued, pairs / "nih", split="test", prompts="nih")
    assert "12 images of 12 patients" in report
    assert "n/a: no positives" in report  # no hernia among them
    assert "prompts of the next finding" in report
    assert list((continued / "figures").glob("calibration-zero_shot-nih_chestxray14-test-*.png"))

    run = open_run(continued)
    embedding, labels, _ = embed_split(run, pairs / "nih", "train")
    assert embedding.shape == (12, run.config.model.embedding_width)
    assert np.isfinite(embedding).all()
    assert labels.shape == (12, 14)
    probed = evaluate_probe(run, pairs / "nih", train_split="train", split="test", replicates=50)
    assert {"mean_auc", "Pneumonia_auc", "Atelectasis_auc", "Edema_auc", "Infiltration_auc", "Mass_auc"} == set(probed)
    assert all(0 <= interval.value <= 1 for interval in probed.values())

    lines = again_report(continued).splitlines()
    assert any(line.startswith("zero_shot-nih_chestxray14-test") for line in lines)
    assert all(" agrees " in line for line in lines)


def msfl(*arguments):
    """What `msfl ARGUMENTS` prints, as users run it: on one device."""
    command = [sys.executable, "-m", "msfl_jax.cli", *map(str, arguments)]
    environment = {**os.environ, "XLA_FLAGS": ""}
    return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout


def labels_of(folder, members):
    """For each finding of NIH, the images among `members` that the official table gives it to."""
    with gzip.open(folder / "Data_Entry_2017_v2020.csv.gz", "rt") as file:
        found = {row["Image Index"]: row["Finding Labels"].split("|") for row in csv.DictReader(file)}
    return {name: [image for image in members if name in found[image]] for name in load_prompts("nih")}


def test_a_linear_probe_is_fitted_to_nih_radiographs_by_the_command_of_users(real_data, pairs, continued):
    """With ten images to fit, seven to choose the penalty by and seven to test, most findings are missing somewhere, and each says where."""
    folder = real_data / "nih_chestxray14"
    images = sorted(path.name for path in (folder / "images").iterdir())
    splits = {"validate": images[1::3][:7], "test": images[2::3][:7]}
    splits["train"] = [image for image in images if image not in {*splits["validate"], *splits["test"]}]
    plan = SplitPlan(splits, {})
    manifest = build(NihChestXray14(folder, plan), pairs / "nih_probe", short_side=256, workers=1, progress=False)
    assert manifest.counts == {"train": 10, "validate": 7, "test": 7}
    classes = {name: labels_of(folder, members) for name, members in splits.items()}

    workdir = pairs / "probe"
    command = ("finetune", "classification", "--config", "finetune_nih:100,probe")
    places = ("--run", continued, "--data", pairs / "nih_probe", "--workdir", workdir)
    printed = msfl(*command, *places)
    ((_, outcome),) = load_outcomes([workdir])
    assert (outcome.dataset, outcome.variant) == ("nih_chestxray14", "pretrained-probe-100-seed0")
    assert (outcome.records, outcome.patients, outcome.step) == (7, 7, 0)
    for metric, interval in outcome.metrics.items():
        name = metric.removeprefix("auc/")
        if metric == "mean_auc" or (classes["train"][name] and classes["test"][name]):
            assert 0 <= interval.value <= 1, metric
        else:
            assert outcome.reasons[metric] == ("no positives" if classes["train"][name] else "one class only in train")
    defined = outcome.metrics.keys() - outcome.reasons.keys()
    assert defined == {"mean_auc", "auc/Pneumonia", "auc/Atelectasis", "auc/Mass"}
    assert outcome.reasons["auc/Consolidation"] == "one class only in train"  # which one of the test images has
    assert classes["test"]["Consolidation"]
    assert outcome.options["findings_in_mean"] == 3
    assert "mean of 3" in printed
    assert "n/a: one class only in train" in printed
    assert str(outcome.predictions(workdir)) in printed
    assert " agrees " in msfl("eval", "again", workdir)
