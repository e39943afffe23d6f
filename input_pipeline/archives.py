"""Members of a zip file that may be hostile: checked by its directory, read one by one within bounds, never unpacked to disk.

The directory says how large a member is and may lie; what limits memory and time is counted while reading.
"""

import re
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from input_pipeline.errors import DataError
from input_pipeline.sources import is_relative

MAX_MEMBERS = 400_000
MAX_TOTAL_BYTES = 10_000_000_000
MAX_RATIO = 100  # of a member's size to its size in the archive; prose is near 3
_LOCAL_HEADER = struct.Struct("<4s2xHH16xHH")  # signature, flags, method, length of the name and of the extra field
_ENCRYPTED = 1


class BadMember(Exception):
    """A member that is not what the archive's directory says, or expands beyond all measure."""


class Member(NamedTuple):
    """Where a member lies: offset of its header, sizes in the archive and unpacked, checksum and compression method."""

    offset: int
    packed: int
    size: int
    crc: int
    method: int


@dataclass(frozen=True)
class Archive:
    """A checked zip file; the directory is kept as two arrays, a tenth of what `zipfile` holds.

    Attributes:
      path: of the zip file.
      names: of the members that were asked for, sorted, without the prefix.
      members: one row per name, the fields of `Member`.
      prefix: what stands before every name.
    """

    path: Path
    names: np.ndarray
    members: np.ndarray
    prefix: str

    def read(self, name: str, limit: int) -> bytes:
        """The first `limit` bytes of a member.

        Raises:
          KeyError: there is no such member.
          BadMember: its data are damaged or not those that the directory describes, or their ratio is beyond `MAX_RATIO`.
        """
        key = name.encode()
        place = int(np.searchsorted(self.names, key))
        if place == len(self.names) or self.names[place] != key:
            raise KeyError(name)
        member = Member(*(int(value) for value in self.members[place]))
        with self.path.open("rb") as file:
            file.seek(member.offset)
            signature, flags, method, name_length, extra_length = _LOCAL_HEADER.unpack(
                file.read(_LOCAL_HEADER.size).ljust(_LOCAL_HEADER.size, b"\0")
            )
            same_name = file.read(name_length) == self.prefix.encode() + key
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
    try:
        with zipfile.ZipFile(path) as archive:
            infos = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        raise DataError(f"{path.name}: not a readable zip file; fetch it again") from None
    _check_members(path, infos)
    for prefix in prefixes:
        found = {
            info.filename[len(prefix) :].encode(): Member(
                info.header_offset, info.compress_size, info.file_size, info.CRC, info.compress_type
            )
            for info in infos
            if info.filename.startswith(prefix) and pattern.fullmatch(info.filename[len(prefix) :])
        }
        if found:
            names = sorted(found)
            return Archive(path, np.asarray(names), np.asarray([found[name] for name in names], np.int64), prefix)
    return None


def _check_members(path: Path, infos: Sequence[zipfile.ZipInfo]) -> None:
    if len(infos) > MAX_MEMBERS:
        raise DataError(f"{path.name}: {len(infos)} members; expected at most {MAX_MEMBERS}")
    for number, info in enumerate(infos, 1):
        for fault in _faults(info):
            raise DataError(f"{path.name}: member {number} {fault}; use the original file")
    if len({info.filename for info in infos}) < len(infos):
        raise DataError(f"{path.name}: two members have one name; use the original file")
    total = sum(info.file_size for info in infos)
    if total > MAX_TOTAL_BYTES:
        raise DataError(f"{path.name}: {total} bytes when unpacked; expected at most {MAX_TOTAL_BYTES}")
    if sum(info.compress_size for info in infos) > path.stat().st_size:
        raise DataError(f"{path.name}: the members overlap; use the original file")


def _faults(info: zipfile.ZipInfo) -> Iterator[str]:
    """What is wrong with a member by the directory."""
    # zipfile cuts a name at a zero byte, and keeps what it was.
    if not is_relative(info.filename) or info.orig_filename != info.filename:
        yield "leads out of the archive by its name"
    if info.header_offset < 0:
        yield "lies outside the file"
    if info.flag_bits & _ENCRYPTED:
        yield "is encrypted"
    if stat.S_ISLNK(info.external_attr >> 16):
        yield "is a link"
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        yield "is compressed in an unusual way"
    if info.file_size > MAX_RATIO * info.compress_size:
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
