"""The commands that the doctor prints are taken by a shell and by `msfl` as they stand, and do what they are printed for."""

import fnmatch
import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from input_pipeline.commands import command_for
from input_pipeline.datasets.nih_chestxray14 import LABEL_NAMES
from input_pipeline.doctor import examine
from input_pipeline.manifest import read_manifest
from input_pipeline.sources import SYNTHETIC
from input_pipeline.tables import column_names

from .corpora import CORPORA, source_of
from .files import write_csv
from .mimic import PREFIX, write_mimic

README = Path(__file__).parents[2] / "README.md"
PRINTED = re.compile(r"^ {7}command: +(.+)$", re.MULTILINE)
# Corpora with every fault but a patient in two splits, which ends any build that is not told to accept it.
WITHOUT_LEAK = ["rsna", "siim", "ms-cxr csv", "ms-cxr json"]
CODES_WITH_A_COMMAND = {
    *("blank_image", "nearly_blank_image", "duplicate_pixels", "duplicate_pixels_across_splits"),
    *("bad_row", "bad_identifier", "bad_box", "bad_runs", "duplicate_image", "unknown_label", "unknown_split"),
    *("tables_disagree", "path_outside", "wrong_size", "box_outside_image"),
}


def examined(name, seed, kinds, tmp_path, monkeypatch):
    """A corpus in the folder that commands are run from, and what the doctor prints to type, by code: one for every fault that has a command."""
    corpus = CORPORA[name](tmp_path / "data of mine", seed, kinds)
    monkeypatch.chdir(tmp_path)
    commands = commands_of(corpus, tmp_path)
    assert commands.keys() >= CODES_WITH_A_COMMAND & corpus.expected.keys()
    return commands


def commands_of(corpus, tmp_path):
    report = examine(source_of(corpus), tmp_path / "the doctor", workers=1, progress=False)
    commands = {found.code: found.command for found in report.findings if found.command}
    assert set(commands.values()) <= set(PRINTED.findall(str(report)))
    return commands


def run(command, code, msfl):
    """The status of a command that is pasted, and the folder that it writes, which is made another for every code."""
    program, *words = shlex.split(command, comments=True)
    assert program == "msfl"
    out = words[words.index("--out") + 1] = f"data/{code}"
    status, _, error = msfl(*words, "--workers", 1, "--short-side", 32)
    return status, out, error


@pytest.mark.parametrize("name", ["mimic-cxr tree", "chexpert", "nih", "siim", "rsna", "ms-cxr csv"])
def test_what_is_printed_for_images_builds_without_them(name, tmp_path, monkeypatch, msfl):
    commands = examined(name, 20, "files", tmp_path, monkeypatch)
    ran = {code: command for code, command in commands.items() if command.startswith("msfl ")}
    assert "path_outside" in ran
    for code, command in sorted(ran.items()):
        # So that later commands can be pasted from there.
        assert re.search(r"--out \S+", command)[0] in README.read_text()
        status, out, error = run(command, code, msfl)
        assert status == 0, error
        dropped = [split.dropped.get(code, 0) for split in read_manifest(out).splits.values()]
        assert sum(dropped) > 0


@pytest.mark.parametrize("name", WITHOUT_LEAK)
def test_what_is_printed_for_rows_of_tables_builds_without_them(name, tmp_path, monkeypatch, msfl):
    commands = examined(name, 21, "all", tmp_path, monkeypatch)
    # Most are one command.
    one_each = {command: code for code, command in commands.items() if command.startswith("msfl ")}
    for command, code in sorted(one_each.items()):
        status, out, error = run(command, code, msfl)
        assert status == 0, error
        assert read_manifest(out).table_faults


@pytest.mark.parametrize("name", ["nih", "chexpert"])
def test_what_is_printed_for_patients_in_two_splits_builds_with_them(name, tmp_path, monkeypatch, msfl):
    command = examined(name, 22, "all", tmp_path, monkeypatch)["patient_in_two_splits"]
    status, out, error = run(command, "leaky", msfl)
    assert status == 0, error
    assert any("overlap" in caveat for caveat in read_manifest(out).caveats)


def test_nih_without_official_lists_says_that_it_needs_lists(tmp_path, monkeypatch, msfl):
    corpus = CORPORA["nih without lists"](tmp_path / "nih", 23, "files")
    monkeypatch.chdir(tmp_path)
    command = commands_of(corpus, tmp_path)["blank_image"]
    assert "# needs --lists DIR" in command
    status, _, error = run(command, "refused", msfl)
    assert status == 2, "there is no folder DIR"
    assert "DIR" in error
    images = sorted({row.image for part in source_of(corpus).scan().rows.values() for row in part})
    parts = {"train_list": images[:60], "val_list": images[60:80], "test_list": images[80:], "train_10": images[:6]}
    (tmp_path / "DIR").mkdir()
    for part, names in parts.items():
        text = "".join(f"{image} {' '.join(['0'] * len(LABEL_NAMES))}\n" for image in names)
        (tmp_path / "DIR" / f"{part}.txt").write_text(text)
    status, out, error = run(command, "listed", msfl)
    assert status == 0, error
    assert sum(split.dropped.get("blank_image", 0) for split in read_manifest(out).splits.values()) == 2


def test_checksums_are_compared_by_the_printed_command(tmp_path):
    corpus = CORPORA["mimic-cxr zip and checksums"](tmp_path / "it's mine", 21, "files")
    command = commands_of(corpus, tmp_path)["wrong_checksum"]
    found = subprocess.run(["sh", "-c", command], capture_output=True, text=True, env={**os.environ, "LC_ALL": "C"})
    assert found.stdout.count(": FAILED\n") >= corpus.expected["wrong_checksum"]


def test_images_of_a_physionet_release_are_fetched_from_there(tmp_path):
    corpus = write_mimic(tmp_path / "mimic-cxr-jpg" / "2.0.0", 24, "files")
    base = "https://physionet.org/files/mimic-cxr-jpg/2.0.0/"
    into = ["-nH", "--cut-dirs=3", "-P", str(corpus.root), "--user", "USERNAME", "--ask-password"]
    listed = ["wget", "-x", "-N", "-c", *into, "-i", str(corpus.root / "IMAGE_FILENAMES"), "-B", base]
    commands = commands_of(corpus, tmp_path)
    assert [shlex.split(commands[code]) for code in ("missing_image", "bad_image")] == [listed, listed]
    # Of an address, wget leaves out the host and three folders: what follows is the path in the release.
    addresses = [f"{base}{path}" for path in (corpus.root / "IMAGE_FILENAMES").read_text().split()]
    there = [(corpus.root / "/".join(address.split("/")[3 + 3 :])).is_file() for address in addresses]
    assert there.count(False) == corpus.expected["missing_image"]
    (corpus.root / "IMAGE_FILENAMES").unlink()
    source = source_of(corpus)
    assert shlex.split(command_for("missing_image", source, tmp_path)) == ["wget", "-r", "-N", "-c", "-np", *into, base]
    assert "mimic-cxr-reports.zip" in command_for("no_report", source, tmp_path)
    (corpus.root / SYNTHETIC).touch()
    assert [command_for(code, source, tmp_path) for code in ("missing_image", "no_report")] == ["", ""]


@pytest.mark.parametrize("code", ["no_rows", "no_metadata", "not_listed"])
def test_tables_of_a_physionet_release_are_fetched_from_there_and_nothing_else(code, tmp_path):
    level = "clean" if code == "no_rows" else "all"
    corpus = write_mimic(tmp_path / "it's mine" / "2.0.0", 26, level, sums=code != "no_rows")
    if code == "no_rows":
        (corpus.root / "IMAGE_FILENAMES").write_text("")
        for table in corpus.root.glob(f"{PREFIX}*"):
            write_csv(table, [column_names(table)])
    words = shlex.split(commands_of(corpus, tmp_path)[code])
    kinds = words[words.index("-A") + 1]
    base = "https://physionet.org/files/mimic-cxr-jpg/2.0.0/"
    into = ["-nH", "--cut-dirs=3", "-P", str(corpus.root), "--user", "USERNAME", "--ask-password"]
    assert words == ["wget", "-r", "-l", "1", "-np", "-A", kinds, *into, base]
    # Of a release's files, these are what wget accepts by their names: all that the doctor read but images and reports.
    files = {path.name for path in corpus.root.rglob("*") if path.is_file()} | {"LICENSE.txt", "README", "index.html"}
    accepted = {name for name in files if any(fnmatch.fnmatch(name, kind) for kind in kinds.split(","))}
    tables = {f"{PREFIX}{role}.csv.gz" for role in ("split", "metadata", "chexpert")} | {"IMAGE_FILENAMES"}
    assert accepted == tables | ({"SHA256SUMS.txt"} if code != "no_rows" else set())


@pytest.mark.parametrize("code", ["no_rows", "no_metadata", "not_listed"])
def test_tables_that_are_at_no_such_place_are_not_fetched(code, tmp_path):
    corpus = write_mimic(tmp_path / "mimic", 27, "clean")
    assert command_for(code, source_of(corpus), tmp_path)
    (corpus.root / SYNTHETIC).touch()
    assert command_for(code, source_of(corpus), tmp_path) == ""
    assert command_for(code, source_of(CORPORA["siim"](tmp_path / "siim", 28, "clean")), tmp_path) == ""


def test_reports_in_a_zip_are_tested_by_the_printed_command(tmp_path):
    corpus = CORPORA["mimic-cxr zip and checksums"](tmp_path / "data", 25, "files")
    assert commands_of(corpus, tmp_path)["bad_report"] == f"unzip -tq {tmp_path / 'data' / 'mimic-cxr-reports.zip'}"


def test_nothing_is_printed_where_no_command_helps(tmp_path):
    corpus = CORPORA["rsna"](tmp_path / "data", 22, "all")
    assert not {"missing_image", "bad_image", "clipped_box"} & commands_of(corpus, tmp_path).keys()
