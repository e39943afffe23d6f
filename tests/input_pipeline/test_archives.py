"""Crafted zip files: what is hostile by its directory is refused, what lies in it is found while reading, nothing is unpacked."""

import gc
import io
import random
import re
import struct
import tracemalloc
import zipfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from input_pipeline import archives
from input_pipeline.archives import Archive, BadMember, open_archive
from input_pipeline.errors import DataError
from input_pipeline.zip_directory import read_entries

PATTERN = re.compile(r"files/[a-z0-9/]+\.txt")
GOOD = "files/p10/s1.txt"
TEXT = " FINDINGS:  The lungs are clear and the heart is normal in size.\n"
LIMIT = 65536


def opened(path) -> Archive:
    archive = open_archive(path, PATTERN, ("", "reports/"))
    assert archive is not None
    return archive


def write(path, members, method=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def patch(path, signature, offset, form, value):
    """Overwrites one number of the last header with this signature."""
    data = bytearray(path.read_bytes())
    struct.pack_into(form, data, data.rindex(signature) + offset, value)
    path.write_bytes(data)
    return path


@pytest.fixture
def sandbox(tmp_path):
    """A folder whose whole content must be the archive alone when the test is over."""
    folder = tmp_path / "outer" / "inner"
    folder.mkdir(parents=True)
    yield folder
    assert [path.name for path in sorted((tmp_path / "outer").rglob("*"))] == ["inner", "r.zip"]


@given(st.dictionaries(st.from_regex(PATTERN, fullmatch=True), st.binary(max_size=3000), min_size=1, max_size=8))
@settings(max_examples=100)
def test_members_are_what_the_zipfile_module_reads(tmp_path_factory, members):
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        members = {name: data for name, data in members.items() if len(set(data)) > 20 or not data}
        if not members:
            return
        path = write(tmp_path_factory.mktemp("zip") / "r.zip", {f"reports/{n}": d for n, d in members.items()}, method)
        archive = opened(path)
        assert archive.prefix == "reports/"
        with zipfile.ZipFile(path) as expected:
            for name in members:
                assert archive.read(name, LIMIT) == expected.read(f"reports/{name}")
        with pytest.raises(KeyError):
            archive.read("files/absent.txt", LIMIT)


def test_a_long_member_is_cut_at_the_limit(sandbox):
    text = random.Random(0).randbytes(200_000).hex().encode()
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        archive = opened(write(sandbox / "r.zip", {GOOD: text}, method))
        assert archive.read(GOOD, LIMIT) == text[:LIMIT]
        assert archive.read(GOOD, len(text)) == text


@pytest.mark.parametrize(
    "name", ["../files/p10/x.txt", "/etc/x.txt", "files\\..\\x.txt", "files/../../x.txt", "..", "/"]
)
def test_a_name_that_leads_out_of_the_archive_is_refused(sandbox, name):
    with pytest.raises(DataError, match="member 2 leads out of the archive by its name"):
        opened(write(sandbox / "r.zip", {GOOD: TEXT, name: TEXT}))


def test_a_name_with_a_zero_byte_is_refused(sandbox):
    path = write(sandbox / "r.zip", {GOOD: TEXT, "files/p10/s2Ztxt": TEXT})
    path.write_bytes(path.read_bytes().replace(b"s2Ztxt", b"s2\0txt"))
    with pytest.raises(DataError, match="member 2 leads out of the archive by its name"):
        opened(path)


def test_a_link_is_refused_wherever_it_points(sandbox):
    link = zipfile.ZipInfo("files/p10/s2.txt")
    link.create_system = 3
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(sandbox / "r.zip", "w") as archive:
        archive.writestr(GOOD, TEXT)
        archive.writestr(link, "../../../../etc/passwd")
    with pytest.raises(DataError, match="member 2 is a link"):
        opened(sandbox / "r.zip")


def test_an_archive_within_the_archive_is_not_opened(sandbox):
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as archive:
        archive.writestr("files/p10/s9.txt", TEXT)
        archive.writestr("../../evil.txt", TEXT)
    members = {GOOD: TEXT, "files/p10/more.zip": inner.getvalue(), "files/p10/s2.txt": inner.getvalue()}
    archive = opened(write(sandbox / "r.zip", members))
    assert list(archive.names) == [GOOD, "files/p10/s2.txt"]
    assert archive.read("files/p10/s2.txt", LIMIT) == inner.getvalue()
    with pytest.raises(KeyError):
        archive.read("files/p10/s9.txt", LIMIT)


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_methods_whose_output_cannot_be_bounded_are_refused(sandbox, method):
    with pytest.raises(DataError, match="compressed in an unusual way"):
        opened(write(sandbox / "r.zip", {GOOD: TEXT}, method))


def test_an_encrypted_member_is_refused(sandbox):
    path = write(sandbox / "r.zip", {GOOD: TEXT})
    with pytest.raises(DataError, match="member 1 is encrypted"):
        opened(patch(path, b"PK\1\2", 8, "<H", 1))


def test_a_name_that_is_there_twice_is_refused(sandbox):
    path = write(sandbox / "r.zip", {GOOD: TEXT, "files/p10/s2.txt": TEXT})
    path.write_bytes(path.read_bytes().replace(b"s2.txt", b"s1.txt"))
    with pytest.raises(DataError, match="two members have one name"):
        opened(path)


def test_too_many_members_are_refused(sandbox, monkeypatch):
    monkeypatch.setattr(archives, "MAX_MEMBERS", 3)
    with pytest.raises(DataError, match="4 members or more; expected at most 3"):
        opened(write(sandbox / "r.zip", {f"files/p10/s{number}.txt": TEXT for number in range(4)}))


def test_of_too_many_members_no_more_are_read_than_are_allowed(sandbox, monkeypatch):
    read, entries = [], archives.read_entries
    monkeypatch.setattr(
        archives, "read_entries", lambda path: (read.append(entry.name) or entry for entry in entries(path))
    )
    monkeypatch.setattr(archives, "MAX_MEMBERS", 3)
    with pytest.raises(DataError, match="expected at most 3"):
        opened(write(sandbox / "r.zip", {f"files/p10/s{number}.txt": TEXT for number in range(40)}))
    assert len(read) == 4


def test_a_bomb_is_refused_by_its_directory(sandbox):
    with pytest.raises(DataError, match="member 1 expands more than 100 times"):
        opened(write(sandbox / "r.zip", {GOOD: bytes(10_000_000)}))


def test_a_total_beyond_ten_gigabytes_is_refused(sandbox, monkeypatch):
    assert archives.MAX_TOTAL_BYTES == 10_000_000_000
    monkeypatch.setattr(archives, "MAX_TOTAL_BYTES", 100)
    with pytest.raises(DataError, match="130 bytes when unpacked; expected at most 100"):
        opened(write(sandbox / "r.zip", {GOOD: TEXT, "files/p10/s2.txt": TEXT}))


def test_members_that_share_their_data_are_refused(sandbox):
    # The bomb of overlapping members: many entries of the directory point to one compressed block.
    path = write(sandbox / "r.zip", {GOOD: random.Random(0).randbytes(500).hex()})
    with pytest.raises(DataError, match="the members overlap"):
        opened(patch(path, b"PK\1\2", 20, "<I", path.stat().st_size + 1))


def lying(path, data, *, size, crc=None):
    """An archive whose directory gives a member another unpacked size, so that its ratio looks harmless."""
    write(path, {GOOD: data, "files/p10/s2.txt": random.Random(0).randbytes(2000).hex()})
    content = bytearray(path.read_bytes())
    start = content.index(b"PK\1\2")
    struct.pack_into("<I", content, start + 24, size)
    if crc is not None:
        struct.pack_into("<I", content, start + 16, crc)
    path.write_bytes(content)
    return opened(path)


def test_a_bomb_that_lies_about_its_size_is_stopped_while_reading(sandbox):
    archive = lying(sandbox / "r.zip", bytes(30_000_000), size=1000)
    tracemalloc.start()
    for limit in (2000, LIMIT, 50_000_000):
        with pytest.raises(BadMember):
            archive.read(GOOD, limit)
    assert archive.read("files/p10/s2.txt", LIMIT)
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()


def test_a_bomb_that_lies_about_its_size_in_the_archive_is_stopped_by_what_was_read(sandbox):
    # 64 KB of zeros in 80 bytes; the directory claims the 4,000 bytes after them as well.
    write(sandbox / "r.zip", {GOOD: bytes(65_000), "files/p10/s2.txt": random.Random(0).randbytes(4000).hex()})
    content = bytearray((sandbox / "r.zip").read_bytes())
    struct.pack_into("<I", content, content.index(b"PK\1\2") + 20, 3000)
    struct.pack_into("<I", content, content.rindex(b"PK\1\2") + 20, 100)
    struct.pack_into("<I", content, content.rindex(b"PK\1\2") + 24, 8000)
    (sandbox / "r.zip").write_bytes(content)
    with pytest.raises(BadMember):
        opened(sandbox / "r.zip").read(GOOD, LIMIT)


def test_a_member_with_another_checksum_or_size_is_bad(sandbox):
    text = random.Random(0).randbytes(300).hex().encode()
    with pytest.raises(BadMember):
        lying(sandbox / "r.zip", text, size=len(text), crc=1).read(GOOD, LIMIT)
    with pytest.raises(BadMember):
        lying(sandbox / "r.zip", text, size=len(text) + 1).read(GOOD, LIMIT)
    assert lying(sandbox / "r.zip", text, size=len(text)).read(GOOD, LIMIT) == text


def test_a_header_that_disagrees_with_the_directory_is_bad(sandbox):
    text = random.Random(0).randbytes(300).hex().encode()
    for offset, form, value in ((0, "<I", 0), (6, "<H", 1), (8, "<H", 0), (30, "<B", 65), (26, "<H", 3)):
        path = write(sandbox / "r.zip", {GOOD: text})
        archive = opened(patch(path, b"PK\3\4", offset, form, value))
        with pytest.raises(BadMember):
            archive.read(GOOD, LIMIT)


def test_damaged_archives_are_refused_or_read_as_they_were_but_never_otherwise(sandbox):
    texts = {f"files/p10/s{n}.txt": random.Random(n).randbytes(100 + n).hex().encode() for n in range(6)}
    path = write(sandbox / "r.zip", texts)
    whole, rng, outcomes = path.read_bytes(), random.Random(0), set()
    for _ in range(2000):
        data = bytearray(whole)
        for _ in range(rng.choice((1, 3))):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        path.write_bytes(data[: rng.choice((len(data), len(data), rng.randrange(len(data))))])
        try:
            archive = opened(path)
        except (DataError, AssertionError):  # or no name is one of a text any more
            outcomes.add("refused")
            continue
        for name in archive.names:
            try:
                outcomes.add("read" if archive.read(name, LIMIT) == texts.get(name) else "other")
            except BadMember:
                outcomes.add("bad")
    assert outcomes == {"refused", "read", "bad"}


def test_the_directory_is_not_kept_in_memory(sandbox):
    members = {f"files/p10/p{10000000 + n}/s{50000000 + n}.txt": b"clear" for n in range(6000)}
    path = write(sandbox / "r.zip", members)
    opened(path)  # what is made once
    tracemalloc.start()
    archive = opened(path)
    gc.collect()  # in a process that holds much, what lies in cycles is left for long
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert list(archive.names) == list(members)
    assert held < 20 * len(members)


@given(
    st.dictionaries(st.text(min_size=1, max_size=20), st.binary(max_size=50), min_size=1, max_size=6),
    st.binary(max_size=40),
    st.booleans(),
    st.binary(max_size=60),
)
@settings(max_examples=60)
def test_the_directory_is_what_the_zipfile_module_reads(tmp_path_factory, members, before, long, comment):
    path = tmp_path_factory.mktemp("zip") / "r.zip"
    path.write_bytes(before)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            if "\0" not in name and all(not 0xD800 <= ord(letter) < 0xE000 for letter in name):
                with archive.open(zipfile.ZipInfo(name), "w", force_zip64=long) as member:
                    member.write(data)
        archive.comment = comment.replace(b"PK", b"")
        expected = archive.infolist()
    with zipfile.ZipFile(path) as archive:
        expected = archive.infolist()
    found = list(read_entries(path))
    assert [
        (info.filename, info.flag_bits, info.compress_type, info.CRC, info.compress_size, info.file_size)
        for info in expected
    ] == [tuple(entry[:6]) for entry in found]
    assert [(info.external_attr >> 16, info.header_offset) for info in expected] == [
        (entry.mode, entry.offset) for entry in found
    ]


def test_numbers_that_need_64_bits_are_read(sandbox, monkeypatch):
    # As `zipfile` writes them beyond 2 GB and 65,535 members, with the limits made small.
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 100)
    monkeypatch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", 3)
    members = {f"files/p10/s{n}.txt": random.Random(n).randbytes(150 + n).hex().encode() for n in range(6)}
    archive = opened(write(sandbox / "r.zip", members))
    assert b"PK\6\6" in (sandbox / "r.zip").read_bytes()
    assert list(archive.names) == list(members)
    assert [archive.read(name, LIMIT) for name in members] == list(members.values())


@pytest.mark.parametrize("offset, message", [(20, "the members overlap"), (42, "member 1 lies outside the file")])
def test_a_size_or_place_beyond_the_file_is_refused(sandbox, offset, message):
    path = write(sandbox / "r.zip", {GOOD: TEXT})
    with pytest.raises(DataError, match="not a readable zip file"):
        opened(patch(path, b"PK\1\2", offset, "<I", 2**32 - 1))  # says that an extra field has the number
    with pytest.raises(DataError, match=message):
        opened(patch(path, b"PK\1\2", offset, "<I", 2**32 - 2))
