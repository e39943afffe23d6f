"""Heat-maps against loops and published oracle values, and a planted model that points at exactly the right squares."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from input_pipeline.errors import DataError, UserError
from input_pipeline.images import decode_gray, evaluation_view
from input_pipeline.loader import grounding_records
from msfl_jax.metrics import contrast_to_noise, iou_at, mean_iou, smoothing
from msfl_jax.model import Model
from msfl_jax.tasks.grounding import (
    choose_other_phrases,
    evaluate_grounding,
    ground,
    ground_phrases,
    similarity_map,
    with_shifts,
)
from msfl_jax.tasks.grounding_protocol import count_boxes, scale_boxes, to_pixels
from msfl_jax.tasks.grounding_result import COLUMNS, PhraseScores, summarise
from msfl_jax.tasks.run import encode_regions

sizes = st.integers(3, 40)


class WordlessModel(Model):
    """Finds no sentence in any text."""

    def encode_report(self, params, token_ids, sentence_ids):
        rows, sizes = len(token_ids), self.config.model
        nothing = jnp.zeros((rows, 2, sizes.region_width)), jnp.zeros((rows, 2), bool)
        return jnp.zeros((rows, sizes.embedding_width)), *nothing


def phrase_scores(values, categories):
    """Scores of as many phrases, each of its own image and patient."""
    count = len(values)
    keys = np.arange(count, dtype=np.uint32)
    return PhraseScores(
        values=np.asarray(values, np.float32),
        unpredicted=np.zeros((count, 2), np.uint8),
        box_share=np.full(count, 0.1),
        category=np.asarray(categories),
        patient_key=keys,
        image_key=keys,
        phrase_key=keys,
        maps=np.zeros((count, 2, 2, 2)),
    )


@pytest.mark.parametrize("cosine", [True, False])
def test_similarity_maps_equal_a_loop_over_patches(cosine):
    rng = np.random.default_rng(0)
    regions, phrases = rng.normal(size=(2, 9, 5)).astype(np.float32), rng.normal(size=(2, 3, 5)).astype(np.float32)
    found = np.asarray(similarity_map(regions, phrases, cosine=cosine))
    assert found.shape == (2, 3, 3, 3)
    for image, phrase, row, column in np.ndindex(2, 3, 3, 3):
        a, b = regions[image, 3 * row + column], phrases[image, phrase]
        scale = np.linalg.norm(a) * np.linalg.norm(b) if cosine else 1.0
        assert_allclose(found[image, phrase, row, column], a @ b / scale, atol=1e-5)


def test_regions_that_are_no_square_are_refused():
    with pytest.raises(ValueError, match="6 regions"):
        similarity_map(np.ones((6, 2)), np.ones((1, 2)))


def enlarge_in_a_loop(grid, size, rectangle):
    """Bilinear value at the centre of each pixel of the view, edges repeated; NaN outside the view."""
    top, left, height, width = rectangle
    pixels = np.full(size, np.nan)
    for y, x in np.ndindex(*size):
        if not (top <= y < top + height and left <= x < left + width):
            continue
        v = np.clip((y - top + 0.5) / height * len(grid) - 0.5, 0, len(grid) - 1)
        u = np.clip((x - left + 0.5) / width * len(grid) - 0.5, 0, len(grid) - 1)
        v0, u0 = int(v), int(u)
        v1, u1 = min(v0 + 1, len(grid) - 1), min(u0 + 1, len(grid) - 1)
        upper = grid[v0, u0] * (1 - (u - u0)) + grid[v0, u1] * (u - u0)
        lower = grid[v1, u0] * (1 - (u - u0)) + grid[v1, u1] * (u - u0)
        pixels[y, x] = upper * (1 - (v - v0)) + lower * (v - v0)
    return pixels


@given(sizes, sizes, st.sampled_from(["crop", "pad", "squash"]))
def test_maps_in_pixels_equal_a_loop_and_are_nan_outside_the_view(height, width, fit):
    grid = np.random.default_rng(height * 41 + width).normal(size=(3, 3))
    short, long = min(height, width), max(height, width)
    side = short if fit == "crop" else long
    top, left = (height - side) // 2, (width - side) // 2
    rectangle = (0, 0, height, width) if fit == "squash" else (top, left, side, side)
    expected = enlarge_in_a_loop(grid, (height, width), rectangle)
    found = to_pixels(grid, (height, width), fit=fit)
    assert_allclose(found, expected, atol=1e-6)  # weights are float32
    seen = short * short if fit == "crop" else height * width
    assert np.isfinite(found).sum() == seen


def test_afloc_leaves_fourteen_of_224_pixels_out_on_each_side():
    found = to_pixels(np.ones((7, 7)), (224, 224), margin=1 / 16)
    assert np.isfinite(found[14:210, 14:210]).all()
    assert np.isfinite(found).sum() == 196 * 196


def test_a_padded_view_keeps_its_margin_where_the_image_lies():
    found = to_pixels(np.ones((2, 2)), (32, 16), fit="pad", margin=1 / 16)
    assert np.isfinite(found[2:30]).all()  # left and right margins are in the padding
    assert np.isnan(found[:2]).all()


def test_grounding_oracle_of_the_published_code():
    heat = np.arange(16.0).reshape(4, 4)
    counts = count_boxes(np.asarray([[2, 2, 2, 2]], np.float32), (4, 4))
    pixels = to_pixels(heat, (4, 4))
    np.testing.assert_array_equal(pixels, heat)
    scaled = 2 * heat / 15 - 1
    found = [iou_at(scaled, counts, threshold) for threshold in (0.1, 0.2, 0.3, 0.4, 0.5)]
    assert_allclose(found, [0.571429, 0.666667, 0.666667, 0.5, 1 / 3], atol=5e-7)
    assert_allclose(mean_iou(scaled, counts), 0.547619, atol=5e-7)
    assert_allclose(contrast_to_noise(pixels, counts), 1.488646, atol=5e-7)
    twice = count_boxes(np.asarray([[2, 2, 2, 2], [3, 3, 1, 1]], np.float32), (4, 4))
    assert_allclose(contrast_to_noise(pixels, twice), 1.349151, atol=5e-7)


def test_delta_on_the_patch_grid_spreads_as_in_the_published_code():
    delta = np.zeros((14, 14))
    delta[7, 7] = 1
    assert_allclose(smoothing(delta, 1.5)[7, 3:8], [0.002021, 0.009573, 0.029081, 0.056642, 0.070737], atol=5e-7)


@given(st.lists(st.tuples(*[st.integers(-4, 20)] * 2, *[st.integers(1, 12)] * 2), min_size=1, max_size=4))
def test_boxes_are_counted_per_pixel(boxes):
    found = count_boxes(np.asarray(boxes, np.float32), (15, 13))
    for y, x in np.ndindex(15, 13):
        assert found[y, x] == sum(bx <= x < bx + w and by <= y < by + h for bx, by, w, h in boxes)


def test_boxes_thinner_than_a_pixel_keep_one_and_the_whole_image_keeps_all():
    assert count_boxes(np.asarray([[3.2, 5.1, 0.2, 0.1]], np.float32), (8, 8)).sum() == 1
    assert (count_boxes(np.asarray([[0, 0, 3056, 2544]], np.float32), (2544, 3056)) == 1).all()


def test_boxes_scale_with_the_image():
    found = scale_boxes(np.asarray([[10, 20, 30, 40]], np.float32), (200, 100), (100, 25))
    np.testing.assert_array_equal(found, [[2.5, 10, 7.5, 20]])


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from("xyz"), st.integers(0, 3)), min_size=1, max_size=12))
def test_the_other_phrase_is_never_the_own_one(rows):
    phrases, categories, patients = ([str(value) for value in column] for column in zip(*rows, strict=True))
    chosen = choose_other_phrases(phrases, categories, patients, seed=3)
    np.testing.assert_array_equal(chosen, choose_other_phrases(phrases, categories, patients, seed=3))
    for row, other in enumerate(chosen):
        different = [r for r in range(len(rows)) if phrases[r] != phrases[row]]
        if not different:
            assert other == -1
            continue
        assert other in different
        stranger = [r for r in different if patients[r] != patients[row]]
        assert not stranger or other in stranger
        best = [r for r in stranger if categories[r] != categories[row]]
        assert not best or other in best


def test_phrases_that_differ_in_case_and_spaces_are_the_same_phrase():
    assert (choose_other_phrases(["Left  effusion", "left effusion"], ["a", "b"], ["1", "2"]) == -1).all()


@pytest.mark.parametrize("protocol", ["biovil", "maco", "afloc"])
def test_a_model_that_sees_the_findings_points_at_all_of_them(planted_run, boxes_build, protocol):
    result = evaluate_grounding(
        planted_run, boxes_build, "test", protocol=protocol, sigma=0.0, batch_size=5, replicates=20
    )
    assert result.metrics["pointing_game"].value == 1.0
    assert result.metrics["cnr"].value > 2.0
    assert result.metrics["cnr_shuffled_phrases"].value < 0.5
    assert result.metrics["cnr_over_shuffled"].low > 1.0
    assert (result.records, result.images, result.patients, result.step) == (20, 16, 12, 7)
    # AFLoc's margin takes a quarter of the squares that touch the crop's edge, which are half of them.
    assert_allclose(
        result.pointing_chance, 16**2 / 64**2 if protocol != "afloc" else (16 * 16 + 12 * 16) / 2 / 56**2, rtol=1e-6
    )
    assert [(category.name, category.phrases) for category in result.categories] == [("Edema", 8), ("Pneumonia", 12)]


def test_values_of_each_phrase_equal_its_own_heatmap(planted_run, boxes_build):
    result = evaluate_grounding(planted_run, boxes_build, "test", sigma=0.7, replicates=0)
    record = grounding_records(boxes_build, "test")[3]
    heat = to_pixels(result.scores.maps[3, 0], record.original_size)
    inside = count_boxes(record.boxes, record.original_size) > 0
    assert np.isnan(heat).sum() == 64 * 32  # left and right of the centre crop of 64 x 96
    assert_allclose(result.scores.values[3, 0, 0], contrast_to_noise(heat, inside), rtol=1e-5)
    image = decode_gray(record.image)
    assert image.shape == (32, 48)
    stored = ground(planted_run, image, record.sentences[0], sigma=0.7)
    assert stored.shape == image.shape
    ratio = [heat[1::2, 1::2][:, 12:36], stored[:, 12:36]]
    assert np.corrcoef(ratio[0][4:-4, 4:-4].ravel(), ratio[1][:, :][4:-4, 4:-4].ravel())[0, 1] > 0.98


def test_saved_scores_give_the_same_result(planted_run, boxes_build, tmp_path):
    result = evaluate_grounding(planted_run, boxes_build, "test", replicates=20)
    result.scores.save(tmp_path / "grounding.npz")
    again = summarise(
        PhraseScores.load(tmp_path / "grounding.npz"), protocol="biovil", split="test", step=7, replicates=20
    )
    assert again.metrics == result.metrics
    assert again.category_average == result.category_average
    np.savez(tmp_path / "other.npz", values=np.zeros(2))
    with pytest.raises(UserError, match="missing"):
        PhraseScores.load(tmp_path / "other.npz")


def test_means_are_over_phrases_or_over_categories():
    values = np.zeros((3, 2, len(COLUMNS)), np.float32)
    values[:, 0, 0] = [1.0, 2.0, 6.0]
    values[2, 1, 0] = np.nan
    scores = phrase_scores(values, ["a", "a", "b"])
    result = summarise(scores, protocol="biovil", split="test", step=0, replicates=0)
    assert result.metrics["cnr"].value == 3.0
    assert result.category_average["cnr"].value == (1.5 + 6.0) / 2
    assert result.metrics["cnr_over_shuffled"].value == 1.5  # of the two phrases that have both
    assert np.isnan(result.metrics["cnr"].low)


def test_ground_gives_one_map_per_phrase_and_refuses_wordless_ones(planted_run):
    image = np.zeros((64, 96), np.uint8)
    maps = ground_phrases(planted_run, image, ["Edema is seen.", "There is pneumonia."])
    assert maps.shape == (2, 64, 96)
    no_unit = dataclasses.replace(planted_run, model=WordlessModel(planted_run.config, planted_run.model.vocab_size))
    with pytest.raises(UserError, match="phrase 1 of 1 has no word"):
        ground(no_unit, image, "...")


def test_two_looks_per_axis_put_each_region_where_its_centre_lies(planted_run):
    """Cell (i, j) of the fine grid equals the region of a patch cut out around that cell's centre."""
    image = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 1)).astype(np.uint8)
    found = np.asarray(encode_regions(with_shifts(planted_run, 2), image, batch_size=2))[:2].reshape(2, 8, 8, -1)
    padded = np.pad(image[..., 0].astype(float), ((0, 0), (4, 4), (4, 4)), mode="edge")
    for i, j in np.ndindex(8, 8):
        top, left = (
            4 * i + 2,
            4 * j + 2,
        )  # in the padded image: centre 4 i + 2, half a patch of 8 before it, 4 of padding
        level = padded[:, top : top + 8, left : left + 8].mean(axis=(1, 2))
        assert_allclose(found[:, i, j, 0], np.maximum(1 - np.abs(level - 110) / 50, 0), atol=1e-5)


def test_two_looks_per_axis_find_a_square_between_patches(planted_run):
    image = np.zeros((32, 32), np.uint8)
    image[10:18, 6:14] = 230  # centre (14, 10): patches of 8 are centred at 4, 12, 20 and 28, fine cells at 14 and 10
    fine, coarse = (ground(with_shifts(planted_run, n), image, "Edema.", sigma=0.0) for n in (2, 1))
    hottest = np.argwhere(fine == fine.max()).mean(axis=0) + 0.5
    assert_allclose(hottest, [14, 10], atol=1.0)
    assert fine.max() > coarse.max()


def test_a_build_without_boxes_is_refused(planted_run, labelled_build):
    with pytest.raises(DataError, match="boxes"):
        evaluate_grounding(planted_run, labelled_build, "test")


def test_the_view_that_is_grounded_is_the_one_that_is_evaluated(planted_run, boxes_build):
    record = grounding_records(boxes_build, "test")[0]
    image = decode_gray(record.image)
    view = evaluation_view(image, 32)
    whole, cropped = ground(planted_run, image, "Edema."), ground(planted_run, view, "Edema.")
    assert_allclose(whole[:, 8:40], cropped, atol=1e-5)
