"""The doctor's memory hardly grows with the images that it looks at, be they whole, damaged, or shown twice."""

import json
import tracemalloc
from collections.abc import Sequence

import cv2
import numpy as np
import pytest

from input_pipeline import doctor
from input_pipeline.doctor import NOTES_NAME, QUARANTINE_NAME, examine
from input_pipeline.sources import Dropped, ImageRow, ImagesOnly, Scan


class Rows(Sequence):
    """Rows that are made when they are asked for: what grows is the doctor's."""

    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, place):
        if not 0 <= place < self.count:
            raise IndexError
        return ImageRow(f"p{place // 2:07d}", f"s{place:07d}", f"i{place:07d}", "x.png", "PA", (float(place % 2),))


class Hospital(ImagesOnly):
    """Every third image is missing; of the others one in 100 is the one before it."""

    name = "hospital"

    def __init__(self, root, count):
        self.root, self.count = root, count

    def label_names(self):
        return ("Edema",)

    def settings(self):
        return {}

    def scan(self, *, lenient=False):
        return Scan(rows={"train": Rows(self.count)}, lenient=lenient)

    def files(self, row):
        return (self.root / row.path,)

    def image(self, row):
        place = int(row.image[1:])
        if place % 3 == 0:
            raise Dropped("missing_image")
        seed = place - 1 if place % 300 == 2 else place
        pixels = np.random.default_rng(seed).integers(0, 256, (8, 8), np.uint8)
        return cv2.imencode(".png", pixels)[1].tobytes()


def peak(root, count):
    """Bytes at most, and the report."""
    tracemalloc.start()
    report = examine(Hospital(root, count), root / "out", workers=1, progress=False)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return most, report


def test_a_check_is_not_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor, "_SHORT_SIDE", 8)
    (few, _), (many, report) = peak(tmp_path, 1_500), peak(tmp_path, 6_000)
    assert many - few < 100 * 4_500  # a check, its keys and its fault took some 1,000 bytes each
    assert report.counts == {"missing_image": 2_000, "duplicate_pixels": 20}
    assert (report.looked_at, report.records, report.unusable) == (6_000, 4_000, 2_000)
    (edema,) = report.prevalence
    assert (edema.positive, edema.units) == (3_000, 6_000)
    reasons = [json.loads(line)["reason"] for line in (tmp_path / "out" / QUARANTINE_NAME).open()]
    assert reasons == ["missing_image"] * 2_000
    assert len((tmp_path / "out" / NOTES_NAME).read_text().splitlines()) == 20
    assert report.repeated == pytest.approx(0)
