"""Figures as PNG files: heat-maps of sentences over radiographs, and training curves. Nothing here touches matplotlib's global state."""

import json
import textwrap
from collections.abc import Mapping, Sequence
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
from msfl_jax.results.files import save_figure as _save
from msfl_jax.tasks.grounding import ground_phrases
from msfl_jax.tasks.grounding_protocol import GroundingProtocol, scale_boxes
from msfl_jax.tasks.run import Run

RED = (0.89, 0.05, 0.04)
STRONGEST = 0.72  # opacity of the hottest pixel: the anatomy must stay visible below it
PANEL = 2.3  # inches
DPI = 200
CAPTION_CHARACTERS = 38
COLUMNS = 4

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
    figure = _panels(1, image.shape)
    _draw_overlay(figure.axes[0], image, heatmap, boxes, phrase)
    _save(figure, path)


def save_report_overlays(
    image: UInt8[np.ndarray, "H W"],
    heatmaps: Float[np.ndarray, "S H W"],
    phrases: Sequence[str],
    path: Path | str,
    *,
    boxes: Sequence[Float[np.ndarray, "K 4"]] = (),
) -> None:
    """Draws the radiograph as it is, and beside it one panel per sentence.

    Args:
      image: grey.
      heatmaps: one per sentence, see `save_overlay`.
      phrases: the sentences.
      path: a PNG file; its folder is made.
      boxes: of each sentence; empty where none is known.
    """
    figure = _panels(1 + len(phrases), image.shape)
    _draw_image(figure.axes[0], image, "radiograph")
    none = np.zeros((0, 4), np.float32)
    for index, (axes, heatmap, phrase) in enumerate(zip(figure.axes[1:], heatmaps, phrases, strict=True)):
        _draw_overlay(axes, image, heatmap, boxes[index] if boxes else none, phrase)
    _save(figure, path)


def save_record_overlays(
    run: Run,
    records: Sequence[Record],
    path: Path | str,
    *,
    protocol: GroundingProtocol | str | None = None,
    sigma: float | None = None,
) -> None:
    """Grounds and draws every sentence of the records of one image.

    Args:
      run: the model.
      records: the phrases of one image with their boxes, or a single record with a report.
      path: a PNG file.
      protocol, sigma: of the heat-maps; None takes the run's own.

    Raises:
      DataError: the image is damaged.
    """
    image = decode_gray(records[0].image)
    pairs = [(sentence, record) for record in records for sentence in record.sentences]
    heatmaps = ground_phrases(run, image, [sentence for sentence, _ in pairs], protocol=protocol, sigma=sigma)
    boxes = [scale_boxes(record.boxes, record.original_size, image.shape) for _, record in pairs]
    save_report_overlays(image, heatmaps, [sentence for sentence, _ in pairs], path, boxes=boxes)


def save_phrase_overlays(
    run: Run,
    directory: Path | str,
    split: str,
    folder: Path | str,
    *,
    count: int,
    protocol: GroundingProtocol | str | None = None,
    sigma: float | None = None,
) -> list[Path]:
    """Draws the phrases of some images of a build with boxes, findings in turn.

    Args:
      run: the model.
      directory: a build with boxes.
      split: of the build.
      folder: gets overlay_00.png, overlay_01.png, ...
      count: of images.
      protocol, sigma: of the heat-maps; None takes the run's own.

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
        save_record_overlays(run, images[key], files[-1], protocol=protocol, sigma=sigma)
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
    _save(figure, path)


def _panels(count: int, size: tuple[int, int]) -> Figure:
    """A row of panels for images of (height, width), in several equal rows where there are more than `COLUMNS`."""
    lines = -(-count // COLUMNS)
    columns = -(-count // lines)
    height = PANEL * size[0] / size[1] + 0.55
    figure = Figure(figsize=(PANEL * columns, height * lines), dpi=DPI, layout="constrained")
    for axes in figure.subplots(lines, columns, squeeze=False).ravel()[count:]:
        axes.remove()
    return figure


def _draw_image(axes: Axes, image: UInt8[np.ndarray, "H W"], caption: str) -> None:
    axes.imshow(image, cmap="gray", vmin=0, vmax=255, interpolation="bilinear")
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)
    label = axes.set_xlabel(textwrap.fill(caption, CAPTION_CHARACTERS), fontsize=7.2, labelpad=4)
    label.set_parse_math(False)  # a report's dollar sign begins no formula


def _draw_overlay(
    axes: Axes,
    image: UInt8[np.ndarray, "H W"],
    heatmap: Float[np.ndarray, "H W"],
    boxes: Float[np.ndarray, "K 4"],
    phrase: str,
) -> None:
    _draw_image(axes, image, phrase)
    heat = np.clip(np.nan_to_num(normalise_heatmap(heatmap), nan=0.0), 0, 1)
    overlay = np.empty((*heat.shape, 4), np.float32)
    overlay[..., :3] = RED
    overlay[..., 3] = STRONGEST * heat
    axes.imshow(overlay, interpolation="bilinear")
    _outline_view(axes, ~np.isnan(heatmap))
    for x, y, width, height in boxes:
        box = Rectangle((x - 0.5, y - 0.5), width, height, fill=False, edgecolor="black", linewidth=1.2)
        box.set_path_effects([Stroke(linewidth=2.2, foreground="white"), Normal()])
        axes.add_patch(box)


def _outline_view(axes: Axes, seen: np.ndarray) -> None:
    """A dotted line around the part of the image that the model saw, where it is not all of it."""
    if seen.all() or not seen.any():
        return
    rows, columns = np.flatnonzero(seen.any(axis=1)), np.flatnonzero(seen.any(axis=0))
    corner, width, height = (columns[0] - 0.5, rows[0] - 0.5), len(columns), len(rows)
    axes.add_patch(Rectangle(corner, width, height, fill=False, edgecolor="0.75", linewidth=0.8, linestyle=(0, (1, 2))))


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
