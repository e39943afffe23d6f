"""Records survive being encoded, and TFDS reads them by itself."""

import subprocess
import sys

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds
from hypothesis import given
from hypothesis import strategies as st

from input_pipeline import records
from input_pipeline.reading import parse_example

JPEG = cv2.imencode(".jpg", np.arange(48, dtype=np.uint8).reshape(6, 8))[1].tobytes()

text = st.text(st.characters(blacklist_categories=("Cs",)), max_size=12)
key = st.text("0123456789abcdef", min_size=32, max_size=32)


@st.composite
def record_fields(draw):
    labels = draw(st.lists(st.sampled_from([1.0, 0.0, -1.0, float("nan")]), min_size=1, max_size=5))
    boxes = draw(st.lists(st.tuples(*[st.floats(0, 5000, width=32)] * 4), max_size=3))
    return {
        "image": JPEG,
        "original_size": draw(st.tuples(st.integers(1, 65500), st.integers(1, 65500))),
        "sentences": tuple(draw(st.lists(text, max_size=4))),
        "labels": np.asarray(labels, np.float32),
        "view": draw(st.sampled_from(["PA", "AP", ""])),
        "study_key": draw(key),
        "patient_key": draw(key),
        "image_key": draw(key),
        "boxes": np.asarray(boxes, np.float32).reshape(-1, 4),
        "category": draw(text),
        "mask": draw(st.binary(max_size=9)),
        "pixel_key": draw(st.just("") | key),
    }


def through_tfds(record):
    """What a data source without TensorFlow makes of the bytes."""
    features = records.features([""] * len(record.labels))
    decoders = {"image": tfds.decode.SkipDecoding()}
    return records.decode(features.deserialize_example_np(records.encode(record), decoders=decoders))


def through_reading(record):
    """What the loader makes of them."""
    return records.decode(parse_example(records.encode(record)))


@pytest.mark.parametrize("decode", [through_tfds, through_reading])
@given(fields=record_fields())
def test_decoding_undoes_encoding(decode, fields):
    record = records.Record(**fields)
    found = decode(record)
    for name in records.Record.__slots__:
        expected, value = getattr(record, name), getattr(found, name)
        if isinstance(expected, np.ndarray):
            np.testing.assert_array_equal(value, expected)
            assert value.dtype == np.float32
        else:
            assert value == expected


def test_equal_records_give_equal_bytes_in_another_process():
    script = (
        "import numpy as np, hashlib; from input_pipeline import records as r;"
        "print(hashlib.sha256(r.encode(r.Record(b'\\xff\\xd8', (1, 2), ('a', 'b'), np.zeros(3, np.float32), 'PA', '0', '1', '2',"
        " np.zeros((0, 4), np.float32), ''))).hexdigest())"
    )
    runs = [
        subprocess.run(
            [sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True, check=True
        ).stdout
        for _ in range(2)
    ]
    assert runs[0] == runs[1]
    assert len(runs[0].strip()) == 64


def test_tfds_reads_a_build_by_itself_and_never_imports_tensorflow(mimic_build):
    script = f"""
import sys
import tensorflow_datasets as tfds
builder = tfds.builder_from_directory({str(mimic_build)!r})
sizes = {{split: len(builder.as_data_source(split)) for split in builder.info.splits}}
first = builder.as_data_source("train")[0]
assert first["image"].shape[0] == {32} and first["image"].shape[2] == 1, first["image"].shape
assert "tensorflow" not in sys.modules
print(sizes)
"""
    run = subprocess.run([sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
    assert run.stdout.strip() == "{'train': 12, 'validate': 4, 'test': 4}"


def test_a_split_can_be_sliced_by_tfds(mimic_build):
    builder = tfds.builder_from_directory(mimic_build)
    decoders = {"image": tfds.decode.SkipDecoding()}
    half = builder.as_data_source("train[50%:]", decoders=decoders)
    whole = builder.as_data_source("train", decoders=decoders)
    assert [item["image_key"] for item in half] == [whole[index]["image_key"] for index in range(6, 12)]


def test_the_number_of_labels_is_part_of_the_features():
    assert records.features(["a", "b"])["labels"].shape == (2,)
