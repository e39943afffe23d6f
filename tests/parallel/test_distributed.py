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
CLUSTER = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID", "SLURM_NTASKS", "SLURM_STEP_NODELIST")


@pytest.fixture
def initialized(monkeypatch):
    """Arguments of the calls of `jax.distributed.initialize`, in an environment without a cluster."""
    calls = []
    for name in (*CLUSTER, "OMPI_COMM_WORLD_SIZE", "TPU_WORKER_HOSTNAMES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(jax.distributed, "initialize", lambda **arguments: calls.append(arguments))
    return calls


def test_a_process_on_its_own_connects_to_nobody(initialized):
    distributed.start()
    assert initialized == []
    assert distributed.is_lead()


def test_the_three_variables_connect_a_process(initialized, monkeypatch):
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "host:1234")
    monkeypatch.setenv("JAX_NUM_PROCESSES", "4")
    monkeypatch.setenv("JAX_PROCESS_ID", "3")
    distributed.start()
    assert initialized == [
        {"coordinator_address": "host:1234", "num_processes": 4, "process_id": 3, "heartbeat_timeout_seconds": 30}
    ]


@pytest.mark.parametrize(("missing", "value"), [("JAX_PROCESS_ID", None), ("JAX_NUM_PROCESSES", "two")])
def test_half_a_set_of_variables_is_refused(initialized, monkeypatch, missing, value):
    for name, given in zip(CLUSTER, ("host:1234", "4", "3"), strict=False):
        monkeypatch.setenv(name, given)
    monkeypatch.delenv(missing) if value is None else monkeypatch.setenv(missing, value)
    with pytest.raises(UserError, match=f"{missing} is {value!r}; expected a number"):
        distributed.start()


@pytest.mark.parametrize(
    ("variables", "connects"),
    [
        ({"SLURM_NTASKS": "4", "SLURM_STEP_NODELIST": "node[1-4]"}, True),
        ({"SLURM_NTASKS": "4"}, False),
        ({"SLURM_NTASKS": "1", "SLURM_STEP_NODELIST": "node1"}, False),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, True),
        ({"TPU_WORKER_HOSTNAMES": "t0,t1"}, True),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, False),
    ],
)
def test_jax_is_left_to_find_a_cluster_only_where_there_are_several_processes(
    initialized, monkeypatch, variables, connects
):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    distributed.start()
    assert bool(initialized) == connects


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
