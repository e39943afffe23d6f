"""One run on eight devices of one, two and four processes in turn: the same losses, and checkpoints that any of them reads."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from numpy.testing import assert_allclose

from input_pipeline.errors import RetryError
from msfl_jax.train.checkpoint import read_meta
from msfl_jax.train.loop import pretrain

# Seven runs compile the step, four of them at once; `test_loop.py` has two processes beside one in every run of the tests.
pytestmark = pytest.mark.slow

LAUNCHER = str(Path(__file__).parents[2] / "launch" / "local_processes.py")

STOPPING = """
import json, os, signal, sys
from pathlib import Path
from input_pipeline.errors import MsflError
from msfl_jax.config import from_config_dict
from msfl_jax.train.loop import pretrain

def stop(_params, at):
    if at == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGTERM)
    return {}

if __name__ == "__main__":  # a loader worker imports this file as well
    try:
        pretrain(from_config_dict(json.loads(Path(sys.argv[1]).read_text())), Path(sys.argv[2]), evaluate=stop)
    except MsflError as error:
        print(error)
        sys.exit(error.exit_code)
"""


@pytest.fixture(scope="module")
def shared_config(run_config, changed):
    """Rows over four groups of devices and matrices over two, so that every process has some of both; one block, as each process compiles."""
    blocks = {name: dataclasses.replace(getattr(run_config.model, name), depth=1) for name in ("vision", "text")}
    smaller = dataclasses.replace(
        run_config,
        model=dataclasses.replace(run_config.model, **blocks),
        objective=dataclasses.replace(run_config.objective, lambda_modality=0.0),
    )
    return changed(smaller, mesh__data=2, mesh__fsdp=2, mesh__tensor=2, train__evaluate_every=1)


@pytest.fixture
def go_on(shared_config, command_in, tmp_path):
    """Runs two steps or more in a run directory, as so many processes, and stops as if preempted after the last of them."""

    def run(workdir: Path, processes: int, last: int) -> None:
        arguments, environment = command_in(tmp_path, shared_config, workdir)
        (tmp_path / "driver.py").write_text(STOPPING)
        launcher = [sys.executable, LAUNCHER, "-n", str(processes), "--devices-per-process", str(8 // processes), "--"]
        command = [*launcher, *arguments, str(last - 1)]
        done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, timeout=1800)
        assert done.returncode == 75, done.stdout
        meta = read_meta(workdir)
        assert (meta["step"], meta["processes"]) == (last, processes)

    return run


def go_on_here(config, workdir, last):
    """The same as one process with eight devices: this one."""

    def stop(_params, at: int) -> dict[str, float]:
        if at == last - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return {}

    with pytest.raises(RetryError, match=f"step {last} is saved"):
        pretrain(config, workdir, evaluate=stop, progress=False)


def losses(workdir: Path) -> dict[int, dict[str, float]]:
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return {
        row["step"]: {name: value for name, value in row.items() if name.startswith("loss/")}
        for row in rows
        if "loss/total" in row
    }


def test_processes_change_neither_losses_nor_what_a_checkpoint_can_be_read_by(shared_config, go_on, tmp_path):
    one, two, four, back = (tmp_path / name for name in ("one", "two", "four", "back"))
    go_on_here(shared_config, one, 2)
    shutil.copytree(one, two)
    go_on_here(shared_config, one, 6)

    go_on(two, 2, 4)
    shutil.copytree(two, four)
    shutil.copytree(two, back)
    go_on(four, 4, 6)
    go_on_here(shared_config, back, 6)

    expected = losses(one)
    for workdir, last in ((two, 4), (four, 6), (back, 6)):
        found = losses(workdir)
        assert sorted(found) == list(range(1, last + 1))
        for step, row in found.items():
            assert row.keys() == expected[step].keys()
            for name, value in row.items():
                assert_allclose(
                    value, expected[step][name], rtol=1e-5, err_msg=f"{workdir.name}: {name} at step {step}"
                )
