"""Label efficiency: mean AUC by share of the labels, over seeds, for each initialisation: one table and one plot."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from msfl_jax.results.files import save_figure
from msfl_jax.results.tables import MISSING, format_table, interval, number
from msfl_jax.tasks.outcome import Outcome

DPI = 200
COLOURS = {"pretrained": "#b3200f", "imported": "#1f5f8b", "random": "#6b6b6b"}


@dataclass(frozen=True)
class Cell:
    """One initialisation at one share of the labels.

    Attributes:
      init, mode: "pretrained", "imported" or "random"; "full" or "probe".
      fraction: percentage of the labels.
      aucs: mean AUC of each seed.
    """

    init: str
    mode: str
    fraction: int
    aucs: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Over seeds."""
        return float(np.mean(self.aucs))

    @property
    def spread(self) -> float:
        """Standard deviation over seeds (n - 1); nan for a single one."""
        return float(np.std(self.aucs, ddof=1)) if len(self.aucs) > 1 else float("nan")


def label_efficiency(outcomes: Sequence[Outcome]) -> list[Cell]:
    """The cells of a sweep in order of their labels; outcomes of other tasks are passed over."""
    grouped: dict[tuple[str, str, int], dict[int, float]] = {}
    for outcome in outcomes:
        if outcome.task == "classification":
            options = outcome.options
            key = str(options["init"]), str(options["mode"]), int(options["fraction"])
            grouped.setdefault(key, {})[int(options["seed"])] = outcome.metrics["mean_auc"].value
    return [Cell(*key, tuple(seeds[seed] for seed in sorted(seeds))) for key, seeds in sorted(grouped.items())]


def label_efficiency_table(cells: Sequence[Cell]) -> str:
    """One row per initialisation, one column per share of the labels: mean over seeds, and their deviation where there are several."""
    fractions = sorted({cell.fraction for cell in cells})
    rows = []
    for init, mode in sorted({(cell.init, cell.mode) for cell in cells}):
        own = {cell.fraction: cell for cell in cells if (cell.init, cell.mode) == (init, mode)}
        row = {"": f"{init}, {mode}"}
        rows.append(row | {f"{fraction} %": _text(own.get(fraction)) for fraction in fractions})
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
    """Draws mean AUC over the share of the labels, with a point per seed.

    Args:
      cells: of `label_efficiency`.
      path: a PNG file; its folder is made.
      title: above the axes.
    """
    figure = Figure(figsize=(4.6, 3.2), dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    for init, mode in sorted({(cell.init, cell.mode) for cell in cells}):
        own = [cell for cell in cells if (cell.init, cell.mode) == (init, mode)]
        colour, style = COLOURS.get(init, "black"), "-" if mode == "full" else "--"
        fractions = [cell.fraction for cell in own]
        axes.plot(fractions, [cell.mean for cell in own], style, color=colour, label=f"{init}, {mode}")
        for cell in own:
            axes.plot([cell.fraction] * len(cell.aucs), cell.aucs, "o", color=colour, markersize=3, alpha=0.6)
    axes.set_xscale("log")
    ticks = sorted({cell.fraction for cell in cells})
    axes.set_xticks(ticks, [f"{tick} %" for tick in ticks])
    axes.minorticks_off()
    axes.set_xlabel("training labels")
    axes.set_ylabel("mean AUC")
    axes.set_title(title, fontsize=9)
    axes.legend(frameon=False, fontsize=8)
    save_figure(figure, path)


def _text(cell: Cell | None) -> str:
    if cell is None:
        return MISSING
    spread = f" ± {number(cell.spread, 3)}" if len(cell.aucs) > 1 else ""
    return f"{number(cell.mean, 3)}{spread} ({len(cell.aucs)})"
