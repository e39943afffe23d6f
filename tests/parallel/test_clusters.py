"""Launchers recognised by their variables: environments as real launchers make them, incomplete ones, and junk."""

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from jax._src.clusters import OmpiCluster, SlurmCluster

from input_pipeline.errors import UserError
from msfl_jax.parallel import clusters
from msfl_jax.parallel.clusters import Cluster, detect

# What `srun` shows task 9 of 16 on two nodes of eight GPUs each.
SLURM_TASK = {
    "SLURM_CLUSTER_NAME": "alpha",
    "SLURM_CPUS_PER_TASK": "14",
    "SLURM_JOB_ID": "1837262",
    "SLURM_JOB_NODELIST": "hopper[017-018]",
    "SLURM_JOB_NUM_NODES": "2",
    "SLURM_LAUNCH_NODE_IPADDR": "10.4.0.17",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
    "SLURM_NTASKS": "16",
    "SLURM_PROCID": "9",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NODELIST": "hopper[017-018]",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_NUM_TASKS": "16",
    "SLURM_STEP_TASKS_PER_NODE": "8(x2)",
    "CUDA_VISIBLE_DEVICES": "0,1,2,3,4,5,6,7",
}
SLURM_NODE = SLURM_TASK | {
    "SLURM_LOCALID": "0",
    "SLURM_NTASKS": "2",
    "SLURM_PROCID": "1",
    "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_STEP_TASKS_PER_NODE": "1(x2)",
}
BATCH_SHELL = {name: value for name, value in SLURM_TASK.items() if "STEP" not in name} | {"SLURM_PROCID": "0"}
OPEN_MPI = {
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "4",
    "OMPI_COMM_WORLD_RANK": "5",
    "OMPI_COMM_WORLD_SIZE": "8",
    "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911",
    "PMIX_RANK": "5",
    "CUDA_VISIBLE_DEVICES": "0,1,2,3",
}
TPU_POD = {
    "KUBERNETES_SERVICE_HOST": "10.24.0.1",
    "JOB_COMPLETION_INDEX": "3",
    "TPU_ACCELERATOR_TYPE": "v5p-32",
    "TPU_ML_PLATFORM": "JAX",
    "TPU_WORKER_HOSTNAMES": ",".join(f"msfl-slice-0-{worker}.msfl" for worker in range(4)),
    "TPU_WORKER_ID": "3",
}
TPU_SLICES = TPU_POD | {
    "MEGASCALE_COORDINATOR_ADDRESS": "msfl-slice-0-0.msfl",
    "MEGASCALE_NUM_SLICES": "2",
    "MEGASCALE_SLICE_ID": "1",
}
JOBSET = {
    "KUBERNETES_SERVICE_HOST": "10.24.0.1",
    "JOBSET_NAME": "msfl-b16",
    "REPLICATED_JOB_NAME": "workers",
    "JOB_COMPLETION_INDEX": "1",
    "JAX_NUM_PROCESSES": "4",
}
TORCHRUN = {
    "LOCAL_RANK": "2",
    "LOCAL_WORLD_SIZE": "4",
    "MASTER_ADDR": "10.0.0.5",
    "MASTER_PORT": "29500",
    "RANK": "6",
    "TORCHELASTIC_RUN_ID": "7a1",
    "WORLD_SIZE": "8",
    "CUDA_VISIBLE_DEVICES": "0,1,2,3,4,5,6,7",
}
EXPLICIT = {"JAX_COORDINATOR_ADDRESS": "head:1234", "JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "3"}
TPU_VM = {"TPU_ML_PLATFORM": "JAX", "TPU_ML_PLATFORM_VERSION": "0.10.2", "HOSTNAME": "t1v-n-1f2-w-0"}
ALL = {
    "slurm": SLURM_TASK,
    "mpi": OPEN_MPI,
    "pod": TPU_SLICES,
    "jobset": JOBSET,
    "torchrun": TORCHRUN,
    "own": EXPLICIT,
    "tpu": TPU_VM,
}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        (SLURM_TASK, Cluster("SLURM", 16, 9, "hopper017:63694", (1,))),
        (SLURM_NODE, Cluster("SLURM", 2, 1, "hopper017:63694")),
        (OPEN_MPI, Cluster("Open MPI", 8, 5, "10.96.0.1:62624", (1,))),
        (TPU_POD, Cluster("TPU pods", 4, 3)),
        (TPU_SLICES, Cluster("TPU pods", 8, 7)),
        (JOBSET, Cluster("JobSet", 4, 1, "msfl-b16-workers-0-0.msfl-b16:8476")),
        (TORCHRUN, Cluster("torchrun", 8, 6, "10.0.0.5:29501", (4, 5))),
        (EXPLICIT, Cluster("JAX's variables", 4, 3, "head:1234")),
        (TPU_VM, Cluster("TPU VM", 0, None)),
    ],
    ids=["slurm, process per GPU", "slurm, process per node", *list(ALL)[1:3], "slices", *list(ALL)[3:]],
)
def test_each_launcher_is_recognised(environment, expected):
    assert detect(environment) == expected


@pytest.mark.parametrize(("environment", "own"), [(SLURM_TASK, SlurmCluster), (OPEN_MPI, OmpiCluster)])
def test_jax_reads_the_same_numbers_where_it_knows_the_launcher(environment, own, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert own.is_env_present()
    found = detect(environment)
    assert found.address == own.get_coordinator_address(timeout_secs=1, override_coordinator_port=None)
    assert (found.count, found.index) == (own.get_process_count(), own.get_process_id())
    assert found.devices == (own.get_local_process_id(),)


@pytest.mark.parametrize(
    "environment",
    [
        {},
        BATCH_SHELL,
        SLURM_TASK | {"SLURM_STEP_NUM_TASKS": "1"},  # the shell that salloc opens: SLURM_NTASKS is that of the job
        OPEN_MPI | {"OMPI_COMM_WORLD_SIZE": "1"},
        TPU_POD | {"TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0"},
        TPU_VM | {"TPU_SKIP_MDS_QUERY": "1"},
        TORCHRUN | {"WORLD_SIZE": "1"},
        SLURM_TASK | {"JAX_NUM_PROCESSES": "1"},
        TPU_VM | {"JAX_NUM_PROCESSES": "1"},
        EXPLICIT | {"JAX_NUM_PROCESSES": "1", "JAX_PROCESS_ID": "0"},
    ],
)
def test_a_process_on_its_own_is_in_no_cluster(environment):
    assert detect(environment) is None


@pytest.mark.parametrize(
    ("environment", "launcher", "address"),
    [
        (SLURM_TASK | OPEN_MPI, "Open MPI", "10.96.0.1:62624"),  # mpirun inside a SLURM job
        (BATCH_SHELL | EXPLICIT, "JAX's variables", "head:1234"),
        (
            SLURM_TASK | {"SLURM_STEP_NUM_TASKS": "1"} | EXPLICIT,
            "SLURM",
            "head:1234",
        ),  # local_processes.py under srun -n 1
        (SLURM_TASK | {"JAX_COORDINATOR_ADDRESS": "head:1234"}, "SLURM", "head:1234"),
        (SLURM_TASK | {"JAX_COORDINATOR_PORT": "5000"}, "SLURM", "hopper017:5000"),
        (JOBSET | {"JAX_COORDINATOR_ADDRESS": "[fd00::1]:99"}, "JobSet", "[fd00::1]:99"),
        (EXPLICIT | {"SLURM_STEP_NODELIST": "["}, "JAX's variables", "head:1234"),
    ],
)
def test_what_counts_where_several_speak(environment, launcher, address):
    found = detect(environment)
    assert (found.launcher, found.address) == (launcher, address)


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"JAX_PROCESS_ID": "0"}, "JAX_PROCESS_ID set, but not JAX_COORDINATOR_ADDRESS and JAX_NUM_PROCESSES"),
        (EXPLICIT | {"JAX_NUM_PROCESSES": "two"}, "JAX_NUM_PROCESSES is 'two'; expected a number of at least 1"),
        (EXPLICIT | {"JAX_PROCESS_ID": "4"}, "JAX_PROCESS_ID is 4; expected a number from 0 to 3"),
        (EXPLICIT | {"JAX_COORDINATOR_ADDRESS": "head"}, "is 'head'; expected host:port"),
        (EXPLICIT | {"JAX_COORDINATOR_ADDRESS": "head:70000"}, "expected host:port"),
        (EXPLICIT | {"JAX_COORDINATOR_ADDRESS": "http://head:1"}, "expected host:port"),
        (SLURM_TASK | EXPLICIT, "JAX_NUM_PROCESSES is 4, but SLURM says 16; unset it"),
        (TPU_VM | {"JAX_COORDINATOR_ADDRESS": "head:1"}, "but not JAX_NUM_PROCESSES and JAX_PROCESS_ID"),
        (
            {k: v for k, v in SLURM_TASK.items() if k != "SLURM_PROCID"},
            "SLURM_PROCID is None; expected a number from 0 to 15",
        ),
        (SLURM_TASK | {"SLURM_STEP_NODELIST": "bad;name"}, "'bad;name'; expected names of nodes"),
        (SLURM_TASK | {"CUDA_VISIBLE_DEVICES": "0,1,2"}, "8 processes on this machine see 3 GPUs"),
        (SLURM_TASK | {"SLURM_NODEID": "5"}, "SLURM_NODEID is 5"),
        ({k: v for k, v in OPEN_MPI.items() if "orte" not in k}, "mpirun with -x JAX_COORDINATOR_ADDRESS=HOST:PORT"),
        (TPU_POD | {"TPU_WORKER_ID": "4"}, "TPU_WORKER_ID is 4; expected a number from 0 to 3"),
        (TPU_SLICES | {"MEGASCALE_SLICE_ID": ""}, "MEGASCALE_SLICE_ID is ''"),
        ({k: v for k, v in JOBSET.items() if k != "JAX_NUM_PROCESSES"}, "JAX_NUM_PROCESSES is None"),
        (JOBSET | {"REPLICATED_JOB_NAME": "a b"}, "see launch/gke_jobset.yaml"),
        ({k: v for k, v in TORCHRUN.items() if k != "RANK"}, "RANK is None; expected a number from 0 to 7"),
    ],
)
def test_incomplete_and_contradictory_variables_are_one_line(environment, words):
    with pytest.raises(UserError, match=re.escape(words)) as error:
        detect(environment)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("shown", "local", "here", "expected"),
    [
        ("0,1,2,3,4,5,6,7", 3, 8, (3,)),
        ("0,1,2,3,4,5,6,7", 1, 2, (4, 5, 6, 7)),
        ("0,1,2,3,4,5,6,7", 0, 1, None),
        ("3", 3, 8, None),  # --gpus-per-task=1: each task sees its own GPU only, as its number 0
        ("GPU-8f2e,GPU-91aa", 1, 2, (1,)),
        ("NoDevFiles", 1, 2, None),
        (None, 5, 8, (5,)),
        ("0,1,2,3", 2, None, (2,)),
    ],
)
def test_processes_share_the_gpus_that_they_see(shown, local, here, expected):
    environment = {} if shown is None else {"CUDA_VISIBLE_DEVICES": shown}
    assert clusters._devices(environment, local, here) == expected
    assert clusters._devices(environment | {"JAX_LOCAL_DEVICE_IDS": "0"}, local, here) is None


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("node001", "node001"),
        ("node001,host2", "node001"),
        ("node[001-015],host2", "node001"),
        ("node[007,012-015],host2", "node007"),
        ("rack[0-1]-node[3-4]", "rack0-node3"),
        ("a100-04.cluster", "a100-04.cluster"),
    ],
)
def test_the_first_node_of_slurms_lists(nodes, first):
    assert clusters._first_host(nodes) == first


@given(
    st.sampled_from(sorted(ALL)).flatmap(
        lambda kind: st.fixed_dictionaries(
            {},
            optional={
                name: st.sampled_from([value, "0", "7", "", "²", "-1", "a;b", "x" * 40]) | st.text()
                for name, value in ALL[kind].items()
            },
        )
    ),
    st.dictionaries(
        st.sampled_from(sorted(set().union(*ALL.values()))), st.text() | st.sampled_from("0123"), max_size=4
    ),
)
@example(
    {}, {"SLURM_STEP_NODELIST": "", "SLURM_NTASKS": "2", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_JOB_ID": "1"}
)
def test_junk_is_refused_in_one_line_or_makes_a_cluster_that_can_be(environment, more):
    found, refusal = None, ""
    try:
        found = detect(environment | more)
    except UserError as error:
        refusal = str(error)
    assert len(refusal.splitlines()) <= 1
    if found is not None and found.index is not None:
        assert 0 <= found.index < found.count
        assert found.count > 1
    if found is not None and found.address:
        assert clusters.ADDRESS_PATTERN.fullmatch(found.address)


def test_a_command_for_one_process_refuses_several():
    with pytest.raises(UserError, match=r"msfl demo runs as one process; found 16 \(SLURM\): start it once"):
        clusters.refuse_several(SLURM_TASK, "msfl demo")
    clusters.refuse_several({}, "msfl demo")
    clusters.refuse_several(TPU_VM, "msfl demo")


def test_who_prints_before_the_start():
    assert clusters.lead_before_start({})
    assert clusters.lead_before_start(SLURM_TASK | {"SLURM_PROCID": "0"})
    assert not clusters.lead_before_start(SLURM_TASK)
    assert clusters.lead_before_start(TPU_VM)
    assert clusters.lead_before_start({"JAX_PROCESS_ID": "1"})
