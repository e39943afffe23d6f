"""Members of a zip file that may be hostile: checked by its directory, read one by one within bounds, never unpacked to disk.

The directory says how large a member is and may lie; what limits memory and time is counted while reading.
"""

import re
import stat
import struct
import zipfile
import zlib
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from input_pipeline import progress
from input_pipeline.compact import Names
from input_pipeline.errors import DataError
from input_pipeline.scratch import Rows
from input_pipeline.sources import is_relative
from input_pipeline.zip_directory import BadDirectory, Entry, read_entries

MAX_MEMBERS = 400_000
MAX_TOTAL_BYTES = 10_000_000_000
MAX_RATIO = 100  # of a member's size to its size in the archive; prose is near 3
_LOCAL_HEADER = struct.Struct("<4s2xHH16xHH")  # signature, flags, method, length of the name and of the extra field
_ENCRYPTED = 1
_LARGEST = 2**32 - 1  # bytes of a member


class BadMember(Exception):
    """A member that is not what the archive's directory says, or expands beyond all measure."""


class Member(NamedTuple):
    """Where a member lies: offset of its header, sizes in the archive and unpacked, checksum and compression method."""

    offset: int
    packed: int
    size: int
    crc: int
    method: int

    @classmethod
    def of(cls, entry: Entry) -> "Member":
        """What reading a member needs of its entry."""
        return cls(entry.offset, entry.packed, entry.size, entry.crc, entry.method)


@dataclass(frozen=True)
class Archive:
    """A checked zip file; what its directory says of the members lies on disk.

    Attributes:
      path: of the zip file.
      prefix: what stands before every name.
      names: of the members that were asked for, without the prefix.
      members: the fields of `Member` by the number of the name.
    """

    path: Path
    prefix: str
    names: Names = field(default_factory=Names)
    members: Rows = field(default_factory=lambda: Rows("QIIIH"))

    def read(self, name: str, limit: int) -> bytes:
        """The first `limit` bytes of a member.

        Raises:
          KeyError: there is no such member.
          BadMember: its data are damaged or not those that the directory describes, or their ratio is beyond `MAX_RATIO`.
        """
        if (number := self.names.find(name)) < 0:
            raise KeyError(name)
        member = Member(*self.members[number])
        with self.path.open("rb") as file:
            file.seek(member.offset)
            signature, flags, method, name_length, extra_length = _LOCAL_HEADER.unpack(
                file.read(_LOCAL_HEADER.size).ljust(_LOCAL_HEADER.size, b"\0")
            )
            same_name = file.read(name_length) == (self.prefix + name).encode()
            if signature != b"PK\3\4" or flags & _ENCRYPTED or method != member.method or not same_name:
                raise BadMember
            file.seek(extra_length, 1)
            packed = file.read(min(member.packed, 2 * limit))  # even incompressible text needs less for `limit` bytes
        return _unpack(packed, member, limit)


def open_archive(path: Path, pattern: re.Pattern[str], prefixes: Sequence[str]) -> Archive | None:
    """Reads and checks the directory of a zip file.

    Args:
      path: of the zip file.
      pattern: of the names that can be read; all others are checked like them and then forgotten.
      prefixes: folders that may stand before every name; the first that has any counts.

    Returns:
      None where no name has the pattern under any prefix.

    Raises:
      DataError: the file is no zip file, or a member is encrypted, a link, listed twice, compressed in an unusual way or too much,
        or leads out of the archive, or there are too many, or together they are too large.
    """
    archives = [Archive(path, prefix) for prefix in prefixes]
    try:
        for entry in progress.counted(_checked(path), path.name, "members"):
            for archive in archives:
                if entry.name.startswith(archive.prefix) and pattern.fullmatch(entry.name, len(archive.prefix)):
                    archive.members[archive.names.add(entry.name[len(archive.prefix) :])] = Member.of(entry)
    except (BadDirectory, OSError):
        raise DataError(f"{path.name}: not a readable zip file; fetch it again") from None
    return next((archive for archive in archives if len(archive.names)), None)


def _checked(path: Path) -> Iterator[Entry]:
    """The entries of the directory; at the first that is hostile, or when all are read and are so together, raises DataError."""
    hashes = array("q")  # of names, seeded anew in every process: equal ones of two names are as good as impossible
    total, packed, count, length = 0, 0, 0, path.stat().st_size
    for count, entry in enumerate(read_entries(path), 1):
        if count > MAX_MEMBERS:
            raise DataError(f"{path.name}: {count} members or more; expected at most {MAX_MEMBERS}")
        for fault in _faults(entry, length):
            raise DataError(f"{path.name}: member {count} {fault}; use the original file")
        hashes.append(hash(entry.name))
        total, packed = total + entry.size, packed + entry.packed
        yield entry
    if len(np.unique(np.frombuffer(hashes, np.int64))) < count:
        raise DataError(f"{path.name}: two members have one name; use the original file")
    if total > MAX_TOTAL_BYTES:
        raise DataError(f"{path.name}: {total} bytes when unpacked; expected at most {MAX_TOTAL_BYTES}")
    if packed > length:
        raise DataError(f"{path.name}: the members overlap; use the original file")


def _faults(entry: Entry, length: int) -> Iterator[str]:
    """What is wrong with a member by the directory."""
    if not is_relative(entry.name):
        yield "leads out of the archive by its name"
    if entry.offset >= length:
        yield "lies outside the file"
    if max(entry.packed, entry.size) > _LARGEST:
        yield "is larger than 4 GB"
    if entry.flags & _ENCRYPTED:
        yield "is encrypted"
    if stat.S_ISLNK(entry.mode):
        yield "is a link"
    if entry.method not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        yield "is compressed in an unusual way"
    if entry.size > MAX_RATIO * entry.packed:
        yield f"expands more than {MAX_RATIO} times"


def _unpack(packed: bytes, member: Member, limit: int) -> bytes:
    """At most `limit` bytes of a member, with its checksum where that is all of them."""
    if member.method == zipfile.ZIP_STORED:
        data, used, whole = packed[:limit], len(packed), len(packed) <= limit
    else:
        inflater = zlib.decompressobj(-zlib.MAX_WBITS)
        try:
            data = inflater.decompress(packed, min(limit, member.size + 1))
        except zlib.error:
            raise BadMember from None
        used = len(packed) - len(inflater.unconsumed_tail) - len(inflater.unused_data)
        whole = inflater.eof
    if len(data) > min(member.size, MAX_RATIO * used) or (not whole and len(data) < limit):
        raise BadMember
    if whole and (len(data) != member.size or zlib.crc32(data) != member.crc):
        raise BadMember
    return data
