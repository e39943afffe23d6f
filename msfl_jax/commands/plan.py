"""`msfl plan`: what a run needs and how fast it will be on machines that are not rented yet."""

import contextlib
import dataclasses
import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from input_pipeline.errors import UserError
from input_pipeline.tokenizer import ReportTokenizer
from msfl_jax.chips import Platform
from msfl_jax.config import Config
from msfl_jax.planner.cache import default_folder
from msfl_jax.planner.children import Child, refuse_missing
from msfl_jax.planner.plan import Plan, plan
from msfl_jax.planner.topology import parse_topology
from msfl_jax.results.tables import format_table, number

MODEL = (
    "predicted: instructions one after the other, each at the slower of its products and its memory traffic, and exchanges hidden behind nothing; "
    "no time for reading data, evaluations or checkpoints."
)
LOOPS = (
    "the program's figures count the body of a loop as often as the program says it runs; {unstated} of {loops} loops say nothing and count once "
    "({topology})."
)


def plan_report(
    config: Config,
    topologies: Sequence[str],
    *,
    vocab_size: int,
    folder: Path | None = None,
    tries: int = 4,
    quick: bool = False,
    as_json: bool = False,
) -> str:
    """Plans a run on each of some machines and returns a table with a column for each, or JSON with the same numbers unrounded.

    Progress goes to stderr, a line at a time.

    Args:
      config: of the run; its tokenizer is read where it names one.
      topologies: as `v5p:8x8x8`.
      vocab_size: of the tokenizer, where the configuration names none.
      folder: cache of compiled steps; default the user's.
      tries: compilations for each topology at most; 1 looks for no largest batch.
      quick: compiles for TPUs without effort for a program's speed; memory is as good, predicted times are too long.
      as_json: JSON instead of a table.

    Raises:
      UserError: a topology is unknown, its compiler is not installed, or the configuration does not fit it.
    """
    places = [parse_topology(name) for name in topologies]
    for place in places:
        refuse_missing(place.platform)
    if config.data.tokenizer:
        vocab_size = ReportTokenizer.load(Path(config.data.tokenizer)).vocab_size
    kept = folder or default_folder(os.environ)
    if kept.exists() and not kept.is_dir():
        raise UserError(f"--cache {kept}: is a file; expected a folder")
    plans = []
    with contextlib.ExitStack() as stack:
        children: dict[Platform, Child] = {}
        for place in places:
            if place.platform not in children:
                children[place.platform] = stack.enter_context(Child(place.platform, os.environ))
            child = children[place.platform]
            how = {"folder": kept, "say": _progress, "child": child, "tries": tries, "quick": quick}
            plans.append(plan(config, place, vocab_size=vocab_size, **how))
    return as_json_text(plans) if as_json else as_text(plans, vocab_size)


def as_json_text(plans: Sequence[Plan]) -> str:
    """The plans as a JSON list; what is not known is null."""
    return json.dumps([_plain(dataclasses.asdict(one)) for one in plans], indent=2)


def as_text(plans: Sequence[Plan], vocab_size: int) -> str:
    """The plans side by side, and beneath them what must be known to read them."""
    first = plans[0]
    columns = [one.topology for one in plans]
    rows = [{"": name, **dict(zip(columns, cells, strict=True))} for name, cells in _rows(plans)]
    head = f"{first.name}: global batch {first.batch:,}, {first.steps:,} steps, {vocab_size:,} tokens in the vocabulary"
    return "\n\n".join([head, format_table(rows, ["", *columns]), "\n".join(_notes(plans))])


def _rows(plans: Sequence[Plan]) -> Iterator[tuple[str, list[str]]]:
    """Label and cells of each line."""
    for label, cell in (*_SIZES, *_exchanges(plans), *_TIMES):
        yield label, [cell(one) for one in plans]


def _gigabytes(key: str) -> Callable[[Plan], str]:
    return lambda one: number(one.memory.get(key, math.nan) / 1e9)


def _milliseconds(key: str) -> Callable[[Plan], str]:
    return lambda one: number(getattr(one.times, key) * 1e3 if one.times else math.nan, 1)


def _largest(one: Plan) -> str:
    if not one.largest.batch:
        return "none"
    if one.largest.final:
        return f"{one.largest.batch:,}"
    return f"{one.largest.batch:,} or more"


def _nothing(_: Plan) -> str:
    return ""


_SIZES: tuple[tuple[str, Callable[[Plan], str]], ...] = (
    ("chips", lambda one: f"{one.chips:,}"),
    ("the configured batch fits", lambda one: "yes" if one.fits else "no"),
    ("figures are for batch", lambda one: f"{one.shown:,}" if one.shown else "-"),
    ("memory of a chip, GB", _nothing),
    ("  parameters", _gigabytes("parameters")),
    ("  optimizer", _gigabytes("optimizer")),
    ("  batch", _gigabytes("batch")),
    ("  activations and other temporaries", _gigabytes("temporary")),
    ("  peak", _gigabytes("peak")),
    ("  limit", lambda one: number(one.limit / 1e9)),
    ("largest batch that fits", _largest),
    ("TFLOP of a chip and step, formula", lambda one: number(one.flops / 1e12)),
    ("  products of the program / formula", lambda one: number(one.program_flops / one.flops)),
    ("GB through a chip's memory in a step", lambda one: number(one.moved / 1e9, 1)),
)
_TIMES: tuple[tuple[str, Callable[[Plan], str]], ...] = (
    ("time of a step, ms", _nothing),
    ("  products alone", _milliseconds("compute")),
    ("  memory traffic alone", _milliseconds("memory")),
    ("  exchanges alone", _milliseconds("network")),
    ("  bound by", lambda one: one.bound if one.times else "-"),
    ("  predicted", _milliseconds("step")),
    ("predicted studies/s", lambda one: f"{one.studies_per_second:,.0f}" if one.times else "-"),
    ("predicted MFU, %", lambda one: number(one.mfu * 100, 1)),
    ("  of TFLOP/s", lambda one: number(one.peak / 1e12, 0 if one.peak > 1e13 else 3)),
    ("hours of the configured run", lambda one: number(one.hours)),
    ("chip-hours", lambda one: f"{one.chip_hours:,.0f}" if one.times else "-"),
)


def _exchanges(plans: Sequence[Plan]) -> Iterator[tuple[str, Callable[[Plan], str]]]:
    """A line for each kind of exchange that any of the plans has, as "program / formula (number)"."""
    kinds = [exchange.kind for one in plans for exchange in one.exchanges if exchange.count or exchange.formula]
    if kinds:
        yield "MB sent by a chip in a step, program / formula (how often)", _nothing
    for kind in dict.fromkeys(kinds):
        yield f"  {kind}", lambda one, kind=kind: _exchange(one, kind)


def _exchange(one: Plan, kind: str) -> str:
    found = next((exchange for exchange in one.exchanges if exchange.kind == kind), None)
    if found is None:
        return "-"
    formula = "-" if found.formula is None else f"{found.formula / 1e6:,.0f}"
    return f"{found.sent / 1e6:,.0f} / {formula} ({found.count:,})"


def _notes(plans: Sequence[Plan]) -> Iterator[str]:
    yield MODEL
    for one in plans:
        if one.unstated:
            yield LOOPS.format(unstated=one.unstated, loops=one.loops, topology=one.topology)
        for note in one.notes:
            yield f"{one.topology}: {note}"
        if not one.fits:
            yield f"{one.topology}: {_binding(one)}"


def _binding(one: Plan) -> str:
    """What to do where the configured batch does not fit."""
    needed = one.memory["peak"] if not one.shown else _peak_of(one)
    found = f"batch {one.batch:,} needs {number(needed / 1e9)} GB of {number(one.limit / 1e9)}"
    fixed = one.memory.get("parameters", math.nan) + one.memory.get("optimizer", math.nan)
    if one.shown and fixed < one.limit / 2:
        return f"{found}, most of it activations: raise train.microbatches, set model.remat, or take more chips"
    return f"{found}, most of it parameters and their moments: raise mesh.fsdp"


def _peak_of(one: Plan) -> float:
    return next(tried.peak for tried in one.largest.tried if tried.batch == one.batch)


def _progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _plain(value: Any) -> Any:
    """Without NaN, which is no JSON."""
    if isinstance(value, dict):
        return {name: _plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
