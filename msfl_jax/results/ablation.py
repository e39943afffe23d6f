"""What an ablation found: every measure per combination of objectives over its seeds, and what local alignment gains."""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from msfl_jax.metrics import Interval
from msfl_jax.results.own_results import OBJECTIVES, Result, combination_rank
from msfl_jax.results.paper_tables import Pool, summarise_seeds
from msfl_jax.results.pooling import pooled_gain, pooled_interval
from msfl_jax.results.published import Column, PublishedTable
from msfl_jax.results.tables import interval, number, seeds_text
from msfl_jax.tasks.outcome import Option

GAIN_OF, GAIN_METRIC = "local", "cnr"

_NAN = Interval(math.nan, math.nan, math.nan)


@dataclass(frozen=True)
class Wanted:
    """Which result of a task belongs to an ablation: of which images, and made with which choices."""

    split: str
    split_hash: str
    options: Mapping[str, Option]


@dataclass(frozen=True)
class Measure:
    """One column of table 5 for one combination of objectives.

    Attributes:
      values: of each seed in turn, in the column's unit.
      mean: their mean with its pooled limits; limits are nan where there are none.
    """

    column: str
    values: tuple[float, ...]
    mean: Interval


@dataclass(frozen=True)
class Combination:
    """One row of table 5."""

    objectives: str
    seeds: tuple[int, ...]
    measures: tuple[Measure, ...]


@dataclass(frozen=True)
class Gain:
    """By how much the CNR is higher with local alignment than without, over the `seeds` that both have; the other objectives are equal.

    Configurations may give the two other architectures, as the demo's does, and without local alignment phrases are grounded in the space of global
    alignment: what is gained is local alignment with all that comes with it (see `msfl_jax.commands.ablation_caveats`).
    """

    combination: str
    base: str
    seeds: tuple[int, ...]
    phrases: int
    patients: int
    gain: Interval

    def __str__(self) -> str:
        significant = "" if self.gain.low <= 0 <= self.gain.high else ", which leaves out 0"
        return (
            f"{plus(self.combination)} over {plus(self.base)}: CNR {number(self.gain.value)} higher, "
            f"95 % interval {interval(self.gain)}{significant} ({seeds_text(len(self.seeds))}, {self.phrases:,} phrases "
            f"of {self.patients:,} patients, paired)"
        )


def measured_by(results: Iterable[Result], wanted: Mapping[str, Wanted]) -> list[Result]:
    """Results of the images and with the choices of an ablation; what else was evaluated in the same directories is no part of it.

    Args:
      results: of one run and those fine-tuned from it.
      wanted: by task; a task that is missing is not measured.
    """
    return [one for one in results if (asked := wanted.get(one.outcome.task)) and _is(one, asked)]


def combinations_of(objectives: Iterable[str]) -> list[str]:
    """Distinct combinations in the order of table 5: by the number of objectives, then as the paper lists them."""
    return sorted(dict.fromkeys(objectives), key=combination_rank)


def remembering_pool() -> Pool:
    """`pooled_interval`, computed once per metric and results."""
    found: dict[tuple[str, ...], Interval | None] = {}

    def pool(stack: Sequence[Result], metric: str) -> Interval | None:
        key = (metric, *(str(one.outcome.predictions(one.workdir)) for one in stack))
        if key not in found:
            found[key] = pooled_interval(stack, metric)
        return found[key]

    return pool


def measure_combinations(table: PublishedTable, results: Sequence[Result], pool: Pool) -> list[Combination]:
    """Every column of table 5 for every combination of objectives, whatever the data set.

    Args:
      table: the fifth.
      results: of one ablation (see `measured_by`): one split and one variant per task.
      pool: intervals of means over seeds.
    """
    rows = []
    for objectives in combinations_of(one.objectives for one in results):
        own = [one for one in results if one.objectives == objectives]
        measures = [
            _measure(_stack(own, column), column, table.readings[0].metric(column), pool) for column in table.columns
        ]
        seeds = tuple(sorted({one.seed for one in own}))
        rows.append(Combination(objectives, seeds, tuple(measures)))
    return rows


def gains_of_local(table: PublishedTable, results: Sequence[Result]) -> list[Gain]:
    """What local alignment adds to each combination without it, by CNR; the gain over global alignment alone comes first."""
    column = next(column for column in table.columns if column.key == GAIN_METRIC)
    stacks = {
        objectives: {one.seed: one for one in _stack([r for r in results if r.objectives == objectives], column)}
        for objectives in combinations_of(one.objectives for one in results)
    }
    gains = []
    for base, without in stacks.items():
        words = base.split(",")
        better = ",".join(name for name in OBJECTIVES if name in (*words, GAIN_OF))
        seeds = tuple(sorted(without.keys() & stacks.get(better, {}).keys()))
        if GAIN_OF in words or not seeds:
            continue
        pairs = [stacks[better][seed] for seed in seeds], [without[seed] for seed in seeds]
        if (gain := pooled_gain(*pairs, GAIN_METRIC)) is not None:
            first = pairs[0][0].outcome
            gains.append(Gain(better, base, seeds, first.records, first.patients, gain))
    return gains


def as_json(value: Any) -> Any:
    """Dataclasses as plain dictionaries; what is undefined is null, which JSON has for it."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: as_json(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Interval):
        return {name: as_json(part) for name, part in value._asdict().items()}
    if isinstance(value, list | tuple):
        return [as_json(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def plus(objectives: str) -> str:
    """`global + local`, as tables have it."""
    return objectives.replace(",", " + ")


def _is(result: Result, wanted: Wanted) -> bool:
    outcome = result.outcome
    same_images = (outcome.split, outcome.split_hash) == (wanted.split, wanted.split_hash)
    return same_images and all(outcome.options.get(name) == value for name, value in wanted.options.items())


def _stack(results: Sequence[Result], column: Column) -> list[Result]:
    """The results of one combination that belong into a column, one per seed."""
    fits = {
        one.seed: one
        for one in results
        if one.outcome.task == column.task
        and all(one.outcome.options.get(name) == value for name, value in column.options.items())
    }
    return [fits[seed] for seed in sorted(fits)]


def _measure(stack: Sequence[Result], column: Column, metric: str, pool: Pool) -> Measure:
    if not stack:
        return Measure(column.measure, (), _NAN)
    values = tuple(column.scale * one.outcome.metrics.get(metric, _NAN).value for one in stack)
    alone = stack[0].outcome.metrics.get(metric) if len(stack) == 1 else pool(stack, metric)
    limits = alone or _NAN
    mean = summarise_seeds(values).get("value", math.nan)
    return Measure(column.measure, values, Interval(mean, column.scale * limits.low, column.scale * limits.high))
