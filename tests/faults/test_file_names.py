"""Files whose names are not UTF-8, as an archive of another system leaves them, are files like others, to every command that meets them."""

import hashlib
import json
import os
import subprocess
import sys

import pytest

from input_pipeline.keys import Keyring

from .corpora import CORPORA

COMMANDS = {"mimic-cxr tree": "mimic-cxr", "chexpert": "chexpert", "nih": "nih", "rsna": "rsna", "siim": "siim"}
# Where stray files may lie, with their suffix; MIMIC-CXR is read by its list of images, not by what lies there.
FOLDERS = {
    "mimic-cxr tree": ((".jpg", "."), (".jpg", "files/p10"), (".txt", "mimic-cxr-reports/files/p10")),
    "chexpert": ((".jpg", "train"), (".jpg", "valid/patient00099")),
    "nih": ((".png", "images_001/images"), (".png", "images")),
    "rsna": ((".dcm", "stage_2_train_images"), (".png", ".")),
    "siim": ((".dcm", "dicom-images-train/a"), (".dcm", "dicom-images-train/b")),
}
FOUND = {
    "mimic-cxr tree": {},
    "chexpert": {"file_in_no_table": 2},
    "nih": {"file_in_no_table": 1, "two_files": 1},  # of one name, as are the two that follow
    "rsna": {"file_in_no_table": 1},
    "siim": {"file_in_no_table": 1, "two_files": 1},
}


@pytest.fixture(params=COMMANDS)
def strays(request, tmp_path):
    """A corpus with nothing wrong but files of odd names, what the doctor finds, and how it is built."""
    name = request.param
    corpus = CORPORA[name](tmp_path / "data", 31, "clean")
    for suffix, folder in FOLDERS[name]:
        path = os.fsencode(corpus.root / folder) + b"/caf\xe9" + os.fsencode(suffix)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(b"nothing")
    places = [corpus.root]
    if name == "mimic-cxr tree":
        places = ["--jpg", corpus.root, "--reports", corpus.root, "--keep-grounding-patients"]
    return corpus, FOUND[name], ["data", "build", COMMANDS[name], *places]


def test_the_doctor_counts_files_of_any_name_and_a_build_leaves_them_alone(strays, tmp_path, msfl):
    corpus, expected, build = strays
    out = tmp_path / "doctor"
    code, told, err = msfl("data", "doctor", corpus.root, *corpus.arguments, "--out", out, "--workers", 1)
    assert code == 0, err
    notes = [json.loads(line) for line in (out / "notes.jsonl").read_text().splitlines()]
    assert {reason: len([note for note in notes if note["reason"] == reason]) for reason in expected} == expected
    assert len(notes) == sum(expected.values())
    assert len({note["image"] for note in notes if note["reason"] == "file_in_no_table"}) == expected.get(
        "file_in_no_table", 0
    )
    for reason in expected:
        assert reason in told
    code, _, err = msfl(*build, "--out", tmp_path / "built", "--workers", 1, "--short-side", 32)
    assert code == 0, err


def test_the_key_of_such_a_file_reveals_its_name_as_it_lies_on_disk(tmp_path):
    corpus = CORPORA["chexpert"](tmp_path / "data", 32, "clean")
    path = os.fsencode(corpus.root) + b"/train/caf\xe9.jpg"
    with open(path, "wb") as file:
        file.write(b"nothing")
    command = [sys.executable, "-m", "msfl_jax.cli", "data", "doctor", corpus.root, "--out", tmp_path / "out"]
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8:strict"}
    subprocess.run(command, env=environment, check=True, capture_output=True)
    (line,) = (tmp_path / "out" / "notes.jsonl").read_text().splitlines()
    found = subprocess.run([*command, "--reveal", json.loads(line)["image"]], env=environment, capture_output=True)
    assert (found.returncode, found.stdout.rstrip(b"\n")) == (0, path), found.stderr


def test_keys_are_hashes_of_the_bytes_of_utf8_and_differ_where_names_differ_by_a_byte():
    keyring = Keyring(bytes(range(32)))
    for name in ("p10000032", "caf\xe9", "\u80ba\U0001fac1", ""):
        told = {"key": keyring.salt, "person": b"image", "digest_size": 16}
        assert keyring.key("image", name) == hashlib.blake2b(name.encode("utf-8"), **told).hexdigest()
        told = {"key": keyring.salt, "person": b"member", "digest_size": 32}
        assert keyring.member(name) == hashlib.blake2b(name.encode("utf-8"), **told).hexdigest()
    names = [os.fsdecode(bytes([byte])) for byte in range(256)] + [chr(byte) for byte in range(128, 256)]
    assert len({keyring.key("image", name) for name in names}) == len({keyring.member(name) for name in names}) == 384
