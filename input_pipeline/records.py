"""The record: one image with its report's sentences, labels and keyed identities, as stored in ArrayRecord shards with TFDS features."""

import functools
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import Float32
from tensorflow_datasets.core import example_serializer


@dataclass(frozen=True, slots=True)
class Record:
    """One image and what is known about it; a grounding record holds one phrase and its boxes instead of a report.

    Attributes:
      image: grey JPEG.
      original_size: (height, width) of the source image in pixels.
      sentences: cleaned sentences in the report's order.
      labels: 1 present, 0 absent, -1 uncertain, NaN not mentioned, in the order of the build's `label_names`.
      view: "PA", "AP", "LATERAL", ..., or "" where the source does not say.
      study_key: 32 hex digits, keyed hash of the study's identifier; likewise `patient_key` and `image_key`.
      boxes: x, y, width, height in pixels of the source image, origin at the top left.
      category: the finding of a grounding record, else "".
      mask: one-channel PNG of 0 and 255 in pixels of the source image, or b"" where the source has no segmentation.
      pixel_key: 32 hex digits, keyed hash of the decoded source pixels: equal for the same picture under another identifier.
    """

    image: bytes
    original_size: tuple[int, int]
    sentences: tuple[str, ...]
    labels: Float32[np.ndarray, "L"]
    view: str
    study_key: str
    patient_key: str
    image_key: str
    boxes: Float32[np.ndarray, "K 4"]
    category: str
    mask: bytes = b""
    pixel_key: str = ""


def short_key(key: str) -> int:
    """The first 32 bits of a key of hex digits, as batches and predictions hold it."""
    return int(key[:8], 16)


def features(label_names: Sequence[str]) -> tfds.features.FeaturesDict:
    """TFDS features of a record; they read without TensorFlow where the image is left encoded (`tfds.decode.SkipDecoding`).

    Args:
      label_names: one name per label; only their number is part of the features.
    """
    text = tfds.features.Text
    return tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(shape=(None, None, 1), dtype=np.uint8, encoding_format="jpeg"),
            "original_size": tfds.features.Tensor(shape=(2,), dtype=np.int32),
            "sentences": tfds.features.Sequence(text()),
            "labels": tfds.features.Tensor(shape=(len(label_names),), dtype=np.float32),
            "view": text(),
            "study_key": text(),
            "patient_key": text(),
            "image_key": text(),
            "boxes": tfds.features.Tensor(shape=(None, 4), dtype=np.float32),
            "category": text(),
            "mask": tfds.features.Scalar(dtype=np.object_),
            "pixel_key": text(),
        }
    )


def encode(record: Record) -> bytes:
    """The record as a serialised `tf.train.Example`; equal records give equal bytes."""
    feature_dict, serializer = _codec(len(record.labels))
    example = feature_dict.encode_example(
        {
            "image": io.BytesIO(record.image),  # an array would be encoded with TensorFlow
            "original_size": np.asarray(record.original_size, np.int32),
            "sentences": list(record.sentences),
            "labels": record.labels,
            "view": record.view,
            "study_key": record.study_key,
            "patient_key": record.patient_key,
            "image_key": record.image_key,
            "boxes": record.boxes,
            "category": record.category,
            "mask": record.mask,
            "pixel_key": record.pixel_key,
        }
    )
    # A protobuf map is written in hash order otherwise, which differs between processes.
    return serializer.get_tf_example(example).SerializeToString(deterministic=True)


def decode(example: Mapping[str, Any]) -> Record:
    """The record of an element of `as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})`."""
    height, width = example["original_size"]
    return Record(
        image=bytes(example["image"]),
        original_size=(int(height), int(width)),
        sentences=tuple(sentence.decode() for sentence in example["sentences"]),
        labels=np.asarray(example["labels"], np.float32),
        view=example["view"].decode(),
        study_key=example["study_key"].decode(),
        patient_key=example["patient_key"].decode(),
        image_key=example["image_key"].decode(),
        boxes=np.asarray(example["boxes"], np.float32).reshape(-1, 4),
        category=example["category"].decode(),
        mask=bytes(example.get("mask", b"")),  # builds of features 1.0.0 have neither
        pixel_key=example.get("pixel_key", b"").decode(),
    )


@functools.lru_cache(maxsize=8)
def _codec(label_count: int) -> tuple[tfds.features.FeaturesDict, example_serializer.ExampleSerializer]:
    feature_dict = features([""] * label_count)
    specs: Any = feature_dict.get_serialized_info()  # nested dictionaries, which TFDS types too narrowly
    return feature_dict, example_serializer.ExampleSerializer(specs)
