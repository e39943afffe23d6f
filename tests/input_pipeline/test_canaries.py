"""Two hundred strings and identifiers planted in a corpus: none comes out of a build but in its records, nor out of the doctor."""

import gzip
import json
import logging
import multiprocessing
import os
import random
import shutil
import traceback
import zipfile
from typing import Any

import cv2
import numpy as np
import pytest

from input_pipeline import doctor, reading
from input_pipeline.build import build
from input_pipeline.datasets.mimic_cxr import LABEL_NAMES, MimicCxr
from input_pipeline.datasets.ms_cxr import MsCxr
from input_pipeline.errors import MsflError

STUDIES = 40
RNG = random.Random(7)
PATIENTS = [f"10{RNG.randrange(10**8):08d}" for _ in range(STUDIES // 2)]
NUMBERS = [f"50{RNG.randrange(10**8):08d}" for _ in range(STUDIES)]
IMAGES = ["-".join(f"{RNG.randrange(16**8):08x}" for _ in range(5)) for _ in range(STUDIES)]
IDENTIFIERS = [*PATIENTS, *NUMBERS, *IMAGES]
WORDS = [f"canary{RNG.randrange(10**12):012d}" for _ in range(200 - len(IDENTIFIERS))]
CANARIES = [*IDENTIFIERS, *WORDS]
BOX_FILE = "MS_CXR_Local_Alignment_v1.1.0.csv"
SPLIT, METADATA, LABELS = (f"mimic-cxr-2.0.0-{role}.csv.gz" for role in ("split", "metadata", "chexpert"))
OPTIONS: dict[str, Any] = {"short_side": 32, "shard_records": 8}


def place(study):
    return f"files/p{PATIENTS[study // 2][:2]}/p{PATIENTS[study // 2]}/s{NUMBERS[study]}"


def report(study):
    name, finding = WORDS[2 * study % len(WORDS)], WORDS[(2 * study + 1) % len(WORDS)]
    return f" FINAL REPORT\n INDICATION:  Seen by Dr. {name}.\n \n FINDINGS:  There is a {finding} at the left base.\n"


def table(rows):
    return "".join(",".join(map(str, row)) + "\n" for row in rows)


def write(path, rows):
    path.write_bytes(gzip.compress(table(rows).encode()) if path.suffix == ".gz" else table(rows).encode())


def split_rows():
    names = ("train", "train", "train", "validate", "test")
    return [
        ("dicom_id", "subject_id", "study_id", "split"),
        *((IMAGES[k], PATIENTS[k // 2], NUMBERS[k], names[k // 2 % 5]) for k in range(STUDIES)),
    ]


def metadata_rows():
    header = ("dicom_id", "subject_id", "study_id", "ViewPosition", "PerformedProcedureStepDescription")
    rows = ((IMAGES[k], PATIENTS[k // 2], NUMBERS[k], "PA", WORDS[k]) for k in range(STUDIES))
    return [header, *rows]


def label_rows():
    rows = ((PATIENTS[k // 2], NUMBERS[k], *["1.0"] * len(LABEL_NAMES)) for k in range(STUDIES))
    return [("subject_id", "study_id", *LABEL_NAMES), *rows]


def write_corpus(root):
    """One image has no report, one a report without text, one is cut short, one is missing."""
    assert len(set(CANARIES)) == 200
    root.mkdir(parents=True, exist_ok=True)
    for name, rows in ((SPLIT, split_rows()), (METADATA, metadata_rows()), (LABELS, label_rows())):
        write(root / name, rows)
    write(root / BOX_FILE, [("path",), (f"{place(0)}/{IMAGES[0]}.jpg",)])
    for k in range(STUDIES):
        text, image = root / "mimic-cxr-reports" / f"{place(k)}.txt", root / place(k) / f"{IMAGES[k]}.jpg"
        text.parent.mkdir(parents=True, exist_ok=True)
        image.parent.mkdir(parents=True, exist_ok=True)
        text.write_text(report(k))
        cv2.imwrite(str(image), np.random.default_rng(k).integers(0, 256, (40, 40), np.uint8))
    (root / "mimic-cxr-reports" / f"{place(4)}.txt").unlink()
    (root / "mimic-cxr-reports" / f"{place(5)}.txt").write_text(f" INDICATION:  {WORDS[5]}\n")
    (root / place(2) / f"{IMAGES[2]}.jpg").write_bytes(f"<html>{WORDS[0]}".encode())
    (root / place(3) / f"{IMAGES[3]}.jpg").unlink()
    return root


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus"))


def leaks(text):
    return [canary for canary in CANARIES if canary in text]


def written(folder):
    """Everything beside the shards: names and contents of all files, sidecars and drafts among them."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    kept = [path for path in files if "array_record-" not in path.name or path.suffix == ".json"]
    names = "\n".join(str(path.relative_to(folder)) for path in files)
    return names + "".join(path.read_bytes().decode("latin-1") for path in kept)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_build_tells_nothing_outside_its_records(corpus, tmp_path, capfd, caplog, workers):
    caplog.set_level(logging.DEBUG)
    manifest = build(MimicCxr(corpus, corpus), tmp_path / "data" / "out", workers=workers, **OPTIONS)
    dropped = {"bad_image": 1, "grounding_patient": 2, "missing_image": 1, "no_report": 1, "no_text": 1}
    assert manifest.splits["train"].dropped == dropped
    output = capfd.readouterr()
    assert output.err.count("records") >= 1
    assert leaks(written(tmp_path) + output.out + output.err + caplog.text + str(manifest) + repr(manifest)) == []
    assert {path.name for path in (tmp_path / "data" / "out" / ".build").iterdir()} >= {"lock", "build.json"}
    records = [record for split in manifest.counts for record in reading.open_split(tmp_path / "data" / "out", split)]
    assert any(leaks(" ".join(record.sentences)) for record in records), "the texts themselves are the records' purpose"
    for record in records:
        told = " ".join([record.study_key, record.patient_key, record.image_key, record.pixel_key, record.view])
        assert leaks(told + record.category + record.image.decode("latin-1")) == []
        assert not set(leaks(" ".join(record.sentences))) & set(IDENTIFIERS)


def sums(root, line=""):
    (root / "SHA256SUMS.txt").write_text(f"{'0' * 64}  {place(6)}/{IMAGES[6]}.jpg\n{'1' * 64}  {SPLIT}\n{line}\n")


def link(path, target):
    target.write_text(WORDS[7])
    path.unlink()
    path.symlink_to(target)


def zipped(root, *, name="files/x.txt", damage=False):
    path = root.parent / "reports.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{place(6)}.txt", report(6))
        archive.writestr(name, WORDS[8])
    if damage:
        path.write_bytes(path.read_bytes().replace(b"canary", b"cansry"))
    return {"reports": path}


def exclude(root, name, content):
    (root / name).write_text(content)
    return {"exclude": root / name}


def own_splits(root, rows):
    write(root / "own.csv", rows)
    return {"splits": root / "own.csv"}


def spoil_images(root):
    for path in root.rglob("*.jpg"):
        path.write_bytes(WORDS[9].encode())


def changed(rows, number, column, value):
    row = list(rows[number])
    row[column] = value
    return [*rows[:number], tuple(row), *rows[number + 1 :]]


# Each spoils a copy of the corpus and may return options of the source.
FAULTS = {
    "unknown split": lambda root: write(root / SPLIT, changed(split_rows(), 3, 3, WORDS[1])),
    "bad identifier": lambda root: write(root / SPLIT, changed(split_rows(), 3, 1, WORDS[1])),
    "image twice": lambda root: write(root / SPLIT, [*split_rows(), split_rows()[4]]),
    "image twice in metadata": lambda root: write(root / METADATA, [*metadata_rows(), metadata_rows()[4]]),
    "patient in two splits": lambda root: write(root / SPLIT, changed(split_rows(), 3, 3, "test")),
    "tables disagree": lambda root: write(root / METADATA, changed(metadata_rows(), 3, 2, NUMBERS[9])),
    "bad label": lambda root: write(root / LABELS, changed(label_rows(), 3, 5, WORDS[1])),
    "labels twice": lambda root: write(root / LABELS, [*label_rows(), label_rows()[4]]),
    "no header": lambda root: write(root / METADATA, metadata_rows()[1:]),
    "row of another length": lambda root: write(root / SPLIT, [*split_rows(), (WORDS[1],)]),
    "other separator": lambda root: (root / SPLIT).write_bytes(
        gzip.compress(table(split_rows()).replace(",", ";").encode())
    ),
    "no UTF-8": lambda root: (root / SPLIT).write_bytes(gzip.compress(table(split_rows()).encode() + b"\xff")),
    "damaged gzip": lambda root: (root / SPLIT).write_bytes((root / SPLIT).read_bytes()[:-20]),
    "no gzip": lambda root: (root / SPLIT).write_text(table(split_rows())),
    "line too long": lambda root: write(root / SPLIT, [*split_rows(), (WORDS[1] * 20000,)]),
    "no table": lambda root: (root / METADATA).unlink(),
    "bad list of images": lambda root: (root / "IMAGE_FILENAMES").write_text(f"{place(0)}/{WORDS[1]}\n"),
    "list of images twice": lambda root: (root / "IMAGE_FILENAMES").write_text(f"{place(0)}/{IMAGES[0]}.jpg\n" * 2),
    "bad list of checksums": lambda root: sums(root, f"{IMAGES[1]}  {place(1)}"),
    "other checksum": sums,
    "image linked outside": lambda root: link(root / place(6) / f"{IMAGES[6]}.jpg", root.parent / "elsewhere"),
    "report linked outside": lambda root: link(
        root / "mimic-cxr-reports" / f"{place(6)}.txt", root.parent / "elsewhere"
    ),
    "no image is one": spoil_images,
    "zip that leads outside": lambda root: zipped(root, name=f"../{place(7)}.txt"),
    "zip with a damaged member": lambda root: zipped(root, damage=True),
    "no reports": lambda root: shutil.rmtree(root / "mimic-cxr-reports" / "files"),
    "boxes of no patient": lambda root: exclude(root, "b.csv", f"path\n{WORDS[1]}/{IMAGES[1]}.jpg\n"),
    "boxes that are no JSON": lambda root: exclude(root, "b.json", f'{{"images": ["{IMAGES[1]}"'),
    "boxes of JSON without paths": lambda root: exclude(root, "b.json", json.dumps({"images": [{"id": IMAGES[1]}]})),
    "own split unknown": lambda root: own_splits(root, [("dicom_id", "split"), (IMAGES[1], WORDS[1])]),
    "own split of nobody": lambda root: own_splits(root, [("subject_id", "split"), (WORDS[1], "train")]),
    "own split twice": lambda root: own_splits(
        root, [("subject_id", "split"), (PATIENTS[1], "train"), (PATIENTS[1], "test")]
    ),
    "own split across a patient": lambda root: own_splits(
        root, [("dicom_id", "split"), (IMAGES[2], "train"), (IMAGES[3], "test")]
    ),
    "no MS-CXR": lambda root: (root / BOX_FILE).unlink(),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_no_error_quotes_the_data(corpus, tmp_path, capfd, caplog, fault):
    root = tmp_path / "in" / "root"
    shutil.copytree(corpus, root)
    options = FAULTS[fault](root)
    options = options if isinstance(options, dict) else {}
    source = MimicCxr(**{"jpg": root, "reports": root, **options})
    with pytest.raises(MsflError) as error:
        build(source, tmp_path / "data" / "out", workers=1, progress=False, **OPTIONS)
    message = str(error.value)
    assert "\n" not in message
    told = "".join(traceback.format_exception(error.value)) + repr(error.value)
    output = capfd.readouterr()
    spread = written(tmp_path / "data") if (tmp_path / "data").exists() else ""
    assert leaks(message + told + output.out + output.err + caplog.text + spread) == []


@pytest.mark.parametrize("column, value", [(1, "../" + WORDS[1]), (2, WORDS[1]), (3, WORDS[1]), (6, WORDS[1])])
def test_no_error_of_grounding_quotes_the_data(corpus, tmp_path, column, value):
    row = ["Edema", f"{place(0)}/{IMAGES[0]}.jpg", 1, 2, 3, 4, "test", WORDS[3], IMAGES[0]]
    row[column] = value
    header = ("category_name", "path", "x", "y", "w", "h", "split", "label_text", "dicom_id")
    write(tmp_path / "boxes.csv", [header, row])
    with pytest.raises(MsflError) as error:
        build(MsCxr(corpus, tmp_path / "boxes.csv"), tmp_path / "out", workers=1, progress=False, **OPTIONS)
    assert leaks("".join(traceback.format_exception(error.value))) == []


def test_a_killed_worker_and_a_damaged_build_quote_nothing(corpus, tmp_path, capfd):
    out = tmp_path / "data" / "out"
    build(MimicCxr(corpus, corpus), out, workers=1, progress=False, **OPTIONS)
    shard = next(out.glob("*train*"))
    shard.write_bytes(shard.read_bytes()[:-10])
    with pytest.raises(MsflError) as error:
        reading.open_split(out, "train")
    assert leaks(str(error.value)) == []
    with pytest.raises(MsflError) as error:
        build(MimicCxr(corpus, corpus, views="all"), out, workers=1, progress=False, **OPTIONS)
    assert leaks(str(error.value)) == []
    with pytest.raises(MsflError) as error:
        build(Killed(corpus, corpus), tmp_path / "data" / "other", workers=2, progress=False, **OPTIONS)
    output = capfd.readouterr()
    assert leaks("".join(traceback.format_exception(error.value)) + output.out + output.err) == []


@pytest.mark.parametrize("fault", ["none", *FAULTS])
def test_the_doctor_quotes_nothing_of_what_it_reads(corpus, tmp_path, capfd, caplog, monkeypatch, fault):
    monkeypatch.setattr(doctor, "_SHORT_SIDE", 32)  # quicker
    root, out = tmp_path / "in" / "root", tmp_path / "out"
    shutil.copytree(corpus, root)
    options = None if fault == "none" else FAULTS[fault](root)
    options = options if isinstance(options, dict) else {}
    caplog.set_level(logging.DEBUG)
    try:
        told = str(doctor.examine(MimicCxr(**{"jpg": root, "reports": root, **options}), out, workers=1))
    except MsflError as error:
        told = "".join(traceback.format_exception(error))
    output = capfd.readouterr()
    spread = written(out) if out.exists() else ""
    assert leaks(told + output.out + output.err + caplog.text + spread) == []
    if fault == "none":
        for code in ("missing_image", "bad_image", "no_report", "no_text"):
            assert f"{code} " in told


class Killed(MimicCxr):
    def image(self, row):
        if multiprocessing.parent_process() is not None:
            os._exit(9)
        return super().image(row)
