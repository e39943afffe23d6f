"""Rows of radiographs, the ground of every picture of an image."""

import numpy as np
from jaxtyping import UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure

PANEL = 2.6  # inches
DPI = 200
COLUMNS = 4


def panels(count: int, size: tuple[int, int]) -> Figure:
    """A row of panels for images of (height, width), in several equal rows where there are more than `COLUMNS`."""
    lines = -(-count // COLUMNS)
    columns = -(-count // lines)
    height = PANEL * size[0] / size[1] + 0.55
    figure = Figure(figsize=(PANEL * columns, height * lines), dpi=DPI, layout="constrained")
    for axes in figure.subplots(lines, columns, squeeze=False).ravel()[count:]:
        axes.remove()
    return figure


def draw_image(axes: Axes, image: UInt8[np.ndarray, "H W"], caption: str) -> None:
    """Shows a grey image without ticks, with its caption beneath."""
    shrunk = image.shape[1] > PANEL * DPI
    axes.imshow(image, cmap="gray", vmin=0, vmax=255, interpolation="hanning" if shrunk else "bicubic")
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)
    label = axes.set_xlabel(caption, fontsize=7.4, labelpad=4)
    label.set_parse_math(False)  # a report's dollar sign begins no formula
