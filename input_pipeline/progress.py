"""Progress of a long command on stderr: a bar on a terminal, elsewhere plain lines: one per tenth, at most every two seconds, and the last."""

import sys
import time
from types import TracebackType

from tqdm import tqdm

_SECONDS_BETWEEN_LINES = 2.0


class Progress:
    """Counts up to `total`; use as a context manager."""

    def __init__(self, label: str, total: int, unit: str, *, shown: bool = True):
        """Shows nothing unless `shown`; `unit` is a plural such as "images"."""
        self._label, self._total, self._unit = label, total, unit
        self._shown = shown and total > 0
        self._started = self._printed = time.monotonic()
        self._done = 0
        self._next_line = max(1, total // 10)
        self._bar = None
        if self._shown and sys.stderr.isatty():
            self._bar = tqdm(desc=label, total=total, unit=f" {unit}", file=sys.stderr)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    def update(self, done: int) -> None:
        """Sets how many are done; never goes back."""
        step, self._done = max(0, done - self._done), max(done, self._done)
        if self._bar is not None:
            self._bar.update(step)
        elif self._shown and step and (self._done >= self._total or self._is_due()):
            self._print_line()

    def _is_due(self) -> bool:
        return self._done >= self._next_line and time.monotonic() - self._printed >= _SECONDS_BETWEEN_LINES

    def _print_line(self) -> None:
        self._printed = time.monotonic()
        self._next_line = self._done + max(1, self._total // 10)
        seconds = max(1e-9, self._printed - self._started)
        rate = self._done / seconds
        left = (self._total - self._done) / rate
        time_left = f"about {span(left)} left" if left > 0 else f"in {span(seconds)}"
        line = f"{self._label}  {self._done:,}/{self._total:,} {self._unit}  {rate:,.0f}/s  {time_left}"
        print(line, file=sys.stderr, flush=True)


def span(seconds: float) -> str:
    """A time in its two largest units, such as "4 s", "12 min 30 s" or "2 h 5 min"."""
    hours, rest = divmod(max(1, round(seconds)), 3600)
    minutes, rest = divmod(rest, 60)
    parts = {"h": hours, "min": minutes, "s": 0 if hours else rest}
    return " ".join(f"{number} {unit}" for unit, number in parts.items() if number)
