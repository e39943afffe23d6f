"""Tables that lie in temporary files instead of in memory, for what grows with the size of a data set."""

import errno
import os
import struct
import tempfile
import weakref

from input_pipeline.errors import RetryError

_HELD = 16 * 1024  # bytes at the end of a table that are not in its file yet


class Scratch:
    """Bytes in a file without a name: gone with the process, however that ends. Where nothing was written there are zeros.

    Only what is added at the end is held in memory, until it fills a few pages. The file lies in the folder of the system's temporary
    files, which TMPDIR names.
    """

    def __init__(self, size: int = 0):
        """`size` zeros, which take no room on disk before something is written there."""
        self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - lives as long as this
        self._number = self._file.fileno()
        weakref.finalize(self, self._file.close)
        self._tail, self._stored = bytearray(), size  # the file has `_stored` bytes, and the tail follows

    def __len__(self) -> int:
        return self._stored + len(self._tail)

    def read(self, start: int, size: int) -> bytes:
        """The bytes from `start`; zeros beyond the end."""
        if start >= self._stored:
            first = start - self._stored
            return bytes(self._tail[first : first + size]).ljust(size, b"\0")
        stored = min(size, self._stored - start)
        data = os.pread(self._number, stored, start).ljust(stored, b"\0")  # the file may not reach to where zeros end
        return data if stored == size else (data + self._tail[: size - stored]).ljust(size, b"\0")

    def write(self, start: int, data: bytes) -> None:
        """Puts bytes to `start`; raises RetryError where the disk is full."""
        end, place = start + len(data), start - self._stored
        if end <= self._stored:
            _write(self._number, data, start)
        elif 0 <= place <= len(self._tail):
            self._tail[place : place + len(data)] = data
            if len(self._tail) >= _HELD:
                self._flush()
        else:
            self._flush()
            _write(self._number, data, start)
            self._stored = max(self._stored, end)

    def append(self, data: bytes) -> None:
        """Puts bytes to the end; raises RetryError where the disk is full."""
        self._tail += data
        if len(self._tail) >= _HELD:
            self._flush()

    def _flush(self) -> None:
        if self._tail:
            _write(self._number, self._tail, self._stored)
            self._stored += len(self._tail)
            self._tail = bytearray()


def _write(file: int, data: bytes | bytearray, start: int) -> None:
    try:
        count = os.pwrite(file, data, start)
        while count < len(data):
            count += os.pwrite(file, data[count:], start + count)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        found = f"{tempfile.gettempdir()}: no space left for tables"
        raise RetryError(f"{found}; free some, or set TMPDIR to another disk, and run again") from None


class Rows:
    """Rows of numbers, found by their place; zeros where none was set."""

    def __init__(self, form: str):
        """Rows of a format of the module `struct`, little-endian: "II" are two numbers of four bytes."""
        self._struct, self._bytes = struct.Struct(f"<{form}"), Scratch()

    def __len__(self) -> int:
        return len(self._bytes) // self._struct.size

    def __getitem__(self, place: int) -> tuple[int, ...]:
        return self._struct.unpack(self._bytes.read(self._struct.size * place, self._struct.size))

    def __setitem__(self, place: int, row: tuple[int, ...]) -> None:
        self._bytes.write(self._struct.size * place, self._struct.pack(*row))

    def append(self, *row: int) -> None:
        """Adds a row at the end."""
        self._bytes.append(self._struct.pack(*row))

    def tobytes(self) -> bytes:
        """All rows as they lie in the file."""
        return self._bytes.read(0, len(self._bytes))
