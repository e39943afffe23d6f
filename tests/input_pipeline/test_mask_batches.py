"""Image and mask stay aligned: images are drawn so that what is bright is exactly the mask."""

import dataclasses

import cv2
import numpy as np
import pytest
from numpy.testing import assert_array_equal

from input_pipeline import images
from input_pipeline.build import build
from input_pipeline.errors import DataError
from input_pipeline.labelled_batches import view_spec
from input_pipeline.mask_batches import Balanced, evaluation_views, mask_batches, mask_like, require_masks
from input_pipeline.reading import open_split
from input_pipeline.sources import ImageRow, ImagesOnly, Scan

STUDIES = 12
MOVED = {"flip": True, "rotation": 25.0, "shift": 0.2, "scale": (0.4, 1.0), "zoom": (0.8, 1.3), "placement": "anywhere"}


def truth(number):
    """A rectangle that touches no symmetry of its image; every fourth has none."""
    height, width = (96, 64) if number % 2 else (72, 120)
    mask = np.zeros((height, width), bool)
    if number % 4 != 3:
        mask[8 + number : 30 + 2 * number, 10 + number : 28 + number] = True
    return mask


@dataclasses.dataclass(frozen=True)
class Squares(ImagesOnly):
    masks: bool = True
    name: str = "squares"

    def label_names(self):
        return ("Square",)

    def settings(self):
        return {}

    def files(self, row):
        return ()

    def scan(self):
        names = [f"{number:02d}" for number in range(STUDIES)]
        return Scan({"train": [ImageRow(n, n, n, "", "", (float(truth(int(n)).any()),)) for n in names]})

    def image(self, row):
        return cv2.imencode(".png", truth(int(row.study)).astype(np.uint8) * 255)[1].tobytes()

    def mask(self, row, height, width):
        return truth(int(row.study)) if self.masks else None


@pytest.fixture(scope="module")
def squares(tmp_path_factory):
    path = tmp_path_factory.mktemp("squares") / "build"
    build(Squares(), path, short_side=48, quality=100, workers=1, progress=False)
    return path


def rows_of(directory, spec, steps=3, batch_size=STUDIES, **options):
    source = require_masks(open_split(directory, "train"), directory, "train")
    with mask_batches(source, spec, batch_size=batch_size, seed=5, **options) as batches:
        return [next(batches) for _ in range(steps)]


@pytest.mark.parametrize("fit", ["pad", "crop", "squash"])
@pytest.mark.parametrize("moved", [{}, {"flip": True}, MOVED])
def test_the_mask_is_where_the_image_is_bright(squares, fit, moved):
    spec = view_spec(40, **{"fit": fit, **moved})
    for batch in rows_of(squares, spec):
        assert batch["image"].shape == (STUDIES, 40, 40, 1)
        assert batch["mask"].shape == (STUDIES, 40, 40)
        assert batch["mask"].dtype == bool
        bright = batch["image"][..., 0]
        # Only pixels that an edge runs through may differ: stored as JPEG, they are a little off.
        wrong = (bright >= 128) != batch["mask"]
        assert not wrong[(bright < 88) | (bright > 168)].any()
        assert batch["mask"].any(axis=(1, 2)).sum() >= 6


def test_half_of_the_views_are_mirrored_with_their_masks(squares):
    plain = rows_of(squares, view_spec(40), steps=6)
    flipped = rows_of(squares, view_spec(40, flip=True), steps=6)
    images, masks = (
        [np.concatenate([batch[name].reshape(STUDIES, 40, 40) for batch in part]) for part in (plain, flipped)]
        for name in ("image", "mask")
    )
    same = (images[0] == images[1]).all(axis=(1, 2))
    mirrored = (images[0] == images[1][:, :, ::-1]).all(axis=(1, 2))
    assert (same | mirrored).all()
    assert 20 < mirrored.sum() < 52
    assert_array_equal(np.where(mirrored[:, None, None], masks[1][:, :, ::-1], masks[1]), masks[0])


def test_processes_and_restarts_give_the_same_rows(squares):
    spec = view_spec(24, **MOVED)
    whole = rows_of(squares, spec, batch_size=4)
    halves = [rows_of(squares, spec, batch_size=4, process_index=p, process_count=2) for p in range(2)]
    later = rows_of(squares, spec, batch_size=4, steps=2, start_step=1)
    for name in ("image", "mask"):
        for step in range(3):
            together = np.concatenate([half[step][name] for half in halves])
            assert_array_equal(together, whole[step][name])
        assert_array_equal(later[0][name], whole[1][name])
    assert not np.array_equal(whole[0]["image"], whole[1]["image"])


def test_evaluation_views_come_with_masks_in_pixels_of_the_source(squares):
    records = list(open_split(squares, "train"))
    views, masks = evaluation_views(records, view_spec(40, fit="pad"))
    assert views.shape == (STUDIES, 40, 40, 1)
    for number, mask in enumerate(masks):
        assert_array_equal(mask, truth(number))
    assert records[0].original_size == (72, 120)


def test_a_mask_in_pixels_of_the_stored_image_keeps_its_area(squares):
    for number, record in enumerate(open_split(squares, "train")):
        shape = (72, 48) if number % 2 else (48, 80)
        small = mask_like(record, np.zeros(shape, np.uint8))
        assert small.shape == shape
        assert abs(small.mean() / 255 - truth(number).mean()) < 0.002


def test_a_build_without_masks_is_refused(squares, tmp_path):
    build(Squares(masks=False), tmp_path / "plain", short_side=48, workers=1, progress=False)
    assert open_split(tmp_path / "plain", "train")[0].mask == b""
    with pytest.raises(DataError, match="split 'train' has no masks; expected a build of `msfl data build siim`"):
        rows_of(tmp_path / "plain", view_spec(40, fit="pad"))


def test_balanced_records_show_each_kind_equally_often_and_leave_none_out(squares):
    source = open_split(squares, "train")
    shown = [bool(truth(number).any()) for number in range(STUDIES)]
    balanced = Balanced(source)
    keys = [balanced[index].image_key for index in range(len(balanced))]
    assert len(balanced) == 2 * sum(shown)
    assert set(keys) == {record.image_key for record in source}
    counts = {key: keys.count(key) for key in keys}
    diseased = {record.image_key for record in source if images.decode_mask(record.mask).any()}
    assert {counts[key] for key in diseased} == {1}
    assert sum(counts[key] for key in counts.keys() - diseased) == sum(shown)
