"""Seeded splits and fractions keep patients whole and depend on nothing but the seed and who the patients are."""

import hashlib
import itertools
import math
import os
import subprocess
import sys
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from input_pipeline import patient_splits, splits
from input_pipeline.errors import DataError, UserError

PATIENTS = st.lists(st.integers(0, 30).map(lambda number: f"patient{number:05d}"), min_size=1, max_size=120)
PERCENT = st.integers(1, 100)
SEEDS = st.integers(0, 2**40)


def sets(found):
    """Indices as sets; they come in ascending order."""
    assert all((records[1:] > records[:-1]).all() for records in found.values())
    return {name: set(records.tolist()) for name, records in found.items()}


def nested_fractions(patients, *fractions, seed):
    return sets(patient_splits.nested_fractions(patients, *fractions, seed=seed))


def seeded_splits(patients, fractions, *, seed):
    return sets(patient_splits.seeded_splits(patients, fractions, seed=seed))


def held_out(patients, fraction, *, seed):
    return seeded_splits(patients, {"validate": fraction}, seed=seed)["validate"]


def members(patients, records):
    return {patients[index] for index in records}


@given(PATIENTS, st.lists(PERCENT, min_size=1, max_size=4), SEEDS)
def test_fractions_are_nested_whole_patients_of_the_wanted_size(patients, percents, seed):
    found = nested_fractions(patients, [percent / 100 for percent in percents], seed=seed)
    by_patient = Counter(patients)
    for percent in percents:
        records = found[percent / 100]
        inside = members(patients, records)
        assert not inside & members(patients, set(range(len(patients))) - records)
        wanted = -(-percent * len(patients) // 100)
        assert wanted <= len(records) < wanted + max(by_patient[patient] for patient in inside)
    ordered = sorted(found)
    assert all(found[a] <= found[b] for a, b in itertools.pairwise(ordered))


@given(PATIENTS, SEEDS, st.randoms(use_true_random=False))
def test_patients_are_chosen_whatever_the_order_of_the_records(patients, seed, shuffler):
    other = patients.copy()
    shuffler.shuffle(other)
    for fraction, records in nested_fractions(patients, seed=seed).items():
        assert members(patients, records) == members(other, nested_fractions(other, [fraction], seed=seed)[fraction])


@given(PATIENTS, PERCENT, SEEDS)
def test_fractions_are_the_front_of_the_patients_sorted_by_sha256(patients, percent, seed):
    chosen, count = set(), 0
    for patient in sorted(
        set(patients), key=lambda name: hashlib.sha256(f"fraction\n{seed}\n{name}".encode()).hexdigest()
    ):
        if 100 * count >= percent * len(patients):
            break
        chosen.add(patient)
        count += patients.count(patient)
    assert members(patients, nested_fractions(patients, [percent / 100], seed=seed)[percent / 100]) == chosen


def test_a_tenth_of_thirty_is_three():
    assert math.ceil(0.1 * 30) == 3
    assert math.ceil(0.07 * 100) == 8  # as binary fractions are rounded
    patients = [f"p{number}" for number in range(100)]
    assert len(nested_fractions(patients, [0.07], seed=0)[0.07]) == 7


def test_another_process_and_hash_seed_choose_the_same():
    code = (
        "from input_pipeline.patient_splits import nested_fractions, seeded_splits;"
        "patients = [f'p{i // 3}' for i in range(500)];"
        "print(nested_fractions(patients, seed=7)[0.1].tolist(), seeded_splits(patients, {'validate': 0.2}, seed=7)['validate'].tolist())"
    )
    patients = [f"p{index // 3}" for index in range(500)]
    expected = f"{sorted(nested_fractions(patients, seed=7)[0.1])} {sorted(seeded_splits(patients, {'validate': 0.2}, seed=7)['validate'])}\n"
    for hash_seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
        assert run.stdout == expected


def test_another_seed_chooses_others():
    patients = [f"p{index // 3}" for index in range(600)]
    chosen = [members(patients, nested_fractions(patients, seed=seed)[0.1]) for seed in range(20)]
    shared = [len(a & b) / len(a) for a, b in itertools.pairwise(chosen)]
    assert 0.02 < sum(shared) / len(shared) < 0.25  # a tenth by chance


def test_a_fraction_is_no_remainder_of_the_validation_split():
    """Held out and cut by one seed, the fraction must not be those patients that narrowly missed the validation split."""
    patients = [f"p{index}" for index in range(4000)]
    held = held_out(patients, 0.5, seed=3)
    nearly = held_out(patients, 0.55, seed=3) - held
    rest = [index for index in range(len(patients)) if index not in held]
    found = nested_fractions([patients[index] for index in rest], [0.1], seed=3)[0.1]
    assert 5 < len({rest[index] for index in found} & nearly) < 40  # 20 by chance


@given(PATIENTS.filter(lambda patients: len(set(patients)) > 8), SEEDS)
def test_seeded_splits_are_whole_patients_of_the_wanted_sizes(patients, seed):
    try:
        found = seeded_splits(patients, {"test": 0.15, "validate": 0.15}, seed=seed)
    except DataError:
        assert max(Counter(patients).values()) > 0.3 * len(patients)  # a patient may take up the rest
        return
    assert list(found) == ["train", "test", "validate"]
    assert sorted(index for records in found.values() for index in records) == list(range(len(patients)))
    groups = [members(patients, records) for records in found.values()]
    assert sum(map(len, groups)) == len(set(patients))
    largest = max(Counter(patients).values())
    wanted = -(-15 * len(patients) // 100)
    for split in ("test", "validate"):
        assert wanted <= len(found[split]) < wanted + largest
    assert found["test"] == held_out(patients, 0.15, seed=seed)


@pytest.mark.parametrize("fraction", [0.0, -0.1, 1.01, float("nan"), float("inf")])
def test_a_fraction_out_of_range_is_refused(fraction):
    with pytest.raises(UserError, match="expected more than 0 and at most 1"):
        nested_fractions(["a", "b"], [fraction], seed=0)


def test_nothing_to_split_is_refused():
    with pytest.raises(DataError, match="found no records to split"):
        nested_fractions([], seed=0)
    with pytest.raises(DataError, match="2 patients are too few: none is left for 'train'"):
        seeded_splits(["a", "b", "b"], {"test": 0.5, "validate": 0.5}, seed=0)


def test_fractions_of_real_nih_patients_have_their_size(real_data):
    published = splits.read_published(real_data / "splits" / "NIH_ChestX-ray", labels=14)
    patients = [name[:8] for name in published.splits["train"]]
    found = nested_fractions(patients, seed=0)
    assert found[0.01] <= found[0.1]
    assert 785 <= len(found[0.01]) < 785 + max(Counter(patients).values())
    assert 7847 <= len(found[0.1]) < 7847 + max(Counter(patients).values())
