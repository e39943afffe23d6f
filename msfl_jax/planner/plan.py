"""What a run needs and how fast it is on some machines: compiled, read, and set beside formulas."""

import dataclasses
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from input_pipeline.errors import UserError
from msfl_jax.config import Config, to_dict
from msfl_jax.planner import cache
from msfl_jax.planner.children import Child, refuse_missing
from msfl_jax.planner.costs import Costs, costs_of
from msfl_jax.planner.formulas import Parameters, sent_by_formula
from msfl_jax.planner.largest import Largest, Measured, largest_batch
from msfl_jax.planner.protocol import Compiled, Rates, TooLarge
from msfl_jax.planner.roofline import (
    ChipSpeed,
    MeasuredSpeed,
    Speed,
    Times,
    copies_to_measure,
    products_to_measure,
    times_of,
)
from msfl_jax.planner.topology import Topology
from msfl_jax.planner.traffic import KINDS
from msfl_jax.train.flops import flops_per_pair

TRIES = 4
QUICK_MARGIN = 0.1  # of the temporary arrays of a quickly compiled program
_GUESS = 100.0  # seconds of a compilation, before there was one

Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Exchange:
    """Exchanges of one kind in a step: how many, and the bytes that a chip sends in them, by the program and by formula (None: there is none)."""

    kind: str
    count: int
    sent: float
    formula: float | None


@dataclasses.dataclass(frozen=True)
class Plan:
    """A run on some machines; bytes, FLOPs and seconds are those of one chip and one step.

    Attributes:
      name: of the configuration.
      topology, chip, chips: where.
      batch: of the configuration, over all chips.
      fits: whether it fits.
      shown: the batch that all else is about: the configuration's, or the largest that fits; 0 where none does.
      limit: bytes that a program may have.
      memory: `parameters`, `optimizer`, `batch`, `temporary` and `peak`; of the configuration's batch only `peak` where it does not fit.
      flops_per_study: of training, by formula.
      flops: by formula.
      program_flops: of the products in the program, loops multiplied out, recomputation included.
      moved: bytes through the chip's memory, by the program.
      exchanges: by kind.
      loops, unstated: of the program, and those whose trips XLA does not state, which count once.
      times: see `roofline.Times`.
      bound: which of compute, memory and network takes longest.
      peak: FLOP/s that `mfu` is a share of.
      studies_per_second, mfu: predicted.
      largest: see `largest.Largest`.
      steps, hours, chip_hours: of the configured run, without evaluations and checkpoints.
      compile_seconds: of the step that is shown; 0 where none is.
      versions: of what compiled it.
      notes: what else must be known about the figures.
    """

    name: str
    topology: str
    chip: str
    chips: int
    batch: int
    fits: bool
    shown: int
    limit: float
    memory: dict[str, float]
    flops_per_study: float
    flops: float
    program_flops: float
    moved: float
    exchanges: tuple[Exchange, ...]
    loops: int
    unstated: int
    times: Times | None
    bound: str
    peak: float
    studies_per_second: float
    mfu: float
    largest: Largest
    steps: int
    hours: float
    chip_hours: float
    compile_seconds: float
    versions: dict[str, str]
    notes: tuple[str, ...] = ()


class Planner:
    """Compiles steps of one configuration for one topology, each once.

    libtpu takes a fraction of the time where it is told to spend no effort on a program's speed (64 s of CPU instead of 255 for 16 v5e), and memory
    comes out nearly the same (temporary arrays on 16 and 256 chips 0 to 9 % smaller); what such a program moves through memory does not. So batches
    other than the one that is shown are compiled so, and that one too where the user is in a hurry; temporary arrays are then counted a tenth larger.
    """

    def __init__(self, config: Config, vocab_size: int, topology: Topology, store: cache.Cache, child: Child, say: Say):
        self._config, self._vocab_size, self._topology = config, vocab_size, topology
        self._store, self._child, self._say = store, child, say
        self._found: dict[str, Compiled | TooLarge] = {}
        self._last = _GUESS

    def at(self, batch: int) -> Config:
        """The configuration with another batch."""
        return dataclasses.replace(self._config, data=dataclasses.replace(self._config.data, batch_size=batch))

    @property
    def has_quick(self) -> bool:
        """Whether a quick compilation is another one than a full one."""
        return self._topology.platform == "tpu"

    def compiled(self, batch: int, *, quick: bool = False) -> Compiled | TooLarge:
        """The step of a batch: remembered, from disk, or compiled now.

        Args:
          batch: global.
          quick: without effort for the program's speed, where `has_quick`.

        Raises:
          MsflError: see `children.Child.ask`.
        """
        key = self._key(batch, quick)
        if key not in self._found:
            found = self._store.read(key)
            if found:
                self._say(f"{self._label(batch)}found in the cache")
            self._found[key] = found or self._compile(batch, key, quick)
        return self._found[key]

    def costs(self, batch: int, *, quick: bool = False) -> Costs:
        """What the program of a compiled batch costs."""
        return costs_of(cache.read_text(self._store.program(self._key(batch, quick))))

    def rates(self, costs: Costs) -> Speed:
        """Rates of the chip: of the table, or measured now where it is this CPU."""
        if self._topology.chip is not None:
            return ChipSpeed(self._topology.chip, self._topology.per_machine)
        wanted, sizes = products_to_measure(costs), copies_to_measure(costs)
        self._say(f"{'measuring':<12}{len(wanted)} products and {len(sizes)} sizes of copies on this CPU")
        request = {"ask": "rates", "products": [dataclasses.asdict(one) for one in wanted], "copies": sizes}
        found = self._child.ask(request)["rates"]
        rates = Rates(tuple(found["products"]), tuple(found["copies"]), found["fresh"], found["cores"])
        return MeasuredSpeed.of(wanted, sizes, rates)

    def _compile(self, batch: int, key: str, quick: bool) -> Compiled | TooLarge:
        self._say(f"{self._label(batch)}about {self._last:.0f} s (at most {TRIES} compilations for a topology)")
        begin = time.monotonic()
        request = {
            "ask": "compile",
            "topology": self._topology.name,
            "config": to_dict(self.at(batch)),
            "vocab_size": self._vocab_size,
            "quick": quick,
            "hlo": str(self._store.program(key)),
        }
        answered = self._child.ask(request)
        self._store.write(key, answered)
        self._last = time.monotonic() - begin
        self._say(f"{self._label(batch)}took {self._last:.0f} s")
        if "too_large" in answered:
            return cache.read_too_large(answered["too_large"])
        return Compiled.read(answered["compiled"])

    def _key(self, batch: int, quick: bool = False) -> str:
        return cache.key_of(self.at(batch), self._vocab_size, self._topology.name, os.environ, quick=quick)

    def _label(self, batch: int) -> str:
        return f"{'compiling':<12}{self._topology.name}, batch {batch:,}: "


def plan(
    config: Config,
    topology: Topology,
    *,
    vocab_size: int,
    folder: Path,
    say: Say,
    child: Child,
    tries: int = TRIES,
    quick: bool = False,
) -> Plan:
    """Plans a run.

    Args:
      config: of the run.
      topology: the machines.
      vocab_size: of the tokenizer.
      folder: cache of compiled steps.
      say: is told what is going on, a line at a time.
      child: compiles for the topology's platform.
      tries: compilations at most, those in the cache included; 1 looks for no largest batch.
      quick: the step that is shown is for a TPU compiled without effort for speed as well.

    Raises:
      UserError: the compiler is not installed, or the configuration does not fit the machines.
    """
    refuse_missing(topology.platform)
    planner = Planner(config, vocab_size, topology, cache.Cache(folder), child, say)
    batch, limit = config.data.batch_size, limit_of(topology)

    quick = quick and planner.has_quick
    tried_quickly = quick or (tries > 1 and planner.has_quick)
    margin = QUICK_MARGIN if tried_quickly else 0.0

    def measure(size: int) -> Measured:
        found = planner.compiled(size, quick=tried_quickly)
        if isinstance(found, TooLarge):
            return Measured(size, found.needed * (1 + margin), False, refused=True)
        peak = found.peak + found.temporary * margin
        return Measured(size, peak, peak <= limit, found.parameters + found.optimizer)

    granule = granule_of(config, topology.devices)
    if tries > 1:
        tries -= tried_quickly and not quick  # the last one is the program that is shown
        largest = largest_batch(measure, start=batch, granule=granule, limit=limit, tries=tries)
    else:
        only = measure(batch)
        largest = Largest(batch if only.fits else 0, False, (only,))
    own = next(one for one in largest.tried if one.batch == batch)
    shown = batch if own.fits else largest.batch
    whole = _described(config, topology, limit, own, largest, vocab_size, quick=quick)
    return dataclasses.replace(whole, **_of_program(planner, shown, topology, vocab_size, quick)) if shown else whole


def limit_of(topology: Topology) -> float:
    """Bytes that a program may have of a chip; of a CPU, this machine's memory."""
    if topology.chip is not None:
        return topology.chip.usable or math.nan
    return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


def granule_of(config: Config, devices: int) -> int:
    """What the global batch must be a multiple of: rows of all devices in each microbatch, and whole groups of negatives."""
    rows = devices // max(config.mesh.tensor, 1) * config.train.microbatches
    return math.lcm(max(rows, 1), config.objective.local_alignment.group or 1)


def notes_of(config: Config, topology: Topology, *, quick: bool = False) -> tuple[str, ...]:
    """What the figures leave out of a configuration, or of the program that a run would have."""
    if quick:
        return (
            "compiled without effort for speed (--quick): temporary arrays are counted a tenth larger than they came out, "
            "and a run's program moves less through memory, so that it is faster than predicted",
        )
    if topology.platform == "gpu" and config.model.attention == "cudnn":
        return (
            "model.attention cudnn cannot be compiled without a GPU; figures are for xla, which writes all weights to memory",
        )
    return ()


def _described(
    config: Config, topology: Topology, limit: float, own: Measured, largest: Largest, vocab_size: int, *, quick: bool
) -> Plan:
    """A plan without anything that only a program says."""
    nothing = {"program_flops": math.nan, "moved": math.nan, "loops": 0, "unstated": 0, "compile_seconds": 0.0}
    unknown = dict.fromkeys(("peak", "studies_per_second", "mfu", "hours", "chip_hours"), math.nan)
    per_study = flops_per_pair(config, vocab_size)
    whole: dict[str, Any] = nothing | unknown
    return Plan(
        name=config.name,
        topology=topology.name,
        chip=topology.chip.name if topology.chip else "this CPU",
        chips=topology.devices,
        batch=config.data.batch_size,
        fits=own.fits,
        shown=0,
        limit=limit,
        memory={"peak": own.peak},
        flops_per_study=per_study,
        flops=per_study * config.data.batch_size / topology.devices,
        exchanges=(),
        times=None,
        bound="memory",
        largest=largest,
        steps=config.train.steps,
        versions=cache.versions(),
        notes=notes_of(config, topology, quick=quick),
        **whole,
    )


def _of_program(planner: Planner, batch: int, topology: Topology, vocab_size: int, quick: bool) -> dict[str, Any]:
    """What the program of a batch says about it."""
    compiled = planner.compiled(batch, quick=quick)
    if isinstance(compiled, TooLarge):
        raise UserError(
            f"--topology {topology.name}: a batch of {batch:,} fits as quickly compiled, but not in full; "
            f"give a smaller one with --config.data.batch_size"
        )
    costs, config = planner.costs(batch, quick=quick), planner.at(batch)
    temporary = compiled.temporary * (1 + QUICK_MARGIN * quick)
    speed = planner.rates(costs)
    times = times_of(costs, speed, compiled.temporary)
    per_study = flops_per_pair(config, vocab_size)
    flops = per_study * batch / topology.devices
    formula = sent_by_formula(config, compiled.mesh, Parameters(compiled.count, compiled.split))
    hours = config.train.steps * times.step / 3600
    return {
        "shown": batch,
        "memory": {
            "parameters": compiled.parameters,
            "optimizer": compiled.optimizer,
            "batch": compiled.batch,
            "temporary": temporary,
            "peak": compiled.peak - compiled.temporary + temporary,
        },
        "flops_per_study": per_study,
        "flops": flops,
        "program_flops": costs.flops,
        "moved": costs.moved,
        "exchanges": tuple(_exchange(kind, costs, formula) for kind in KINDS),
        "loops": costs.loops,
        "unstated": costs.unstated,
        "times": times,
        "bound": times.bound,
        "peak": speed.peak,
        "studies_per_second": batch / times.step,
        "mfu": flops / times.step / speed.peak,
        "hours": hours,
        "chip_hours": hours * topology.devices,
        "compile_seconds": compiled.seconds,
    }


def _exchange(kind: str, costs: Costs, formula: dict[str, float] | None) -> Exchange:
    return Exchange(kind, costs.count(kind), costs.sent(kind), None if formula is None else formula[kind])
