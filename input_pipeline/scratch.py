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
        weakref.finalize(self, self._file.close)
        self._tail, self._stored = bytearray(), size  # the file has `_stored` bytes, and the tail follows

    def __len__(self) -> int:
        return self._stored + len(self._tail)

    def read(self, start: int, size: int) -> bytes:
        """The bytes from `start`; zeros beyond the end."""
        first = max(0, start - self._stored)
        stored = os.pread(self._file.fileno(), size, start) if start < self._stored else b""
        if len(stored) < size:
            missing = max(0, min(size, self._stored - start) - len(stored))  # zeros that the file does not reach to
            stored += bytes(missing)
            stored += self._tail[first : first + size - len(stored)]
        return stored.ljust(size, b"\0")

    def write(self, start: int, data: bytes) -> None:
        """Puts bytes to `start`; raises RetryError where the disk is full."""
        place = start - self._stored
        if place < 0 or place > len(self._tail):
            self._flush()
            _write(self._file.fileno(), data, start)
            self._stored = max(self._stored, start + len(data))
        else:
            self._tail[place : place + len(data)] = data
            if len(self._tail) >= _HELD:
                self._flush()

    def append(self, data: bytes) -> None:
        """Puts bytes to the end; raises RetryError where the disk is full."""
        self.write(len(self), data)

    def _flush(self) -> None:
        if self._tail:
            _write(self._file.fileno(), self._tail, self._stored)
            self._stored += len(self._tail)
            self._tail = bytearray()


def _write(file: int, data: bytes | bytearray, start: int) -> None:
    view = memoryview(data)
    try:
        while view:
            count = os.pwrite(file, view, start)
            start, view = start + count, view[count:]
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
