"""Tables on disk are what the same in memory would be, leave no file behind, and say so where the disk is full."""

import errno
import gc
import os
import struct
import tempfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from input_pipeline.errors import RetryError
from input_pipeline.scratch import Rows, Scratch

# Where to, -1 for the end, and how much of what.
WRITES = st.lists(st.tuples(st.integers(-1, 90_000), st.integers(0, 40_000), st.integers(1, 255)), max_size=12)


@given(WRITES, st.lists(st.tuples(st.integers(0, 100_000), st.integers(0, 50_000)), max_size=12), st.integers(0, 300))
def test_scratch_is_a_bytearray_that_grows_with_zeros(writes, reads, size):
    scratch, expected = Scratch(size), bytearray(size)
    for start, length, value in writes:
        place, data = len(expected) if start < 0 else start, bytes((value,)) * length
        if start < 0:
            scratch.append(data)
        elif data:
            scratch.write(start, data)
        if data:
            expected.extend(bytes(max(0, place + len(data) - len(expected))))
            expected[place : place + len(data)] = data
        assert len(scratch) == len(expected)
    assert scratch.read(0, len(expected)) == expected
    for start, length in reads:
        assert scratch.read(start, length) == bytes(expected[start : start + length]).ljust(length, b"\0")


@given(st.lists(st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 255)), max_size=30), st.data())
def test_rows_are_a_list_of_tuples(items, data):
    rows = Rows("IB")
    for item in items:
        rows.append(*item)
    for place in data.draw(st.lists(st.integers(0, max(0, len(items) - 1)), max_size=5)):
        rows[place] = (7, 7)
        items[place : place + 1] = [(7, 7)]
    assert [rows[place] for place in range(len(rows))] == items
    assert rows[len(rows) + 3] == (0, 0)
    assert rows.tobytes() == b"".join(struct.pack("<IB", *item) for item in items)


def test_nothing_is_left_of_a_scratch(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    scratch = Scratch()
    scratch.append(bytes(100_000))
    file = scratch._file
    assert list(tmp_path.iterdir()) == []  # a file without a name goes with the process, even one that is killed
    del scratch
    gc.collect()
    assert file.closed


def test_a_full_disk_is_said_in_one_line(monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    scratch = Scratch()
    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(RetryError, match="set TMPDIR to another disk"):
        scratch.append(bytes(100_000))
