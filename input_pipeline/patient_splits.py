"""Seeded splits and label fractions: whole patients, chosen by a hash of their identifier and nothing else."""

import hashlib
import itertools
import math
from collections.abc import Mapping, Sequence
from fractions import Fraction

import numpy as np

from input_pipeline.errors import DataError, UserError


def nested_fractions(
    patients: Sequence[str], fractions: Sequence[float] = (0.01, 0.1), *, seed: int
) -> dict[float, frozenset[int]]:
    """Fractions of the training records for learning curves: whole patients, a smaller fraction inside every larger one.

    Patients stand in the order of the SHA-256 of "fraction", seed and patient (`_Ordered`), and are taken from the front until their
    records are at least `fraction` of all; so the size exceeds ceil(fraction · records) by less than the records of the last patient,
    and no fraction is empty. Which patient comes first depends on nothing but the seed and the patients' identifiers.

    Args:
      patients: the patient of each record, by the source's own identifier: the keys of a build depend on its salt.
      fractions: above 0, at most 1.
      seed: of the order.

    Returns:
      For each fraction, the indices of its records.

    Raises:
      UserError: a fraction out of range.
      DataError: no records.
    """
    ordered = _Ordered("fraction", patients, seed)
    return {fraction: ordered.records(0, ordered.end(0, fraction)) for fraction in fractions}


def seeded_splits(patients: Sequence[str], fractions: Mapping[str, float], *, seed: int) -> dict[str, frozenset[int]]:
    """Splits of whole patients for a source that has none, such as {"test": 0.15, "validate": 0.15}; the rest is "train".

    Patients stand in the order of the SHA-256 of "split", seed and patient; the splits are cut off one after the other, each until it
    holds at least its fraction of all records.

    Returns:
      For each split, the indices of its records.

    Raises:
      UserError: a fraction out of range.
      DataError: no records, or too few patients to leave any for "train".
    """
    ordered = _Ordered("split", patients, seed)
    splits: dict[str, frozenset[int]] = {}
    start = 0
    for split, fraction in fractions.items():
        end = ordered.end(start, fraction)
        splits[split] = ordered.records(start, end)
        start = end
    if start == len(ordered.order):
        raise DataError(f"{len(ordered.order)} patients are too few: none is left for 'train'; hold out less")
    return {"train": ordered.records(start, len(ordered.order)), **splits}


class _Ordered:
    """Patients in the order of a hash of (purpose, seed, patient), with their records."""

    def __init__(self, purpose: str, patients: Sequence[str], seed: int):
        self._records: dict[str, list[int]] = {}
        for index, patient in enumerate(patients):
            self._records.setdefault(patient, []).append(index)
        if not self._records:
            raise DataError("found no records to split; expected at least one")
        # The purpose keeps a small fraction from being just those patients that narrowly missed the validation split.
        self.order = sorted(self._records, key=lambda p: hashlib.sha256(f"{purpose}\n{seed}\n{p}".encode()).digest())
        self._ends = np.cumsum([len(self._records[patient]) for patient in self.order])  # records up to each patient

    def end(self, start: int, fraction: float) -> int:
        """The place after the last patient, so that those from `start` have at least `fraction` of all records."""
        if not 0 < fraction <= 1:
            raise UserError(f"found a fraction of {fraction}; expected more than 0 and at most 1")
        # As a decimal fraction: in binary, a tenth of 30 would be a little more than 3.
        wanted = math.ceil(Fraction(str(fraction)) * int(self._ends[-1]))
        before = int(self._ends[start - 1]) if start else 0
        return min(int(np.searchsorted(self._ends, before + wanted)) + 1, len(self.order))

    def records(self, start: int, end: int) -> frozenset[int]:
        """Indices of the records of the patients from `start` to before `end`."""
        return frozenset(itertools.chain.from_iterable(self._records[patient] for patient in self.order[start:end]))
