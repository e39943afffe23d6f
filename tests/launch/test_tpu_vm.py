"""The TPU VM script with a fake gcloud: what would be rented, installed and started, and what is refused."""

import subprocess

import pytest

from .conftest import BAD_NAMES

SETTINGS = {
    "ZONE": "europe-west4-b",
    "ACCELERATOR": "v5litepod-16",
    "VERSION": "v2-alpha-tpuv5-lite",
    "WHEEL": "msfl_jax-0.1.0-py3-none-any.whl",
    "BUCKET": "my-bucket",
}
COMMAND = ("pretrain", "--config", "mimic_vit_b16", "--workdir", "bucket/runs/b16")
GCLOUD = "gcloud compute tpus tpu-vm"

# Remote commands run here, in the folder of the test, as if it were the home directory of a worker.
REMOTE = """
case "$4" in
  describe) [ -f state ] && cat state || exit 1 ;;
  ssh) while [ "$1" != --command ]; do shift; done; bash -c "$2" ;;
esac
"""


@pytest.fixture
def cloud(fakes):
    (fakes.folder / SETTINGS["WHEEL"]).touch()
    fakes.add("gcloud", REMOTE)
    return fakes


def actions(fakes):
    """What gcloud was asked to do, without its arguments."""
    return [call.split()[4] for call in fakes.calls if call.startswith(GCLOUD)]


def test_create_rents_the_slice_that_was_asked_for(cloud):
    assert cloud.run("tpu_vm.sh", "create", "msfl-b16", **SETTINGS)[0] == 0
    options = "--zone europe-west4-b --accelerator-type v5litepod-16 --version v2-alpha-tpuv5-lite"
    assert cloud.calls == [f"{GCLOUD} create msfl-b16 {options}"]
    cloud.log.unlink()
    cloud.run("tpu_vm.sh", "create", "msfl-b16", **SETTINGS, SPOT="1")
    assert cloud.calls == [f"{GCLOUD} create msfl-b16 {options} --spot"]


def test_setup_copies_and_installs_on_every_machine(cloud):
    cloud.add("gcloud", 'while [ $# -gt 0 ] && [ "$1" != --command ]; do shift; done; bash -n -c "$2"')
    code, _, err = cloud.run("tpu_vm.sh", "setup", "b16", **SETTINGS)
    assert code == 0, err
    said = "\n".join(cloud.calls)
    assert f"{GCLOUD} scp {SETTINGS['WHEEL']} b16: --zone europe-west4-b --worker=all" in said
    assert f"{GCLOUD} ssh b16 --zone europe-west4-b --worker=all --command set -e" in said
    assert f"venv/bin/pip install -q '{SETTINGS['WHEEL']}[tpu]'" in said
    assert "gcsfuse --implicit-dirs --rename-dir-limit 1000000 'my-bucket' bucket" in said


@pytest.fixture
def worker(cloud):
    """A worker whose msfl saves and ends with 75 when asked to stop."""
    (cloud.folder / "venv" / "bin").mkdir(parents=True)
    program = cloud.folder / "venv" / "bin" / "msfl"
    program.write_text(
        '#!/usr/bin/env bash\ntrap "echo saved; exit 75" TERM\necho "$MSFL_XLA_PRESET $*"\n'
        "for i in $(seq 200); do sleep 0.1; done\n"
    )
    program.chmod(0o755)
    (cloud.folder / "state").write_text("READY\n")
    return cloud


def poll(file, text):
    """Waits until a file holds the text, with the patience of a busy machine."""
    script = f"for i in $(seq 300); do grep -q '{text}' '{file}' 2>/dev/null && exit 0; sleep 0.1; done; exit 1"
    subprocess.run(["bash", "-c", script], check=True)


def test_a_run_is_started_looked_at_and_stopped(worker):
    folder = worker.folder
    assert worker.run("tpu_vm.sh", "run", "b16", *COMMAND, ZONE="z")[0] == 0
    poll(folder / "run.log", "tpu " + " ".join(COMMAND))
    assert "exit code none yet" in worker.run("tpu_vm.sh", "status", "b16", ZONE="z")[1]
    code, _, err = worker.run("tpu_vm.sh", "run", "b16", *COMMAND, ZONE="z")
    assert (code, err) == (2, "error: a run is there already; stop it first\n")
    assert worker.run("tpu_vm.sh", "stop", "b16", ZONE="z")[0] == 0
    poll(folder / "run.exit", "75")
    said = worker.run("tpu_vm.sh", "status", "b16", ZONE="z")[1]
    assert said.splitlines()[0] == "READY"
    assert "exit code 75" in said
    assert said.splitlines()[-1] == "saved"


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        ("PREEMPTED", ["describe", "delete", "create", "scp", "ssh", "ssh"]),
        ("TERMINATED", ["describe", "delete", "create", "scp", "ssh", "ssh"]),
        ("READY", ["describe", "scp", "ssh", "ssh"]),
        (None, ["describe", "create", "scp", "ssh", "ssh"]),
    ],
)
def test_resume_rents_again_what_was_taken_away(cloud, state, expected):
    described = f"echo {state}" if state else "exit 1"
    cloud.add("gcloud", f'if [ "$4" = describe ]; then {described}; fi')
    code, _, err = cloud.run("tpu_vm.sh", "resume", "b16", *COMMAND, **SETTINGS)
    assert code == 0, err
    assert actions(cloud) == expected


def test_resume_waits_for_a_slice_in_between(cloud):
    cloud.add("gcloud", "echo CREATING")
    code, _, err = cloud.run("tpu_vm.sh", "resume", "b16", *COMMAND, **SETTINGS)
    assert code == 2
    assert err.startswith("error: the slice is CREATING; expected READY, PREEMPTED or none")
    assert actions(cloud) == ["describe"]


@pytest.mark.parametrize("bad", BAD_NAMES)
def test_bad_names_are_refused_before_anything_starts(cloud, bad):
    assert "NAME is" in cloud.refused("tpu_vm.sh", "delete", bad, **SETTINGS)
    assert "ARGUMENT is" in cloud.refused("tpu_vm.sh", "run", "b16", "pretrain", bad, **SETTINGS)


@pytest.mark.parametrize("name", SETTINGS)
def test_bad_settings_are_refused_before_anything_starts(cloud, name):
    for bad in ("a b", "a;b", "$(id)", ""):
        said = cloud.refused("tpu_vm.sh", "resume", "b16", *COMMAND, **SETTINGS | {name: bad})
        assert said.startswith(f"error: {name} is")


def test_what_is_missing_is_said(cloud):
    assert "expected: launch/tpu_vm.sh create|setup" in cloud.refused("tpu_vm.sh", "create")
    assert "ZONE is ''" in cloud.refused("tpu_vm.sh", "status", "b16")
    assert "'rent' is nothing to do" in cloud.refused("tpu_vm.sh", "rent", "b16", **SETTINGS)
    assert "no arguments for msfl" in cloud.refused("tpu_vm.sh", "run", "b16", **SETTINGS)
    assert "no such file" in cloud.refused("tpu_vm.sh", "setup", "b16", **SETTINGS | {"WHEEL": "other.whl"})
