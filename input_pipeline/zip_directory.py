"""The directory at the end of a zip file (APPNOTE.TXT 6.3.10), read entry by entry: `zipfile` keeps all of it, 1 KB for each member."""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

_END = struct.Struct(
    "<4s4H2IH"
)  # signature, 2 disks, 2 counts, size and offset of the directory, length of the comment
_LOCATOR = struct.Struct("<4sIQI")  # signature, disk, offset of the other end, disks
_LONG_END = struct.Struct(
    "<4sQ2H2I4Q"
)  # signature, size, 2 versions, 2 disks, 2 counts, size and offset of the directory
# signature, two versions, flags, method, time and date, CRC, sizes, lengths of name, extra fields and comment, disk, attributes, offset
_ENTRY = struct.Struct("<4s4xHH4x3I3H4xII")
_LONGEST_COMMENT = 2**16 - 1
_LONG = 2**32 - 1  # a number that stands in an extra field instead
_LONG_FIELD = 1
_UTF8 = 1 << 11


class BadDirectory(Exception):
    """What is there is no directory of a zip file."""


class Entry(NamedTuple):
    """A member by the directory.

    Attributes:
      name: decoded.
      flags: general purpose bits.
      method: of compression.
      packed, size: in the archive and unpacked.
      mode: the upper 16 of the external attributes: on Unix, kind and permissions of the file.
      offset: of its header in the file.
    """

    name: str
    flags: int
    method: int
    crc: int
    packed: int
    size: int
    mode: int
    offset: int


def read_entries(path: Path) -> Iterator[Entry]:
    """All entries, in the directory's order; bytes before the archive, as of a program that unpacks itself, are allowed.

    Raises:
      BadDirectory: there is no directory, or it is damaged.
      OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        start, size, before = _find(file)
        file.seek(start)
        left = size
        while left > 0:
            fields = _take(file, _ENTRY.size, left)
            left -= _ENTRY.size
            signature, flags, method, crc, packed, unpacked, name, extra, comment, attributes, offset = _ENTRY.unpack(
                fields
            )
            if signature != b"PK\1\2":
                raise BadDirectory
            rest = _take(file, name + extra + comment, left)
            left -= len(rest)
            numbers = _lengthen([unpacked, packed, offset], rest[name : name + extra])
            yield Entry(
                _decode(rest[:name], flags),
                flags,
                method,
                crc,
                numbers[1],
                numbers[0],
                attributes >> 16,
                numbers[2] + before,
            )


def _find(file: BinaryIO) -> tuple[int, int, int]:
    """Where the directory starts, its size, and how many bytes stand before the archive."""
    length = file.seek(0, 2)
    tail_start = max(0, length - _END.size - _LONGEST_COMMENT)
    file.seek(tail_start)
    tail = file.read()
    place = tail.rfind(b"PK\5\6")
    if place < 0 or place + _END.size > len(tail):
        raise BadDirectory
    *_, size, offset, comment = _END.unpack_from(tail, place)
    if place + _END.size + comment != len(tail):
        raise BadDirectory
    end = tail_start + place
    if (long := _find_long(file, end)) is not None:
        end, size, offset = long
    start = end - size
    if start < offset:
        raise BadDirectory
    return start, size, start - offset


def _find_long(file: BinaryIO, end: int) -> tuple[int, int, int] | None:
    """Place of the other end, size and offset of the directory where numbers of 32 bits do not suffice, else None."""
    if end < _LOCATOR.size + _LONG_END.size:
        return None
    file.seek(end - _LOCATOR.size)
    signature, disk, _, disks = _LOCATOR.unpack(file.read(_LOCATOR.size))
    if signature != b"PK\6\7":
        return None
    file.seek(end - _LOCATOR.size - _LONG_END.size)
    signature, *_, size, offset = _LONG_END.unpack(file.read(_LONG_END.size))
    if signature != b"PK\6\6" or disk or disks > 1:
        raise BadDirectory
    return end - _LOCATOR.size - _LONG_END.size, size, offset


def _take(file: BinaryIO, count: int, left: int) -> bytes:
    data = file.read(count) if count <= left else b""
    if len(data) != count:
        raise BadDirectory
    return data


def _lengthen(numbers: list[int], extra: bytes) -> list[int]:
    """Numbers of 32 bits, those that are all ones replaced by 64 bits of the extra field, in this order."""
    if _LONG not in numbers:
        return numbers
    place = 0
    while place + 4 <= len(extra):
        kind, length = struct.unpack_from("<HH", extra, place)
        field = extra[place + 4 : place + 4 + length]
        if kind == _LONG_FIELD and len(field) >= 8 * numbers.count(_LONG):
            longer = iter(struct.unpack_from(f"<{numbers.count(_LONG)}Q", field))
            return [next(longer) if number == _LONG else number for number in numbers]
        place += 4 + length
    raise BadDirectory


def _decode(name: bytes, flags: int) -> str:
    try:
        return name.decode("utf-8" if flags & _UTF8 else "cp437")
    except UnicodeDecodeError:
        raise BadDirectory from None
