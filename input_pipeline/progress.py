"""Progress of a long command on stderr: a bar on a terminal, elsewhere plain lines: one per tenth, at most every two seconds, and the last."""

import contextlib
import contextvars
import sys
import time
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import TypeVar

from tqdm import tqdm

Row = TypeVar("Row")
_SECONDS_BETWEEN_LINES = 2.0
_counts_shown = contextvars.ContextVar("counts_shown", default=False)


class Progress:
    """Counts up to `total`; use as a context manager."""

    def __init__(self, label: str, total: int, unit: str, *, shown: bool = True):
        """Shows nothing unless `shown`; `unit` is a plural such as "images"."""
        self._label, self._total, self._unit = label, total, unit
        self._shown = shown and total > 0
        self._started = self._printed = time.monotonic()
        self._done = self._kept = 0
        self._next_line = max(1, total // 10)
        self._bar = None
        if self._shown and sys.stderr.isatty():
            # Without smoothing its rate is that of all items but the first ones, see `update`.
            self._bar = tqdm(desc=label, total=total, unit=f" {unit}", file=sys.stderr, smoothing=0)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    def update(self, done: int, *, kept: int = 0) -> None:
        """Sets how many are done, and how many of these an earlier run had done, which count for no rate; never goes back."""
        step, self._done = max(0, done - self._done), max(done, self._done)
        self._kept = min(max(kept, self._kept), self._done)
        if self._bar is not None:
            self._bar.initial = self._kept
            self._bar.update(step)
        elif self._shown and step and (self._done >= self._total or self._is_due()):
            self._print_line()

    def _is_due(self) -> bool:
        return self._done >= self._next_line and time.monotonic() - self._printed >= _SECONDS_BETWEEN_LINES

    def _print_line(self) -> None:
        self._printed = time.monotonic()
        self._next_line = self._done + max(1, self._total // 10)
        seconds = max(1e-9, self._printed - self._started)
        kept = f", {self._kept:,} of an earlier run" if self._kept else ""
        line = f"{self._label}  {self._done:,}/{self._total:,} {self._unit}{kept}"
        if rate := (self._done - self._kept) / seconds:
            left = (self._total - self._done) / rate
            line += f"  {rate:,.0f}/s  " + (f"about {span(left)} left" if left > 0 else f"in {span(seconds)}")
        print(line, file=sys.stderr, flush=True)


@contextlib.contextmanager
def showing_counts(shown: bool) -> Iterator[None]:
    """Within it, `counted` shows its counts, or does not."""
    before = _counts_shown.set(shown)
    try:
        yield
    finally:
        _counts_shown.reset(before)


def counted(rows: Iterable[Row], label: str, unit: str) -> Iterator[Row]:
    """The rows as they are; where that is asked for, how many there were so far is said every two seconds.

    Args:
      rows: of a table or an archive, whose number is not known beforehand.
      label: what they are of; never an identifier.
      unit: a plural such as "rows".
    """
    if not _counts_shown.get():
        yield from rows
    elif sys.stderr.isatty():
        yield from tqdm(rows, label, unit=f" {unit}", file=sys.stderr, delay=_SECONDS_BETWEEN_LINES, leave=False)
    else:
        started = printed = time.monotonic()
        for number, row in enumerate(rows, 1):
            yield row
            now = time.monotonic()
            if now - printed >= _SECONDS_BETWEEN_LINES:
                printed = now
                print(f"{label}  {number:,} {unit}  {number / (now - started):,.0f}/s", file=sys.stderr, flush=True)


def span(seconds: float) -> str:
    """A time in its two largest units, such as "4 s", "12 min 30 s" or "2 h 5 min"."""
    hours, rest = divmod(max(1, round(seconds)), 3600)
    minutes, rest = divmod(rest, 60)
    parts = {"h": hours, "min": minutes, "s": 0 if hours else rest}
    return " ".join(f"{number} {unit}" for unit, number in parts.items() if number)
