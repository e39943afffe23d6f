"""Compiler flags by backend, put into the environment before JAX reads it, and only those that this installation knows.

An unknown flag ends the process inside a C++ library, without an exception, and flags come and go between versions: so a child process tries them
first. None of the presets has been measured on the machines it is for; without one, JAX's own defaults hold.
"""

import os
import re
import subprocess
import sys
from collections.abc import Callable, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from input_pipeline.errors import UserError

Variable = Literal["XLA_FLAGS", "LIBTPU_INIT_ARGS"]

GPU_GUIDE = "https://docs.jax.dev/en/latest/gpu_performance_tips.html"
SECONDS = 120  # for a child; libtpu takes ten to find that it has no TPU


@dataclass(frozen=True)
class Preset:
    """Flags of XLA, arguments of the TPU runtime, and other variables, none of which replaces what the user has set."""

    xla: tuple[str, ...] = ()
    libtpu: tuple[str, ...] = ()
    variables: dict[str, str] = field(default_factory=dict)


PRESETS = {
    "none": Preset(),
    "gpu": Preset(
        xla=(
            # Collectives run beside kernels that do not wait for them: GPU_GUIDE, "Communication flags"; set in NVIDIA's JAX image
            # (https://docs.nvidia.com/jax-toolbox/environment-variables).
            "--xla_gpu_enable_latency_hiding_scheduler=true",
            # Few large messages instead of one per parameter: GPU_GUIDE, the same section; 128 MiB is ours, a seventh of ViT-B's gradients.
            "--xla_gpu_all_reduce_combine_threshold_bytes=134217728",
            "--xla_gpu_all_gather_combine_threshold_bytes=134217728",
            "--xla_gpu_reduce_scatter_combine_threshold_bytes=134217728",
        ),
        variables={
            # JAX takes 0.75 of the memory; 0.9: https://docs.nvidia.com/jax-toolbox/performance-profiling/gpu-performance.
            "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.9",
            # A broken network ends with a reason instead of silence: NCCL's documentation, "Environment variables".
            "NCCL_DEBUG": "WARN",
        },
    ),
    "tpu": Preset(
        # Gradients are summed while the backward pass goes on, and other collectives beside computation: the set that MaxText's host-offload
        # test gives the runtime (https://github.com/AI-Hypercomputer/maxtext, end_to_end/tpu/test_host_offload.sh).
        libtpu=(
            "--xla_tpu_enable_data_parallel_all_reduce_opt=true",
            "--xla_tpu_data_parallel_opt_different_sized_ops=true",
            "--xla_tpu_enable_async_collective_fusion=true",
            "--xla_tpu_enable_async_collective_fusion_fuse_all_gather=true",
            "--xla_tpu_enable_async_collective_fusion_multiple_steps=true",
            "--xla_tpu_overlap_compute_collective_tc=true",
            "--xla_enable_async_all_gather=true",
        ),
    ),
    "cpu": Preset(
        # Virtual devices on a busy machine wait for each other for longer than the 40 s after which XLA ends the process
        # (defaults: xla/debug_options_flags.cc).
        xla=(
            "--xla_cpu_collective_call_warn_stuck_timeout_seconds=120",
            "--xla_cpu_collective_call_terminate_timeout_seconds=1200",
        ),
    ),
}

# What a child runs to have the flags of a variable read, and how it names those it does not know.
_PROBES: dict[Variable, tuple[str, dict[str, str], str]] = {
    "XLA_FLAGS": ("import jax; jax.devices()", {"JAX_PLATFORMS": "cpu"}, r"Unknown flags? in XLA_FLAGS: (.*)"),
    "LIBTPU_INIT_ARGS": (
        "from jax.experimental import topologies as t; t.get_topology_desc('v5e:2x2', platform='tpu')",
        {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1"},
        r"Unknown command line flag '([^']*)'",
    ),
}

Run = Callable[[Variable, str], tuple[int, str]]


def compiler_options(platform: str, given: str) -> dict[str, int]:
    """What the compiler of a training step is told whatever the preset.

    On CPUs, LLVM's first level: kernels are as fast as those of its third, and in float32 they are compiled sooner
    (`tests/benchmarks/compile.py`). Not level 0, where gradients of large activations come out as NaN (jaxlib 0.10.2).

    Args:
      platform: of the devices, as JAX calls it.
      given: `XLA_FLAGS`, where a level that the user has set stays.
    """
    level = "xla_backend_optimization_level"
    return {level: 1} if platform == "cpu" and level not in given else {}


def use_preset(name: str, environment: MutableMapping[str, str], *, run: Run | None = None) -> list[str]:
    """Adds a preset to the environment of this process; call before `import jax` has found its devices.

    A flag that the user has set stays as it is.

    Args:
      name: one of `PRESETS`.
      environment: `os.environ`.
      run: tries the value of a variable and returns exit code and stderr; default in a child process.

    Returns:
      One line for each variable of which flags were left out, and why.

    Raises:
      UserError: there is no such preset.
    """
    if name not in PRESETS:
        raise UserError(f"--xla-preset: no preset '{name}'; expected one of {', '.join(PRESETS)}")
    preset = PRESETS[name]
    for variable, value in preset.variables.items():
        environment.setdefault(variable, value)
    notes = []
    wanted: tuple[tuple[Variable, tuple[str, ...]], ...] = (
        ("XLA_FLAGS", preset.xla),
        ("LIBTPU_INIT_ARGS", preset.libtpu),
    )
    for variable, flags in wanted:
        known, note = known_flags(variable, _not_set(flags, environment.get(variable, "")), run or _in_a_child)
        notes += [f"{name} preset: {note}"] if note else []
        if known:
            environment[variable] = " ".join([environment.get(variable, ""), *known]).strip()
    return notes


def known_flags(variable: Variable, flags: Sequence[str], run: Run) -> tuple[list[str], str]:
    """Those of the flags that this installation takes, and a line about the others, "" where there are none."""
    left, unknown = list(flags), []
    while left:
        code, said = run(variable, " ".join(left))
        if code == 0:
            break
        named = {_name(word) for found in re.findall(_PROBES[variable][2], said) for word in found.split()}
        dropped = [flag for flag in left if _name(flag) in named]
        if not dropped:
            reason = (said.strip().splitlines() or [""])[-1][:120]
            return [], f"{variable} left as it is: the flags could not be tried (exit code {code}: {reason})"
        unknown += dropped
        left = [flag for flag in left if flag not in dropped]
    return left, f"unknown here and left out of {variable}: {' '.join(unknown)}" if unknown else ""


def _in_a_child(variable: Variable, value: str) -> tuple[int, str]:
    """Exit code and stderr of a Python that starts with nothing but these flags in the variable."""
    script, settings, _ = _PROBES[variable]
    kept = {
        name: found for name, found in os.environ.items() if name not in _PROBES and not name.startswith("TPU_WORKER")
    }
    command = [sys.executable, "-c", script]
    try:
        done = subprocess.run(
            command,
            env=kept | settings | {variable: value},
            capture_output=True,
            text=True,
            errors="replace",
            timeout=SECONDS,
        )
    except subprocess.TimeoutExpired:
        return 1, f"no answer within {SECONDS} s"
    return done.returncode, done.stderr


def _not_set(flags: Sequence[str], given: str) -> list[str]:
    """The flags that a user's own do not name."""
    own = {_name(word) for word in given.split()}
    return [flag for flag in flags if _name(flag) not in own]


def _name(flag: str) -> str:
    """xla_foo of --xla_foo=1."""
    return flag.lstrip("-").partition("=")[0]
