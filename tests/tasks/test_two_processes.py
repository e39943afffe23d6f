"""Fine-tuning on two processes, which talk over gloo: the losses, the checkpoint and the result of one."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from msfl_jax.config import to_dict
from msfl_jax.config_files import load_config
from msfl_jax.finetune_config import finetune_config
from msfl_jax.tasks.classification import finetune_classification
from msfl_jax.tasks.finding_result import Predictions
from msfl_jax.tasks.outcome import load_outcomes
from msfl_jax.tasks.run import open_run
from msfl_jax.train.checkpoint import read_meta

from .tiny import write_run

ROOT = Path(__file__).parents[2]
DRIVER = """
import json, sys
from pathlib import Path
from msfl_jax.finetune_config import finetune_config
from msfl_jax.parallel import distributed
from msfl_jax.tasks.classification import finetune_classification
from msfl_jax.tasks.run import open_run

config, run, workdir = map(Path, sys.argv[1:])
distributed.start()
settings = finetune_config(json.loads(config.read_text()))
finetune_classification(settings, workdir, open_run(run), progress=False, replicates=5)
"""
CHANGES = {
    "data.batch_size": 8,
    "data.findings": "Pneumonia,Edema",
    "encoder.drop_path": 0.3,  # what is left out must be the same as well
    "train.steps": 6,
    "train.log_every": 1,
    "train.evaluate_every": 2,
    "optimizer.peak_rate": 1e-2,
    "optimizer.warmup_steps": 0,
}


@pytest.fixture(scope="module")
def pretrained(tiny_config, planted_tokenizer, tmp_path_factory):
    """Two blocks, as the first is never left out."""
    vision = dataclasses.replace(tiny_config.model.vision, depth=2)
    config = dataclasses.replace(tiny_config, model=dataclasses.replace(tiny_config.model, vision=vision))
    folder = tmp_path_factory.mktemp("pretrained") / "run"
    write_run(folder, config, planted_tokenizer, step=3)
    return folder


def logged(workdir):
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return {row["step"]: {name: value for name, value in row.items() if "/" in name} for row in rows}


def test_two_processes_fine_tune_as_one(pretrained, split_build, tmp_path):
    words = [f"--config.{key}={value}" for key, value in (CHANGES | {"data.directory": split_build}).items()]
    config = load_config("finetune_demo", words, make=finetune_config)
    expected = finetune_classification(config, tmp_path / "one", open_run(pretrained), progress=False, replicates=5)
    (tmp_path / "driver.py").write_text(DRIVER)
    (tmp_path / "config.json").write_text(json.dumps(to_dict(config)))
    launcher = [sys.executable, ROOT / "launch" / "local_processes.py", "-n", "2", "--devices-per-process", "1", "--"]
    driver = [sys.executable, tmp_path / "driver.py", tmp_path / "config.json", pretrained, tmp_path / "two"]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    ended = subprocess.run(
        [*launcher, *driver], env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, timeout=600
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    one, two = logged(tmp_path / "one"), logged(tmp_path / "two")
    assert sorted(two) == [1, 2, 3, 4, 5, 6]
    for step, row in two.items():
        assert row.keys() == one[step].keys()
        for name, value in row.items():
            assert_allclose(value, one[step][name], rtol=1e-5, err_msg=f"{name} at step {step}")
    assert read_meta(tmp_path / "two")["processes"] == 2
    ((_, found),) = load_outcomes([tmp_path / "two"])
    assert dataclasses.replace(found, metrics={}) == dataclasses.replace(expected, metrics={})
    for name, interval in expected.metrics.items():
        assert_allclose(found.metrics[name], interval, rtol=1e-5)
    ours, theirs = (Predictions.load(found.predictions(tmp_path / folder)) for folder in ("two", "one"))
    assert_array_equal(ours.patient_key, theirs.patient_key)
    assert_array_equal(ours.image_key, theirs.image_key)
    assert_allclose(ours.scores, theirs.scores, rtol=1e-5, atol=1e-5)
    assert np.ptp(ours.scores) > 0
