"""One aligned line per stage of a long command: what is done, what came out, how long it took."""

import contextlib
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field


@dataclass
class Stage:
    """A stage in progress; `result` is what its line says when it is over."""

    name: str
    result: str = ""
    started: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        """Since the stage began."""
        return time.monotonic() - self.started


@contextlib.contextmanager
def stage(name: str) -> Iterator[Stage]:
    """Prints `name` while a stage runs on a terminal, and its line with result and duration when it has ended well."""
    current = Stage(name)
    if sys.stdout.isatty():
        print(f"{name:<20}...", end="\r", flush=True)
    yield current
    print(f"{name + ' ':<20}{current.result:<56}{duration(current.seconds):>8}", flush=True)


def duration(seconds: float) -> str:
    """`41 s` or `4:12 min`."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d} min"
