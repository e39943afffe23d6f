"""Figures are written, show what they should, and leave matplotlib's global state alone."""

import json
import sys

import cv2
import numpy as np
import pytest
from numpy.testing import assert_allclose

from input_pipeline.errors import UserError
from msfl_jax.results.figures import LEGEND_LINE, save_curves, save_overlay, save_report_overlays
from msfl_jax.results.panels import DPI

NO_BOXES = np.zeros((0, 4), np.float32)


def colours(path):
    """RGB pixels of a PNG file."""
    return cv2.imread(str(path))[..., ::-1].astype(int)


def panels(path, *, lines=1):
    """Pixels above the legend, which has a red of its own."""
    return colours(path)[: -int(lines * LEGEND_LINE * DPI) - 8]


def reddish(pixels):
    return (pixels[..., 0] > pixels[..., 1] + 40) & (pixels[..., 0] > pixels[..., 2] + 40)


def picture(path):
    """The part of a figure of a grey radiograph that shows it."""
    pixels = colours(path)
    grey = (pixels == 128).all(axis=-1)
    rows, columns = (np.flatnonzero(grey.mean(axis=axis) > 0.2) for axis in (1, 0))
    return pixels[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]


@pytest.fixture
def image():
    return np.full((40, 60), 128, np.uint8)


def test_heat_is_red_where_it_is_high_and_grey_where_it_is_low(image, tmp_path):
    heat = np.zeros((40, 60))
    heat[:, 30:] = 1.0
    save_overlay(image, heat, NO_BOXES, "right half", tmp_path / "deep" / "one.png")
    pixels = colours(tmp_path / "deep" / "one.png")
    body = pixels[20 : int(pixels.shape[1] * 0.6)]  # above the caption
    middle = body.shape[1] // 2
    assert reddish(body[:, middle + 20 : -20]).mean() > 0.95
    assert not reddish(body[:, 20 : middle - 20]).any()


def test_the_red_is_the_deeper_the_higher_the_similarity(image, tmp_path):
    save_overlay(image, np.tile(np.linspace(0, 1, 60), (40, 1)), NO_BOXES, "ramp", tmp_path / "ramp.png")
    pixels = colours(tmp_path / "ramp.png")
    row = pixels[60]
    redness = row[:, 0] - row[:, 1]
    columns = np.linspace(0.55, 0.95, 5) * pixels.shape[1]
    assert (np.diff(redness[columns.astype(int)]) > 10).all()


def test_boxes_are_black_with_a_white_halo_also_on_black(tmp_path):
    black = np.zeros((60, 60), np.uint8)
    options = {"heatmap": np.zeros((60, 60)), "phrase": ""}
    save_overlay(black, boxes=NO_BOXES, path=tmp_path / "without.png", **options)
    save_overlay(black, boxes=np.asarray([[10, 10, 30, 20]], np.float32), path=tmp_path / "with.png", **options)
    white = [(colours(tmp_path / f"{name}.png") > 200).all(axis=-1).mean() for name in ("without", "with")]
    assert white[1] > white[0] + 0.005


def test_the_line_of_a_box_is_black_and_where_the_box_is(tmp_path):
    grey = np.full((60, 60), 128, np.uint8)
    options = {"heatmap": np.zeros((60, 60)), "phrase": ""}
    save_overlay(grey, boxes=NO_BOXES, path=tmp_path / "without.png", **options)
    save_overlay(grey, boxes=np.asarray([[10, 10, 30, 20]], np.float32), path=tmp_path / "with.png", **options)
    assert not (picture(tmp_path / "without.png") < 40).any()
    marked = picture(tmp_path / "with.png")
    places = np.argwhere((marked < 40).all(axis=-1)) / marked.shape[:2]
    assert_allclose(places.min(axis=0), [10 / 60, 10 / 60], atol=0.02)
    assert_allclose(places.max(axis=0), [30 / 60, 40 / 60], atol=0.02)
    inside = marked[int(0.25 * len(marked)) : int(0.4 * len(marked)), int(0.25 * len(marked)) : int(0.6 * len(marked))]
    assert (inside == 128).all()  # a line and no area


def test_what_the_model_did_not_see_stays_grey(image, tmp_path):
    heat = np.full((40, 60), np.nan)
    heat[:, 10:50] = np.linspace(0, 1, 40)
    save_overlay(image, heat, NO_BOXES, "crop", tmp_path / "crop.png")
    pixels = panels(tmp_path / "crop.png", lines=2)
    assert reddish(pixels).any()
    assert not reddish(pixels[:, : pixels.shape[1] // 8]).any()
    assert not reddish(pixels[:, -pixels.shape[1] // 8 :]).any()


@pytest.mark.parametrize("heat", [0.0, np.nan])
def test_a_map_without_contrast_draws_no_red(image, tmp_path, heat):
    save_overlay(image, np.full(image.shape, heat), NO_BOXES, "none", tmp_path / "none.png")
    assert not reddish(panels(tmp_path / "none.png")).any()


@pytest.mark.parametrize("sentences", [1, 3, 4, 9])
def test_each_sentence_has_its_panel_beside_the_radiograph(image, tmp_path, sentences):
    phrases = ["It cost $5 to read the {left} lung, or $6_7^.", *["A longer sentence. " * 6] * (sentences - 1)]
    heat = np.tile(np.linspace(0, 1, 60), (sentences, 40, 1))
    save_report_overlays(image, heat, phrases, tmp_path / "report.png")
    red = reddish(panels(tmp_path / "report.png")).any(axis=0)
    starts = np.flatnonzero(np.diff(np.concatenate([[0], red.astype(int)])) == 1)
    rows = -(-(sentences + 1) // 4)
    assert len(starts) == min(sentences, -(-(sentences + 1) // rows))


def test_the_legend_shows_the_red_and_only_the_signs_that_are_used(image, tmp_path):
    half = np.tile(np.linspace(0, 1, 60), (40, 1))
    cut = np.where(np.arange(60) < 10, np.nan, half)
    box = np.asarray([[10, 10, 30, 20]], np.float32)
    sizes = {}
    for name, heat, boxes in (("red", half, NO_BOXES), ("box", half, box), ("all", cut, box)):
        save_overlay(image, heat, boxes, "x", tmp_path / f"{name}.png")
        pixels = colours(tmp_path / f"{name}.png")
        sizes[name] = len(pixels)
        lines = {"red": 1, "box": 2, "all": 3}[name]
        legend = pixels[-int(lines * LEGEND_LINE * DPI) :]
        assert reddish(legend[: len(legend) // lines]).any()
    line = LEGEND_LINE * DPI
    assert sizes["red"] + 0.8 * line < sizes["box"] < sizes["all"] - 0.8 * line


@pytest.mark.parametrize("words", [3, 60])
def test_no_caption_is_cut_off(image, tmp_path, words):
    """White is left on every edge of the file, however long the sentence."""
    phrases = ["opacification " * words, "short"]
    heat = np.tile(np.linspace(0, 1, 60), (2, 40, 1))
    save_report_overlays(image, heat, phrases, tmp_path / "long.png")
    pixels = colours(tmp_path / "long.png")
    for edge in (pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]):
        assert (edge == 255).all()
    panel = reddish(panels(tmp_path / "long.png"))
    assert panel.any(axis=1).sum() > 300  # the pictures keep their size


def test_global_state_of_matplotlib_is_untouched(image, tmp_path):
    import matplotlib as mpl

    before = dict(mpl.rcParams)
    save_overlay(image, np.zeros(image.shape), NO_BOXES, "x", tmp_path / "one.png")
    assert dict(mpl.rcParams) == before
    figures = sys.modules.get("matplotlib.pyplot")
    assert figures is None or not figures.get_fignums()


def test_curves_of_what_was_logged_are_drawn(tmp_path):
    rows = [{"step": s, "loss/total": 3 / s, "loss/global_alignment": None if s == 4 else 1 / s} for s in range(1, 40)]
    rows.append({"step": 40, "zero_shot/mean_auc": 0.7})
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    save_curves(tmp_path / "metrics.jsonl", tmp_path / "curves.png")
    assert (colours(tmp_path / "curves.png").std(axis=(0, 1)) > 5).all()


def test_a_file_without_objectives_is_one_line(tmp_path):
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "other.jsonl").write_text("not json\n")
    for name in ("empty", "other", "absent"):
        with pytest.raises(UserError, match=name):
            save_curves(tmp_path / f"{name}.jsonl", tmp_path / "curves.png")
    assert not (tmp_path / "curves.png").exists()
