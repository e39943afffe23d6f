"""Reports are the same from the tree and from the zip file, are read within bounds, and are never followed out of either."""

import os
import random
import zipfile
from collections import Counter

import pytest

from input_pipeline.datasets.mimic_cxr import MimicCxr
from input_pipeline.errors import DataError, UserError
from input_pipeline.reports import MAX_REPORT_BYTES, open_reports
from input_pipeline.sources import Dropped


def source(root):
    return MimicCxr(root, root)


def sentences_by_study(data):
    found = {}
    for rows in data.scan().rows.values():
        for row in rows:
            try:
                found[row.study] = data.sentences(row)
            except Dropped as error:
                found[row.study] = error.reason
    return found


def zip_reports(root, path, prefix):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted((root / "mimic-cxr-reports").rglob("*.txt")):
            archive.write(file, prefix + str(file.relative_to(root / "mimic-cxr-reports")))
    return path


@pytest.mark.parametrize("prefix", ["", "mimic-cxr-reports/"])
def test_reports_are_the_same_from_the_tree_and_from_the_zip(mimic_root, tmp_path, prefix):
    archive = zip_reports(mimic_root, tmp_path / "mimic-cxr-reports.zip", prefix)
    tree = sentences_by_study(source(mimic_root))
    assert sentences_by_study(MimicCxr(mimic_root, archive)) == tree
    assert sentences_by_study(MimicCxr(mimic_root, mimic_root / "mimic-cxr-reports")) == tree
    assert Counter(value for value in tree.values() if isinstance(value, str)) == Counter(no_report=1, no_text=1)


def test_sentences_come_from_findings_and_impression(mimic_root):
    data = source(mimic_root)
    row = data.scan().rows["train"][0]
    assert data.sentences(row).texts == (
        "There is opacity in the left lower lobe.",
        "The heart is normal in size.",
        "Compared with [DEID].",
        "Probable opacity of the left lower lobe.",
    )


def test_a_report_is_cut_at_64_kilobytes_and_flagged(own_mimic_root, layout, tmp_path):
    item = layout.studies()[0]
    sizes = random.Random(0)
    text = " FINAL REPORT\n FINDINGS:\n" + "".join(f" The nodule has {sizes.random()} cm.\n" for _ in range(5000))
    (own_mimic_root / "mimic-cxr-reports" / item.txt).write_bytes(text.encode() + b"\xff")
    data = source(own_mimic_root)
    row = data.scan().rows["train"][0]
    found = data.sentences(row)
    assert found.flags == ("truncated_report",)
    assert sum(map(len, found.texts)) <= MAX_REPORT_BYTES
    archive = zip_reports(own_mimic_root, tmp_path / "reports.zip", "")
    assert MimicCxr(own_mimic_root, archive).sentences(row) == found


def test_bytes_that_are_no_text_are_replaced_and_flagged(own_mimic_root, layout):
    item = layout.studies()[0]
    (own_mimic_root / "mimic-cxr-reports" / item.txt).write_bytes(b" FINDINGS:  The \xe9chographie is\0 normal.\n")
    data = source(own_mimic_root)
    assert data.sentences(data.scan().rows["train"][0]).flags == ("replaced_characters",)


def test_what_is_no_reports_archive_is_refused(mimic_root, tmp_path):
    with pytest.raises(UserError, match="no such file or folder"):
        open_reports(tmp_path / "reports")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="expected a folder 'files'"):
        open_reports(tmp_path / "empty")
    (tmp_path / "r.zip").write_bytes(b"PK\3\4 cut")
    with pytest.raises(DataError, match="not a readable zip file"):
        open_reports(tmp_path / "r.zip")
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("readme.txt", "x")
    with pytest.raises(UserError, match="no reports"):
        open_reports(tmp_path / "other.zip")


def test_a_damaged_member_drops_its_study_only(mimic_root, tmp_path, layout):
    archive = zip_reports(mimic_root, tmp_path / "reports.zip", "")
    with zipfile.ZipFile(archive) as opened:
        info = opened.getinfo(layout.studies()[0].txt)
    data = bytearray(archive.read_bytes())
    start = info.header_offset + 30 + len(info.filename)
    data[start : start + info.compress_size] = b"\xff" * info.compress_size
    archive.write_bytes(data)
    found = sentences_by_study(MimicCxr(mimic_root, archive))
    assert found[layout.studies()[0].number] == "bad_report"
    assert Counter(value for value in found.values() if isinstance(value, str))["bad_report"] == 1


def test_a_link_out_of_the_tree_of_reports_is_refused(own_mimic_root, layout, tmp_path):
    item = layout.studies()[0]
    (tmp_path / "elsewhere.txt").write_text(layout.report(0))
    report = own_mimic_root / "mimic-cxr-reports" / item.txt
    report.unlink()
    report.symlink_to(tmp_path / "elsewhere.txt")
    with pytest.raises(UserError, match="leads out of the data folder"):
        open_reports(own_mimic_root).read(item.subject, item.number)


def test_what_is_no_file_is_no_report(own_mimic_root, layout):
    first, second = layout.studies()[:2]
    reports = own_mimic_root / "mimic-cxr-reports"
    for item in (first, second):
        (reports / item.txt).unlink()
    os.mkfifo(reports / first.txt)
    (reports / second.txt).mkdir()
    for item in (first, second):
        with pytest.raises(Dropped, match="no_report"):
            open_reports(own_mimic_root).read(item.subject, item.number)
