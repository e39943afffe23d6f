"""Progress of a long command on stderr: a bar on a terminal, one plain line per tenth elsewhere."""

import sys
import time
from types import TracebackType

from tqdm import tqdm


class Progress:
    """Counts up to `total`; use as a context manager."""

    def __init__(self, label: str, total: int, unit: str, *, shown: bool = True):
        """Shows nothing unless `shown`; `unit` is a plural such as "images"."""
        self._label, self._total, self._unit = label, total, unit
        self._shown = shown and total > 0
        self._started = time.monotonic()
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
        elif self._shown and step and self._done >= min(self._next_line, self._total):
            self._print_line()

    def _print_line(self) -> None:
        seconds = max(1e-9, time.monotonic() - self._started)
        rate = self._done / seconds
        left = (self._total - self._done) / rate
        line = f"{self._label}  {self._done:,}/{self._total:,} {self._unit}  {rate:,.0f}/s  about {left:,.0f} s left"
        print(line, file=sys.stderr, flush=True)
        self._next_line = self._done + max(1, self._total // 10)
