"""Builds that are run again: after an upgrade, beside notes that were changed, and on disks that take nothing."""

import errno
import json
import os
import re

import pytest

from input_pipeline import progress, versions
from input_pipeline.datasets.mimic_cxr import MimicCxr
from input_pipeline.errors import DataError, RetryError, UserError

from .test_build import contents, make, times_of


@pytest.mark.parametrize("name", ["code", "pydicom", "numpy"])
def test_shards_of_other_code_or_packages_are_written_again(mimic_root, tmp_path, monkeypatch, name):
    make(mimic_root, tmp_path / "out")
    before, times = contents(tmp_path / "out"), times_of(tmp_path / "out")
    assert versions.versions_of(MimicCxr(mimic_root, mimic_root)).keys() >= {"code", "pydicom", "pillow", "numpy"}
    if name == "code":
        monkeypatch.setattr(versions, "code_hash", lambda files: "0" * 64)
    else:
        real = versions.importlib.metadata.version
        monkeypatch.setattr(versions.importlib.metadata, "version", lambda at: "0" if at == name else real(at))
    manifest = make(mimic_root, tmp_path / "out")
    assert not times.items() & times_of(tmp_path / "out").items()
    after = contents(tmp_path / "out")
    assert {file for file in before if after[file] != before[file]} == {"manifest.json"}
    assert manifest.versions[name] == ("0" * 64 if name == "code" else "0")


def test_a_build_of_an_older_program_is_not_refused_for_what_it_did_not_note(mimic_root, tmp_path):
    make(mimic_root, tmp_path / "out")
    note = tmp_path / "out" / ".build" / "build.json"
    values = json.loads(note.read_text())
    values["inputs"] = {role: told for role, told in values["inputs"].items() if told != "absent"}
    note.write_text(json.dumps(values))
    make(mimic_root, tmp_path / "out")


def test_counts_of_a_finished_shard_that_were_changed_are_not_added_up(mimic_root, tmp_path):
    out = tmp_path / "out"
    make(mimic_root, out)
    note = sorted((out / ".build").glob("mimic_cxr-test*.json"))[0]
    values = json.loads(note.read_text())
    note.write_text(json.dumps({**values, "dropped": {"bad_image": 7}}))
    (out / "manifest.json").unlink()
    with pytest.raises(DataError, match=r"34 rows are accounted for and 27 were read; .* delete the build's folder"):
        make(mimic_root, out)
    assert not (out / "manifest.json").exists()


def test_the_rows_that_a_finished_shard_left_out_are_part_of_it(mimic_root, tmp_path):
    out = tmp_path / "out"
    make(mimic_root, out)
    before = contents(out)
    for file in (out / ".build").glob("*.quarantine.jsonl"):
        file.write_text('{"image": "x", "reason": "bad_image"}\n')
    make(mimic_root, out)
    assert contents(out) == before


@pytest.mark.parametrize(
    "number, kind, words",
    [
        (errno.ENOSPC, RetryError, "no space left"),
        (errno.EDQUOT, RetryError, "no space left"),
        (errno.EROFS, UserError, "Read-only"),
    ],
)
@pytest.mark.parametrize("where", ["manifest", "lock", "shard"])
def test_a_disk_that_takes_nothing_is_one_line_wherever_it_shows(
    mimic_root, tmp_path, monkeypatch, where, number, kind, words
):
    def refuse(*_, **__):
        raise OSError(number, os.strerror(number))

    module, name = {
        "manifest": ("input_pipeline.build", "write_manifest"),
        "lock": ("input_pipeline.build", "_lock"),
        "shard": ("input_pipeline.shards", "_write_sidecar"),
    }[where]
    monkeypatch.setattr(f"{module}.{name}", refuse)
    with pytest.raises(kind, match=words) as error:
        make(mimic_root, tmp_path / "out")
    assert "\n" not in str(error.value)
    assert str(tmp_path / "out") in str(error.value)
    monkeypatch.undo()
    make(mimic_root, tmp_path / "out")


def test_the_tables_are_counted_while_they_are_read(mimic_root, tmp_path, monkeypatch, capfd):
    class Clock:
        now = 0.0

        def monotonic(self):
            self.now += 0.5
            return self.now

    monkeypatch.setattr(progress, "time", Clock())
    make(mimic_root, tmp_path / "out", progress=True)
    assert re.search(r"^mimic-cxr-2.0.0-metadata.csv.gz  \d+ rows  \d+/s$", capfd.readouterr().err, re.MULTILINE)
    make(mimic_root, tmp_path / "quiet")
    assert capfd.readouterr().err == ""
