"""Tables of hundreds of thousands of rows in a byte or two of memory each: strings and hashes lie in temporary files."""

import itertools
import json
import re
import struct
from abc import abstractmethod
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar, overload

import numpy as np
from jaxtyping import Shaped, UInt32, UInt64

from input_pipeline.scratch import Rows, Scratch

Item = TypeVar("Item")
_FIRST_SLOTS = 2**20  # a power of two, as every later number of slots; on disk only those in use take room
_SLOT = struct.Struct("<II")
_END, _ENDS = struct.Struct("<I"), struct.Struct("<II")
_BLOCK = 256  # names that are read at once where all are
_COMPARED = 64  # bytes of a name by which names are sorted at first
_HEX = re.compile("(?:[0-9a-f]{8}-){4}[0-9a-f]{8}")  # as MIMIC-CXR names its images
_PACKED = 0xFF  # begins no text in UTF-8


class Names(Sequence[str]):
    """Distinct strings, numbered from 0 in the order in which they came, up to 4 GB in all; they lie on disk.

    The strings themselves are compared, not their hashes: two never get one number.
    """

    def __init__(self) -> None:
        self._text, self._ends = Scratch(), Scratch()  # name i lies from end i to end i + 1
        self._size = self._count = 0
        self._ends.append(_END.pack(0))
        # A hash table with open addressing: more of the hash, and number + 1, which is 0 where the slot is free.
        self._slots, self._last = Scratch(_SLOT.size * _FIRST_SLOTS), _FIRST_SLOTS - 1
        # The last that was looked up: names are often asked for before they are added, and several times in a row.
        self._asked, self._answer = b"", (0, 0, 0)

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        return _unpack(self._bytes(range(len(self))[index]))

    def __iter__(self) -> Iterator[str]:
        return map(_unpack, self._all())

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self.find(name) >= 0

    def find(self, name: str) -> int:
        """The number of a name, or -1 where it never came."""
        return self._look(_pack(name))[1] - 1

    def add(self, name: str) -> int:
        """The number of a name, a new one where it comes for the first time."""
        data = _pack(name)
        place, found, rest = self._look(data)
        if found:
            return found - 1
        self._size += len(data)
        self._ends.append(_END.pack(self._size))
        self._text.append(data)
        self._count += 1
        self._slots.write(_SLOT.size * place, _SLOT.pack(rest, self._count))
        self._answer = place, self._count, rest
        if 2 * self._count > self._last:
            self._grow()
        return self._count - 1

    def put(self, name: str) -> bool:
        """Adds a name; false if it was there."""
        known = self._count
        return self.add(name) == known

    def _bytes(self, number: int) -> bytes:
        start, end = _ENDS.unpack(self._ends.read(_END.size * number, _ENDS.size))
        return self._text.read(start, end - start)

    def _all(self) -> Iterator[bytes]:
        for first in range(0, self._count, _BLOCK):
            count = min(_BLOCK, self._count - first)
            ends = struct.unpack(f"<{count + 1}I", self._ends.read(_END.size * first, _END.size * (count + 1)))
            text = self._text.read(ends[0], ends[-1] - ends[0])
            yield from (text[start - ends[0] : end - ends[0]] for start, end in itertools.pairwise(ends))

    def _look(self, data: bytes) -> tuple[int, int, int]:
        """Which slot has a name, or the free one that would; its number + 1, or 0; and what else of its hash a slot keeps."""
        if data != self._asked or not data:
            self._asked, self._answer = data, self._search(data)
        return self._answer

    def _search(self, data: bytes) -> tuple[int, int, int]:
        digest = hash(data)
        place, rest = digest & self._last, digest >> 32 & 0xFFFFFFFF
        while True:
            other, found = _SLOT.unpack(self._slots.read(_SLOT.size * place, _SLOT.size))
            if not found or (other == rest and self._bytes(found - 1) == data):
                return place, found, rest
            place = (place + 1) & self._last

    def _grow(self) -> None:
        self._last, self._asked = 2 * self._last + 1, b""
        self._slots = Scratch(_SLOT.size * (self._last + 1))
        for number, data in enumerate(self._all()):
            place, _, rest = self._search(data)
            self._slots.write(_SLOT.size * place, _SLOT.pack(rest, number + 1))


def alphabetical(names: Names) -> UInt32[np.ndarray, "n"]:
    """The numbers of names in alphabetical order."""
    width = min(_COMPARED, max((len(_encode(name)) for name in names), default=1) or 1)
    begins = np.fromiter((_encode(name)[:width] for name in names), f"S{width}", len(names))
    order = np.argsort(begins, kind="stable").astype(np.uint32)
    begins = begins[order]
    alike = np.flatnonzero(begins[1:] == begins[:-1])  # longer ones, or they differ by zeros at the end
    for run in np.split(alike, np.flatnonzero(np.diff(alike) > 1) + 1) if len(alike) else ():
        part = slice(run[0], run[-1] + 2)
        order[part] = sorted(order[part].tolist(), key=names.__getitem__)
    return order


def ranks(names: Names) -> UInt32[np.ndarray, "n"]:
    """The place of each name in alphabetical order."""
    order = alphabetical(names)
    found = np.empty_like(order)
    found[order] = np.arange(len(names), dtype=np.uint32)
    return found


def _pack(name: str) -> bytes:
    """A string as bytes, half as many where it is five groups of eight hexadecimal digits."""
    if len(name) == 44 and _HEX.fullmatch(name):
        return bytes((_PACKED,)) + bytes.fromhex(name.replace("-", ""))
    return _encode(name)


def _unpack(data: bytes) -> str:
    if data[:1] != bytes((_PACKED,)):
        return _decode(data)
    digits = data[1:].hex()
    return "-".join(digits[start : start + 8] for start in range(0, 40, 8))


def _encode(text: str) -> bytes:
    return text.encode(errors="surrogatepass")  # as in names of files that are not UTF-8


def _decode(data: bytes) -> str:
    return data.decode(errors="surrogatepass")


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

    def array(self) -> Shaped[np.ndarray, "n"]:
        """A copy of the values up to the last that was set."""
        return np.array(self._values).view(f"u{self._values.itemsize}")  # numpy knows two names of eight bytes

    def copy(self) -> "Column":
        """Another column of the same values."""
        other = Column(self._values.typecode)
        other._values, other._set = self._values[:], self._set
        return other


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


class Texts(Mapping[str, str]):
    """Strings by name, both on disk; `names` has the names in the order in which they came."""

    def __init__(self) -> None:
        self.names, self._bytes = Names(), Scratch()
        self._places = Rows("QI")  # where the string of each name begins, and its length

    def __setitem__(self, name: str, text: str) -> None:
        data = _encode(text)
        self._places[self.names.add(name)] = len(self._bytes), len(data)
        self._bytes.append(data)

    def __getitem__(self, name: str) -> str:
        number = self.names.find(name)
        if number < 0:
            raise KeyError(name)
        return _decode(self._bytes.read(*self._places[number]))

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


class MadeItems(Sequence[Item]):
    """Items that are made when they are asked for, and not kept; a class of them has `__len__` and `made`."""

    @abstractmethod
    def made(self, place: int) -> Item:
        """The item at a place, counted from 0."""

    @overload
    def __getitem__(self, index: int) -> Item: ...
    @overload
    def __getitem__(self, index: slice) -> list[Item]: ...
    def __getitem__(self, index: int | slice) -> Item | list[Item]:
        places = range(len(self))[index]
        return self.made(places) if isinstance(places, int) else [self.made(place) for place in places]


class Log(MadeItems[Item]):
    """Items in the order in which they came; their strings lie on disk, and the items are made again when they are asked for."""

    def __init__(self, texts: Callable[[Item], Sequence[str]], item: Callable[..., Item]):
        """`texts` takes an item apart into strings, of which `item` makes it."""
        self._texts, self._item = texts, item
        self._bytes, self._places = Scratch(), Rows("QI")  # where each item begins, and its length

    def append(self, item: Item) -> None:
        """Adds an item at the end."""
        data = json.dumps(self._texts(item)).encode()
        self._places.append(len(self._bytes), len(data))
        self._bytes.append(data)

    def __len__(self) -> int:
        return len(self._places)

    def made(self, place: int) -> Item:
        """From its strings."""
        return self._item(*json.loads(self._bytes.read(*self._places[place])))


class Members:
    """Which of a few sets each of many names is in: the names lie on disk, and memory holds a bit for each set, a byte or more in all."""

    def __init__(self, sets: Sequence[str]):
        """Of at most 64 sets, by their names."""
        self.sets, self.names = tuple(sets), Names()
        self._bits = Column(next(kind for kind in "BHIQ" if 8 * array(kind).itemsize >= len(self.sets)))
        self._places = {name: place for place, name in enumerate(self.sets)}
        self._sets_of: dict[int, tuple[str, ...]] = {0: ()}  # by their bits

    def add(self, name: str, to: str) -> bool:
        """Puts a name into a set; false if it was there."""
        return self.add_number(self.names.add(name), to)

    def add_number(self, number: int, to: str) -> bool:
        """`add` by the number in `names`."""
        bits = self._bits[number]
        self._bits[number] = bits | 1 << self._places[to]
        return bits != self._bits[number]

    def of(self, name: str) -> tuple[str, ...]:
        """The sets that a name is in, in order."""
        return self._of(self.names.find(name)) if self.sets else ()

    def remove(self, name: str, *sets: str) -> None:
        """Takes a name, which need not be there, out of some sets."""
        for one in sets:
            number = self.names.find(name)
            if (bits := self._bits[number]) & (bit := 1 << self._places[one]):
                self._bits[number] = bits - bit

    def clear(self, name: str) -> None:
        """Takes a name, which need not be there, out of all sets."""
        number = self.names.find(name) if self.sets else -1
        if self._bits[number]:
            self._bits[number] = 0

    def copy(self) -> "Members":
        """The same sets, which change by themselves; the names are shared, so that none may be added."""
        other = Members(self.sets)
        other.names, other._bits = self.names, self._bits.copy()
        return other

    def items(self) -> Iterator[tuple[str, tuple[str, ...]]]:
        """Every name that is in a set, with its sets."""
        return ((self.names[number], self._of(number)) for number in self._bits.numbers())

    def size(self, *sets: str) -> int:
        """How many names are in all of some sets."""
        wanted = np.uint64(sum(1 << self._places[one] for one in sets))
        return int(np.count_nonzero((self._array() & wanted) == wanted))

    def shared(self) -> Iterator[str]:
        """The names that are in several sets."""
        bits = self._array()
        return (self.names[number] for number in np.flatnonzero(bits & (bits - np.uint64(1))).tolist())

    def _of(self, number: int) -> tuple[str, ...]:
        bits = self._bits[number]
        if bits not in self._sets_of:
            self._sets_of[bits] = tuple(name for place, name in enumerate(self.sets) if bits >> place & 1)
        return self._sets_of[bits]

    def _array(self) -> UInt64[np.ndarray, "n"]:
        return self._bits.array().astype(np.uint64)


class Part(MadeItems[Item]):
    """Items at some places of a sequence that makes them when asked; pickled as a tuple of them."""

    def __init__(self, items: Sequence[Item], places: Sequence[int]):
        self._items, self._places = items, places

    def __len__(self) -> int:
        return len(self._places)

    def made(self, place: int) -> Item:
        """What the other sequence makes."""
        return self._items[self._places[place]]

    def __reduce__(self) -> tuple[Any, ...]:
        return tuple, (tuple(self),)
