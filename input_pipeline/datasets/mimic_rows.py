"""The images of MIMIC-CXR that a build keeps, 16 bytes each beside the index of the tables; rows are made when they are asked for."""

import itertools
from array import array
from collections.abc import Callable, Iterator, Sequence
from typing import overload

import numpy as np
from jaxtyping import UInt32

from input_pipeline.compact import Names
from input_pipeline.datasets.mimic_tables import Image, Index
from input_pipeline.sources import ImageRow


class Kept:
    """Images of one split, in the order of their table."""

    def __init__(self, index: Index):
        self._index, self._views = index, Names()
        self._columns = tuple(array("I") for _ in Image._fields)  # name, patient, study, view

    def __len__(self) -> int:
        return len(self._columns[0])

    def __getitem__(self, place: int) -> Image:
        return Image(*(names[column[place]] for names, column in zip(self._names(), self._columns, strict=True)))

    def add(self, image: Image) -> None:
        """Adds an image at the end."""
        for names, column, name in zip(self._names(), self._columns, image, strict=True):
            column.append(names.add(name))

    def names(self) -> Iterator[str]:
        """Names of the images."""
        return (self._index.images[number] for number in self._columns[0])

    def rows(self, make: Callable[[Image], ImageRow]) -> "ImageRows":
        """Rows by patient, study and image, each made by `make`."""
        images, patients, studies, _ = self._columns
        ranks = [_ranks(names)[np.frombuffer(column, np.uint32)] for names, column in self._of(studies, patients)]
        order, ordered = np.lexsort(ranks), array("I")
        for _, places in itertools.groupby(map(int, order), lambda place: (patients[place], studies[place])):
            ordered.extend(sorted(places, key=lambda place: self._index.images[images[place]]))
        return ImageRows(self, ordered, make)

    def _names(self) -> tuple[Names, ...]:
        return self._index.images, self._index.patients, self._index.studies, self._views

    def _of(self, studies: array, patients: array) -> tuple[tuple[Names, array], ...]:
        return (self._index.studies, studies), (self._index.patients, patients)


class ImageRows(Sequence[ImageRow]):
    """Rows that are made when they are asked for, and not kept."""

    def __init__(self, images: Kept, order: array, make: Callable[[Image], ImageRow]):
        self._images, self._order, self._make = images, order, make

    def __len__(self) -> int:
        return len(self._order)

    @overload
    def __getitem__(self, index: int) -> ImageRow: ...
    @overload
    def __getitem__(self, index: slice) -> list[ImageRow]: ...
    def __getitem__(self, index: int | slice) -> ImageRow | list[ImageRow]:
        if isinstance(index, slice):
            return [self._make(self._images[place]) for place in self._order[index]]
        return self._make(self._images[self._order[index]])


def _ranks(names: Names) -> UInt32[np.ndarray, "n"]:
    """The place of each name in alphabetical order."""
    width = max((len(name) for name in names), default=1)
    order = np.argsort(np.fromiter((name.encode() for name in names), f"S{width}", len(names)), kind="stable")
    ranks = np.empty(len(names), np.uint32)
    ranks[order] = np.arange(len(names), dtype=np.uint32)
    return ranks
