"""Which launcher started this process, and what it says about the others: a function of environment variables alone."""

import contextlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from input_pipeline.errors import UserError

Environment = Mapping[str, str]

ADDRESS, COUNT, INDEX = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
PORT = "JAX_COORDINATOR_PORT"
LOCAL_DEVICES = "JAX_LOCAL_DEVICE_IDS"  # read by JAX itself

# The last 4096 ports, as JAX chooses among them: jobs that share a machine mostly differ.
FIRST_PORT, PORTS = 61440, 4096
JOBSET_PORT = 8476
ADDRESS_PATTERN = re.compile(r"([A-Za-z0-9_.-]+|\[[0-9A-Fa-f:.]+\]):([0-9]{1,5})")
HOST_PATTERN = re.compile(r"[A-Za-z0-9_.-]+")
ALONE = f"or set {COUNT}=1 for a process on its own"


@dataclass(frozen=True)
class Cluster:
    """The processes of a run, as their launcher describes them.

    Attributes:
      launcher: its name, for people.
      count: how many processes there are; 0 where only the TPU runtime knows.
      index: number of this one; None where only the TPU runtime knows.
      address: "host:port" at which process 0 listens; "" where JAX is to ask the TPU runtime.
      devices: numbers of the GPUs on this machine that this process takes; None for all that it sees.
    """

    launcher: str
    count: int
    index: int | None
    address: str = ""
    devices: tuple[int, ...] | None = None


def detect(environment: Environment) -> Cluster | None:
    """The cluster that this process is part of; None for a process on its own.

    JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID come first and need no launcher; one of them alone replaces what a launcher says.

    Args:
      environment: as `os.environ`, after `import jax`, which leaves a note there on a machine with TPUs.

    Raises:
      UserError: variables of a launcher are missing, are no numbers, or contradict each other.
    """
    if environment.get(COUNT) == "1":
        return None
    own = {name: environment[name] for name in (ADDRESS, COUNT, INDEX) if name in environment}
    launched = None
    with contextlib.suppress(UserError) if len(own) == 3 else contextlib.nullcontext():
        launched = next((found for read in _LAUNCHERS if (found := read(environment)) is not None), None)
    cluster = _merged(environment, own, launched) if own else launched
    return None if cluster is None or cluster.count == 1 else cluster


def lead_before_start(environment: Environment) -> bool:
    """Whether this is process 0, or the only one, as far as variables tell before JAX has been asked."""
    with contextlib.suppress(UserError):
        cluster = detect(environment)
        return cluster is None or not cluster.index
    return True


def refuse_several(environment: Environment, command: str) -> None:
    """Raises a UserError where several processes were started of a command whose copies would write the same files."""
    cluster = detect(environment)
    if cluster is not None and cluster.count > 1:
        raise UserError(
            f"{command} runs as one process; found {cluster.count} ({cluster.launcher}): start it once, {ALONE}"
        )


def _merged(environment: Environment, own: Environment, launched: Cluster | None) -> Cluster:
    """What JAX's own variables say, and for those that are missing what the launcher says."""
    if launched is None or not launched.count:
        missing = [name for name in (ADDRESS, COUNT, INDEX) if name not in own]
        if missing:
            raise UserError(f"{', '.join(own)} set, but not {' and '.join(missing)}; expected all three, {ALONE}")
        launched = Cluster("JAX's variables", 1, 0)
    count = _number(environment, COUNT, at_least=1) if COUNT in own else launched.count
    index = _number(environment, INDEX, below=count) if INDEX in own else launched.index
    if launched.count > 1:
        for name, said, found in ((COUNT, count, launched.count), (INDEX, index, launched.index)):
            if said != found:
                raise UserError(f"{name} is {said}, but {launched.launcher} says {found}; unset it, {ALONE}")
    address = _address(own[ADDRESS]) if ADDRESS in own else launched.address
    return replace(launched, count=count, index=index, address=address)


def _open_mpi(environment: Environment) -> Cluster | None:
    """Open MPI's mpirun, which may itself have been started inside a SLURM job and then knows better."""
    if "OMPI_COMM_WORLD_SIZE" not in environment:
        return None
    count = _number(environment, "OMPI_COMM_WORLD_SIZE", at_least=1)
    if count == 1:
        return Cluster("Open MPI", 1, 0)
    index = _number(environment, "OMPI_COMM_WORLD_RANK", below=count)
    local = _number(environment, "OMPI_COMM_WORLD_LOCAL_RANK", below=count)
    of = _number(environment, "OMPI_COMM_WORLD_LOCAL_SIZE", at_least=local + 1)
    address = environment.get(ADDRESS) or _mpirun_address(environment)
    return Cluster("Open MPI", count, index, address, _devices(environment, local, of))


def _mpirun_address(environment: Environment) -> str:
    """Where mpirun runs, from "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911"; process 0 is placed there first."""
    found = re.match(
        r"([0-9]+)\.[0-9]+;(?:tcp://([0-9.]+)[,:]|tcp6://\[([0-9A-Fa-f:]+)[,\]])",
        environment.get("OMPI_MCA_orte_hnp_uri", ""),
    )
    if found is None:
        raise UserError(f"Open MPI does not say where process 0 is; run mpirun with -x {ADDRESS}=HOST:PORT")
    host = found[2] or f"[{found[3]}]"
    return f"{host}:{_port(environment, int(found[1]) // PORTS)}"


def _slurm(environment: Environment) -> Cluster | None:
    """srun. A shell of sbatch or salloc has SLURM's variables too, but is no step with tasks: there a process is on its own."""
    if "SLURM_STEP_NODELIST" not in environment:
        return None
    tasks = "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in environment else "SLURM_NTASKS"
    count = _number(environment, tasks, at_least=1)
    if count == 1:
        return Cluster("SLURM", 1, 0)
    index = _number(environment, "SLURM_PROCID", below=count)
    local = _number(environment, "SLURM_LOCALID", below=count)
    job = _number(environment, "SLURM_JOB_ID") + int(re.sub(r"\D", "", environment.get("SLURM_STEP_ID", "")) or 0)
    address = f"{_first_host(environment['SLURM_STEP_NODELIST'])}:{_port(environment, job)}"
    return Cluster("SLURM", count, index, address, _devices(environment, local, _tasks_here(environment, count)))


def _first_host(nodes: str) -> str:
    """The first of SLURM's list of nodes: node001 of "node[001-004,007],other"."""
    first = re.match(r"(?:[^,\[\]]|\[[^\[\]]*\])*", nodes)
    host = re.sub(r"\[([^\],-]*)[^\]]*\]", r"\1", first[0] if first else "")
    if not HOST_PATTERN.fullmatch(host):
        raise UserError(f"SLURM_STEP_NODELIST is {nodes!r}; expected names of nodes as in node[001-004]")
    return host


def _tasks_here(environment: Environment, count: int) -> int | None:
    """Tasks on this node, from "8(x2),4" and the number of the node; None where SLURM does not say."""
    listed = environment.get("SLURM_STEP_TASKS_PER_NODE", "")
    if not re.fullmatch(r"[0-9]{1,6}(\(x[0-9]{1,6}\))?(,[0-9]{1,6}(\(x[0-9]{1,6}\))?)*", listed):
        return 1 if environment.get("SLURM_STEP_NUM_NODES") == str(count) else None
    node = _number(environment, "SLURM_NODEID")
    for tasks, nodes in re.findall(r"([0-9]+)(?:\(x([0-9]+)\))?", listed):
        node -= int(nodes or 1)
        if node < 0:
            return max(int(tasks), 1)
    raise UserError(f"SLURM_NODEID is {environment['SLURM_NODEID']}; expected a node of tasks {listed}")


def _gke_tpu(environment: Environment) -> Cluster | None:
    """Pods of a TPU slice, or of several slices, whose variables GKE sets; JAX finds process 0 by itself."""
    hosts = environment.get("TPU_PROCESS_ADDRESSES") or environment.get("TPU_WORKER_HOSTNAMES")
    if not hosts:
        return None
    workers, slices, position = len(hosts.split(",")), 1, 0
    if "MEGASCALE_NUM_SLICES" in environment:
        slices = _number(environment, "MEGASCALE_NUM_SLICES", at_least=1)
        position = _number(environment, "MEGASCALE_SLICE_ID", below=slices)
    if workers * slices == 1:
        return Cluster("TPU pods", 1, 0)
    worker = _number(environment, "TPU_WORKER_ID", below=workers)
    return Cluster("TPU pods", workers * slices, position * workers + worker)


def _jobset(environment: Environment) -> Cluster | None:
    """Pods of a JobSet without TPUs; launch/gke_jobset.yaml gives them these variables."""
    if "JOBSET_NAME" not in environment:
        return None
    names = [environment.get(name, "") for name in ("JOBSET_NAME", "REPLICATED_JOB_NAME")]
    if not all(HOST_PATTERN.fullmatch(name) for name in names):
        raise UserError(f"JobSet: JOBSET_NAME and REPLICATED_JOB_NAME are {names}; see launch/gke_jobset.yaml")
    count = _number(environment, COUNT, at_least=1)
    index = _number(environment, "JOB_COMPLETION_INDEX", below=count)
    port = environment.get(PORT, str(JOBSET_PORT))
    return Cluster("JobSet", count, index, _address(f"{names[0]}-{names[1]}-0-0.{names[0]}:{port}"))


def _torchrun(environment: Environment) -> Cluster | None:
    """torchrun, and launchers that set its variables. Its own store listens on MASTER_PORT, so JAX takes the one above."""
    if "WORLD_SIZE" not in environment or "MASTER_ADDR" not in environment:
        return None
    count = _number(environment, "WORLD_SIZE", at_least=1)
    if count == 1:
        return Cluster("torchrun", 1, 0)
    index = _number(environment, "RANK", below=count)
    port = environment.get(PORT) or str(_number(environment, "MASTER_PORT") + 1)
    devices = None
    if "LOCAL_RANK" in environment:
        local = _number(environment, "LOCAL_RANK", below=count)
        here = _number(environment, "LOCAL_WORLD_SIZE", at_least=local + 1)
        devices = _devices(environment, local, here)
    return Cluster("torchrun", count, index, _address(f"{environment['MASTER_ADDR']}:{port}"), devices)


def _tpu_vm(environment: Environment) -> Cluster | None:
    """A virtual machine with TPUs, which may be one of many: only its metadata server knows, and JAX asks it.

    `import jax` sets the first variable where there are TPU chips and libtpu, and the second where there are no chips.
    """
    if environment.get("TPU_ML_PLATFORM") != "JAX" or "TPU_SKIP_MDS_QUERY" in environment:
        return None
    return Cluster("TPU VM", 0, None)


_LAUNCHERS: tuple[Callable[[Environment], Cluster | None], ...] = (
    *(_open_mpi, _slurm, _gke_tpu, _jobset, _torchrun, _tpu_vm),
)


def _devices(environment: Environment, local: int, here: int | None) -> tuple[int, ...] | None:
    """GPUs of the process `local` of `here` on this machine: an equal share of those it sees, where it sees more than its own.

    JAX on its own gives every process under SLURM or Open MPI the one GPU of its local number: wrong for one process per machine, and where
    the launcher shows each process its own GPU alone.
    """
    if here == 1 or LOCAL_DEVICES in environment:
        return None
    shown = environment.get("CUDA_VISIBLE_DEVICES")
    if shown is None:
        return (local,)
    visible = [name for name in shown.split(",") if name.strip() not in ("", "-1", "NoDevFiles")]
    if len(visible) <= 1:
        return None
    share, rest = divmod(len(visible), here or len(visible))
    if rest or (local + 1) * share > len(visible):
        raise UserError(
            f"{here or 'an unknown number of'} processes on this machine see {len(visible)} GPUs; expected one process, or one per GPU"
        )
    return tuple(range(local * share, (local + 1) * share))


def _number(environment: Environment, name: str, *, at_least: int = 0, below: int | None = None) -> int:
    """A variable as a number; raises a UserError that says which numbers are expected."""
    found = environment.get(name)
    expected = f"a number of at least {at_least}" if below is None else f"a number from 0 to {below - 1}"
    if found is None or not re.fullmatch("[0-9]{1,10}", found):
        raise UserError(f"{name} is {found!r}; expected {expected}, {ALONE}")
    value = int(found)
    if value < at_least or (below is not None and value >= below):
        raise UserError(f"{name} is {value}; expected {expected}, {ALONE}")
    return value


def _address(text: str) -> str:
    """An address as JAX takes it; raises a UserError for any other text."""
    found = ADDRESS_PATTERN.fullmatch(text)
    if found is None or not 0 < int(found[2]) < 65536:
        raise UserError(f"{ADDRESS} is {text!r}; expected host:port, as in node001:1234")
    return text


def _port(environment: Environment, job: int) -> int:
    """A port that all processes of a job agree on."""
    if PORT not in environment:
        return FIRST_PORT + job % PORTS
    return _number(environment, PORT, at_least=1, below=65536)
