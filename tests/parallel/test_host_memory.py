"""What a step frees stays with the process, on the CPU alone."""

import os
import subprocess
import sys

import pytest

from msfl_jax.parallel import host_memory

ALLOCATE = """
import resource, sys, threading
import numpy as np
from msfl_jax.parallel.host_memory import keep_freed_memory

done = keep_freed_memory() if sys.argv[1] == "keep" else False


def step():
    for _ in range(5):
        [np.ones(24 << 20, np.uint8) for _ in range(4)]  # 24,576 pages


before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(2):
    thread = threading.Thread(target=step)
    thread.start()
    thread.join()
print(done, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def allocate(how: str, **environment: str) -> tuple[str, int]:
    """Whether a process of its own did it, and the page faults of ten times 96 MiB in two threads one after the other."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "JAX_"))}
    environment = plain | {"NUMPY_MADVISE_HUGEPAGE": "0", "JAX_PLATFORMS": "cpu"} | environment
    command = [sys.executable, "-c", ALLOCATE, how]
    done, faults = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.split()
    return done, int(faults)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc")
def test_pages_are_cleared_once_and_not_for_every_array():
    done, kept = allocate("keep")
    assert done == "True"
    assert kept < 2 * 24_576
    assert allocate("leave")[1] > 5 * 24_576


def test_what_the_user_set_is_left_alone():
    assert allocate("keep", MALLOC_ARENA_MAX="4")[0] == "False"


def test_a_machine_with_an_accelerator_is_left_alone(monkeypatch):
    monkeypatch.setattr(host_memory.ctypes, "CDLL", lambda name: pytest.fail("called glibc"))
    monkeypatch.setattr(host_memory.importlib.metadata, "entry_points", lambda group: [group])
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    assert not host_memory.keep_freed_memory()
    monkeypatch.setenv("JAX_PLATFORMS", "cuda,cpu")
    assert not host_memory.keep_freed_memory()
