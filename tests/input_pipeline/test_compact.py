"""Compact tables hold what dictionaries would, nearly all of it on disk, and a scan's memory hardly grows with the number of images."""

import os
import pickle
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from input_pipeline.compact import Column, Digests, Members, Names, Part, Texts, alphabetical, ranks

HEX = st.binary(min_size=20, max_size=20).map(lambda data: "-".join(data.hex()[i : i + 8] for i in range(0, 40, 8)))
TEXT = st.text(st.characters(), max_size=50)  # with lone surrogates, as in names of files that are not UTF-8
NAMES = st.lists(st.one_of(HEX, HEX.map(str.upper), TEXT, st.text("ab-0f", max_size=5)), max_size=60)


@given(NAMES, NAMES)
def test_names_are_numbered_as_a_dictionary_would(added, asked):
    names, expected = Names(), {}
    for name in added:
        assert names.add(name) == expected.setdefault(name, len(expected))
    assert list(names) == list(expected)
    assert names[::-1] == list(expected)[::-1]
    for name in asked:
        assert names.find(name) == expected.get(name, -1)
        assert (name in names) == (name in expected)


def test_names_stay_apart_where_all_of_their_hashes_collide(monkeypatch):
    monkeypatch.setattr("builtins.hash", lambda data: 7)
    names = Names()
    assert [names.add(f"{number % 3000}") for number in range(100)] == list(range(100))
    assert [names.find(f"{number}") for number in range(100)] == list(range(100))
    assert names.find("x") == -1


@given(st.dictionaries(st.integers(0, 300), st.integers(0, 255)))
def test_a_column_is_a_dictionary_of_numbers_that_misses_none(values):
    column = Column("B")
    for number, value in values.items():
        column[number] = value
    assert [column[number] for number in range(-1, 400)] == [values.get(number, 0) for number in range(-1, 400)]
    assert list(column.numbers()) == sorted(number for number, value in values.items() if value)


@given(st.dictionaries(HEX, st.binary(min_size=32, max_size=32)), HEX)
def test_digests_are_a_mapping_beside_names_of_other_tables(digests, other):
    names = Names()
    names.add(other)
    found = Digests(names)
    for name, digest in digests.items():
        found[name] = digest.hex().upper()
    assert found == {name: digest.hex() for name, digest in digests.items()}
    assert len(found) == len(digests)


@given(st.lists(st.integers(), max_size=9), st.integers(0, 9), st.integers(0, 9))
def test_a_part_is_a_slice_and_travels_as_a_tuple(items, start, end):
    part = Part(items, range(len(items))[start:end])
    assert list(part) == items[start:end]
    assert part[1:] == items[start:end][1:]
    sent = pickle.loads(pickle.dumps(part))
    assert sent == tuple(items[start:end])
    with pytest.raises(IndexError):
        part[len(part)]


ALIKE = st.builds(
    "{}{}".format, st.sampled_from(["", "x" * 63, "\u00e9" * 32, "x" * 64]), st.text("\0a\u00e9", max_size=2)
)


@given(st.lists(st.one_of(TEXT, ALIKE), unique=True))
def test_names_are_ordered_and_ranked_as_python_sorts_them_however_long_they_begin_alike(expected):
    names = Names()
    assert all(names.put(name) for name in expected)
    assert not any(names.put(name) for name in expected)
    assert [names[number] for number in alphabetical(names).tolist()] == sorted(expected)
    assert ranks(names).tolist() == [sorted(expected).index(name) for name in expected]


@given(st.lists(st.tuples(st.sampled_from("abcdef"), TEXT)))
def test_texts_are_a_dictionary_of_strings(pairs):
    texts, expected = Texts(), dict(pairs)
    for name, text in pairs:
        texts[name] = text
    assert texts == expected
    assert list(texts) == list(expected)
    assert texts.get("g") is None


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.sampled_from(["one", "two", "three"]))), st.data())
def test_members_are_sets_of_names(pairs, data):
    members, expected = Members(["one", "two", "three"]), {"one": set(), "two": set(), "three": set()}
    for name, to in pairs:
        assert members.add(name, to) == (name not in expected[to])
        expected[to].add(name)
    before = members.copy()
    for name in data.draw(st.sets(st.sampled_from("abcdefg"))):
        members.remove(name, "two", "three")
        assert before.of(name) == tuple(one for one in expected if name in expected[one])
        expected["two"].discard(name)
        expected["three"].discard(name)
    for name in data.draw(st.sets(st.sampled_from("abcdefg"), max_size=2)):
        members.clear(name)
        assert members.of(name) == ()
        for one in expected.values():
            one.discard(name)
    held = {name: tuple(one for one in expected if name in expected[one]) for name in "abcdef"}
    assert dict(members.items()) == {name: sets for name, sets in held.items() if sets}
    assert set(members.shared()) == {name for name, sets in held.items() if len(sets) > 1}
    assert members.size("two") == len(expected["two"])
    assert members.size("one", "three") == len(expected["one"] & expected["three"])


def megabytes_at_most(images: int, source: str) -> int:
    """What the benchmark measures in a process of its own."""
    root = Path(__file__).parents[2]
    command = [sys.executable, "-W", "ignore", root / "tests" / "benchmarks" / "build_memory.py", str(images), source]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    told = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
    return int(told.splitlines()[-1].split()[2])


@pytest.mark.parametrize("source", ["mimic", "chexpert", "nih"])
def test_the_scan_of_a_build_needs_little_for_an_image(source):
    # Some 20 bytes each, of MIMIC-CXR with checksums and a zip of reports; dictionaries of strings took 1,000, which would be 25 MB.
    assert megabytes_at_most(28_000, source) - megabytes_at_most(3_000, source) < 5


def test_names_are_not_held_in_memory():
    names = Names()
    tracemalloc.start()
    for number in range(20_000):
        names.add(f"{number:040x}")
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert held < 4 * 20_000


@given(NAMES)
@settings(max_examples=20)
def test_names_outgrow_their_first_slots(added):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("input_pipeline.compact._FIRST_SLOTS", 2)
        patch.setattr("input_pipeline.compact._BLOCK", 7)
        names = Names()
        expected = dict.fromkeys(added)
        for name in expected:
            names.add(name)
        assert list(names) == list(expected)
    assert [names.find(name) for name in expected] == list(range(len(expected)))
