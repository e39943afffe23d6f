"""Starts one run as several processes on this machine: `python launch/local_processes.py -n 2 -- msfl pretrain ...`."""

import argparse
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from typing import IO

PREEMPTED = 75  # a process that saved because it was asked to stop; its peers are doing the same
GRACE_SECONDS = {PREEMPTED: 60.0}
GRACE_OTHERWISE_SECONDS = 5.0
POLL_SECONDS = 0.1


class Processes:
    """The processes of one run, their output prefixed with their number."""

    def __init__(self, command: Sequence[str], count: int, devices: int | None) -> None:
        """Starts `count` copies of `command`, which find each other through JAX_COORDINATOR_ADDRESS and its companions."""
        address = f"127.0.0.1:{free_port()}"
        environments = [environment(os.environ, address, count, index, devices) for index in range(count)]
        # Sessions of their own: a terminal's Ctrl-C reaches them once, through this process.
        self._running = [
            subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)
            for env in environments
        ]
        self._readers = [
            threading.Thread(target=copy_lines, args=(process.stdout, f"[{index}] "), daemon=True)
            for index, process in enumerate(self._running)
        ]
        for reader in self._readers:
            reader.start()
        self._asked = False

    def forward(self, _number: int, _frame: object) -> None:
        """Passes the wish to stop on as SIGTERM, which all processes answer together; the second time kills them."""
        self._send(signal.SIGKILL if self._asked else signal.SIGTERM)
        self._asked = True

    def wait(self) -> int:
        """Until all have ended; returns the exit code of the first that failed, and ends the others soon after it."""
        failed, deadline = 0, 0.0
        while None in (codes := [process.poll() for process in self._running]):
            if any(codes) and not failed:
                failed = next(code for code in codes if code)
                deadline = time.monotonic() + GRACE_SECONDS.get(failed, GRACE_OTHERWISE_SECONDS)
                self._send(signal.SIGTERM)
            if failed and time.monotonic() > deadline:
                self._send(signal.SIGKILL)
            time.sleep(POLL_SECONDS)
        for reader in self._readers:
            reader.join()
        failed = failed or next((process.returncode for process in self._running if process.returncode), 0)
        return 128 - failed if failed < 0 else failed

    def _send(self, number: signal.Signals) -> None:
        for process in self._running:
            if process.poll() is None:
                process.send_signal(number)


def environment(base: Mapping[str, str], address: str, count: int, index: int, devices: int | None) -> dict[str, str]:
    """The variables of process `index` of `count`; with `devices` it has so many virtual CPU devices and no others."""
    values = dict(base)
    values |= {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(count), "JAX_PROCESS_ID": str(index)}
    if devices is not None:
        kept = [flag for flag in base.get("XLA_FLAGS", "").split() if "host_platform_device_count" not in flag]
        values["XLA_FLAGS"] = " ".join([*kept, f"--xla_force_host_platform_device_count={devices}"])
        values["JAX_PLATFORMS"] = "cpu"
    return values


def copy_lines(source: IO[bytes], prefix: str) -> None:
    """Copies lines to stdout as they come, each whole and behind `prefix`."""
    for line in source:
        sys.stdout.write(prefix + line.decode(errors="replace").rstrip("\n") + "\n")
        sys.stdout.flush()


def free_port() -> int:
    """A port that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def main() -> int:
    """Parses the command line, runs the processes and returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-n", "--processes", type=int, required=True, help="how many processes")
    parser.add_argument(
        "--devices-per-process", type=int, help="virtual CPU devices of each; default: whatever JAX finds"
    )
    parser.add_argument("command", nargs="+", help="the command behind --")
    options = parser.parse_args()
    if options.processes < 1:
        parser.error(f"-n is {options.processes}; expected at least 1")
    processes = Processes(options.command, options.processes, options.devices_per_process)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, processes.forward)
    return processes.wait()


if __name__ == "__main__":
    sys.exit(main())
