"""Every test runs on eight virtual CPU devices, with array shapes and dtypes checked against the annotations."""

import os
from importlib.metadata import version
from pathlib import Path

import hypothesis
import pytest
from jaxtyping import install_import_hook

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    # Tests compile more than they compute, so LLVM may be quick; at level 0, gradients of large activations come out as NaN (jaxlib 0.10.2).
    flags = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=1 --xla_llvm_disable_expensive_passes=true"
    # Steps compile in three fifths of the time where fusions are not lowered through MLIR; the demo that CI runs is compiled as users' runs are.
    # Later versions do not know the flag, and an unknown one ends the process.
    if version("jaxlib").startswith("0.10."):
        flags += " --xla_cpu_use_fusion_emitters=false"
    # Eight devices on a busy machine wait for each other for longer than the 40 s after which XLA ends the process.
    patience = "--xla_cpu_collective_call_warn_stuck_timeout_seconds=120 --xla_cpu_collective_call_terminate_timeout_seconds=1200"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags} {patience}"

# But tables on disk: they are called many times for every row of a released table, and checks would take most of the tests' time.
UNCHECKED = ("compact", "scratch")
PIPELINE = Path(__file__).parents[1] / "input_pipeline"
CHECKED = [f"input_pipeline.{path.stem}" for path in sorted(PIPELINE.iterdir()) if path.stem not in UNCHECKED]
install_import_hook(["msfl_jax", *CHECKED], "beartype.beartype")
hypothesis.settings.register_profile("default", deadline=None, derandomize=True, max_examples=50)
hypothesis.settings.load_profile("default")


# Files that take minutes: what starts last should be short, or one worker ends long after the others.
LONG = ("test_real_data", "test_secrets_of_runs", "test_step", "test_loop", "test_gradient_cache", "test_layouts")


def pytest_collection_modifyitems(items):
    """Puts the tests of long files first; workers take file after file in this order."""
    items.sort(key=lambda item: item.path.stem not in LONG)


MAPPINGS = Path("/proc/self/maps")
FEW_MAPPINGS = 15_000


@pytest.fixture(autouse=True, scope="module")
def room_for_programs():
    """Drops compiled programs behind a file that leaves many: each maps memory, and Linux ends a process with more than 65,530 mappings."""
    yield
    if MAPPINGS.exists() and len(MAPPINGS.read_bytes().splitlines()) > FEW_MAPPINGS:
        import jax

        jax.clear_caches()


@pytest.fixture(autouse=True, scope="session")
def compilation_cache(tmp_path_factory):
    """What was compiled once is not compiled again, by this process or by one that it starts.

    Each worker has a folder of its own, as JAX writes no file of it in one go.
    """
    import jax

    settings = {
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("compiled")),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    for name, value in settings.items():
        jax.config.update(name, value)
        os.environ[name.upper()] = str(value)


@pytest.fixture(scope="session")
def mesh_of():
    """A mesh of the given shape over as many of the eight virtual devices as it needs."""
    import jax

    from msfl_jax.config import MeshConfig
    from msfl_jax.parallel.mesh import make_mesh

    def make(data: int, fsdp: int = 1, tensor: int = 1):
        return make_mesh(MeshConfig(data, fsdp, tensor), devices=jax.devices()[: data * fsdp * tensor])

    return make


@pytest.fixture(scope="session")
def real_data():
    """The folder of real files named by MSFL_REAL_DATA; the test is skipped, visibly, without it."""
    folder = os.environ.get("MSFL_REAL_DATA", "")
    if not folder or not Path(folder).is_dir():
        pytest.skip("no real data: MSFL_REAL_DATA names no folder")
    return Path(folder)
