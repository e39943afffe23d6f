"""Figures as PNG files: heat-maps of sentences over radiographs, and training curves. Nothing here touches matplotlib's global state."""

import json
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import Normal, Stroke

from input_pipeline.errors import UserError
from input_pipeline.images import decode_gray
from input_pipeline.loader import grounding_records
from input_pipeline.records import Record
from msfl_jax.metrics import normalise_heatmap
from msfl_jax.results.files import save_figure
from msfl_jax.results.panels import COLUMNS, DPI, PANEL, draw_image
from msfl_jax.tasks.grounding import ground_phrases
from msfl_jax.tasks.grounding_protocol import GroundingProtocol, scale_boxes
from msfl_jax.tasks.run import Run

RED = (0.89, 0.05, 0.04)
STRONGEST = 0.72  # opacity of the hottest pixel: the anatomy must stay visible below it
CAPTION_CHARACTERS = 42
CAPTION_LINE = 0.135  # inches
LEGEND_LINE = 0.2

_DOTTED: dict[str, Any] = {"edgecolor": "0.6", "linewidth": 0.8, "linestyle": (0, (1, 2))}
_SIGNS = {
    "heat": "red: mid-range to highest similarity",
    "box": "annotated box",
    "view": "edge of what the model sees",
}

# Metric, title and unit of each panel of the curves.
PANELS = (
    ("loss/total", "total, weighted", "loss"),
    ("loss/global_alignment", "global alignment", "nats"),
    ("loss/local_alignment", "local alignment", "nats"),
    ("loss/instance_matching", "instance matching", "nats"),
    ("loss/image_reconstruction", "image reconstruction", "squared error"),
    ("loss/masked_language_modeling", "masked language modeling", "nats"),
    ("zero_shot/mean_auc", "zero-shot, mean of findings", "AUC"),
    ("grounding/cnr", "phrase grounding", "CNR"),
    ("retrieval/image_to_report/recall@10", "retrieval, image to report", "R@10"),
    ("probe/mean_auc", "linear probe, mean of labels", "AUC"),
)


def save_overlay(
    image: UInt8[np.ndarray, "H W"],
    heatmap: Float[np.ndarray, "H W"],
    boxes: Float[np.ndarray, "K 4"],
    phrase: str,
    path: Path | str,
) -> None:
    """Draws one sentence's similarity over a radiograph (as the paper's figure 2).

    The red is the deeper the higher the similarity; what lies below the middle between the map's extremes stays grey. Boxes are black, and a dotted
    line surrounds what the model saw where that is less than the image.

    Args:
      image: grey.
      heatmap: any scale; NaN where the model saw nothing.
      boxes: x, y, width and height of the ground truth in pixels of `image`; none is fine.
      phrase: the caption.
      path: a PNG file; its folder is made.
    """
    caption = _caption(phrase, heatmap)
    figure, panels = _panels([caption], image.shape, _legend_of([heatmap], [boxes]))
    _draw_overlay(panels[0], image, heatmap, boxes, caption)
    save_figure(figure, path)


def save_report_overlays(
    image: UInt8[np.ndarray, "H W"],
    heatmaps: Float[np.ndarray, "S H W"],
    phrases: Sequence[str],
    path: Path | str,
    *,
    boxes: Sequence[Float[np.ndarray, "_ 4"]] = (),
) -> None:
    """Draws the radiograph as it is, and beside it one panel per sentence, numbered in order; a line below says what the signs mean.

    Args:
      image: grey.
      heatmaps: one per sentence, see `save_overlay`.
      phrases: the sentences; "" for one that is not to be read.
      path: a PNG file; its folder is made.
      boxes: of each sentence; empty where none is known.
    """
    known = boxes or [np.zeros((0, 4), np.float32)] * len(phrases)
    numbered = [f"{number}. {said}" if said else f"sentence {number}" for number, said in enumerate(phrases, start=1)]
    captions = ["radiograph", *map(_caption, numbered, heatmaps)]
    figure, panels = _panels(captions, image.shape, _legend_of(heatmaps, known))
    draw_image(panels[0], image, captions[0])
    for axes, heatmap, marked, caption in zip(panels[1:], heatmaps, known, captions[1:], strict=True):
        _draw_overlay(axes, image, heatmap, marked, caption)
    save_figure(figure, path)


def save_record_overlays(
    run: Run,
    records: Sequence[Record],
    path: Path | str,
    *,
    protocol: GroundingProtocol | str | None = None,
    sigma: float | None = None,
    show_text: bool = False,
) -> None:
    """Grounds and draws every sentence of the records of one image.

    Args:
      run: the model.
      records: the phrases of one image with their boxes, or a single record with a report.
      path: a PNG file.
      protocol, sigma: of the heat-maps; None takes the run's own.
      show_text: writes the sentences, which are of a patient's report, beneath the maps; else their numbers alone.

    Raises:
      DataError: the image is damaged.
    """
    image = decode_gray(records[0].image)
    pairs = [(sentence, record) for record in records for sentence in record.sentences]
    heatmaps = ground_phrases(run, image, [sentence for sentence, _ in pairs], protocol=protocol, sigma=sigma)
    boxes = [scale_boxes(record.boxes, record.original_size, image.shape) for _, record in pairs]
    captions = [sentence if show_text else "" for sentence, _ in pairs]
    save_report_overlays(image, heatmaps, captions, path, boxes=boxes)


def save_phrase_overlays(
    run: Run,
    directory: Path | str,
    split: str,
    folder: Path | str,
    *,
    count: int,
    protocol: GroundingProtocol | str | None = None,
    sigma: float | None = None,
    show_text: bool = False,
) -> list[Path]:
    """Draws the phrases of some images of a build with boxes, findings in turn.

    Args:
      run: the model.
      directory: a build with boxes.
      split: of the build.
      folder: gets overlay_00.png, overlay_01.png, ...
      count: of images.
      protocol, sigma: of the heat-maps; None takes the run's own.
      show_text: see `save_record_overlays`.

    Returns:
      The files.

    Raises:
      UserError: there is no such build or split.
      DataError: no record has boxes, or an image is damaged.
    """
    images: dict[str, list[Record]] = {}
    for record in grounding_records(Path(directory), split):
        images.setdefault(record.image_key, []).append(record)
    files = []
    for index, key in enumerate(_findings_in_turn(images)[:count]):
        files.append(Path(folder) / f"overlay_{index:02d}.png")
        save_record_overlays(run, images[key], files[-1], protocol=protocol, sigma=sigma, show_text=show_text)
    return files


def save_curves(metrics: Path | str, path: Path | str) -> None:
    """Draws the objectives over the steps of a run, one small panel each, and the evaluations in the loop where there were any.

    Args:
      metrics: the run's metrics.jsonl.
      path: a PNG file; its folder is made.

    Raises:
      UserError: the file does not exist or holds no objective.
    """
    rows = _read_rows(Path(metrics))
    curves = {name: _curve(rows, name) for name, _, _ in PANELS}
    drawn = [panel for panel in PANELS if curves[panel[0]][0]]
    if not drawn:
        raise UserError(f"{metrics}: no objectives in it; expected the metrics.jsonl of a run")
    columns = min(COLUMNS, len(drawn))
    lines = -(-len(drawn) // columns)
    figure = Figure(figsize=(2.6 * columns, 2.1 * lines), dpi=DPI, layout="constrained")
    grid = figure.subplots(lines, columns, squeeze=False).ravel()
    for axes, (name, title, unit) in zip(grid, drawn, strict=False):
        _draw_curve(axes, *curves[name], title, unit)
    for axes in grid[len(drawn) :]:
        axes.set_visible(False)
    save_figure(figure, path)


def _panels(captions: Sequence[str], size: tuple[int, int], legend: Sequence[str]) -> tuple[Figure, list[Axes]]:
    """A row of panels for images of (height, width), in several equal rows where there are more than `COLUMNS`, above their legend."""
    count = len(captions)
    lines = -(-count // COLUMNS)
    columns = -(-count // lines)
    captioned = 0.2 + CAPTION_LINE * max(caption.count("\n") + 1 for caption in captions)
    height = lines * (PANEL * size[0] / size[1] + captioned)
    explained = LEGEND_LINE * -(-len(legend) // columns)
    figure = Figure(figsize=(PANEL * columns, height + explained), dpi=DPI, layout="constrained")
    parts: Any = figure.subfigures(2, 1, height_ratios=[height, explained])  # an array where there are several
    upper, lower = parts
    grid = list(upper.subplots(lines, columns, squeeze=False).ravel())
    for axes in grid[count:]:
        axes.remove()
    _draw_legend(lower.subplots(), legend, columns)
    return figure, grid[:count]


def _legend_of(heatmaps: Iterable[np.ndarray], boxes: Iterable[np.ndarray]) -> list[str]:
    """Which signs the panels hold."""
    cut = any(np.isnan(heatmap).any() and not np.isnan(heatmap).all() for heatmap in heatmaps)
    return ["heat", *(["box"] if any(map(len, boxes)) else []), *(["view"] if cut else [])]


def _draw_legend(axes: Axes, legend: Sequence[str], columns: int) -> None:
    """Signs and what they mean, one per panel's width, in inches from the top left."""
    lines = -(-len(legend) // columns)
    axes.set(xlim=(0, PANEL * columns), ylim=(LEGEND_LINE * lines, 0), aspect="auto")
    axes.axis("off")
    for index, sign in enumerate(legend):
        left, top = PANEL * (index % columns) + 0.06, LEGEND_LINE * (index // columns) + 0.05
        across, down = 0.45, LEGEND_LINE - 0.1
        if sign == "heat":
            ramp = np.broadcast_to(np.linspace(0, 1, 64, dtype=np.float32), (2, 64))
            axes.imshow(
                np.full((2, 64), 0.55), cmap="gray", vmin=0, vmax=1, extent=(left, left + across, top + down, top)
            )
            axes.imshow(_red(ramp), extent=(left, left + across, top + down, top), interpolation="bilinear")
        elif sign == "box":
            _draw_box(axes, (left, top), across, down)
        else:
            axes.add_patch(Rectangle((left, top), across, down, fill=False, **_DOTTED))
        axes.text(left + across + 0.07, top + down / 2, _SIGNS[sign], fontsize=6.6, va="center")
    axes.set(xlim=(0, PANEL * columns), ylim=(LEGEND_LINE * lines, 0), aspect="auto")


def _caption(phrase: str, heatmap: Float[np.ndarray, "H W"]) -> str:
    """The phrase in lines, and how similar its best place is: each map has its own range, so that a red one may still be a weak one."""
    lines = textwrap.wrap(phrase, CAPTION_CHARACTERS)
    highest = [] if np.isnan(heatmap).all() else [f"highest similarity {np.nanmax(heatmap):.2f}"]
    return "\n".join(lines + highest)


def _red(heat: Float[np.ndarray, "H W"]) -> Float[np.ndarray, "H W 4"]:
    """Red of an opacity that grows with heat of 0..1."""
    overlay = np.empty((*heat.shape, 4), np.float32)
    overlay[..., :3] = RED
    overlay[..., 3] = STRONGEST * heat
    return overlay


def _draw_overlay(
    axes: Axes,
    image: UInt8[np.ndarray, "H W"],
    heatmap: Float[np.ndarray, "H W"],
    boxes: Float[np.ndarray, "K 4"],
    caption: str,
) -> None:
    draw_image(axes, image, caption)
    heat = np.clip(np.nan_to_num(normalise_heatmap(heatmap), nan=0.0), 0, 1)
    axes.imshow(_red(heat), interpolation="bilinear")
    _outline_view(axes, ~np.isnan(heatmap))
    for x, y, width, height in boxes.tolist():
        _draw_box(axes, (x - 0.5, y - 0.5), width, height)


def _draw_box(axes: Axes, corner: tuple[float, float], width: float, height: float) -> None:
    box = Rectangle(corner, width, height, fill=False, edgecolor="black", linewidth=1.2, joinstyle="miter")
    box.set_path_effects([Stroke(linewidth=2.2, foreground="white"), Normal()])
    axes.add_patch(box)


def _outline_view(axes: Axes, seen: np.ndarray) -> None:
    """A dotted line around the part of the image that the model saw, where it is not all of it."""
    if seen.all() or not seen.any():
        return
    rows, columns = np.flatnonzero(seen.any(axis=1)), np.flatnonzero(seen.any(axis=0))
    corner, width, height = (columns[0] - 0.5, rows[0] - 0.5), len(columns), len(rows)
    axes.add_patch(Rectangle(corner, width, height, fill=False, **_DOTTED))


def _draw_curve(axes: Axes, steps: Sequence[int], values: Sequence[float], title: str, unit: str) -> None:
    few = len(steps) < 8
    axes.plot(
        steps,
        values,
        color="tab:blue" if few else "0.75",
        linewidth=1.3 if few else 0.8,
        marker="o" if few else "",
        markersize=3,
    )
    if not few:
        axes.plot(steps, _smooth(np.asarray(values)), color="tab:blue", linewidth=1.3)
    axes.set_title(title, fontsize=8)
    axes.set_xlabel("step", fontsize=7)
    axes.set_ylabel(unit, fontsize=7)
    axes.tick_params(labelsize=6.5)
    axes.margins(x=0.02)
    axes.grid(alpha=0.25, linewidth=0.5)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _smooth(values: Float[np.ndarray, "N"]) -> Float[np.ndarray, "N"]:
    """Centred running mean over a twelfth of the run, narrower at the ends so that they are not bent."""
    index = np.arange(len(values))
    reach = np.minimum(max(1, len(values) // 24), np.minimum(index, index[::-1]))
    sums = np.concatenate([[0.0], np.cumsum(values)])
    return (sums[index + reach + 1] - sums[index - reach]) / (2 * reach + 1)


def _read_rows(metrics: Path) -> list[Mapping[str, Any]]:
    try:
        return [json.loads(line) for line in metrics.read_text().splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise UserError(
            f"{metrics}: cannot be read ({type(error).__name__}); expected the metrics.jsonl of a run"
        ) from error


def _curve(rows: Sequence[Mapping[str, Any]], name: str) -> tuple[list[int], list[float]]:
    """Steps and values at which a metric was logged as a number."""
    points = [(row["step"], row[name]) for row in rows if row.get(name) is not None]
    return [step for step, _ in points], [value for _, value in points]


def _findings_in_turn(images: Mapping[str, Sequence[Record]]) -> list[str]:
    """Image keys: the first image of each finding, then the second of each, and so on; a finding is that of the image's first phrase."""
    seen: dict[str, int] = {}
    ranked = []
    for key, records in images.items():
        category = records[0].category
        seen[category] = seen.get(category, -1) + 1
        ranked.append((seen[category], category, key))
    return [key for _, _, key in sorted(ranked)]
