"""The commands that the doctor prints are taken by a shell and by `msfl` as they stand, and do what they are printed for."""

import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from input_pipeline.doctor import examine
from input_pipeline.manifest import read_manifest

from .corpora import CORPORA, source_of

README = Path(__file__).parents[2] / "README.md"
PRINTED = re.compile(r"^ {7}command: +(.+)$", re.MULTILINE)


@pytest.mark.parametrize("name", ["mimic-cxr tree", "chexpert", "nih", "siim"])
def test_what_is_printed_for_images_builds_without_them(name, tmp_path, monkeypatch, msfl):
    corpus = CORPORA[name](tmp_path / "data of mine", 20, "files")
    for link in corpus.files["path_outside"]:
        link.unlink()  # a build stops at it, whatever it leaves out
    monkeypatch.chdir(tmp_path)
    report = examine(source_of(corpus), tmp_path / "the doctor", workers=1, progress=False)
    commands = {found.code: found.command for found in report.findings if "--quarantine" in found.command}
    assert "duplicate_pixels" in commands
    assert commands.keys() >= {"blank_image", "nearly_blank_image"} & report.counts.keys()
    assert set(commands.values()) <= set(PRINTED.findall(str(report)))
    for code in sorted(commands.keys() & {"blank_image", "duplicate_pixels", "duplicate_pixels_across_splits"}):
        program, *words = shlex.split(commands[code])
        more = [] if name in ("nih", "siim") else ["--views", "all"]  # as the doctor looks at them
        more += ["--keep-grounding-patients"] if "mimic-cxr" in words else []
        place = words.index("--out") + 1
        assert f"--out {words[place]}" in README.read_text()  # so that later commands can be pasted from there
        words[place] = f"data/{code}"
        status, *_ = msfl(*words, *more, "--workers", 1, "--short-side", 32)
        assert (program, status) == ("msfl", 0)
        dropped = [split.dropped.get(code, 0) for split in read_manifest(f"data/{code}").splits.values()]
        assert sum(dropped) > 0


def test_checksums_are_compared_by_the_printed_command(tmp_path):
    corpus = CORPORA["mimic-cxr zip and checksums"](tmp_path / "it's mine", 21, "files")
    report = examine(source_of(corpus), tmp_path / "out", workers=1, progress=False)
    (command,) = {found.command for found in report.findings if found.code == "wrong_checksum"}
    run = subprocess.run(["sh", "-c", command], capture_output=True, text=True, env={**os.environ, "LC_ALL": "C"})
    assert run.stdout.count(": FAILED\n") >= corpus.expected["wrong_checksum"]


def test_nothing_is_printed_where_no_command_helps(tmp_path):
    corpus = CORPORA["rsna"](tmp_path / "data", 22, "all")
    report = examine(source_of(corpus), tmp_path / "out", workers=1, progress=False)
    commands = {found.code: found.command for found in report.findings}
    assert not any(commands[code] for code in ("missing_image", "bad_box", "bad_row") if code in commands)
