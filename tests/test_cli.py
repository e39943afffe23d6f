"""The command line as a user meets it: help, exit codes and errors of one line."""

import subprocess
import sys

import pytest

from input_pipeline.datasets.synthetic import synthesize
from input_pipeline.manifest import read_manifest
from msfl_jax.cli import app, main


def msfl(monkeypatch, capsys, *arguments):
    """Exit code, stdout and stderr of `msfl ARGUMENTS`, run in this process."""
    monkeypatch.setattr(sys, "argv", ["msfl", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        main()
    out = capsys.readouterr()
    return stop.value.code or 0, out.out, out.err


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ([], ["demo", "pretrain", "data", "eval"]),
        (["data"], ["synthesize", "build", "tokenizer"]),
        (["data", "build"], ["mimic-cxr", "ms-cxr"]),
        (
            ["data", "build", "mimic-cxr"],
            [
                "--views",
                "--exclude",
                "--keep-",
                "--labels",
                "--splits",
                "--sections",
                "--fallback",
                "--equalize",
            ],
        ),
        (["eval", "grounding"], ["--protocol", "--scaling", "--geometry", "--sigma", "--shifts", "--show-text"]),
        (["eval", "compare"], ["--task", "--data-name", "--variant"]),
        (["ground"], ["--run", "--report", "--boxes", "--record", "--out"]),
        (["eval"], ["zero-shot", "retrieval", "grounding", "classification", "segmentation", "again", "compare"]),
        (["eval", "classification"], ["--data", "--split", "--allow-leak"]),
        (["eval", "segmentation"], ["--data", "--split", "--overlays", "--allow-leak"]),
        (["data", "synthesize"], ["--layout", "--studies"]),
        (["finetune", "segmentation"], ["--config", "--run", "--data", "--workdir", "--overlays", "--allow-leak"]),
        (["pretrain"], ["--config", "--workdir", "--init-from"]),
    ],
)
def test_help_names_what_there_is(monkeypatch, capsys, command, words):
    code, out, _ = msfl(monkeypatch, capsys, *command, "--help")
    assert code == 0
    for word in words:
        assert word in out


def test_help_answers_without_importing_jax_or_tensorflow():
    script = "import sys; from msfl_jax import cli; print(sorted({'jax', 'tensorflow', 'torch', 'transformers'} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
    assert app.info.help


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["pretrain", "--config", "demoo", "--workdir", "x"], 2, ["demoo", "did you mean 'demo'"]),
        (
            ["pretrain", "--config", "demo", "--workdir", "x", "--config.optimiser.b1=1"],
            2,
            ["unknown key", "optimizer"],
        ),
        (["pretrain", "--config", "demo", "--workdir", "x", "--config.train.steps=x"], 2, ["train.steps", "int"]),
        (["pretrain", "--config", "demo", "--workdir", "x", "--config.seed=-1"], 2, ["'seed' is -1", "at least 0"]),
        (["pretrain", "--config", "demo", "--workdir", "x"], 2, ["data.tokenizer", "msfl data tokenizer"]),
        (["eval", "zero-shot", "nowhere", "--data", "nowhere"], 2, ["nowhere", "config.json"]),
        (["eval", "classification", "nowhere", "--data", "nowhere"], 2, ["nowhere", "msfl finetune classification"]),
        (["eval", "segmentation", "nowhere", "--data", "nowhere"], 2, ["nowhere", "msfl finetune segmentation"]),
        (["data", "build", "mimic-cxr", "--jpg", "nowhere", "--reports", "nowhere", "--out", "o"], 2, ["nowhere"]),
        (["data", "tokenizer", "nowhere", "--out", "o"], 2, ["nowhere", "msfl data build"]),
        (["data", "synthesize", "x", "--layout", "sim"], 2, ["--layout sim", "mimic-cxr or siim"]),
        (
            [
                *("finetune", "segmentation", "--config", "segment_siim:clan"),
                "--run",
                "r",
                "--data",
                "d",
                "--workdir",
                "w",
            ],
            2,
            ["clan", "did you mean 'clean'"],
        ),
    ],
)
def test_a_user_error_is_one_line_and_exit_code_2(tmp_path, arguments, code, words):
    found = subprocess.run(
        [sys.executable, "-m", "msfl_jax.cli", *arguments], cwd=tmp_path, capture_output=True, text=True
    )
    assert found.returncode == code
    assert found.stderr.startswith("error: ")
    assert found.stderr.count("\n") == 1
    for word in words:
        assert word in found.stderr


def test_an_unknown_command_or_option_ends_with_code_2(monkeypatch, capsys):
    for arguments, word in (
        (["pretrian"], "pretrian"),
        (["data", "synthesize", "x", "--studdies", "3"], "--studdies"),
        (["demo", "--seed", "abc"], "--seed"),
        (["demo", "--studies", "3"], "100"),
        (["pretrain"], "--config"),
    ):
        code, _, error = msfl(monkeypatch, capsys, *arguments)
        assert code == 2
        assert error.startswith("error: ")
        assert error.count("\n") == 1
        assert word in error


def test_without_a_command_the_help_is_shown(monkeypatch, capsys):
    code, out, error = msfl(monkeypatch, capsys)
    assert code == 2
    assert "pretrain" in out + error


def test_a_build_of_mimic_cxr_takes_its_options_and_asks_about_grounding_patients(monkeypatch, capsys, tmp_path):
    study = tmp_path / "study"
    synthesize(study, studies=40, seed=0, size=64, workers=1, progress=False)
    next(study.glob("MS_CXR_*")).unlink()
    command = ["data", "build", "mimic-cxr", "--jpg", study, "--reports", study, "--workers", "1", "--short-side", "32"]
    code, _, error = msfl(monkeypatch, capsys, *command, "--out", tmp_path / "out")
    assert code == 2
    assert error.count("\n") == 1
    assert "--exclude FILE" in error
    assert "--keep-grounding-patients" in error
    options = [
        "--keep-grounding-patients",
        "--views",
        "all",
        "--sections",
        "impression, findings",
        "--fallback",
        "none",
    ]
    code, out, _ = msfl(
        monkeypatch, capsys, *command, *options, "--equalize", "--no-radiologist-labels", "--out", tmp_path / "out"
    )
    assert code == 0
    assert out.startswith("mimic_cxr")
    manifest = read_manifest(tmp_path / "out")
    assert manifest.equalize
    assert manifest.settings == {
        "views": "all",
        "policy": ["impression", "findings"],
        "fallback": None,
        "labels": "chexpert",
        "radiologist_labels": False,
        "splits": "official",
        "grounding_patients": "kept",
        "synthetic": True,
    }
