"""The ablation as one figure: a panel per measure, a line per combination of objectives, every seed a dot."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from msfl_jax.results.ablation import Combination, plus
from msfl_jax.results.files import save_figure

DPI = 200
LOCAL, OTHER = "#c1272d", "#4d4d4d"


def save_ablation(rows: Sequence[Combination], path: Path | str) -> None:
    """Draws the mean over seeds with its 95 % interval, and each seed beside it; combinations with local alignment are red.

    Args:
      rows: as in table 5, the first on top.
      path: a PNG file; its folder is made.

    Raises:
      ValueError: nothing was measured.
    """
    shown = (
        [index for index, one in enumerate(rows[0].measures) if any(row.measures[index].values for row in rows)]
        if rows
        else []
    )
    if not shown:
        raise ValueError("no measure of any combination; expected at least one")
    figure = Figure(figsize=(1.9 + 2.0 * len(shown), 0.9 + 0.32 * len(rows)), dpi=DPI, layout="constrained")
    panels = figure.subplots(1, len(shown), squeeze=False, sharey=True).ravel()
    for axes, index in zip(panels, shown, strict=True):
        _draw_panel(axes, rows, index)
    panels[0].set_yticks(range(len(rows)), [plus(row.objectives) for row in rows], fontsize=7)
    panels[0].set_ylim(len(rows) - 0.5, -0.5)
    save_figure(figure, path)


def _draw_panel(axes: Axes, rows: Sequence[Combination], index: int) -> None:
    for line, row in enumerate(rows):
        measure = row.measures[index]
        color = LOCAL if "local" in row.objectives.split(",") else OTHER
        if not measure.values:
            axes.text(
                0.5,
                line,
                "not run",
                transform=axes.get_yaxis_transform(),
                fontsize=6.5,
                color="0.6",
                ha="center",
                va="center",
            )
            continue
        seeds = np.asarray(measure.values)
        axes.plot(
            seeds, np.full(len(seeds), line + 0.22), "o", color=color, alpha=0.45, markersize=2.6, markeredgewidth=0
        )
        axes.plot(
            [measure.mean.low, measure.mean.high], [line, line], color=color, linewidth=1.6, solid_capstyle="round"
        )
        axes.plot([measure.mean.value], [line], "o", color=color, markersize=4.2)
    axes.set_title(rows[0].measures[index].column, fontsize=8)
    axes.tick_params(labelsize=6.5, length=2)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", alpha=0.25, linewidth=0.5)
    axes.margins(x=0.08)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
