"""The doctor's memory hardly grows with the images that it looks at, be they whole, damaged, or shown twice."""

import json
import tracemalloc
from collections.abc import Sequence

import cv2
import numpy as np
import pytest

from input_pipeline import doctor
from input_pipeline.datasets.image_files import find_images, note_strays
from input_pipeline.doctor import NOTES_NAME, QUARANTINE_NAME, examine
from input_pipeline.errors import DataError, RetryError, UserError
from input_pipeline.sources import Dropped, ImageRow, ImagesOnly, Note, Problem, Scan


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


def peak(source, out):
    """Bytes at most, and the report."""
    tracemalloc.start()
    report = examine(source, out, workers=1, progress=False)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return most, report


def test_a_check_is_not_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor, "_SHORT_SIDE", 8)
    (few, _), (many, report) = (peak(Hospital(tmp_path, count), tmp_path / "out") for count in (450, 1_800))
    assert many - few < 100 * 1_350  # a check, its keys and its fault took some 1,000 bytes each
    assert report.counts == {"missing_image": 600, "duplicate_pixels": 6}
    assert (report.looked_at, report.records, report.unusable) == (1_800, 1_200, 600)
    (edema,) = report.prevalence
    assert (edema.positive, edema.units) == (900, 1_800)
    reasons = [json.loads(line)["reason"] for line in (tmp_path / "out" / QUARANTINE_NAME).open()]
    assert reasons == ["missing_image"] * 600
    assert len((tmp_path / "out" / NOTES_NAME).read_text().splitlines()) == 6
    assert report.repeated == pytest.approx(0)


class Archive(Hospital):
    """A table in which every row is wrong, beside files of which it names none."""

    def scan(self, *, lenient=False):
        scan = Scan(lenient=lenient)
        for number in range(self.count):
            error = UserError(f"labels.csv: row {number} has no label 0 or 1", code="unknown_label")
            scan.refuse(error, f"i{number:07d}")
        stems = ((f"x{number:07d}", f"images/x{number:07d}.png") for number in reversed(range(self.count)))
        note_strays(scan, self.root, stems, ())
        return scan


def test_neither_is_what_the_tables_and_the_folders_have_that_is_odd(tmp_path):
    def most(count):
        """The fewest of three times: Python's own table of names, of which paths make use, grows now and then too."""
        peaks, reports = zip(*(peak(Archive(tmp_path, count), tmp_path / "out") for _ in range(3)), strict=True)
        assert reports[-1].counts == {"unknown_label": count, "file_in_no_table": count}
        return min(peaks)

    assert most(1_200) - most(300) < 100 * 900  # a problem and a note took some 700 bytes
    told = [json.loads(line)["message"] for line in (tmp_path / "out" / QUARANTINE_NAME).open()]
    assert told == [f"labels.csv: row {number} has no label 0 or 1" for number in range(300)]


def test_what_is_odd_comes_back_from_the_disk_as_it_was(tmp_path):
    (tmp_path / "\udce9.png").touch()
    (tmp_path / "\udce9.jpg").touch()
    scan = Scan(lenient=True)
    note_strays(scan, tmp_path, find_images(tmp_path, [""], scan).items(), ())
    other = "\udce9.jpg"
    assert list(scan.notes) == [
        Note("two_files", "\udce9", scan.notes[0].path),
        Note("file_in_no_table", "\udce9", tmp_path / "\udce9.png"),
    ]
    assert scan.notes[0].path.name in (other, "\udce9.png")
    scan.refuse(DataError("line\n\ud800", code="bad_box"), "caf\u00e9", "a\nb")
    scan.refuse(UserError("x"))
    expected = [Problem("bad_box", "line\n\ud800", "caf\u00e9", "a\nb", DataError), Problem("bad_row", "x")]
    assert list(scan.problems) == scan.problems[:] == expected
    assert (scan.problems[-1], len(scan.problems)) == (expected[1], 2)
    with pytest.raises(IndexError):
        scan.problems[2]


def test_a_full_disk_is_no_fault_of_the_row_that_was_read():
    scan = Scan(lenient=True)
    with pytest.raises(RetryError), scan.row("i1"):
        raise RetryError("no space left for tables")
    assert not scan.problems
