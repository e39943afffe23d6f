"""Tables of hundreds of thousands of rows in a byte or two of memory each: strings and hashes lie in temporary files."""

import re
import struct
from array import array
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar, overload

from input_pipeline.scratch import Rows, Scratch

Item = TypeVar("Item")
_FIRST_SLOTS = 2**20  # a power of two, as every later number of slots; on disk only those in use take room
_SLOT = struct.Struct("<II")
_HEX = re.compile("(?:[0-9a-f]{8}-){4}[0-9a-f]{8}")  # as MIMIC-CXR names its images
_PACKED = 0xFF  # begins no text in UTF-8


class Names(Sequence[str]):
    """Distinct strings, numbered from 0 in the order in which they came, up to 4 GB in all; they lie on disk.

    The strings themselves are compared, not their hashes: two never get one number.
    """

    def __init__(self) -> None:
        self._text, self._ends = Scratch(), Rows("I")  # name i lies from end i to end i + 1
        self._ends.append(0)
        # A hash table with open addressing: more of the hash, and number + 1, which is 0 where the slot is free.
        self._slots, self._last = Scratch(_SLOT.size * _FIRST_SLOTS), _FIRST_SLOTS - 1

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        return _unpack(self._bytes(range(len(self))[index]))

    def find(self, name: str) -> int:
        """The number of a name, or -1 where it never came."""
        return self._look(_pack(name))[1] - 1

    def add(self, name: str) -> int:
        """The number of a name, a new one where it comes for the first time."""
        data = _pack(name)
        place, found, rest = self._look(data)
        if found:
            return found - 1
        self._text.append(data)
        self._ends.append(len(self._text))
        self._slots.write(_SLOT.size * place, _SLOT.pack(rest, len(self)))
        if 2 * len(self) > self._last:
            self._grow()
        return len(self) - 1

    def _bytes(self, number: int) -> bytes:
        (start,), (end,) = self._ends[number], self._ends[number + 1]
        return self._text.read(start, end - start)

    def _look(self, data: bytes) -> tuple[int, int, int]:
        """Which slot has a name, or the free one that would; its number + 1, or 0; and what else of its hash a slot keeps."""
        digest = hash(data)
        place, rest = digest & self._last, digest >> 32 & 0xFFFFFFFF
        while True:
            other, found = _SLOT.unpack(self._slots.read(_SLOT.size * place, _SLOT.size))
            if not found or (other == rest and self._bytes(found - 1) == data):
                return place, found, rest
            place = (place + 1) & self._last

    def _grow(self) -> None:
        self._last = 2 * self._last + 1
        self._slots = Scratch(_SLOT.size * (self._last + 1))
        for number in range(len(self)):
            place, _, rest = self._look(self._bytes(number))
            self._slots.write(_SLOT.size * place, _SLOT.pack(rest, number + 1))


def _pack(name: str) -> bytes:
    """A string as bytes, half as many where it is five groups of eight hexadecimal digits."""
    if len(name) == 44 and _HEX.fullmatch(name):
        return bytes((_PACKED,)) + bytes.fromhex(name.replace("-", ""))
    return name.encode()


def _unpack(data: bytes) -> str:
    if data[:1] != bytes((_PACKED,)):
        return data.decode()
    digits = data[1:].hex()
    return "-".join(digits[start : start + 8] for start in range(0, 40, 8))


class Column:
    """Small whole numbers by the numbers of `Names`, in memory; 0 where none was set. Its length is the number of those that are not 0."""

    def __init__(self, kind: str):
        """Arrays of `kind`, a type code of the module `array`: "B" has one byte each, "I" four."""
        self._values, self._set = array(kind), 0

    def __getitem__(self, number: int) -> int:
        return self._values[number] if 0 <= number < len(self._values) else 0

    def __setitem__(self, number: int, value: int) -> None:
        if (missing := number + 1 - len(self._values)) > 0:
            self._values.frombytes(bytes(missing * self._values.itemsize))
        self._set += bool(value) - bool(self._values[number])
        self._values[number] = value

    def __len__(self) -> int:
        return self._set

    def numbers(self) -> Iterator[int]:
        """The numbers whose value is not 0, in order."""
        return (number for number, value in enumerate(self._values) if value)


class Digests(Mapping[str, str]):
    """SHA-256 in hex by name."""

    def __init__(self, names: Names):
        """Names may be shared with other tables; they are added to as needed."""
        self._names, self._known, self._bytes = names, Column("B"), Scratch()

    def __setitem__(self, name: str, digest: str) -> None:
        number = self._names.add(name)
        self._bytes.write(32 * number, bytes.fromhex(digest))
        self._known[number] = 1

    def __getitem__(self, name: str) -> str:
        number = self._names.find(name)
        if not self._known[number]:
            raise KeyError(name)
        return self._bytes.read(32 * number, 32).hex()

    def __iter__(self) -> Iterator[str]:
        return (self._names[number] for number in self._known.numbers())

    def __len__(self) -> int:
        return len(self._known)


class Part(Sequence[Item]):
    """Items at some places of a sequence that makes them when asked; pickled as a tuple of them."""

    def __init__(self, items: Sequence[Item], places: Sequence[int]):
        self._items, self._places = items, places

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, index: int) -> Item: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Item]: ...
    def __getitem__(self, index: int | slice) -> Item | Sequence[Item]:
        if isinstance(index, slice):
            return [self._items[place] for place in self._places[index]]
        return self._items[self._places[index]]

    def __reduce__(self) -> tuple[Any, ...]:
        return tuple, (tuple(self),)
