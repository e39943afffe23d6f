"""A table that is not the release's ends the doctor with exit code 2 and one line: what was found, what was expected, what is nearest."""

import csv
import gzip
import io
import shutil

import pytest

from .corpora import CORPORA

# For each table of a data set: a column, and a misspelling of it.
TABLES = {
    ("mimic-cxr tree", "mimic-cxr-2.0.0-split.csv.gz"): ("subject_id", "subject id"),
    ("mimic-cxr tree", "mimic-cxr-2.0.0-metadata.csv.gz"): ("ViewPosition", "View Position"),
    ("mimic-cxr tree", "mimic-cxr-2.0.0-chexpert.csv.gz"): ("Pleural Effusion", "Pleural_Effusion"),
    ("ms-cxr csv", "MS_CXR_Local_Alignment_v1.1.0.csv"): ("label_text", "label text"),
    ("chexpert", "train.csv"): ("Pleural Effusion", "pleural effusion"),
    ("nih", "Data_Entry_2017_v2020.csv.gz"): ("Finding Labels", "FindingLabels"),
    ("rsna", "stage_2_train_labels.csv"): ("Target", "target"),
    ("siim", "stage_2_train.csv"): ("EncodedPixels", "Encoded Pixel"),
}


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    """Clean corpora, each written when it is first asked for."""
    made = {}

    def get(name):
        if name not in made:
            made[name] = CORPORA[name](tmp_path_factory.mktemp("clean") / "data", 0, "clean")
        return made[name]

    return get


@pytest.fixture(params=TABLES, ids=lambda key: key[1])
def table(request, clean, tmp_path):
    """A copy of a data set's tables, the path of one of them, and the command that examines it."""
    name, file = request.param
    corpus = clean(name)
    root = tmp_path / "data"
    root.mkdir()
    for path in corpus.root.iterdir():
        if path.is_file():
            shutil.copy(path, root)
    (root / "mimic-cxr-reports" / "files").mkdir(parents=True)
    command = ("data", "doctor", root, *corpus.arguments, "--out", tmp_path / "out", "--workers", 1)
    return root / file, command, TABLES[request.param]


def read(path):
    data = path.read_bytes()
    return (gzip.decompress(data) if path.suffix == ".gz" else data).decode()


def write(path, text, encoding="utf-8"):
    data = text.encode(encoding)
    path.write_bytes(gzip.compress(data, 1) if path.suffix == ".gz" else data)


def refusal(msfl, path, command, expected=2):
    """The one line of the error, which names the table."""
    code, told, err = msfl(*command)
    assert (code, told) == (expected, "")
    assert err.count("\n") == 1
    assert err.startswith(f"error: {path.name}: ")
    return err.removeprefix(f"error: {path.name}: ").strip()


@pytest.mark.parametrize("separator, shown", [(";", "';'"), ("\t", "a tab"), ("|", "'|'")])
def test_another_separator_is_named(msfl, table, separator, shown):
    path, command, _ = table
    text = io.StringIO()
    csv.writer(text, delimiter=separator).writerows(csv.reader(io.StringIO(read(path).replace("|", "/"))))
    write(path, text.getvalue())
    assert refusal(msfl, path, command) == f"columns are separated by {shown}; expected commas"


def test_a_missing_column_is_named_with_its_nearest(msfl, table):
    path, command, (column, spelling) = table
    text = read(path)
    write(path, text.replace(column, spelling, 1))
    found = len(next(csv.reader(io.StringIO(text))))
    told = refusal(msfl, path, command)
    assert told == f"column '{column}' is missing; found {found} columns, nearest '{spelling}'"


def test_a_table_without_its_header_quotes_no_row(msfl, table):
    path, command, _ = table
    lines = read(path).splitlines(keepends=True)
    write(path, "".join(lines[1:]))
    told = refusal(msfl, path, command)
    assert " is missing; found " in told
    values = next(csv.reader([lines[1]]))
    assert [value for value in values if len(value) > 3 and value in told] == []


def test_an_empty_table_is_named(msfl, table):
    path, command, _ = table
    write(path, "")
    assert refusal(msfl, path, command).startswith("the file is empty; expected a header")


def test_a_table_in_another_encoding_is_named(msfl, table):
    path, command, _ = table
    write(path, "\xff" + read(path), "latin-1")
    assert refusal(msfl, path, command) == "not a CSV table in UTF-8 (UnicodeDecodeError); fetch it again"


def test_a_web_page_is_no_table(msfl, table):
    path, command, _ = table
    write(path, "<!DOCTYPE html>\n<html><body>Sign in</body></html>\n")
    assert refusal(msfl, path, command).endswith(" is missing; found 1 columns")


def test_a_table_that_is_cut_short_while_compressed_is_refused(msfl, table):
    path, command, _ = table
    if path.suffix != ".gz":
        text = read(path)
        path.unlink()
        path = path.with_name(f"{path.name}.gz")
        write(path, text)
    path.write_bytes(path.read_bytes()[:-30])
    told = refusal(msfl, path, command, expected=3)
    assert told == "the compressed data are damaged or cut short; fetch it again"


def test_quotes_around_every_value_a_mark_before_and_other_line_ends_are_no_fault(msfl, table):
    path, command, _ = table
    told = msfl(*command)[1]
    text = io.StringIO()
    rows = csv.reader(io.StringIO(read(path)))
    csv.writer(text, quoting=csv.QUOTE_ALL, lineterminator="\r\n").writerows(rows)
    write(path, "\ufeff" + text.getvalue())
    assert msfl(*command)[1] == told


@pytest.mark.parametrize("closed", [False, True])
def test_a_stray_quote_swallows_no_rows_in_silence(msfl, table, closed):
    path, command, _ = table
    lines = read(path).splitlines(keepends=True)
    lines[2] = '"' + lines[2]
    if closed:
        lines[4] = lines[4].rstrip("\r\n") + '"\n'
    write(path, "".join(lines))
    told = refusal(msfl, path, command)
    assert ("not a CSV table" in told) or ("a line break in a field" in told)


def test_a_folder_without_any_table_is_told_which_there_are(msfl, tmp_path):
    for root in (tmp_path, tmp_path / "nowhere"):
        code, told, err = msfl("data", "doctor", root, "--out", tmp_path / "out")
        assert (code, told, err.count("\n")) == (2, "", 1)
    assert "no such folder" in err
    assert not (tmp_path / "out").exists()


def test_ms_cxr_without_images_asks_for_them(msfl, tmp_path):
    (tmp_path / "MS_CXR_Local_Alignment_v1.1.0.csv").write_text("path\n")
    code, _, err = msfl("data", "doctor", tmp_path, "--out", tmp_path / "out")
    assert (code, err.count("\n")) == (2, 1)
    assert "expected --jpg DIR" in err
