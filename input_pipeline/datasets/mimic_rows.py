"""The images of MIMIC-CXR that a build keeps, as numbers on disk; rows are made when they are asked for."""

import itertools
from collections.abc import Callable, Iterable, Iterator

import numpy as np
from jaxtyping import UInt32

from input_pipeline import progress
from input_pipeline.compact import MadeItems, Names, ranks
from input_pipeline.datasets.mimic_tables import Image, Index
from input_pipeline.scratch import Rows
from input_pipeline.sources import ImageRow


class Kept:
    """Images of one split, in the order of their table."""

    def __init__(self, index: Index):
        self._index, self._views = index, Names()
        self._columns = tuple(Rows("I") for _ in Image._fields)  # name, patient, study, view, flag

    def __len__(self) -> int:
        return len(self._columns[0])

    def __getitem__(self, place: int) -> Image:
        return Image(*(names[column[place][0]] for names, column in zip(self._names(), self._columns, strict=True)))

    def add(self, image: Image) -> None:
        """Adds an image at the end."""
        for names, column, name in zip(self._names(), self._columns, image, strict=True):
            column.append(names.add(name))

    def names(self) -> Iterator[str]:
        """Names of the images."""
        return (self._index.images[self._columns[0][place][0]] for place in range(len(self)))

    def of_studies(self, studies: Iterable[str]) -> Iterator[Image]:
        """The images of some studies."""
        numbers = {self._index.studies.find(study) for study in studies}
        return (self[place] for place in range(len(self)) if self._columns[2][place][0] in numbers)

    def rows(self, make: Callable[[Image], ImageRow]) -> "ImageRows":
        """Rows by patient, study and image, each made by `make`."""
        of_study, of_patient = self._index.studies, self._index.patients
        images, patients, studies, *_ = self._columns
        order = [ranks(names)[_numbers(column)] for names, column in ((of_study, studies), (of_patient, patients))]
        places, ordered = np.lexsort(order).astype(np.uint32), Rows("I")
        counted = progress.counted(map(int, places), "order", "images")
        for _, group in itertools.groupby(counted, lambda place: (patients[place], studies[place])):
            for place in sorted(group, key=lambda place: self._index.images[images[place][0]]):
                ordered.append(place)
        return ImageRows(self, ordered, make)

    def _names(self) -> tuple[Names, ...]:
        return self._index.images, self._index.patients, self._index.studies, self._views, self._views


class ImageRows(MadeItems[ImageRow]):
    """Rows of images in an order."""

    def __init__(self, images: Kept, order: Rows, make: Callable[[Image], ImageRow]):
        self._images, self._order, self._make = images, order, make

    def __len__(self) -> int:
        return len(self._order)

    def made(self, place: int) -> ImageRow:
        """From what was kept of its image."""
        (image,) = self._order[place]
        return self._make(self._images[image])


def _numbers(column: Rows) -> UInt32[np.ndarray, "n"]:
    return np.frombuffer(column.tobytes(), np.uint32)
