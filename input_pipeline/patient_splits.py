"""Seeded splits and label fractions: whole patients, chosen by a hash of their identifier and nothing else."""

import hashlib
import math
from array import array
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction

import numpy as np
from jaxtyping import Int64

from input_pipeline.compact import Names
from input_pipeline.errors import DataError, UserError


def nested_fractions(
    patients: Iterable[str], fractions: Sequence[float] = (0.01, 0.1), *, seed: int
) -> dict[float, Int64[np.ndarray, "_"]]:
    """Fractions of the training records for learning curves: whole patients, a smaller fraction inside every larger one.

    Patients stand in the order of the SHA-256 of "fraction", seed and patient (`_Ordered`), and are taken from the front until their
    records are at least `fraction` of all; so the size exceeds ceil(fraction · records) by less than the records of the last patient,
    and no fraction is empty. Which patient comes first depends on nothing but the seed and the patients' identifiers.

    Args:
      patients: the patient of each record, by the source's own identifier: the keys of a build depend on its salt.
      fractions: above 0, at most 1.
      seed: of the order.

    Returns:
      For each fraction, the indices of its records in ascending order.

    Raises:
      UserError: a fraction out of range.
      DataError: no records.
    """
    ordered = _Ordered("fraction", patients, seed)
    return {fraction: ordered.records(0, ordered.end(0, fraction)) for fraction in fractions}


def seeded_splits(
    patients: Iterable[str], fractions: Mapping[str, float], *, seed: int
) -> dict[str, Int64[np.ndarray, "_"]]:
    """Splits of whole patients for a source that has none, such as {"test": 0.15, "validate": 0.15}; the rest is "train".

    Patients stand in the order of the SHA-256 of "split", seed and patient; the splits are cut off one after the other, each until it
    holds at least its fraction of all records.

    Returns:
      For each split, the indices of its records in ascending order.

    Raises:
      UserError: a fraction out of range.
      DataError: no records, or too few patients to leave any for "train".
    """
    ordered = _Ordered("split", patients, seed)
    splits: dict[str, Int64[np.ndarray, "_"]] = {}
    start = 0
    for split, fraction in fractions.items():
        end = ordered.end(start, fraction)
        splits[split] = ordered.records(start, end)
        start = end
    if start == len(ordered):
        raise DataError(f"{len(ordered)} patients are too few: none is left for 'train'; hold out less")
    return {"train": ordered.records(start, len(ordered)), **splits}


class _Ordered:
    """Patients in the order of a hash of (purpose, seed, patient), with their records."""

    def __init__(self, purpose: str, patients: Iterable[str], seed: int):
        names = Names()
        numbers = np.array(array("I", map(names.add, patients)), np.int64)
        if not len(numbers):
            raise DataError("found no records to split; expected at least one")
        # The purpose keeps a small fraction from being just those patients that narrowly missed the validation split.
        hashes = (hashlib.sha256(f"{purpose}\n{seed}\n{name}".encode()).digest() for name in names)
        order = np.argsort(np.fromiter(hashes, "S32", len(names)), kind="stable")
        self._ends = np.cumsum(np.bincount(numbers)[order])  # records up to each patient
        places = np.empty_like(order)
        places[order] = np.arange(len(order))
        self._place_of = places[numbers]  # of the patient of each record

    def __len__(self) -> int:
        return len(self._ends)

    def end(self, start: int, fraction: float) -> int:
        """The place after the last patient, so that those from `start` have at least `fraction` of all records."""
        if not 0 < fraction <= 1:
            raise UserError(f"found a fraction of {fraction}; expected more than 0 and at most 1")
        # As a decimal fraction: in binary, a tenth of 30 would be a little more than 3.
        wanted = math.ceil(Fraction(str(fraction)) * int(self._ends[-1]))
        before = int(self._ends[start - 1]) if start else 0
        return min(int(np.searchsorted(self._ends, before + wanted)) + 1, len(self))

    def records(self, start: int, end: int) -> Int64[np.ndarray, "_"]:
        """Indices of the records of the patients from `start` to before `end`."""
        return np.flatnonzero((self._place_of >= start) & (self._place_of < end))
