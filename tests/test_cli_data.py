"""`msfl data ...` on small releases written here: builds with published lists and fractions, leaks between builds, tokenizers."""

import json
import sys

import cv2
import numpy as np
import pytest

from input_pipeline.datasets.synthetic import synthesize
from input_pipeline.manifest import read_manifest
from input_pipeline.reading import open_split
from msfl_jax.cli import main

IMAGES = [f"{patient:08d}_{image:03d}.png" for patient in range(1, 13) for image in range(2)]


def msfl(monkeypatch, capsys, *arguments):
    """Exit code, stdout and stderr of `msfl data ARGUMENTS`, run in this process."""
    monkeypatch.setattr(sys, "argv", ["msfl", "data", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        main()
    out = capsys.readouterr()
    return stop.value.code or 0, out.out, out.err


@pytest.fixture
def nih(tmp_path):
    """A release of 24 images of 12 patients, the last four to test on, and published lists that use it otherwise."""
    root = tmp_path / "nih"
    (root / "images").mkdir(parents=True)
    lines = ["Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position"]
    for number, name in enumerate(IMAGES):
        cv2.imwrite(str(root / "images" / name), np.random.default_rng(number).integers(0, 255, (40, 40), np.uint8))
        lines.append(f"{name},{'Hernia' if number % 3 else 'No Finding'},0,{int(name[:8])},50,F,PA")
    (root / "Data_Entry_2017.csv").write_text("\n".join(lines) + "\n")
    (root / "train_val_list.txt").write_text("\n".join(IMAGES[:20]) + "\n")
    (root / "test_list.txt").write_text("\n".join(IMAGES[20:]) + "\n")
    lists = tmp_path / "lists"
    lists.mkdir()
    parts = {"train_list": IMAGES[:10], "val_list": IMAGES[10:16], "test_list": IMAGES[15:], "train_10": IMAGES[:1]}
    for name, images in parts.items():
        text = "\r\n".join(f"{image} {' '.join(['0'] * 14)}" for image in images)
        (lists / f"{name}.txt").write_bytes(text.encode())
    return root


def test_official_splits_with_a_validation_share_and_fractions(monkeypatch, capsys, nih, tmp_path):
    options = ["--validation", "0.2", "--fractions", "10,50", "--seeds", "0,1", "--short-side", "32", "--workers", "1"]
    code, out, _ = msfl(monkeypatch, capsys, "build", "nih", nih, "--out", tmp_path / "out", *options)
    assert code == 0
    manifest = read_manifest(tmp_path / "out")
    assert manifest.counts == {"train": 16, "validate": 4, "test": 4}
    assert {name: entry.records for name, entry in manifest.subsets.items()} == {
        "train_10_seed0": 2,
        "train_10_seed1": 2,
        "train_50_seed0": 8,
        "train_50_seed1": 8,
    }
    assert "train_50_seed1" in out
    keys = {name: {record.patient_key for record in open_split(tmp_path / "out", name)} for name in manifest.subsets}
    assert keys["train_10_seed0"] < keys["train_50_seed0"]
    assert json.loads((tmp_path / "out" / "subsets.json").read_text()).keys() == manifest.subsets.keys()


def test_published_lists_that_leak_are_refused_cleaned_or_marked(monkeypatch, capsys, nih, tmp_path):
    command = ["build", "nih", nih, "--lists", tmp_path / "lists", "--short-side", "32", "--workers", "1"]
    code, _, error = msfl(monkeypatch, capsys, *command, "--out", tmp_path / "refused")
    assert code == 3
    assert "validate and test share 1 image" in error
    assert error.strip().count("\n") == 0
    code, _, _ = msfl(monkeypatch, capsys, *command, "--variant", "clean", "--out", tmp_path / "clean")
    assert code == 0
    clean = read_manifest(tmp_path / "clean")
    assert clean.counts == {"train": 10, "validate": 4, "test": 9}, (
        "the patient of the shared image stays in test alone"
    )
    assert clean.caveats == ()
    code, _, _ = msfl(monkeypatch, capsys, *command, "--allow-leak", "--out", tmp_path / "leaky")
    assert code == 0
    assert read_manifest(tmp_path / "leaky").counts == {"train": 10, "validate": 6, "test": 9}
    assert any("overlap" in caveat for caveat in read_manifest(tmp_path / "leaky").caveats)


def test_what_published_lists_share_is_printed_by_pair(monkeypatch, capsys, nih, tmp_path):
    code, out, error = msfl(monkeypatch, capsys, "lists", "nih", tmp_path / "lists")
    assert code == 3
    assert "validate and test share 1 image and 1 patient" in out
    assert "train and test share 0 images and 0 patients" in out
    assert "--allow-leak" in error
    code, out, _ = msfl(monkeypatch, capsys, "lists", "nih", tmp_path / "lists", "--variant", "clean")
    assert code == 0
    assert "validate and test share 0 images and 0 patients" in out
    code, _, error = msfl(monkeypatch, capsys, "lists", "nihh", tmp_path / "lists")
    assert code == 2
    assert "expected one of chexpert, nih, rsna, siim" in error


@pytest.mark.parametrize(
    ("dataset", "folder", "line"),
    [
        ("siim", "SIIM-ACR_Pneumothorax", "train and test share 494 images"),
        ("chexpert", "CheXpert", "validate and train_10 share 0 images and 1,837 patients"),
    ],
)
def test_the_leaks_of_real_lists_are_printed(monkeypatch, capsys, real_data, dataset, folder, line):
    code, out, _ = msfl(monkeypatch, capsys, "lists", dataset, real_data / "splits" / folder)
    assert code == 3
    assert line in out.splitlines()


def test_builds_of_nih_and_of_images_from_there_are_said_to_be_unchecked(monkeypatch, capsys, nih, tmp_path):
    common = ["--short-side", "32", "--workers", "1"]
    msfl(monkeypatch, capsys, "build", "nih", nih, "--out", tmp_path / "a", *common)
    rsna = tmp_path / "rsna"
    (rsna / "stage_2_train_images").mkdir(parents=True)
    (rsna / "stage_2_train_labels.csv").write_text("patientId,x,y,width,height,Target\nx1,,,,,0\n")
    cv2.imwrite(
        str(rsna / "stage_2_train_images" / "x1.png"), np.random.default_rng(99).integers(0, 255, (40, 40), np.uint8)
    )
    code, out, _ = msfl(monkeypatch, capsys, "build", "rsna", rsna, "--out", tmp_path / "b", *common)
    assert code == 0
    assert "absent      checksums" in out
    code, out, _ = msfl(monkeypatch, capsys, "leaks", tmp_path / "a", tmp_path / "b")
    assert code == 0
    assert "not checked: images of nih_chestxray14 and of rsna_pneumonia come from NIH ChestX-ray14" in out


def test_what_two_builds_share_is_counted_and_refused(monkeypatch, capsys, nih, tmp_path):
    common = ["--short-side", "32", "--workers", "1"]
    msfl(monkeypatch, capsys, "build", "nih", nih, "--out", tmp_path / "a", *common)
    lists = ["--lists", tmp_path / "lists", "--variant", "clean"]
    msfl(monkeypatch, capsys, "build", "nih", nih, "--out", tmp_path / "b", *lists, *common)
    code, out, error = msfl(monkeypatch, capsys, "leaks", tmp_path / "a", tmp_path / "b")
    assert code == 3
    assert "pretraining and test share 5 images" in out
    assert "--allow-leak" in error
    code, _, _ = msfl(monkeypatch, capsys, "leaks", tmp_path / "a", tmp_path / "b", "--allow-leak")
    assert code == 0


@pytest.mark.parametrize(("option", "value"), [("--fractions", "1,x"), ("--seeds", "one"), ("--fractions", "250")])
def test_numbers_that_are_none_are_refused(monkeypatch, capsys, nih, tmp_path, option, value):
    code, _, error = msfl(monkeypatch, capsys, "build", "nih", nih, "--out", tmp_path / "o", option, value)
    assert code == 2
    assert error.startswith("error: found ")


def test_a_vocabulary_is_imported_and_held_against_a_build(monkeypatch, capsys, tmp_path):
    study = tmp_path / "study"
    synthesize(study, studies=60, seed=0, size=64, workers=1, progress=False)
    common = ["--short-side", "32", "--workers", "1", "--out", tmp_path / "build"]
    msfl(monkeypatch, capsys, "build", "mimic-cxr", "--jpg", study, "--reports", study, *common)
    code, out, _ = msfl(monkeypatch, capsys, "tokenizer", tmp_path / "build", "--out", tmp_path / "trained")
    assert code == 0
    assert "0.00% of" in out
    tokens = json.loads((tmp_path / "trained" / "tokenizer.json").read_text())["model"]["vocab"]
    vocabulary = sorted(tokens, key=tokens.__getitem__)
    (tmp_path / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    source = ["--from", tmp_path / "vocab.txt"]
    code, out, _ = msfl(monkeypatch, capsys, "tokenizer", tmp_path / "build", *source, "--out", tmp_path / "imported")
    assert code == 0
    imported = json.loads((tmp_path / "imported" / "tokenizer.json").read_text())["model"]["vocab"]
    assert imported == tokens
    few = [token for token in vocabulary if len(token) < 2 or token.startswith(("[", "##"))][:8]
    (tmp_path / "vocab.txt").write_text("\n".join(few) + "\n")
    code, _, error = msfl(monkeypatch, capsys, "tokenizer", tmp_path / "build", *source, "--out", tmp_path / "poor")
    assert code == 3
    assert "words are unknown to the tokenizer" in error
    assert not (tmp_path / "poor").exists()
    before = {path.name: path.read_bytes() for path in (tmp_path / "imported").iterdir()}
    code, *_ = msfl(monkeypatch, capsys, "tokenizer", tmp_path / "build", *source, "--out", tmp_path / "imported")
    assert code == 3
    assert {path.name: path.read_bytes() for path in (tmp_path / "imported").iterdir()} == before


def test_without_a_build_the_coverage_of_a_vocabulary_is_said_to_be_unchecked(monkeypatch, capsys, tmp_path):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz", "effusion", "edema"]
    (tmp_path / "vocab.txt").write_text("\n".join(words) + "\n")
    code, out, error = msfl(
        monkeypatch, capsys, "tokenizer", "--from", tmp_path / "vocab.txt", "--out", tmp_path / "out"
    )
    assert code == 0, error
    assert "coverage not checked: give a build" in out


def test_neither_a_build_nor_a_vocabulary_is_refused(monkeypatch, capsys):
    code, _, error = msfl(monkeypatch, capsys, "tokenizer")
    assert code == 2
    assert "--from" in error


def test_rules_for_single_studies_that_are_code_are_refused(monkeypatch, capsys, tmp_path):
    rules = tmp_path / "section_parser.py"
    rules.write_text(
        "def custom_mimic_cxr_rules():\n    custom_section_names = {}\n    custom_indices = dict(s1=[0, 0])\n"
    )
    command = ["build", "mimic-cxr", "--jpg", tmp_path, "--reports", tmp_path, "--out", tmp_path / "out"]
    code, _, error = msfl(monkeypatch, capsys, *command, "--section-rules", rules)
    assert code == 2
    assert error == "error: section_parser.py: custom_indices is not written out once in custom_mimic_cxr_rules; " + (
        "expected a dictionary of constants\n"
    )
    code, out, _ = msfl(monkeypatch, capsys, "build", "mimic-cxr", "--help")
    assert "general rules" in " ".join(out.replace("\u2502", " ").split())
