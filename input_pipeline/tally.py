"""What the doctor finds, row by row, added up: memory holds counts, and a few numbers for each picture, but no fault and no row."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from input_pipeline.compact import Names
from input_pipeline.diagnoses import DIAGNOSES, Finding
from input_pipeline.scratch import Rows


@dataclass(frozen=True)
class Fault:
    """Attributes: `key` of an image, or of a patient; `part` of one row of the image, where it has several; `same_as` of an equal image;
    `message` says more; `stops` as in `Finding`."""

    code: str
    key: str = ""
    message: str = ""
    stops: bool = False
    same_as: str = ""
    part: str = ""


@dataclass(frozen=True)
class Check:
    """What reading one row gave: whether it would be a record, why not, what is odd about it, and the key of its pixels where those were read."""

    key: str
    split: str
    usable: bool
    faults: tuple[Fault, ...]
    pixels: str = ""


class Tally:
    """Faults as findings, one after the other: there may be one for every image."""

    def __init__(self) -> None:
        self._first: dict[str, Fault] = {}
        self._counts: Counter[str] = Counter()
        self._stops: set[str] = set()
        # By code, the first message of each kind: one kind are those that differ by numbers alone.
        self._kinds: dict[str, dict[str, str]] = {}
        self._of_kind: Counter[tuple[str, str]] = Counter()

    def of(self, faults: Iterable[Fault]) -> Iterator[Fault]:
        """The faults as they are, counted."""
        for fault in faults:
            self._first.setdefault(fault.code, fault)
            self._counts[fault.code] += 1
            if fault.stops:
                self._stops.add(fault.code)
            if fault.message:
                kind = re.sub(r"[0-9][0-9,]*", "", fault.message)
                self._kinds.setdefault(fault.code, {}).setdefault(kind, fault.message)
                self._of_kind[fault.code, kind] += 1
            yield fault

    def findings(self, total: int) -> list[Finding]:
        """What was counted, `total` having been looked at."""
        return [
            Finding(
                code=code,
                count=self._counts[code],
                of=total,
                where=f"first {first.key}" if first.key else "",
                kinds=self._told(code),
                stops=code in self._stops,
                diagnosis=DIAGNOSES[code],
            )
            for code, first in self._first.items()
        ]

    def _told(self, code: str) -> dict[str, int]:
        """The first message of each kind with the number of its kind, the most frequent first."""
        counts = {message: self._of_kind[code, kind] for kind, message in self._kinds.get(code, {}).items()}
        return dict(Counter(counts).most_common())


class Looked:
    """What became of the rows that were looked at, and which of their pictures are the same.

    Attributes:
      rows: how many there were.
      usable: how many of them would be records.
      repeated: see `Report`.
    """

    def __init__(self) -> None:
        self.rows = self.usable = self.repeated = 0
        self._pixels, self._keys, self._splits = Names(), Names(), Names()
        self._first = Rows("II")  # by pixels, the number of the image's key, counted from 1, and that of its split
        self._groups: dict[int, dict[int, int]] = {}  # the same, where there are several images

    def at(self, checks: Iterable[Check]) -> Iterator[Fault]:
        """The faults of each row, and behind the last one those of equal pictures."""
        for check in checks:
            self.rows += 1
            self.usable += check.usable
            self.repeated += max(0, sum(DIAGNOSES[fault.code].unusable for fault in check.faults) - 1)
            if check.pixels:  # blank pictures, which are all alike, have no key
                self._add(check)
            yield from check.faults
        yield from self._shared_pixels()

    def _add(self, check: Check) -> None:
        pixels, key, split = self._pixels.add(check.pixels), self._keys.add(check.key), self._splits.add(check.split)
        known, home = self._first[pixels]
        if pixels in self._groups:
            self._groups[pixels][key] = split
        elif known in (0, key + 1):
            self._first[pixels] = key + 1, split
        else:
            self._groups[pixels] = {known - 1: home, key: split}

    def _shared_pixels(self) -> Iterator[Fault]:
        """The same picture under several identifiers."""
        for _, members in sorted(self._groups.items()):
            code = "duplicate_pixels_across_splits" if len(set(members.values())) > 1 else "duplicate_pixels"
            first, *others = (self._keys[key] for key in members)
            yield from (Fault(code, key, same_as=first) for key in others)
