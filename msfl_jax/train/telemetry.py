"""What a run says about itself: a line of JSON and TensorBoard scalars per log step, throughput, and a line of progress."""

import datetime
import json
import logging
import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from io import TextIOBase
from pathlib import Path
from typing import Any

import jax
from clu import parameter_overview
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]
from tensorboardX.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]

from msfl_jax.chips import peak_of

METRICS_FILE = "metrics.jsonl"
TENSORBOARD_DIRECTORY = "tensorboard"
PARAMETERS_FILE = "parameters.txt"

log = logging.getLogger(__name__)


class Telemetry:
    """Writes metrics.jsonl and tensorboard/ of a run directory; whatever fails there is a warning and never ends the run."""

    def __init__(self, workdir: Path, *, step: int) -> None:
        """Opens the logs of a run that goes on after `step`; what was logged beyond it will be written again and is taken out."""
        self._file = workdir / METRICS_FILE
        self._board: EventsWriter | None = None
        self._failed: set[str] = set()
        self._guard(self._file.name, lambda: rewind(self._file, step))
        self._guard(TENSORBOARD_DIRECTORY, lambda: self._open_board(workdir, step))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """One object `{"step": step, name: value, ...}` and one scalar per name; what is not finite is null there."""
        row = {"step": step} | {name: value if math.isfinite(value) else None for name, value in values.items()}
        self._guard(self._file.name, lambda: _append(self._file, json.dumps(row)))
        if self._board is not None:
            self._guard(TENSORBOARD_DIRECTORY, lambda: self._add_scalars(step, values))

    def amend(self, step: int, values: Mapping[str, float]) -> None:
        """As `write`, for the step after which the run goes on: what was logged of it before stays."""
        logged: dict[str, float] = {}

        def take_out() -> None:
            row = last_row(self._file)
            if row.pop("step", None) == step:
                logged.update({name: math.nan if value is None else value for name, value in row.items()})
                rewind(self._file, step - 1)

        self._guard(self._file.name, take_out)
        self.write(step, logged | dict(values))

    def close(self) -> None:
        """Closes the event file."""
        if self._board is not None:
            self._guard(TENSORBOARD_DIRECTORY, self._board.close)

    def _open_board(self, workdir: Path, step: int) -> None:
        # tensorboardX's SummaryWriter writes from a thread that a full disk kills, and then blocks whoever has ten more values for it.
        (workdir / TENSORBOARD_DIRECTORY).mkdir(exist_ok=True)
        self._board = EventsWriter(str(workdir / TENSORBOARD_DIRECTORY / "events"), filename_suffix=f".{step}")
        if step:  # tells TensorBoard to hide what an earlier session logged beyond this step
            session = SessionLog(status=SessionLog.START)
            self._board.write_event(Event(wall_time=time.time(), step=step + 1, session_log=session))

    def _add_scalars(self, step: int, values: Mapping[str, float]) -> None:
        assert self._board is not None
        finite = {name: value for name, value in values.items() if math.isfinite(value)}
        scalars = [Summary.Value(tag=name, simple_value=value) for name, value in finite.items()]
        event = Event(wall_time=time.time(), step=step, summary=Summary(value=scalars))
        self._board.write_event(event)
        self._board.flush()

    def _guard(self, name: str, write: Callable[[], object]) -> None:
        """Runs `write`; its first failure is reported, later ones of the same file are not."""
        try:
            write()
        except Exception as error:  # a full disk, a vanished folder, a broken writer: none of them is worth the run
            if name not in self._failed:
                log.warning("%s cannot be written (%s); training goes on without it", name, type(error).__name__)
            self._failed.add(name)


class Clock:
    """Studies per second since it was last restarted, and the time that the rest of the run will take."""

    def __init__(self, *, batch_size: int, steps: int) -> None:
        self._batch_size, self._steps = batch_size, steps
        self.restart(0)

    def restart(self, step: int) -> None:
        """Begins anew after `step`: compilation and evaluations are no part of the rate."""
        self._step, self._time = step, time.monotonic()

    def rate(self, step: int) -> float:
        """Studies per second over the steps since the restart; NaN before the first one."""
        seconds = time.monotonic() - self._time
        return (step - self._step) * self._batch_size / seconds if step > self._step and seconds > 0 else math.nan

    def remaining(self, step: int) -> float:
        """Seconds to the end of the run at the present rate."""
        rate = self.rate(step)
        return (self._steps - step) * self._batch_size / rate if rate > 0 else math.nan


class Progress:
    """One line that is drawn over on a terminal; elsewhere some twenty plain lines per run."""

    def __init__(self, label: str, *, steps: int, stream: TextIOBase | None = None) -> None:
        self._label, self._steps, self._stream = label, steps, stream or sys.stdout
        self._terminal = self._stream.isatty()
        self._printed = -1

    def show(self, step: int, *, loss: float, rate: float, remaining: float) -> None:
        """Draws the state after `step`: `rate` in studies per second, `remaining` in seconds; what is not known yet is left out."""
        parts = [f"{step}/{self._steps}", f"{rate:.1f} studies/s" if math.isfinite(rate) else "", f"loss {loss:.3f}"]
        parts.append(str(datetime.timedelta(seconds=round(remaining))) if math.isfinite(remaining) else "")
        text = "   ".join(part for part in parts if part)
        twentieth = 20 * step // self._steps
        if self._terminal:
            self._stream.write("\r" + self._drawn(text, twentieth, shutil.get_terminal_size().columns - 1))
        elif twentieth > self._printed:
            self._stream.write(f"{self._label:<20}{text}\n")
        self._printed = twentieth
        self._stream.flush()

    def _drawn(self, text: str, twentieth: int, width: int) -> str:
        """The line as wide as the terminal; the bar gives way to the text."""
        bar = max(min(20, width - len(self._label) - len(text) - 2), 0)
        label = self._label.ljust(min(20, width - len(text) - bar - 1))
        return f"{label}{'█' * (twentieth * bar // 20):<{bar}} {text}"[:width].ljust(width)

    def close(self) -> None:
        """Leaves the last line standing."""
        if self._terminal and self._printed >= 0:
            self._stream.write("\n")


def throughput(rate: float, flops: float, devices: int, device_kind: str) -> dict[str, float]:
    """Throughput of the run by name.

    Args:
      rate: studies per second over all devices.
      flops: of training on one study (see `flops.flops_per_pair`); nan where it is not known.
      devices: their number.
      device_kind: `jax.Device.device_kind`.

    Returns:
      `studies_per_second`, `tflops_per_device`, and for a known device `mfu` beside `peak_tflops`, the number it is a share of.
    """
    if math.isnan(flops):
        return {"studies_per_second": rate}
    tflops = rate * flops / devices / 1e12
    values = {"studies_per_second": rate, "tflops_per_device": tflops}
    peak = peak_of(device_kind)
    return values if peak is None else values | {"mfu": tflops * 1e12 / peak, "peak_tflops": peak / 1e12}


def write_parameter_overview(params: Any, workdir: Path) -> int:
    """Writes clu's table of parameters and shardings to parameters.txt and returns their number."""
    table = parameter_overview.get_parameter_overview(params, include_stats="sharding")
    (workdir / PARAMETERS_FILE).write_text(table + "\n")
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


def rewind(file: Path, step: int) -> None:
    """Takes the lines beyond `step`, and a last line that was cut short, out of a JSONL file."""
    if not file.exists():
        return
    kept = [line for line in file.read_text().splitlines() if (at := _step_of(line)) is not None and at <= step]
    temporary = file.with_suffix(".tmp")
    temporary.write_text("".join(line + "\n" for line in kept))
    os.replace(temporary, file)


def last_row(file: Path) -> dict[str, Any]:
    """The last line of a JSONL file; nothing where there is none."""
    lines = file.read_text().splitlines() if file.exists() else []
    return json.loads(lines[-1]) if lines else {}


def _step_of(line: str) -> int | None:
    """The step of a line, or None where the line is damaged."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return None


def _append(file: Path, line: str) -> None:
    with file.open("a") as stream:
        stream.write(line + "\n")
