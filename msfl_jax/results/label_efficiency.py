"""Label efficiency: mean AUC by share of the labels, over seeds, for each initialisation, and what each gains over random weights."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

from msfl_jax.metrics import Interval
from msfl_jax.results.files import save_figure
from msfl_jax.results.own_results import Result
from msfl_jax.results.paper_tables import Pool, findings_text, number_text, summarise_seeds
from msfl_jax.results.pooling import pooled_gain
from msfl_jax.results.tables import MISSING, format_table, interval, number, seeds_text
from msfl_jax.tasks.outcome import Outcome

DPI = 200
COLOURS = {"pretrained": "#b3200f", "imported": "#1f5f8b", "random": "#6b6b6b"}
METRIC, BASE = "mean_auc", "random"


@dataclass(frozen=True)
class Cell:
    """One initialisation at one share of the labels.

    Attributes:
      init, mode: "pretrained", "imported" or "random"; "full" or "probe".
      fraction: percentage of the labels.
      aucs: mean AUC of each seed.
      pooled: of their mean, with patients resampled for all seeds together; None where predictions do not allow it.
      findings: over how many findings each mean is, as `findings_text` says it.
    """

    init: str
    mode: str
    fraction: int
    aucs: tuple[float, ...]
    pooled: Interval | None = None
    findings: str = ""

    @property
    def numbers(self) -> dict[str, int | float]:
        """Mean over seeds, their standard deviation (n - 1) and limits, those that there are: see `summarise_seeds`."""
        return summarise_seeds(self.aucs, self.pooled)


@dataclass(frozen=True)
class Advantage:
    """By how much the mean AUC of an initialisation exceeds that of random weights at a share of the labels, over the seeds that both have.

    Attributes:
      init, mode, fraction: as of a `Cell`.
      seeds: how many.
      images, patients: of the split.
      gain: with its interval on the same resamples of patients; None where predictions of both do not allow one.
    """

    init: str
    mode: str
    fraction: int
    seeds: int
    images: int
    patients: int
    gain: Interval | None

    def __str__(self) -> str:
        name = f"{self.init} - {BASE}, {self.mode}, {self.fraction} %"
        if self.gain is None:
            return f"{name}: not compared; the two have no predictions of the same images and findings"
        significant = "" if self.gain.low <= 0 <= self.gain.high else ", which leaves out 0"
        return (
            f"{name}: mean AUC {number(self.gain.value, 3)}, 95 % interval {interval(self.gain, 3)}{significant} "
            f"({seeds_text(self.seeds)}, {self.images:,} images of {self.patients:,} patients, paired)"
        )


def label_efficiency(results: Sequence[Result], pool: Pool | None = None) -> list[Cell]:
    """The cells of a sweep in order of their labels.

    Args:
      results: of one split; those of other tasks are passed over.
      pool: interval of a mean over several seeds; None gives their deviation alone.
    """
    cells = []
    for key, seeds in _by_cell(results).items():
        stack = [seeds[seed] for seed in sorted(seeds)]
        outcomes = [one.outcome for one in stack]
        alone = outcomes[0].metrics[METRIC] if len(stack) == 1 else None
        pooled = alone or (pool(stack, METRIC) if pool else None)
        aucs = tuple(one.metrics[METRIC].value for one in outcomes)
        cells.append(Cell(*key, aucs, pooled, findings_text(outcomes)))
    return cells


def advantages(results: Sequence[Result]) -> list[Advantage]:
    """What every other initialisation gains over random weights, by share of the labels; results as for `label_efficiency`."""
    cells = _by_cell(results)
    found = []
    for (init, mode, fraction), own in sorted(cells.items(), key=lambda item: (item[0][2], *item[0])):
        base = cells.get((BASE, mode, fraction), {})
        seeds = sorted(own.keys() & base.keys())
        if init == BASE or not seeds:
            continue
        first = own[seeds[0]].outcome
        gain = pooled_gain([own[seed] for seed in seeds], [base[seed] for seed in seeds], METRIC)
        found.append(Advantage(init, mode, fraction, len(seeds), first.records, first.patients, gain))
    return found


def label_efficiency_table(cells: Sequence[Cell]) -> str:
    """One row per initialisation, one column per share of the labels: the mean over seeds, their deviation where there are several, and its interval.

    Where means are over different numbers of findings, each cell says over how many.
    """
    fractions = sorted({cell.fraction for cell in cells})
    differ = len({cell.findings for cell in cells}) > 1
    rows = []
    for init, mode in sorted({(cell.init, cell.mode) for cell in cells}):
        own = {cell.fraction: cell for cell in cells if (cell.init, cell.mode) == (init, mode)}
        row = {"": f"{init}, {mode}"}
        rows.append(row | {f"{fraction} %": _text(own.get(fraction), differ) for fraction in fractions})
    return format_table(rows, ["", *(f"{fraction} %" for fraction in fractions)])


def classification_table(outcome: Outcome) -> str:
    """AUC of each finding and their mean, with 95 % intervals; the reason where an AUC is undefined."""
    names = [*(name for name in outcome.metrics if name != "mean_auc"), "mean_auc"]
    titles = {"mean_auc": f"mean of {outcome.options['findings_in_mean']}"}
    rows = [
        {
            "": titles.get(name, name.removeprefix("auc/")),
            "AUC": number(outcome.metrics[name].value),
            "95 % interval": interval(outcome.metrics[name]),
            " ": f"n/a: {outcome.reasons[name]}" if name in outcome.reasons else "",
        }
        for name in names
    ]
    columns = ["", "AUC", "95 % interval", *([" "] if outcome.reasons else [])]
    title = f"classification, {outcome.variant}, {outcome.split}, step {outcome.step}: "
    return f"{title}{outcome.records:,} images of {outcome.patients:,} patients\n\n{format_table(rows, columns)}"


def save_label_efficiency(cells: Sequence[Cell], path: Path | str, *, title: str) -> None:
    """Draws mean AUC over the share of the labels, with its interval and a point per seed.

    Args:
      cells: of `label_efficiency`.
      path: a PNG file; its folder is made.
      title: above the axes.
    """
    figure = Figure(figsize=(4.6, 3.2), dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    for init, mode in sorted({(cell.init, cell.mode) for cell in cells}):
        own = [cell for cell in cells if (cell.init, cell.mode) == (init, mode) and "value" in cell.numbers]
        colour, style = COLOURS.get(init, "black"), "-" if mode == "full" else "--"
        fractions = [cell.fraction for cell in own]
        axes.plot(fractions, [cell.numbers["value"] for cell in own], style, color=colour, label=f"{init}, {mode}")
        limited = {cell.fraction: cell.numbers for cell in own if "low" in cell.numbers}
        lows, highs = ([numbers[name] for numbers in limited.values()] for name in ("low", "high"))
        axes.vlines(list(limited), lows, highs, colors=colour, linewidth=3, alpha=0.35)
        for cell in own:
            axes.plot([cell.fraction] * len(cell.aucs), cell.aucs, "o", color=colour, markersize=3, alpha=0.6)
    axes.set_xscale("log")
    ticks = sorted({cell.fraction for cell in cells})
    axes.set_xticks(ticks, [f"{tick} %" for tick in ticks])
    axes.minorticks_off()
    axes.set_xlabel("training labels")
    axes.set_ylabel("mean AUC, 95 % interval")
    axes.set_title(title, fontsize=9)
    axes.legend(frameon=False, fontsize=8)
    save_figure(figure, path)


def _by_cell(results: Sequence[Result]) -> dict[tuple[str, str, int], dict[int, Result]]:
    """Results of classification by initialisation, mode and share of the labels, in that order, and then by seed."""
    grouped: dict[tuple[str, str, int], dict[int, Result]] = {}
    for one in results:
        if one.outcome.task == "classification":
            options = one.outcome.options
            key = str(options["init"]), str(options["mode"]), int(options["fraction"])
            grouped.setdefault(key, {})[int(options["seed"])] = one
    return dict(sorted(grouped.items()))


def _text(cell: Cell | None, over: bool) -> str:
    if cell is None:
        return MISSING
    return ", ".join(filter(None, (number_text(cell.numbers, 3), cell.findings if over else "")))
