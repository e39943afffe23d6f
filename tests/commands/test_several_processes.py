"""Evaluations started as two processes: both compute, and the first alone speaks and writes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from msfl_jax import cli

from ..parallel.test_clusters import SLURM_TASK

ROOT = Path(__file__).parents[2]

# The reports with everything that they call in tasks, results and the pipeline noted instead of done.
DRIVER = """
import inspect
from pathlib import Path
from unittest.mock import MagicMock
from msfl_jax.commands import evaluate, retrieval, zero_shot

run, build = Path("run"), Path("build")
called = MagicMock()
for module in (retrieval, zero_shot, evaluate):
    for name, value in list(vars(module).items()):
        if inspect.isfunction(value) and value.__module__.startswith(("msfl_jax.tasks", "msfl_jax.results", "input_pipeline")):
            setattr(module, name, getattr(called, name))
called.with_caveats.return_value = "table"
called.identify_split.return_value = ("name", "hash")
called.known_protocol.return_value.variant = "maco"
called.open_split.return_value = [MagicMock(boxes=[1])]

for name, report in {
    "retrieval": lambda: retrieval.retrieval_report(run, build, split="test"),
    "zero-shot": lambda: zero_shot.zero_shot_report(run, build, split="test"),
    "grounding": lambda: evaluate.grounding_report(run, build, split="test"),
    "overlays": lambda: evaluate.sentence_overlays(MagicMock(caveats=()), build, "test", Path("figures"), count=1),
}.items():
    called.reset_mock()
    said = report()
    names = [name.rpartition(".")[2] for name, *_ in called.mock_calls]
    counts = [sum(found.startswith(word) for found in names) for word in ("save", "evaluate")]
    print(name, "says", bool(said), "saves", counts[0], "evaluates", counts[1], flush=True)
"""


def test_the_first_process_alone_speaks_and_writes():
    launcher = [sys.executable, str(ROOT / "launch" / "local_processes.py"), "-n", "2", "--devices-per-process", "1"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(
        [*launcher, "--", sys.executable, "-c", DRIVER], env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout
    said = {n: [line[4:] for line in done.stdout.splitlines() if line.startswith(f"[{n}]")] for n in (0, 1)}
    assert any(line.startswith("processes           2 (JAX's variables), process 0 at 127.0.0.1:") for line in said[0])
    assert not any(line.startswith("processes") for line in said[1])
    expected = {
        0: [
            "retrieval says True saves 2 evaluates 1",
            "zero-shot says True saves 3 evaluates 1",
            "grounding says True saves 3 evaluates 1",
            "overlays says True saves 1 evaluates 0",
        ],
        1: [
            "retrieval says False saves 0 evaluates 1",
            "zero-shot says False saves 0 evaluates 1",
            "grounding says False saves 0 evaluates 1",
            "overlays says False saves 0 evaluates 0",
        ],
    }
    for number, lines in expected.items():
        assert [line for line in said[number] if " says " in line] == lines


@pytest.fixture
def task_of_sixteen(monkeypatch):
    for name, value in SLURM_TASK.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    "command",
    [
        ["demo"],
        ["ablate", "--config", "demo", "--workdir", "x"],
        ["ground", "--run", "x"],
        ["data", "tokenizer", "x", "--out", "y"],
    ],
)
def test_commands_for_one_process_refuse_sixteen(task_of_sixteen, tmp_path, command):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    arguments = [sys.executable, "-m", "msfl_jax.cli", *command]
    done = subprocess.run(arguments, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: msfl {command[0]} runs as one process; found 16 (SLURM): start it once")
    assert len(done.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("process", "error"), [("0", True), ("9", False)])
def test_that_a_run_was_asked_to_stop_is_said_once(task_of_sixteen, monkeypatch, capsys, process, error):
    def stop(**_):
        raise cli.RetryError("asked to stop; step 7 is saved")

    monkeypatch.setenv("SLURM_PROCID", process)
    monkeypatch.setattr(cli, "app", stop)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 75
    assert ("asked to stop" in capsys.readouterr().err) == error


def test_a_preset_is_in_the_environment_before_the_command(monkeypatch, capsys):
    monkeypatch.setattr(cli, "use_preset", lambda name, environment: [f"{name} preset: dropped"])
    cli.app(["--xla-preset", "gpu", "data", "--help"], standalone_mode=False)
    assert capsys.readouterr().err == "warning: gpu preset: dropped\n"
    monkeypatch.setenv("MSFL_XLA_PRESET", "tpu")
    cli.app(["data", "--help"], standalone_mode=False)
    assert capsys.readouterr().err == "warning: tpu preset: dropped\n"
