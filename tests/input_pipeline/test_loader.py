"""Batches are a function of (seed, step): the same rows in the same order however the work is split."""

import dataclasses
import itertools
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from input_pipeline import loader, reading, streams
from input_pipeline.errors import DataError, UserError
from input_pipeline.images import decode_gray, evaluation_view
from input_pipeline.tokenizer import ReportTokenizer

BATCH = 8
STEPS = 5  # 12 records: three epochs begin


def train(directory, spec, steps=STEPS, **options):
    with loader.train_batches(directory, spec, batch_size=BATCH, **{"seed": 3, **options}) as batches:
        return [{name: np.array(value) for name, value in batch.items()} for batch in itertools.islice(batches, steps)]


def evaluate(directory, spec, split, **options):
    with loader.evaluation_batches(directory, spec, split=split, **{"batch_size": BATCH, **options}) as batches:
        return list(batches)


def join(parts):
    """Global batches from those of all processes, in process order."""
    return [
        {name: np.concatenate([part[name] for part in step]) for name in step[0]} for step in zip(*parts, strict=True)
    ]


def assert_equal(found, expected):
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one.keys() == other.keys()
        for name in other:
            assert one[name].dtype == other[name].dtype
            np.testing.assert_array_equal(one[name], other[name])


@pytest.fixture(scope="module")
def reference(mimic_build, batch_spec):
    return train(mimic_build, batch_spec)


def test_batches_have_the_shapes_and_types_of_the_design(reference):
    batch = reference[0]
    assert {name: (value.shape, str(value.dtype)) for name, value in batch.items()} == {
        "image": ((BATCH, 24, 24, 1), "uint8"),
        "token_ids": ((BATCH, 40), "int32"),
        "sentence_ids": ((BATCH, 40), "int32"),
        "study_key": ((BATCH,), "uint32"),
    }


def test_an_epoch_shows_every_record_once_and_the_next_in_another_order(mimic_build, batch_spec):
    keys = np.concatenate([batch["study_key"] for batch in train(mimic_build, batch_spec, steps=6)]).reshape(4, 12)
    expected = sorted(streams.text_key(record.sentences) for record in reading.open_split(mimic_build, "train"))
    assert len(set(expected)) == 12
    for epoch in keys:
        assert sorted(epoch.tolist()) == expected
    assert len({tuple(epoch.tolist()) for epoch in keys}) == 4


def test_augmentation_and_sentence_subsets_differ_between_epochs(mimic_build, batch_spec):
    batches = train(mimic_build, batch_spec, steps=6)
    keys, images, tokens = (
        np.concatenate([batch[name] for batch in batches]) for name in ("study_key", "image", "token_ids")
    )
    for key in set(keys.tolist()):
        mine = keys == key
        assert len({image.tobytes() for image in images[mine]}) == 4
    assert len({row.tobytes() for row in tokens}) > 12


@pytest.mark.parametrize("count", [2, 4])
def test_processes_together_see_the_global_batches_of_one(mimic_build, batch_spec, reference, count):
    parts = [train(mimic_build, batch_spec, process_index=index, process_count=count) for index in range(count)]
    assert all(len(part[0]["study_key"]) == BATCH // count for part in parts)
    assert_equal(join(parts), reference)


@pytest.mark.parametrize("workers", [1, 2])
def test_worker_processes_give_the_batches_of_threads(mimic_build, batch_spec, reference, workers):
    assert_equal(train(mimic_build, batch_spec, workers=workers), reference)


def test_the_last_of_four_processes_with_two_workers_has_its_rows(mimic_build, batch_spec, reference):
    found = train(mimic_build, batch_spec, process_index=3, process_count=4, workers=2)
    first = BATCH // 4 * 3
    assert_equal(found, [{name: value[first:] for name, value in batch.items()} for batch in reference])


def test_the_wish_to_stop_reaches_workers_and_does_not_end_them(mimic_build, batch_spec, reference):
    """SLURM and a terminal signal all processes of a run; it takes a few more steps before it stops."""
    with loader.train_batches(mimic_build, batch_spec, batch_size=BATCH, seed=3, workers=1) as batches:
        found = [next(batches)]
        workers = multiprocessing.active_children()
        assert workers
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            for worker in workers:
                os.kill(worker.pid, number)
        found += itertools.islice(batches, STEPS - 1)
    assert_equal(found, reference)
    assert not any(worker.is_alive() for worker in workers)


def test_one_of_two_processes_resumes_in_the_second_epoch_with_a_worker(mimic_build, batch_spec, reference):
    found = train(mimic_build, batch_spec, 2, process_index=1, process_count=2, workers=1, start_step=3)
    half = [{name: value[BATCH // 2 :] for name, value in batch.items()} for batch in reference[3:]]
    assert_equal(found, half)


@pytest.mark.parametrize("start", [1, 2, 4])
def test_any_step_can_be_the_first(mimic_build, batch_spec, reference, start):
    assert_equal(train(mimic_build, batch_spec, STEPS - start, start_step=start), reference[start:])


def test_a_late_step_is_the_same_from_near_and_from_far(mimic_build, batch_spec):
    far = train(mimic_build, batch_spec, 2, start_step=1_000_000_004)
    near = train(mimic_build, batch_spec, 1, start_step=1_000_000_005)
    assert_equal(near, far[1:])


def test_the_seed_changes_order_and_augmentation(mimic_build, batch_spec, reference):
    other = train(mimic_build, batch_spec, seed=4)
    assert any((one["study_key"] != two["study_key"]).any() for one, two in zip(other, reference, strict=True))
    assert_equal(train(mimic_build, batch_spec), reference)


@pytest.mark.parametrize("split", ["train", "validate", "test"])
def test_a_pair_is_the_image_and_the_sentences_of_its_record(mimic_build, split):
    whole = reading.open_split(mimic_build, split)
    for source in (whole, whole.at(np.arange(len(whole))[::-2])):
        assert [source.pair(place) for place in range(len(source))] == [
            (record.image, record.sentences) for record in source
        ]


def test_no_text_leaves_the_loader(reference):
    assert {value.dtype.kind for batch in reference for value in batch.values()} == {"u", "i"}


def test_without_augmentation_rows_are_those_of_evaluation(mimic_build, batch_spec):
    plain = dataclasses.replace(batch_spec, scale=(1.0, 1.0), shift=0.0, subset_probability=0.0)
    shown = {}
    for batch in evaluate(mimic_build, plain, "train"):
        for row in np.flatnonzero(batch["valid"]):
            shown[int(batch["study_key"][row])] = row, batch
    for batch in train(mimic_build, plain, steps=2):
        for index, key in enumerate(batch["study_key"].tolist()):
            row, other = shown[key]
            for name in ("image", "token_ids", "sentence_ids"):
                np.testing.assert_array_equal(batch[name][index], other[name][row])


def test_a_subset_holds_whole_sentences_of_its_own_report(mimic_build, batch_spec):
    tokenizer = ReportTokenizer.load(batch_spec.tokenizer)
    spec = dataclasses.replace(batch_spec, subset_probability=1.0)
    sentences = {}
    for record in reading.open_split(mimic_build, "train"):
        encoded = [tokenizer.encode_report([text], max_tokens=40, max_sentences=1) for text in record.sentences]
        sentences[streams.text_key(record.sentences)] = {tuple(ids[marks == 1].tolist()) for ids, marks in encoded}
    counts, orders = set(), set()
    for batch in train(mimic_build, spec, steps=6):
        for key, ids, marks in zip(batch["study_key"].tolist(), batch["token_ids"], batch["sentence_ids"], strict=True):
            shown = [tuple(ids[marks == number].tolist()) for number in range(1, marks.max() + 1)]
            assert set(shown) <= sentences[key]
            assert len(set(shown)) == len(shown) > 0
            counts.add(len(shown))
            orders.add((key, tuple(shown)))
    assert counts == {1, 2, 3, 4}
    assert len(orders) > 24


def test_permuted_reports_belong_to_other_patients_and_stay_the_same(mimic_build, batch_spec):
    plain = dataclasses.replace(batch_spec, scale=(1.0, 1.0), shift=0.0, subset_probability=0.0)
    records = list(reading.open_split(mimic_build, "train"))
    patient_of_text = {streams.text_key(record.sentences): record.patient_key for record in records}
    patient_of_image = {
        evaluation_view(decode_gray(record.image), 24).tobytes(): record.patient_key for record in records
    }
    pairs = set()
    for batch in train(mimic_build, plain, steps=6, permute_reports=True):
        for image, key in zip(batch["image"], batch["study_key"].tolist(), strict=True):
            pairs.add((image.tobytes(), key))
            assert patient_of_image[image.tobytes()] != patient_of_text[key]
    assert len(pairs) == 12
    assert len({key for _, key in pairs}) == 12


def test_permuting_changes_neither_images_nor_their_order(mimic_build, batch_spec, reference):
    permuted = train(mimic_build, batch_spec, permute_reports=True)
    for one, other in zip(permuted, reference, strict=True):
        np.testing.assert_array_equal(one["image"], other["image"])
        assert (one["study_key"] != other["study_key"]).all()


@given(st.lists(st.integers(0, 6), min_size=2, max_size=40), st.integers(0, 2**32 - 1))
def test_the_permutation_never_stays_with_a_patient(patients, seed):
    patients = [str(patient) for patient in patients]
    if 2 * max(patients.count(patient) for patient in patients) > len(patients):
        with pytest.raises(DataError, match="permuting reports needs at most half"):
            streams.report_permutation(patients, seed)
        return
    permutation = streams.report_permutation(patients, seed)
    assert sorted(permutation.tolist()) == list(range(len(patients)))
    assert all(patients[index] != patients[other] for index, other in enumerate(permutation))
    np.testing.assert_array_equal(permutation, streams.report_permutation(patients, seed))


@given(st.sampled_from([1, 2, 3, 4, 6, 12]), st.integers(0, 10**9))
def test_the_blocks_of_all_processes_are_the_global_rows_in_order(count, start):
    parts = [
        streams.Positions.of_process(index, count, batch_size=12, start_step=start, end_step=2**32)
        for index in range(count)
    ]
    size = 12 // count
    found = [part[step * size + row] for step in range(3) for part in parts for row in range(size)]
    assert found == list(range(start * 12, (start + 3) * 12))


def test_evaluation_shows_every_record_once_in_order_and_marks_the_padding(mimic_build, batch_spec):
    records = list(reading.open_split(mimic_build, "train"))
    batches = evaluate(mimic_build, batch_spec, "train", batch_size=5)
    whole = join([[batch] for batch in batches])
    joined = {name: np.concatenate([batch[name] for batch in whole]) for name in whole[0]}
    np.testing.assert_array_equal(joined["valid"], [True] * 12 + [False] * 3)
    for index, record in enumerate(records):
        np.testing.assert_array_equal(joined["labels"][index], record.labels)
        np.testing.assert_array_equal(joined["original_size"][index], record.original_size)
        assert joined["patient_key"][index] == int(record.patient_key[:8], 16)
        assert joined["image_key"][index] == int(record.image_key[:8], 16)
        np.testing.assert_array_equal(joined["image"][index, ..., 0], evaluation_view(decode_gray(record.image), 24))
    assert np.isnan(joined["labels"][12:]).all()
    assert not joined["image"][12:].any()
    assert not joined["sentence_ids"][12:].any()
    assert {name: str(value.dtype) for name, value in joined.items()} == {
        "image": "uint8",
        "token_ids": "int32",
        "sentence_ids": "int32",
        "study_key": "uint32",
        "labels": "float32",
        "valid": "bool",
        "patient_key": "uint32",
        "image_key": "uint32",
        "original_size": "int32",
    }


@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("split", ["train", "test"])
def test_every_process_has_as_many_evaluation_batches(mimic_build, batch_spec, split, count):
    parts = [
        evaluate(mimic_build, batch_spec, split, process_index=index, process_count=count) for index in range(count)
    ]
    assert_equal(join(parts), evaluate(mimic_build, batch_spec, split))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"split": "val"}, "no split 'val'; this build has train, validate, test"),
        ({"process_count": 3}, "batch_size is 8 for 3 processes; expected a multiple of 3"),
        ({"process_index": 2, "process_count": 2}, "process 2 of 2 at step 0; expected 0 to 1"),
        ({"start_step": -1}, "at step -1"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_wrong_options_are_refused_in_one_line(mimic_build, batch_spec, options, message):
    with pytest.raises(UserError) as error:
        train(mimic_build, batch_spec, **options)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_folder_without_a_build_says_how_to_make_one(batch_spec, tmp_path):
    for read in (lambda: train(tmp_path, batch_spec), lambda: loader.label_names(tmp_path)):
        with pytest.raises(UserError, match="no finished build; make one with `msfl data build"):
            read()


def test_a_flipped_bit_is_refused_when_its_record_is_read(mimic_build, batch_spec, tmp_path):
    copy = shutil.copytree(mimic_build, tmp_path / "copy")
    shard = copy / "mimic_cxr-test.array_record-00000-of-00001"
    original = shard.read_bytes()
    expected = [record.image for record in reading.open_split(copy, "test")]
    rng = np.random.default_rng(0)
    written = np.flatnonzero(np.frombuffer(original, np.uint8))
    refused = 0
    for place in rng.choice(written, 30, replace=False):
        damaged = bytearray(original)
        damaged[place] ^= 1 << int(rng.integers(8))
        shard.write_bytes(damaged)
        try:
            assert [record.image for record in reading.open_split(copy, "test")] == expected
        except DataError:
            refused += 1
            with pytest.raises(DataError, match=f"{shard.name}: .* damaged.*; run the same `msfl data build`"):
                evaluate(copy, batch_spec, "test")
    assert refused >= 25


def test_the_build_is_described_without_reading_images(mimic_build, layout):
    assert loader.label_names(mimic_build)[:2] == ("Atelectasis", "Cardiomegaly")
    assert loader.record_count(mimic_build, "train") == 12
    sentences = list(loader.text_sentences(mimic_build, "test"))
    assert len(sentences) == 16
    assert sentences[1] == "The heart is normal in size."
    with pytest.raises(DataError, match="no record of split 'train' has boxes"):
        loader.grounding_records(mimic_build, "train")


@pytest.mark.parametrize("processors, workers, expected", [(1, 0, 1), (2, 0, 2), (2, 2, 1), (8, 2, 4), (64, 4, 4)])
def test_no_more_threads_read_than_there_are_processors_for(monkeypatch, processors, workers, expected):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(processors)), raising=False)
    assert loader._threads(workers) == expected


def test_a_worker_takes_no_accelerator(monkeypatch):
    script = """
import os, sys
import jax
from input_pipeline import loader
loader._prepare_worker(0, 1)
assert jax.config.jax_platforms == "cpu"
assert os.environ["JAX_PLATFORMS"] == "cpu" and os.environ["TOKENIZERS_PARALLELISM"] == "false"
import cv2
assert cv2.getNumThreads() <= 1
"""
    environment = {
        name: value for name, value in os.environ.items() if name not in ("JAX_PLATFORMS", "TOKENIZERS_PARALLELISM")
    }
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True, env=environment
    )
    assert run.returncode == 0, run.stderr[-2000:]


def test_permuted_reports_do_not_depend_on_the_keys_of_patients():
    patients = ["a", "a", "b", "c", "c", "d", "e", "f"]
    renamed = [{"a": "9", "b": "1", "c": "5", "d": "0", "e": "7", "f": "3"}[patient] for patient in patients]
    np.testing.assert_array_equal(streams.report_permutation(patients, 3), streams.report_permutation(renamed, 3))
