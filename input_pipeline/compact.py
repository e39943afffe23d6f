"""Tables of hundreds of thousands of rows in tens of bytes each: a Python string, a tuple and their places in a dictionary take ten times that."""

import re
from array import array
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar, overload

Item = TypeVar("Item")
_FIRST_SLOTS = 1024  # a power of two, as every later number of slots
_HEX = re.compile("(?:[0-9a-f]{8}-){4}[0-9a-f]{8}")  # as MIMIC-CXR names its images
_PACKED = 0xFF  # begins no text in UTF-8


class Names(Sequence[str]):
    """Distinct strings, numbered from 0 in the order in which they came; their bytes and 12 to 20 more for each, up to 4 GB in all.

    The strings themselves are compared, not their hashes: two never get one number.
    """

    def __init__(self) -> None:
        self._text = bytearray()
        self._ends = array("I", [0])  # name i lies from end i to end i + 1
        self._slots = array("I", bytes(4 * _FIRST_SLOTS))  # a hash table with open addressing: number + 1, 0 is free

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
        return self._slots[self._place(_pack(name))] - 1

    def add(self, name: str) -> int:
        """The number of a name, a new one where it comes for the first time."""
        data = _pack(name)
        place = self._place(data)
        if not self._slots[place]:
            self._text += data
            self._ends.append(len(self._text))
            self._slots[place] = len(self)
            if 2 * len(self) > len(self._slots):
                self._grow()
            return len(self) - 1
        return self._slots[place] - 1

    def _bytes(self, number: int) -> bytes:
        return bytes(self._text[self._ends[number] : self._ends[number + 1]])

    def _place(self, data: bytes) -> int:
        """Where the slots have a name, or the free one where they would."""
        slots, last = self._slots, len(self._slots) - 1
        place = hash(data) & last
        while slots[place] and self._bytes(slots[place] - 1) != data:
            place = (place + 1) & last
        return place

    def _grow(self) -> None:
        self._slots = array("I", bytes(8 * len(self._slots)))
        for number in range(len(self)):
            self._slots[self._place(self._bytes(number))] = number + 1


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
    """Whole numbers by the numbers of `Names`; 0 where none was set. Its length is the number of those that are not 0."""

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
    """SHA-256 in hex by name, 32 bytes each."""

    def __init__(self, names: Names):
        """Names may be shared with other tables; they are added to as needed."""
        self._names, self._known, self._bytes = names, Column("B"), bytearray()

    def __setitem__(self, name: str, digest: str) -> None:
        number = self._names.add(name)
        start = 32 * number
        self._bytes.extend(bytes(max(0, start + 32 - len(self._bytes))))
        self._bytes[start : start + 32] = bytes.fromhex(digest)
        self._known[number] = 1

    def __getitem__(self, name: str) -> str:
        number = self._names.find(name)
        if not self._known[number]:
            raise KeyError(name)
        return self._bytes[32 * number : 32 * number + 32].hex()

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
