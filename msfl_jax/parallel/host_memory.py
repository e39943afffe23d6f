"""How the C allocator treats the large arrays of a run on the CPU."""

import contextlib
import ctypes
import importlib.metadata
import os
import sys

# Parameters of glibc's mallopt, from its malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8
_LARGEST = 2**31 - 1  # mallopt takes an int


def keep_freed_memory() -> bool:
    """Lets glibc keep what a training step frees, instead of handing it back to the kernel and asking for it again in the next step.

    Activations of a step on the CPU are allocated by many threads and freed within it. By default glibc unmaps most of them, and the kernel has to
    clear the pages anew: a step of the demo takes a third longer. Call it before anything starts threads. Where JAX has an accelerator to run on
    nothing is changed, because threads that decode images would then wait for one another; nor where the user has set glibc's own variables.

    Returns:
      Whether it was done.
    """
    if not sys.platform.startswith("linux") or any(name.startswith("MALLOC_") for name in os.environ) or _accelerated():
        return False
    with contextlib.suppress(OSError, AttributeError):  # another C library than glibc
        mallopt = ctypes.CDLL(None).mallopt
        return all([mallopt(_ARENA_MAX, 1), mallopt(_MMAP_THRESHOLD, _LARGEST), mallopt(_TRIM_THRESHOLD, _LARGEST)])
    return False


def _accelerated() -> bool:
    """Whether JAX may run on something else than the CPU: a plugin is installed and not switched off. Asks no device and imports no JAX."""
    platforms = os.environ.get("JAX_PLATFORMS", "")
    if platforms:
        return platforms != "cpu"
    plugins = importlib.metadata.entry_points(group="jax_plugins")
    return bool(plugins) or _installed("libtpu")


def _installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
