"""Builds are the same bytes whatever happened on the way, account for every row, and keep identifiers to themselves."""

import dataclasses
import errno
import gzip
import hashlib
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest

from input_pipeline import reading, shards
from input_pipeline.build import build, read_manifest
from input_pipeline.datasets.mimic_cxr import MimicCxr
from input_pipeline.errors import DataError, RetryError, UserError
from input_pipeline.images import decode_gray
from input_pipeline.keys import Keyring, open_keyring

SETTINGS = {"short_side": 32, "shard_records": 5, "progress": False}


def make(root, out, *, workers=1, **changes):
    return build(MimicCxr(root, root), out, workers=workers, **{**SETTINGS, **changes})


def contents(out):
    """Bytes of everything that readers see."""
    return {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}


def test_counts_add_up_to_the_input(mimic_build):
    manifest = read_manifest(mimic_build)
    assert manifest.input_rows == 27 == sum(split.input_rows for split in manifest.splits.values())
    for split in manifest.splits.values():
        assert split.input_rows == split.records + sum(split.dropped.values())
        assert split.records == sum(shard.records for shard in split.shards)
    assert manifest.splits["train"].dropped == {
        "bad_image": 1,
        "missing_image": 1,
        "no_metadata": 1,
        "no_report": 1,
        "no_text": 1,
        "not_frontal": 1,
    }
    assert manifest.splits["none"].dropped == {"no_split": 1}
    assert manifest.readable_splits() == ("train", "validate", "test")
    assert manifest.counts == {"train": 12, "validate": 4, "test": 4}


def test_rows_of_tables_are_counted_beside_the_images_that_they_are_about(mimic_root, mimic_build):
    manifest = read_manifest(mimic_build)
    metadata = manifest.table_rows["mimic-cxr-2.0.0-metadata.csv.gz"]
    dropped = sum((Counter(split.dropped) for split in manifest.splits.values()), Counter())
    text = gzip.decompress((mimic_root / "mimic-cxr-2.0.0-metadata.csv.gz").read_bytes()).decode()
    assert metadata == len(text.splitlines()) - 1
    assert manifest.input_rows == metadata + dropped["no_metadata"] + dropped["in_no_table"]


def test_a_manifest_prints_as_one_line_per_split(mimic_build):
    assert str(read_manifest(mimic_build)).splitlines() == [
        "mimic_cxr           27 input rows, short side 32",
        "train               12 records; dropped bad_image 1, missing_image 1, no_metadata 1, no_report 1, no_text 1, not_frontal 1"
        "; flagged view_from_code 1",
        "validate             4 records",
        "test                 4 records",
        "none                 0 records; dropped no_split 1",
        "absent      checksums, image_filenames, test-set-labeled",
    ]


def test_records_hold_what_the_files_hold(mimic_build, mimic_root, layout):
    keyring = open_keyring(mimic_build.parent)
    found = {record.image_key: record for record in reading.open_split(mimic_build, "test")}
    for item in layout.studies():
        if item.split != "test":
            continue
        record = found.pop(keyring.key("image", item.image))
        source = decode_gray((mimic_root / item.jpg).read_bytes())
        stored = decode_gray(record.image)
        assert record.original_size == source.shape
        assert min(stored.shape) == 32
        assert abs(stored.mean() - source.mean()) < 2
        assert record.study_key == keyring.key("study", item.number)
        assert record.patient_key == keyring.key("patient", item.subject)
        assert record.sentences[1] == "The heart is normal in size."
        assert record.labels.shape == (14,)
        assert record.boxes.shape == (0, 4)
    assert not found


def test_two_workers_write_the_bytes_of_one(mimic_root, mimic_build):
    out = mimic_build.parent / "two-workers"
    make(mimic_root, out, workers=2)
    assert contents(out) == contents(mimic_build)


def times_of(out):
    return {path.name: path.stat().st_mtime_ns for path in out.glob("*array_record*")}


def test_a_second_run_keeps_every_shard_and_every_byte(mimic_root, tmp_path):
    make(mimic_root, tmp_path / "out")
    before, times = contents(tmp_path / "out"), times_of(tmp_path / "out")
    make(mimic_root, tmp_path / "out")
    assert contents(tmp_path / "out") == before
    assert times_of(tmp_path / "out") == times


def test_a_half_finished_folder_is_completed_to_the_same_bytes(mimic_root, tmp_path):
    out = tmp_path / "out"
    make(mimic_root, out)
    before = contents(out)
    first, second, third, *_ = sorted(out.glob("mimic_cxr-train*"))
    kept = third.stat().st_mtime_ns
    first.unlink()
    second.write_bytes(second.read_bytes()[:-100])
    (out / ".build" / f"{first.name}.123.tmp").write_bytes(b"half a shard")
    (out / "manifest.json").unlink()
    (out / "dataset_info.json").unlink()
    make(mimic_root, out)
    assert contents(out) == before
    assert third.stat().st_mtime_ns == kept
    assert not list((out / ".build").glob("*.tmp"))


def test_a_flipped_bit_in_a_finished_shard_is_repaired(mimic_root, tmp_path):
    out = tmp_path / "out"
    make(mimic_root, out)
    before = contents(out)
    shard = next(out.glob("mimic_cxr-test*"))
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    make(mimic_root, out)
    assert contents(out) == before


KILLED = """
import dataclasses, os, signal, sys
from pathlib import Path
from input_pipeline.build import build
from input_pipeline.datasets.mimic_cxr import MimicCxr

@dataclasses.dataclass(frozen=True)
class Killing(MimicCxr):
    def image(self, row):
        if row.image == {image!r}:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().image(row)

if __name__ == "__main__":
    root = Path({root!r})
    try:
        build(Killing(root, root), Path({out!r}), workers={workers}, short_side=32, shard_records=5, progress=False)
    except Exception as error:
        print(error)
        sys.exit(error.exit_code)
"""


@pytest.mark.parametrize("workers, code", [(1, -signal.SIGKILL), (2, RetryError.exit_code)])
def test_a_killed_build_is_completed_to_the_same_bytes(mimic_root, mimic_build, layout, tmp_path, workers, code):
    out = mimic_build.parent / f"killed-{workers}"
    script = tmp_path / "killed.py"
    image = layout.studies()[19].image  # in the last shard of train
    script.write_text(KILLED.format(image=image, root=str(mimic_root), out=str(out), workers=workers))
    run = subprocess.run([sys.executable, "-W", "ignore", script], capture_output=True, text=True, env=environment())
    assert run.returncode == code, run.stderr[-2000:]
    assert not (out / "manifest.json").exists()
    with pytest.raises(UserError, match="no finished build"):
        read_manifest(out)
    if workers == 1:
        assert len(list(out.glob("mimic_cxr-train*"))) == 3
    make(mimic_root, out)
    assert contents(out) == contents(mimic_build)


def environment():
    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}


def test_only_shards_of_changed_files_are_written_again(own_mimic_root, layout, tmp_path):
    out = tmp_path / "out"
    make(own_mimic_root, out)
    times = {path.name: path.stat().st_mtime_ns for path in out.glob("*array_record*")}
    healthy, broken = (own_mimic_root / layout.studies()[number].jpg for number in (13, 12))
    broken.write_bytes(healthy.read_bytes())
    manifest = make(own_mimic_root, out)
    assert "bad_image" not in manifest.splits["train"].dropped
    changed = {path.name for path in out.glob("*array_record*") if path.stat().st_mtime_ns != times[path.name]}
    assert changed == {"mimic_cxr-train.array_record-00001-of-00004"}


def test_the_set_of_images_has_one_hash_for_any_shard_and_image_size(mimic_root, mimic_build, tmp_path):
    shutil.copy(mimic_build.parent / ".msfl_salt", tmp_path)
    other = make(mimic_root, tmp_path / "out", short_side=16, shard_records=3)
    expected = read_manifest(mimic_build)
    assert {name: split.members for name, split in other.splits.items()} == {
        name: split.members for name, split in expected.splits.items()
    }
    assert other.key_check == expected.key_check
    assert len({split.members for split in expected.splits.values()}) == 4


def test_the_hash_of_a_set_of_one_image_says_nothing_without_the_salt(own_mimic_root, layout, tmp_path):
    (only,) = (item for item in layout.studies() if item.study == 8)
    table = [{"dicom_id": only.image, "split": "train"}]
    layout.write_table(tmp_path / "own.csv", table)
    source = MimicCxr(own_mimic_root, own_mimic_root, splits=tmp_path / "own.csv")
    found = [build(source, tmp_path / root / "out", workers=1, **SETTINGS) for root in ("a", "b")]
    members = {manifest.splits["train"].members for manifest in found}
    assert found[0].counts == {"train": 1}
    assert len(members) == 2
    assert not members & {hashlib.sha256(f"{only.image}{end}".encode()).hexdigest() for end in ("", "\n")}


def test_a_folder_of_another_build_is_refused(mimic_root, tmp_path, layout):
    out = tmp_path / "out"
    make(mimic_root, out)
    before = contents(out)
    with pytest.raises(UserError, match="holds another build: short_side was 32 and is now 64; use another --out"):
        make(mimic_root, out, short_side=64)
    with pytest.raises(UserError, match="views was frontal and is now all"):
        build(MimicCxr(mimic_root, mimic_root, views="all"), out, workers=1, **SETTINGS)
    other = layout.write_mimic(tmp_path / "other")
    layout.write_table(other / "mimic-cxr-2.0.0-split.csv.gz", layout.table_rows()["split"][::-1])
    with pytest.raises(UserError, match="the inputs differ"):
        make(other, out)
    assert contents(out) == before


def test_a_folder_that_is_no_build_is_left_alone(mimic_root, tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="holds something that is no build"):
        make(mimic_root, tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "mine"


def test_two_builds_at_once_are_refused(mimic_root, tmp_path):
    import fcntl

    out = tmp_path / "out"
    make(mimic_root, out)
    with (out / ".build" / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(RetryError, match="another command is building here"):
            make(mimic_root, out)
    make(mimic_root, out)


@pytest.mark.parametrize("option", [{"short_side": 1}, {"quality": 101}, {"workers": 0}, {"shard_records": 0}])
def test_options_out_of_range_are_refused(mimic_root, tmp_path, option):
    with pytest.raises(UserError, match=f"{next(iter(option))} is .*; expected"):
        make(mimic_root, tmp_path / "out", **option)
    assert not (tmp_path / "out").exists()


def test_an_input_without_a_single_record_is_refused_with_its_reasons(own_mimic_root, tmp_path):
    for path in own_mimic_root.rglob("*.jpg"):
        path.write_bytes(b"<html>404</html>")
    with pytest.raises(DataError, match="none of 27 input rows became a record \\(bad_image 21"):
        make(own_mimic_root, tmp_path / "out")
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_quarantine_names_images_by_key_and_reason_only(mimic_build, layout):
    keyring = open_keyring(mimic_build.parent)
    lines = [json.loads(line) for line in (mimic_build / "quarantine.jsonl").read_text().splitlines()]
    expected = {4: "no_report", 6: "no_text", 12: "bad_image", 14: "missing_image"}
    assert {line["image"]: line["reason"] for line in lines} == {
        keyring.key("image", layout.studies()[number].image): reason for number, reason in expected.items()
    }
    assert all(set(line) == {"image", "reason"} for line in lines)


def test_no_identifier_or_text_reaches_a_file_beside_the_shards(mimic_build, layout):
    names = [path for path in mimic_build.rglob("*") if path.is_file() and not path.name.count("array_record-")]
    names += list((mimic_build / ".build").glob("*.json"))
    everything = b"".join(path.read_bytes() for path in names)
    salt = (mimic_build.parent / ".msfl_salt").read_text().strip().encode()
    secrets = [salt, b"lower lobe", b"normal in size"]
    for item in layout.studies():
        secrets += [item.subject.encode(), item.number.encode(), item.image.encode()]
    assert len(everything) > 1000
    assert [secret for secret in secrets if secret in everything] == []


def test_a_full_disk_is_one_line_and_the_build_goes_on_from_there(mimic_root, tmp_path, monkeypatch):
    class FullDisk(shards.ArrayRecordWriter):
        def write(self, data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    options = {"short_side": 32, "workers": 1, "shard_records": 5, "progress": False}
    monkeypatch.setattr(shards, "ArrayRecordWriter", FullDisk)
    with pytest.raises(RetryError, match="no space left; free some and run the same command again"):
        build(MimicCxr(mimic_root, mimic_root), tmp_path / "out", **options)
    monkeypatch.undo()
    build(MimicCxr(mimic_root, mimic_root), tmp_path / "out", **options)
    assert not list((tmp_path / "out" / ".build").glob("*.tmp"))


def test_progress_goes_to_stderr_in_plain_lines(mimic_root, tmp_path, capfd):
    make(mimic_root, tmp_path / "out", progress=True)
    captured = capfd.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert lines[-1].startswith("records  24/24 images")
    assert len(lines) <= 11


def test_a_manifest_of_another_version_is_refused(mimic_root, tmp_path):
    make(mimic_root, tmp_path / "out")
    path = tmp_path / "out" / "manifest.json"
    path.write_text(path.read_text().replace('"quality"', '"kwality"'))
    with pytest.raises(DataError, match="not a manifest of this version"):
        read_manifest(tmp_path / "out")


def test_a_manifest_survives_being_written(mimic_root, tmp_path):
    assert make(mimic_root, tmp_path / "out") == read_manifest(tmp_path / "out")


def test_keys_depend_on_salt_kind_and_identifier(tmp_path):
    keyring = open_keyring(tmp_path)
    assert open_keyring(tmp_path) == keyring
    assert stat.S_IMODE((tmp_path / ".msfl_salt").stat().st_mode) == 0o600
    keys = {keyring.key(kind, name) for kind in ("patient", "study", "image") for name in ("1", "2")}
    assert len(keys | {Keyring(bytes(32)).key("image", "1")}) == 7
    assert all(len(key) == 32 and int(key, 16) >= 0 for key in keys)
    assert keyring.salt.hex() not in repr(keyring)
    assert [path.name for path in tmp_path.iterdir()] == [".msfl_salt"]


@pytest.mark.parametrize("content", ["", "xyz", "00" * 31])
def test_a_damaged_salt_is_refused(tmp_path, content):
    (tmp_path / ".msfl_salt").write_text(content)
    with pytest.raises(UserError, match="expected 64 hex digits"):
        open_keyring(tmp_path)


def test_blank_images_are_kept_and_flagged(own_mimic_root, layout, tmp_path):
    import cv2

    cv2.imwrite(str(own_mimic_root / layout.studies()[0].jpg), np.full((40, 40), 7, np.uint8))
    assert make(own_mimic_root, tmp_path / "out").splits["train"].flags == {"blank_image": 1, "view_from_code": 1}


def test_the_shards_of_a_split_hold_its_rows_in_order(mimic_build, mimic_root):
    keyring = open_keyring(mimic_build.parent)
    rows = MimicCxr(mimic_root, mimic_root).scan().rows["train"]
    order = [keyring.key("image", row.image) for row in rows]
    stored = [record.image_key for record in reading.open_split(mimic_build, "train")]
    assert stored == [key for key in order if key in set(stored)]
    assert Counter(stored).most_common(1)[0][1] == 1
    sizes = [shard.records for shard in read_manifest(mimic_build).splits["train"].shards]
    assert sizes == [4, 3, 4, 1]
    assert dataclasses.asdict(read_manifest(mimic_build))["short_side"] == 32
