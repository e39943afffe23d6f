"""CSV tables, plain or gzipped, read by column name with messages that say what was found and what was expected."""

import csv
import difflib
import gzip
import hashlib
import io
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from input_pipeline.errors import DataError, MsflError, UserError

Refuse = Callable[[MsflError], None]

_OTHER_SEPARATORS = {";": "';'", "\t": "a tab", "|": "'|'"}


def read_table(
    path: Path, columns: Sequence[str], *, optional: Sequence[str] = (), refuse: Refuse | None = None
) -> Iterator[tuple[int, list[str]]]:
    """Reads named columns of a CSV file; the header is checked before this returns.

    Args:
      path: ends in .gz when gzipped.
      columns: names that must be in the header, in any place.
      optional: names that give empty values where the header lacks them.
      refuse: called with the error of a row of another length, which is then left out; by default the error is raised.

    Returns:
      Pairs of the row's number (the header is row 1) and its values in the order of `columns`, then `optional`.

    Raises:
      UserError: the file is missing or empty, has another separator, lacks a column, or has a row of another length.
      DataError: the compressed data are damaged.
    """
    rows = _rows(path)
    _, header = next(rows, (0, []))
    names = [name.strip() for name in header]
    _check_header(path, names, columns)
    places = [names.index(name) for name in columns]
    places += [names.index(name) if name in names else -1 for name in optional]
    return _select(path, rows, len(names), places, refuse)


def read_fields(path: Path, count: int, *, refuse: Refuse | None = None) -> Iterator[tuple[int, list[str]]]:
    """Reads the first `count` fields of every row below the header, for tables whose header has more or fewer fields than their rows.

    Returns:
      Pairs as of `read_table`.

    Raises:
      UserError: the file is missing or has no header, or a row is shorter.
      DataError: the compressed data are damaged.
    """
    rows = _rows(path)
    if next(rows, None) is None:
        raise UserError(f"{path.name}: the file is empty; expected a header and rows of {count} fields")
    for number, row in rows:
        if len(row) < count:
            error = UserError(f"{path.name}: row {number} has {len(row)} fields; expected at least {count}, by commas")
            if refuse is None:
                raise error
            refuse(error)
            continue
        yield number, [value.strip() for value in row[:count]]


def column_names(path: Path) -> list[str]:
    """Names in the header of a CSV file, for tables whose columns differ between releases; raises as `read_table` does."""
    _, header = next(_rows(path), (0, []))
    names = [name.strip() for name in header]
    _check_header(path, names, ())
    return names


def find_table(root: Path, name: str) -> Path | None:
    """The file `name` in `root`, gzipped rather than plain, or None; * in the name stands for the release.

    Raises:
      UserError: there are tables of two releases.
    """
    found = sorted([*root.glob(f"{name}.gz"), *root.glob(name)])
    names = list(dict.fromkeys(path.name.removesuffix(".gz") for path in found))
    if len(names) > 1:
        raise UserError(f"{root}: found {' and '.join(names)}; expected tables of one release; move the others away")
    return found[-1] if found else None  # .csv.gz comes after .csv


def first_row(path: Path, column: str, matches: Callable[[str], bool]) -> int:
    """The number of the first row whose value in a column `matches`: looked up when it is needed, so that no row's number is kept."""
    rows = read_table(path, [column], refuse=lambda error: None)
    return next(number for number, (value,) in rows if matches(value))


def file_hash(path: Path) -> str:
    """SHA-256 of a file in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def nearest(word: str, known: Sequence[str]) -> str:
    """`, nearest 'x'` for the known name most like `word`, or an empty string.

    Where a table has no header, `known` is its first row: only what spells `word` but for a few letters may be shown.
    """
    names = {name.casefold(): name for name in reversed(known)}
    close = difflib.get_close_matches(word.casefold(), names, n=1, cutoff=0.75)
    return f", nearest '{names[close[0]]}'" if close else ""


def _rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Rows that are not blank, numbered by line; every way of failing to read becomes one line."""
    try:
        with _open(path) as file:
            # Not strict, a stray quote would join all lines up to the next one into one field, without a word.
            reader = csv.reader(file, strict=True)
            for row in reader:
                if any("\n" in field for field in row):
                    found = f"{path.name}: the row that ends in line {reader.line_num} has a line break in a field"
                    raise UserError(f"{found}; expected one row a line; look for a stray quotation mark")
                if row:
                    yield reader.line_num, row
    except FileNotFoundError:
        raise UserError(f"{path.name}: no such file in {path.parent}; expected a CSV table") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path.name}: not a CSV table in UTF-8 ({type(error).__name__}); fetch it again") from None
    except (EOFError, zlib.error, gzip.BadGzipFile):
        raise DataError(f"{path.name}: the compressed data are damaged or cut short; fetch it again") from None
    except OSError as error:
        raise UserError(f"{path.name}: {error.strerror}; expected a CSV table") from None


def _open(path: Path) -> io.TextIOWrapper:
    file = gzip.GzipFile(path) if path.suffix == ".gz" else path.open("rb")
    return io.TextIOWrapper(file, encoding="utf-8-sig", newline="")


def _check_header(path: Path, names: Sequence[str], columns: Sequence[str]) -> None:
    if not names:
        expected = f" with '{columns[0]}'" if columns else ""
        raise UserError(f"{path.name}: the file is empty; expected a header{expected}")
    for separator, shown in _OTHER_SEPARATORS.items():
        if len(names) == 1 and separator in names[0]:
            raise UserError(f"{path.name}: columns are separated by {shown}; expected commas")
    for column in columns:
        if column not in names:
            close = nearest(column, names)
            raise UserError(f"{path.name}: column '{column}' is missing; found {len(names)} columns{close}")


def _select(
    path: Path, rows: Iterator[tuple[int, list[str]]], width: int, places: Sequence[int], refuse: Refuse | None
) -> Iterator[tuple[int, list[str]]]:
    for number, row in rows:
        if len(row) != width:
            error = UserError(f"{path.name}: row {number} has {len(row)} fields; expected {width} as in the header")
            if refuse is None:
                raise error
            refuse(error)
            continue
        yield number, [row[place].strip() if place >= 0 else "" for place in places]
