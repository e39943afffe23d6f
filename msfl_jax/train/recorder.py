"""Gathers what steps measure, on the devices, and passes it on to the logs where it is due."""

import contextlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from clu import metrics as clu_metrics

from msfl_jax.parallel.distributed import is_lead
from msfl_jax.train.optimizer import updates_taken
from msfl_jax.train.step import merge, readable
from msfl_jax.train.telemetry import Clock, Progress, Telemetry, throughput, write_parameter_overview


class Recorder:
    """Metrics of the steps since the last log, read from the devices only there; logs are written by the lead process alone.

    Attributes:
      values: what was read last.
    """

    def __init__(
        self,
        workdir: Path,
        params: Any,
        *,
        rate: optax.Schedule,
        flops: float,
        batch_size: int,
        steps: int,
        step: int,
        label: str,
    ) -> None:
        """Opens the logs of a run that goes on after `step` and writes the table of parameters.

        Args:
          workdir: the run directory.
          params: arrays, for the table.
          rate: learning rate by step.
          flops: of training on one study.
          batch_size: studies per step.
          steps: length of the run.
          step: the last one taken.
          label: of the line of progress; "" prints none.
        """
        self.values: dict[str, float] = {}
        self._pending: dict[str, float] = {}
        self._metrics: clu_metrics.Collection | None = None
        self._first = step + 1
        self._rate, self._flops = rate, flops
        self._clock = Clock(batch_size=batch_size, steps=steps)
        self._telemetry = Telemetry(workdir, step=step) if is_lead() else None
        self._progress = Progress(label, steps=steps) if label and is_lead() else None
        if is_lead():
            self._describe(workdir, params)

    def __enter__(self) -> "Recorder":
        return self

    def __exit__(self, *_: object) -> None:
        if self._telemetry:
            self._telemetry.close()
        if self._progress:
            self._progress.close()

    def add(self, metrics: clu_metrics.Collection, step: int) -> None:
        """Adds the metrics of one step without waiting for them."""
        self._metrics = metrics if self._metrics is None else merge(self._metrics, metrics)
        if step == self._first:
            self._clock.restart(step)  # the call returned when the step was compiled

    def read(self, step: int, opt_state: Any) -> Mapping[str, float]:
        """Waits for the devices and returns all metrics since the last reading, the rate of the last update and the throughput."""
        assert self._metrics is not None
        values, self._metrics = readable(self._metrics), None
        rate, remaining = self._clock.rate(step), self._clock.remaining(step)
        self._clock.restart(step)
        devices = jax.devices()
        values["learning_rate"] = float(np.asarray(self._rate(max(0, updates_taken(opt_state) - 1))))
        values |= throughput(rate, self._flops, len(devices), devices[0].device_kind)
        self.values = self._pending = values
        if self._progress:
            self._progress.show(step, loss=values["loss/total"], rate=rate, remaining=remaining)
        return values

    def evaluate(
        self, evaluate: Callable[[Any, int], Mapping[str, float]], params: Any, step: int
    ) -> Mapping[str, float]:
        """What `evaluate` returns, which is logged with the step; its time is no training time."""
        scores = evaluate(params, step)
        self._clock.restart(step)
        self._pending = self._pending | dict(scores)
        return scores

    def amend(self, step: int) -> None:
        """Logs what has been evaluated beside what an earlier session logged of the same step."""
        if self._pending and self._telemetry:
            self._telemetry.amend(step, self._pending)
        self._pending = {}

    def write(self, step: int) -> None:
        """Logs what has been read and evaluated at this step, if anything."""
        if self._pending and self._telemetry:
            self._telemetry.write(step, self._pending)
        self._pending = {}

    def _describe(self, workdir: Path, params: Any) -> None:
        with contextlib.suppress(OSError):  # as with every log: not worth the run
            total = write_parameter_overview(params, workdir)
            if self._progress:
                print(f"{'parameters':<20}{total:,}", flush=True)
