"""Every fault that was planted is found as often as it was planted, and nothing else is; what is in order raises no alarm."""

import json
import re
from collections import Counter
from dataclasses import dataclass, field

import pytest

from input_pipeline import dicom, tables
from input_pipeline.build import build
from input_pipeline.datasets.chexpert import Chexpert
from input_pipeline.datasets.releases import detect
from input_pipeline.diagnoses import DIAGNOSES
from input_pipeline.doctor import NOTES_NAME, QUARANTINE_NAME, examine
from input_pipeline.errors import UserError
from input_pipeline.keys import open_keyring

from .corpora import CORPORA, source_of
from .files import LOST, write_csv
from .labelled import CHEXPERT_HEADER, write_chexpert, write_nih, write_siim
from .mimic import PREFIX, images, write_mimic

ONLY_THE_DOCTOR = {
    "nearly_blank_image",
    "duplicate_pixels",
    "duplicate_pixels_across_splits",
    "file_in_no_table",
    "two_files",
}


def lines(out, name=QUARANTINE_NAME):
    return [json.loads(line) for line in (out / name).read_text().splitlines()]


def examined(corpus, out, **options):
    return examine(source_of(corpus), out, **{"workers": 1, "progress": False, **options})


@pytest.mark.parametrize("level, seed", [("files", 1), ("all", 2)])
@pytest.mark.parametrize("name", CORPORA)
def test_all_that_was_planted_is_found_and_nothing_else(name, level, seed, tmp_path):
    corpus = CORPORA[name](tmp_path / "data", seed, level)
    source, out = source_of(corpus), tmp_path / "out"
    report = examined(corpus, out)
    assert report.counts == dict(corpus.expected)
    assert report.looked_at == report.input_rows - corpus.dropped
    assert report.records == report.looked_at - corpus.lost
    assert report.refused
    rows = [row for part in source.scan(lenient=True).rows.values() for row in part]
    keyring = open_keyring(out)
    paths = {keyring.key("image", row.image): source.files(row)[0] for row in rows}
    for code, expected in corpus.files.items():
        told = lines(out, QUARANTINE_NAME if DIAGNOSES[code].unusable else NOTES_NAME)
        found = {paths[line["image"]] for line in told if line["reason"] == code and line.get("image") in paths}
        if code == "missing_image":  # in which of its folders a missing file would lie is anyone's guess
            found, expected = {path.name for path in found}, {path.name for path in expected}
        assert found == expected, code


@pytest.mark.parametrize("name", CORPORA)
def test_what_is_in_order_raises_no_alarm(name, tmp_path, msfl):
    corpus = CORPORA[name](tmp_path / "data", 3, "clean")
    command = ["data", "doctor", corpus.root, *corpus.arguments, "--out", tmp_path / "out", "--workers", 1]
    code, out, err = msfl(*command, "--threshold", 0)
    assert code == 0
    assert not err.startswith("error")
    assert re.findall(r"^(?:stop|fault|note) +(\w+)", out, re.MULTILINE) == []
    assert not corpus.expected
    assert "unusable        0 (0.00%; limit 0.00%)" in out
    assert lines(tmp_path / "out") == lines(tmp_path / "out", NOTES_NAME) == []


@pytest.mark.parametrize("name", [name for name in CORPORA if name not in ("ms-cxr json", "nih without lists")])
def test_a_build_drops_and_flags_what_the_doctor_finds(name, tmp_path):
    corpus = CORPORA[name](tmp_path / "data", 4, "files")
    for link in corpus.files["path_outside"]:
        link.unlink()  # a build would stop at it
    report = examined(corpus, tmp_path / "doctor")
    manifest = build(source_of(corpus), tmp_path / "data root" / "out", workers=1, progress=False)
    told = Counter()
    for split in manifest.splits.values():
        told.update(split.dropped)
        told.update(split.flags)
    told.pop("view_from_code", None)  # no oddity
    assert told == {code: count for code, count in report.counts.items() if code not in ONLY_THE_DOCTOR}
    assert sum(manifest.counts.values()) == report.records
    assert manifest.input_rows == report.input_rows
    quarantined = Counter(line["reason"] for line in lines(tmp_path / "data root" / "out"))
    own = Counter(line["reason"] for name in (QUARANTINE_NAME, NOTES_NAME) for line in lines(tmp_path / "doctor", name))
    assert quarantined == {code: count for code, count in own.items() if code in LOST}


def test_processes_find_the_same(tmp_path):
    corpus = write_mimic(tmp_path / "data", 5, "all", sums=True, zipped=True)
    alone = examined(corpus, tmp_path / "out")
    assert examined(corpus, tmp_path / "out", workers=2) == alone


def test_the_exit_code_follows_the_threshold_and_the_files_are_for_those_who_hold_the_data(tmp_path, msfl):
    corpus = write_chexpert(tmp_path / "chexpert", 6, "all")
    out = tmp_path / "out"
    command = ["data", "doctor", corpus.root, "--out", out, "--workers", 1]
    share = examined(corpus, out).unusable_share
    for threshold, expected in ((share + 1e-6, 0), (share - 1e-6, 3)):
        code, told, err = msfl(*command, "--threshold", threshold)
        assert code == expected
        assert told.count("\nstop ") == len({"bad_row", "unknown_label", "bad_identifier"}) + 3
        errors = [line for line in err.splitlines() if line.startswith("error: ")]
        assert len(errors) == (expected == 3)
    assert f"chexpert: {share:.2%} of the rows are unusable" in errors[0]
    for reason, paths in corpus.files.items():
        of_reason = [line for name in (QUARANTINE_NAME, NOTES_NAME) for line in lines(out, name)]
        for line in of_reason:
            if line["reason"] == reason:
                code, told, _ = msfl(*command, "--reveal", line["image"])
                assert code == 0
                assert told.strip() in {str(path) for path in paths}
    (patient,) = (line["patient"] for line in lines(out) if line["reason"] == "patient_in_two_splits")
    code, told, _ = msfl(*command, "--reveal", patient)
    assert re.search(r"/(train|valid)/patient00\d{3}/study1/view1_frontal.jpg$", told.strip())


def test_a_key_of_nothing_is_refused_in_one_line_and_makes_no_folder(tmp_path, msfl):
    corpus = write_siim(tmp_path / "siim", 7, "clean")
    for out in ("out", "never"):
        if out == "out":
            examined(corpus, tmp_path / out)
        code, told, err = msfl("data", "doctor", corpus.root, "--out", tmp_path / out, "--reveal", "0" * 32)
        assert (code, told, err.count("\n")) == (2, "", 1)
        assert "found nothing with this key" in err
    assert not (tmp_path / "never").exists()


@pytest.mark.parametrize("name", ["mimic-cxr zip and checksums", "nih", "rsna"])
def test_quarantine_holds_nothing_but_reasons_hashes_and_numbered_rows(name, tmp_path):
    corpus = CORPORA[name](tmp_path / "data", 8, "all")
    report = examined(corpus, tmp_path / "out")
    found = Counter()
    for file in (QUARANTINE_NAME, NOTES_NAME):
        for line in lines(tmp_path / "out", file):
            found[line.pop("reason")] += 1
            message = line.pop("message", "")
            assert all(re.fullmatch("[0-9a-f]{32}", key) for key in line.values())
            assert set(line) <= {"image", "part", "patient", "same_as"}
            assert line or message
    in_files = {code: count for code, count in report.counts.items() if code in found}
    assert found == in_files
    told = "".join((tmp_path / "out" / file).read_text() for file in (QUARANTINE_NAME, NOTES_NAME))
    rows = [row for part in source_of(corpus).scan(lenient=True).rows.values() for row in part]
    assert [row.image for row in rows if row.image in told or row.path in told] == []


@dataclass(frozen=True)
class Watched(Chexpert):
    """Remembers which images were read."""

    read: list = field(default_factory=list)

    def image(self, row):
        self.read.append(row.image)
        return super().image(row)


def test_a_sample_is_spread_evenly_over_every_split(tmp_path, msfl):
    corpus = write_chexpert(tmp_path / "chexpert", 9, "clean")
    source = Watched(corpus.root, views="all")
    report = examine(source, tmp_path / "out", workers=1, sample=15, progress=False)
    assert report.looked_at == len(source.read) == 30
    for split, part in source.scan().rows.items():
        places = [place for place, row in enumerate(part) if row.image in source.read]
        assert len(places) == 15, split
        gaps = {after - before for before, after in zip(places, [*places[1:], len(part)], strict=True)}
        assert max(gaps) - min(gaps) <= 1
    options = ["--sample", 15, "--workers", 1, "--out", tmp_path / "out"]
    code, told, _ = msfl("data", "doctor", corpus.root, *options)
    assert code == 0
    assert "140 input rows, 30 looked at, 30 would be records" in told


def test_a_sample_weighs_faults_of_images_by_the_images_it_saw(tmp_path):
    corpus = write_nih(tmp_path / "nih", 10, "clean")
    for path in (corpus.root / "images_001" / "images").iterdir():
        path.unlink()
    report = examined(corpus, tmp_path / "out", sample=10)
    assert report.unusable_share == pytest.approx(report.counts["missing_image"] / report.looked_at)
    assert report.looked_at == 20


def test_what_decoders_say_is_told_by_kind(tmp_path):
    corpus = write_siim(tmp_path / "siim", 11, "files")
    (finding,) = (found for found in examined(corpus, tmp_path / "out").findings if found.code == "bad_image")
    assert sum(finding.kinds.values()) == finding.count == corpus.expected["bad_image"]
    told = "\n".join(finding.kinds)
    for words in (
        "no decoder here",
        "no pixel data",
        "RescaleSlope is 0",
        "3 frames",
        "deflated as a whole",
        "too elongated",
    ):
        assert words in told
    assert max(finding.kinds.values()) > 1, "messages that differ by numbers alone are one kind"
    assert len(re.findall(r"^ {7}\d+ x ", str(finding), re.MULTILINE)) == 6
    assert f"{sum(list(finding.kinds.values())[5:])} x something else" in str(finding)


def test_a_header_without_rows_is_refused(tmp_path, msfl):
    write_csv(tmp_path / "train.csv", [CHEXPERT_HEADER])
    code, told, err = msfl("data", "doctor", tmp_path, "--out", tmp_path / "out", "--workers", 1)
    assert code == 3
    assert "stop   no_rows" in told
    assert "0 input rows, 0 looked at, 0 would be records" in told
    assert err.count("\n") == 1


def test_a_table_of_one_row_is_examined(tmp_path, msfl):
    row = ["train/patient00001/study1/view1_frontal.jpg", "Male", "50", "Frontal", "AP", *["1.0"] * 14]
    write_csv(tmp_path / "train.csv", [CHEXPERT_HEADER, row])
    code, told, _ = msfl("data", "doctor", tmp_path, "--out", tmp_path / "out", "--workers", 1)
    assert code == 3
    assert "fault  missing_image                           1 of 1" in told


def test_a_table_of_nothing_but_wrong_rows_is_wholly_unusable(tmp_path):
    write_csv(tmp_path / "train.csv", [CHEXPERT_HEADER, *[["x"]] * 7])
    report = examine(detect(tmp_path), tmp_path / "out", workers=1, progress=False)
    assert report.counts == {"bad_row": 7}
    assert report.unusable_share == 1


def test_a_table_that_stands_there_twice_is_read_few_times(tmp_path, monkeypatch):
    corpus = write_mimic(tmp_path / "mimic", 12, "clean")
    path = corpus.root / f"{PREFIX}split.csv.gz"
    header, *rows = (
        [*values] for _, values in tables.read_table(path, ["dicom_id", "study_id", "subject_id", "split"])
    )
    names = ["dicom_id", "study_id", "subject_id", "split"]
    write_csv(path, [names, header, *rows, header, *rows])
    opened, real = [], tables._open
    monkeypatch.setattr(tables, "_open", lambda path: opened.append(path) or real(path))
    assert examined(corpus, tmp_path / "out", sample=1).counts["duplicate_image"] == 1 + len(rows)
    assert len(opened) < 10


def test_without_pydicom_the_extra_is_named_rather_than_every_image_blamed(tmp_path, monkeypatch):
    corpus = write_siim(tmp_path / "siim", 13, "clean")

    def absent():
        raise UserError("reading DICOM needs pydicom")

    monkeypatch.setattr(dicom, "_pydicom", absent)
    with pytest.raises(UserError, match="needs pydicom"):
        examined(corpus, tmp_path / "out")


def test_that_no_checksum_vouches_for_the_images_is_said(tmp_path):
    corpus = write_mimic(tmp_path / "mimic", 14, "clean", sums=True)
    sums = corpus.root / "SHA256SUMS.txt"
    assert "not checked" not in str(examined(corpus, tmp_path / "out", sample=1))
    sums.write_text("".join(line for line in sums.open() if "files/p10/p10000" not in line))
    assert re.search(
        r"not checked     0 files, \d+ images are not in SHA256SUMS.txt",
        str(examined(corpus, tmp_path / "out", sample=1)),
    )
    sums.unlink()
    assert "not checked     no SHA256SUMS.txt" in str(examined(corpus, tmp_path / "out", sample=1))


def test_the_released_table_of_nih_misses_its_images_and_nothing_else(real_data, tmp_path):
    folder = real_data / "nih_chestxray14"
    report = examine(detect(folder), tmp_path / "out", workers=2, progress=False)
    images = len(list((folder / "images").iterdir()))
    assert images == 24
    assert (report.input_rows, report.looked_at, report.records) == (112_120, 112_120, 24)
    assert report.counts == {"missing_image": 112_120 - 24}
    assert len(report.prevalence) == 14
    assert all(label.judged and not label.odd for label in report.prevalence)
    assert "DIFFERS" not in str(report)


def test_the_key_of_a_study_whose_report_is_a_link_out_can_be_revealed(tmp_path, msfl):
    corpus = write_mimic(tmp_path / "mimic", 15, "clean")
    path = next((corpus.root / "mimic-cxr-reports").rglob("s*.txt"))
    path.rename(tmp_path / "elsewhere.txt")
    path.symlink_to(tmp_path / "elsewhere.txt")
    assert examined(corpus, tmp_path / "out").counts["path_outside"] == 1
    ((reason, key),) = [(line["reason"], line["image"]) for line in lines(tmp_path / "out")]
    code, told, _ = msfl("data", "doctor", corpus.root, "--out", tmp_path / "out", "--reveal", key)
    assert (code, reason) == (0, "path_outside")
    assert path.stem in told


@pytest.mark.parametrize("name", ["mimic-cxr tree", "ms-cxr csv", "chexpert", "nih"])
def test_the_key_of_a_row_that_its_table_cost_reveals_the_table_and_the_row(name, tmp_path, msfl):
    corpus = CORPORA[name](tmp_path / "data", 16, "all")
    examined(corpus, tmp_path / "out")
    lost = [
        line for line in lines(tmp_path / "out") if "image" in line and re.search(r" row \d+", line.get("message", ""))
    ]
    assert lost
    command = ["data", "doctor", corpus.root, *corpus.arguments, "--out", tmp_path / "out", "--workers", 1]
    for line in {line["reason"]: line for line in lost}.values():
        code, told, _ = msfl(*command, "--reveal", line["image"])
        assert code == 0
        assert line["message"] in told.splitlines()


def test_an_image_is_looked_at_whatever_is_wrong_with_its_report(tmp_path):
    corpus = write_mimic(tmp_path / "mimic", 17, "clean")
    train = [image for image in images(corpus)[::2] if image.split == "train"]
    empty, gone, alone, like = train[5:9]
    texts = corpus.root / "mimic-cxr-reports"
    (texts / empty.txt).write_bytes(b"")
    (corpus.root / empty.jpg).write_bytes((corpus.root / empty.jpg).read_bytes()[:200])
    (texts / gone.txt).unlink()
    (corpus.root / gone.jpg).unlink()
    (texts / alone.txt).unlink()
    (corpus.root / alone.jpg).write_bytes((corpus.root / like.jpg).read_bytes())
    report = examined(corpus, tmp_path / "out")
    expected = {"no_text": 1, "bad_image": 1, "no_report": 2, "missing_image": 1, "duplicate_pixels": 1}
    assert report.counts == expected
    assert report.records == report.looked_at - 3
    assert report.unusable == 3, "a row without report and image is one unusable row"
    assert report.unusable_share == pytest.approx(3 / report.looked_at)
    key = open_keyring(tmp_path / "out").key("image", gone.name)
    assert [line["reason"] for line in lines(tmp_path / "out") if line["image"] == key] == [
        "no_report",
        "missing_image",
    ]


def test_checksums_of_images_without_a_report_are_compared(tmp_path):
    corpus = write_mimic(tmp_path / "mimic", 18, "clean", sums=True)
    image = images(corpus)[0]
    (corpus.root / "mimic-cxr-reports" / image.txt).unlink()
    (corpus.root / image.jpg).write_bytes((corpus.root / images(corpus)[40].jpg).read_bytes())
    assert examined(corpus, tmp_path / "out").counts == {"no_report": 1, "wrong_checksum": 1}


def test_files_that_no_table_names_can_be_revealed(tmp_path, msfl):
    corpus = write_nih(tmp_path / "nih", 19, "files")
    examined(corpus, tmp_path / "out")
    found = {line["reason"]: line["image"] for line in lines(tmp_path / "out", NOTES_NAME)}
    command = ["data", "doctor", corpus.root, "--out", tmp_path / "out", "--workers", 1, "--reveal"]
    assert msfl(*command, found["file_in_no_table"])[1].strip().endswith("images_001/images/00099998_000.png")
    assert str(corpus.root / "images") in msfl(*command, found["two_files"])[1]


@pytest.mark.parametrize("role", ["split", "metadata", "chexpert"])
def test_tables_of_two_releases_are_refused(role, tmp_path, msfl):
    corpus = write_mimic(tmp_path / "mimic", 20, "clean")
    other = corpus.root / f"mimic-cxr-3.0.0-{role}.csv.gz"
    other.write_bytes((corpus.root / f"{PREFIX}{role}.csv.gz").read_bytes())
    code, _, err = msfl("data", "doctor", corpus.root, "--out", tmp_path / "out", "--workers", 1)
    assert (code, err.count("\n")) == (2, 1)
    assert f"found {PREFIX}{role}.csv and mimic-cxr-3.0.0-{role}.csv; expected tables of one release" in err


def test_a_full_disk_ends_the_doctor_with_the_code_to_try_again_and_leaves_no_draft(tmp_path, msfl):
    corpus = write_siim(tmp_path / "siim", 21, "files")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / f"{QUARANTINE_NAME}.tmp").symlink_to("/dev/full")
    code, _, err = msfl("data", "doctor", corpus.root, "--out", tmp_path / "out", "--workers", 1)
    assert code == 75
    assert [line for line in err.splitlines() if "no space left" in line]
    assert "Traceback" not in err
    assert not [path for path in (tmp_path / "out").iterdir() if "json" in path.name]
