"""Reliability curves as a PNG file: what a zero-shot score means as a probability."""

from pathlib import Path

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from input_pipeline.errors import UserError
from msfl_jax.metrics import reliability_curve
from msfl_jax.metrics.calibration import BINS, Binning
from msfl_jax.results.figures import COLUMNS, DPI
from msfl_jax.results.files import save_figure
from msfl_jax.results.tables import number
from msfl_jax.tasks.zero_shot_result import Finding, ZeroShotResult, probabilities

# Bins, colour, marker and name of each curve.
CURVES: tuple[tuple[Binning, str, str, str], ...] = (
    ("equal_mass", "#c0504d", "s", "bins of equal mass"),
    ("equal_width", "#1f4e79", "o", "bins of equal width"),
)


def save_reliability(result: ZeroShotResult, path: Path | str) -> None:
    """Draws one panel per finding: share of positives over probability, in bins of equal width and of equal mass, above how many images have it.

    Args:
      result: whose predictions are drawn.
      path: a PNG file; its folder is made.

    Raises:
      UserError: no finding has both positives and negatives.
    """
    probable = probabilities(result.predictions.scores, result.rule, result.temperature)
    drawn = [column for column, finding in enumerate(result.findings) if not finding.reason]
    if not drawn:
        raise UserError("no reliability to draw: no finding has both positives and negatives")
    columns = min(COLUMNS, len(drawn))
    lines = -(-len(drawn) // columns)
    figure = Figure(figsize=(2.3 * columns, 2.5 * lines + 0.3), dpi=DPI, layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False, sharex=True, sharey=True)
    for axes, column in zip(panels.ravel(), drawn, strict=False):
        _draw_finding(axes, result.findings[column], probable[:, column], result.predictions.truth[:, column])
    for axes in panels.ravel()[len(drawn) :]:
        axes.set_visible(False)
    figure.supxlabel(f"probability, rule {result.rule}", fontsize=8)
    figure.supylabel("share of positives", fontsize=8)
    handles, labels = panels.ravel()[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=min(3, columns), fontsize=7, frameon=False)
    save_figure(figure, path)


def _draw_finding(
    axes: Axes, finding: Finding, probable: Float[np.ndarray, "N"], truth: Float[np.ndarray, "N"]
) -> None:
    """The bars are shares of all known images in each bin of equal width."""
    known = ~np.isnan(truth)
    counts, edges = np.histogram(probable[known], bins=BINS, range=(0, 1))
    axes.bar(edges[:-1], counts / known.sum(), width=1 / BINS, align="edge", color="0.8", label="share of images")
    axes.plot([0, 1], [0, 1], color="0.5", linewidth=0.7, linestyle=(0, (4, 3)))
    for binning, colour, marker, name in CURVES:
        curve = reliability_curve(probable, truth, binning=binning)
        style = {"color": colour, "marker": marker, "markersize": 2.6, "linewidth": 1, "clip_on": False}
        axes.plot(curve.predicted, curve.observed, label=name, **style)
    axes.set_title(f"{finding.name}, ECE {number(finding.ece.value)}", fontsize=8)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    axes.set_aspect("equal")
    axes.tick_params(labelsize=6.5)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
