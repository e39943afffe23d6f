"""The scripts, the JobSets and the image as files: linted, parsed, and held to what their consumers demand."""

import re
import shutil
import subprocess

import pytest
import yaml

from .conftest import BAD_NAMES, LAUNCH

SCRIPTS = ("slurm.sbatch", "tpu_vm.sh", "gke_jobset.sh")
JOB = ("b16", "europe-docker.pkg.dev/project/repository/msfl:1", "my-bucket")
COMMAND = ("pretrain", "--config", "mimic_vit_b16", "--workdir", "/bucket/runs/b16", "--config.mesh.fsdp=8")

# Fields that the API servers of Kubernetes know (batch/v1 and core/v1) and JobSet v1alpha2, of the parts that are used here.
FIELDS = {
    "jobset": {"apiVersion", "kind", "metadata", "spec"},
    "jobset spec": {
        "failurePolicy",
        "network",
        "replicatedJobs",
        "successPolicy",
        "startupPolicy",
        "suspend",
        "coordinator",
    },
    "failure policy": {"maxRestarts", "rules", "restartStrategy"},
    "failure rule": {"name", "action", "onJobFailureReasons", "targetReplicatedJobs"},
    "network": {"enableDNSHostnames", "publishNotReadyAddresses", "subdomain"},
    "replicated job": {"name", "replicas", "template", "dependsOn", "groupName"},
    "job spec": {
        *("parallelism", "completions", "completionMode", "backoffLimit", "podFailurePolicy", "template"),
        *("activeDeadlineSeconds", "ttlSecondsAfterFinished", "podReplacementPolicy"),
    },
    "pod spec": {
        *("restartPolicy", "serviceAccountName", "terminationGracePeriodSeconds", "nodeSelector", "tolerations"),
        *("securityContext", "containers", "volumes", "subdomain", "hostNetwork", "dnsPolicy"),
    },
    "container": {"name", "image", "args", "command", "ports", "env", "securityContext", "resources", "volumeMounts"},
}


def rendered(fakes, pool, *arguments, **variables):
    code, out, err = fakes.run("gke_jobset.sh", pool, *JOB, *(arguments or COMMAND), **variables)
    assert code == 0, err
    assert "${" not in out
    return yaml.safe_load(out)


def parts(manifest):
    """JobSet spec, job spec, pod spec and container."""
    [replicated] = manifest["spec"]["replicatedJobs"]
    job = replicated["template"]["spec"]
    pod = job["template"]["spec"]
    [container] = pod["containers"]
    return manifest["spec"], job, pod, container


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_parse_and_shellcheck_finds_nothing(script):
    subprocess.run(["bash", "-n", str(LAUNCH / script)], check=True)
    assert shutil.which("shellcheck"), "comes with the extra 'test'"
    found = subprocess.run(["shellcheck", "-s", "bash", str(LAUNCH / script)], capture_output=True, text=True)
    assert found.stdout == ""
    assert "set -euo pipefail" in (LAUNCH / script).read_text()


def test_what_sbatch_reads_stands_before_the_first_command():
    lines = (LAUNCH / "slurm.sbatch").read_text().splitlines()
    options = [line for line in lines if line.startswith("#SBATCH ")]
    first = next(number for number, line in enumerate(lines) if line and not line.startswith("#"))
    assert all(lines.index(option) < first for option in options)
    assert {"#SBATCH --signal=B:USR1@300", "#SBATCH --requeue", "#SBATCH --open-mode=append"} <= set(options)


@pytest.mark.parametrize(("pool", "hosts", "chips"), [("tpu", 4, 4), ("gpu", 2, 8)])
def test_a_jobset_has_the_fields_of_its_api(fakes, pool, hosts, chips):
    manifest = rendered(fakes, pool)
    spec, job, pod, container = parts(manifest)
    assert (manifest["apiVersion"], manifest["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    assert manifest["metadata"]["name"] == JOB[0]
    found = {
        "jobset": manifest,
        "jobset spec": spec,
        "failure policy": spec["failurePolicy"],
        "network": spec.get("network", {}),
        "replicated job": spec["replicatedJobs"][0],
        "job spec": job,
        "pod spec": pod,
        "container": container,
        "failure rule": spec["failurePolicy"]["rules"][0],
    }
    for name, values in found.items():
        assert set(values) <= FIELDS[name], name
    assert job["parallelism"] == job["completions"] == hosts
    assert job["completionMode"] == "Indexed"
    assert container["image"] == JOB[1]
    assert container["args"] == list(COMMAND)
    resource = {"tpu": "google.com/tpu", "gpu": "nvidia.com/gpu"}[pool]
    assert container["resources"]["limits"] == container["resources"]["requests"] == {resource: chips}
    assert pod["volumes"][0]["csi"]["volumeAttributes"]["bucketName"] == JOB[2]
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}


@pytest.mark.parametrize("pool", ["tpu", "gpu"])
def test_pods_start_again_unless_it_would_end_the_same_way(fakes, pool):
    spec, job, pod, container = parts(rendered(fakes, pool))
    [rule] = job["podFailurePolicy"]["rules"]
    assert rule["action"] == "FailJob"
    assert rule["onExitCodes"] == {"containerName": container["name"], "operator": "In", "values": [2, 3, 4, 5]}
    assert pod["restartPolicy"] == "Never", "a pod failure policy demands it"
    assert job["backoffLimit"] == 0, "one lost pod restarts all of them, through the JobSet"
    assert spec["failurePolicy"]["maxRestarts"] >= 10
    [refused] = spec["failurePolicy"]["rules"]
    assert (refused["action"], refused["onJobFailureReasons"]) == ("FailJobSet", ["PodFailurePolicy"])


@pytest.mark.parametrize("pool", ["tpu", "gpu"])
def test_pods_are_no_root_and_get_time_to_save(fakes, pool):
    _, _, pod, container = parts(rendered(fakes, pool))
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] > 0
    assert container["securityContext"] == {"allowPrivilegeEscalation": False}
    assert pod["terminationGracePeriodSeconds"] >= 60


def test_gpu_pods_find_process_0_by_what_the_manifest_gives_them(fakes):
    """What the API server would make of the downward API is put in by hand; the rest is `detect`."""
    from msfl_jax.parallel.clusters import detect

    manifest = rendered(fakes, "gpu", HOSTS="3")
    spec, job, _, container = parts(manifest)
    annotations = {
        "metadata.annotations['jobset.sigs.k8s.io/jobset-name']": manifest["metadata"]["name"],
        "metadata.annotations['jobset.sigs.k8s.io/replicatedjob-name']": spec["replicatedJobs"][0]["name"],
    }
    environment = {
        entry["name"]: entry["value"] if "value" in entry else annotations[entry["valueFrom"]["fieldRef"]["fieldPath"]]
        for entry in container["env"]
    }
    found = detect(environment | {"JOB_COMPLETION_INDEX": "2"})
    assert (found.launcher, found.count, found.index) == ("JobSet", job["completions"], 2)
    assert found.address == "b16-workers-0-0.b16:8476"
    assert {"containerPort": 8476} in container["ports"]


def test_tpu_pods_ask_for_whole_slices(fakes):
    variables = {"TOPOLOGY": "4x4", "HOSTS": "2", "CHIPS": "8", "ACCELERATOR": "tpu-v5-lite-podslice"}
    manifest = rendered(fakes, "tpu", **variables)
    _, _, pod, _ = parts(manifest)
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
        "cloud.google.com/gke-tpu-topology": "4x4",
    }
    said = fakes.refused("gke_jobset.sh", "tpu", *JOB, *COMMAND, **variables | {"HOSTS": "4"})
    assert said == "error: TOPOLOGY is 4x4, 16 chips; expected HOSTS times CHIPS, 4 times 8\n"


@pytest.mark.parametrize("bad", BAD_NAMES)
def test_bad_names_print_no_jobset(fakes, bad):
    for place, name in enumerate(("NAME", "IMAGE", "BUCKET")):
        job = [*JOB[:place], bad, *JOB[place + 1 :]]
        assert fakes.refused("gke_jobset.sh", "gpu", *job, *COMMAND).startswith(f"error: {name} is")
    assert "ARGUMENT is" in fakes.refused("gke_jobset.sh", "gpu", *JOB, "pretrain", bad)


@pytest.mark.parametrize("name", ["HOSTS", "CHIPS", "ACCELERATOR", "TOPOLOGY", "SERVICE_ACCOUNT"])
def test_bad_settings_print_no_jobset(fakes, name):
    for bad in ("a b", "a;b", "$(id)"):
        assert f"{name} is" in fakes.refused("gke_jobset.sh", "tpu", *JOB, *COMMAND, **{name: bad})


def test_the_wrong_kind_of_pool_and_too_little_are_refused(fakes):
    assert "'cpu' is no kind of node pool" in fakes.refused("gke_jobset.sh", "cpu", *JOB, *COMMAND)
    assert "expected: launch/gke_jobset.sh" in fakes.refused("gke_jobset.sh", "gpu", *JOB)
    assert "NAME is" in fakes.refused("gke_jobset.sh", "gpu", "Upper", *JOB[1:], *COMMAND)


def instructions():
    """Instructions of the Dockerfile, continued lines joined, without comments."""
    text = "\n".join(line for line in (LAUNCH / "Dockerfile").read_text().splitlines() if not line.startswith("#"))
    lines = [" ".join(line.split()) for line in re.sub(r"\\\n", " ", text).splitlines() if line.strip()]
    return [tuple(line.split(" ", 1)) for line in lines]


def test_the_image_has_a_pinned_base_and_no_root_user():
    found = instructions()
    python = next(value.removeprefix("PYTHON=") for name, value in found if (name, value[:7]) == ("ARG", "PYTHON="))
    assert re.fullmatch(r"3\.\d+\.\d+-slim-[a-z]+", python)
    assert {value.split()[0] for name, value in found if name == "FROM"} == {"python:${PYTHON}"}
    users = [value for name, value in found if name == "USER"]
    assert users[-1].split(":")[0] == "1000"
    assert [name for name, _ in found].index("ENTRYPOINT") > [name for name, _ in found].index("USER")
    assert dict(found)["ENTRYPOINT"] == '["msfl"]', "without a shell, signals reach the run"


def test_the_image_copies_code_alone_and_holds_no_secret():
    found = instructions()
    copied = {word for name, value in found if name == "COPY" and "--from" not in value for word in value.split()[:-1]}
    assert copied == {"pyproject.toml", "README.md", "LICENSE", "msfl_jax", "input_pipeline", "configs"}
    assert not [name for name, _ in found if name == "ADD"]
    assert not re.search(r"(?i)secret|token|passw|key|credential", "\n".join(value for _, value in found))


def test_the_image_knows_its_backends():
    extras = dict(re.findall(r"(cpu|gpu|tpu)\) extras=([a-z,]+)", dict(instructions())["RUN"]))
    assert extras == {"cpu": "dicom", "gpu": "dicom,cuda", "tpu": "dicom,tpu"}
    optional = (LAUNCH.parent / "pyproject.toml").read_text().partition("[project.optional-dependencies]")[2]
    for extra in {word for value in extras.values() for word in value.split(",")}:
        assert re.search(rf"(?m)^{extra} = ", optional)
