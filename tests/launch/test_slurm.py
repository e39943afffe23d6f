"""The SLURM script among fake commands: what reaches the tasks, when the job goes back into the queue, and what is refused."""

import signal
import time

import pytest

from .conftest import BAD_NAMES

JOB = {"SLURM_JOB_ID": "77", "SLURM_RESTART_COUNT": "0"}
COMMAND = ("pretrain", "--config", "mimic_vit_b16", "--workdir", "runs/b16", "--config.optimizer.peak_rate=2.5e-4")

# A step whose task saves and ends with 75 on SIGTERM; scancel signals the task, as SLURM does, and neither srun nor the script.
TASK = """
bash -c 'trap "echo saved >> saved; exit 75" TERM; echo $$ > task; for i in $(seq 300); do sleep 0.1; done; exit 1'
"""
SCANCEL = 'kill -TERM "$(cat task)"'


@pytest.fixture
def cluster(fakes):
    """Fake commands of SLURM, whose step ends as `ends` says."""

    def make(step="exit 0"):
        fakes.add("msfl")
        fakes.add("scancel", SCANCEL)
        fakes.add("scontrol")
        fakes.add("srun", step)
        return fakes

    return make


def wait_for(file):
    deadline = time.monotonic() + 30
    while not file.exists() or not file.read_text().strip():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_the_signal_before_the_limit_saves_and_requeues_once(cluster):
    fakes = cluster(TASK)
    process = fakes.start("slurm.sbatch", *COMMAND, **JOB)
    wait_for(fakes.folder / "task")
    process.send_signal(signal.SIGUSR1)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 75, err
    assert (fakes.folder / "saved").read_text() == "saved\n"
    assert fakes.calls[0] == f"srun --kill-on-bad-exit=0 --wait=300 msfl {' '.join(COMMAND)}"
    assert fakes.calls[1:] == ["scancel --signal=TERM 77", "scontrol requeue 77"]
    assert out.splitlines() == ["asked to stop before the time limit", "saved; back into the queue"]


def test_slurms_own_sigterm_is_not_passed_on_a_second_time(cluster):
    fakes = cluster(TASK)
    process = fakes.start("slurm.sbatch", *COMMAND, **JOB)
    wait_for(fakes.folder / "task")
    process.send_signal(signal.SIGTERM)
    time.sleep(0.5)
    assert process.poll() is None
    assert not (fakes.folder / "saved").exists()
    process.send_signal(signal.SIGUSR1)
    process.communicate(timeout=30)
    assert process.returncode == 75
    assert fakes.calls[1:] == ["scancel --signal=TERM 77", "scontrol requeue 77"]


@pytest.mark.parametrize("code", [0, 1, 2, 3, 4, 5, 134, 137, 143])
def test_no_other_exit_code_requeues(cluster, code):
    fakes = cluster(f"exit {code}")
    found, _, _ = fakes.run("slurm.sbatch", *COMMAND, **JOB)
    assert found == code
    assert [call.split()[0] for call in fakes.calls] == ["srun"]


def test_a_run_that_another_signal_preempted_is_requeued(cluster):
    fakes = cluster("exit 75")
    assert fakes.run("slurm.sbatch", *COMMAND, **JOB)[0] == 75
    assert fakes.calls[1:] == ["scontrol requeue 77"]


def test_the_queue_is_left_after_so_many_restarts(cluster):
    fakes = cluster("exit 75")
    job = JOB | {"SLURM_RESTART_COUNT": "3", "MSFL_REQUEUES": "3"}
    assert fakes.run("slurm.sbatch", *COMMAND, **job)[0] == 75
    assert len(fakes.calls) == 1


def test_preset_and_cores_reach_the_tasks(cluster):
    fakes = cluster('echo "$MSFL_XLA_PRESET ${SRUN_CPUS_PER_TASK:-all}"')
    assert fakes.run("slurm.sbatch", *COMMAND, **JOB)[1] == "gpu all\n"
    job = JOB | {"SLURM_CPUS_PER_TASK": "64", "MSFL_XLA_PRESET": "none"}
    assert fakes.run("slurm.sbatch", *COMMAND, **job)[1] == "none 64\n"


@pytest.mark.parametrize("name", BAD_NAMES)
def test_bad_names_are_refused_before_anything_starts(cluster, name):
    assert "expected letters, digits" in cluster().refused("slurm.sbatch", "pretrain", "--workdir", name, **JOB)


def test_what_is_missing_is_said(cluster, fakes):
    fakes = cluster()
    assert "no arguments" in fakes.refused("slurm.sbatch", **JOB)
    assert "start this with sbatch" in fakes.refused("slurm.sbatch", *COMMAND)
    assert "MSFL_REQUEUES is 'x'" in fakes.refused("slurm.sbatch", *COMMAND, **JOB, MSFL_REQUEUES="x")
    (fakes.folder / "bin" / "msfl").unlink()
    assert "not on PATH" in fakes.refused("slurm.sbatch", *COMMAND, **JOB)
