"""Notices that the run is asked to stop, and lets all processes agree on the step at which they do."""

import os
import signal
import threading
from types import FrameType

import jax
from jax.experimental import multihost_utils

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Preemption:
    """While entered, SIGTERM and SIGINT are noted instead of ending the process; a second one ends it at once.

    With `jax.distributed` up, its own service catches SIGTERM, whichever process gets it, and names one step to all. It hears nothing in a process
    on its own, so there the handler is ours.
    """

    def __init__(self) -> None:
        self._asked = False
        self._agreed = jax.distributed.is_initialized()
        self._previous: dict[int, object] = {}

    def __enter__(self) -> "Preemption":
        if not self._agreed and threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def reached(self, step: int) -> bool:
        """Whether to save and stop after this step; every process asks after every step, with the same numbers."""
        if self._agreed:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._asked

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if self._asked:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self._asked = True
