"""A hostile or damaged zip of reports ends the doctor in one line, or costs the studies it damages; nothing is unpacked, nowhere."""

import re
import shutil
import struct
import zipfile

import pytest

from input_pipeline import archives

from .mimic import write_mimic

ZIP = "mimic-cxr-reports.zip"


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    return write_mimic(tmp_path_factory.mktemp("clean") / "data", 0, "clean", zipped=True)


@pytest.fixture
def corpus(clean, tmp_path):
    """A copy whose zip file a test may change; whatever the doctor does, it writes nothing beside its own folder."""
    root = tmp_path / "sandbox" / "data"
    shutil.copytree(clean.root, root)
    before = sorted((tmp_path / "sandbox").rglob("*"))
    yield root
    assert sorted((tmp_path / "sandbox").rglob("*")) == before


def patched(path, signature, offset, form, value):
    """Overwrites one number of the first header with this signature."""
    data = bytearray(path.read_bytes())
    struct.pack_into(form, data, data.index(signature) + offset, value)
    path.write_bytes(data)


def add(path, name, data=b"FINDINGS:  Clear.\n", **attributes):
    info = zipfile.ZipInfo(name)
    for attribute, value in attributes.items():
        setattr(info, attribute, value)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(info, data, attributes.get("compress_type", zipfile.ZIP_DEFLATED))


def twice(path):
    add(path, "files/p10/p10000000/s50000009.txt")
    add(path, "files/p10/p10000000/s50000008.txt")
    path.write_bytes(path.read_bytes().replace(b"s50000009", b"s50000008"))


LINK = {"create_system": 3, "external_attr": 0o120777 << 16}
HOSTILE = {
    "climbs": (lambda path: add(path, "../../evil.txt"), r"member \d+ leads out of the archive by its name"),
    "absolute": (lambda path: add(path, "/tmp/evil.txt"), "leads out of the archive"),
    "backslashes": (lambda path: add(path, "..\\evil.txt"), "leads out of the archive"),
    "link": (lambda path: add(path, "files/p10/p10000000/s5.txt", b"/etc/passwd", **LINK), r"member \d+ is a link"),
    "bomb": (lambda path: add(path, "files/p10/p10000000/s5.txt", bytes(10**7)), "expands more than 100 times"),
    "encrypted": (lambda path: patched(path, b"PK\1\2", 8, "<H", 1), "member 1 is encrypted"),
    "method": (lambda path: add(path, "x.txt", compress_type=zipfile.ZIP_LZMA), "compressed in an unusual way"),
    "twice": (twice, "two members have one name"),
    "overlap": (lambda path: patched(path, b"PK\1\2", 20, "<I", path.stat().st_size), "the members overlap"),
    "cut": (lambda path: path.write_bytes(path.read_bytes()[:-40]), "not a readable zip file; fetch it again"),
    "html": (lambda path: path.write_bytes(b"<html>Sign in</html>"), "not a readable zip file"),
    "no bytes": (lambda path: path.write_bytes(b""), "not a readable zip file"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_zip_ends_the_doctor_in_one_line(name, corpus, msfl, tmp_path):
    spoil, expected = HOSTILE[name]
    spoil(corpus / ZIP)
    code, told, err = msfl("data", "doctor", corpus, "--out", tmp_path / "out", "--workers", 1)
    assert (code, told, err.count("\n")) == (3, "", 1)
    assert re.match(f"error: {ZIP}: .*{expected}", err)
    assert "p10000000" not in err


@pytest.mark.parametrize("limit, value", [("MAX_MEMBERS", 30), ("MAX_TOTAL_BYTES", 3000)])
def test_too_many_members_and_too_large_ones_are_refused(limit, value, corpus, msfl, tmp_path, monkeypatch):
    monkeypatch.setattr(archives, limit, value)
    add(corpus / ZIP, "files/p10/index.txt")  # another file than the one that was opened before
    code, _, err = msfl("data", "doctor", corpus, "--out", tmp_path / "out", "--workers", 1)
    assert (code, err.count("\n")) == (3, 1)
    assert f"expected at most {value}" in err


def test_a_zip_without_reports_is_refused(corpus, msfl, tmp_path):
    (corpus / ZIP).unlink()
    add(corpus / ZIP, "readme.txt")
    code, _, err = msfl("data", "doctor", corpus, "--out", tmp_path / "out", "--workers", 1)
    assert (code, err.count("\n")) == (2, 1)
    assert "expected members files/p10/p.../s....txt" in err


def test_members_that_lie_cost_their_studies_alone(corpus, msfl, tmp_path):
    path = corpus / ZIP
    data = bytearray(path.read_bytes())
    places = [match.start() for match in re.finditer(b"PK\1\2", data)]
    struct.pack_into("<I", data, places[0] + 24, 60_000 // 100)  # another size than there is
    struct.pack_into("<I", data, places[1] + 16, 1)  # another checksum
    start = struct.unpack_from("<I", data, places[2] + 42)[0]
    data[start + 31] ^= 1  # another name in the header of the member itself
    path.write_bytes(data)
    code, told, _ = msfl("data", "doctor", corpus, "--out", tmp_path / "out", "--workers", 1)
    assert code == 3
    assert re.search(r"^fault  bad_report +3 of 130 ", told, re.MULTILINE)


def test_an_archive_within_the_archive_is_left_alone(corpus, msfl, tmp_path):
    inner = (corpus / ZIP).read_bytes()
    add(corpus / ZIP, "files/p10/more.zip", inner)
    assert msfl("data", "doctor", corpus, "--out", tmp_path / "out", "--workers", 1, "--sample", 2)[0] == 0
