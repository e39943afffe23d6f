"""When processes are connected, and the launcher that starts them on one machine."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import pytest

from input_pipeline.errors import UserError
from msfl_jax.parallel import distributed

LAUNCHER = Path(__file__).parents[2] / "launch" / "local_processes.py"
OF_LAUNCHERS = ("JAX_", "SLURM_", "OMPI_", "TPU_", "MEGASCALE_", "JOBSET_", "WORLD_SIZE")
SLURM = {
    "SLURM_JOB_ID": "4242",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NODELIST": "gpu[07-08]",
    "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_TASKS_PER_NODE": "1(x2)",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "0",
}


@pytest.fixture
def initialized(monkeypatch):
    """Calls of `jax.distributed.initialize`, as (positional, named) arguments, in an environment without a launcher."""
    calls = []
    for name in [name for name in os.environ if name.startswith(OF_LAUNCHERS)]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(jax.distributed, "initialize", lambda *given, **named: calls.append((given, named)))
    return calls


def test_a_process_on_its_own_connects_to_nobody_and_says_nothing(initialized, capsys):
    distributed.start()
    assert initialized == []
    assert distributed.is_lead()
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("index", "printed"), [("0", "processes           2 (SLURM), process 0 at gpu07:61586\n"), ("1", "")]
)
def test_process_0_says_which_launcher_was_found(initialized, monkeypatch, capsys, index, printed):
    for name, value in (SLURM | {"SLURM_PROCID": index, "SLURM_NODEID": index}).items():
        monkeypatch.setenv(name, value)
    distributed.start()
    [(given, named)] = initialized
    assert given == ("gpu07:61586", 2, int(index))
    assert named == {
        "local_device_ids": None,
        "cluster_detection_method": "deactivate",
        "heartbeat_timeout_seconds": 30,
    }
    assert capsys.readouterr().out == printed


def test_jax_asks_the_tpu_runtime_itself(initialized, monkeypatch):
    for name, value in {"TPU_WORKER_HOSTNAMES": "t0,t1", "TPU_WORKER_ID": "1"}.items():
        monkeypatch.setenv(name, value)
    distributed.start()
    assert initialized == [((), {"heartbeat_timeout_seconds": 30})]


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ValueError("coordinator_address should be defined."), "TPU pods: JAX finds no TPU .* the extra 'tpu'"),
        (ConnectionError("metadata.google.internal"), "TPU pods: the metadata server does not answer"),
    ],
)
def test_where_jax_finds_no_pod_one_line_says_so(initialized, monkeypatch, error, words):
    def fail(**_):
        raise error

    monkeypatch.setattr(jax.distributed, "initialize", fail)
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "t0,t1")
    monkeypatch.setenv("TPU_WORKER_ID", "1")
    with pytest.raises(UserError, match=words):
        distributed.start()


def test_half_a_set_of_variables_is_refused(initialized, monkeypatch):
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "host:1234")
    with pytest.raises(UserError, match="but not JAX_NUM_PROCESSES and JAX_PROCESS_ID"):
        distributed.start()
    assert initialized == []


def launch(*arguments: str, script: str, **options) -> subprocess.Popen:
    command = [sys.executable, str(LAUNCHER), *arguments, "--", sys.executable, "-c", script]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def test_each_process_gets_its_number_one_address_and_its_devices():
    script = "import os; print(*(os.environ[n] for n in ('JAX_PROCESS_ID', 'JAX_NUM_PROCESSES', 'JAX_COORDINATOR_ADDRESS', 'XLA_FLAGS')))"
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    process = launch("-n", "3", "--devices-per-process", "2", script=script, env=environment)
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 0
    lines = sorted(output.splitlines())
    assert [line.split()[:3] for line in lines] == [[f"[{i}]", str(i), "3"] for i in range(3)]
    assert len({line.split()[3] for line in lines}) == 1
    assert {line.split()[4] for line in lines} == {"--xla_force_host_platform_device_count=2"}


def test_the_first_failure_ends_the_others_and_is_returned():
    script = "import os, sys, time; time.sleep(60) if os.environ['JAX_PROCESS_ID'] == '0' else sys.exit(5)"
    started = time.monotonic()
    process = launch("-n", "2", script=script)
    process.communicate(timeout=30)
    assert process.returncode == 5
    assert time.monotonic() - started < 30


def test_a_process_that_ignores_the_wish_to_stop_is_killed():
    script = (
        "import os, signal, sys, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "time.sleep(60) if os.environ['JAX_PROCESS_ID'] == '0' else sys.exit(3)"
    )
    process = launch("-n", "2", script=script)
    process.communicate(timeout=45)
    assert process.returncode == 3


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_reaches_every_process_as_sigterm(number):
    script = (
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: (print('saved', flush=True), sys.exit(75)))\n"
        "print('ready', flush=True)\n"
        "time.sleep(60)"
    )
    process = launch("-n", "2", script=script)
    ready = [process.stdout.readline() for _ in range(2)]
    process.send_signal(number)
    output, _ = process.communicate(timeout=30)
    assert sorted(line.strip() for line in ready) == ["[0] ready", "[1] ready"]
    assert sorted(output.splitlines()) == ["[0] saved", "[1] saved"]
    assert process.returncode == 75


def test_a_killed_process_gives_the_shells_exit_code():
    process = launch("-n", "1", script="import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    process.communicate(timeout=30)
    assert process.returncode == 137
