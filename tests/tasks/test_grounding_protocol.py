"""Each protocol's steps against scipy, PyTorch and loops, and the published box transfer and margins digit by digit."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from scipy.ndimage import gaussian_filter

from input_pipeline.errors import UserError
from input_pipeline.images import evaluation_view
from input_pipeline.loader import grounding_records
from input_pipeline.records import Record
from msfl_jax.metrics import smoothing
from msfl_jax.tasks import grounding
from msfl_jax.tasks.grounding import evaluate_grounding, similarity_map
from msfl_jax.tasks.grounding_protocol import GroundingProtocol, known_protocol, transfer_boxes
from msfl_jax.tasks.grounding_result import COLUMNS

ALL = [
    GroundingProtocol(name, scaling, geometry)
    for name in ("biovil", "maco", "afloc")
    for scaling in ("minmax", "raw")[: 2 if name == "biovil" else 1]
    for geometry in ("own", "published")
]
every_protocol = pytest.mark.parametrize("protocol", ALL, ids=str)


def enlarge(grid, height, width):
    """PyTorch's bilinear interpolation."""
    tensor = torch.tensor(np.asarray(grid, np.float64))[None, None]
    return torch.nn.functional.interpolate(tensor, size=(height, width), mode="bilinear", align_corners=False)[0, 0]


def reference_pixels(grid, protocol, size):
    """A smoothed map in pixels as the published code makes it, and for the own geometry in the centre crop of the shorter side."""
    height, width = size
    frame = protocol.geometry == "published" and protocol.name != "biovil"
    if frame:
        heat = enlarge(grid, 224, 224).numpy()
    else:
        short = min(size)
        side = int(480 * short / 512) if protocol.geometry == "published" else short
        left, top = (width - side) // 2, (height - side) // 2
        margins = (left, width - side - left, top, height - side - top)
        heat = torch.nn.functional.pad(enlarge(grid, side, side), margins, value=float("nan")).numpy()
    if protocol.name == "afloc":
        rows, columns = np.flatnonzero(~np.isnan(heat).all(axis=1)), np.flatnonzero(~np.isnan(heat).all(axis=0))
        edge = round(len(rows) * 14 / 224)
        kept = np.full(heat.shape, np.nan)
        shown = np.ix_(rows[edge : len(rows) - edge], columns[edge : len(columns) - edge])
        kept[shown] = heat[shown]
        heat = kept
    return heat


def reference_scaled(heat, protocol):
    if protocol.scaling == "raw":
        return heat
    low, high = np.nanmin(heat), np.nanmax(heat)
    return (heat - low) / (high - low) * 2 - 1


def reference_counts(boxes, protocol, size):
    """Boxes drawn one by one; for MaCo and AFLoc moved into 224 pixels first, with everything rounded down."""
    height, width = size
    if protocol.geometry == "own" or protocol.name == "biovil":
        counts = np.zeros(size, int)
        for x, y, w, h in np.asarray(boxes).astype(int):
            counts[y : y + h, x : x + w] += 1
        return counts
    scale, counts = 224 / max(size), np.zeros((224, 224), int)
    right = (224 - int(width * scale)) // 2 if height > width else 0
    down = (224 - int(height * scale)) // 2 if width > height else 0
    for box in boxes:
        x, y, w, h = (float(value) * scale for value in box)
        x, y, w, h = int(x + right), int(y + down), int(w), int(h)
        counts[y : y + h, x : x + w] += 1
    return counts


@every_protocol
@pytest.mark.parametrize("size", [(61, 40), (40, 61), (50, 50)])
def test_each_protocols_heatmap_equals_numpy_scipy_and_torch(protocol, size):
    rng = np.random.default_rng(0)
    regions, phrase = (
        rng.normal(size=(36, 24)).astype(np.float32) * 3,
        rng.normal(size=(1, 24)).astype(np.float32) * 2,
    )
    found = np.asarray(similarity_map(regions, phrase, cosine=protocol.cosine))
    heat = protocol.heat(smoothing(found, 1.5), size, "crop")[0]

    a, b = regions.astype(np.float64), phrase[0].astype(np.float64)
    scale = np.linalg.norm(a, axis=1) * np.linalg.norm(b) if protocol.name == "biovil" else 1.0
    smooth = gaussian_filter((a @ b / scale).reshape(6, 6), 1.5, mode="reflect", truncate=4.0)
    expected = reference_pixels(smooth, protocol, size)
    assert_allclose(heat, expected, rtol=1e-5, atol=1e-5)
    assert_allclose(protocol.scaled(heat), reference_scaled(expected, protocol), rtol=1e-5, atol=1e-5)


@every_protocol
def test_saved_numbers_follow_from_the_maps_by_the_published_steps(planted_run, boxes_build, protocol, monkeypatch):
    maps = np.random.default_rng(0).normal(size=(20, 2, 4, 4)).astype(np.float32)
    monkeypatch.setattr(grounding, "_maps_of_records", lambda *_: maps)
    result = evaluate_grounding(planted_run, boxes_build, "test", protocol=protocol, sigma=0.7, replicates=0)
    for index, record in enumerate(grounding_records(boxes_build, "test")[:4]):
        assert_allclose(
            result.scores.maps[index, 0],
            gaussian_filter(maps[index, 0].astype(np.float64), 0.7, mode="reflect", truncate=4.0),
            atol=1e-6,
        )
        heat = reference_pixels(result.scores.maps[index, 0], protocol, record.original_size)
        counts = reference_counts(record.boxes, protocol, record.original_size)
        seen = ~np.isnan(heat)
        inside, outside = heat[seen & (counts == 1)], heat[seen & (counts == 0)]
        cnr = (inside.mean() - outside.mean()) / np.sqrt(inside.var() + outside.var())
        truth = (counts > 0) & seen if protocol.geometry == "published" else counts > 0
        scaled = reference_scaled(heat, protocol)
        ious = []
        for threshold in (0.1, 0.2, 0.3, 0.4, 0.5):
            predicted = np.nan_to_num(scaled, nan=-9) > threshold
            ious.append((predicted & truth).sum() / (predicted | truth).sum() if predicted.any() else 0.0)
        pointing = float(truth[np.unravel_index(np.nanargmax(heat), heat.shape)])
        values = dict(zip(COLUMNS, result.scores.values[index, 0], strict=True))
        assert_allclose(values["cnr"], cnr, rtol=1e-4)
        assert_allclose(values["absolute_cnr"], abs(cnr), rtol=1e-4)
        assert_allclose([values[f"iou_{t}"] for t in (0.1, 0.2, 0.3, 0.4, 0.5)], ious, atol=2e-3)  # a pixel at an edge
        assert_allclose(values["miou"], np.mean(ious), atol=2e-3)
        assert values["pointing_game"] == pointing


@pytest.mark.parametrize(
    ("box", "size", "expected", "pixels"),
    [
        ((100, 200, 300, 400), (3056, 2544), [26, 14, 21, 29], 609),
        ((100, 200, 300, 400), (2544, 3056), [7, 33, 21, 29], 609),
        ((0, 0, 3056, 2544), (2544, 3056), [0, 19, 223, 186], 41_478),
        ((10, 10, 5, 5), (2544, 3056), [0, 19, 0, 0], 0),
    ],
)
def test_box_transfer_of_the_published_code(box, size, expected, pixels):
    boxes = np.asarray([box], np.float32)
    assert_array_equal(transfer_boxes(boxes, size), [expected])
    for name in ("maco", "afloc"):
        counts = known_protocol(name, geometry="published").counts(boxes, size)
        assert counts.shape == (224, 224)
        assert counts.sum() == pixels
    *_, width, height = box
    assert known_protocol("maco").counts(boxes, size).sum() == width * height  # ours loses nothing


@given(st.integers(300, 900), st.integers(300, 900), st.tuples(*[st.integers(0, 290)] * 2, *[st.integers(1, 900)] * 2))
def test_transferred_boxes_are_the_originals_scaled_and_moved_to_within_two_pixels(height, width, box):
    found = transfer_boxes(np.asarray([box], np.float32), (height, width))[0]
    scale = 224 / max(height, width)
    moved = [(224 - width * scale) / 2, (224 - height * scale) / 2, 0, 0]
    assert (np.abs(found - np.asarray(box) * scale - moved) < 2).all()


def test_biovil_sees_480_of_512_parts_of_the_shorter_side_and_leaves_margins():
    heat = known_protocol("biovil", geometry="published").heat(np.ones((15, 15), np.float32), (3056, 2544), "squash")
    rows, columns = np.flatnonzero(np.isfinite(heat).any(axis=1)), np.flatnonzero(np.isfinite(heat).any(axis=0))
    assert (len(rows), len(columns)) == (2385, 2385)
    assert (rows[0], 3056 - 1 - rows[-1]) == (335, 336)  # 335.5 each
    assert (columns[0], 2544 - 1 - columns[-1]) == (79, 80)  # 79.5 each


def test_views_of_the_published_code_are_a_smaller_crop_or_a_padded_square():
    image = np.random.default_rng(0).integers(1, 256, (64, 96), dtype=np.uint8)
    cut, fit = known_protocol("biovil", geometry="published").view(image, "squash")
    assert_array_equal(cut, image[2:62, 18:78])
    assert fit == "crop"
    for name in ("maco", "afloc"):
        padded, fit = known_protocol(name, geometry="published").view(image, "crop")
        view = evaluation_view(padded, 96, fit)
        assert_array_equal(view[16:80], image)
        assert not view[:16].any()
        assert not view[80:].any()
    for name in ("biovil", "maco", "afloc"):
        assert known_protocol(name).view(image, "squash")[1] == "squash"


def record(phrase, boxes, category="Edema", image="0" * 32):
    keys = {"study_key": "", "patient_key": "", "image_key": image}
    boxes = np.asarray(boxes, np.float32)
    return Record(b"", (8, 8), (phrase,), np.zeros(0, np.float32), "", **keys, boxes=boxes, category=category)


def test_maco_and_afloc_merge_the_boxes_of_an_images_phrase_and_drop_where_they_overlap():
    rows = [
        record("Left opacity.", [[0, 0, 4, 4]]),
        record("left opacity.", [[2, 2, 4, 4]], category="Pneumonia"),
        record("left opacity.", [[2, 2, 4, 4]], image="1" * 32),
        record("right opacity.", [[1, 1, 2, 2]]),
    ]
    assert known_protocol("biovil").merged(rows) == rows
    for name in ("maco", "afloc"):
        protocol = known_protocol(name)
        merged = protocol.merged(rows)
        assert [(len(one.boxes), one.category) for one in merged] == [(2, "Edema"), (1, "Edema"), (1, "Edema")]
        counts = protocol.counts(merged[0].boxes, (8, 8))
        assert [int((counts == number).sum()) for number in (0, 1, 2)] == [36, 24, 4]


def test_the_scaling_and_a_published_geometry_belong_to_the_name():
    assert str(known_protocol("biovil")) == "biovil/minmax"
    assert str(known_protocol("biovil", "raw")) == "biovil/raw"
    assert str(known_protocol("maco", geometry="published")) == "maco/minmax/published"
    assert [one.variant for one in ALL[:4]] == ["biovil", "biovil-published", "biovil-raw", "biovil-raw-published"]
    assert known_protocol("afloc").explanation.startswith("heat scaled to -1..1 per map")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("biovll",), "did you mean 'biovil'"),
        (("biovil", "minmaks"), "did you mean 'minmax'"),
        (("biovil", "raw", "publish"), "did you mean 'published'"),
        (("maco", "raw"), "raw products; take protocol 'biovil' or scaling 'minmax'"),
    ],
)
def test_unknown_words_and_raw_products_are_refused_in_one_line(words, message):
    with pytest.raises(UserError, match=message) as error:
        known_protocol(*words)
    assert "\n" not in str(error.value)
