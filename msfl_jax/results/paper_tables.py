"""The paper's tables with our rows beside its own, as rows of cells that `msfl_jax.results.formats` writes as text, Markdown, LaTeX or CSV.

Paper and ours stand in one table only where ours is measured on the paper's data set. Numbers of different images are never averaged: each set of
images has a row of its own and a mark that says so.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from typing import Literal

import numpy as np

from msfl_jax.metrics import Interval
from msfl_jax.results.own_results import ALL_COMBINATIONS, OBJECTIVES, Result, combination_rank, differences
from msfl_jax.results.published import Column, PublishedRow, PublishedTable, Reading
from msfl_jax.results.tables import MISSING, interval, number
from msfl_jax.tasks.outcome import Outcome

NOT_RUN, UNDEFINED = "not run", "n/a"
OTHER_IMAGES = "*"

Pool = Callable[[Sequence[Result], str], Interval | None]
"""Interval of the mean over seeds of a metric, from the predictions of all of them; None where they do not allow one."""


@dataclass(frozen=True)
class Cell:
    """One number as it is printed, and the numbers and facts behind it by name.

    Attributes:
      text: without marks.
      marks: of the notes that belong to it.
      facts: value, low, high, spread, seeds, records, patients, split, split_hash, dataset, step, run, metric, source, certainty; those that it has.
    """

    text: str
    marks: tuple[str, ...] = ()
    facts: Mapping[str, str | int | float] = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """One method: "paper" for published numbers, "ours" for those of our runs."""

    kind: Literal["paper", "ours"]
    name: str
    cells: tuple[Cell, ...]
    marks: tuple[str, ...] = ()


@dataclass(frozen=True)
class PaperTable:
    """A table ready to be written: as many cells in each row as columns, notes by mark, caveats, and the sources of those that have some, by text."""

    name: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    notes: tuple[tuple[str, str], ...]
    caveats: tuple[str, ...]
    sources: Mapping[str, str] = field(default_factory=dict)


@dataclass
class _Notes:
    """Marks given to notes as they first come up: numbers for the paper's rows, letters for ours."""

    letters: dict[str, str] = field(default_factory=dict)
    numbers: dict[str, str] = field(default_factory=dict)
    plain: dict[str, None] = field(default_factory=dict)

    def letter(self, text: str) -> str:
        return self.letters.setdefault(text, _letters(len(self.letters)))

    def number(self, text: str) -> str:
        return self.numbers.setdefault(text, str(len(self.numbers) + 1))

    def all(self) -> tuple[tuple[str, str], ...]:
        marked = [(mark, text) for notes in (self.numbers, self.letters) for text, mark in notes.items()]
        return (*marked, *((OTHER_IMAGES, text) for text in self.plain))


def paper_table(
    published: PublishedTable, results: Iterable[Result], *, dataset: str = "", pool: Pool | None = None
) -> PaperTable:
    """One of the paper's tables with our results.

    Args:
      published: the paper's part.
      results: of any tasks; those that belong into the table are taken.
      dataset: "" compares with the paper on its own data sets. Other names, comma-separated, show only our results on them, and no row of the paper;
        a name stands for all that begin with it and an underscore, as "synthetic" for "synthetic_mimic_cxr".
      pool: intervals of means over seeds; None gives their spread alone.
    """
    wanted = tuple(word.strip() for word in dataset.split(",") if word.strip())
    columns = _elsewhere(published.columns) if wanted else published.columns
    results, notes = list(results), _Notes()
    chosen = [[one for one in results if _belongs(one, column, wanted)] for column in columns]
    rows = [] if wanted else [_paper_row(row, columns, published, notes) for row in published.rows]
    for reading in published.readings:
        rows += _own_rows(published, columns, reading, chosen, notes, pool)
    if published.number == 5 and not wanted:
        found = {row.name.split(",")[0] for row in rows if row.kind == "ours"}
        missing = [name for name in map(_plus, ALL_COMBINATIONS) if name not in found]
        rows += [Row("ours", f"{name}, ours", (Cell(NOT_RUN),) * len(columns)) for name in missing]
    elif not any(row.kind == "ours" for row in rows):
        rows.append(Row("ours", "ours", (Cell(NOT_RUN),) * len(columns)))
    rows = _mark_other_images(rows, columns, notes)
    if published.number == 5:
        rows.sort(
            key=lambda row: combination_rank(row.name.split(",")[0].replace(" + ", ","))
        )  # stable: the paper's first
    known = {} if wanted else {caveat.text: "; ".join(caveat.sources) for caveat in published.caveats}
    used = [one for column in chosen for one in column]
    return PaperTable(
        name=f"Table {published.number}",
        title=f"{published.measure}: ours on {', '.join(wanted)}, not to be compared with the paper's numbers"
        if wanted
        else published.title,
        columns=tuple(column.measure if wanted else column.title for column in columns),
        rows=tuple(rows),
        notes=notes.all(),
        caveats=(*known, *_mixed(columns, chosen), *_left_out(results, columns, used), *_own_caveats(used)),
        sources=known,
    )


def summarise_seeds(values: Sequence[float], pooled: Interval | None = None) -> dict[str, int | float]:
    """Mean, sample standard deviation ("spread", from two seeds on) and limits where there are any, by name; undefined values are left out."""
    known = [value for value in values if math.isfinite(value)]
    facts: dict[str, int | float] = {"seeds": len(known)}
    if known:
        facts["value"] = float(np.mean(known))
    if len(known) > 1:
        facts["spread"] = float(np.std(known, ddof=1))
    if pooled is not None and math.isfinite(pooled.low) and math.isfinite(pooled.high):
        facts |= {"low": pooled.low, "high": pooled.high}
    return facts


def findings_text(outcomes: Sequence[Outcome]) -> str:
    """`mean of 13 of 14 findings`, or `mean of 13 to 14 ...` where results differ in it; "" where none says over how many its mean AUC is."""
    counts = sorted({int(one.options["findings_in_mean"]) for one in outcomes if "findings_in_mean" in one.options})
    if not counts:
        return ""
    asked = max(sum(name.startswith("auc/") for name in one.metrics) for one in outcomes)
    numbers = " to ".join(dict.fromkeys((str(counts[0]), str(counts[-1]))))
    numbers += f" of {asked}" if asked > counts[0] else ""
    return f"mean of {numbers} {'finding' if max(asked, counts[-1]) == 1 else 'findings'}"


def number_text(facts: Mapping[str, int | float], digits: int) -> str:
    """`0.91 (0.89 - 0.93)`, or `0.91 ± 0.01 (3 seeds, 0.89 - 0.93)` where there are several."""
    if "value" not in facts:
        return UNDEFINED
    limits = (
        [interval(Interval(facts["value"], facts["low"], facts["high"]), digits)]
        if {"low", "high"} <= facts.keys()
        else []
    )
    spread = "spread" in facts
    inside = ", ".join([f"{facts['seeds']:.0f} seeds", *limits] if spread else limits)
    text = number(facts["value"], digits) + (f" ± {number(facts['spread'], digits)}" if spread else "")
    return text + (f" ({inside})" if inside else "")


def _paper_row(row: PublishedRow, columns: Sequence[Column], table: PublishedTable, notes: _Notes) -> Row:
    marks = ()
    if row.status == "reconstructed":
        sure = next(iter(row.values.values())).certainty
        marks = (notes.number(f"{row.name}: name reconstructed, certainty {sure}; {row.note}"),)
    elif row.status != "printed":
        sources = "; ".join(dict.fromkeys(f"{v.source} (certainty {v.certainty})" for v in row.values.values()))
        marks = (notes.number(f"{row.name}: {row.status}; {row.note}. Source: {sources}"),)
    cells = []
    for column in columns:
        found = row.values.get(column.key)
        if found is None:
            cells.append(Cell(MISSING))
            continue
        facts = {"value": found.value, "source": found.source, "certainty": found.certainty}
        cells.append(Cell(number(found.value, column.digits), facts=facts))
    name = f"{_plus(row.objectives)}, {row.name}" if row.objectives else row.name
    return Row("paper", name, tuple(cells), marks)


def _own_rows(
    table: PublishedTable,
    columns: Sequence[Column],
    reading: Reading,
    chosen: Sequence[Sequence[Result]],
    notes: _Notes,
    pool: Pool | None,
) -> list[Row]:
    """One row per model and variant, and as many more as it has numbers for one column that must not be averaged."""
    first = {_row_key(one, table.number): one for column in reversed(chosen) for one in reversed(column)}
    keys = dict.fromkeys(_row_key(one, table.number) for column in chosen for one in column)
    rows = []
    for key in keys:
        stacks = [_stacks([one for one in found if _row_key(one, table.number) == key]) for found in chosen]
        alike = [first[other] for other in keys if other[0] == key[0] and other != key]
        apart = differences(first[key], alike, tuning=table.number != 5)
        details = key[2] if any(other[0] == key[0] and other[2] != key[2] for other in keys) else ""
        name = ", ".join(word for word in (key[0], apart, details, reading.title) if word)
        for line in zip_longest(*stacks):
            cells = [
                _own_cell(stack, column, reading, notes, pool, _schedule(stack, found)) if stack else Cell(NOT_RUN)
                for stack, column, found in zip(line, columns, stacks, strict=True)
            ]
            rows.append(Row("ours", name, tuple(cells)))
    return rows


def _row_key(result: Result, table: int) -> tuple[str, str, str]:
    """Name of the row, and what else must be equal in it."""
    model, objectives = result.model or "ours", result.objectives
    if table == 5:  # its columns are of different tasks, and so of different variants
        return (f"{_plus(objectives)}, ours ({model})" if objectives else f"ours ({model})"), result.base, ""
    if 0 < len(objectives.split(",")) < len(OBJECTIVES) and objectives:
        model += f" ({_plus(objectives)})"
    step = [] if result.fine_tuned else [f"step {result.outcome.step}"]
    name = ", ".join([f"ours: {model}" if result.model else model, result.variant, *step])
    return name, result.identity, result.details


def _stacks(results: Sequence[Result]) -> list[list[Result]]:
    """Results that differ in their seed alone, together; two of the same seed are not known to be two seeds of one thing and stay apart."""
    groups: dict[tuple, list[list[Result]]] = {}
    for one in results:
        outcome = one.outcome
        step = -1 if one.fine_tuned else outcome.step
        key = outcome.dataset, outcome.split_hash, one.variant, one.details, one.identity, one.schedule, step
        stacks = groups.setdefault(key, [])
        free = (stack for stack in stacks if one.seed >= 0 and one.seed not in {other.seed for other in stack})
        if (stack := next(free, None)) is None:
            stacks.append([one])
        else:
            stack.append(one)
    return [stack for stacks in groups.values() for stack in stacks]


def _schedule(stack: Sequence[Result], others: Sequence[Sequence[Result]]) -> str:
    """In what the runs of a cell were trained otherwise than those that stand beneath it."""
    return differences(stack[0], [one[0] for one in others])


def _own_cell(
    stack: Sequence[Result], column: Column, reading: Reading, notes: _Notes, pool: Pool | None, apart: str
) -> Cell:
    metric = reading.metric(column)
    if not metric:
        return Cell(MISSING)
    if not any(metric in one.outcome.metrics for one in stack):
        return Cell(NOT_RUN)
    found = [one.outcome.metrics.get(metric, Interval(math.nan, math.nan, math.nan)) for one in stack]
    pooled = found[0] if len(stack) == 1 else (pool(stack, metric) if pool else None)
    scaled = pooled and Interval(*(column.scale * value for value in pooled))
    numbers = summarise_seeds([column.scale * one.value for one in found], scaled)
    first = stack[0].outcome
    reasons = {one.outcome.reasons[metric] for one in stack if metric in one.outcome.reasons}
    facts = {
        **numbers,
        "records": first.records,
        "patients": first.patients,
        "split": first.split,
        "split_hash": first.split_hash,
        "dataset": first.dataset,
        "step": first.step,
        "run": "; ".join(one.run for one in stack),
        "metric": metric,
    }
    over = findings_text([one.outcome for one in stack]) if metric == "mean_auc" else ""
    undefined = f"n/a: {', '.join(sorted(reasons))}" if reasons else ""
    note = "; ".join(filter(None, (_provenance(stack, column), over, apart, undefined)))
    return Cell(number_text(numbers, column.digits), (notes.letter(note),), facts)


def _provenance(stack: Sequence[Result], column: Column) -> str:
    """What a number of ours is: runs, steps, seeds, images, and whether the paper's test set has as many."""
    first = stack[0].outcome
    steps = sorted({one.outcome.step for one in stack})
    runs = ", ".join(one.run for one in stack)
    seeds = ("seeds " if len(stack) > 1 else "seed ") + ", ".join(str(one.seed) for one in stack)
    chosen = ", ".join(word for word in (stack[0].variant, stack[0].details) if word)
    parts = [
        f"{runs}, step {', '.join(map(str, steps))}, {seeds}, {chosen}",
        f"{first.dataset} {first.split} (split {first.split_hash[:8]})",
        f"{first.records:,} records of {first.patients:,} patients",
    ]
    if column.test_records and column.test_records != first.records:
        parts.append(f"the paper's test set has {column.test_records:,}")
    return "; ".join(parts)


def _mark_other_images(rows: Sequence[Row], columns: Sequence[Column], notes: _Notes) -> list[Row]:
    """Marks our numbers of every column in which they are of different sets of images."""
    marked = [list(row.cells) for row in rows]
    for index, column in enumerate(columns):
        ours = [cells[index] for cells, row in zip(marked, rows, strict=True) if row.kind == "ours"]
        hashes = list(dict.fromkeys(str(cell.facts["split_hash"]) for cell in ours if "split_hash" in cell.facts))
        if len(hashes) < 2:
            continue
        listed = ", ".join(one[:8] for one in hashes)
        notes.plain[
            f"{column.title}: numbers of ours are of different images (splits {listed}); they are not averaged, and not to be compared"
        ] = None
        for cells in marked:
            if "split_hash" in cells[index].facts:
                cells[index] = replace(cells[index], marks=(*cells[index].marks, OTHER_IMAGES))
    return [replace(row, cells=tuple(cells)) for row, cells in zip(rows, marked, strict=True)]


def _belongs(result: Result, column: Column, wanted: Sequence[str]) -> bool:
    outcome = result.outcome
    names = wanted or (column.dataset,)
    here = any(outcome.dataset == name or (wanted and outcome.dataset.startswith(f"{name}_")) for name in names)
    return here and _same_task(result, column)


def _same_task(result: Result, column: Column) -> bool:
    outcome = result.outcome
    return outcome.task == column.task and all(outcome.options.get(k) == v for k, v in column.options.items())


def _elsewhere(columns: Iterable[Column]) -> tuple[Column, ...]:
    """Columns that measure different things, whatever the data set; the paper's test set has nothing to do with them."""
    distinct = {column.measure: column for column in reversed(list(columns))}
    return tuple(replace(column, test_records=0, title=column.measure) for column in reversed(list(distinct.values())))


def _mixed(columns: Sequence[Column], chosen: Sequence[Sequence[Result]]) -> list[str]:
    """Says where the rows of a column, whose names do not tell, are of different rules, prompts or protocols."""
    said = []
    for column, found in zip(columns, chosen, strict=True):
        ways = sorted({", ".join(filter(None, (one.variant, one.details))) for one in found if not one.fine_tuned})
        if len(ways) > 1:
            said.append(
                f"{column.title}: ours are measured in different ways ({'; '.join(ways)}); compare those of one."
            )
    return said


def _left_out(results: Sequence[Result], columns: Sequence[Column], used: Sequence[Result]) -> list[str]:
    """Says of which other data sets there are results that would fit but for the data set."""
    shown = {id(one) for one in used}
    others = {
        one.outcome.dataset
        for one in results
        if id(one) not in shown and any(_same_task(one, column) for column in columns)
    }
    return [f"Not shown: results on {name}; --dataset {name} shows them." for name in sorted(others)]


def _own_caveats(used: Sequence[Result]) -> list[str]:
    found: dict[str, dict[str, None]] = {}
    for one in used:
        for caveat in one.outcome.caveats:
            found.setdefault(caveat, {})[one.run] = None
    return [f"{', '.join(runs)}: {caveat}" for caveat, runs in found.items()]


def _plus(objectives: str) -> str:
    return objectives.replace(",", " + ")


def _letters(index: int) -> str:
    """a, b, ..., z, aa, ab, ..."""
    text = ""
    index += 1
    while index:
        index, rest = divmod(index - 1, 26)
        text = chr(ord("a") + rest) + text
    return text
