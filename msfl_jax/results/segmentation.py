"""Segmentation as text and pictures: the four Dice variants beside a model that predicts nothing, and masks over radiographs."""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Bool, UInt8
from matplotlib.axes import Axes
from matplotlib.patheffects import Normal, Stroke

from input_pipeline.images import decode_gray
from input_pipeline.mask_batches import evaluation_views
from input_pipeline.reading import open_split
from msfl_jax.metrics import COUNTS, count_overlap, dice, dice_statistics
from msfl_jax.results.files import save_figure
from msfl_jax.results.panels import draw_image, panels
from msfl_jax.results.tables import format_table, interval, number
from msfl_jax.tasks.mask_predictions import predict_masks
from msfl_jax.tasks.segmentation import SegmentationResult, SegmentationRun, evaluation_spec

ROWS = {
    "dice_per_image_with_empty": "Dice per image, empty = 1",
    "dice_positive_only": "Dice of images with disease",
    "dice_pooled_foreground": "Dice pooled, foreground",
    "dice_pooled_with_background": "Dice pooled, with background",
}
PREDICTED, TRUE = (0.89, 0.05, 0.04), (0.10, 0.95, 0.35)
OPACITY = 0.45


def segmentation_table(result: SegmentationResult) -> str:
    """The four variants with intervals; "nothing predicted" is what a model without any pixel of foreground scores on the same images."""
    outcome, counts = result.outcome, result.predictions.counts
    silent = counts * np.asarray([0, 0, 1, 1])[None]  # by COUNTS: what is predicted, and so what is common, is empty
    nothing = {name: statistic(np.ones(len(counts))) for name, statistic in dice_statistics(silent).items()}
    rows = [
        {
            "": title,
            "ours": number(outcome.metrics[name].value),
            "95 % interval": interval(outcome.metrics[name]),
            "nothing predicted": number(nothing[name]),
        }
        for name, title in ROWS.items()
    ]
    options, positives = outcome.options, int((counts[:, COUNTS.index("target")] > 0).sum())
    title = (
        f"segmentation, {options['init']} encoder, {options['head']} head, {options['fraction']} % of the labels, "
        f"{outcome.split} ({options['lists']} lists), step {outcome.step}: {outcome.records:,} images, {positives:,} with disease"
    )
    return f"{title}\n\n{format_table(rows, ['', 'ours', '95 % interval', 'nothing predicted'])}"


def save_mask_overlay(
    image: UInt8[np.ndarray, "H W"],
    target: Bool[np.ndarray, "h w"],
    predicted: Bool[np.ndarray, "h w"],
    path: Path | str,
    *,
    caption: str = "",
) -> None:
    """Draws a radiograph as it is, with the true outline (green), and with the prediction filled (red) under the outline.

    Args:
      image: grey, of any resolution.
      target, predicted: masks of one size, which may be another than the image's; the image is then scaled to it.
      path: a PNG file; its folder is made.
      caption: of the third panel; "" gives the Dice.
    """
    height, width = target.shape
    image = np.asarray(cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA))
    figure = panels(3, image.shape)
    names = ("radiograph", "truth" if target.any() else "truth: no disease", caption or _caption(predicted, target))
    for axes, name in zip(figure.axes, names, strict=True):
        draw_image(axes, image, name)
    for axes in figure.axes[1:]:
        _outline(axes, target)
    filled = np.zeros((*predicted.shape, 4), np.float32)
    filled[..., :3] = PREDICTED
    filled[..., 3] = OPACITY * predicted
    figure.axes[2].imshow(filled, interpolation="nearest")
    save_figure(figure, path)


def save_mask_overlays(
    run: SegmentationRun, result: SegmentationResult, directory: Path | str, folder: Path | str, *, count: int
) -> list[Path]:
    """Draws some images of the evaluated split, most of them with disease (see `choose_images`).

    Args:
      run: the fine-tuned model.
      result: what it scored.
      directory: the build that it was evaluated on.
      folder: gets mask_00.png, mask_01.png, ...
      count: of images.

    Returns:
      The files.

    Raises:
      UserError, DataError: the build or an image in it is missing or damaged.
    """
    source = open_split(directory, result.outcome.split)
    chosen = [source[index] for index in choose_images(result.predictions.counts[:, COUNTS.index("target")] > 0, count)]
    spec, files = evaluation_spec(run.config, run.segmenter), []
    for number_, record in enumerate(chosen):
        views, masks = evaluation_views([record], spec)
        (predicted,) = predict_masks(run.segmenter, run.params, views, [masks[0].shape], fit=spec.fit)
        files.append(Path(folder) / f"mask_{number_:02d}.png")
        save_mask_overlay(decode_gray(record.image), masks[0], predicted, files[-1])
    return files


def choose_images(positive: Bool[np.ndarray, "N"], count: int) -> Sequence[int]:
    """Indices of `count` images: for three quarters, rounded up, the first with disease, then the first without; fewer where there are none left."""
    with_disease, without = np.flatnonzero(positive), np.flatnonzero(~positive)
    most = max(-(-3 * count // 4), count - len(without))
    first = with_disease[:most].tolist()
    return first + without[: count - len(first)].tolist()


def _caption(predicted: Bool[np.ndarray, "h w"], target: Bool[np.ndarray, "h w"]) -> str:
    common, ours, theirs, _ = count_overlap(predicted, target).tolist()
    if not ours and not theirs:
        return "predicted: no disease"
    return f"predicted, Dice {number(dice(predicted, target))}" if common or theirs else "predicted, a false alarm"


def _outline(axes: Axes, mask: Bool[np.ndarray, "h w"]) -> None:
    if not mask.any() or mask.all():
        return
    padded = np.pad(mask, 1).astype(np.float32)  # closes the outline where the mask touches the image's edge
    rows, columns = np.arange(padded.shape[0]) - 1, np.arange(padded.shape[1]) - 1
    lines = axes.contour(columns, rows, padded, levels=[0.5], colors=[TRUE], linewidths=0.9)
    lines.set_path_effects([Stroke(linewidth=1.7, foreground="black"), Normal()])
