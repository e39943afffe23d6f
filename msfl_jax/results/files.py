"""Figures on disk."""

import os
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure


def save_figure(figure: Figure, path: Path | str) -> None:
    """Writes a PNG file, whole or not at all; its folder is made."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".partial")
    FigureCanvasAgg(figure)  # a backend of its own, whatever the session has chosen
    figure.savefig(temporary, format="png", bbox_inches="tight", pad_inches=0.03)
    os.replace(temporary, path)
