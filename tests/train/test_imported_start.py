"""`msfl import` and `msfl pretrain` with weights of others, through the command line, on a real build."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from numpy.testing import assert_array_equal

from input_pipeline.tokenizer import ReportTokenizer
from msfl_jax.config_files import load_config
from msfl_jax.export.mapping import to_format
from msfl_jax.export.trees import leaves
from msfl_jax.model import Model
from msfl_jax.train.checkpoint import restore_parameters

from ..export.files import Trap, zipped_pickle
from ..export.models import random_params

save_file = pytest.importorskip("safetensors.numpy").save_file

ROOT = Path(__file__).parents[2]
RATE = 1e-3
SIZES = {
    "model.vision": {"image_size": 32, "width": 16, "depth": 2, "heads": 2, "patch_layers": 1, "cls_token": True},
    "model.text": {"width": 16, "depth": 1, "heads": 2, "max_tokens": 16},
    "model.pixel_decoder": {"width": 8, "heads": 2},
    "model": {"embedding_width": 16, "region_width": 8, "matching_width": 8},
    "regions": {"layer": 0, "window_radius": 0},
    "text": {"max_sentences": 4, "pool": "cls"},
    "data": {"batch_size": 8, "workers": 0},
    "optimizer": {"peak_rate": RATE, "warmup_steps": 0},
    "train": {"steps": 2, "checkpoint_every": 1, "keep_checkpoints": 2, "log_every": 1},
}
OTHERS = "cls.seq_relationship.weight"  # BERT's head for pairs of sentences, which our model has no place for


@pytest.fixture(scope="module")
def options(study):
    """Options of the command line: the demo's configuration, smaller, on the study."""
    sizes = [f"--config.{section}.{key}={value}" for section, keys in SIZES.items() for key, value in keys.items()]
    folders = [f"--config.data.{key}={study / name}" for key, name in (("directory", "records"), ("tokenizer",) * 2)]
    return [*sizes, *folders]


@pytest.fixture(scope="module")
def weights(options, study, tmp_path_factory):
    """MAE's and BERT's weights of the right sizes, random, and the parameters that they are."""
    folder = tmp_path_factory.mktemp("weights")
    config = load_config("demo", options)
    model = Model.create(config, vocab_size=ReportTokenizer.load(study / "tokenizer").vocab_size)
    params = random_params(model)
    save_file(to_format(params, "mae", config), folder / "mae.safetensors")
    (folder / "bert").mkdir()
    tensors = to_format(params, "hf_bert", config) | {OTHERS: np.zeros((2, 16), np.float32)}
    save_file(tensors, folder / "bert" / "model.safetensors")
    (folder / "bert" / "config.json").write_text(json.dumps({"model_type": "bert", "num_attention_heads": 2}))
    return folder, model, params


@pytest.fixture
def msfl(tmp_path):
    """Runs `msfl ARGUMENTS` in a process of its own: exit code, stdout, and stderr, which has a line where the code is not 0."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}

    def run(*arguments):
        command = [sys.executable, "-m", "msfl_jax.cli", *map(str, arguments)]
        found = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        if found.returncode:
            assert "Traceback" not in found.stderr
            assert [line[:7] for line in found.stderr.splitlines()][-1] == "error: "
        return found.returncode, found.stdout, found.stderr

    return run


def test_a_run_starts_from_imported_weights_and_goes_on_without_them(weights, options, tmp_path, msfl):
    folder, model, params = weights
    like, workdir = jax.eval_shape(model.init, jax.random.key(0)), tmp_path / "run"
    files = {"vision": folder / "mae.safetensors", "report": folder / "bert"}
    given = [f"--config.init_from.{role}={file}" for role, file in files.items()]
    command = ["pretrain", "--config", "demo", "--workdir", workdir, *options, *given]
    code, _, error = msfl(*command)
    assert code == 4
    assert f"1 unexpected: {OTHERS}" in error
    assert not workdir.exists()

    command.append("--config.init_from.skip=cls.seq_relationship")
    code, _, error = msfl(*command)
    assert code == 0, error
    first, last = (dict(leaves(restore_parameters(workdir, like, step=step)[0])) for step in (1, 2))
    held = ("vision/", "pixel_decoder/", "text/", "heads/pooler/", "heads/language/")
    imported = {path: array for path, array in leaves(params) if path.startswith(held)}
    for path, array in imported.items():
        assert np.abs(first[path] - array).max() < 1.2 * RATE, path  # AdamW's first step is at most its rate
        assert np.abs(last[path] - array).max() < 3 * RATE, path
    assert any((first[path] != last[path]).any() for path in imported)
    caveats = json.loads((workdir / "data.json").read_text())["caveats"]
    assert [caveat.split()[0] for caveat in caveats if "started from imported weights" in caveat] == list(files)

    files["vision"].rename(folder / "elsewhere")  # a run that resumes reads its own checkpoint alone
    (workdir / "checkpoints" / "2").rename(tmp_path / "second")
    code, _, error = msfl(*command)
    (folder / "elsewhere").rename(files["vision"])
    assert code == 0, error
    again = dict(leaves(restore_parameters(workdir, like, step=2)[0]))
    for path, array in last.items():
        assert_array_equal(again[path], array, err_msg=path)


def test_the_command_says_where_a_file_differs_and_ends_with_code_4(weights, options, msfl):
    code, out, error = msfl("import", weights[0] / "bert", "--config", "demo", *options)
    assert (code, error.count("\n")) == (4, 1)
    assert "format   hf_bert" in out
    assert f"unexpected  {OTHERS}" in out
    assert "name them in --skip" in error


def test_a_trap_is_refused_with_code_4_and_does_not_snap(tmp_path, msfl):
    pytest.importorskip("torch")
    zipped_pickle(tmp_path / "w.pt", {"model": {"w": Trap(tmp_path / "witness")}})
    code, out, error = msfl("import", tmp_path / "w.pt")
    assert (code, out, error.count("\n")) == (4, "", 1)
    assert "nothing was run" in error
    assert not (tmp_path / "witness").exists()
