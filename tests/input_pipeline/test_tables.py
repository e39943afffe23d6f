"""Tables are read by name, and what is wrong with them is said in one line without quoting a row."""

import csv
import gzip
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from input_pipeline.errors import DataError, UserError
from input_pipeline.tables import find_table, read_fields, read_table

cells = st.text(st.characters(blacklist_categories=("Cs",), blacklist_characters="\r\n\0"), max_size=8).map(str.strip)


@given(st.lists(st.tuples(cells, cells), max_size=6), st.booleans())
def test_what_the_csv_module_writes_is_read_back_whatever_the_column_order(tmp_path_factory, rows, zipped):
    path = tmp_path_factory.mktemp("table") / ("t.csv.gz" if zipped else "t.csv")
    text = io.StringIO()
    csv.writer(text).writerows([("b", "extra", "a"), *((b, "x", a) for a, b in rows)])
    data = text.getvalue().encode()
    path.write_bytes(gzip.compress(data) if zipped else data)
    assert [values for _, values in read_table(path, ["a", "b"])] == [[a, b] for a, b in rows]


def test_optional_columns_are_empty_where_the_header_lacks_them(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("\ufeff a ,b\n1,2\n\n3,4\n")
    assert list(read_table(path, ["b"], optional=["split", "a"])) == [(2, ["2", "", "1"]), (4, ["4", "", "3"])]


@pytest.mark.parametrize(
    "content, message",
    [
        ("", "t.csv: the file is empty; expected a header with 'Pleural Effusion'"),
        ("Pleural Effusion;x\n1;2\n", "t.csv: columns are separated by ';'; expected commas"),
        ("Pleural Effusion\tx\n", "t.csv: columns are separated by a tab; expected commas"),
        (
            "Pleural_Effusion,x\n",
            "t.csv: column 'Pleural Effusion' is missing; found 2 columns, nearest 'Pleural_Effusion'",
        ),
        ("Pleural Effusion,x\n1,2\nsecret\n", "t.csv: row 3 has 1 fields; expected 2 as in the header"),
        ("Pleural Effusion,x\n\xff\n", "t.csv: not a CSV table in UTF-8 (UnicodeDecodeError); fetch it again"),
    ],
)
def test_a_wrong_table_is_refused_in_one_line(tmp_path, content, message):
    path = tmp_path / "t.csv"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(UserError) as error:
        list(read_table(path, ["Pleural Effusion"]))
    assert str(error.value) == message


def test_a_missing_table_names_the_folder(tmp_path):
    with pytest.raises(UserError, match=r"t\.csv: no such file in .*; expected a CSV table"):
        read_table(tmp_path / "t.csv", ["a"])


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-9], lambda data: b"no gzip", lambda data: data[:30] + b"\0" * 40]
)
def test_damaged_compression_is_data_not_a_traceback(tmp_path, damage):
    path = tmp_path / "t.csv.gz"
    path.write_bytes(damage(gzip.compress(b"a,b\n" + b"".join(b"%d,%d\n" % (i, i * i) for i in range(500)))))
    with pytest.raises(DataError, match="damaged or cut short"):
        list(read_table(path, ["a"]))


def test_the_gzipped_table_is_found_first(tmp_path):
    assert find_table(tmp_path, "mimic-cxr-*-split.csv") is None
    (tmp_path / "mimic-cxr-2.0.0-split.csv").touch()
    assert find_table(tmp_path, "mimic-cxr-*-split.csv") == tmp_path / "mimic-cxr-2.0.0-split.csv"
    (tmp_path / "mimic-cxr-2.0.0-split.csv.gz").touch()
    assert find_table(tmp_path, "mimic-cxr-*-split.csv") == tmp_path / "mimic-cxr-2.0.0-split.csv.gz"
    (tmp_path / "mimic-cxr-2.1.0-split.csv").touch()
    with pytest.raises(
        UserError, match=r"found mimic-cxr-2.0.0-split.csv and mimic-cxr-2.1.0-split.csv; expected tables of one"
    ):
        find_table(tmp_path, "mimic-cxr-*-split.csv")


def test_fields_are_read_by_place_where_the_header_has_another_number_of_them(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("name,box [x,y],,\na, 1 ,2\n\nb,3,4,,\n")
    assert list(read_fields(path, 3)) == [(2, ["a", "1", "2"]), (4, ["b", "3", "4"])]
    with pytest.raises(UserError, match=r"^t.csv: row 2 has 3 fields; expected at least 4"):
        list(read_fields(path, 4))
    path.write_text("")
    with pytest.raises(UserError, match=r"^t.csv: the file is empty; expected a header"):
        list(read_fields(path, 3))
