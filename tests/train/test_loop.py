"""Whole runs: resumed, moved to another mesh, stopped by a signal, refused, diverged, spread over two processes."""

import dataclasses
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from input_pipeline.errors import CheckpointError, DivergedError, RetryError, UserError
from input_pipeline.manifest import read_manifest
from input_pipeline.tokenizer import ReportTokenizer
from msfl_jax.commands.zero_shot import zero_shot_report
from msfl_jax.model import Model
from msfl_jax.parallel.sharding import path_name
from msfl_jax.train.checkpoint import Checkpoints, read_meta, restore_parameters
from msfl_jax.train.loop import pretrain, training_spec
from msfl_jax.train.state import TrainState

ROOT = Path(__file__).parents[2]
LAUNCHER = str(ROOT / "launch" / "local_processes.py")
TWO_PROCESSES = (sys.executable, LAUNCHER, "-n", "2", "--devices-per-process", "1", "--")
OF_THIS_MACHINE = {"studies_per_second", "tflops_per_device"}


def logged(workdir: Path) -> dict[int, dict[str, float]]:
    """Rows of metrics.jsonl by step, without what depends on the speed of the machine; fails where a step is there twice."""
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert len({row["step"] for row in rows}) == len(rows), "a step was logged twice"
    return {row["step"]: {name: value for name, value in row.items() if name not in OF_THIS_MACHINE} for row in rows}


def stop_at(step: int):
    """An evaluation that sends this process SIGTERM; the run notices it after the next step."""

    def evaluate(_params, at: int) -> dict[str, float]:
        if at == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return {}

    return evaluate


def shapes_of(tree):
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)


def parameters_of(config):
    """Shapes of the parameters of a run."""
    vocab_size = ReportTokenizer.load(config.data.tokenizer).vocab_size
    return jax.eval_shape(Model.create(config, vocab_size=vocab_size).init, jax.random.key(0))


@pytest.fixture(scope="module")
def uninterrupted(run_config, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("uninterrupted")
    return pretrain(run_config, workdir, progress=False), workdir


@pytest.fixture(scope="module")
def stopped(run_config, changed, tmp_path_factory):
    """The run directory of a run that a signal stopped after step 13."""
    workdir = tmp_path_factory.mktemp("stopped")
    with pytest.raises(RetryError, match="step 13 is saved"):
        pretrain(changed(run_config, train__evaluate_every=12), workdir, evaluate=stop_at(12), progress=False)
    return workdir


@pytest.fixture
def stopped_copy(stopped, tmp_path):
    return Path(shutil.copytree(stopped, tmp_path / "run"))


def test_13_and_27_steps_are_bit_equal_to_40(run_config, uninterrupted, stopped_copy):
    expected, expected_workdir = uninterrupted
    (stopped_copy / "metrics.jsonl").open("a").write('{"step": 14, "loss/total": 0.0}\n{"step": 15, "lo')
    result = pretrain(run_config, stopped_copy, progress=False)
    assert result.step == 40
    jax.tree.map(assert_array_equal, jax.device_get(result.params), jax.device_get(expected.params))
    assert logged(stopped_copy) == logged(expected_workdir)
    assert sorted(logged(stopped_copy)) == list(range(1, 41))


def test_a_run_goes_on_on_another_mesh_with_the_same_losses(run_config, changed, uninterrupted, stopped_copy):
    moved = changed(run_config, mesh__data=2, mesh__fsdp=2, mesh__tensor=2)
    pretrain(moved, stopped_copy, progress=False)
    expected, rows = logged(uninterrupted[1]), logged(stopped_copy)
    assert sorted(rows) == list(range(1, 41))
    for step in range(14, 41):
        for name, value in rows[step].items():
            if name.startswith("loss/"):
                assert_allclose(value, expected[step][name], rtol=1e-5, err_msg=f"{name} at step {step}")


def test_the_loss_falls(uninterrupted):
    rows = logged(uninterrupted[1])
    first, last = ([rows[step]["loss/total"] for step in steps] for steps in (range(1, 6), range(36, 41)))
    assert np.mean(last) < np.mean(first) - 0.5


def test_a_run_directory_holds_what_evaluation_needs(run_config, uninterrupted, study):
    result, workdir = uninterrupted
    assert (workdir / "tokenizer" / "tokenizer.json").read_bytes() == (
        study / "tokenizer" / "tokenizer.json"
    ).read_bytes()
    written = json.loads((workdir / "config.json").read_text())["data"]
    assert written["batch_size"] == run_config.data.batch_size
    assert written["tokenizer_hash"] == read_meta(workdir)["tokenizer_hash"] != ""
    trained_on = json.loads((workdir / "data.json").read_text())
    assert trained_on["members"] == read_manifest(study / "records").splits["train"].members
    assert "Total:" in (workdir / "parameters.txt").read_text()
    assert any((workdir / "tensorboard").iterdir())
    params, meta = restore_parameters(workdir, shapes_of(result.params))
    jax.tree.map(assert_array_equal, jax.device_get(params), jax.device_get(result.params))
    assert meta["step"] == 40
    assert meta["examples"] == 40 * run_config.data.batch_size
    assert meta == read_meta(workdir)


def test_a_finished_run_is_returned_as_it_is(run_config, uninterrupted):
    result, workdir = uninterrupted
    before = (workdir / "metrics.jsonl").read_bytes()
    again = pretrain(run_config, workdir, progress=False)
    jax.tree.map(assert_array_equal, jax.device_get(again.params), jax.device_get(result.params))
    assert (workdir / "metrics.jsonl").read_bytes() == before


def test_a_bucket_is_no_run_directory(run_config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="gs:/bucket/run: is no folder; mount the bucket"):
        pretrain(run_config, Path("gs://bucket/run"), progress=False)
    assert not list(tmp_path.iterdir())


def test_another_configuration_is_refused_by_its_keys(run_config, changed, stopped_copy):
    other = changed(run_config, optimizer__peak_rate=1.0, train__log_every=7)
    with pytest.raises(CheckpointError, match=r"optimizer\.peak_rate") as error:
        pretrain(other, stopped_copy, progress=False)
    assert "log_every" not in str(error.value)
    assert error.value.exit_code == 4


def test_another_tokenizer_is_refused(run_config, changed, stopped_copy, study, tmp_path):
    folder = Path(shutil.copytree(study / "tokenizer", tmp_path / "tokenizer"))
    file = folder / "tokenizer.json"
    file.write_text(file.read_text() + "\n")
    with pytest.raises(CheckpointError, match="tokenizer_hash"):
        pretrain(changed(run_config, data__tokenizer=str(folder)), stopped_copy, progress=False)


def test_a_run_starts_from_the_parameters_of_another(run_config, changed, uninterrupted, tmp_path):
    expected, workdir = uninterrupted
    config = changed(run_config, train__evaluate_every=1)
    (tmp_path / "data.json").write_text('{"caveats": []}')  # of a start that was killed before its first checkpoint
    with pytest.raises(RetryError, match="step 2 is saved"):
        pretrain(config, tmp_path, evaluate=stop_at(1), init_from=workdir, progress=False)
    own, noted = (json.loads((folder / "data.json").read_text()) for folder in (workdir, tmp_path))
    assert noted == own | {"before": [{key: own[key] for key in ("name", "split", "settings")}]}
    params, _ = restore_parameters(tmp_path, shapes_of(expected.params))
    two_steps = 2.5 * run_config.optimizer.peak_rate
    jax.tree.map(functools.partial(assert_allclose, atol=two_steps), params, jax.device_get(expected.params))
    assert_allclose(logged(tmp_path)[1]["temperature"], np.exp(-expected.params["temperature"]["log_scale"]), rtol=1e-6)


def test_steps_without_a_finite_loss_end_the_run(run_config, changed, stopped, tmp_path, mesh_of):
    params, meta = restore_parameters(stopped, shapes_of(parameters_of(run_config)))
    params["temperature"]["log_scale"] *= np.nan
    zero = np.int32(0)
    with Checkpoints(tmp_path / "broken", keep=1) as checkpoints:
        checkpoints.save(jax.device_put(TrainState(zero, params, {"none": zero}, zero)), 1, meta)
    config = changed(run_config, train__max_skipped_steps=3, train__log_every=2)
    with pytest.raises(DivergedError, match="step 4") as error:
        pretrain(config, tmp_path / "run", init_from=tmp_path / "broken", progress=False)
    assert error.value.exit_code == 5
    assert logged(tmp_path / "run")[2]["skipped"] == 2
    caveats = json.loads((tmp_path / "run" / "data.json").read_text())["caveats"]
    assert any("does not say what it was trained on" in caveat for caveat in caveats)


def test_a_signal_to_a_run_and_its_loader_worker_ends_the_command_with_75(
    run_config, changed, uninterrupted, command, tmp_path
):
    arguments, environment = command(changed(run_config, data__workers=1), tmp_path / "run")
    process = subprocess.Popen(
        arguments, env=os.environ | environment, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    metrics = tmp_path / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not metrics.exists() or not metrics.read_text():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGTERM)  # as SLURM and a terminal do
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 75, output
    step = read_meta(tmp_path / "run")["step"]
    assert f"step {step} is saved" in output
    assert max(logged(tmp_path / "run")) == step
    expected = logged(uninterrupted[1])
    assert all(row == expected[step] for step, row in logged(tmp_path / "run").items())


@pytest.fixture(scope="module", params=["data", "tensor"])
def run_of_two_processes(request, run_config, changed, command_in, tmp_path_factory):
    """Axis over which two processes shared the mesh, and the run directory, with a checkpoint after step 2."""
    folder = tmp_path_factory.mktemp(f"two_{request.param}")
    axes = {"mesh__data": 1, "mesh__tensor": 2} if request.param == "tensor" else {}
    arguments, environment = command_in(folder, changed(run_config, train__checkpoint_every=2, **axes), folder / "run")
    process = subprocess.Popen(
        [*TWO_PROCESSES, *arguments], env=os.environ | environment, stdout=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 240
    while not (folder / "run" / "checkpoints" / "2").exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 75, output
    said = by_process(output)
    assert any(line.startswith("processes           2 (JAX's variables), process 0 at 127.0.0.1:") for line in said[0])
    assert any(line.startswith("parameters  ") for line in said[0])
    assert any("asked to stop" in line for line in said[1])
    assert not any(line.startswith(("processes", "parameters", "pretraining")) for line in said[1])
    return request.param, folder / "run"


def test_two_processes_log_the_losses_of_one(uninterrupted, run_of_two_processes):
    _, workdir = run_of_two_processes
    expected, rows = logged(uninterrupted[1]), logged(workdir)
    assert max(rows) >= 3
    for step in (1, 2, 3):
        for name, value in rows[step].items():
            if name.startswith("loss/"):
                assert_allclose(value, expected[step][name], rtol=1e-5, err_msg=f"{name} at step {step}")
    assert read_meta(workdir)["processes"] == 2


def by_process(output: str) -> dict[int, list[str]]:
    """Lines of two processes under the launcher, without its prefix."""
    return {n: [line[4:] for line in output.splitlines() if line.startswith(f"[{n}] ")] for n in (0, 1)}


def test_two_processes_evaluate_as_one_and_the_first_alone_speaks_and_writes(
    run_config, uninterrupted, command, study, tmp_path
):
    one, two = (Path(shutil.copytree(uninterrupted[1], tmp_path / name)) for name in ("one", "two"))
    _, environment = command(run_config, two)
    evaluation = [sys.executable, "-m", "msfl_jax.cli", "eval", "zero-shot", str(two)]
    evaluation += ["--data", str(study / "records"), "--split", "validate"]
    done = subprocess.run(
        [*TWO_PROCESSES, *evaluation], env=os.environ | environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout
    said = by_process(done.stdout)
    report = zero_shot_report(one, study / "records", split="validate").partition("\n\nprompts")[0]
    table = [line for line in report.splitlines() if line]
    assert [line for line in said[0] if line in table] == table
    assert not set(said[1]) & set(table)
    written = [{str(file.relative_to(run)) for file in run.rglob("*") if file.is_file()} for run in (one, two)]
    assert written[0] == written[1]


def test_each_of_two_processes_writes_its_own_part_of_what_is_split(run_config, run_of_two_processes):
    axis, workdir = run_of_two_processes
    step = read_meta(workdir)["step"]
    parts = sorted((workdir / "checkpoints" / str(step) / "params").glob("ocdbt.process_*"))
    sizes = [sum(file.stat().st_size for file in part.rglob("*") if file.is_file()) for part in parts]
    params, _ = restore_parameters(workdir, parameters_of(run_config))
    split = sum(
        leaf.nbytes
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
        if any(word in path_name(path) for word in ("/attn/", "/fc1/", "/fc2/kernel"))
    )
    assert len(sizes) == 2
    if axis == "tensor":
        assert min(sizes) > 0.25 * split, "each process wrote about half of the split kernels"
        assert max(sizes) < 1.2 * sum(leaf.nbytes for leaf in jax.tree.leaves(params)) - 0.25 * split


def test_every_setting_of_the_augmentation_reaches_the_loader(config):
    changed = {
        "fit": "pad",
        "scale": (0.2, 0.9),
        "shift": 0.1,
        "aspect": (0.75, 1.25),
        "placement": "anywhere",
        "zoom": (0.8, 1.2),
        "rotation": 20.0,
        "flip": True,
    }
    spec = training_spec(dataclasses.replace(config, data=dataclasses.replace(config.data, **changed)))
    assert {name: getattr(spec, name) for name in changed} == changed
    sizes = {"tokenizer", "image_size", "max_tokens", "max_sentences", "subset_probability"}
    assert {field.name for field in dataclasses.fields(spec)} == set(changed) | sizes
