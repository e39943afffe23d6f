"""Starts the processes that compile, one for each platform, and asks them."""

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from input_pipeline.errors import MsflError, RetryError, UserError
from msfl_jax.chips import Platform

# What a platform's compiler is found by, and the extra that installs it.
_NEEDED: dict[Platform, tuple[tuple[str, ...], str]] = {
    "tpu": (("libtpu",), "tpu"),
    "gpu": (("jax_cuda13_plugin", "jax_cuda12_plugin"), "cuda"),
    "cpu": (("jax",), ""),
}
# Without a device there is nothing to try tiles on, and the search for Triton's fails.
_GPU_FLAGS = "--xla_gpu_autotune_level=0 --xla_gpu_enable_triton_gemm=false"
_ROOT = Path(__file__).parents[2]


def refuse_missing(platform: Platform) -> None:
    """Raises a UserError that names the extra, where the compiler of a platform is not installed."""
    modules, extra = _NEEDED[platform]
    if not any(importlib.util.find_spec(module) for module in modules):
        raise UserError(
            f"planning for a {platform.upper()} needs its compiler, {modules[0]}, which is not installed: "
            f"pip install 'msfl_jax[{extra}]'"
        )


def environment(platform: Platform, given: Mapping[str, str]) -> dict[str, str]:
    """Variables of a child: no accelerator of this machine is touched, nothing is asked of a network.

    Args:
      platform: that it compiles for.
      given: `os.environ`; flags in it stay.
    """
    kept = {name: value for name, value in given.items() if not name.startswith(("TPU_WORKER", "MEGASCALE"))}
    kept |= {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "TF_CPP_MIN_LOG_LEVEL": "2"}
    kept |= {"ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}  # it only compiles: a run beside it keeps its TPUs
    # The package of this process, wherever it was started.
    kept["PYTHONPATH"] = os.pathsep.join([str(_ROOT), *filter(None, [given.get("PYTHONPATH", "")])])
    if platform == "gpu":
        kept["XLA_FLAGS"] = f"{given.get('XLA_FLAGS', '')} {_GPU_FLAGS}".strip()
    return kept


class Child:
    """One process that compiles, started at the first question; to be closed."""

    def __init__(self, platform: Platform, given: Mapping[str, str], command: Sequence[str] = ()) -> None:
        """Says what will be started.

        Args:
          platform: that it compiles for.
          given: `os.environ`.
          command: another program that answers in its place.
        """
        self._platform: Platform = platform
        self._environment = environment(platform, given)
        self._command = list(command) or [sys.executable, "-m", "msfl_jax.planner.worker"]
        self._process: subprocess.Popen[str] | None = None
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 (lives as long as the process)

    def __enter__(self) -> "Child":
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self._log.close()

    def ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """The answer to one request (see `worker`).

        Raises:
          UserError: the platform's compiler is not installed, or it refuses the request.
          MsflError: as the process reports it.
          RetryError: the process ended without an answer.
        """
        answered = self._exchange(json.dumps(request))
        if "refused" in answered:
            code = answered["exit_code"]
            raise _ERRORS.get(code, MsflError)(answered["refused"])
        return answered

    def _exchange(self, line: str) -> dict[str, Any]:
        process = self._process or self._start()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(line + "\n")
            process.stdin.flush()
            return json.loads(process.stdout.readline())
        except (BrokenPipeError, ValueError) as error:  # an empty line: its stdout has ended
            code = process.wait()
            raise RetryError(
                f"the process that compiles for {self._platform} ended with code {code} ({self._last_words()}); "
                "-9 is this machine's memory: try a smaller batch"
            ) from error

    def _start(self) -> "subprocess.Popen[str]":
        refuse_missing(self._platform)
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(
            self._command, stdin=pipe, stdout=pipe, stderr=self._log, text=True, env=self._environment
        )
        return self._process

    def _last_words(self) -> str:
        self._log.seek(0)
        lines = self._log.read().strip().splitlines()
        return lines[-1][:200] if lines else "no message"


_ERRORS: dict[int, type[MsflError]] = {UserError.exit_code: UserError, RetryError.exit_code: RetryError}
