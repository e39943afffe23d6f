"""Identifiers, phrases and headers of the other corpora: none comes out of the doctor or of a build, whatever goes wrong.

The reports of MIMIC-CXR are in tests/input_pipeline/test_canaries.py.
"""

import csv
import gzip
import io
import logging
import random
import warnings

import pydicom
import pytest

from input_pipeline import doctor
from input_pipeline.manifest import read_manifest
from input_pipeline.reading import open_split

from .corpora import CORPORA, source_of

COMMANDS = {"ms-cxr csv": "ms-cxr", "ms-cxr json": "ms-cxr", "nih without lists": "nih", "rsna": "rsna", "siim": "siim"}
COMMANDS |= {
    "chexpert": "chexpert",
    "nih": "nih",
    "mimic-cxr tree": "mimic-cxr",
    "mimic-cxr zip and checksums": "mimic-cxr",
}
# Thirty elements in which names, numbers and remarks stand.
ELEMENTS = (
    *("PatientName", "PatientID", "OtherPatientNames", "PatientAddress", "PatientMotherBirthName", "PatientComments"),
    *(
        "PatientBirthName",
        "Occupation",
        "AdditionalPatientHistory",
        "MedicalAlerts",
        "Allergies",
        "PatientReligiousPreference",
    ),
    *(
        "InstitutionName",
        "InstitutionAddress",
        "InstitutionalDepartmentName",
        "StationName",
        "AccessionNumber",
        "StudyID",
    ),
    *(
        "ReferringPhysicianName",
        "PerformingPhysicianName",
        "PhysiciansOfRecord",
        "OperatorsName",
        "RequestingPhysician",
    ),
    *("StudyDescription", "SeriesDescription", "ProtocolName", "ImageComments", "DeviceSerialNumber", "ViewPosition"),
    "RequestedProcedureDescription",
)


class Logged(logging.Handler):
    """What would reach a log file; pytest's own capture also hears loggers that pass nothing on."""

    def __init__(self):
        super().__init__()
        self.text = ""

    def emit(self, record):
        self.text += self.format(record)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Images are checked at a size that is quicker."""
    monkeypatch.setattr(doctor, "_SHORT_SIDE", 32)


@pytest.fixture
def logged():
    """Listens from when it is called; what a test writes itself is no matter."""
    handler, root = Logged(), logging.getLogger()

    def listen():
        root.addHandler(handler)
        return handler

    yield listen
    root.removeHandler(handler)


def add_headers(corpus, words):
    """Plants words in thirty elements and a private one of every DICOM file, and spoils a number with one."""
    files = sorted(corpus.root.rglob("*.dcm"))
    for path in files:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                made = pydicom.dcmread(path)
                for keyword in ELEMENTS:
                    setattr(made, keyword, next(words))
                made.private_block(0x99, "SECRETS", create=True).add_new(1, "LO", next(words))
                made.RescaleIntercept = "9" * 15
                made.save_as(path)
        except Exception:  # damaged on purpose
            continue
        if path == files[-1]:
            path.write_bytes(path.read_bytes().replace(b"9" * 15, next(words).encode()))


def add_column(corpus, words):
    """Plants words in a column that nothing reads, of every CSV table with a row per line."""
    for path in corpus.root.iterdir():
        if path.suffix in (".csv", ".gz") and "BBox" not in path.name:
            data = path.read_bytes()
            data = gzip.decompress(data) if path.suffix == ".gz" else data
            header, *rows = csv.reader(io.StringIO(data.decode()))
            text = io.StringIO()
            csv.writer(text).writerows([[*header, "Comment"], *([*row, next(words)] for row in rows)])
            data = text.getvalue().encode()
            path.write_bytes(gzip.compress(data, 1) if path.suffix == ".gz" else data)


@pytest.fixture
def secrets():
    """Words by the thousand."""
    rng = random.Random(0)
    return [f"canary{rng.randrange(10**9):09d}" for _ in range(5000)]


def told_of(folder):
    """Names and contents of all that a command wrote; shards hold texts and are read by themselves."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    names = "\n".join(str(path.relative_to(folder)) for path in files)
    kept = [path for path in files if "array_record-" not in path.name or path.suffix == ".json"]
    return names + "".join(path.read_bytes().decode("latin-1") for path in kept)


def identifiers(corpus):
    """Of patients, studies and images; those of a few letters could be in any text."""
    rows = [row for part in source_of(corpus).scan(lenient=True).rows.values() for row in part]
    found = {name for row in rows for name in (row.patient, row.study, row.image, row.path, row.phrase)}
    return sorted(name for name in found if len(name) >= 8 and name != "Pneumonia")


def build_command(name, corpus, out):
    command = ["data", "build", COMMANDS[name]]
    if name.startswith("ms-cxr"):
        command += [*corpus.arguments, "--boxes", corpus.root]
    elif name.startswith("mimic-cxr"):
        reports = corpus.arguments[1] if corpus.arguments else corpus.root
        command += ["--jpg", corpus.root, "--reports", reports, "--keep-grounding-patients"]
    else:
        command.append(corpus.root)
    return [*command, "--out", out, "--workers", 1, "--short-side", 32]


@pytest.mark.parametrize("level", ["files", "all"])
@pytest.mark.parametrize("name", COMMANDS)
def test_neither_doctor_nor_build_tells_who_or_what(name, level, tmp_path, msfl, secrets, logged, capfd):
    corpus = CORPORA[name](tmp_path / "in" / "data", 21, level)
    words = iter(secrets)
    add_headers(corpus, words)
    if level == "files":
        for link in corpus.files["path_outside"]:
            link.unlink()
        if not (corpus.root / "SHA256SUMS.txt").is_file():
            add_column(corpus, words)
    planted = [*identifiers(corpus), *secrets]
    out = tmp_path / "out"
    capfd.readouterr()
    log = logged()
    examined = msfl("data", "doctor", corpus.root, *corpus.arguments, "--out", out / "doctor", "--workers", 1)
    built = msfl(*build_command(name, corpus, out / "data" / "build"))
    assert examined[0] == 3
    may_stop = level == "all" or name == "nih without lists"
    assert (built[0] != 0) == may_stop
    told = told_of(out) + "".join(examined[1:] + built[1:]) + log.text
    assert len(planted) > 5050
    assert [word for word in planted if word in told] == []
    if not may_stop:
        build = out / "data" / "build"
        for record in (record for split in read_manifest(build).counts for record in open_split(build, split)):
            text = f"{record.view} {record.category} {record.image.decode('latin-1')} {record.mask.decode('latin-1')}"
            text += "".join([record.study_key, record.patient_key, record.image_key, record.pixel_key])
            assert [word for word in planted if word in text] == []
            assert [word for word in secrets if word in " ".join(record.sentences)] == []


SPOILS = {
    "no header": lambda text: text.split("\n", 1)[1],
    "separator": lambda text: text.replace(",", ";"),
    "quote": lambda text: '"' + text,
    "not UTF-8": lambda text: text.replace("\n", "\n\udcff", 2),
    "a long field": lambda text: text.replace("\n", '\n"' + text * 20, 1),
}


@pytest.mark.parametrize("spoil", SPOILS)
@pytest.mark.parametrize("name", ["ms-cxr csv", "chexpert", "nih", "rsna", "siim", "mimic-cxr tree"])
def test_no_error_about_a_table_quotes_it(name, spoil, tmp_path, msfl, logged):
    corpus = CORPORA[name](tmp_path / "in" / "data", 22, "clean")
    planted = identifiers(corpus)
    for path in corpus.root.iterdir():
        if path.suffix in (".csv", ".gz"):
            zipped = path.suffix == ".gz"
            text = (gzip.decompress(path.read_bytes()) if zipped else path.read_bytes()).decode()
            data = SPOILS[spoil](text).encode(errors="surrogateescape")
            path.write_bytes(gzip.compress(data, 1) if zipped else data)
    options = ("--out", tmp_path / "out" / "doctor", "--workers", 1, "--sample", 1)
    log = logged()
    examined = msfl("data", "doctor", corpus.root, *corpus.arguments, *options)
    built = msfl(*build_command(name, corpus, tmp_path / "out" / "data" / "build"))
    assert examined[0] in (2, 3)
    assert built[0] in (2, 3)
    told = (
        "".join(examined[1:] + built[1:])
        + log.text
        + (told_of(tmp_path / "out") if (tmp_path / "out").exists() else "")
    )
    assert len(planted) >= 50
    assert [word for word in planted if word in told] == []
