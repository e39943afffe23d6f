"""A build goes on without the rows that the doctor has named, and without nothing else: leaks and whole tables stop it nevertheless."""

import csv
import json
from collections import Counter

import pytest

from input_pipeline import quarantine
from input_pipeline.build import build
from input_pipeline.datasets.nih_chestxray14 import NihBoxes
from input_pipeline.doctor import examine
from input_pipeline.errors import MsflError
from input_pipeline.reading import grounding_records, open_split

from .corpora import CORPORA, source_of
from .files import LOST, encoded, grey, write_csv
from .mimic import BOX_HEADER, write_ms_cxr

OPTIONS = {"short_side": 32, "workers": 1, "progress": False}


@pytest.fixture
def examined(tmp_path):
    """Writes a corpus with every fault, examines it, and gives its source and the doctor's file."""

    def make(name, seed=30):
        corpus = CORPORA[name](tmp_path / "data", seed, "all")
        report = examine(source_of(corpus), tmp_path / "doctor", workers=1, progress=False)
        return corpus, report, tmp_path / "doctor" / quarantine.QUARANTINE_NAME

    return make


@pytest.mark.parametrize("name", ["rsna", "siim", "ms-cxr csv", "ms-cxr json"])
def test_wrong_rows_of_tables_are_left_out_and_counted(name, examined, tmp_path):
    corpus, report, file = examined(name)
    with pytest.raises(MsflError):
        build(source_of(corpus), tmp_path / "root" / "strict", **OPTIONS)
    made = build(source_of(corpus), tmp_path / "root" / "out", quarantine=file, **OPTIONS)
    in_files = Counter({code: len(paths) for code, paths in corpus.files.items()})
    expected = {code: count - in_files[code] for code, count in corpus.expected.items() if code in quarantine.OF_ROWS}
    assert made.table_faults == {code: count for code, count in expected.items() if count}
    assert f"{sum(expected.values())} wrong rows left out" in str(made)
    dropped = sum((Counter(split.dropped) for split in made.splits.values()), Counter())
    assert sum(made.counts.values()) + dropped.total() == made.input_rows == report.input_rows
    assert {code for code in dropped if code in LOST} <= set(corpus.expected)
    assert sum(made.counts.values()) <= report.records


def test_table_rows_of_chexpert_are_input_rows_or_counted_faults(examined, tmp_path):
    corpus, _, file = examined("chexpert")
    with pytest.raises(MsflError, match="expected nothing in two splits") as error:
        build(source_of(corpus), tmp_path / "root" / "leaky", quarantine=file, **OPTIONS)
    assert error.value.exit_code == 3
    table = corpus.root / "valid.csv"
    table.write_text("".join(table.read_text().splitlines(keepends=True)[:-1]))  # the patient that is in train
    examine(source_of(corpus), file.parent, workers=1, progress=False)
    made = build(source_of(corpus), tmp_path / "root" / "out", quarantine=file, **OPTIONS)
    assert sum(made.table_rows.values()) == made.input_rows + sum(made.table_faults.values())
    assert made.table_faults == {
        code: corpus.expected[code] for code in ("bad_identifier", "bad_row", "duplicate_image", "unknown_label")
    }


def test_a_row_that_the_doctor_has_not_named_ends_the_build(examined, tmp_path):
    corpus, _, file = examined("rsna")
    with (corpus.root / "stage_2_train_labels.csv").open("a") as table:
        table.write("x,1,2,3,4,5\n")
    with pytest.raises(
        MsflError, match=r"row \d+ has a Target that is neither 0 nor 1; not in .*: run the doctor again"
    ):
        build(source_of(corpus), tmp_path / "root" / "out", quarantine=file, **OPTIONS)


def test_another_table_than_the_release_has_ends_the_build_whatever_is_named(tmp_path):
    corpus = CORPORA["mimic-cxr zip and checksums"](tmp_path / "data", 33, "files")
    sums = corpus.root / "SHA256SUMS.txt"
    table = next(line for line in sums.read_text().splitlines() if line.endswith("chexpert.csv.gz"))
    sums.write_text(sums.read_text().replace(table, "0" * 64 + table[64:]))
    report = examine(source_of(corpus), tmp_path / "doctor", workers=1, progress=False)
    assert report.counts["wrong_table_checksum"] == 1
    with pytest.raises(MsflError, match=r"its sha256 differs from SHA256SUMS\.txt's") as error:
        build(
            source_of(corpus),
            tmp_path / "root" / "out",
            quarantine=tmp_path / "doctor" / quarantine.QUARANTINE_NAME,
            **OPTIONS,
        )
    assert error.value.exit_code == 3


@pytest.mark.parametrize("form", ["csv", "json"])
def test_one_phrase_that_is_unusable_takes_no_other_of_its_image_with_it(form, tmp_path):
    corpus = write_ms_cxr(tmp_path / "data", 31, "clean", as_json=form == "json")
    source = source_of(corpus)
    image = source.scan().rows["test"][0].image
    add_phrases(corpus, image, form)
    report = examine(source, tmp_path / "doctor", workers=1, progress=False)
    assert report.counts == {"box_outside_image": 1, "bad_box": 1}
    file = tmp_path / "doctor" / quarantine.QUARANTINE_NAME
    made = build(source, tmp_path / "root" / "out", quarantine=file, **OPTIONS)
    assert made.splits["test"].dropped == {"bad_box": 1, "box_outside_image": 1}
    assert made.table_faults == {"bad_box": 1}
    phrases = {phrase for record in open_split(tmp_path / "root" / "out", "test") for phrase in record.sentences}
    assert "opacity far outside" not in phrases
    assert "opacity of two boxes" not in phrases, "a phrase with a box that cannot be read has lost a part of its truth"
    assert made.splits["test"].records == len(source_of(corpus).scan(lenient=True).rows["test"]) - 2


def add_phrases(corpus, image, form):
    """A phrase outside of an image that has others, and one of whose two boxes one has no width."""
    boxes = (
        ("opacity far outside", [60, 50, 9, 9]),
        ("opacity of two boxes", [1, 2, 3, 4]),
        ("opacity of two boxes", [5, 6, 0, 4]),
    )
    (file,) = corpus.root.iterdir()
    if form == "json":
        content = json.loads(file.read_text())
        number = next(item["id"] for item in content["images"] if item["file_name"] == f"{image}.jpg")
        like = next(item for item in content["annotations"] if item["image_id"] == number)
        content["annotations"] += [{**like, "label_text": text, "bbox": box} for text, box in boxes]
        file.write_text(json.dumps(content))
        return
    with file.open(newline="") as table:
        rows = list(csv.DictReader(table))
    like = next(row for row in rows if row["dicom_id"] == image)
    rows += [{**like, "label_text": text, **dict(zip("xywh", box, strict=True))} for text, box in boxes]
    with file.open("w", newline="") as table:
        writer = csv.DictWriter(table, BOX_HEADER)
        writer.writeheader()
        writer.writerows(rows)


def test_quarantines_of_before_name_whole_images(tmp_path):
    corpus = write_ms_cxr(tmp_path / "data", 32, "files")
    for link in corpus.files["path_outside"]:
        link.unlink()
    source = source_of(corpus)
    examine(source, tmp_path / "doctor", workers=1, progress=False)
    file = tmp_path / "doctor" / quarantine.QUARANTINE_NAME
    now = build(source, tmp_path / "root" / "now", quarantine=file, **OPTIONS)
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert all("part" in line for line in lines if line["reason"] in LOST)
    for line in lines:
        line.pop("part", None)
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    before = build(source, tmp_path / "root" / "before", quarantine=file, **OPTIONS)
    assert sum(before.counts.values()) <= sum(now.counts.values())
    assert before.input_rows == now.input_rows


def test_a_repeated_box_of_nih_is_named_with_its_first_row_and_takes_no_other_finding_with_it(tmp_path):
    first, second = images = ("00000001_000.png", "00000002_000.png")
    for place, image in enumerate(images):
        path = tmp_path / "nih" / "images" / image
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(grey(place, height=1024, width=1024), "PNG"))
    rows = [(first, "Mass", 1, 2, 300, 400), (first, "Nodule", 1, 2, 300, 400), (second, "Mass", 1, 2, 300, 400)]
    rows += [(first, "Mass", 5, 6, 300, 400), (first, "Mass", 1, 2, 300, 400)]
    header = ["Image Index", "Finding Label", "Bbox [x", "y", "w", "h]"]
    write_csv(tmp_path / "nih" / "BBox_List_2017.csv", [header, *rows])
    source = NihBoxes(tmp_path / "nih")
    report = examine(source, tmp_path / "doctor", workers=1, progress=False)
    assert report.counts == {"duplicate_image": 1}
    file = tmp_path / "doctor" / quarantine.QUARANTINE_NAME
    named = "BBox_List_2017.csv: the box of row 6 is listed twice, first in row 2; expected each box once"
    assert json.loads(file.read_text())["message"] == named
    with pytest.raises(MsflError, match=named):
        build(source, tmp_path / "root" / "strict", **OPTIONS)
    made = build(source, tmp_path / "root" / "out", quarantine=file, **OPTIONS)
    assert made.table_faults == made.splits["test"].dropped == {"duplicate_image": 1}
    kept = grounding_records(tmp_path / "root" / "out", "test")
    assert sorted(record.category for record in kept) == ["Mass", "Nodule"]
