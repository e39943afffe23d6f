"""The rows of a source of labelled images on disk: a scan holds a few numbers for each, and makes it again when it is asked for."""

import itertools
import marshal  # its form may change with Python, and the file is gone with the process
from array import array
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from input_pipeline.compact import Column, MadeItems, Members, ranks
from input_pipeline.scratch import Rows, Scratch
from input_pipeline.sources import SPLITS, ImageRow


class Kept:
    """Rows that will be records.

    Attributes:
      places: per split, the numbers of its rows, which count all that were ever added.
      patients: the splits that each of them was added to.
    """

    def __init__(self, subsets: Iterable[str] = ()):
        """`subsets` come first, in their order, among those of a row."""
        self.places: dict[str, array[int]] = {}
        self.patients = Members(SPLITS)
        self._text, self._places = Scratch(), Rows("QI")  # where each row begins, and its length
        self._patient_of = array("I")
        self._subsets = {name: Column("B") for name in subsets}

    def add(self, split: str, row: ImageRow) -> None:
        """Adds a row to a split; its subsets are kept apart from it, see `mark`."""
        place = len(self._patient_of)
        patient = self.patients.names.add(row.patient)
        self.patients.add_number(patient, split)
        self._patient_of.append(patient)
        data = _encode(row)
        self._places.append(len(self._text), len(data))
        self._text.append(data)
        self.places.setdefault(split, array("I")).append(place)
        for subset in row.subsets:
            self.mark(subset, [place])

    def mark(self, subset: str, places: Iterable[int]) -> None:
        """Puts rows into a subset of their split."""
        column = self._subsets.setdefault(subset, Column("B"))
        for place in places:
            column[place] = 1

    def unmark(self, places: Iterable[int]) -> None:
        """Takes rows out of all subsets."""
        for place, column in itertools.product(places, self._subsets.values()):
            if column[place]:
                column[place] = 0

    def patients_of(self, split: str) -> Iterable[str]:
        """The patient of each row of a split, in the order of `places`."""
        return (self.patients.names[self._patient_of[place]] for place in self.places[split])

    def sort(self, split: str) -> None:
        """Brings the rows of a split into the order of patient, study, image and phrase."""
        places = np.array(self.places[split], np.uint32)
        rank = ranks(self.patients.names)[np.array(self._patient_of, np.uint32)[places]]
        ordered = array("I")
        by_patient = (places[place] for place in np.argsort(rank, kind="stable"))
        for _, group in itertools.groupby(map(int, by_patient), self._patient_of.__getitem__):
            own = list(group)
            ordered.extend(sorted(own, key=self._key) if len(own) > 1 else own)
        self.places[split] = ordered

    def rows(self, split: str) -> "LabelledRows":
        """The rows of a split as they are in order now."""
        return LabelledRows(self, self.places[split])

    def row(self, place: int) -> ImageRow:
        """A row by its number."""
        subsets = tuple(name for name, column in self._subsets.items() if column[place]) if self._subsets else ()
        *fields, flags = _decode(self._text.read(*self._places[place]))
        return ImageRow(*fields, subsets=subsets, flags=flags)

    def _key(self, place: int) -> tuple[str, str, str]:
        _, study, image, _, _, _, phrase, *_ = _decode(self._text.read(*self._places[place]))
        return study, image, phrase


class LabelledRows(MadeItems[ImageRow]):
    """Rows of a data set at some places of all that were read."""

    def __init__(self, kept: Kept, places: Sequence[int]):
        self._kept, self._places = kept, places

    def __len__(self) -> int:
        return len(self._places)

    def made(self, place: int) -> ImageRow:
        """From what was kept of it."""
        return self._kept.row(self._places[place])


def _encode(row: ImageRow) -> bytes:
    """All fields but the subsets."""
    fields = row.patient, row.study, row.image, row.path, row.view, row.labels, row.phrase, row.category
    return marshal.dumps((*fields, row.boxes, row.runs, row.sha256, row.flags))


def _decode(data: bytes) -> tuple[Any, ...]:
    return marshal.loads(data)  # of a file that this process wrote, and that no other can open
